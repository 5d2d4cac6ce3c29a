"""Users and operators of Airflow try to get a model live that nobody let through. Nothing of it works.

They mark tasks as success, write XComs, clear, and answer what they may not answer, all through Airflow's
REST API against a running stack. Whoever holds the database's credentials is found out. Each test looks at
what is live before and after.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from delivery_kit import Server, make_model
from small_model import START, land, write_model
from sqlalchemy import delete, insert, select
from stack_kit import running_stack, wait_for_request
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.lineage import read_training
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.demo.airflow import DONE, AirflowUser, DemoError
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import DECISION, Entry, Ledger, append_entry
from ml_lifecycle.ledger.requests import open_requests
from ml_lifecycle.ledger.tables import ledger as ledger_table
from ml_lifecycle.records import Approval, Evidence, Release, from_json, to_json
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.stages.approve import evidence_digest
from ml_lifecycle_airflow.stack.config import Stack

pytestmark = pytest.mark.full

USERS = {"admin": "admin", "alice": "op", "bob": "op", "eve": "viewer"}
"""Of these ``admin`` and ``alice`` are the approvers; ``bob`` operates, ``eve`` looks."""
TRAIN, PROMOTE, ROLLBACK = "small__train", "small__promote", "small__rollback"


class Forger(AirflowUser):
    """A user who tries what Airflow lets him."""

    def mark(self, run_id: str, *task_ids: str, dag_id: str = PROMOTE) -> None:
        """Mark tasks as success by hand, whether they ran or not."""
        for task_id in task_ids:
            path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
            self._call("PATCH", path, json={"new_state": "success"})

    def clear(self, run_id: str, *task_ids: str, dag_id: str = PROMOTE) -> None:
        """Let just these tasks run again; returns when they and with them the run have ended."""
        body = {"dry_run": False, "dag_run_id": run_id, "task_ids": list(task_ids), "only_failed": False}
        self._call("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)

        self.end(run_id, dag_id)

    def forge(self, run_id: str, task_id: str, value: Any, dag_id: str = PROMOTE) -> None:
        """Write what a task returned, whether it returned anything or not."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries"
        try:
            self._call("PATCH", f"{path}/return_value", json={"value": value})
        except DemoError:
            self._call("POST", path, json={"key": "return_value", "value": value})
        assert self.result(dag_id, run_id, task_id) == value

    def end(self, run_id: str, dag_id: str = PROMOTE) -> None:
        """Wait for a run's end, good or bad."""
        wait_until(lambda: self.run_state(dag_id, run_id) in DONE, f"{dag_id}/{run_id} has ended", 300)

    def why(self, run_id: str, task_id: str, dag_id: str = PROMOTE) -> str:
        """The log of the newest attempt of a task that failed."""
        instance = self._instance(dag_id, run_id, task_id)
        assert instance["state"] == "failed", f"{task_id} of {run_id} is {instance['state']}"
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{instance['try_number']}"
        return json.dumps(self._call("GET", path, params={"full_content": True}))

    def state(self, run_id: str, task_id: str, dag_id: str = PROMOTE) -> str | None:
        state: str | None = self._instance(dag_id, run_id, task_id)["state"]
        return state

    def _instance(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}")
        return found


