"""A pod's life as data: what happened to it, and how the API shows that. No HTTP, no processes, no clock.

Times are seconds since the epoch. A pod goes Pending → Running → Succeeded or Failed and never back. Being
told to stop (deleted, evicted, out of time or memory) is noted first and shows once its process is gone.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ml_lifecycle.localpods.environment import NODE_NAME
from ml_lifecycle.localpods.manifest import PodSpec, check_pod
from ml_lifecycle.quantity import GPU, Amounts, insufficient, subtract

# Why a pod is made to stop. All but OOMKilled become its status.reason; a deleted pod has no reason.
Ending = Literal["Evicted", "DeadlineExceeded", "OOMKilled", "Terminated"]

KILLED = 128 + signal.SIGKILL


def rfc3339(moment: float | None) -> str | None:
    """Seconds since the epoch as the API writes times: UTC, whole seconds."""
    return None if moment is None else datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Exit:
    """How a container ended.

    :param code: its exit code; 128 + n for signal n
    :param reason: if it is other than Completed (0) or Error
    """

    code: int
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened to a pod, for people to read."""

    version: int
    at: float
    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass
class Pod:
    """One pod. ``manifest`` is as it was accepted; everything else is what happened since.

    :param version: rises with each change of any pod
    :param unschedulable: why it does not start yet
    :param gpus: the devices it holds while it runs
    :param kill_at: when SIGKILL follows the SIGTERM that was sent
    """

    manifest: dict[str, Any]
    namespace: str
    uid: str
    created_at: float
    version: int = 0
    unschedulable: str | None = None
    gpus: list[int] = field(default_factory=list)
    started_at: float | None = None
    finished_at: float | None = None
    exit: Exit | None = None
    ending: Ending | None = None
    ending_message: str | None = None
    kill_at: float | None = None
    deleted_at: float | None = None
    grace_seconds: float | None = None
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spec: PodSpec = check_pod(self.manifest, self.namespace)

    @property
    def name(self) -> str:
        """Unique among the namespace's pods."""
        return self.spec.name

    @property
    def metadata(self) -> dict[str, Any]:
        """The manifest's metadata with what the server gives it."""
        return {
            **self.manifest["metadata"],
            "namespace": self.namespace,
            "uid": self.uid,
            "resourceVersion": str(self.version),
            "creationTimestamp": rfc3339(self.created_at),
        }

    @property
    def labels(self) -> Mapping[str, str]:
        """Empty if it has none."""
        return self.manifest["metadata"].get("labels") or {}

    @property
    def pending(self) -> bool:
        """Waits for room."""
        return self.started_at is None and self.finished_at is None

    @property
    def running(self) -> bool:
        """Its process has been started and has not been seen to end."""
        return self.started_at is not None and self.finished_at is None

    @property
    def finished(self) -> bool:
        """Nothing of it runs or will."""
        return self.finished_at is not None

    @property
    def gone(self) -> bool:
        """Deleted and ended: a tombstone, there so that whoever still reads it finds its end and its log."""
        return self.finished and self.deleted_at is not None

    @property
    def phase(self) -> str:
        """As Kubernetes names it."""
        if self.pending:
            return "Pending"
        if self.running:
            return "Running"
        succeeded = self.exit is not None and self.exit.code == 0 and self.ending is None
        return "Succeeded" if succeeded else "Failed"

    @property
    def deadline(self) -> float | None:
        """When ``activeDeadlineSeconds`` is over."""
        if self.started_at is None or self.spec.deadline_seconds is None:
            return None
        return self.started_at + self.spec.deadline_seconds

    def start(self, now: float, gpus: Iterable[int] = ()) -> None:
        """It has room and is given ``gpus``."""
        self.started_at = now
        self.unschedulable = None
        self.gpus = list(gpus)

    def end(self, ending: Ending, message: str, now: float, grace_seconds: float) -> None:
        """Make it stop for the pod's or the node's sake; the first reason stands."""
        if self.ending is None:
            self.ending, self.ending_message = ending, message
        self._stop(now, grace_seconds)

    def delete(self, now: float, grace_seconds: float) -> None:
        """Somebody does not want it any more; a second call may shorten the grace period, never extend it."""
        if self.deleted_at is None:
            self.deleted_at = now
        if self.grace_seconds is None or grace_seconds < self.grace_seconds:
            self.grace_seconds = grace_seconds
        self._stop(now, grace_seconds)

    def _stop(self, now: float, grace_seconds: float) -> None:
        if self.running:
            self.kill_at = min(now + grace_seconds, self.kill_at or math.inf)
        elif self.pending:
            self.finished_at = now

    def finish(self, exit: Exit, now: float) -> None:
        """Its process is gone."""
        out_of_memory = self.ending == "OOMKilled"
        self.exit = Exit(KILLED, "OOMKilled", self.ending_message) if out_of_memory else exit
        self.finished_at = now
        self.kill_at = None
        self.gpus = []

    def to_record(self) -> dict[str, Any]:
        """All of it as JSON, for :meth:`from_record`."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Pod:
        """Read :meth:`to_record`'s dict back."""
        left = record["exit"]
        events = [Event(**event) for event in record["events"]]
        return cls(**{**record, "events": events, "exit": None if left is None else Exit(**left)})

    def to_json(self) -> dict[str, Any]:
        """The Pod object of the API."""
        metadata = self.metadata
        if self.deleted_at is not None:
            metadata["deletionTimestamp"] = rfc3339(self.deleted_at + (self.grace_seconds or 0))
            metadata["deletionGracePeriodSeconds"] = int(self.grace_seconds or 0)
        spec = {"terminationGracePeriodSeconds": self.spec.grace_seconds, **self.manifest["spec"]}
        if self.started_at is not None:
            spec["nodeName"] = NODE_NAME
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": self._status(),
        }

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"phase": self.phase, "conditions": self._conditions()}
        if self.finished and self.ending not in (None, "OOMKilled"):
            status |= {"reason": self.ending, "message": self.ending_message}
        if self.started_at is not None:
            status |= {
                "hostIP": "127.0.0.1",
                "podIP": "127.0.0.1",
                "startTime": rfc3339(self.started_at),
                "containerStatuses": [self._container_status()],
            }
        return status

    def _conditions(self) -> list[dict[str, Any]]:
        scheduled = self.started_at is not None
        condition: dict[str, Any] = {
            "type": "PodScheduled",
            "status": str(scheduled),
            "lastTransitionTime": rfc3339(self.started_at or self.created_at),
        }
        if not scheduled:
            condition |= {"reason": "Unschedulable", "message": self.unschedulable}
        ready = {
            "status": str(self.running),
            "lastTransitionTime": rfc3339(self.finished_at or self.started_at),
        }
        return [condition] + (
            [{"type": kind, **ready} for kind in ("ContainersReady", "Ready")] if scheduled else []
        )

    def _container_status(self) -> dict[str, Any]:
        started = rfc3339(self.started_at)
        state: dict[str, Any] = {"running": {"startedAt": started}}
        if self.exit is not None:
            code = self.exit.code
            reason = self.exit.reason or ("Error" if code else "Completed")
            terminated = {
                "exitCode": code,
                "reason": reason,
                "message": self.exit.message,
                "startedAt": started,
                "finishedAt": rfc3339(self.finished_at),
            }
            state = {"terminated": {key: value for key, value in terminated.items() if value is not None}}
        return {
            "name": self.spec.container,
            "image": self.spec.image,
            "imageID": "",
            "containerID": f"localpods://{self.uid}",
            "ready": self.running,
            "started": self.running,
            "restartCount": 0,
            "state": state,
            "lastState": {},
        }

    def event_json(self, event: Event) -> dict[str, Any]:
        """The Event object of the API."""
        at = rfc3339(event.at)
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{self.name}.{event.version:x}",
                "namespace": self.namespace,
                "uid": f"{self.uid}.{event.version:x}",
                "resourceVersion": str(event.version),
                "creationTimestamp": at,
            },
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": self.namespace,
                "name": self.name,
                "uid": self.uid,
                "fieldPath": f"spec.containers{{{self.spec.container}}}",
            },
            "reason": event.reason,
            "message": event.message,
            "type": event.type,
            "source": {"component": "localpods", "host": NODE_NAME},
            "reportingComponent": "localpods",
            "reportingInstance": NODE_NAME,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }


