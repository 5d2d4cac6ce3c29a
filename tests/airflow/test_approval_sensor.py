"""The approval: who is asked, what is shown, and what the ledger keeps of each answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput
from airflow.sdk.execution_time.comms import CreateHITLDetailPayload
from delivery_kit import confirm_staging, make_candidate

from ml_lifecycle.ledger.ledger import DECISION, Ledger, withdraw_approval
from ml_lifecycle.ledger.requests import open_requests
from ml_lifecycle.records import Approval, Evidence, from_json, to_json
from ml_lifecycle_airflow.sensors.approve import ApprovalSensor

from .conftest import NOW, World

Context = Callable[..., Any]
PROMOTE = {"dag_id": "delays__promote", "run_id": "candidate__v1"}


@pytest.fixture
def evidence(world: World) -> Evidence:
    """Of version 1, whose training ``ann`` started; staging has confirmed it."""
    candidate = make_candidate(world.lake, 1, b"model")
    world.file(candidate.version)
    made = candidate.evidence(world.lake)
    confirm_staging(world.database, made)
    return made


def sensor(world: World, evidence: Evidence) -> ApprovalSensor:
    return ApprovalSensor(
        task_id="approve", folder=world.path, evidence=to_json(evidence), deadline=timedelta(days=3)
    )


def asked(world: World, evidence: Evidence, context: Any) -> ApprovalSensor:
    """The sensor once it waits."""
    waiting = sensor(world, evidence)
    with pytest.raises(TaskAwaitingInput) as parked:
        waiting.execute(context)
    assert parked.value.method_name == "execute_complete"
    assert parked.value.timeout == timedelta(days=3)
    return waiting


def answer(option: str, user: str | None, reason: str | None = "because") -> dict[str, Any]:
    """As Airflow hands it to the task."""
    by = None if user is None else {"id": user, "name": user}
    return {
        "chosen_options": [option],
        "params_input": {"reason": reason},
        "responded_at": NOW + timedelta(hours=1),
        "responded_by_user": by,
    }


def shown(supervisor: Any) -> list[Any]:
    """What people were asked."""
    messages = [call.kwargs.get("msg") for call in supervisor.send.call_args_list]
    return [message for message in messages if isinstance(message, CreateHITLDetailPayload)]


def decisions(world: World) -> list[tuple[Any, Any, Any]]:
    ledger = Ledger(world.database)
    ledger.verify()
    entries = [entry for entry in ledger.entries("delays") if entry.kind == DECISION]
    return [(entry.payload["decision"], entry.payload["user"], entry.payload["reason"]) for entry in entries]


def test_it_parks_with_the_page_and_asks_only_those_who_may(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE, triggering_user_name="ben"))
    (detail,) = shown(supervisor)
    assert [user.id for user in detail.assigned_users] == ["cem"]
    assert detail.options == ["Approve", "Reject"]
    assert detail.subject == "delays: may version 1 go to production?"
    assert evidence.digest in detail.body
    assert "| rmse | passed | at most 10 | 7.25 | 8.5 |" in detail.body
    assert "(/ml-lifecycle/reports/report.json)" in detail.body
    assert detail.defaults is None
    assert list(detail.params) == ["reason"]
    (request,) = open_requests(world.database, "delays")
    assert (request.assigned, request.evidence_digest) == (("cem",), evidence.digest)


def test_of_a_scheduled_promotion_only_the_training_s_starter_is_left_out(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    users = shown(supervisor)[0].assigned_users
    assert [user.id for user in users] == ["ben", "cem"]


def test_with_nobody_left_it_fails_at_once_and_asks_nobody(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    alone = world.edit("model.yaml", "users: [ann, ben, cem]", "users: [ann, ben]")
    with pytest.raises(AirflowFailException, match="nobody may approve delays 1"):
        sensor(alone, evidence).execute(context("approve", **PROMOTE, triggering_user_name="ben"))
    assert shown(supervisor) == []
    assert open_requests(world.database, "delays") == []


def test_evidence_that_was_changed_on_its_way_is_not_shown(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    forged = {**to_json(evidence), "model_digest": "0" * 64}
    waiting = ApprovalSensor(
        task_id="approve", folder=world.path, evidence=forged, deadline=timedelta(days=3)
    )
    with pytest.raises(AirflowFailException, match="RecordMismatchError"):
        waiting.execute(context("approve", **PROMOTE))
    assert shown(supervisor) == []


def test_without_evidence_it_fails_at_once(world: World, context: Context, supervisor: Any) -> None:
    """As when the task before was marked as success and returned nothing."""
    waiting = ApprovalSensor(task_id="approve", folder=world.path, evidence=None, deadline=timedelta(days=3))
    with pytest.raises(AirflowFailException, match="expected a record of schema 'evidence/1', got None"):
        waiting.execute(context("approve", **PROMOTE))
    assert shown(supervisor) == []


def test_what_staging_has_not_confirmed_is_not_asked_about(
    world: World, context: Context, supervisor: Any
) -> None:
    candidate = make_candidate(world.lake, 2, b"never staged")
    world.file(candidate.version)
    waiting = sensor(world, candidate.evidence(world.lake))
    with pytest.raises(AirflowFailException, match="NotConfirmedError: staging has not confirmed version 2"):
        waiting.execute(context("approve", **PROMOTE))
    assert shown(supervisor) == []
    assert open_requests(world.database) == []


def test_a_yes_is_written_to_the_ledger_with_the_evidence_s_digest(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    # Another process resumes the task: a fresh operator.
    record = sensor(world, evidence).execute_complete(context("approve", **PROMOTE), answer("Approve", "cem"))
    approval = from_json(Approval, record)
    assert (approval.approved_by, approval.evidence_digest) == ("cem", evidence.digest)
    assert approval.approved_at == NOW + timedelta(hours=1)
    assert Ledger(world.database).approval_for(evidence.digest) == approval
    assert decisions(world) == [("approve", "cem", "because")]
    assert open_requests(world.database) == []


def test_a_no_fails_at_once_and_is_written_too(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    with pytest.raises(AirflowFailException, match="rejected by ben: because"):
        sensor(world, evidence).execute_complete(context("approve", **PROMOTE), answer("Reject", "ben"))
    assert decisions(world) == [("reject", "ben", "because")]
    assert Ledger(world.database).approval_for(evidence.digest) is None


def test_no_answer_by_the_deadline_is_a_no_by_nobody(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    late = {"error": "timeout", "error_type": "timeout"}
    with pytest.raises(AirflowFailException, match="rejected by nobody, its deadline passed"):
        sensor(world, evidence).execute_complete(context("approve", **PROMOTE), late)
    assert decisions(world) == [("reject", None, "")]


def test_a_yes_after_the_deadline_is_the_no_that_the_deadline_was(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    (request,) = open_requests(world.database)
    assert request.deadline is not None
    assert request.deadline - request.opened_at == timedelta(days=3)
    late = {**answer("Approve", "cem"), "responded_at": request.deadline}
    with pytest.raises(AirflowFailException, match="by nobody, its deadline passed: cem answered at"):
        sensor(world, evidence).execute_complete(context("approve", **PROMOTE), late)
    ((decision, user, reason),) = decisions(world)
    assert (decision, user) == ("reject", None)
    assert reason.startswith("cem answered at ")
    assert Ledger(world.database).approval_for(evidence.digest) is None


@pytest.mark.parametrize("user", ["ann", "mallory", None])
def test_a_yes_from_anyone_else_counts_for_nothing(
    world: World, evidence: Evidence, context: Context, supervisor: Any, user: str | None
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    with pytest.raises(AirflowFailException, match="may not answer for delays 1: assigned are ben, cem"):
        sensor(world, evidence).execute_complete(context("approve", **PROMOTE), answer("Approve", user))
    assert decisions(world) == []
    assert Ledger(world.database).approval_for(evidence.digest) is None


def test_an_answer_about_other_evidence_counts_for_nothing(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    other = make_candidate(world.lake, 2, b"other").evidence(world.lake)
    with pytest.raises(AirflowFailException, match="is about evidence"):
        sensor(world, other).execute_complete(context("approve", **PROMOTE), answer("Approve", "cem"))
    assert Ledger(world.database).approval_for(other.digest) is None


def test_resuming_twice_writes_once(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    first, second = (
        sensor(world, evidence).execute_complete(context("approve", **PROMOTE), answer("Approve", "cem"))
        for _ in range(2)
    )
    assert first == second
    assert len(decisions(world)) == 1


def test_a_yes_that_airflow_lost_after_it_was_written_is_not_asked_for_again(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    """Airflow's scheduler gives up an attempt whose answer came before it had put the attempt away."""
    first, second = context("approve", **PROMOTE), context("approve", **PROMOTE)
    second["ti"].try_number = 2
    written = asked(world, evidence, first).execute_complete(first, answer("Approve", "cem"))
    assert sensor(world, evidence).execute(second) == written
    assert (len(shown(supervisor)), len(decisions(world))) == (1, 1)


