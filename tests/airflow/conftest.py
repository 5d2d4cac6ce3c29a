"""Airflow, on a home of its own, and a model whose connections all lead into a temporary folder.

Nothing of Airflow is replaced here but its supervisor: the process beside a task that the task asks for
what it may not do itself. There is none in a test; what is said to it is kept instead.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from task_context import NOW, make_context
from training_world import make_folder, tracking_database
from waiting import wait_until

# Airflow reads it when it is first imported, and writes its configuration there.
_HOME = tempfile.mkdtemp(prefix="airflow-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {"AIRFLOW_HOME": _HOME, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

import ml_lifecycle  # noqa: E402
from ml_lifecycle.adapters.lake import Lake  # noqa: E402
from ml_lifecycle.ledger.database import Database  # noqa: E402
from ml_lifecycle.localpods.connection import connection_json  # noqa: E402
from ml_lifecycle.records import ModelVersion, Monitoring, Snapshot, to_json  # noqa: E402
from ml_lifecycle.spec.folder import ModelFolder, load_folder  # noqa: E402

APPROVERS = "users: [ann, ben, cem]"


@dataclass(frozen=True)
class World:
    """A model folder, and what its connections lead to."""

    folder: ModelFolder
    lake: Lake
    database: Database
    root: Path

    @property
    def path(self) -> str:
        """What operators call ``folder``."""
        return str(self.folder.path)

    def edit(self, file: str, old: str, new: str) -> World:
        """The same with one of the folder's files changed."""
        path = self.folder.path / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return World(load_folder(self.folder.path), self.lake, self.database, self.root)

    def file(self, record: Snapshot | ModelVersion | Monitoring) -> dict[str, Any]:
        """Write a record's manifest as its stage does; returns what the stage's task would."""
        if isinstance(record, ModelVersion):
            path = f"versions/{record.name}/{record.version}/manifest.json"
        else:
            path = record.path if isinstance(record, Snapshot) else f"{record.path}/manifest.json"
        self.lake.write_json(path, to_json(record))
        return to_json(record)

    def arrive(self, at: datetime = NOW - timedelta(hours=1)) -> None:
        """Let the source's file arrive, with one event."""
        buffer = io.BytesIO()
        pl.DataFrame({"id": [1], "at": [at]}).write_parquet(buffer)
        self.lake.write_bytes("rows.parquet", buffer.getvalue())


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Define an Airflow connection."""

    def define(conn_id: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return define


@pytest.fixture
def world(tmp_path: Path, connect: Callable[..., None]) -> World:
    """The model ``delays``: a lake, a migrated lifecycle database and an online store, all files."""
    folder = make_folder(tmp_path / "models", "regression", name="delays")
    database = Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    database.migrate()
    connect("ml_lifecycle_lake", conn_type="ml_lifecycle_lake", extra={"url": str(tmp_path / "lake")})
    connect(
        "ml_lifecycle_database",
        conn_type="ml_lifecycle_database",
        extra={"url": f"sqlite:///{tmp_path / 'lifecycle.db'}"},
    )
    made = World(folder, Lake(str(tmp_path / "lake")), database, tmp_path)
    return made.edit("model.yaml", "users: [alice]", APPROVERS)


@pytest.fixture
def timed(world: World) -> World:
    """The same with a source whose rows have an event time, and no file yet."""
    return world.edit(
        "model.yaml", "{uri: rows.parquet, contract: rows}", "{uri: rows.parquet, event_time: at}"
    )


@pytest.fixture
def supervisor() -> Any:
    """Airflow's supervisor, which keeps what it is told."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import CommsDecoder

    told = mock.create_autospec(CommsDecoder, instance=True)
    with mock.patch.object(task_runner, "SUPERVISOR_COMMS", told, create=True):
        yield told


@pytest.fixture
def context() -> Callable[..., Any]:
    """Makes a task's context."""
    return make_context


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("localpods")
    secret = folder / "secrets" / "default" / "lake-options"
    secret.mkdir(parents=True, mode=0o700)
    (secret / "json").write_text("{}")
    for path in (folder / "secrets", *(folder / "secrets").rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    command = [sys.executable, "-m", "ml_lifecycle.localpods", "--stop-pods-on-exit"]
    for option, name in (
        ("state-dir", "state"),
        ("secrets-dir", "secrets"),
        ("token-file", "token"),
        ("port-file", "port"),
    ):
        command += [f"--{option}", str(folder / name)]
    source = str(Path(ml_lifecycle.__file__).parents[1])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})
    wait_until(lambda: (folder / "port").exists() or process.poll() is not None, "the Pods API starts")
    assert process.poll() is None, "the Pods API did not start"
    from .pods_kit import Pods  # here: it imports Airflow

    yield Pods(f"http://127.0.0.1:{(folder / 'port').read_text().strip()}", folder)
    process.terminate()
    process.wait(15)


@pytest.fixture
def pods(
    server: Any,
    world: World,
    connect: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The connections of a training: pods, MLflow, and a lake whose options are a secret."""
    token = (server.folder / "token").read_text().strip()
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_PODS", connection_json(server.url, token))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    connect("ml_lifecycle_mlflow", extra={"url": tracking_database(tmp_path_factory)})
    connect("ml_lifecycle_lake", extra={"url": world.lake.url, "pod_secret": "lake-options/json"})
    return server
