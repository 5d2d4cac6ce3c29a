"""The whole stack: one model trained, approved, served and monitored by real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from stack_kit import command_lines, free_ports, running_stack
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import current, published_heads
from ml_lifecycle.demo.airflow import AirflowUser, DemoError
from ml_lifecycle.demo.play import FIRST_TRAINING, MODEL, play
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.__main__ import access
from ml_lifecycle_airflow.stack.config import REPOSITORY, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that has played up to the end of the first window."""
    with running_stack(tmp_path_factory.mktemp("stack"), REPOSITORY / "dags") as stack:
        assert play(access(stack), windows=1) == 0
        yield stack


@pytest.fixture(scope="module")
def admin(stack: Stack) -> AirflowUser:
    return access(stack).user("admin")


def test_the_champion_is_what_was_approved(stack: Stack) -> None:
    database = Database(stack.database_url)
    release = Releases(database).champion(MODEL)
    assert release is not None
    assert (release.version, release.state) == ("1", "confirmed")
    approval = Ledger(database).approval_for(release.evidence_digest or "")
    assert approval is not None
    assert approval.approved_by == "alice", "whoever started the training may not approve it"
    lake = Lake(str(stack.environment_lake("production")))
    route = current(lake, MODEL)
    assert route is not None
    assert route.champion.model_digest == release.model_digest
    Ledger(database).verify(published_heads(lake, MODEL))


def test_the_registry_knows_the_champion(stack: Stack) -> None:
    alias = httpx.get(
        f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias",
        params={"name": MODEL, "alias": "champion"},
        trust_env=False,
    )
    assert alias.json()["model_version"]["version"] == "1"


def test_the_registry_s_server_is_one_process(stack: Stack) -> None:
    """The one that MLflow would start it from, and keep waiting, is spared."""
    (server,) = [line for line in command_lines(stack).values() if "mlflow" in line]
    assert "mlflow.server.fastapi_app:app" in server


def test_the_window_was_measured_once(stack: Stack, admin: AirflowUser) -> None:
    found = admin.result(f"{MODEL}__monitor", "window__2013-06-12", "monitor")
    assert found["predictions"] > 10_000
    assert found["labelled"] > 0.9 * found["predictions"]
    assert found["retrain"] is False
    states = {task.task_id: task.state for task in admin.tasks(f"{MODEL}__monitor", "window__2013-06-12")}
    assert states["retrain"] == "skipped"


def test_the_same_run_id_starts_nothing_again(admin: AirflowUser) -> None:
    with pytest.raises(DemoError, match="409"):
        admin.trigger(f"{MODEL}__train", "demo__first", {})


def test_a_batch_is_scored_with_the_champion(stack: Stack, admin: AirflowUser) -> None:
    end = FIRST_TRAINING + timedelta(days=14)
    interval = {"start": (end - timedelta(days=1)).isoformat(), "end": end.isoformat()}
    admin.trigger(f"{MODEL}__score", "one-day", {"as_of": end.isoformat(), "interval": interval})
    admin.wait(f"{MODEL}__score", "one-day", print)
    scored = admin.result(f"{MODEL}__score", "one-day", "score")
    assert scored["version"] == "1"
    assert 700 < scored["rows"] < 1100


def test_there_is_nothing_to_roll_back_to(stack: Stack, admin: AirflowUser) -> None:
    admin.trigger(f"{MODEL}__rollback", "by-mistake", {"reason": "to see what happens"})
    with pytest.raises(DemoError, match="NothingToRollBackToError"):
        admin.wait(f"{MODEL}__rollback", "by-mistake", print)
    assert Releases(Database(stack.database_url)).champion(MODEL) is not None


def test_the_page_wants_a_login(stack: Stack, admin: AirflowUser) -> None:
    url = f"{stack.airflow_url}/ml-lifecycle/api/models"
    assert httpx.get(url, trust_env=False).status_code == 401
    body = {"username": "admin", "password": stack.password("admin")}
    token = httpx.post(f"{stack.airflow_url}/auth/token", json=body, trust_env=False).json()["access_token"]
    shown = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False).json()
    models = {model["name"]: model for model in shown["models"]}
    assert models.keys() == {MODEL, "digits"}
    model = models[MODEL]
    assert model["champion"]["approved_by"] == "alice"
    assert len(model["windows"]) == 1


def test_a_killed_process_is_restarted(stack: Stack) -> None:
    def server() -> psutil.Process | None:
        for pid, command in command_lines(stack).items():
            if "ml_lifecycle.serving" in command and str(stack.ports.production) in command:
                return psutil.Process(pid)
        return None

    killed = server()
    assert killed is not None
    killed.kill()
    killed.wait(10)
    supervise.wait_healthy(stack, print)
    restarted = server()
    assert restarted is not None
    assert restarted != killed
    # Alive at once; ready when it has loaded the published route again.
    ready = f"{stack.server_url('production')}/v2/health/ready"
    wait_until(lambda: httpx.get(ready, trust_env=False).status_code == 200, "the route is loaded again")


@pytest.mark.full
def test_the_demo_tells_its_whole_story(tmp_path: Path) -> None:
    ports = free_ports()
    variables = {f"ML_LIFECYCLE_PORT_{name.upper()}": str(port) for name, port in vars(ports).items()}
    root = tmp_path / "demo"
    command = [
        sys.executable,
        "-m",
        "ml_lifecycle_airflow.stack",
        "demo",
        "--keep",
        "no",
        "--root",
        str(root),
    ]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("CRITICAL skill") == 2, "once as it happens, once in the table"
    assert done.stdout.count("nothing above its threshold") >= 18, "nine quiet windows or more, told twice"
    assert "version 2 asks for production; alice approves" in done.stdout
    assert "version 1 on the same flights" in done.stdout
    assert supervise.processes(Stack(root=root, ports=ports)) == []
