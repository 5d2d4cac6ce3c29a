"""A running stack keeps apart what must not touch: code in flight, environments, secrets."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from living_files import files_under
from small_model import DAY, HOUR, land, write_model
from stack_kit import approve, command_lines, log_in, running_stack
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle.serving.client import ModelClient, RequestRefusedError
from ml_lifecycle_airflow.stack.config import Stack

LAKE_CANARY = "canary-of-the-lakes-credentials"
POD_CANARY = "canary-of-the-pods-credentials"

# Says that it runs, then waits for leave; by then its folder has another name and another content.
WAITING = """
import pathlib, time

HERE = pathlib.Path("STARTED")


TRAINING


def train(training_set, labels, parameters, seed):
    HERE.touch()
    deadline = time.monotonic() + 120
    while not HERE.with_suffix(".go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return _train(training_set, labels, parameters, seed)
"""


class CanaryStack(Stack):
    """A stack whose lake asks for credentials, as an object store would: Airflow's own, and a pod's."""

    def connections(self) -> dict[str, dict[str, Any]]:
        found = super().connections()
        found["ml_lifecycle_lake"]["extra"] |= {
            "storage_options": {"secret": LAKE_CANARY},
            "pod_secret": "lake/options",
        }
        secret = self.root / "pod-secrets" / "default" / "lake"
        secret.mkdir(mode=0o700, parents=True, exist_ok=True)
        (secret / "options").touch(mode=0o600)
        (secret / "options").write_text(json.dumps({"secret": POD_CANARY}))
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose small model went live, although its folder was renamed while the pod ran."""
    root = tmp_path_factory.mktemp("isolation")
    dags, started = root / "dags", root / "started"
    training = write_model(dags) / "training.py"
    plain = training.read_text()
    training.write_text(
        WAITING.replace("STARTED", str(started)).replace(
            "TRAINING", plain.replace("def train(", "def _train(")
        )
    )
    (root / "stack" / "pod-secrets").mkdir(mode=0o700, parents=True)
    with running_stack(root / "stack", dags, kind=CanaryStack) as stack:
        end = land(Lake(str(stack.lake)))
        admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
        admin.wait_for_dags({f"small__{kind}" for kind in ("train", "promote", "monitor", "score")})
        admin.trigger("small__train", "first", {"as_of": end.isoformat()})
        wait_until(started.exists, "the pod runs")
        dags.rename(root / "elsewhere")
        (root / "elsewhere" / "models" / "small" / "training.py").write_text(plain)
        started.with_suffix(".go").touch()
        wait_until(lambda: _task(admin, "train") == "success", "the training ends")
        (root / "elsewhere").rename(dags)
        admin.wait("small__train", "first", print)
        approve(stack, alice, "small__promote", "candidate__v1")
        with ModelClient(stack.server_url("production"), stack.secrets["production"], timeout=120) as client:
            client.infer_entities("small", {"machine_id": ["m01"]}, event_time=[end])
        times = {"as_of": (end + HOUR).isoformat()}
        window = {"start": (end + HOUR - DAY).isoformat(), "end": (end + HOUR).isoformat()}
        for kind in ("score", "monitor"):
            admin.trigger(f"small__{kind}", "one", {**times, "interval": window})
            admin.wait(f"small__{kind}", "one", print)
        yield stack


def _task(user: AirflowUser, task_id: str) -> str:
    states = {task.task_id: task.state for task in user.tasks("small__train", "first")}
    assert states[task_id] != "failed", user.log_tail("small__train", "first", task_id)
    return states[task_id]


@pytest.mark.full
def test_a_pod_finishes_with_the_code_it_was_launched_with(stack: Stack) -> None:
    training = log_in(stack, "admin").result("small__train", "first", "train")
    code = Lake(str(stack.lake)).read_bytes(f"code/{training['code_digest']}.zip", training["code_digest"])
    packed = zipfile.ZipFile(io.BytesIO(code)).read("training.py").decode()
    assert "HERE.touch()" in packed
    assert "HERE.touch()" not in (stack.dags / "models" / "small" / "training.py").read_text()


@pytest.mark.full
def test_a_credential_of_staging_fails_against_production(stack: Stack) -> None:
    for environment, other in (("production", "staging"), ("staging", "production")):
        with ModelClient(stack.server_url(environment), stack.secrets[other]) as client:
            with pytest.raises(RequestRefusedError, match="401"):
                client.metadata("small")
            with pytest.raises(RequestRefusedError, match="401"):
                client.infer_entities("small", {"machine_id": ["m01"]})


@pytest.mark.full
def test_no_secret_is_written_anywhere_but_where_secrets_live(stack: Stack) -> None:
    private = {stack.root / "secrets.json", stack.root / "passwords.json"}
    private_folders = (stack.root / "tokens", stack.root / "pod-secrets")
    canaries = {"lake": LAKE_CANARY, "pod": POD_CANARY, **stack.secrets}
    files = [path for path in files_under(stack.root) if path not in private]
    files = [path for path in files if not any(path.is_relative_to(folder) for folder in private_folders)]
    assert {path.suffix for path in files} >= {".db", ".log", ".json", ".parquet", ".onnx", ".html", ".zip"}
    found = {
        f"{name} in {path.relative_to(stack.root)}"
        for path in files
        for name, canary in canaries.items()
        if canary.encode() in _readable(path)
    }
    assert found == set()


def _readable(path: Path) -> bytes:
    """A file's content as a person would read it: unpacked. Nothing, if it went while we were on our way.

    The stack is running: a pod that ended is removed with its log as soon as its operator has read it.
    """
    try:
        return _unpacked(path)
    except FileNotFoundError:
        return b""


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".parquet":
        return pl.read_parquet(path).write_json().encode() + path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            return b"\n".join(packed.read(name) for name in packed.namelist())
    return path.read_bytes()


@pytest.mark.full
def test_no_secret_is_on_a_command_line(stack: Stack) -> None:
    lines = command_lines(stack).values()
    assert len(lines) >= 8
    assert not [line for line in lines for secret in stack.secrets.values() if secret in line]


def test_the_image_is_made_of_nothing_that_could_hold_a_secret() -> None:
    repository = Path(__file__).parents[2]
    dockerfile = (repository / "include" / "images" / "Dockerfile").read_text()
    copied = {
        word
        for line in dockerfile.splitlines()
        if line.startswith(("COPY", "ADD")) and "--from=" not in line
        for word in line.split()[1:-1]
    }
    lines = (repository / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert {"*", "**/.*"} <= set(lines), "nothing but what is named, and of that no hidden files"
    assert allowed == {path.partition("/")[0] for path in copied} | {"**/.airflowignore"}
    arguments = {
        line.split()[1].partition("=")[0] for line in dockerfile.splitlines() if line.startswith("ARG")
    }
    assert {name for name in arguments if not name.endswith(("BASE", "EXTRAS", "PACKAGES"))} == set()
