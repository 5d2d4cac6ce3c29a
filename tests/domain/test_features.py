"""The features stage on three weeks of real flights, read through the example's own model folder."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from flight_world import DAY, KEYS, World, folder_with, january, short_holdout

from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.demo import flights
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Interval, Run, TrainingSet, from_json, to_json
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.spec.scaffold import new_folder
from ml_lifecycle.stages.feature_tables import FeatureTables, build_tables
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.monitor_online import audit_online
from ml_lifecycle.stages.online_features import Materialisation, materialise


@pytest.fixture(scope="module")
def world(weeks: World) -> World:
    return weeks


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


def test_tables_of_business_metrics_are_kept_if_there_are_such(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    business = "{paid: {table: money, margin: 1, high: 9}, lost: {table: moneys, margin: 1, high: 9}}"
    for name, old, new in (
        ("model.yaml", "monitoring:\n", f"delivery: {{watch: {{business: {business}}}}}\nmonitoring:\n"),
        (
            "features.py",
            '"entities": entities}',
            '"money": orders.with_columns(paid=pl.lit(2)), "entities": entities}',
        ),
    ):
        (folder / name).write_text((folder / name).read_text().replace(old, new))
    lake = Lake(str(tmp_path / "lake"))
    moment = january(21)
    rows = pl.DataFrame(
        {
            "order_id": ["o1"],
            "customer_id": ["c1"],
            "ordered_at": [january(2)],
            "closed_at": [january(3)],
            "amount": [1.5],
            "channel": ["web"],
            "returned": [True],
        }
    )
    write_parquet(lake, "landing/orders/all.parquet", rows)
    loaded = load_folder(folder)
    snapshot = ingest(loaded.spec, lake, Run("returns", "run", moment, Interval(moment, moment)))
    tables = build_tables(loaded, lake, snapshot).tables
    assert sorted(tables) == ["customer_orders", "labels", "money"]
    assert lake.scan([tables["money"]]).select("customer_id", "paid").collect().rows() == [("c1", 2)]


def test_online_equals_offline_at_every_step(world: World, training_set: TrainingSet, tmp_path: Path) -> None:
    """Materialise to t, read at t: exactly what a training set made later holds for t."""
    expected = world.rows(training_set)
    registry = world.lake.read_bytes(training_set.registry_path)
    url = f"sqlite:///{tmp_path}/online.db"
    for day in (9, 10, 11):
        moment = january(day)
        done = materialise(world.folder, world.lake, world.snapshot(moment), url)
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
    audit = audit_online(world.folder, world.lake, world.snapshot(january(21)), url, january(11), sample=50)
    assert audit.compared > 500
    assert audit.differing == {}


def test_an_audit_finds_a_store_that_was_not_kept_up(world: World, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    materialise(world.folder, world.lake, world.snapshot(january(10)), url)
    audit = audit_online(world.folder, world.lake, world.snapshot(january(11)), url, january(11), sample=50)
    assert audit.differing["origin_weather:temperature"] == 3
    assert "offline" in audit.examples[0]


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
        (
            lambda text: text.replace('"known_at"}', '"known_at", "late": "tardy"}'),
            "'labels' .* lacks the columns .'late'",
        ),
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
