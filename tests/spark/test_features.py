"""Features on Spark against the as-of join, where Feast's Spark store by itself would answer otherwise."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64, String
from polars.testing import assert_frame_equal

from ml_lifecycle.adapters import feast_repo
from ml_lifecycle.adapters.feast_repo import Features, open_store
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP, write_parquet
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.spark import passing
from ml_lifecycle.spark.features import SparkFeatures, check, historical_slices, read_tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.usefixtures("spark")

START = datetime(2024, 1, 1, tzinfo=UTC)
ODD = ["a", "ab", "b", "bc", "c", "", " ", "1:a", "NUL\0L", "ÅÄ ✈", None]

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.STRING)
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.STRING)
number = Entity(name="number", join_keys=["number"], value_type=ValueType.INT64)


def view(
    name: str, entities: list[Entity], ttl: timedelta | None, *fields: Field, **more: Any
) -> FeatureView:
    source = FileSource(name=name, path=f"{name}.parquet", **{"timestamp_field": "event_timestamp", **more})
    return FeatureView(name=name, entities=entities, ttl=ttl, schema=list(fields), source=source)


trips = view(
    "trips",
    [driver, city],
    timedelta(hours=5),
    Field(name="rating", dtype=Float64),
    Field(name="note", dtype=String),
    created_timestamp_column="created",
)
shifts = view(
    "shifts",
    [driver],
    None,
    Field(name="hours", dtype=Float32),
    Field(name="late", dtype=Bool),
    timestamp_field="began",
    field_mapping={"worked": "hours", "who": "driver_id"},
)
lots = view("lots", [number], timedelta(hours=2), Field(name="size", dtype=Int64))
weather = view("weather", [], timedelta(hours=3), Field(name="rain", dtype=Float32))
VIEWS = (trips, shifts, lots, weather)
ASKED = [*VIEWS[:2], lots.with_join_key_map({"number": "lot"}), weather]


@on_demand_feature_view(
    sources=[trips, RequestSource(name="request", schema=[Field(name="bonus", dtype=Float64)])],
    schema=[Field(name="best", dtype=Float64)],
)
def best(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"best": rows[["rating", "bonus"]].max(axis=1)})


def features(*views: FeatureView, asked: Sequence[Any] | None = None) -> Features:
    service = FeatureService(name="s", features=[*(asked or views)])
    found = (driver, city, number, best, *views, service)
    return Features.of(SimpleNamespace(**{f"n{k}": one for k, one in enumerate(found)}), "test", "s")  # type: ignore[arg-type]


class Places:
    """Tables in a lake, joined by both engines."""

    def __init__(self, folder: Path, session: SparkSession) -> None:
        self.session = session
        self.folder = folder
        self.lake = Lake(str(folder))

    def write(self, name: str, rows: pl.DataFrame) -> None:
        write_parquet(self.lake, f"{name}.parquet", rows)

    def both(self, views: Features, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """From Spark, and from here."""
        tables = {name: f"{name}.parquet" for name in views.source_tables()}
        ours = feast_repo.historical_features(open_store(views, self.folder), views.service, rows)
        with historical_slices(self.session, self.lake, tables, views, rows.iter_slices(150)) as found:
            theirs = pl.concat(found, how="vertical_relaxed")
        names = [*rows.columns, *views.columns()]
        return theirs.select(names), ours.select(names)


@pytest.fixture
def places(tmp_path: Path, spark: SparkSession) -> Places:
    return Places(tmp_path, spark)


def hours(value: float) -> datetime:
    return START + timedelta(hours=value)


def land_by_chance(places: Places, chance: random.Random, rows: int) -> None:
    def some(what: list[Any]) -> list[Any]:
        return [chance.choice(what) for _ in range(rows)]

    # Whole hours, a few keys: most rows tie with others.
    events: list[Any] = [*map(hours, range(24)), None]
    created = [None, *map(hours, range(30, 33))]
    floats = [None, float("nan"), float("inf"), -0.0, 1e-320, 0.1, 7.25]
    times = {"event_timestamp": TIMESTAMP, "created": TIMESTAMP, "began": TIMESTAMP}
    made: dict[str, dict[str, list[Any]]] = {
        "trips": {
            "driver_id": some(ODD),
            "city_id": some(ODD),
            "event_timestamp": some(events),
            "created": some(created),
            "rating": some(floats),
            "note": some(ODD),
        },
        "shifts": {
            "who": some(ODD),
            "began": some(events),
            "worked": some(floats),
            "late": some([True, False, None]),
        },
        "lots": {
            "number": some([1, 11, 2, None]),
            "event_timestamp": some(events),
            "size": some([2**53 + 1, -1, None]),
        },
        "weather": {"event_timestamp": some(events), "rain": some(floats)},
    }
    kinds = {"worked": pl.Float32, "rain": pl.Float32, "number": pl.Int64, "size": pl.Int64, **times}
    for name, columns in made.items():
        overrides = {column: kinds[column] for column in columns if column in kinds}
        places.write(name, pl.DataFrame(columns, schema_overrides=overrides))


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
