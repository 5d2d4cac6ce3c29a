"""What is measured of a table on Spark, beside what Polars measures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from spark_kit import stored

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import StoredRows
from ml_lifecycle.records import ColumnSpec, Interval
from ml_lifecycle.spark.facts import SparkFacts
from ml_lifecycle.stages.validation_facts import FactError, PolarsFacts, Span

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MOMENTS = [datetime(2013, 3, day, 23, 59, 59, 999_999, UTC) for day in (1, 1, 2, 5)]
ROWS = pl.DataFrame(
    {
        "a.t": [*MOMENTS, datetime(1582, 10, 10, tzinfo=UTC), None],
        "kind": ["a", "b", "a", None, "a", "ä"],
        "value": [1.0, None, -0.0, 2.5, 7.0, 7.0],
    },
    schema_overrides={"a.t": pl.Datetime("us", "UTC")},
)
SPAN = Span("a.t", Interval(datetime(2013, 3, 1, tzinfo=UTC), MOMENTS[3]))
COLUMNS = (ColumnSpec("kind", "string", nullable=True), ColumnSpec("value", "float", nullable=True))


@pytest.mark.parametrize("rows", [ROWS, ROWS.clear()])
def test_facts_are_the_same(spark: SparkSession, tmp_path: Path, rows: pl.DataFrame) -> None:
    table = stored(Lake(str(tmp_path)), "rows", rows, [2, 0])
    polars, on_spark = PolarsFacts(table.scan()), SparkFacts(spark, table)
    assert on_spark.schema == polars.schema
    assert on_spark.newest("a.t") == polars.newest("a.t")
    assert on_spark.by_day(SPAN).sort("day").equals(polars.by_day(SPAN).sort("day"))
    assert on_spark.shares("kind", ["a", "ä", "x"]) == polars.shares("kind", ["a", "ä", "x"])
    for span in (None, SPAN):
        assert on_spark.count(span) == polars.count(span)
        assert on_spark.profiles(COLUMNS, span) == polars.profiles(COLUMNS, span)
    with pytest.raises(FactError):
        on_spark.shares("value", ["a"])


def test_files_of_other_columns_and_types_are_one_table(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "odd [name] {*}"))
    parts = (
        pl.DataFrame({"x": [1, 2]}),
        pl.DataFrame({"x": [0.5], "y": ["a"]}),
        pl.DataFrame({"y": ["b"]}),
        pl.DataFrame({"x": [None], "y": [None]}),
    )
    files = [stored(lake, f"part-{number}", part, []).files[0] for number, part in enumerate(parts)]
    # The first is there twice, as a partition with the rows of another is.
    table = StoredRows(lake, {"x": "double", "y": "string"}, (*files, files[0]))
    polars, on_spark = PolarsFacts(table.scan()), SparkFacts(spark, table)
    assert on_spark.count(None) == polars.count(None) == 7
    columns = (ColumnSpec("x", "float", nullable=True), ColumnSpec("y", "string", nullable=True))
    assert on_spark.profiles(columns, None).keys() == {"x", "y"}
    assert on_spark.shares("x", [1.0, 2.0, 0.5]) == polars.shares("x", [1.0, 2.0, 0.5]) == (2, 2, 1, 5)
