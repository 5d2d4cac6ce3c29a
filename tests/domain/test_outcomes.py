"""What a pod's end means, and what comes next, by table."""

from __future__ import annotations

from typing import Any

import pytest

from ml_lifecycle.errors import (
    ConversionError,
    LifecycleError,
    PodFailedError,
    PodSetupError,
    StaleAttemptError,
    TrainingError,
    UnschedulableError,
)
from ml_lifecycle.spec.training import Pool, Recovery, Resources
from ml_lifecycle.training.job import Failure
from ml_lifecycle.training.outcomes import (
    Ended,
    Launch,
    Outcome,
    OutcomeKind,
    PodFacts,
    diagnose,
    next_launch,
    pod_facts,
    refused,
)

STARTED = "2026-03-01T12:00:00Z"
SCHEDULED = {"type": "PodScheduled", "status": "True"}


def pod(
    phase: str = "Failed",
    *,
    state: dict[str, Any] | None = None,
    reason: str = "",
    message: str = "",
    conditions: tuple[dict[str, Any], ...] = (SCHEDULED,),
    **metadata: Any,
) -> dict[str, Any]:
    """A pod as the API returns it."""
    container = {"name": "base", "state": state, "lastState": {}}
    return {
        "metadata": {"name": "train", **metadata},
        "spec": {"containers": [{"name": "base", "resources": {"limits": {"memory": "2Gi"}}}]},
        "status": {
            "phase": phase,
            "reason": reason or None,
            "message": message or None,
            "conditions": list(conditions),
            "containerStatuses": [container] if state is not None else None,
        },
    }


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": STARTED, **more}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 too small"}
PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}

