"""A release in a task: deployed to a running server, watched, and left to people when it stays undecided."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException, TaskDeferred
from delivery_kit import TOKEN, Candidate, Server, approve, make_candidate, make_golden, make_model

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.ledger.database import DatabaseUnavailableError
from ml_lifecycle.records import Evidence, Release, from_json, to_json
from ml_lifecycle_airflow.dag_builder import lifecycle_dags
from ml_lifecycle_airflow.operators.base import Resources
from ml_lifecycle_airflow.operators.deploy import DeployOperator, RollbackOperator
from ml_lifecycle_airflow.operators.watch import WatchOperator
from ml_lifecycle_airflow.triggers.watch import NextLookTrigger

from .conftest import World

Context = Callable[..., Any]
CANARY = "delivery: {strategy: canary, steps: [50], watch: {every: 7s, latency: null}}\ntask:"


@pytest.fixture
def canary(world: World, connect: Any) -> Iterator[World]:
    """Version 1 is live in production, and releases are canaries."""
    production = str(world.root / "production")
    server = Server(Lake(production))
    connect("l2", extra={"url": production})
    connect("s2", host=server.url, password=TOKEN)
    changed = world.edit("model.yaml", "task:", CANARY)
    yield changed
    server.stop()


def promoted(world: World, context: Context, number: int) -> tuple[Evidence, Release]:
    """Version ``number`` is approved, and deployed by its task."""
    evidence = approved(world, number)
    return evidence, from_json(Release, deploying(world, evidence).execute(context()))


def approved(world: World, number: int) -> Evidence:
    candidate: Candidate = make_candidate(world.lake, number, make_model(number), make_golden(number))
    world.file(candidate.version)
    world.lake.write_bytes(f"{candidate.training.training_set_path.rsplit('/', 1)[0]}/registry.pb", b"")
    champion = Releases(world.database).champion("delays")
    evidence = candidate.evidence(world.lake, champion)
    approve(world.database, evidence, champion)
    return evidence


def deploying(world: World, evidence: Evidence) -> DeployOperator:
    return DeployOperator(
        task_id="deploy", folder=world.path, evidence=to_json(evidence), environment="production"
    )


def watching(world: World, evidence: Evidence) -> WatchOperator:
    return WatchOperator(task_id="watch", folder=world.path, evidence=to_json(evidence))


def test_a_watch_waits_in_the_triggerer_until_the_release_is_over(canary: World, context: Context) -> None:
    first, release = promoted(canary, context, 1)
    assert release.state == "confirmed", "the first has nothing to be compared with"
    assert watching(canary, first).execute(context())["release"]["version"] == "1"
    second, release = promoted(canary, context, 2)
    assert release.state == "applied"
    with pytest.raises(TaskDeferred) as deferred:
        watching(canary, second).execute(context())
    trigger = deferred.value.trigger
    assert isinstance(trigger, NextLookTrigger)
    ahead = datetime.fromisoformat(trigger.moment) - datetime.now(UTC)
    assert timedelta() < ahead <= canary.folder.spec.delivery.watch.every
    assert deferred.value.method_name == "execute_complete"
    with pytest.raises(TaskDeferred):
        watching(canary, second).execute_complete(context(), None)

    decided = {"conf": {"version": "2", "all_traffic": True}, "triggering_user_name": "eve"}
    with pytest.raises(AirflowFailException, match="eve may not decide"):
        watching(canary, second).execute(context(**decided))
    done = watching(canary, second).execute(context(**{**decided, "triggering_user_name": "cem"}))
    assert (done["release"]["state"], done["step"]) == ("confirmed", "champion")
    assert done["release"]["reason"] == "given all traffic by cem"


def test_one_that_people_took_back_fails_its_watch(canary: World, context: Context) -> None:
    promoted(canary, context, 1)
    second, _ = promoted(canary, context, 2)
    conf = {"conf": {"reason": "complaints"}, "triggering_user_name": "ben"}
    back = RollbackOperator(task_id="back", folder=canary.path).execute(context(**conf))
    assert (back["version"], back["kind"]) == ("1", "restore")
    with pytest.raises(AirflowFailException, match=r"version 2 of delays failed in production.*complaints"):
        watching(canary, second).execute(context())


def test_a_blocking_watch_looks_again_by_itself(
    canary: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(canary, context, 1)
    second, _ = promoted(canary, context, 2)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            RollbackOperator(task_id="back", folder=canary.path).execute(context())

    monkeypatch.setattr(Resources, "clock", lambda _: Clock(now=lambda: datetime.now(UTC), sleep=sleep))
    task = WatchOperator(task_id="w", folder=canary.path, evidence=to_json(second), deferrable=False)
    with pytest.raises(AirflowFailException, match="rolled back by hand"):
        task.execute(context())
    assert slept[:2] == [7.0, 7.0]


def test_a_second_candidate_waits_without_a_worker_until_the_first_was_taken_back(
    canary: World, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(canary, context, 1)
    second, third = approved(canary, 2), approved(canary, 3)
    deploying(canary, second).execute(context())
    before = datetime.now(UTC)
    with pytest.raises(AirflowRescheduleException) as waiting:
        deploying(canary, third).execute(context())
    assert before < waiting.value.reschedule_date - timedelta(seconds=7) < datetime.now(UTC)
    said = capsys.readouterr().out
    assert "Waiting for its end: production/delays revision 3 (version 2, canary 0.5)" in said
    RollbackOperator(task_id="back", folder=canary.path).execute(context())
    released = deploying(canary, third).execute(context())
    assert (released["version"], released["state"]) == ("3", "applied")


def test_a_second_candidate_fails_once_the_first_became_champion(canary: World, context: Context) -> None:
    promoted(canary, context, 1)
    second, third = approved(canary, 2), approved(canary, 3)
    deploying(canary, second).execute(context())
    with pytest.raises(AirflowRescheduleException):
        deploying(canary, third).execute(context())
    decided = {"conf": {"version": "2", "all_traffic": True}, "triggering_user_name": "cem"}
    watching(canary, second).execute(context(**decided))
    with pytest.raises(AirflowFailException, match="but version 2 is champion: evaluate it again"):
        deploying(canary, third).execute(context())


def test_an_outage_ends_no_wait_for_another_release(
    canary: World, context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(canary, context, 1)
    second, third = approved(canary, 2), approved(canary, 3)
    deploying(canary, second).execute(context())
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_DATABASE", json.dumps({"extra": NO_DATABASE}))
    with pytest.raises(AirflowRescheduleException):
        deploying(canary, third).execute({**context(), "task_reschedule_count": 1})
    assert "Cannot deploy now, and will try again: DatabaseUnavailableError" in capsys.readouterr().out
    with pytest.raises(DatabaseUnavailableError):
        deploying(canary, third).execute(context())


# Port 9 is nobody's: what does not answer refuses at once.
NO_STORE = {
    "url": "s3://bucket/production",
    "storage_options": {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-central-1"},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    },
}
NO_DATABASE = {"url": "postgresql://nobody@127.0.0.1:9/none"}


@pytest.mark.parametrize(
    ("connection", "extra", "said"),
    [
        ("l2", NO_STORE, "ServerUnavailableError: a lake does not answer"),
        ("ml_lifecycle_lake", NO_STORE, "ServerUnavailableError: a lake does not answer"),
        ("ml_lifecycle_database", NO_DATABASE, "DatabaseUnavailableError: the lifecycle database"),
    ],
)
def test_an_outage_does_not_end_a_watch(
    canary: World,
    context: Context,
    connect: Any,
    capsys: pytest.CaptureFixture[str],
    connection: str,
    extra: dict[str, Any],
    said: str,
) -> None:
    promoted(canary, context, 1)
    second, _ = promoted(canary, context, 2)
    with pytest.MonkeyPatch.context() as outage:
        outage.setenv(f"AIRFLOW_CONN_{connection.upper()}", json.dumps({"extra": extra}))
        with pytest.raises(TaskDeferred):
            watching(canary, second).execute_complete(context(), None)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "Cannot look now" in line]
    assert "will again every 0:00:07. Meanwhile the release keeps its share" in warning
    assert said in warning
    decided = {"conf": {"version": "2", "all_traffic": True}, "triggering_user_name": "cem"}
    done = watching(canary, second).execute_complete(context(**decided), None)
    assert done["release"]["state"] == "confirmed"


def test_a_blocking_watch_sleeps_through_an_outage(
    canary: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted(canary, context, 1)
    second, _ = promoted(canary, context, 2)
    place = canary.root / "lifecycle.db"
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            place.rmdir()
            (canary.root / "elsewhere").rename(place)
            RollbackOperator(task_id="back", folder=canary.path).execute(context())

    monkeypatch.setattr(Resources, "clock", lambda _: Clock(now=lambda: datetime.now(UTC), sleep=sleep))
    task = WatchOperator(task_id="w", folder=canary.path, evidence=to_json(second), deferrable=False)
    place.rename(canary.root / "elsewhere")
    place.mkdir()  # no file that can be opened
    with pytest.raises(AirflowFailException, match="rolled back by hand"):
        task.execute(context())
    assert slept[0] == 7.0


def test_what_no_time_mends_ends_a_watch(canary: World, context: Context) -> None:
    promoted(canary, context, 1)
    second, release = promoted(canary, context, 2)
    production = Lake(str(canary.root / "production"))
    baseline = f"watches/delays/baselines/{release.previous_revision}-{second.digest}.json"
    production.write_json(baseline, ["no record"])
    with pytest.raises(AirflowFailException, match="RecordError"):
        watching(canary, second).execute(context())
    production.delete(baseline)
    (canary.root / "production/watches/delays/00000003/judgement.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        watching(canary, second).execute(context())


def test_every_promotion_ends_with_a_watch(world: World) -> None:
    dag = lifecycle_dags(str(Path(world.path) / "dag.py"))["delays__promote"]
    after = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert after["deploy_production"] == {"watch_production"}
    assert after["watch_production"] == {"mark_champion"}
    assert len({task.retries for task in dag.tasks}) == 1, "an outage uses up none"
