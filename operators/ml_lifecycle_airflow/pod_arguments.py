"""The spec's ``training`` section as arguments of KubernetesPodOperator."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.problems import suggest

if TYPE_CHECKING:
    from kubernetes.client import V1ResourceRequirements, V1Toleration

    from ml_lifecycle.spec.training import Pool, Resources
    from ml_lifecycle.spec.training import Training as TrainingSpec

STARTUP_SECONDS = 600  # a CUDA image of several gigabytes is pulled in that time
_SHARED_MEMORY = "shared-memory"


def pod_arguments(training: TrainingSpec) -> dict[str, Any]:
    """What the section says, and defaults for what it does not.

    :raises SpecError: ``training.pod`` names what is no argument of the operator. Retry: no.
    """
    if training.pod:
        _check_names(training.pod)
    given: dict[str, Any] = {
        "startup_timeout_seconds": STARTUP_SECONDS,
        "startup_check_interval_seconds": 1,
        "on_finish_action": "delete_pod",
        **training.pod,
        "image": training.image or "airflow-ml-lifecycle-training:latest",
        "container_resources": container_resources(training.resources),
        "active_deadline_seconds": int(training.timeout.total_seconds()),
        "schedule_timeout_seconds": int(training.recovery.wait_for_room.total_seconds()),
    }
    if training.priority_class is not None:
        given["priority_class_name"] = training.priority_class
    if training.resources.shared_memory is not None:
        volume, mount = _shared_memory(training.resources.shared_memory)
        given["volumes"] = [*training.pod.get("volumes", ()), volume]
        given["volume_mounts"] = [*training.pod.get("volume_mounts", ()), mount]
    return given


def container_resources(resources: Resources, memory_factor: float = 1.0) -> V1ResourceRequirements:
    """Requests and limits of the pod's container."""
    from kubernetes.client import V1ResourceRequirements

    from ml_lifecycle.training.placement import limits, requests

    return V1ResourceRequirements(
        requests=requests(resources, memory_factor), limits=limits(resources, memory_factor)
    )


def tolerations(pool: Pool) -> list[V1Toleration]:
    """The taints that a pool's pods tolerate."""
    from kubernetes.client import V1Toleration

    return [V1Toleration(**toleration.model_dump()) for toleration in pool.tolerations]


def _check_names(given: Iterable[str]) -> None:
    known: set[str] = set()
    for cls in KubernetesPodOperator.__mro__:
        if (init := vars(cls).get("__init__")) is not None:
            known |= inspect.signature(init).parameters.keys()
    known -= {"self", "args", "kwargs"}
    for name in given:
        if name not in known:
            near = "".join(f"; {hint}" for hint in suggest(name, sorted(known))[:-1])
            raise SpecError(f"training.pod: {name!r} is no argument of KubernetesPodOperator{near}")


def _shared_memory(size: str) -> tuple[Any, Any]:
    from kubernetes.client import V1EmptyDirVolumeSource, V1Volume, V1VolumeMount

    volume = V1Volume(name=_SHARED_MEMORY, empty_dir=V1EmptyDirVolumeSource(medium="Memory", size_limit=size))
    return volume, V1VolumeMount(name=_SHARED_MEMORY, mount_path="/dev/shm")
