"""No skew: what the model server looks up online is what training and batch scoring have for that moment."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from flight_truth import FLOATS, Truth, as_served, single
from flight_world import DAY, KEYS, STORY_STARTS, YEAR_ENDS, World, folder_with, january, short_holdout
from live_server import live_client
from numpy.typing import NDArray
from training_world import train_here
from waiting import wait_until

from ml_lifecycle.adapters.feast_repo import historical_features, open_store
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served as in_model_types
from ml_lifecycle.adapters.onnx import feeds
from ml_lifecycle.adapters.predictions import PredictionWindow, read_parts
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import Interval, Training, TrainingSet
from ml_lifecycle.serving.columns import make_table
from ml_lifecycle.serving.resolver import Resolver, feast_reader
from ml_lifecycle.serving.server import ModelServer
from ml_lifecycle.stages.feature_tables import INSTANT, build_tables, features_of, local_tables
from ml_lifecycle.stages.monitor_kept import KeptFindings
from ml_lifecycle.stages.monitor_replay import replay
from ml_lifecycle.stages.online_features import materialise
from ml_lifecycle.stages.replay_features import Offline
from ml_lifecycle.stages.score import score
from ml_lifecycle.stages.score_partitions import FilePartition
from ml_lifecycle.stages.scoring_rows import build_scoring_rows

TRAINED = datetime(2013, 2, 20, 8, tzinfo=UTC)
ROWS_A_MOMENT = 100
MOMENTS = [
    datetime(2013, month, day, 8, tzinfo=UTC)
    # the second day of the year, clocks forward, clocks back, and the year's last flights without weather
    for month, day in (
        *((1, 2), (2, 9), (3, 10), (4, 25), (5, 29)),
        *((7, 4), (9, 4), (11, 3), (12, 10), (12, 31)),
    )
]
SOME = [MOMENTS[number] for number in (2, 5, 9)]
LATER = (timedelta(hours=3), timedelta(hours=7), timedelta(hours=26))


def variant(lake: Lake, training_set: TrainingSet, **changes: Any) -> Variant:
    registry = lake.read_bytes(training_set.registry_path)
    fields: dict[str, Any] = {
        "model_path": "none",
        "model_digest": "0" * 64,
        "registry_path": training_set.registry_path,
        "registry_digest": sha256(registry),
        "feature_service": "flight_delay",
        "entity_keys": KEYS,
    }
    return Variant("champion", "1", task="binary", columns=training_set.columns, **fields | changes)


def start(
    lake: Lake, source: Lake, training_set: TrainingSet, training: Training, url: str
) -> AbstractContextManager[httpx.Client]:
    """The real server on a lake of its own, following a route of this model."""
    for path in (training.model_path, training_set.registry_path):
        lake.write_bytes(path, source.read_bytes(path))
    model = {"model_path": training.model_path, "model_digest": training.model_digest}
    served = variant(lake, training_set, classes=training.classes, **model)
    publish(lake, Route("flight_delay", "flight_delay", 1, (served,), "0" * 64, TRAINED))
    return live_client(ModelServer(lake, "production", "token", url, poll_seconds=0.02), "token")


def ask(client: httpx.Client, rows: pl.DataFrame, id: str) -> NDArray[np.float32]:
    """The server's probabilities, two a row, for rows given by their entity keys and moments."""
    moments = [moment.isoformat() for moment in rows["event_timestamp"]]
    inputs = [
        {"name": key, "datatype": "BYTES", "shape": [rows.height], "data": rows[key].to_list()}
        for key in KEYS
    ]
    request = {"id": id, "parameters": {"event_time": moments}, "inputs": inputs}
    response = client.post("/v2/models/flight_delay/infer", json=request)
    assert response.status_code == 200, response.text
    outputs = {output["name"]: output for output in response.json()["outputs"]}
    return np.array(outputs["probabilities"]["data"], dtype=np.float32).reshape(-1, 2)


