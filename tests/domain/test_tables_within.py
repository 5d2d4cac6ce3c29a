"""Feature tables that are cut down to a window answer, within it, as whole ones do."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64, String

from ml_lifecycle.adapters import newest
from ml_lifecycle.adapters.feast_repo import Features, historical_features, open_store
from ml_lifecycle.records import Interval
from ml_lifecycle.stages.feature_tables import INSTANT, tables_within

START = datetime(2024, 1, 1, tzinfo=UTC)
WINDOW = Interval(START + timedelta(hours=9), START + timedelta(hours=15))
KEYS = ["a", "b", "c", "", None]

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.STRING)
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.INT64)


def source(table: str, **more: Any) -> FileSource:
    return FileSource(name=table, path=f"{table}.parquet", timestamp_field="at", **more)


def view(name: str, of: FileSource, entities: list[Entity], ttl: int | None, *fields: Field) -> FeatureView:
    lifetime = timedelta(hours=ttl) if ttl else None
    return FeatureView(name=name, source=of, entities=entities, ttl=lifetime, schema=list(fields))


shared = source("shared")
VIEWS = [
    view(
        "for_ever",
        source("f", field_mapping={"who": "driver_id"}),
        [driver],
        None,
        Field(name="f", dtype=Int64),
    ),
    view(
        "made", source("m", created_timestamp_column="made"), [driver, city], 4, Field(name="m", dtype=Int64)
    ),
    view("anywhere", source("w"), [], None, Field(name="w", dtype=Float32)),
    view("one", shared, [driver], None, Field(name="one", dtype=Int64)),
    view("other", shared, [city], 2, Field(name="other", dtype=String)),
]


def features() -> Features:
    service = FeatureService(name="s", features=VIEWS)
    found = [driver, city, *VIEWS, service]
    return Features.of(SimpleNamespace(**{f"n{n}": one for n, one in enumerate(found)}), "test", "s")  # type: ignore[arg-type]


def rows_by_chance(chance: random.Random, n: int, columns: list[str]) -> pl.DataFrame:
    """Whole hours and few keys: most rows tie with others."""
    some = {
        "at": [None, *(START + timedelta(hours=hour) for hour in range(20))],
        "made": [None, *(START + timedelta(hours=hour) for hour in (30, 31))],
        "who": KEYS,
        "driver_id": KEYS,
        "city_id": [1, 2, None],
        "w": [0.5, None, 7.25],
        "other": ["x", "y", None],
    }
    values = {name: [chance.choice(some.get(name, range(1000))) for _ in range(n)] for name in columns}
    times = dict.fromkeys(("at", "made"), pl.Datetime("us", "UTC"))
    types = {**times, "city_id": pl.Int64(), "w": pl.Float32(), "other": pl.String(), "who": pl.String()}
    return pl.DataFrame(values, schema_overrides={name: types[name] for name in columns if name in types})


@pytest.mark.parametrize("seed", range(6))
def test_the_answers_are_those_of_whole_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, made = random.Random(seed), features()
    for table, columns in made.source_tables().items():
        rows_by_chance(chance, chance.choice([0, 3, 300]) if seed else 300, [*columns]).write_parquet(
            tmp_path / f"{table}.parquet"
        )
    moments = [WINDOW.start, WINDOW.start + timedelta(hours=2), WINDOW.start + timedelta(hours=2.5)]
    asked = pl.DataFrame(
        {
            "driver_id": [chance.choice(KEYS) for _ in range(200)],
            "city_id": [chance.choice([1, 2, 3, None]) for _ in range(200)],
            "event_timestamp": [chance.choice([*moments, WINDOW.end - INSTANT]) for _ in range(200)],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    ).with_columns(pl.col("event_timestamp") - INSTANT)
    expected = historical_features(open_store(made, tmp_path), made.service, asked)
    for size in (newest._PART_BYTES, 500):
        monkeypatch.setattr(newest, "_PART_BYTES", size)
        with tables_within(made, tmp_path, WINDOW) as folder:
            assert historical_features(open_store(made, folder), made.service, asked).equals(expected)
            whole = pl.scan_parquet(tmp_path / "f.parquet").collect()
            cut = pl.read_parquet(folder / "f.parquet")
            assert cut.schema == whole.schema
            assert seed or cut.height < whole.height / 2
        assert not folder.exists()
    if not seed:
        assert all(0 < expected[name].null_count() < 200 for name in ("f", "m", "w", "one", "other"))
