"""The spec's ``training`` section as arguments of KubernetesPodOperator."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import BaseOperator

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.problems import suggest

if TYPE_CHECKING:
    from kubernetes.client import V1ResourceRequirements, V1Toleration

    from ml_lifecycle.spec.training import Pool, Resources
    from ml_lifecycle.spec.training import Training as TrainingSpec

STARTUP_SECONDS = 600  # a CUDA image of several gigabytes is pulled in that time
_SHARED_MEMORY = "shared-memory"
# Arguments that are parts of a manifest, and what they are called in it.
_OBJECTS = {
    "affinity": "V1Affinity",
    "container_security_context": "V1SecurityContext",
    "dns_config": "V1PodDNSConfig",
    "env_from": "list[V1EnvFromSource]",
    "env_vars": "list[V1EnvVar]",
    "host_aliases": "list[V1HostAlias]",
    "image_pull_secrets": "list[V1LocalObjectReference]",
    "init_containers": "list[V1Container]",
    "ports": "list[V1ContainerPort]",
    "security_context": "V1PodSecurityContext",
    "volume_mounts": "list[V1VolumeMount]",
    "volumes": "list[V1Volume]",
}


def pod_arguments(training: TrainingSpec) -> dict[str, Any]:
    """What the section says, and defaults for what it does not.

    :raises SpecError: ``training.pod`` names what is no argument of the operator. Retry: no.
    """
    own = _own(training.pod) if training.pod else {}
    given: dict[str, Any] = {
        "startup_timeout_seconds": STARTUP_SECONDS,
        "startup_check_interval_seconds": 1,
        "on_finish_action": "delete_pod",
        **own,
        "image": training.image or "airflow-ml-lifecycle-training:latest",
        "container_resources": container_resources(training.resources),
        "active_deadline_seconds": int(training.timeout.total_seconds()),
        "schedule_timeout_seconds": int(training.recovery.wait_for_room.total_seconds()),
    }
    if training.priority_class is not None:
        given["priority_class_name"] = training.priority_class
    if training.resources.shared_memory is not None:
        volume, mount = _shared_memory(training.resources.shared_memory)
        given["volumes"] = [*own.get("volumes", ()), volume]
        given["volume_mounts"] = [*own.get("volume_mounts", ()), mount]
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


def scheduling_arguments(training: TrainingSpec) -> dict[str, Any]:
    """Those of ``training.pod`` that Airflow's scheduler reads, such as ``queue`` and ``pool``.

    Of a mapped task it reads them where the task is mapped, not in what the task is made from.
    """
    known = inspect.signature(BaseOperator.__init__).parameters
    return {name: value for name, value in training.pod.items() if name in known}


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    """The spec's own arguments; what is a part of a manifest becomes the client's object."""
    from kubernetes.client import ApiClient

    _check_names(given)
    made = dict(given)
    for name, kind in _OBJECTS.items():
        if name not in given or (name == "env_vars" and isinstance(given[name], Mapping)):
            continue
        try:
            made[name] = ApiClient().deserialize(SimpleNamespace(data=json.dumps(given[name])), kind)
        except (ValueError, TypeError, AttributeError) as error:
            raise SpecError(f"training.pod.{name} is no {kind} of a Kubernetes manifest: {error}") from error
    return made


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
