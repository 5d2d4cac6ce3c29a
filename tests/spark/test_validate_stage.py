"""The validate stage on Spark: the same validation, report and quarantine as without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from data_cases import contract, events, put, run, spec

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Validation, to_json
from ml_lifecycle.spark.job import SparkElsewhereError
from ml_lifecycle.spec.spark import Spark
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.validate import latest_validated, validate

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JANUARY = run("2013-01-01", "2013-02-01")
FEBRUARY = run("2013-02-01", "2013-03-01", run_id="run_2")
SPEC = spec(events={"uri": "raw/*.parquet", "event_time": "at", "keys": ["id"], "contract": "events"})
ON_SPARK = SPEC.model_copy(update={"engine": "spark"})
CONTRACTS = contract(
    "events",
    [
        {"name": "id", "type": "integer", "nullable": False, "unique": True},
        {"name": "at", "type": "timestamp", "nullable": False},
        {
            "name": "value",
            "type": "float",
            "min": 0,
            "distribution": {"max_psi": 0.1, "max_missing_increase": 0.01},
        },
        {
            "name": "kind",
            "type": "string",
            "allowed_values": ["b", "c"],
            "min_share": 0.2,
            "severity": "warn",
        },
        {"name": "phone", "type": "string", "pattern": "0.*", "pii": True, "severity": "warn"},
    ],
    freshness={"max_staleness": "2h", "severity": "warn"},
    volume={"min_rows_per_day": 5, "severity": "warn"},
    unique_together=[["kind", "at"]],
)


def life(root: Path, model: Any) -> tuple[Lake, list[Validation]]:
    """Two months; the second breaks what can be broken."""
    lake = Lake(str(root / "lake"))
    first = events("2013-01-01", 31 * 4, kind=pl.lit("a"), phone=pl.lit("0"))
    later = events(
        "2013-02-01",
        28 * 4,
        id=pl.col("id") + 60,  # some of which January had
        value=pl.when(pl.col("id") % 7 > 1).then(-1.0),
        kind=pl.lit("b"),
        phone=pl.lit("+1 555 0100"),
    )
    made = []
    for when, name, frame in ((JANUARY, "1", first), (FEBRUARY, "2", later)):
        put(Path(lake.root) / "raw", f"{name}.parquet", frame)
        snapshot = ingest(model, lake, when, contracts=CONTRACTS)
        made.append(validate(model, CONTRACTS, lake, snapshot, latest_validated(lake, "demo", when.as_of)))
    return lake, made


@pytest.mark.full
def test_two_months_are_judged_alike(spark: SparkSession, tmp_path: Path) -> None:
    (lake, ours), (on_spark, theirs) = life(tmp_path / "one", SPEC), life(tmp_path / "two", ON_SPARK)
    assert len(ours[1].failed) > 7
    for polars, other in zip(ours, theirs, strict=True):
        same = {"digest": "", "path": "", "report_path": ""}
        assert to_json(replace(other, **same)) == to_json(replace(polars, **same))  # type: ignore[arg-type]
        reports = [lake.read_json(polars.report_path), on_spark.read_json(other.report_path)]
        for report in reports:
            for part in report["great_expectations"].values():
                part.pop("meta", None)
        assert reports[0] == reports[1]
    quarantine = list(lake.list("quarantine"))
    assert quarantine == list(on_spark.list("quarantine"))
    rows, others = (
        pl.read_parquet(one.open(next(path for path in quarantine if path.endswith(".parquet"))))
        for one in (lake, on_spark)
    )
    assert others.equals(rows)


def test_elsewhere_it_says_what_an_application_is_to_do(tmp_path: Path) -> None:
    elsewhere = ON_SPARK.model_copy(update={"spark": Spark(on="kubernetes", image="registry/spark:1")})
    with pytest.raises(SparkElsewhereError) as raised:
        life(tmp_path, elsewhere)
    assert raised.value.job.stage == "validate"
    assert raised.value.job.arguments["previous"] is None
