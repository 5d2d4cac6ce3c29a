"""Great Expectations on Spark says of any rows and any contract what the engine ``polars`` says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from spark_kit import stored

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import column_types
from ml_lifecycle.rules import one_pass
from ml_lifecycle.rules.rule import Batch, Checked
from ml_lifecycle.spark.validation import SparkExpectations
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.stages.validation_rules import row_batch, unique_batch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOLDERS = (f"rows-{number}" for number in itertools.count())
MOMENT = pl.Datetime("us", "UTC")
ROWS = pl.DataFrame(
    {
        "integer": [1, 2, 2, None, 2**53 + 1, 2**53, -(2**63), 2**63 - 1, 5, 5],
        "other integer": [1, 1, 3, 4, None, 2**53 + 1, 0, 0, 5, 5],
        "float": [0.0, -0.0, math.inf, -math.inf, None, 1e308, 5e-324, 1.5, 1.5, math.nan],
        "other float": [-0.0, 0.0, 1.0, None, None, 1e308, 0.0, 1.5, 2.0, math.nan],
        "a.b `c`": ["a", "ab\n", "é٣", "", None, "A", "a b", "\x1c", "𝔞", "a"],
        "boolean": [True, False, None, True, True, False, True, True, True, True],
        "at": [datetime(1700, 1, 1, tzinfo=UTC), None, *[datetime(2013, 3, 31, 1, 2, 3, 4, UTC)] * 8],
        "day": [date(1, 1, 1), date(1582, 10, 10), None, *[date(2024, 2, 29)] * 7],
        "At": list(range(10)),
    },
    schema_overrides={"at": MOMENT},
)


@pytest.fixture(scope="module")
def expectations(spark: SparkSession) -> SparkExpectations:
    return SparkExpectations(spark)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake(str(tmp_path_factory.mktemp("lake")))


def compare(expectations: SparkExpectations, batch: Batch) -> Checked:
    """Both engines' results, reports and samples, held against each other; returns Polars'."""
    polars, spark = one_pass.check(batch), expectations.check(batch)
    for one, other in zip(polars.results, spark.results, strict=True):
        assert (one.error is None) == (other.error is None), (one, other)
        assert one.error is not None or one == other
    assert {**spark.report, "meta": {}} == {**polars.report, "meta": {}}
    for (_, rows), (_, others) in zip(polars.offending, spark.offending, strict=True):
        assert repr(others.rows()) == repr(rows.rows())
        assert others.schema == rows.schema
    return polars


def on_disk(
    lake: Lake,
    batch: Batch,
    frame: pl.DataFrame,
    older: pl.DataFrame | None = None,
    sizes: Sequence[int] = (3,),
) -> Batch:
    rows = stored(lake, next(FOLDERS), frame, sizes)
    before = None if older is None else stored(lake, next(FOLDERS), older, [1])
    scanned = None if before is None else before.scan()
    return replace(batch, frame=rows.scan(), older=scanned, stored=rows, older_stored=before)


def contract(*fields: dict[str, Any]) -> Contract:
    return Contract.model_validate({"name": "t", "version": "1", "fields": fields})


QUICK: tuple[dict[str, Any], ...] = (
    {"name": "integer", "type": "integer", "nullable": False, "min": -5.5, "max": 1e15},
    {"name": "float", "type": "float", "max_missing": 0.1, "min": 0, "max": 1.5, "above": "other float"},
    {"name": "other float", "type": "float"},
    {"name": "other integer", "type": "integer"},
    {"name": "boolean", "type": "boolean"},
    {"name": "a.b `c`", "type": "string", "pattern": r"[a-z ]\w*"},
    {
        "name": "At",
        "type": "integer",
        "conditional": [{"when": [{"field": "a.b `c`", "op": "in", "value": ["a", "é٣"]}], "min": 3}],
    },
    {"name": "gone", "type": "float", "min": 1},
)
ALL: tuple[dict[str, Any], ...] = (
    {"name": "integer", "type": "integer", "nullable": False, "min": -5.5, "max": 1e15},
    {"name": "other integer", "type": "integer", "at_least": "integer", "allowed_values": [1, 2**53 + 1]},
    {"name": "float", "type": "float", "max_missing": 0.1, "min": 0, "max": 1.5, "above": "other float"},
    {"name": "other float", "type": "float", "allowed_values": [0.0, 1.5], "severity": "warn"},
    {"name": "a.b `c`", "type": "string", "pattern": r"[a-z ]\w*", "allowed_values": ["a", ""]},
    {"name": "boolean", "type": "boolean", "allowed_values": [True]},
    {"name": "at", "type": "timestamp", "pii": True, "nullable": False},
    {"name": "day", "type": "date", "max_missing": 0.05},
    {
        "name": "At",
        "type": "integer",
        "conditional": [
            {"when": [{"field": "a.b `c`", "op": "in", "value": ["a", "é٣"]}], "min": 3},
            {"when": [{"field": "boolean", "op": "is_not", "value": True}], "nullable": False},
            {"when": [{"field": "float", "op": "missing"}], "max": 3, "above": "other integer"},
        ],
    },
    {"name": "gone", "type": "float", "min": 1},
)


@pytest.mark.parametrize("fields", [QUICK, pytest.param(ALL, marks=pytest.mark.full)], ids=["quick", "all"])
def test_a_contract_on_all_that_is_odd(
    expectations: SparkExpectations, lake: Lake, fields: tuple[dict[str, Any], ...]
) -> None:
    batch = row_batch("t", contract(*fields), column_types(ROWS), ROWS.lazy())
    results = compare(expectations, on_disk(lake, batch, ROWS)).results
    assert sum(not result.passed for result in results) > 5


@pytest.mark.parametrize(
    "fields",
    [
        ["float"],
        *(
            pytest.param(fields, marks=pytest.mark.full)
            for fields in (["integer"], ["a.b `c`", "day"], ["at", "float", "boolean"])
        ),
    ],
)
def test_what_is_there_twice(expectations: SparkExpectations, lake: Lake, fields: list[str]) -> None:
    rows = ROWS.with_columns(pl.col("float", "other float").fill_nan(None))
    batch = unique_batch("t", "unique", fields, "halt", rows.lazy(), [], hidden=False)
    compare(expectations, on_disk(lake, batch, rows))
    older = pl.concat([rows.tail(4), rows.tail(1)])
    compare(expectations, on_disk(lake, batch, rows.head(7), older))


@pytest.mark.parametrize("rows", [ROWS.clear(), pytest.param(ROWS.clear(4), marks=pytest.mark.full)])
def test_nothing_there(expectations: SparkExpectations, lake: Lake, rows: pl.DataFrame) -> None:
    asked = contract(
        {"name": "integer", "type": "integer", "nullable": False, "min": 1, "max": 2},
        {"name": "other integer", "type": "integer", "above": "integer"},
        {"name": "a.b `c`", "type": "string", "pattern": "x"},
    )
    compare(
        expectations, on_disk(lake, row_batch("t", asked, column_types(rows), rows.lazy()), rows, sizes=[])
    )
    batch = unique_batch("t", "unique", ["integer"], "halt", rows.lazy(), [], hidden=False)
    compare(expectations, on_disk(lake, batch, rows, sizes=[1, 0]))
