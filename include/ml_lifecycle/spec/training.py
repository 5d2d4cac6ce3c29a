"""The typed form of ``model.yaml``'s ``training`` section: on which rows, in what pods, on which nodes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from ml_lifecycle.quantity import parse_grace, parse_quantity
from ml_lifecycle.spec.search import Search
from ml_lifecycle.spec.types import (
    Cpu,
    FieldError,
    Image,
    KubernetesName,
    LabelValue,
    Memory,
    Moment,
    Name,
    PositiveDuration,
    Strict,
    Text,
)

# Arguments of KubernetesPodOperator that the other keys of this section, or the operator itself, decide.
_TAKEN = {
    "image": "training.image",
    "container_resources": "training.resources",
    "active_deadline_seconds": "training.timeout",
    "node_selector": "training.pools",
    "tolerations": "training.pools",
    "schedule_timeout_seconds": "training.recovery.wait_for_room",
    "priority_class_name": "training.priority_class",
    "kubernetes_conn_id": "connections.pods",
    "cmds": None,
    "arguments": None,
    "do_xcom_push": None,
    "task_id": None,
    "folder": None,
    "training": None,
    "training_set": None,
}


class TrainingData(Strict):
    """Which rows are trained on.

    :param start: no row before this moment
    :param window: only the newest span before the holdout; None means everything since ``start``
    :param holdout: length of the newest span, kept for the evaluation
    """

    start: Moment
    window: PositiveDuration | None = None
    holdout: PositiveDuration


class Limits(Strict):
    """What a pod may use at most; None is what it asks for."""

    cpu: Cpu | None = None
    memory: Memory | None = None


class Resources(Strict):
    """What a pod asks for, in Kubernetes quantities.

    :param cpu: rounded up it is also the number of threads that numerical libraries use, whatever the node
        has: the model must not depend on it
    :param gpu: whole devices
    :param gpu_resource: the name under which nodes offer devices
    :param shared_memory: size of ``/dev/shm``, which PyTorch's data loaders need; it counts as memory. None
        leaves the container runtime's 64 MiB
    :param limits: more than is asked for, where a node has it to spare
    """

    cpu: Cpu = "1"
    memory: Memory = "2Gi"
    gpu: int = Field(default=0, ge=0)
    gpu_resource: KubernetesName = "nvidia.com/gpu"
    shared_memory: Memory | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _limits_are_no_less(self) -> Resources:
        for name, asked, limit in (
            ("cpu", self.cpu, self.limits.cpu),
            ("memory", self.memory, self.limits.memory),
        ):
            if limit is not None and parse_quantity(limit) < parse_quantity(asked):
                raise FieldError("limits", f"{name}: {limit} is less than the {asked} asked for")
        return self


class Toleration(Strict):
    """A taint that the pods of a pool tolerate, as in Kubernetes."""

    key: KubernetesName | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _as_kubernetes_allows(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise FieldError("value", "operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise FieldError("key", "operator Equal needs a key")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise FieldError("toleration_seconds", "goes with effect NoExecute only")
        return self


class Pool(Strict):
    """Nodes that pods may run on.

    :param name: in messages and costs
    :param interruptions: after so many interruptions here the next pod goes to the next pool; None stays
    :param scales: whether the pool makes nodes when asked to: no pod is refused because there is none yet
    """

    name: Name
    node_selector: dict[KubernetesName, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    interruptions: int | None = Field(default=None, ge=1)
    scales: bool = False


class Recovery(Strict):
    """What happens when a pod ends without a result and the code is not to blame.

    Each next pod goes on from the newest whole checkpoint. None of these costs a retry of the Airflow task.

    :param interruptions: pods that may be evicted, preempted or lost with their node before the task fails
    :param launches: pods that may fail to start before the task fails
    :param wait_for_room: how long a pod waits for a node with room
    :param memory_factor: after running out of memory, once again with so many times the memory; None fails
    """

    interruptions: int = Field(default=20, ge=0)
    launches: int = Field(default=5, ge=0)
    wait_for_room: PositiveDuration = timedelta(hours=1)
    memory_factor: float | None = Field(default=None, gt=1, le=16)


class Training(Strict):
    """How the model is trained.

    :param parameters: handed to ``training.py``'s ``train()`` unchanged, or those of ``search`` over them
    :param search: which of them are tried out before each training; null trains with ``parameters``
    :param image: container image of the pod; None leaves the connection's default
    :param lock: optional lock file in the model folder that the pod's environment is made from
    :param timeout: of one pod; one that is ended by it may have left checkpoints to a retry
    :param pools: tried in their order, e.g. spot nodes before others; without any, pods run on any node
    :param priority_class: the pods' PriorityClass
    :param pod: any other argument of KubernetesPodOperator, such as ``labels``, ``volumes``, ``env_vars``,
        ``service_account_name`` or ``startup_timeout_seconds``; objects as in Kubernetes' own manifests
    """

    parameters: dict[str, Any] = Field(default_factory=dict)
    search: Search | None = None
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    resources: Resources = Resources()
    timeout: PositiveDuration = timedelta(hours=1)
    image: Image | None = None
    lock: Text | None = None
    data: TrainingData
    pools: tuple[Pool, ...] = ()
    priority_class: KubernetesName | None = None
    recovery: Recovery = Recovery()
    pod: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _pools_have_names_of_their_own(self) -> Training:
        names = [pool.name for pool in self.pools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise FieldError("pools", f"{', '.join(twice)} is there twice")
        return self

    @model_validator(mode="after")
    def _pod_s_grace_period_is_one(self) -> Training:
        if (given := self.pod.get("termination_grace_period")) is not None:
            try:
                parse_grace(given)
            except ValueError as error:
                raise FieldError("pod", f"termination_grace_period: {error}") from error
        return self

    @model_validator(mode="after")
    def _pod_takes_what_is_left(self) -> Training:
        for name in self.pod:
            if name in _TAKEN:
                instead = _TAKEN[name]
                hint = f"use {instead}" if instead else "the operator itself decides it"
                raise FieldError("pod", f"{name} cannot be given here: {hint}")
        for text in _texts(self.pod):
            if any(mark in text for mark in ("{{", "{%", "{#")):
                raise FieldError("pod", f"{text!r} looks like a template: a spec is data, nothing in it runs")
        return self


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
