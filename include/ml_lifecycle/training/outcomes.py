"""What became of a pod, and what comes next: two pure functions, told everything and asking nobody.

A pod's end says little by itself: exit code 137 may be the kernel for want of memory, a node that was taken
away, or the user's own code. :func:`diagnose` puts together what the cluster says of the pod and what the pod
said of itself; :func:`next_launch` decides by the history of the attempts whether, and where, to start again.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    IntegrityError,
    LifecycleError,
    PodFailedError,
    PodSetupError,
    StaleAttemptError,
    TrainingError,
    TrialPrunedError,
    UnschedulableError,
)
from ml_lifecycle.spec.training import Pool, Recovery, Resources
from ml_lifecycle.training.job import Failure

OutcomeKind = Literal[
    "finished",  # there is a result
    "user_error",  # this and the next three: the same again would end the same
    "data",
    "conversion",
    "integrity",
    "memory",
    "deadline",
    "interrupted",  # evicted, preempted, deleted, or its node lost
    "never_started",  # scheduled or not, its code did not run
    "unschedulable",  # no node had room in time
    "setup",  # it can never start: no such image, command or secret
    "pruned",  # a trial of a search that was worse than others
    "superseded",  # a newer attempt of the same owner has begun
    "crashed",  # it ended with an exit code of its own and said nothing, as a segmentation fault does
    "unknown",
]

# What Kubernetes gives as a pod's reason when the infrastructure ended it.
_INFRASTRUCTURE = frozenset(
    {
        "Evicted",
        "Preempted",
        "Preempting",
        "NodeAffinity",
        "NodeLost",
        "NodeShutdown",
        "Shutdown",
        "Terminated",
        "UnexpectedAdmissionError",
        "ContainerStatusUnknown",
    }
)
# A container that waits, or never ran, for one of these never will.
_SETUP = frozenset(
    {
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ContainerCannotRun",
        "RunContainerError",
        "StartError",
        # What the API says of a pod that it does not take.
        "BadRequest",
        "Forbidden",
        "Invalid",
        "NotFound",
    }
)
ERRORS: dict[str, type[LifecycleError]] = {
    "user_error": TrainingError,
    "memory": TrainingError,
    "data": FeatureError,
    "conversion": ConversionError,
    "integrity": IntegrityError,
    "setup": PodSetupError,
    "superseded": StaleAttemptError,
    "pruned": TrialPrunedError,
}
"""What an outcome, or a pod's own failure, of a kind is raised as; the others are :class:`PodFailedError`."""

_LONGEST_DELAY = 60
_NO_QUOTA = "exceeded quota"  # in the message with which a ResourceQuota refuses a pod
_ASKED_TO_END = 128 + signal.SIGTERM
_KILLED = 128 + signal.SIGKILL  # by whom, nobody knows


@dataclass(frozen=True)
class PodFacts:
    """What the cluster says of a pod.

    :param gone: there is no such pod any more; the rest is what was known of it last
    :param deleted: somebody, or something, asked for its deletion
    :param started: its container ran at some time; :param running: it does now
    :param scheduled: it was given a node
    :param reason: the pod's; :param container_reason: why its container waits or ended
    :param disruption: what is behind an eviction, e.g. ``PreemptionByScheduler``
    :param image: what it ran in, by digest, as the node says it
    :param message: whatever text came with the most telling of these
    """

    name: str
    phase: str = ""
    reason: str = ""
    message: str = ""
    container_reason: str = ""
    exit_code: int | None = None
    started: bool = False
    running: bool = False
    scheduled: bool = False
    deleted: bool = False
    gone: bool = False
    disruption: str = ""
    memory_limit: str = ""
    image: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt, and in which words people should hear of it."""

    kind: OutcomeKind
    message: str = ""


@dataclass(frozen=True)
class Ended:
    """An attempt that is over, as the history has it.

    :param try_number: of the Airflow task: each has budgets of its own
    :param memory_factor: how many times the spec's memory it had
    """

    outcome: Outcome
    try_number: int
    pool: str = ""
    memory_factor: float = 1.0


@dataclass(frozen=True)
class Launch:
    """Where the next pod goes, with how many times the spec's memory, and how soon."""

    pool: Pool | None
    memory_factor: float = 1.0
    delay_seconds: int = 0