def logged(lake: Lake) -> dict[tuple[str, str], dict[str, object]]:
    """What the server says it scored, by request and flight."""
    log = read_parts(lake, lake.list("predictions")).collect()
    assert set(log["features_from"]) == {"online_store"}
    return {
        (row["prediction_id"], json.loads(row["entity_keys"])["flight_id"]): json.loads(row["features"])
        for row in log.select("prediction_id", "entity_keys", "features").to_dicts()
    }


def in_numbers(features: dict[str, object]) -> dict[str, object]:
    """Logged values as a model gets them, a missing number as a text that is like itself."""
    typed = {name: single(value) if name in FLOATS else value or "" for name, value in features.items()}
    return {name: "NaN" if value != value else value for name, value in typed.items()}


def joined_offline(world: World, as_of: datetime, rows: pl.DataFrame) -> pl.DataFrame:
    """The training path's join of rows at any moment, by what was known at ``as_of``."""
    features = features_of(world.folder)
    with local_tables(world.lake, build_tables(world.folder, world.lake, world.snapshot(as_of))) as path:
        moments = rows.select(*KEYS, pl.col("event_timestamp") - INSTANT)
        return historical_features(open_store(features, path), features.service, moments)


@pytest.mark.parametrize(
    ("name", "trained", "moments", "ends"),
    [
        ("weeks", january(16), [january(18), january(20)], january(21)),
        pytest.param("year", TRAINED, SOME, YEAR_ENDS, marks=pytest.mark.full),
        pytest.param("year", TRAINED, MOMENTS, YEAR_ENDS, marks=pytest.mark.proof),
    ],
    ids=["weeks", "some", "all"],
)
def test_the_server_scores_what_training_and_batch_scoring_have_for_the_same_moment(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    trained: datetime,
    moments: list[datetime],
    ends: datetime,
) -> None:
    """In steps through the time: bring the online store up to t, ask for t and for some hours later."""
    world: World = request.getfixturevalue(name)
    truth, training_set = Truth(world.landing), world.training_set(trained)
    training = train_here(world.lake, world.folder, tmp_path, training_set).training
    offline, _ = build_scoring_rows(
        world.folder, world.lake, world.snapshot(ends), Interval(STORY_STARTS, ends)
    )
    places = world.rows(training_set)["destination"].unique().to_list()
    production, url = Lake(str(tmp_path / "production")), f"sqlite:///{tmp_path}/online.db"
    expected: dict[tuple[str, str], dict[str, object]] = {}
    with start(production, world.lake, training_set, training, url) as client:
        wait_until(lambda: client.get("/v2/health/ready").status_code == 200)
        for moment in moments:
            snapshot = world.snapshot(moment)
            materialise(world.folder, world.lake, snapshot, url)
            today = offline.filter(pl.col("event_timestamp") == moment).sample(
                fraction=1, shuffle=True, seed=1
            )
            # Those to places that training never saw first.
            rows = today.sort(pl.col("destination").is_in(places), maintain_order=True).head(ROWS_A_MOMENT)
            asked = write_parquet(world.lake, f"asked/{moment:%Y-%m-%d}.parquet", rows)
            partitions = [FilePartition(world.lake, asked)]
            scoring = score(world.folder.spec, world.lake, snapshot.run, training, "1", partitions)
            scored = world.lake.scan([file.path for file in scoring.files]).collect()
            assert scored["flight_id"].equals(rows["flight_id"])
            np.testing.assert_array_equal(ask(client, rows, f"{moment}"), scored["probabilities"].to_list())
            for row in rows.to_dicts():
                known = as_served(truth.features(truth.question(row["flight_id"])))
                same = in_numbers(known)
                assert in_numbers({name: row[name] for name in known}) == same
                expected[f"{moment}", row["flight_id"]] = same
            for after in LATER:
                few = rows.head(10).with_columns(pl.col("event_timestamp") + after)
                ask(client, few, f"{moment}+{after}")
                for flight in few["flight_id"]:
                    known = truth.features(truth.question(flight, after), known_before=moment)
                    expected[f"{moment}+{after}", flight] = in_numbers(known)
                if moment in moments[1::4]:
                    for row in joined_offline(world, moment, few).to_dicts():
                        same = expected[f"{moment}+{after}", row["flight_id"]]
                        assert in_numbers({name: row[name] for name in same}) == same
    found = logged(production)
    assert len(found) == len(expected) == len(moments) * (ROWS_A_MOMENT + 10 * len(LATER))
    assert {key: values for key, values in found.items() if in_numbers(values) != expected[key]} == {}
    # And so says the monitor, which asks for no more than the log, the offline store and the model's file.
    window = PredictionWindow(production, "flight_delay", Interval(moments[0], ends))
    offline = Offline(world.folder, world.snapshot(ends))
    kept = KeptFindings(world.lake, "flight_delay", window)
    trained = {training.model_digest: training}.get
    replayed = replay(world.folder.spec, world.lake, production, window, kept, trained, offline)
    assert [(one.metric, one.value) for one in replayed.findings[:1]] == [("replay_mismatch_share", 0)]
    assert replayed.report["with_features"] == replayed.report["rows"] == 60
    if name == "year":  # three weeks need not have any
        assert {values["destination"] for values in found.values()} - {*places}, "all places were trained on"
    # Weather counts for six hours, and on the last day of the year there is none.
    missing = [
        sum(values["temperature"] is None for (id, _), values in found.items() if id.endswith(f"+{after}"))
        for after in LATER
    ]
    assert missing == [10 * moments.count(MOMENTS[-1]), 10 * len(moments), 10 * len(moments)]


