"""The features stage on three weeks of real flights, read through the example's own model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ml_lifecycle.adapters.feast_online import OnlineReader
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.demo import flights
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Interval, Run, Snapshot, TrainingSet, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.feature_tables import FeatureTables, build_tables
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.online_features import Materialisation, audit_online, materialise

EXAMPLE = Path(__file__).parents[2] / "dags" / "models" / "flight_delay"
DAY = timedelta(days=1)
STORY_STARTS = datetime(2012, 12, 31, 8, tzinfo=UTC)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
KEYS = ("flight_id", "origin", "route", "tailnum")


def january(day: int) -> datetime:
    return datetime(2013, 1, day, 8, tzinfo=UTC)


@dataclass
class World:
    lake: Lake
    folder: ModelFolder

    @property
    def landing(self) -> Path:
        return Path(self.lake.full_path("landing"))

    def snapshot(self, as_of: datetime) -> Snapshot:
        run = Run("flight_delay", "test", as_of, Interval(STORY_STARTS, as_of))
        return ingest(self.folder.spec, self.lake, run, contracts=self.folder.contracts)

    def training_set(self, as_of: datetime) -> TrainingSet:
        return build_training_set(self.folder, self.lake, self.snapshot(as_of))

    def rows(self, training_set: TrainingSet) -> pl.DataFrame:
        paths = (training_set.train_path, training_set.holdout_path)
        return pl.concat(pl.read_parquet(self.lake.full_path(path)) for path in paths)


def folder_with(path: Path, edits: dict[str, Callable[[str], str]]) -> ModelFolder:
    """The example's folder, its files edited."""
    shutil.copytree(EXAMPLE, path, ignore=shutil.ignore_patterns("__pycache__"))
    for name, edit in edits.items():
        before = (path / name).read_text()
        assert edit(before) != before
        (path / name).write_text(edit(before))
    return load_folder(path)


def short_holdout(text: str) -> str:
    return text.replace("holdout: 14d", "holdout: 4d")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("world")
    lake = Lake(str(base / "lake"))
    flights.land(base / "lake" / "landing", STORY_STARTS, january(21), every=timedelta(days=7))
    return World(lake, folder_with(base / "flight_delay", {"model.yaml": short_holdout}))


@pytest.fixture(scope="module")
def training_set(world: World) -> TrainingSet:
    return world.training_set(january(21))


def test_spans_are_apart_by_the_label_delay(world: World, training_set: TrainingSet) -> None:
    delay = timedelta(hours=40)
    assert training_set.holdout == Interval(january(21) - delay - 4 * DAY, january(21) - delay)
    assert training_set.train_end == training_set.holdout.start - delay
    train = pl.read_parquet(world.lake.full_path(training_set.train_path))
    holdout = pl.read_parquet(world.lake.full_path(training_set.holdout_path))
    assert (train.height, holdout.height) == (training_set.train_rows, training_set.holdout_rows)
    assert train["event_timestamp"].max() == january(13)
    assert (holdout["event_timestamp"].min(), holdout["event_timestamp"].max()) == (january(16), january(19))


def test_every_flight_that_landed_is_there_once_with_its_label(
    world: World, training_set: TrainingSet
) -> None:
    rows = world.rows(training_set)
    scheduled = flights.schedule(Interval(january(2), january(14)))
    landed = (
        pl.read_csv(world.landing / "arrivals/*.csv")
        .select("flight_id", expected=(pl.col("arr_delay") > 15).cast(pl.Int64))
        .join(scheduled, on="flight_id")
    )
    found = rows.filter(pl.col("event_timestamp").is_between(january(2), january(13)))
    both = found.join(landed, on="flight_id", how="full")
    assert found.height == landed.height == both.height == found["flight_id"].n_unique()
    assert (both["late"] == both["expected"]).all()
    departure, moment = pl.col("scheduled_departure"), pl.col("event_timestamp")
    assert both.select(((departure >= moment) & (departure < moment + DAY)).all()).item()


def test_columns_are_typed_as_a_server_will_see_them(world: World, training_set: TrainingSet) -> None:
    rows = world.rows(training_set)
    kinds = {column.name: column.type for column in training_set.columns}
    assert list(rows.columns) == [*kinds, "late", "event_timestamp", *KEYS]
    dtypes = {"float": pl.Float32, "int": pl.Int64, "string": pl.String}
    assert all(rows.schema[name] == dtypes[kind] for name, kind in kinds.items())
    assert kinds["carrier"] == "string"
    assert kinds["weekday"] == "int"
    assert {column.name for column in training_set.columns if not column.nullable} == {
        "weekday",
        "departure_minute",
    }
    assert sum(rows.null_count().row(0)) == 0
    assert rows.select((pl.col("manufacturer") == "").sum()).item() > 0  # unknown planes
    assert rows.select(pl.col("seats").is_nan().sum()).item() > 0


def test_what_is_done_is_not_done_again(world: World, training_set: TrainingSet) -> None:
    before = {path: sha256(world.lake.read_bytes(path)) for path in world.lake.list("training_sets")}
    again = world.training_set(january(21))
    assert again == training_set
    assert {path: sha256(world.lake.read_bytes(path)) for path in world.lake.list("training_sets")} == before
    assert from_json(TrainingSet, to_json(again)) == again
    tables = build_tables(world.folder, world.lake, world.snapshot(january(21)))
    assert from_json(FeatureTables, to_json(tables)) == tables