class World:
    """A running stack with the small model, its people, and what is live in it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.lake = Lake(str(stack.lake))
        self.database = Database(stack.database_url)
        self.ledger = Ledger(self.database)
        self.end = land(self.lake)
        self.admin, self.alice, self.bob, self.eve = (
            Forger(stack.airflow_url, name, stack.password(name)) for name in USERS
        )
        self._trained = 0
        self.admin.wait_for_dags({TRAIN, PROMOTE, ROLLBACK, "brief__train"})

    def live(self, model: str = "small", environment: str = "production") -> Release | None:
        return Releases(self.database).live(environment, model)

    def decisions(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries() if entry.kind == DECISION]

    def start_training(self, user: Forger, dag_id: str = TRAIN) -> str:
        """Each training has an hour more of data than the one before; returns its run id."""
        self._trained += 1
        run_id = f"training-{self._trained}"
        as_of = START + timedelta(days=8, hours=self._trained)
        user.trigger(dag_id, run_id, {"as_of": as_of.isoformat()})
        return run_id

    def candidate(self, user: Forger) -> tuple[str, str]:
        """A new version that waits for its approval: the version, and its promotion's run id."""
        run_id = self.start_training(user)
        self.admin.wait(TRAIN, run_id, print)
        version = str(self.admin.result(TRAIN, run_id, "register")["version"])
        promotion = f"candidate__v{version}"
        wait_for_request(self.stack, self.admin, PROMOTE, promotion)
        return version, promotion

    def answer(self, promotion: str, user: Forger) -> None:
        user.answer(PROMOTE, promotion, "approve", "Approve", "it is better")
        user.end(promotion)

    def champion(self) -> tuple[str, str]:
        """A new version that went live as it should, and its promotion's run id."""
        version, promotion = self.candidate(self.bob)
        self.answer(promotion, self.alice)
        live = self.live()
        assert live is not None
        assert live.version == version
        return version, promotion

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``ml-lifecycle``, as the README shows it."""
        source = f". {shlex.quote(str(self.stack.settings_file))}"
        command = shlex.join([sys.executable, "-m", "ml_lifecycle.cli", *words])
        return subprocess.run(
            ["bash", "-c", f"{source}; {command}"], capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("forgery")
    write_model(root / "dags")
    write_model(root / "dags", "brief", approvers={"users": ["admin", "alice"], "deadline": "2s"})
    with pytest.MonkeyPatch.context() as patch:
        # Airflow sweeps overdue requests at this interval: never here, so that an answer can be late.
        patch.setenv("AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL", "86400")
        with running_stack(root / "stack", root / "dags", USERS) as stack:
            yield World(stack)


def test_only_the_yes_of_one_who_was_asked_goes_live(world: World) -> None:
    """Every task marked as success, every wrong person, a forged approval; then the right one."""
    before = world.live()
    run_id = world.start_training(world.alice)
    # No promotion of its own: those below are the first to look at this version.
    world.bob.mark(run_id, "request_promotion", dag_id=TRAIN)
    world.alice.wait(TRAIN, run_id, print)
    version = world.alice.result(TRAIN, run_id, "register")["version"]
    skipped = {
        "approve": ["deploy_staging"],
        "prepare_production": ["deploy_staging", "approve"],
        "deploy_production": ["deploy_staging", "approve", "prepare_production"],
        "watch_production": ["deploy_staging", "approve", "prepare_production", "deploy_production"],
        "mark_champion": [
            "deploy_staging",
            "approve",
            "prepare_production",
            "deploy_production",
            "watch_production",
        ],
    }
    messages = {
        "approve": "NotConfirmedError: staging has not confirmed version",
        "prepare_production": "NotApprovedError: the ledger has no approval of version",
        "deploy_production": "NotApprovedError: the ledger has no approval of version",
        "watch_production": "NotConfirmedError: version",
        "mark_champion": "NotConfirmedError: ",
    }
    for stopped, marked in skipped.items():
        world.bob.trigger(PROMOTE, f"{version}-{stopped}", {"version": version})
        world.bob.mark(f"{version}-{stopped}", *marked)
    for stopped, message in messages.items():
        world.bob.end(f"{version}-{stopped}")
        assert message in world.bob.why(f"{version}-{stopped}", stopped)
    assert version not in {request.version for request in open_requests(world.database)}
    assert world.live() == before

    promotion = f"{version}-in-order"
    world.bob.trigger(PROMOTE, promotion, {"version": version})
    wait_for_request(world.stack, world.bob, PROMOTE, promotion)
    (request,) = open_requests(world.database, "small")
    assert request.assigned == ("admin",), "alice started the training"
    for user in (world.alice, world.bob, world.eve):
        with pytest.raises(DemoError, match="HTTP 403"):
            user.answer(PROMOTE, promotion, "approve", "Approve", "let me")
    said = len(world.decisions())

    # An approval that looks like admin's.
    evidence = from_json(Evidence, world.bob.result(PROMOTE, promotion, "evidence"))
    forged = Approval("small", version, evidence.digest, "admin", datetime.now(UTC), 1, "me too")
    world.bob.mark(promotion, "approve")
    world.bob.forge(promotion, "approve", to_json(forged))
    world.bob.end(promotion)
    assert "NotApprovedError" in world.bob.why(promotion, "prepare_production")

    # Evidence that fits itself, but was never made.
    draft = replace(evidence, requested_by=None, champion_digest=None)
    digest = evidence_digest(replace(draft, evaluation_digest="0" * 64))
    made_up = replace(draft, evaluation_digest="0" * 64, digest=digest, path=f"evidence/small/{digest}.json")
    world.bob.forge(promotion, "evidence", to_json(made_up))
    world.bob.clear(promotion, "prepare_production", "deploy_production")
    assert "RecordMismatchError: the lake has no such evidence/1" in world.bob.why(
        promotion, "prepare_production"
    )
    # The real one, with another's name on it.
    world.bob.forge(promotion, "evidence", to_json(replace(evidence, requested_by="bob")))
    world.bob.mark(promotion, "prepare_production")
    world.bob.clear(promotion, "deploy_production")
    assert "RecordMismatchError: the evidence/1 that was received differs" in world.bob.why(
        promotion, "deploy_production"
    )
    assert (world.live(), len(world.decisions())) == (before, said)

    # What a yes does.
    world.bob.forge(promotion, "evidence", to_json(evidence))
    body = {"dry_run": False, "dag_run_id": promotion, "task_ids": ["approve"], "include_downstream": True}
    world.bob._call("POST", f"/dags/{PROMOTE}/clearTaskInstances", json={**body, "only_failed": False})
    wait_for_request(world.stack, world.bob, PROMOTE, promotion)
    world.answer(promotion, world.admin)
    live = world.live()
    assert live is not None
    assert (live.version, live.evidence_digest) == (version, evidence.digest)

    checked = world.command("ledger", "verify")
    assert checked.returncode == 0, checked.stderr
    assert "heads in the routes of production, staging" in checked.stdout
    (shown,) = json.loads(world.command("live", "--model", "small", "--json").stdout)
    assert shown["version"] == version
    assert (shown["trained_for"], shown["requested_by"]) == ("alice", "bob")
    assert (shown["approved_by"], shown["approval_reason"]) == ("admin", "it is better")
    assert shown["snapshot_digest"] == evidence.snapshot_digest
    assert shown["code_digest"] == evidence.code_digest
    earlier = (live.created_at - timedelta(seconds=1)).isoformat()
    assert f"version       {version}" not in world.command("live", "--at", earlier).stdout


def test_a_training_s_records_cannot_be_forged(world: World) -> None:
    """Another's name, better numbers, a version of one's own: between the tasks of a training."""
    before = world.live()
    run_id = world.start_training(world.alice)
    world.bob.mark(run_id, "register", dag_id=TRAIN)
    world.bob.end(run_id, TRAIN)
    assert "expected a record of schema 'model_version/1', got None" in world.bob.why(
        run_id, "request_promotion", TRAIN
    )
    training = world.alice.result(TRAIN, run_id, "train")
    evaluation = world.alice.result(TRAIN, run_id, "evaluate")

    version = {
        "schema": "model_version/1",
        "run": training["run"],
        "name": "small",
        "version": "1000",
        "role": "candidate",
        "model_digest": training["model_digest"],
        "training_path": training["path"],
        "evaluation_path": evaluation["path"],
        "mlflow_run_id": training["mlflow_run_id"],
        "requested_by": None,
    }
    world.alice.forge(run_id, "register", version, TRAIN)
    world.alice.clear(run_id, "request_promotion", dag_id=TRAIN)
    assert "RecordMismatchError: the lake has no such model_version/1" in world.alice.why(
        run_id, "request_promotion", TRAIN
    )
    for task_id, forged in (
        ("train", {**training, "model_digest": "0" * 64}),
        ("evaluate", {**evaluation, "metrics": {"skill": 1.0}}),
    ):
        real = training if task_id == "train" else evaluation
        world.alice.forge(run_id, task_id, forged, TRAIN)
        world.alice.clear(run_id, "register", dag_id=TRAIN)
        assert "RecordMismatchError" in world.alice.why(run_id, "register", TRAIN)
        world.alice.forge(run_id, task_id, real, TRAIN)

    # Only the name of who asked: it is not taken from there, and the run in MLflow neither.
    other = {**training["run"], "requested_by": "bob", "run_id": "small__train/of-bob"}
    world.alice.forge(run_id, "train", {**training, "run": other, "mlflow_run_id": "none"}, TRAIN)
    world.alice.forge(run_id, "evaluate", {**evaluation, "run": other}, TRAIN)
    world.alice.clear(run_id, "register", dag_id=TRAIN)
    registered = world.alice.result(TRAIN, run_id, "register")
    assert registered["requested_by"] == "alice"
    assert registered["mlflow_run_id"] == training["mlflow_run_id"]
    world.alice.clear(run_id, "request_promotion", dag_id=TRAIN)
    promotion = f"candidate__v{registered['version']}"
    wait_for_request(world.stack, world.bob, PROMOTE, promotion)
    with pytest.raises(DemoError, match="HTTP 403"):
        world.alice.answer(PROMOTE, promotion, "approve", "Approve", "mine")
    assert world.live() == before


def test_an_answer_after_the_deadline_is_none(world: World) -> None:
    run_id = world.start_training(world.bob, "brief__train")
    world.admin.wait("brief__train", run_id, print)
    version = world.admin.result("brief__train", run_id, "register")["version"]
    dag_id, promotion = "brief__promote", f"candidate__v{version}"
    wait_for_request(world.stack, world.admin, dag_id, promotion)
    (request,) = open_requests(world.database, "brief")
    assert request.deadline is not None
    deadline = request.deadline
    wait_until(lambda: datetime.now(UTC) > deadline, "the deadline has passed")
    world.alice.answer(dag_id, promotion, "approve", "Approve", "sorry, I was at lunch")
    world.alice.end(promotion, dag_id)
    why = world.alice.why(promotion, "approve", dag_id)
    assert "was rejected by nobody, its deadline passed: alice answered at" in why
    (decision,) = [entry for entry in world.decisions() if entry.model == "brief"]
    assert (decision.payload["decision"], decision.payload["user"]) == ("reject", None)
    assert world.live("brief") is None


def test_an_approval_is_worth_nothing_once_the_world_has_changed(world: World) -> None:
    """Rolled back, it is withdrawn; compared with another champion, it does not count."""
    first, _ = world.champion()
    second, replayed = world.champion()
    third, waiting = world.candidate(world.bob)
    world.bob.trigger(ROLLBACK, f"back-from-{second}", {"reason": "complaints"})
    world.bob.wait(ROLLBACK, f"back-from-{second}", print)
    live = world.live()
    assert live is not None
    assert (live.version, live.kind) == (first, "restore")

    world.bob.clear(replayed, "deploy_production")
    assert f"NotApprovedError: the ledger has no approval of version {second}" in world.bob.why(
        replayed, "deploy_production"
    )
    world.bob.clear(replayed, "approve")
    assert f"version {second} of small is superseded" in world.bob.why(replayed, "approve")

    said = len(world.decisions())
    world.answer(waiting, world.alice)
    compared = f"{third} was compared with version {second}, but version {first} is champion"
    assert compared in world.bob.why(waiting, "approve")
    assert len(world.decisions()) == said
    # Judged anew, but on a page that still shows what was compared with the other champion.
    world.bob.clear(waiting, "evidence", "deploy_staging", "approve")
    assert "and its page still shows that" in world.bob.why(waiting, "approve")
    world.bob.mark(waiting, "approve", "prepare_production")
    world.bob.clear(waiting, "deploy_production")
    assert "NotApprovedError" in world.bob.why(waiting, "deploy_production")
    assert world.live() == live


def test_a_model_file_that_was_swapped_is_never_served(world: World) -> None:
    before = world.live()
    version, promotion = world.candidate(world.bob)
    evidence = from_json(Evidence, world.bob.result(PROMOTE, promotion, "evidence"))
    path = read_training(world.lake, evidence.training_path).model_path
    model = world.lake.read_bytes(path, evidence.model_digest)
    swapped = make_model(1.0)
    world.lake.write_bytes(path, swapped)
    world.answer(promotion, world.alice)
    assert "IntegrityError" in world.bob.why(promotion, "deploy_production")
    assert world.live() == before
    world.lake.write_bytes(path, model)
    world.bob.clear(promotion, "deploy_production")
    live = world.live()
    assert live is not None
    assert live.version == version

    # In production's own lake: who has loaded it goes on, who comes to load it refuses.
    lake = Lake(str(world.stack.environment_lake("production")))
    served = f"models/{live.model_digest}.onnx"
    lake.write_bytes(served, swapped)
    token = world.stack.secrets["production"]
    with ModelClient(world.stack.server_url("production"), token) as client:
        assert client.metadata("small")["parameters"]["model_digest"] == live.model_digest
    server = Server(lake)
    try:
        with server.client() as client:
            wait_until(lambda: refused(client), "the second server has looked at the route")
            with pytest.raises(LifecycleError, match="IntegrityError"):
                client.metadata("small")
    finally:
        server.stop()
        lake.write_bytes(served, model)


def refused(client: ModelClient) -> bool:
    """Whether the server says why it serves nothing at the endpoint."""
    try:
        client.metadata("small")
    except LifecycleError as error:
        return "IntegrityError" in str(error)
    return False


def test_a_rewritten_ledger_is_found_out_and_stops_production(world: World) -> None:
    world.champion()
    live = world.live()
    _, promotion = world.candidate(world.bob)
    # Approved, but the deployment waits until the rewriting is done.
    world.bob.mark(promotion, "prepare_production", "deploy_production")
    world.answer(promotion, world.alice)
    with world.database.read() as connection:
        rows = connection.execute(select(ledger_table).order_by(ledger_table.c.seq)).all()
    with world.database.write() as connection:
        connection.execute(delete(ledger_table))
        for row in rows:
            payload = json.loads(row.payload) | ({"reason": "edited"} if row.seq == 1 else {})
            append_entry(connection, row.kind, row.model, payload, row.at, subject=row.subject, key=row.key)
    world.ledger.verify()  # by itself it looks as it should
    try:
        found = world.command("ledger", "verify")
        assert found.returncode == 1
        assert "the ledger was rewritten from entry 1 on, or later" in found.stderr
        assert world.command("live").returncode == 1
        world.bob.clear(promotion, "deploy_production")
        assert "LedgerError: the ledger was rewritten from entry 1 on" in world.bob.why(
            promotion, "deploy_production"
        )
        assert world.live() == live
    finally:
        with world.database.write() as connection:
            connection.execute(delete(ledger_table))
            connection.execute(insert(ledger_table), [row._asdict() for row in rows])
    assert world.command("ledger", "verify").returncode == 0
    world.bob.clear(promotion, "deploy_production")
    assert world.live() != live