def other_types(text: str) -> str:
    return (
        text.replace('"temperature", dtype=Float32', '"temperature", dtype=Float64')
        .replace('"departure_minute", dtype=Int64', '"departure_minute", dtype=Int32')
        .replace(
            '        Field(name="weekday"',
            '        Field(name="weekend", dtype=Bool),\n        Field(name="weekday"',
        )
        .replace("weekday=local", "weekend=local.dt.weekday() > 5,\n        weekday=local")
        .replace("import Float32,", "import Bool, Float32, Float64, Int32,")
    )


def test_every_type_reaches_the_model_alike(weeks: World, tmp_path: Path) -> None:
    """What the resolver feeds the model is, bit by bit, what the score path feeds it; strangers included."""
    edits = {"features.py": other_types, "model.yaml": short_holdout}
    folder = folder_with(tmp_path / "flight_delay", edits)
    world, moment = World(weeks.lake, folder), january(15)
    training_set = world.training_set(january(21))
    assert {column.type for column in training_set.columns} == {"float", "int", "bool", "string"}
    rows, columns = build_scoring_rows(
        folder, world.lake, world.snapshot(january(21)), Interval(moment, moment + DAY)
    )
    # An airport, a route and a plane that nobody ever heard of.
    unknown = rows.head(5).with_columns(
        origin=pl.lit("XXX"), route=pl.lit("XXX-YYY"), tailnum=pl.lit("N0"), event_timestamp=pl.lit(moment)
    )
    strangers = joined_offline(world, january(21), unknown)
    offline = pl.concat([in_model_types(part, columns) for part in (rows, strangers)])
    url = f"sqlite:///{tmp_path}/online.db"
    materialise(folder, world.lake, world.snapshot(moment), url)
    asked = pl.concat([rows.select(*KEYS), unknown.select(*KEYS)])
    resolver = Resolver(variant(world.lake, training_set, classes=("0", "1")), world.lake, url, feast_reader)
    resolved = resolver.resolve({key: asked[key].to_list() for key in KEYS}, [moment] * asked.height)
    served = make_table(training_set.columns, [resolved])
    for name, array in feeds(offline).items():
        assert served.columns[name].reshape(-1, 1).dtype == array.dtype, name
        np.testing.assert_array_equal(served.columns[name].reshape(-1, 1), array, err_msg=name)
    assert np.isnan(served.columns["temperature"][-1])