@dataclass(frozen=True)
class Placement:
    """What the scheduler decided: pods to start with their GPUs, and why the others wait."""

    start: list[tuple[Pod, list[int]]]
    waiting: list[tuple[Pod, str]]


def place(pods: Iterable[Pod], capacity: Amounts) -> Placement:
    """Decide which pending pods start, first come first served.

    A waiting pod's request is set aside, so nobody behind it takes what it waits for; whoever needs nothing
    of that passes it. A pod larger than the whole machine waits for ever and holds nobody up.
    """
    pods = sorted(pods, key=lambda pod: (pod.created_at, pod.version))
    free: Mapping[str, int] = dict(capacity)
    free_gpus = set(range(capacity.get(GPU, 0)))
    for pod in pods:
        if pod.running:
            free = subtract(free, pod.spec.requests)
            free_gpus -= set(pod.gpus)
    placement = Placement([], [])
    for pod in pods:
        if not pod.pending:
            continue
        wanted = pod.spec.requests
        if never := insufficient(wanted, capacity):
            placement.waiting.append((pod, _message(never)))
            continue
        if short := insufficient(wanted, free):
            placement.waiting.append((pod, _message(short)))
        else:
            gpus = sorted(free_gpus)[: wanted.get(GPU, 0)]
            free_gpus -= set(gpus)
            placement.start.append((pod, gpus))
        free = subtract(free, wanted)
    return placement


def _message(short: Iterable[str]) -> str:
    return f"0/1 nodes are available: {', '.join(f'1 Insufficient {resource}' for resource in short)}."
