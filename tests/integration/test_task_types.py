"""A multi-class and a regression model, each with text, truth values and nulls, from raw files to a rollback.

One stack lives their lives side by side; the tests look at what is left of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_model import DAY, HOUR, START, land, readings, write_model
from stack_kit import approve, log_in, running_stack

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import current
from ml_lifecycle.demo import digits
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import TaskType
from ml_lifecycle.serving.client import Answer, ModelClient
from ml_lifecycle.spec.metrics import TASK_METRICS
from ml_lifecycle_airflow.stack.config import REPOSITORY, Stack

pytestmark = pytest.mark.full

MODELS: Mapping[str, tuple[TaskType, Mapping[str, Any]]] = {
    "states": ("multiclass", {}),
    "grades": ("multiclass", {"labels": {"column": "grade"}}),
    "wear": ("regression", {}),
}
STAGES = ["ingest", "validate", "features", "train", "evaluate", "register"]
JUST_AFTER = timedelta(minutes=1)
"""When a model is asked about a reading."""


@dataclass
class Life:
    """What was seen of one model.

    :param results: what the first training's, the monitor's and the score's tasks returned, by task
    :param by_keys: answers to the machines as they were last seen on the last day before the release
    :param by_vector: answers to those last readings
    :param of_next_day: answers to the readings of the next day but its first hour's
    :param second: the second version's answers to the last readings
    """

    lake: Lake
    results: dict[str, Any]
    metadata: dict[str, Any]
    by_keys: Answer
    by_vector: Answer
    of_next_day: Answer
    second: Answer
    after_rollback: Answer

    def answers(self, output: str) -> list[Any]:
        """The answers to the whole next day, in the order of :func:`readings`."""
        return [*self.by_keys.outputs[output], *self.of_next_day.outputs[output]]


@dataclass
class World:
    """A stack and the people who use it."""

    stack: Stack
    admin: AirflowUser
    alice: AirflowUser

    @property
    def lake(self) -> Lake:
        return Lake(str(self.stack.lake))

    def client(self) -> ModelClient:
        # The first question by keys makes the server import Feast: seconds, and more on a busy machine.
        url, token = self.stack.server_url("production"), self.stack.secrets["production"]
        return ModelClient(url, token, timeout=120)

    def run_all(self, kind: str, run_id: str, conf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Start one DAG of every model, follow them to their ends; the tasks' results by model."""
        for name in MODELS:
            self.admin.trigger(f"{name}__{kind}", run_id, conf)
        for name in MODELS:
            self.admin.wait(f"{name}__{kind}", run_id, print)
        return {name: self.results(f"{name}__{kind}", run_id) for name in MODELS}

    def results(self, dag_id: str, run_id: str) -> dict[str, Any]:
        ended = [task for task in self.admin.tasks(dag_id, run_id) if task.state == "success"]
        with_result = [task.task_id for task in ended if task.task_id in {*STAGES, "monitor", "score"}]
        return {task: self.admin.result(dag_id, run_id, task) for task in with_result}

    def release(self, as_of: datetime, version: int) -> dict[str, dict[str, Any]]:
        """Train every model on what is known by then, and approve what comes of it."""
        results = self.run_all("train", f"version-{version}", {"as_of": as_of.isoformat()})
        for name in MODELS:
            approve(self.stack, self.alice, f"{name}__promote", f"candidate__v{version}")
        return results

    def ask(self, name: str, rows: pl.DataFrame, moments: list[datetime]) -> Answer:
        """Score readings by vector."""
        route = current(Lake(str(self.stack.environment_lake("production"))), name)
        assert route is not None
        inputs = rows.with_columns(
            pl.col("serviced").cast(pl.Float64),
            hour=pl.col("read_at").dt.hour().cast(pl.Int64),
            weekend=pl.col("read_at").dt.weekday() > 5,
        )
        columns = {column.name: inputs[column.name].to_list() for column in route.champion.columns}
        entities = {"machine_id": rows["machine_id"].to_list()}
        with self.client() as client:
            return client.infer(name, columns, route.champion.columns, event_time=moments, entities=entities)

    def ask_by_keys(self, name: str, machines: list[str], moment: datetime) -> Answer:
        with self.client() as client:
            return client.infer_entities(name, {"machine_id": machines}, event_time=moment)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("task_types")
    for name, (task, overrides) in MODELS.items():
        write_model(root / "dags", name, task, **overrides)
    shutil.copytree(REPOSITORY / "dags" / "models" / "digits", root / "dags" / "models" / "digits")
    with running_stack(root / "stack", root / "dags") as stack:
        yield World(stack, log_in(stack, "admin"), log_in(stack, "alice"))


