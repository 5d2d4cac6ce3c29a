"""The full way to run it, really run: docker-compose.yaml comes up, and a model lives through it.

``BASE``, ``POSTGRES_IMAGE``, ``REDIS_IMAGE`` and ``LAKE_IMAGE`` name other images than the file's own, where
those cannot be had; ``COMPOSE_FILE`` may add an override. Half an hour on two cores, most of it the build.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from ml_lifecycle.demo.airflow import AirflowUser, DemoError, TaskState
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle_airflow.stack.full_secrets import write_secrets

pytestmark = pytest.mark.proof

REPOSITORY = Path(__file__).parents[2]
ONE_SHOT = {"migrate", "buckets"}
AS_OF = datetime(2024, 3, 10, tzinfo=UTC)


def compose_command() -> list[str]:
    """``docker compose``, or Debian's docker-compose."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers, so no stack can be started")
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True).returncode
        ):
            return command
    pytest.skip("no docker compose: install its plugin, or docker-compose")


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(frozen=True)
class FullStack:
    """A stack that is up.

    :param folder: its secrets
    """

    compose: list[str]
    environment: dict[str, str]
    folder: Path

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.compose, *arguments],
            cwd=REPOSITORY,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def inside(self, service: str, *command: str) -> str:
        """What a command says in a service's container."""
        return self.run("exec", "-T", service, *command)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What Docker knows of each service's container."""
        ids = self.run("ps", "-q").split()
        described = json.loads(subprocess.check_output(["docker", "inspect", *ids]))
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in described}

    def user(self, name: str) -> AirflowUser:
        password = json.loads((self.folder / "airflow-passwords.json").read_text())[name]
        return AirflowUser(f"http://127.0.0.1:{self.environment['AIRFLOW_PORT']}", name, password)

    def server(self) -> ModelClient:
        token = (self.folder / "production-token").read_text()
        return ModelClient(f"http://127.0.0.1:{self.environment['PRODUCTION_PORT']}", token)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullStack]:
    compose = compose_command()
    folder = tmp_path_factory.mktemp("full")
    write_secrets(folder)
    ports = dict(
        zip(
            ("AIRFLOW_PORT", "MLFLOW_PORT", "PRODUCTION_PORT", "PRODUCTION_GRPC_PORT"),
            map(str, free_ports(4)),
            strict=True,
        )
    )
    project = {"COMPOSE_PROJECT_NAME": f"full{secrets.token_hex(4)}", "SECRETS": str(folder)}
    if base := os.environ.get("BASE"):  # as make does
        project["TRAINING_BASE"] = os.environ.get("TRAINING_BASE", base)
    made = FullStack(compose, ports | project, folder)
    try:
        made.run("build")
        made.run("up", "-d")
        yield made
    finally:
        print(made.run("logs", "--no-color", "--tail", "100"))
        made.run("down", "--volumes")


def test_every_service_becomes_healthy(stack: FullStack) -> None:
    def unwell() -> dict[str, str]:
        states = {
            name: each["State"].get("Health", {}).get("Status", each["State"]["Status"])
            for name, each in stack.containers().items()
            if name not in ONE_SHOT
        }
        return {name: state for name, state in states.items() if state != "healthy"}

    try:
        wait_until(lambda: not unwell(), "every service is healthy", seconds=900)
    finally:
        print(unwell())
    assert set(stack.containers()) >= {"worker", "triggerer", "lake", "localpods", "server-staging"}


def test_a_model_lives_through_it(stack: FullStack) -> None:
    stack.inside("worker", "python", "-m", "ml_lifecycle.demo.landing", "s3://lifecycle")
    admin, alice = stack.user("admin"), stack.user("alice")
    admin.wait_for_dags({"digits__train", "digits__promote"}, timeout=300)
    admin.trigger("digits__train", "first", {"as_of": AS_OF.isoformat()})
    admin.wait("digits__train", "first", print, timeout=1200)
    promotion = ("digits__promote", "candidate__v1")

    def asked(tasks: list[TaskState]) -> bool:
        return any(task.task_id == "approve" and task.state == "awaiting_input" for task in tasks)

    admin.wait(*promotion, print, until=asked, timeout=1200)
    with pytest.raises(DemoError, match="HTTP 403"):
        admin.answer(*promotion, "approve", "Approve", "my own")
    alice.answer(*promotion, "approve", "Approve", "gates passed")
    while asked(alice.wait(*promotion, print, until=asked, timeout=1200)):
        alice.answer(*promotion, "approve", "Approve", "gates passed")  # Airflow had lost the answer
    with stack.server() as client:
        answer = client.infer_entities("digits", {"image_id": ["image-1290"]}, event_time=AS_OF)
    assert len(answer.outputs["label"]) == 1
    live = json.loads(stack.inside("worker", "ml-lifecycle", "live", "--json"))
    assert [row["version"] for row in live] == ["1"]
    stack.inside("worker", "ml-lifecycle", "ledger", "verify")


def test_what_tasks_are_forked_from_has_imported_their_libraries(stack: FullStack) -> None:
    # As the worker starts. Its own processes cannot be looked into: Airflow makes them unreadable, as they
    # hold secrets.
    code = (
        "import sys; sys.argv = ['airflow', 'celery', 'worker']; "
        "import airflow.settings; airflow.settings.initialize(); "
        "print(*sorted({'feast', 'mlflow', 'onnxruntime', 'optuna'} & set(sys.modules)))"
    )
    said = stack.inside("worker", "python", "-c", code)
    assert said.splitlines()[-1] == "feast mlflow onnxruntime optuna"


def test_no_secret_is_seen_from_outside(stack: FullStack) -> None:
    names = ("password", "secret", "token", "key")
    hidden = [path.read_text() for path in stack.folder.iterdir() if path.name.endswith(names)]
    hidden += json.loads((stack.folder / "airflow-passwords.json").read_text()).values()
    assert len(hidden) > 15
    seen = {name: json.dumps(each) for name, each in stack.containers().items()}
    seen["logs"] = stack.run("logs", "--no-color")
    for name, container in stack.containers().items():
        if container["State"]["Running"]:
            command = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
            seen[f"processes of {name}"] = stack.inside(name, "sh", "-c", command)
    assert {name for name, text in seen.items() if any(value in text for value in hidden)} == set()
