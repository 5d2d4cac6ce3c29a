"""The newest rows on Spark against those found here: in generated tables, and in a store that both write."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from feast import FeatureView, Field
from feast.types import Float64
from feature_worlds import VIEWS, Places, driver, features, hours, land_by_chance, trips
from flight_world import STORY_STARTS, World, folder_with, january, short_holdout
from test_online_features import stored
from test_training_set import on_spark

from ml_lifecycle.adapters.feast_bulk import newest_rows, rows_of, stored_views
from ml_lifecycle.adapters.feast_repo import Features, open_store
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.demo import flights
from ml_lifecycle.records import to_json
from ml_lifecycle.spark.application import STAGES
from ml_lifecycle.spark.job import Job, SparkElsewhereError
from ml_lifecycle.spark.newest import newest_on_spark
from ml_lifecycle.stages.online_features import Materialisation, materialise

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LAST = hours(16)
# A second view of a table, by fewer of its columns.
by_driver = FeatureView(
    name="by_driver",
    entities=[driver],
    ttl=timedelta(hours=5),
    schema=[Field(name="rating", dtype=Float64)],
    source=trips.batch_source,
)
EVERY = (*VIEWS, by_driver)


def found_in(made: Features, rows: dict[str, pl.LazyFrame], folder: Path) -> dict[str, list[Any]]:
    """View → its newest rows as a store is given them; floats by their bits."""
    folder.mkdir()
    as_bits = {pl.Float32: pl.UInt32, pl.Float64: pl.UInt64}
    bits = [pl.col(kind).reinterpret(dtype=whole) for kind, whole in as_bits.items()]
    views = stored_views(open_store(made, folder))
    found = {one.name: newest_rows(one, rows_of(one, rows[one.name], LAST)) for one in views}
    return {name: pl.concat(parts).with_columns(bits).rows() for name, parts in found.items()}


def add_old_events(places: Places) -> None:
    """Of years that SQL cannot say; and with a NaN as processors make it, whose sign is negative."""
    years = [501, 500, 502, 1, 502]
    negative = pl.Series([0xFFC00000], dtype=pl.UInt32).reinterpret(dtype=pl.Float32).item()
    rows = pl.DataFrame(
        {
            "who": ["old"] * len(years),
            "began": [datetime(year, 1, 1, tzinfo=UTC) for year in years],
            "worked": [0.0, 1.0, 2.0, 3.0, negative],
            "late": [None, True, True, False, None],
        },
        schema_overrides={"began": TIMESTAMP, "worked": pl.Float32},
    )
    places.write("shifts", pl.concat([places.lake.scan(["shifts.parquet"]).collect(), rows]))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 6))])
def test_they_are_those_of_polars_in_every_bit(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    places = Places(tmp_path / "lake", spark)
    land_by_chance(places, random.Random(seed), 600)
    add_old_events(places)
    lake, made = Lake(str(tmp_path / "lake")), features(*EVERY)
    whole = {name: lake.scan([f"{name}.parquet"]) for name in made.source_tables()}
    tables = {name: made.counting(name, rows, LAST) for name, rows in whole.items()}
    files = newest_on_spark(spark, lake, made, tables, LAST, "newest")
    theirs = found_in(made, {name: lake.scan(paths) for name, paths in files.items()}, tmp_path / "theirs")
    ours = found_in(made, {one.name: tables[one.batch_source.name] for one in EVERY}, tmp_path / "ours")
    assert theirs == ours
    assert all(ours.values())
    assert len(ours["weather"]) == 1
    # Nothing is left to be found in them: a row a key.
    assert {name: lake.scan(paths).collect().height for name, paths in files.items()} == {
        name: len(rows) for name, rows in ours.items()
    }
    assert not list(lake.list("spark_rows"))


def test_a_table_without_rows_has_none(spark: SparkSession, tmp_path: Path) -> None:
    lake, made = Lake(str(tmp_path)), features(trips)
    schema = made.source_tables()["trips"]
    files = newest_on_spark(spark, lake, made, {"trips": pl.LazyFrame(schema=schema)}, LAST, "newest")
    found = lake.scan(files["trips"]).collect()
    assert (found.height, dict(found.schema)) == (0, schema)


class Online:
    """A model's online store, written by one engine as flights land."""

    def __init__(self, root: Path, engine: str) -> None:
        edit = {"polars": short_holdout, "spark": on_spark}[engine]
        folder = folder_with(root / "folders" / "flight_delay", {"model.yaml": edit})
        self.world = World(Lake(str(root / "lake")), folder)
        self.url = f"sqlite:///{root}/online.db"
        self._landed = STORY_STARTS

    def write(self, day: int) -> Materialisation:
        flights.land(self.world.landing, self._landed, january(day), every=timedelta(days=20))
        self._landed = january(day)
        snapshot = self.world.snapshot(january(day))
        return materialise(self.world.folder, self.world.lake, snapshot, self.url)


@pytest.mark.usefixtures("spark")
def test_a_store_is_written_the_same_rows(tmp_path: Path) -> None:
    ours, theirs = (Online(tmp_path / engine, engine) for engine in ("polars", "spark"))
    for day in (4, 6):
        written = [one.write(day) for one in (ours, theirs)]
        assert written[0].rows == written[1].rows
        assert (written[0].since is None) == (written[1].since is None) == (day == 4)
        assert stored(theirs.url) == stored(ours.url)
    # What was found before need not be there any more: all is written once more.
    for path in list(theirs.world.lake.list("newest_rows")):
        theirs.world.lake.delete(path)
    changed, everything = ours.write(7), theirs.write(7)
    assert everything.since is None
    assert sum(everything.rows.values()) > sum(changed.rows.values()) > 0
    assert stored(theirs.url) == stored(ours.url)


def test_where_spark_runs_elsewhere_the_store_waits_for_an_application(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = Online(tmp_path, "spark")
    spec = online.world.folder.spec
    elsewhere = spec.model_copy(update={"spark": spec.spark.model_copy(update={"on": "emr"})})
    online.world.folder = replace(online.world.folder, spec=elsewhere)
    with pytest.raises(SparkElsewhereError) as asked:
        online.write(3)
    snapshot = online.world.snapshot(january(3))
    assert asked.value.job == Job("newest_rows", {"snapshot": to_json(snapshot)})
    assert not Path(online.url.removeprefix("sqlite:///")).exists()
    with monkeypatch.context() as submitted:
        submitted.setenv("PYSPARK_GATEWAY_PORT", "as spark-submit says it")
        STAGES[asked.value.job.stage](online.world.folder, online.world.lake, asked.value.job.arguments)
    assert sum(online.write(3).rows.values()) == len(stored(online.url)) > 0