@pytest.fixture(scope="module")
def lives(world: World) -> dict[str, Life]:
    end = land(world.lake)
    kinds = ("train", "promote", "monitor", "score", "rollback")
    world.admin.wait_for_dags({f"{name}__{kind}" for name in MODELS for kind in kinds})
    trained = world.release(end, version=1)

    last, next_day = readings(end - DAY, end).tail(20), readings(end, end + DAY)
    machines = last["machine_id"].to_list()
    moment = end + JUST_AFTER
    by_keys = {name: world.ask_by_keys(name, machines, moment) for name in MODELS}
    by_vector = {name: world.ask(name, last, [moment - HOUR] * 20) for name in MODELS}
    asked = next_day.slice(20)  # the first twenty were asked by their keys
    moments = (asked["read_at"] + JUST_AFTER).to_list()
    of_next_day = {name: world.ask(name, asked, moments) for name in MODELS}
    with world.client() as client:
        metadata = {name: client.metadata(name) for name in MODELS}

    land(world.lake, end, days=1)
    window = {"start": end.isoformat(), "end": (end + DAY).isoformat()}
    known = (end + DAY + 2 * HOUR).isoformat()
    monitored = world.run_all("monitor", "first-day", {"as_of": known, "interval": window})
    scored = world.run_all("score", "first-day", {"as_of": known, "interval": window})

    land(world.lake, end + DAY, days=2)
    world.release(end + 3 * DAY, version=2)
    second = {name: world.ask(name, last, [moment] * 20) for name in MODELS}
    world.run_all("rollback", "back", {"reason": "a test"})
    rolled_back = {name: world.ask(name, last, [moment] * 20) for name in MODELS}
    champions = {name: Releases(Database(world.stack.database_url)).champion(name) for name in MODELS}
    assert {name: one and one.version for name, one in champions.items()} == dict.fromkeys(MODELS, "1")
    return {
        name: Life(
            lake=world.lake,
            results=trained[name] | monitored[name] | scored[name],
            metadata=metadata[name],
            by_keys=by_keys[name],
            by_vector=by_vector[name],
            of_next_day=of_next_day[name],
            second=second[name],
            after_rollback=rolled_back[name],
        )
        for name in MODELS
    }


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def life(lives: dict[str, Life], name: str) -> Life:
    return lives[name]


NEXT_DAY = readings(START + 10 * DAY, START + 11 * DAY)


def test_every_type_and_every_null_reaches_the_model(life: Life) -> None:
    columns = {one["name"]: one["type"] for one in life.results["features"]["columns"]}
    assert columns == {
        "load": "float",
        "mode": "string",
        "temperature": "float",
        "serviced": "float",
        "hour": "int",
        "weekend": "bool",
    }
    rows = life.lake.scan([life.results["features"]["train_path"]]).collect()
    assert rows["temperature"].is_nan().any()
    assert set(rows["serviced"].fill_nan(-1)) == {-1, 0, 1}
    assert set(rows["mode"]) == {"idle", "normal", "turbo", ""}
    assert set(rows["weekend"]) == {True, False}


def test_the_gates_of_its_task_were_measured(life: Life, name: str) -> None:
    evaluation = life.results["evaluate"]
    gates = {one["gate"]: one["measured"] for one in evaluation["gates"]}
    assert evaluation["passed"]
    segment = "mae.segment.mode" if name == "wear" else "accuracy.segment.mode"
    assert gates[segment] is not None
    measured = life.lake.read_json(f"{evaluation['path']}/report.json")["segments"]
    assert {one["value"] for one in measured} == {"idle", "normal", "turbo", "(missing)"}
    assert set(TASK_METRICS[MODELS[name][0]]) <= evaluation["metrics"].keys()


def test_keys_and_vectors_get_the_same_answers(life: Life) -> None:
    assert life.by_keys.outputs == life.by_vector.outputs