def pod_facts(pod: Mapping[str, Any], container: str = "base", gone: bool = False) -> PodFacts:
    """The facts in a pod as the Kubernetes API returns it (JSON names).

    :param container: the name of the container that trains
    """
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    states = {item.get("name"): item for item in status.get("containerStatuses") or ()}
    own = states.get(container) or {}
    state = own.get("state") or {}
    ended = state.get("terminated") or (own.get("lastState") or {}).get("terminated") or {}
    waiting = state.get("waiting") or {}
    scheduled = conditions.get("PodScheduled") or {}
    disrupted = conditions.get("DisruptionTarget") or {}
    limits = next(
        (
            (item.get("resources") or {}).get("limits") or {}
            for item in (pod.get("spec") or {}).get("containers") or ()
            if item.get("name") == container
        ),
        {},
    )
    running = state.get("running") is not None
    return PodFacts(
        name=str(metadata.get("name") or ""),
        phase=str(status.get("phase") or ""),
        reason=str(status.get("reason") or ""),
        message=str(
            ended.get("message")
            or waiting.get("message")
            or status.get("message")
            or ("" if scheduled.get("status") == "True" else scheduled.get("message"))
            or disrupted.get("message")
            or ""
        ),
        container_reason=str(ended.get("reason") or waiting.get("reason") or ""),
        exit_code=ended.get("exitCode"),
        running=running,
        started=running or (bool(ended.get("startedAt")) and ended.get("reason") not in _SETUP),
        scheduled=scheduled.get("status") == "True" or bool((pod.get("spec") or {}).get("nodeName")),
        deleted=bool(metadata.get("deletionTimestamp")),
        gone=gone,
        disruption=str(disrupted.get("reason") or "") if disrupted.get("status") == "True" else "",
        memory_limit=str(limits.get("memory") or ""),
        image=str(own.get("imageID") or ""),
    )


def refused(name: str, status: int | None, body: str | bytes | None) -> PodFacts | None:
    """The facts of a pod that the API did not take; None if it may take it another time.

    :param body: the Status object that it answered with
    """
    if status is None or not 400 <= status < 500 or status in (401, 408, 409, 429):
        return None
    try:
        said = json.loads(body or "{}")
        reason, message = str(said["reason"]), str(said["message"])
    except (ValueError, KeyError, TypeError):  # a proxy's page, or nothing
        reason, message = "BadRequest", f"HTTP {status}"
    return PodFacts(name, container_reason=reason, message=message)


def diagnose(
    facts: PodFacts | None, failure: Failure | None, usage: Mapping[str, float], cause: str
) -> Outcome:
    """What became of a pod that left no result.

    :param facts: None if there never was a pod
    :param failure: the pod's own account
    :param usage: what it had used when it last said so
    :param cause: what is known otherwise, e.g. why no pod could be made
    """
    if failure is not None and failure.kind == "superseded":
        return Outcome("superseded", failure.message)
    if facts is not None and facts.container_reason == "OOMKilled":
        return Outcome("memory", _out_of_memory(facts, usage))
    if failure is not None and failure.kind != "interrupted" and failure.kind != "error":
        return Outcome(failure.kind, failure.text)
    if facts is None:
        return Outcome("interrupted" if usage or failure else "never_started", cause)
    said = f": {facts.message}" if facts.message else ""
    if facts.reason == "DeadlineExceeded":
        return Outcome("deadline", f"pod {facts.name} ran past its deadline (training.timeout)")
    if _NO_QUOTA in facts.message:
        return Outcome("unschedulable", f"pod {facts.name} was not taken{said}")
    if facts.container_reason in _SETUP:
        return Outcome("setup", f"pod {facts.name} can never start: {facts.container_reason}{said}")
    if not facts.started and failure is None and not usage:
        if not facts.scheduled and not facts.deleted and not facts.gone and facts.phase in ("", "Pending"):
            return Outcome("unschedulable", f"no node had room for pod {facts.name}{said}")
        why = facts.disruption or facts.reason or facts.container_reason or cause
        return Outcome("never_started", f"pod {facts.name} did not start: {why}{said}")
    if why := _infrastructure(facts, failure):
        return Outcome("interrupted", f"pod {facts.name} was ended by the infrastructure: {why}{said}")
    if failure is not None:
        return Outcome("unknown", failure.text)
    code = f" with exit code {facts.exit_code}" if facts.exit_code is not None else ""
    crashed = facts.exit_code not in (None, 0, _KILLED)
    return Outcome(
        "crashed" if crashed else "unknown",
        f"pod {facts.name} ended{code} and left neither a result nor a failure{said}",
    )