def test_online_equals_offline_at_every_step(world: World, training_set: TrainingSet, tmp_path: Path) -> None:
    """Materialise to t, read at t: exactly what a training set made later holds for t."""
    expected = world.rows(training_set)
    registry = world.lake.read_bytes(training_set.registry_path)
    url = f"sqlite:///{tmp_path}/online.db"
    start = BEGINNING
    for day in (9, 10, 11):
        moment = january(day)
        window = Interval(start, moment)
        done = materialise(world.folder, world.lake, world.snapshot(moment), url, window)
        assert from_json(Materialisation, to_json(done)) == done
        assert done.rows["flight_schedule"] > 0
        rows = expected.filter(pl.col("event_timestamp") == moment)
        assert rows.height > 500
        reader = OnlineReader(registry, "flight_delay", url)
        found = reader.read({key: rows[key].to_list() for key in KEYS}, as_of=moment)
        assert list(found) == [column.name for column in training_set.columns]
        for column in training_set.columns:
            online = pl.Series(column.name, found[column.name], rows.schema[column.name])
            filled = online.fill_null("" if column.type == "string" else float("nan"))
            assert filled.equals(rows[column.name]), column.name
        start = moment
    audit = audit_online(world.folder, world.lake, world.snapshot(january(21)), url, january(11), sample=50)
    assert audit.compared > 500
    assert audit.differing == {}


def test_an_audit_finds_a_store_that_was_not_kept_up(world: World, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    snapshot = world.snapshot(january(11))
    materialise(world.folder, world.lake, snapshot, url, Interval(BEGINNING, january(10)))
    audit = audit_online(world.folder, world.lake, snapshot, url, january(11), sample=50)
    assert audit.differing["origin_weather:temperature"] == 3
    assert "offline" in audit.examples[0]


def test_what_becomes_known_later_changes_nothing_before(
    world: World, training_set: TrainingSet, tmp_path: Path
) -> None:
    """Rewrite every record known at or after a moment: no row for that moment or before may change."""
    moment = january(8)
    changed = World(Lake(str(tmp_path / "lake")), world.folder)
    changed.landing.mkdir(parents=True)
    shutil.copy(world.landing / "planes.csv", changed.landing)
    altered = {
        "arrivals": ("landed_at", {"arr_delay": 999, "dep_delay": 999}),
        "weather": ("observed_at", {"temp": 99.0, "wind_speed": 77.0, "precip": 5.0, "visib": 0.5}),
        "flights": ("published_at", {"carrier": "ZZ", "distance": 1}),
    }
    for table, (known_at, values) in altered.items():
        (changed.landing / table).mkdir()
        for path in sorted((world.landing / table).glob("*.csv")):
            frame = pl.read_csv(path, infer_schema_length=None)
            later = pl.col(known_at).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC") >= moment
            frame.with_columns(
                pl.when(later).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
                for column, value in values.items()
            ).write_csv(changed.landing / table / path.name)

    columns = ["flight_id", "event_timestamp", *(column.name for column in training_set.columns)]
    before = world.rows(training_set).select(columns)
    after = changed.rows(changed.training_set(january(21))).select(columns)
    old = pl.col("event_timestamp") <= moment
    assert before.filter(old).height > 5000
    assert after.filter(old).equals(before.filter(old))
    assert not after.filter(~old).equals(before.filter(~old))


def test_features_of_the_future_are_refused(world: World, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    with pytest.raises(FeatureError, match="after the run's as_of"):
        materialise(
            world.folder, world.lake, world.snapshot(january(5)), url, Interval(january(4), january(6))
        )
    with pytest.raises(ValueError, match="after it ends"):
        Interval(january(6), january(4))
    assert not (tmp_path / "online.db").exists()


def test_materialising_part_by_part_equals_all_at_once(world: World, tmp_path: Path) -> None:
    """Computed from ``lookback`` of history, a day's features are those computed from all of it."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("parts", "whole")]
    snapshot = world.snapshot(january(12))
    for window in (Interval(january(10), january(12)), Interval(BEGINNING, january(10))):  # newest first
        materialise(world.folder, world.lake, snapshot, urls[0], window)
    whole = replace(
        world.folder,
        spec=world.folder.spec.model_copy(
            update={"features": world.folder.spec.features.model_copy(update={"lookback": None})}
        ),
    )
    materialise(whole, world.lake, snapshot, urls[1], Interval(BEGINNING, january(12)))
    for url in urls:
        audit = audit_online(world.folder, world.lake, snapshot, url, january(12), sample=200)
        assert (audit.differing, audit.compared > 1000) == ({}, True)


def test_too_little_history_is_said(world: World) -> None:
    with pytest.raises(FeatureError, match="nothing to train on"):
        world.training_set(january(6))
    with pytest.raises(FeatureError, match="no labelled row in the training span"):
        world.training_set(january(8) + timedelta(hours=6))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda text: text.replace('"origin_weather": _weather', '"weather": _weather'),
            "lacks .'origin_weather'",
        ),
        (
            lambda text: text.replace('humidity="humid",', ""),
            "'origin_weather' .* lacks the columns .'humidity'",
        ),
        (
            lambda text: text.replace('name="flight_delay",\n', 'name="flights",\n'),
            "no FeatureService 'flight_delay'",
        ),
        (lambda text: text.replace('path=f"{name}.parquet"', 'path="x.parquet"'), "must be FileSource"),
        (lambda text: text.replace('late="late"', 'tardy="late"'), "'labels' .* lacks the columns .'late'"),
        (
            lambda text: text.replace('year_built", dtype=Float32', 'year_built", dtype=Int64'),
            "declare it Float32",
        ),
    ],
)
def test_a_mistake_in_features_py_is_named(
    world: World, tmp_path: Path, edit: Callable[[str], str], message: str
) -> None:
    folder = folder_with(tmp_path / "flight_delay", {"features.py": edit, "model.yaml": short_holdout})
    with pytest.raises(FeatureError, match=message):
        build_training_set(folder, world.lake, world.snapshot(january(21)))
