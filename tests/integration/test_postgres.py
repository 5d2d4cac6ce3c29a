"""One model's whole life, once with every database on SQLite and once on PostgreSQL: the same in both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from living_files import read_living
from postgres_kit import PostgresServer, postgres_binaries
from small_model import DAY, HOUR, land, write_model
from sqlalchemy import URL, make_url, select
from stack_kit import approve, command_lines, log_in, running_stack

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.delivery.route import current, published_heads
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import open_requests
from ml_lifecycle.ledger.tables import intervals
from ml_lifecycle.ledger.windows import newest_windows
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle_airflow.stack.config import DATABASES, Stack

pytestmark = pytest.mark.full

TRAINING_TASKS = ("ingest", "validate", "features", "train", "evaluate", "register")


@dataclass(frozen=True)
class Life:
    """What a life left behind, without what is never twice the same: wall-clock times and ports.

    :param digests: of each training task's record
    :param answers: what production said to one request under each champion
    """

    digests: Mapping[str, Any]
    answers: list[Any]
    releases: list[tuple[Any, ...]]
    ledger: list[tuple[Any, ...]]
    intervals: list[tuple[Any, ...]]
    window: tuple[Any, ...]
    scored: tuple[Any, ...]
    registry: Mapping[str, str]


def _digest(record: Mapping[str, Any]) -> str:
    """A record's own digest; a registered version has its model's."""
    return str(record["digest"] if "digest" in record else record["model_digest"])


def live(stack: Stack) -> Life:
    """Train, promote, serve, score and monitor; then train and promote again, and roll back."""
    admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
    lake = Lake(str(stack.lake))
    end = land(lake)
    kinds = ("train", "promote", "monitor", "score", "rollback")
    admin.wait_for_dags({f"small__{kind}" for kind in kinds})
    run(admin, "train", "first", {"as_of": end.isoformat()})
    approve(stack, alice, "small__promote", "candidate__v1")
    answers = [ask(stack, end)]
    window = {"start": (end + HOUR - DAY).isoformat(), "end": (end + HOUR).isoformat()}
    for kind in ("score", "monitor"):
        run(admin, kind, "one", {"as_of": (end + HOUR).isoformat(), "interval": window})
    later = land(lake, end, days=3)
    run(admin, "train", "second", {"as_of": later.isoformat()})
    approve(stack, alice, "small__promote", "candidate__v2")
    answers.append(ask(stack, end))
    run(admin, "rollback", "back", {"reason": "l'été"})
    answers.append(ask(stack, end))
    return told(stack, admin, answers)


def run(user: AirflowUser, kind: str, run_id: str, conf: Mapping[str, Any]) -> None:
    user.trigger(f"small__{kind}", run_id, conf)
    user.wait(f"small__{kind}", run_id, print)


def ask(stack: Stack, at: datetime) -> Any:
    with ModelClient(stack.server_url("production"), stack.secrets["production"], timeout=120) as client:
        answer = client.infer_entities("small", {"machine_id": ["m01", "m02"]}, event_time=[at, at])
    return answer.model_version, answer.outputs


def told(stack: Stack, admin: AirflowUser, answers: list[Any]) -> Life:
    database, production = Database(stack.database_url), Lake(str(stack.environment_lake("production")))
    ledger, releases = Ledger(database), Releases(database)
    ledger.verify(published_heads(production, "small"))
    champion, route = releases.champion("small"), current(production, "small")
    assert champion is not None
    assert route is not None
    assert (champion.revision, champion.model_digest) == (route.revision, route.champion.model_digest)
    assert open_requests(database) == []
    with database.read() as connection:
        spans = connection.execute(select(intervals).order_by(intervals.c.dag_id, intervals.c.start)).all()
    (window,) = newest_windows(database, ["small"], 5)["small"]
    measured = admin.result("small__monitor", "one", "monitor")
    scored = admin.result("small__score", "one", "score")
    return Life(
        digests={
            f"{run_id} {task}": _digest(admin.result("small__train", run_id, task))
            for run_id in ("first", "second")
            for task in TRAINING_TASKS
        },
        answers=answers,
        releases=[
            (
                where,
                one.revision,
                one.kind,
                one.state,
                one.version,
                one.restores,
                one.reason,
                one.requested_by,
            )
            for where in ("staging", "production")
            for one in releases.history(where, "small")
        ],
        ledger=[
            (entry.seq, entry.kind, entry.subject, entry.payload.get("user")) for entry in ledger.entries()
        ],
        intervals=[tuple(span) for span in spans],
        window=(window.window, measured["predictions"], measured["labelled"], measured["retrain"]),
        scored=(scored["version"], scored["rows"]),
        registry={alias: registered(stack, alias) for alias in ("champion", "candidate")},
    )


def registered(stack: Stack, alias: str) -> str:
    answer = httpx.get(
        f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias",
        params={"name": "small", "alias": alias},
        trust_env=False,
    )
    return str(answer.json()["model_version"]["version"])


def readable(stack: Stack, server: PostgresServer) -> dict[str, str]:
    """Whatever somebody else could come to read: command lines, files, the databases' contents."""
    found = {f"command line {pid}": line for pid, line in command_lines(stack).items()}
    private = {stack.root / "secrets.json", stack.root / "passwords.json", *(stack.root / "tokens").iterdir()}
    for path, content in read_living(stack.root):
        if path not in private:
            found[str(path.relative_to(stack.root))] = content.decode("latin-1")
    binaries = postgres_binaries()
    assert binaries is not None
    for name in DATABASES:
        command = [binaries / "pg_dump", *pg_arguments(make_url(server.url)), name]
        environment = os.environ | {"PGPASSWORD": server.password}
        found[f"database {name}"] = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout
    return found


