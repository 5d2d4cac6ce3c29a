"""The monitor's window, profiled on Spark: the same findings in every bit, torn parts included."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from test_monitor import DAY, World, log_rows, make_spec, run, traffic

from ml_lifecycle.records import Interval, Monitoring, to_json
from ml_lifecycle.spark.job import SparkElsewhereError
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.spark import Spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPEC = make_spec(segments={"carrier": ["AA"]})
ON_SPARK = SPEC.model_copy(update={"engine": "spark"})
WINDOW = Interval(DAY, DAY + timedelta(hours=20))


def watched(root: Path, spec: ModelSpec) -> tuple[World, Monitoring]:
    """A window whose last hours are beyond it, with rows of another version and a torn part."""
    world = World(root)
    rows = traffic(4000, seed=2, shift=0.4)
    odd = rows[:5].with_columns(delay=pl.lit(None, pl.Float64), carrier=pl.lit("é\n"))
    for part in (log_rows(rows[:1500]), log_rows(rows[1500:]), log_rows(odd), log_rows(rows[:50], "2")):
        world.log(part)
    world.log(log_rows(rows[:1])).write_bytes(b"PAR1 torn")
    return world, world.monitor(spec=spec, the_run=run(WINDOW))


def test_a_window_is_found_to_be_the_same(spark: SparkSession, tmp_path: Path) -> None:
    world, polars = watched(tmp_path / "polars", SPEC)
    other, on_spark = watched(tmp_path / "spark", ON_SPARK)
    assert to_json(on_spark) == to_json(polars)
    profile = f"{polars.path}/profile.json"
    assert other.lake.read_bytes(profile) == world.lake.read_bytes(profile)
    kept = [path for path in other.lake.list("monitoring/late/stretches") if "profile-" in path]
    assert kept == [path for path in world.lake.list("monitoring/late/stretches") if "profile-" in path]


def test_elsewhere_it_says_what_an_application_is_to_do(tmp_path: Path) -> None:
    elsewhere = ON_SPARK.model_copy(update={"spark": Spark(on="kubernetes", image="registry/spark:1")})
    with pytest.raises(SparkElsewhereError) as raised:
        watched(tmp_path, elsewhere)
    assert raised.value.job.stage == "profile_window"
