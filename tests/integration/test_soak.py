"""Traffic that never stops while versions come and go, processes die and windows are monitored.

``ML_LIFECYCLE_SOAK_MINUTES`` says for how long; three by itself, thirty before a release.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import yaml
from small_model import DAY, HOUR, land, write_model
from stack_kit import approve, command_lines, log_in, running_stack

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import published_heads
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.config import Stack

MINUTES = float(os.environ.get("ML_LIFECYCLE_SOAK_MINUTES", "3"))
CLIENTS = 2
# The production server answers throughout, so it is not among them: one process cannot be away unnoticed.
KILLED = ("scheduler", "triggerer", "dag-processor", "api_server", "--environment staging", "localpods")
# Of the production server, from after the first release to the end, however long that is.
MORE_MEMORY = 96 * 2**20
MORE_FILES = 16


@dataclass
class Traffic:
    """Clients that ask by entity key and by vector, one after the other, until told to stop."""

    stack: Stack
    moment: datetime
    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        newest = 0
        server = self.stack.server_url("production"), self.stack.secrets["production"]
        with ModelClient(*server, timeout=120) as client:  # for what hangs, not for a machine that is slow
            number = 0
            while not self._stop.is_set():
                number += 1
                machine = {"machine_id": [f"m{number % 20:02d}"]}
                vector = {
                    "inputs": [
                        {"name": "load", "datatype": "FP32", "shape": [1], "data": [number % 100 / 100]},
                        {"name": "mode", "datatype": "BYTES", "shape": [1], "data": ["turbo"]},
                    ]
                }
                try:
                    if number % 2:
                        answer = client.infer_entities("small", machine, event_time=[self.moment])
                        version, revision = answer.model_version, answer.route_revision
                    else:
                        response = client.post("small", vector)
                        version = response["model_version"]
                        revision = response["parameters"]["route_revision"]
                except LifecycleError as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                if revision < newest:
                    self.failed.append(f"revision {revision} answered after {newest}")
                newest = max(newest, revision)
                self.answered[version] += 1
                self._stop.wait(0.01)  # a hundred requests a second and client; the rest is for Airflow


@pytest.mark.proof
def test_nothing_fails_and_nothing_grows(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "dags")
    with running_stack(tmp_path / "stack", tmp_path / "dags") as stack:
        end = land(Lake(str(stack.lake)))
        _release(stack, folder, "1", end)
        server = _process(stack, "--environment production")
        with Traffic(stack, end + HOUR) as traffic:
            deadline, rounds = time.monotonic() + 60 * MINUTES, 1
            before = None
            while time.monotonic() < deadline or rounds < 3:
                rounds += 1
                _kill(stack, KILLED[rounds % len(KILLED)])
                _release(stack, folder, str(rounds), end)
                _monitor(stack, f"round-{rounds}", end)
                if before is None:
                    before = _use(server)  # two versions have been loaded, all code has run
            after = _use(server)
        _roll_back(stack)
        print(f"{rounds} releases, {dict(traffic.answered)} answers; before {before}, after {after}")
        assert traffic.failed == []
        assert set(traffic.answered) == {str(number) for number in range(1, rounds + 1)}
        assert server.is_running()
        assert before is not None
        assert after["memory"] - before["memory"] < MORE_MEMORY
        assert after["files"] - before["files"] < MORE_FILES
        database = Database(stack.database_url)
        states = Counter(release.state for release in Releases(database).history("production", "small"))
        # Each release but the first begins beside the champion, as does what is gone back to.
        assert states == {"confirmed": rounds, "rolled_back": 1, "superseded": rounds}
        Ledger(database).verify(published_heads(Lake(str(stack.environment_lake("production"))), "small"))


def _release(stack: Stack, folder: Path, version: str, end: datetime) -> None:
    spec = yaml.safe_load((folder / "model.yaml").read_text())
    spec["training"]["parameters"]["max_iter"] = 10 + int(version)
    changed = folder / ".model.yaml"
    changed.write_text(yaml.safe_dump(spec, sort_keys=False))
    changed.replace(folder / "model.yaml")
    admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
    admin.wait_for_dags({"small__train", "small__promote", "small__monitor", "small__rollback"})
    admin.trigger("small__train", f"version-{version}", {"as_of": end.isoformat()})
    admin.wait("small__train", f"version-{version}", print, timeout=600)
    approve(stack, alice, "small__promote", f"candidate__v{version}")


def _monitor(stack: Stack, run_id: str, end: datetime) -> None:
    admin = log_in(stack, "admin")
    moment = end + 2 * HOUR
    window = {"start": (moment - DAY).isoformat(), "end": moment.isoformat()}
    admin.trigger("small__monitor", run_id, {"as_of": moment.isoformat(), "interval": window})
    admin.wait("small__monitor", run_id, print, timeout=600)
    assert admin.result("small__monitor", run_id, "monitor")["predictions"] > 0


def _roll_back(stack: Stack) -> None:
    admin = log_in(stack, "admin")
    admin.trigger("small__rollback", "back", {"reason": "the soak is over"})
    admin.wait("small__rollback", "back", print)


def _process(stack: Stack, mark: str) -> psutil.Process:
    """The oldest of the stack's processes whose command line holds ``mark``."""
    matching = [psutil.Process(pid) for pid, line in command_lines(stack).items() if mark in line]
    return min(matching, key=lambda process: process.create_time())


def _kill(stack: Stack, mark: str) -> None:
    process = _process(stack, mark)
    process.kill()
    process.wait(30)
    supervise.wait_healthy(stack, print)


def _use(process: psutil.Process) -> dict[str, int]:
    return {"memory": process.memory_info().rss, "files": process.num_fds()}