def pg_arguments(url: URL) -> list[str]:
    return ["--host", str(url.host), "--port", str(url.port), "--username", str(url.username)]


@dataclass(frozen=True)
class Both:
    """The two lives, and what of the one on PostgreSQL can be read."""

    sqlite: Life
    postgres: Life
    readable: Mapping[str, str]
    secrets: Mapping[str, str]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Both]:
    root = tmp_path_factory.mktemp("postgres")
    write_model(root / "dags")
    with running_stack(root / "on postgres", root / "dags", postgres=make_url(postgres.url)) as stack:
        on_postgres = live(stack)
        everything = readable(stack, postgres)
        secrets = {**stack.secrets, "postgres": postgres.password, "postgres, encoded": password_in(stack)}
    with running_stack(root / "on sqlite", root / "dags") as stack:
        on_sqlite = live(stack)
    yield Both(on_sqlite, on_postgres, everything, secrets)
    for name in DATABASES:
        postgres.run("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def password_in(stack: Stack) -> str:
    return stack.database_url.removeprefix("postgresql+psycopg2://owner:").rpartition("@")[0]


@pytest.mark.parametrize("what", Life.__dataclass_fields__)
def test_a_life_is_the_same_on_both(both: Both, what: str) -> None:
    assert asdict(both.postgres)[what] == asdict(both.sqlite)[what]


def test_the_life_was_a_whole_one(both: Both) -> None:
    life = both.postgres
    assert [version for version, _ in life.answers] == ["1", "2", "1"]
    production = [release[1:5] for release in life.releases if release[0] == "production"]
    assert production == [
        (5, "restore", "confirmed", "1"),
        (4, "restore", "superseded", "1"),
        (3, "deploy", "rolled_back", "2"),
        (2, "deploy", "superseded", "2"),
        (1, "deploy", "confirmed", "1"),
    ]
    assert [entry[3] for entry in life.ledger if entry[1] == "decision"] == ["alice", "alice", "admin"]
    assert life.registry["champion"] == "1"
    assert all(life.digests.values())


def test_every_database_is_on_the_server(both: Both) -> None:
    files = {Path(name).name for name in both.readable if name.endswith((".db", ".sqlite", ".sqlite3"))}
    assert files == {"online_store.db"}
    assert "CREATE TABLE public.dag_run " in both.readable["database airflow"]
    assert "CREATE TABLE public.model_versions " in both.readable["database mlflow"]
    assert "CREATE TABLE public.ledger " in both.readable["database lifecycle"]


def test_no_password_can_be_read(both: Both) -> None:
    assert sum(name.startswith("command line") for name in both.readable) > 8
    assert {"logs/mlflow.log", "logs/scheduler.log", "supervisord.conf"} <= set(both.readable)
    found = {
        f"{secret} in {place}"
        for place, content in both.readable.items()
        for secret, value in both.secrets.items()
        if value in content
    }
    # Private, as the tokens are: it is for its owner's shell.
    assert found == {"postgres, encoded in lifecycle.env"}