@pytest.mark.parametrize("by", ["another run", "a rollback"])
def test_a_yes_that_is_another_s_or_was_taken_back_is_asked_for_again(
    world: World, evidence: Evidence, context: Context, supervisor: Any, by: str
) -> None:
    first = context("approve", **PROMOTE)
    asked(world, evidence, first).execute_complete(first, answer("Approve", "cem"))
    again = context("approve", **(PROMOTE | {"run_id": "by hand"} if by == "another run" else PROMOTE))
    again["ti"].try_number = 2
    if by == "a rollback":
        with world.database.write() as connection:
            withdraw_approval(connection, "delays", evidence.digest, "ben", "bad", NOW)
    asked(world, evidence, again)
    assert len(shown(supervisor)) == 2


def test_an_empty_reason_and_none_are_both_no_reason(
    world: World, evidence: Evidence, context: Context, supervisor: Any
) -> None:
    asked(world, evidence, context("approve", **PROMOTE))
    sensor(world, evidence).execute_complete(
        context("approve", **PROMOTE), answer("Approve", "cem", reason=None)
    )
    assert decisions(world) == [("approve", "cem", "")]


def test_a_dag_s_params_are_no_fields_of_the_form(world: World, evidence: Evidence) -> None:
    from airflow.sdk import DAG, Param

    with DAG("d", schedule=None, params={"version": Param(type="string", default="1")}):
        assert list(sensor(world, evidence).serialized_params) == ["reason"]