def test_labels_are_answered_as_they_were_given(lives: dict[str, Life]) -> None:
    announced = {
        name: {one["name"]: one["datatype"] for one in life.metadata["outputs"]}
        for name, life in lives.items()
    }
    assert announced == {
        "states": {"label": "BYTES", "probabilities": "FP32"},
        "grades": {"label": "INT64", "probabilities": "FP32"},
        "wear": {"prediction": "FP32"},
    }
    states, grades = lives["states"].answers("label"), lives["grades"].answers("label")
    assert set(states) == {"fine", "worn", "broken"}
    # The same question with its answers called otherwise.
    assert [{"fine": 10, "worn": 20, "broken": 30}[state] for state in states] == grades


def test_the_window_was_measured_against_its_labels(life: Life, name: str) -> None:
    found = life.results["monitor"]
    assert (found["predictions"], found["labelled"], found["versions"]) == (480, 480, ["1"])
    metrics = found["metrics"]
    if name == "wear":
        errors = np.array(life.answers("prediction")) - NEXT_DAY["wear"].to_numpy()
        assert metrics["rmse"] == pytest.approx(np.sqrt((errors**2).mean()))
        assert metrics["mean_error"] == pytest.approx(errors.mean(), abs=1e-5)
    else:
        truth = NEXT_DAY[MODELS[name][1].get("labels", {}).get("column", "state")]
        right = [answer == label for answer, label in zip(life.answers("label"), truth, strict=True)]
        assert metrics["accuracy"] == pytest.approx(np.mean(right))
        assert metrics["skill"] > 0.2
    assert set(TASK_METRICS[MODELS[name][0]]) <= metrics.keys()
    report = life.lake.read_json(found["report_path"])
    assert [one for one in report["findings"] if one["error"] is not None] == []
    drifted = {one["column"] for one in report["findings"] if one["metric"] == "psi"}
    assert drifted == {"load", "mode", "temperature", "serviced", "hour", "weekend"}
    for page in (report["pages"]["drift"], report["pages"]["quality"]):
        assert b"</html>" in life.lake.read_bytes(page)


def test_a_scored_batch_is_what_the_server_answered(life: Life, name: str) -> None:
    scored = life.results["score"]
    assert (scored["rows"], scored["version"]) == (480, "1")
    parts = [path for path in life.lake.list(scored["output_path"]) if path.endswith(".parquet")]
    rows = life.lake.scan(parts).sort("event_timestamp", "machine_id").slice(20).collect()
    for output, answers in life.of_next_day.outputs.items():
        got = np.array(rows[output].to_list())
        assert (
            got.tolist() == answers
            if output == "label"
            else got == pytest.approx(np.array(answers), abs=1e-5)
        )


def test_a_second_version_was_released_and_taken_back(life: Life) -> None:
    assert (life.second.model_version, life.after_rollback.model_version) == ("2", "1")
    assert life.second.outputs != life.by_vector.outputs
    assert life.after_rollback.outputs == life.by_vector.outputs
    assert life.after_rollback.model_digest == life.results["train"]["model_digest"]


def test_the_second_example_goes_live(world: World) -> None:
    as_of = digits.FIRST_SCAN + 7.5 * DAY
    digits.land(world.stack.lake / "landing" / "digits", digits.FIRST_SCAN, as_of)
    world.admin.wait_for_dags({"digits__train", "digits__promote"})
    world.admin.trigger("digits__train", "first", {"as_of": as_of.isoformat()})
    world.admin.wait("digits__train", "first", print)
    approve(world.stack, world.alice, "digits__promote", "candidate__v1")
    images = digits.scans().filter(pl.col("scanned_at") < as_of).tail(50)
    pixels = [[int(pixel) for pixel in image.split(" ")] for image in images["pixels"]]
    packed = {"name": "images", "datatype": "FP32", "shape": [50, 64], "data": pixels}
    with world.client() as client:
        by_keys = client.infer_entities(
            "digits", {"image_id": images["image_id"].to_list()}, event_time=as_of
        )
        by_vector = client.post("digits", {"inputs": [packed]})
    labels = next(one["data"] for one in by_vector["outputs"] if one["name"] == "label")
    assert by_keys.outputs["label"] == labels
    truth = images.join(digits.readings(), on="image_id", maintain_order="left")["digit"]
    assert (np.array(labels) == truth.to_numpy()).mean() > 0.8
