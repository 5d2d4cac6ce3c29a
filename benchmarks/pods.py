"""What the train operator and its pod add to the bare training.

    python benchmarks/pods.py [RUNS]

The bare call is the pod's own command, started by hand on a job. Ours is the operator on localpods, in a
child forked from a process that has imported everything, as Airflow's executor forks its tasks: planned,
launched, watched and its result published; what MLflow takes to log it is not counted. Deferrable, the
trigger runs in this process, as a triggerer's does. Each run is another job, and all end in the same model.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common import REPOSITORY, table

sys.path.insert(0, str(REPOSITORY / "tests" / "domain"))
sys.path.insert(0, str(REPOSITORY / "tests" / "airflow"))
from task_context import make_context

LIMITS = {"blocking": 0.3, "deferrable": 1.5}
WAYS: dict[str, dict[str, Any]] = {"blocking": {}, "deferrable": {"deferrable": True, "poll_interval": 0.5}}


def job_of(root: Path, seed: int) -> tuple[Any, Any, Any]:
    """A model folder with its training set in the lake, and the job that the operator will plan."""
    from training_world import make_folder, make_training_set

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.spec.folder import load_folder
    from ml_lifecycle.stages.train import plan_training

    lake = Lake(str(root / "lake"))
    folder = make_folder(root / f"models-{seed}", "regression", name="delays")
    spec = folder.path / "model.yaml"
    spec.write_text(spec.read_text().replace("seed: 5", f"seed: {seed}"))
    folder = load_folder(folder.path)
    training_set = make_training_set(lake, folder)
    return folder, training_set, plan_training(folder, lake, training_set)


def bare(root: Path, seed: int) -> tuple[float, str]:
    """Seconds of the pod's command by itself, and the model's digest."""
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.training.job import Attempt

    _, _, job = job_of(root, seed)
    attempt = Attempt(job, 1, "bare")
    lake = Lake(str(root / "lake"))
    began = time.monotonic()
    subprocess.run(
        [sys.executable, *job.command[1:]],
        env={**os.environ, **attempt.environment(lake.url)},
        check=True,
        capture_output=True,
    )
    return time.monotonic() - began, lake.read_json(attempt.result_path)["files"]["model.onnx"]


def operated(root: Path, seed: int, way: dict[str, Any]) -> tuple[float, str]:
    """Seconds of the operator in forked children until the result is published, and the model's digest."""
    from airflow.sdk.exceptions import TaskDeferred

    from ml_lifecycle.records import to_json
    from ml_lifecycle_airflow.operators.train import TrainOperator

    folder, training_set, _ = job_of(root, seed)
    given = make_context("train", run_id=f"run-{seed}-{len(way)}")

    class Timed(TrainOperator):
        def _finish(self, resources: Any, attempts: Any, training: Any, context: Any) -> None:
            raise SystemExit(training.model_digest)

    def operator() -> TrainOperator:
        return Timed(
            task_id="train",
            folder=str(folder.path),
            training_set=to_json(training_set),
            training=folder.spec.training,
            kubernetes_conn_id="ml_lifecycle_pods",
            **way,
        )

    def call(method: str, *arguments: Any) -> Any:
        task = operator()
        try:
            getattr(task, method)(given, *arguments)
        except TaskDeferred as deferral:
            return {"trigger": deferral.trigger.serialize(), "method": deferral.method_name}
        except SystemExit as done:
            return {"digest": done.code}

    began = time.monotonic()
    said = forked(partial(call, "execute"))
    while "trigger" in said:
        event = asyncio.run(first_event(*said["trigger"]))
        said = forked(partial(call, said["method"], event))
    return time.monotonic() - began, said["digest"]


async def first_event(path: str, arguments: dict[str, Any]) -> Any:
    """What the trigger emits."""
    from ml_lifecycle_airflow.triggers.train import TrainTrigger

    assert path.endswith(TrainTrigger.__name__)
    async for event in TrainTrigger(**arguments).run():
        return event.payload


def forked(work: Any) -> Any:
    """Run it in a child of this process, and return what it returns."""
    import pickle

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            with os.fdopen(writer, "wb") as file:
                pickle.dump(work(), file)
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run here
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        found = pickle.load(file)
    os.waitpid(child, 0)
    return found


@contextmanager
def localpods(root: Path) -> Iterator[Any]:
    """A Pods API and a lifecycle database in ``root``, and all that a task imports, imported."""
    os.environ |= {
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "NO_PROXY": "127.0.0.1",
    }
    from localpods_kit import Cluster

    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.localpods.connection import connection_json
    from ml_lifecycle_airflow.preload import preload

    preload(["airflow", "scheduler"])
    cluster = Cluster(root)
    try:
        token = (root / "token").read_text().strip()
        database = f"sqlite:///{root / 'lifecycle.db'}"
        Database(database).migrate()
        os.environ |= {
            "AIRFLOW_CONN_ML_LIFECYCLE_PODS": connection_json(str(cluster.http.base_url), token),
            "AIRFLOW_CONN_ML_LIFECYCLE_DATABASE": json.dumps({"extra": {"url": database}}),
        }
        yield cluster
    finally:
        cluster.stop()


def main() -> int:
    """Measure, print, and say by the exit code whether the limits hold."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[str, list[float]] = {"bare": [], "blocking": [], "deferrable": []}
    with tempfile.TemporaryDirectory(prefix="pods-") as temporary, localpods(Path(temporary)):
        root = Path(temporary)
        for run in range(runs):
            seconds, model = bare(root / f"bare-{run}", run)
            found["bare"].append(seconds)
            for name, way in WAYS.items():
                lake = {"url": str(root / f"{name}-{run}" / "lake")}
                os.environ["AIRFLOW_CONN_ML_LIFECYCLE_LAKE"] = json.dumps({"extra": lake})
                seconds, same = operated(root / f"{name}-{run}", run, way)
                assert same == model, "both sides come to the same model"
                found[name].append(seconds)
    floor = statistics.median(found["bare"])
    rows = [("the pod's command by hand", f"{floor:.2f}", "", "")]
    added = {name: statistics.median(found[name]) - floor for name in LIMITS}
    rows += [
        (f"operator and pod, {name}", f"{floor + extra:.2f}", f"{extra:.2f}", f"{LIMITS[name]}")
        for name, extra in added.items()
    ]
    table(("training", f"s, median of {runs}", "added", "limit"), rows)
    return int(any(extra > LIMITS[name] for name, extra in added.items()))


if __name__ == "__main__":
    sys.exit(main())
