"""A running stack whose monitor asks for a retraining of every window, and what a test may do to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from pending_kit import Candidates
from small_model import DAY, START
from stack_kit import wait_for_request
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import published_heads
from ml_lifecycle.demo.airflow import DONE, AirflowUser, DemoError
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import Interval
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle_airflow.stack.config import Stack

TRAIN, MONITOR, PROMOTE = "small__train", "small__monitor", "small__promote"
FIRST_END = START + 10 * DAY
AIRFLOW = ("scheduler", "triggerer", "dag-processor", "api-server")
PATIENCE = 900.0  # seconds; a machine that others use too may need minutes to start a scheduler again

# Waits while the file ``hold`` is there, so that a test can meet the pod at work.
HELD = """
import pathlib, time

HOLD = pathlib.Path({hold!r})


{training}

def train(training_set, labels, parameters, seed):
    HOLD.with_name("started").touch()
    while HOLD.exists():
        print("held", flush=True)
        time.sleep(0.2)
    return fit(training_set, labels, parameters, seed)
"""

# The same training, waiting in the triggerer.
DEFERRED = """
from datetime import timedelta

from airflow.sdk import DAG

from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle_airflow import IngestOperator, TrainingSetOperator, TrainOperator

SPEC = load_folder({folder!r}).spec

with DAG("deferred", schedule=None, default_args={{"folder": {folder!r}, "retries": 2}}):
    snapshot = IngestOperator(task_id="ingest")
    joined = TrainingSetOperator(task_id="features", snapshot=snapshot.output)
    TrainOperator(
        task_id="train",
        training_set=joined.output,
        training=SPEC.training,
        kubernetes_conn_id=SPEC.connections.pods,
        retry_delay=timedelta(seconds=1),
        deferrable=True,
        poll_interval=0.5,
    )
"""


class Operator(AirflowUser):
    """A user who also looks at runs, clears and marks."""

    def runs(self, dag_id: str) -> dict[str, str]:
        """Run id → state."""
        found = self._call("GET", f"/dags/{dag_id}/dagRuns", params={"limit": 1000})["dag_runs"]
        return {run["dag_run_id"]: run["state"] for run in found}

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found

    def is_in(self, dag_id: str, run_id: str, task_id: str, *states: str) -> bool:
        """Whether the task is in one of these states; False while the API server is away."""
        try:
            return self.task(dag_id, run_id, task_id)["state"] in states
        except (httpx.TransportError, DemoError):
            return False

    def clear(self, dag_id: str, run_id: str, *task_ids: str) -> None:
        """Clear these tasks and what comes after them."""
        body = {"dag_run_id": run_id, "task_ids": task_ids, "include_downstream": True, "dry_run": False}
        self._call(
            "POST",
            f"/dags/{dag_id}/clearTaskInstances",
            json={**body, "only_failed": False, "reset_dag_runs": True},
        )

    def mark_failed(self, dag_id: str, run_id: str, task_id: str) -> None:
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self._call("PATCH", path, json={"new_state": "failed"})

    def waiting(self, dag_id: str) -> int:
        """How many of the DAG's tasks wait for a person."""
        query = {"state": "awaiting_input", "limit": 1}
        found = self._call("GET", f"/dags/{dag_id}/dagRuns/~/taskInstances", params=query)
        return int(found["total_entries"])

    def pool(self, name: str) -> dict[str, int]:
        """What of a pool is taken, by kind."""
        found = self._call("GET", f"/pools/{name}")
        return {key: value for key, value in found.items() if key.endswith("_slots") and key != "open_slots"}

    def has_ended(self, dag_id: str, *run_ids: str) -> bool:
        """Whether these runs, or all of the DAG's, have ended; False while the API server is away."""
        try:
            states = self.runs(dag_id)
        except (httpx.TransportError, DemoError):
            return False
        return {states.get(run_id) for run_id in run_ids or states} <= DONE


