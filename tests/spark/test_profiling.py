"""Profiles that Spark made of many partitions, beside those that were made in one place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from ml_lifecycle.profiles.profile import CategoricalColumn, NumericColumn
from ml_lifecycle.profiles.profiling import make_profile
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.spark.profiling import profile_rows

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

COLUMNS = (
    ColumnSpec("delay", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("a.b `c`", "string", nullable=True),
    ColumnSpec("night", "bool"),
    ColumnSpec("gone", "float", nullable=True),
)


def rows(n: int) -> pl.DataFrame:
    chance = np.random.default_rng(7)
    delay = chance.pareto(2, n)
    delay[:3] = (math.nan, math.inf, -math.inf)
    return pl.DataFrame(
        {
            "delay": delay,
            "hour": chance.integers(0, 24, n),
            "a.b `c`": chance.choice(["é", "", "b", "\u0000"], n),
            "night": chance.integers(0, 2, n).astype(bool),
            "not asked for": chance.random(n),
        }
    )


def test_many_partitions_make_one_profile(spark: SparkSession, tmp_path: Path) -> None:
    frame = rows(20_000)
    for number in range(5):  # the last of them empty
        frame.slice(number * 5000, 5000).write_parquet(tmp_path / f"{number}.parquet")
    read = spark.read.parquet(*sorted(f"file://{path}" for path in tmp_path.iterdir())).repartition(7)
    made, own = (
        profile_rows(read, COLUMNS, {"hour": ["3"]}),
        make_profile(frame, COLUMNS, {"hour": ["3"]}),
    )
    assert made.rows == own.rows == 20_000
    assert made.segments["hour=3"].rows == own.segments["hour=3"].rows > 0
    assert made.pairs is not None
    for name, column in own.columns.items():
        other = made.columns[name]
        if isinstance(column, CategoricalColumn):
            assert other == column
            continue
        assert isinstance(column, NumericColumn)
        assert isinstance(other, NumericColumn)
        exact = ("count", "missing", "min", "max")
        assert [getattr(other, one) for one in exact] == [getattr(column, one) for one in exact]
        if column.count:
            assert (other.mean, other.std) == pytest.approx((column.mean, column.std), rel=1e-9)
            values = np.sort(frame[name].to_numpy().astype(float))
            values = values[np.isfinite(values)]
            for share in (0.01, 0.25, 0.5, 0.9, 0.999):
                value = np.quantile(values, share)
                below = np.searchsorted(values, value, "right") / len(values)
                assert float(other.quantiles.shares_to(np.array([value]))[0]) == pytest.approx(
                    below, abs=0.005
                )


def test_nothing_there(spark: SparkSession) -> None:
    empty = spark.createDataFrame([], "delay double")
    assert profile_rows(empty, COLUMNS) == make_profile(pl.DataFrame(), COLUMNS)
