"""A canary through a whole Airflow while clients ask: it takes over, people go back, and no request fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from scheduling_kit import kill
from small_model import DAY, land, write_model
from stack_kit import approve, log_in, running_stack, wait_for_request
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import published_heads
from ml_lifecycle.demo.airflow import DemoError, TaskState
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle_airflow.stack.config import Stack

DELIVERY = {
    "strategy": "canary",
    "steps": [40],
    "watch": {
        # The latency is the machine's, which has more to do than to serve here.
        "latency": None,
        "errors": {"margin": 0.1},
        "score_distribution": {"margin": 0.5},
        "min_rows": 100,
        "min_time": "5s",
        "every": "2s",
    },
}


class Traffic:
    """A client that asks without a pause: ten rows at a time, of one machine."""

    def __init__(self, stack: Stack) -> None:
        self._server = stack.server_url("production"), stack.secrets["production"]
        self._stop = threading.Event()
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []

    @contextmanager
    def asking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _ask(self) -> None:
        with ModelClient(*self._server, timeout=120) as client:
            while not self._stop.wait(0.02):
                self._one(client, sum(self.answered.values()))

    def _one(self, client: ModelClient, number: int) -> None:
        loads = [(number + row) % 100 / 100 for row in range(10)]
        body = {
            "inputs": [
                {"name": "load", "datatype": "FP32", "shape": [10], "data": loads},
                {"name": "mode", "datatype": "BYTES", "shape": [10], "data": ["turbo", "idle"] * 5},
            ],
            "parameters": {"assignment_key": f"m{number % 50}"},
        }
        try:
            self.answered[client.post("small", body)["model_version"]] += 1
        except LifecycleError as error:
            self.failed.append(f"{type(error).__name__}: {error}")


@pytest.mark.full
def test_a_canary_takes_over_and_people_go_back_while_clients_ask(tmp_path: Path) -> None:
    write_model(tmp_path / "dags", delivery=DELIVERY)
    with running_stack(tmp_path / "stack", tmp_path / "dags") as stack:
        end = land(Lake(str(stack.lake)), days=11)
        admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
        admin.wait_for_dags({f"small__{kind}" for kind in ("train", "promote", "rollback")})
        admin.trigger("small__train", "first", {"as_of": (end - DAY).isoformat()})
        admin.wait("small__train", "first", print, timeout=600)
        approve(stack, alice, "small__promote", "candidate__v1")
        admin.trigger("small__train", "second", {"as_of": end.isoformat()})
        admin.wait("small__train", "second", print, timeout=600)

        run, later = ("small__promote", "candidate__v2"), ("small__promote", "candidate__v3")
        wait_for_request(stack, alice, *run)
        alice.answer(*run, "approve", "Approve", "by a test")
        # It is held as long as nobody asks, so the next candidate finds it watched.
        admin.wait(*run, print, until=_is_watched, timeout=300)
        admin.trigger("small__train", "third", {"as_of": (end - DAY / 2).isoformat()})
        admin.wait("small__train", "third", print, timeout=600)
        wait_for_request(stack, alice, *later)
        alice.answer(*later, "approve", "Approve", "by a test")
        admin.wait(*later, print, until=_waits_its_turn, timeout=300)
        traffic = Traffic(stack)
        with traffic.asking():
            kill(stack, "triggerer")  # where the watch waits
            admin.wait(*run, print, timeout=300)
            with pytest.raises(DemoError, match="version 2 is champion: evaluate it again"):
                admin.wait(*later, print, timeout=300)
            wait_until(lambda: _last_is(traffic, "2"), "the new version answers all")
            admin.trigger("small__rollback", "back", {"reason": "by a test"})
            admin.wait("small__rollback", "back", print, timeout=300)
            wait_until(lambda: _last_is(traffic, "1"), "the old version answers all")
        assert traffic.failed == []

        database = Database(stack.database_url)
        history = list(reversed(Releases(database).history("production", "small")))
        assert [(one.version, one.kind, one.state) for one in history] == [
            ("1", "deploy", "confirmed"),
            ("2", "deploy", "superseded"),
            ("2", "deploy", "superseded"),
            ("2", "deploy", "rolled_back"),
            ("1", "restore", "superseded"),
            ("1", "restore", "confirmed"),
        ]
        result = admin.result(*run, "watch_production")
        assert (result["step"], result["judgement"]["decision"]) == ("champion", "promote")
        Ledger(database).verify(published_heads(Lake(str(stack.environment_lake("production"))), "small"))


def _is_watched(tasks: Sequence[TaskState]) -> bool:
    return any(task.task_id == "watch_production" and task.state == "deferred" for task in tasks)


def _waits_its_turn(tasks: Sequence[TaskState]) -> bool:
    return any(task.task_id == "deploy_production" and task.state == "up_for_reschedule" for task in tasks)


def _last_is(traffic: Traffic, version: str) -> bool:
    """Whether a hundred requests in a row were answered by one version."""
    before = traffic.answered.copy()
    wait_until(lambda: sum((traffic.answered - before).values()) >= 100, "it is asked")
    return set(traffic.answered - before) == {version}
