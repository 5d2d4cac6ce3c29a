"""Features on Spark against the as-of join, where Feast's Spark store by itself would answer otherwise."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from feast import Field
from feast.types import Float64
from feature_worlds import (
    ASKED,
    ODD,
    VIEWS,
    Places,
    best,
    driver,
    features,
    hours,
    land_by_chance,
    lots,
    view,
)
from polars.testing import assert_frame_equal

from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.spark import passing
from ml_lifecycle.spark.features import SparkFeatures, check, read_tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def places(tmp_path: Path, spark: SparkSession) -> Places:
    return Places(tmp_path, spark)


def asked_by_chance(chance: random.Random, rows: int) -> pl.DataFrame:
    # Few moments, so that keys meet that are one text; among the events, which a shifted clock then cuts.
    moments = [hours(at) - timedelta(microseconds=less) for at in range(8, 20, 4) for less in (0, 1)]
    return pl.DataFrame(
        {
            "driver_id": [chance.choice(ODD) for _ in range(rows)],
            "city_id": [chance.choice(ODD) for _ in range(rows)],
            "lot": [chance.choice([1, 11, 2, 3, None]) for _ in range(rows)],
            "o`dd 1.x": range(rows),
            "O`DD 1.X": [chance.choice(ODD) for _ in range(rows)],
            "bonus": [chance.choice([None, 1.0, 5.0]) for _ in range(rows)],
            "event_timestamp": [chance.choice([*moments, None]) for _ in range(rows)],
        },
        schema_overrides={"event_timestamp": TIMESTAMP, "lot": pl.Int64},
    )


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process in New York."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 8))])
def test_the_answers_are_those_of_the_as_of_join(
    places: Places, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "_PART_ROWS", 120)
    chance = random.Random(seed)
    land_by_chance(places, chance, 600)
    found, expected = places.both(features(*VIEWS, asked=[*ASKED, best]), asked_by_chance(chance, 400))
    assert_frame_equal(found, expected, check_exact=True)
    for name in ("rating", "note", "hours", "late", "size", "rain", "best"):
        assert 0 < found[name].null_count() < found.height, name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "trips-2"}, "cannot have a feature, key or view named 'trips-2': use letters"),
        ({"field": "Rating"}, "'Rating' and 'rating' are one name to Spark"),
        ({"field": "event_timestamp"}, "cannot have a feature, key or view named 'event_timestamp'"),
        ({"field": "Null"}, "cannot have a feature, key or view named 'Null'"),
        ({"ttl": timedelta(seconds=1.5)}, r"has a ttl of 1.5 seconds, of which .* drops the fraction"),
    ],
)
def test_what_feasts_store_cannot_work_with_is_named(changed: dict[str, Any], message: str) -> None:
    one = {"name": "one", "field": "rating", "ttl": timedelta(hours=1)} | changed
    views = [
        view(one["name"], [driver], one["ttl"], Field(name=one["field"], dtype=Float64)),
        view("other", [driver], None, Field(name="rating", dtype=Float64)),
    ]
    asked = views[:1] if one["field"] == "rating" else views
    with pytest.raises(FeatureError, match=message):
        check(features(*views, asked=asked))


def test_rows_that_a_join_makes_or_loses_are_found_out(spark: SparkSession, places: Places) -> None:
    with passing.passing_rows(spark, places.lake) as rows:
        with pytest.raises(FeatureError, match="the join on Spark made 6 rows of 5"):
            rows.from_spark(spark.range(6), "id", 5)
        found = rows.from_spark(spark.range(6).where("id <> 3"), "id", 5)
        with pytest.raises(FeatureError, match="the join on Spark lost one of the rows from 0 on"):
            list(found)
    assert not list(places.lake.list("spark_rows"))


def test_a_key_that_the_rows_lack_is_named(spark: SparkSession, places: Places) -> None:
    land_by_chance(places, random.Random(0), 10)
    joining = SparkFeatures(spark, features(lots), read_tables(spark, places.lake, {"lots": "lots.parquet"}))
    with pytest.raises(
        FeatureError, match=r"the rows to join lack the keys \['number'\]; they have \['at'\]"
    ):
        joining.join(spark.createDataFrame([(1,)], "at int"))