@dataclass
class World:
    """The running stack, and who acts in it."""

    stack: Stack
    admin: Operator
    alice: AirflowUser
    hold: Path
    candidates: Candidates
    windows: Iterator[int] = field(default_factory=lambda: iter(range(100)))

    @property
    def lake(self) -> Lake:
        return Lake(str(self.stack.lake))

    @property
    def database(self) -> Database:
        return Database(self.stack.database_url)

    def next_window(self) -> Interval:
        """A day that nobody has looked at yet."""
        start = FIRST_END + next(self.windows) * DAY
        return Interval(start, start + DAY)

    def monitor(self, window: Interval, run_id: str) -> None:
        interval = {"start": window.start.isoformat(), "end": window.end.isoformat()}
        conf = {"as_of": window.end.isoformat(), "interval": interval}
        self.admin.trigger(MONITOR, run_id, conf)

    def version_of(self, run_id: str) -> str:
        return str(self.admin.result(TRAIN, run_id, "register")["version"])

    def released(self) -> list[tuple[str, str]]:
        """Version and state of production's releases, newest first; of each the last of its steps."""
        history = Releases(self.database).history("production", "small")
        return [(one.version, one.state) for one in history if one.state != "superseded"]

    def check(self) -> None:
        """The ledger is whole, and production serves what it says."""
        heads = published_heads(Lake(str(self.stack.environment_lake("production"))), "small")
        Ledger(self.database).verify(heads)

    def evict(self) -> None:
        """Have the node end the one pod that runs."""
        (name,) = self.running_pods()
        evict(self.stack, name)

    def running_pods(self) -> set[str]:
        """Names of the pods at work."""
        return running_pods(self.stack)

    @contextmanager
    def training(self, dag_id: str, run_id: str) -> Iterator[Path]:
        """A run whose pod is at work and waits; the file given is there as soon as another one does."""
        started = self.hold.with_name("started")
        started.unlink(missing_ok=True)
        self.hold.touch()
        try:
            self.admin.trigger(dag_id, run_id, {"as_of": self.next_window().end.isoformat()})
            wait_until(started.exists, "the pod is at work", PATIENCE)
            started.unlink()
            yield started
        finally:
            self.hold.unlink(missing_ok=True)

    def candidate(self, run_id: str) -> str:
        """The promotion of a newly trained version, which waits for its answer."""
        self.admin.trigger(TRAIN, run_id, {"as_of": self.next_window().end.isoformat()})
        self.admin.wait(TRAIN, run_id, print, timeout=PATIENCE)
        promotion = f"candidate__v{self.version_of(run_id)}"
        wait_for_request(self.stack, self.alice, PROMOTE, promotion)
        return promotion

    def ended(self, dag_id: str, run_id: str) -> str:
        """The run's state once it has ended."""
        wait_until(lambda: self.admin.has_ended(dag_id, run_id), f"{run_id} ends", PATIENCE)
        return self.admin.runs(dag_id)[run_id]


def running_pods(stack: Stack) -> set[str]:
    """Names of the pods at work."""
    url = f"http://127.0.0.1:{stack.ports.pods}/api/v1/pods"
    token = {"Authorization": f"Bearer {stack.secrets['pods']}"}
    items: list[dict[str, Any]] = httpx.get(url, headers=token, trust_env=False).json()["items"]
    return {pod["metadata"]["name"] for pod in items if pod["status"]["phase"] == "Running"}


def evict(stack: Stack, pod: str) -> httpx.Response:
    """Have the node end a pod at once."""
    url = f"http://127.0.0.1:{stack.ports.pods}/api/v1/namespaces/default/pods/{pod}/eviction"
    token = {"Authorization": f"Bearer {stack.secrets['pods']}"}
    body = {"deleteOptions": {"gracePeriodSeconds": 0}}
    return httpx.post(url, headers=token, json=body, trust_env=False)


def supervisorctl(stack: Stack, *command: str) -> str:
    whole = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(stack.root / "supervisord.conf")]
    return subprocess.run([*whole, *command], capture_output=True, text=True, check=False).stdout


def kill(stack: Stack, *programs: str) -> None:
    """SIGKILL; supervisord starts them again."""
    for program in programs:
        os.kill(int(supervisorctl(stack, "pid", program)), signal.SIGKILL)


def kill_with_tasks(stack: Stack, program: str) -> None:
    """The same for everything it has started, as when a machine goes down."""
    parent = psutil.Process(int(supervisorctl(stack, "pid", program)))
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a task's child that has ended meanwhile
            process.kill()


@contextmanager
def answering(stack: Stack) -> Iterator[None]:
    """Asks the champion all the while, and wants an answer each time."""
    stop, failures, answers = threading.Event(), [], [0]

    def ask() -> None:
        server = stack.server_url("production"), stack.secrets["production"]
        with ModelClient(*server, timeout=120) as client:  # for what hangs, not for a machine that is slow
            while not stop.wait(0.1):
                try:
                    client.infer_entities("small", {"machine_id": ["m01"]}, event_time=[FIRST_END])
                    answers[0] += 1
                except (LifecycleError, httpx.HTTPError) as error:
                    failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert answers[0] > 10