def next_launch(
    recovery: Recovery,
    pools: Sequence[Pool],
    resources: Resources,
    history: Sequence[Ended],
    try_number: int = 1,
) -> Launch | LifecycleError:
    """Where to start the next pod, or the error that the task ends with.

    :param history: the owner's attempts that are over, oldest first
    :param try_number: of the task now: what ended earlier tries is no reason not to start this one
    """
    again = Launch(_pool(pools, history), history[-1].memory_factor if history else 1.0)
    here = [ended for ended in history if ended.try_number == try_number]
    if not here:
        return again
    last, outcome = here[-1], here[-1].outcome
    if outcome.kind == "finished":
        return again  # and what it left was torn meanwhile
    if outcome.kind == "interrupted":
        done = sum(ended.outcome.kind == "interrupted" for ended in here)
        if done <= recovery.interruptions:
            return again
        return PodFailedError(
            f"{outcome.message}\n  that was interruption {done}: training.recovery.interruptions allows "
            f"{recovery.interruptions}; a retry goes on from the newest checkpoint"
        )
    if outcome.kind == "never_started":
        done = sum(ended.outcome.kind == "never_started" for ended in here)
        if done <= recovery.launches:
            return replace(again, delay_seconds=min(2 ** (done - 1), _LONGEST_DELAY))
        return PodFailedError(
            f"{outcome.message}\n  that was launch {done} in vain: training.recovery.launches allows "
            f"{recovery.launches}"
        )
    if outcome.kind == "unschedulable":
        tried = {ended.pool for ended in here if ended.outcome.kind == "unschedulable"}
        if again.pool is not None and again.pool.name not in tried:
            return again
        return UnschedulableError(f"{outcome.message} ({_asked(resources, last)})")
    if outcome.kind == "memory":
        if recovery.memory_factor is not None and last.memory_factor == 1:
            return Launch(again.pool, recovery.memory_factor)
        return TrainingError(
            f"{outcome.message}\n  ask for more under training.resources.memory, or for fewer rows"
        )
    return ERRORS.get(outcome.kind, PodFailedError)(outcome.message)


def _infrastructure(facts: PodFacts, failure: Failure | None) -> str:
    """Why it was ended from outside; nothing if nothing speaks for it."""
    if facts.disruption:
        return facts.disruption
    for reason in (facts.reason, facts.container_reason):
        if reason in _INFRASTRUCTURE:
            return reason
    if facts.deleted or facts.gone:
        return "it was deleted"
    if (failure is not None and failure.kind == "interrupted") or facts.exit_code == _ASKED_TO_END:
        return "it was asked to end (SIGTERM)"
    return ""


def _out_of_memory(facts: PodFacts, usage: Mapping[str, float]) -> str:
    limit = f" of {facts.memory_limit}" if facts.memory_limit else ""
    peak = usage.get("peak_memory_bytes")
    seen = f"; shortly before it held {peak / 2**30:.2f} GiB" if peak else ""
    return f"out of memory: pod {facts.name} was killed at its limit{limit}{seen}"


def _pool(pools: Sequence[Pool], history: Sequence[Ended]) -> Pool | None:
    """The first pool that has not interrupted too often; the last one has no such bound."""
    for pool in pools[:-1]:
        interrupted = sum(
            ended.outcome.kind == "interrupted" and ended.pool == pool.name for ended in history
        )
        full = any(ended.outcome.kind == "unschedulable" and ended.pool == pool.name for ended in history)
        if not full and (pool.interruptions is None or interrupted < pool.interruptions):
            return pool
    return pools[-1] if pools else None


def _asked(resources: Resources, last: Ended) -> str:
    gpu = f", {resources.gpu_resource} {resources.gpu}" if resources.gpu else ""
    where = f" in pool {last.pool}" if last.pool else ""
    return f"it asks for cpu {resources.cpu}, memory {resources.memory}{gpu}{where}"
