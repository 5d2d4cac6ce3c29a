"""Feature views whose tables are hard to look up in, and a lake that holds them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64, String

from ml_lifecycle.adapters import feast_repo
from ml_lifecycle.adapters.feast_repo import Features, open_store
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP, write_parquet
from ml_lifecycle.spark.features import historical_slices

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

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