# The pod, what it said of itself, what it is, and what of it people read.
ENDS: dict[str, tuple[dict[str, Any], Failure | None, OutcomeKind, str]] = {
    "evicted": (pod(reason="Evicted", message="low on disk"), None, "never_started", "Evicted: low on disk"),
    "evicted while it ran": (
        pod(reason="Evicted", message="low on disk", state=ended(137)),
        None,
        "interrupted",
        "ended by the infrastructure: Evicted: low on disk",
    ),
    "preempted": (
        pod(state=ended(143), conditions=(SCHEDULED, PREEMPTED)),
        None,
        "interrupted",
        "Preemption",
    ),
    "its node was lost": (
        pod(state=ended(137, "ContainerStatusUnknown")),
        None,
        "interrupted",
        "ContainerStatusUnknown",
    ),
    "deleted from outside": (
        pod("Running", state={"running": {"startedAt": STARTED}}, deletionTimestamp=STARTED),
        None,
        "interrupted",
        "it was deleted",
    ),
    "asked to end": (pod(state=ended(143)), Failure("interrupted", "SIGTERM"), "interrupted", "SIGTERM"),
    "out of memory": (
        pod(state=ended(137, "OOMKilled")),
        None,
        "memory",
        "limit of 2Gi; shortly before",
    ),
    "out of memory in the code": (
        pod(state=ended(1)),
        Failure("memory", "out of memory while training"),
        "memory",
        "while training",
    ),
    "its own fault": (
        pod(state=ended(1)),
        Failure("user_error", "train() raised", ("line 3",)),
        "user_error",
        "train() raised\n  line 3",
    ),
    "past its deadline": (
        pod(reason="DeadlineExceeded", state=ended(143)),
        Failure("interrupted", "SIGTERM"),
        "deadline",
        "training.timeout",
    ),
    "no room": (pod("Pending", conditions=(UNSCHEDULED,)), None, "unschedulable", "train: 1 too small"),
    "no such image": (
        pod("Pending", state=waiting("InvalidImageName", "cannot parse")),
        None,
        "setup",
        "can never start: InvalidImageName: cannot parse",
    ),
    "an image that does not come": (
        pod("Pending", state=waiting("ImagePullBackOff", "registry away")),
        None,
        "never_started",
        "did not start: ImagePullBackOff: registry away",
    ),
    "no such command": (
        pod(state=ended(128, "StartError", message="exec")),
        None,
        "setup",
        "StartError: exec",
    ),
    "the node had no room after all": (pod(reason="OutOfcpu"), None, "never_started", "OutOfcpu"),
    "it went without a word": (
        pod(state=ended(9)),
        None,
        "crashed",
        "exit code 9 and left neither",
    ),
    "an error nobody knows": (
        pod(state=ended(1)),
        Failure("error", "KeyError", ("line 1",)),
        "unknown",
        "KeyError\n  line 1",
    ),
    "another has begun": (pod(state=ended(1)), Failure("superseded", "newer"), "superseded", "newer"),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_is_what_it_is(name: str) -> None:
    manifest, failure, kind, words = ENDS[name]
    usage = {"peak_memory_bytes": 1.5 * 2**30} if name == "out of memory" else {}
    found = diagnose(pod_facts(manifest), failure, usage, "cause")
    assert found.kind == kind, found
    assert words in found.message


def test_a_pod_that_is_gone_was_interrupted_if_it_had_run() -> None:
    assert diagnose(None, None, {}, "no pod") == Outcome("never_started", "no pod")
    assert diagnose(None, None, {"wall_seconds": 3.0}, "no pod").kind == "interrupted"
    gone = pod_facts({"metadata": {"name": "train"}}, gone=True)
    assert diagnose(gone, None, {"wall_seconds": 3.0}, "").kind == "interrupted"
    assert diagnose(gone, None, {}, "").kind == "never_started"


def test_a_pod_that_is_not_taken() -> None:
    quota = b'{"reason": "Forbidden", "message": "pods train is forbidden: exceeded quota: gpus"}'
    found = diagnose(refused("train", 403, quota), None, {}, "")
    assert (found.kind, "exceeded quota: gpus" in found.message) == ("unschedulable", True)
    for status, body in ((422, b'{"reason": "Invalid", "message": "no"}'), (404, b"<html>"), (403, None)):
        assert diagnose(refused("train", status, body), None, {}, "").kind == "setup"
    for status in (None, 401, 409, 429, 500, 503):
        assert refused("train", status, b"") is None, "it may be taken another time"


SPOT, BOUGHT = Pool(name="spot", interruptions=2), Pool(name="bought")


def history(*kinds: str, try_number: int = 1, pool: str = "", factor: float = 1.0) -> list[Ended]:
    made: Any = [Ended(Outcome(kind, kind), try_number, pool, factor) for kind in kinds]  # type: ignore[arg-type]
    return list(made)


def decided(
    ends: list[Ended], *pools: Pool, try_number: int | None = None, **recovery: Any
) -> Launch | LifecycleError:
    now = try_number or (ends[-1].try_number if ends else 1)
    return next_launch(Recovery(**recovery), pools, Resources(), ends, now)


def test_the_first_pod_goes_to_the_first_pool() -> None:
    assert decided([]) == Launch(None)
    assert decided([], SPOT, BOUGHT) == Launch(SPOT)


def test_interruptions_have_a_budget_of_their_own_in_each_try() -> None:
    three = history(*["interrupted"] * 3)
    assert decided(three, interruptions=3) == Launch(None)
    given_up = decided(three, interruptions=2)
    assert isinstance(given_up, PodFailedError)
    assert "that was interruption 3" in str(given_up)
    assert given_up.retryable
    assert decided([*three, *history("interrupted", try_number=2)], interruptions=2) == Launch(None)
    assert decided(three, interruptions=2, try_number=2) == Launch(None)
    assert decided(history("user_error"), try_number=2) == Launch(None), "somebody cleared it, and knows why"


def test_after_too_many_interruptions_the_next_pool_is_taken_for_good() -> None:
    once = history("interrupted", pool="spot")
    assert decided(once, SPOT, BOUGHT) == Launch(SPOT)
    assert decided(once * 2, SPOT, BOUGHT) == Launch(BOUGHT)
    later = history("interrupted", pool="bought", try_number=2)
    assert decided([*once * 2, *later], SPOT, BOUGHT) == Launch(BOUGHT)
    assert decided(once * 9, SPOT) == Launch(SPOT), "there is no other"


def test_what_never_started_is_launched_again_ever_later() -> None:
    delays = [decided(history(*["never_started"] * n), launches=8) for n in (1, 2, 3, 8)]
    assert [launch.delay_seconds for launch in delays if isinstance(launch, Launch)] == [1, 2, 4, 60]
    given_up = decided(history(*["never_started"] * 3), launches=2)
    assert isinstance(given_up, PodFailedError)
    assert "launch 3 in vain" in str(given_up)


def test_where_there_is_no_room_the_next_pool_is_asked() -> None:
    assert decided(history("unschedulable", pool="spot"), SPOT, BOUGHT) == Launch(BOUGHT)
    both = [*history("unschedulable", pool="spot"), *history("unschedulable", pool="bought")]
    none = decided(both, SPOT, BOUGHT)
    assert isinstance(none, UnschedulableError)
    assert none.retryable
    assert "memory 2Gi in pool bought" in str(none)
    assert isinstance(decided(history("unschedulable")), UnschedulableError)
    assert decided(both, SPOT, BOUGHT, try_number=2) == Launch(BOUGHT)


def test_out_of_memory_is_tried_once_with_more_if_the_spec_says_so() -> None:
    assert isinstance(decided(history("memory")), TrainingError)
    assert decided(history("memory"), memory_factor=1.5) == Launch(None, 1.5)
    assert decided(history("interrupted", factor=1.5), memory_factor=1.5) == Launch(None, 1.5), "it keeps it"
    twice = [*history("memory"), *history("memory", factor=1.5)]
    error = decided(twice, memory_factor=1.5)
    assert isinstance(error, TrainingError)
    assert "ask for more under training.resources.memory" in str(error)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("user_error", TrainingError),
        ("conversion", ConversionError),
        ("setup", PodSetupError),
        ("superseded", StaleAttemptError),
        ("unknown", PodFailedError),
        ("deadline", PodFailedError),
    ],
)
def test_the_rest_ends_the_task(kind: str, error: type[LifecycleError]) -> None:
    found = decided(history(kind))
    assert type(found) is error
    assert str(found) == kind
    assert found.retryable == (error is PodFailedError)


def test_facts_of_a_pod_that_runs() -> None:
    facts = pod_facts(pod("Running", state={"running": {"startedAt": STARTED}}))
    assert facts == PodFacts(
        "train", "Running", started=True, running=True, scheduled=True, memory_limit="2Gi"
    )
