"""What a pod's manifest asks for, checked.

Honoured: one container with ``command``, ``args``, ``env`` (values, ``secretKeyRef``, ``fieldRef``),
``envFrom`` (``secretRef``) and ``resources``; ``activeDeadlineSeconds``; ``terminationGracePeriodSeconds``;
labels and annotations. Refused, because the container would not run as its author means: further or init
containers, volumes and mounts (a child process has no file system of its own; its working folder and
``TMPDIR`` are private scratch, and ``/dev/shm`` is the machine's, so memory mounted there is accepted),
``workingDir``, ``lifecycle`` hooks, config maps, any ``restartPolicy`` but
``Never``, and a container without a command (there is no image to take one from). All else is accepted and
has no effect on one machine: image, node selection, probes, ports, service accounts, security contexts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_lifecycle.localpods.status import Cause, bad_request, invalid
from ml_lifecycle.quantity import CPU, GPU, MAX_SECONDS, MEMORY, Amounts, parse_amount
from ml_lifecycle.shown import shown

DEFAULT_GRACE_SECONDS = 30
MAX_ANNOTATIONS = 256 * 1024  # as in Kubernetes

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CONTAINER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_ENV_NAME = re.compile(r"[^=\0]+")

_RESOURCES = (CPU, "ephemeral-storage", MEMORY)

_UNSUPPORTED = {
    "initContainers": "localpods runs one container; do its work at the start of that one",
    "ephemeralContainers": "localpods runs one container",
    "volumes": "localpods mounts nothing; write to the working folder or $TMPDIR, which are the pod's own",
    "volumeMounts": "localpods mounts nothing; write to the working folder or $TMPDIR",
    "volumeDevices": "localpods mounts nothing",
    "workingDir": "the working folder is the pod's own; change directory in the command",
    "lifecycle": "localpods runs no hooks; handle SIGTERM in the process",
}


@dataclass(frozen=True)
class PodSpec:
    """The honoured part of a manifest.

    :param env: the container's ``env`` as written, references unresolved
    :param env_from: its ``envFrom`` as written
    :param grace_seconds: from SIGTERM to SIGKILL
    :param deadline_seconds: how long it may run; None for ever
    """

    name: str
    container: str
    image: str
    command: tuple[str, ...]
    env: tuple[Mapping[str, Any], ...]
    env_from: tuple[Mapping[str, Any], ...]
    requests: Amounts
    limits: Amounts
    grace_seconds: int
    deadline_seconds: int | None


def check_pod(manifest: Any, namespace: str) -> PodSpec:
    """Read a manifest.

    :raises ApiError: 400, no object or another namespace; 422, naming every field at fault. Retry: no.
    """
    if not isinstance(manifest, dict) or manifest.get("kind", "Pod") != "Pod":
        raise bad_request("the body must be a JSON object of kind Pod")
    checker = _Checker()
    metadata = checker.mapping(manifest, "metadata", "")
    if metadata.get("namespace", namespace) != namespace:
        raise bad_request(
            f"the namespace of the provided object ({metadata['namespace']}) does not match "
            f"the namespace sent on the request ({namespace})"
        )
    name = checker.name(metadata, "metadata")
    check_labels(checker, metadata)
    spec = checker.mapping(manifest, "spec", "")
    if spec.get("restartPolicy") != "Never":
        checker.refuse("spec.restartPolicy", "must be Never: localpods restarts nothing, its caller does")
    spec = _without_shared_memory(spec)
    checker.unsupported(spec, "spec")
    containers = checker.sequence(spec, "containers", "spec")
    if len(containers) != 1:
        checker.refuse("spec.containers", f"must hold exactly one container, not {len(containers)}")
    container = containers[0] if containers and isinstance(containers[0], dict) else {}
    container = _without_shared_memory(container)
    result = _container(checker, name, container, spec)
    if checker.causes:
        raise invalid(name, checker.causes)
    return result


def check_metadata_patch(name: str, patch: Any) -> dict[str, dict[str, str | None]]:
    """The labels and annotations that a merge patch changes, by ``labels`` and ``annotations``.

    :raises ApiError: 400, no object; 422, it would change anything else. Retry: no.
    """
    if not isinstance(patch, dict):
        raise bad_request("the body must be a JSON object: a merge patch")
    checker = _Checker()
    metadata = checker.mapping(patch, "metadata", "")
    changes = {key: checker.mapping(metadata, key, "metadata") for key in ("labels", "annotations")}
    for key in sorted(patch.keys() - {"apiVersion", "kind", "metadata"}):
        checker.forbid(key, "pod updates may change labels and annotations only")
    for key in sorted(metadata.keys() - {"name", "namespace", "labels", "annotations"}):
        checker.forbid(f"metadata.{key}", "pod updates may change labels and annotations only")
    kept = {
        kind: {key: value for key, value in change.items() if value is not None}
        for kind, change in changes.items()
    }
    check_labels(checker, kept)
    if checker.causes:
        raise invalid(name, checker.causes)
    return changes


def check_labels(checker: _Checker, metadata: Mapping[str, Any]) -> None:
    """Labels must be short plain text, annotations text."""
    for key, value in checker.mapping(metadata, "labels", "metadata").items():
        if not _LABEL_KEY.fullmatch(key):
            checker.refuse("metadata.labels", f"{shown(key)} is no label key")
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            checker.refuse(
                f"metadata.labels[{key}]",
                f"{shown(value)} must be at most 63 letters, digits, '-', '_' or '.', no sign at either end",
            )
    annotations = checker.mapping(metadata, "annotations", "metadata")
    if (size := sum(len(key) + len(str(value)) for key, value in annotations.items())) > MAX_ANNOTATIONS:
        checker.refuse("metadata.annotations", f"{size} characters, at most {MAX_ANNOTATIONS} together")
    for key, value in annotations.items():
        if not isinstance(value, str):
            checker.refuse(f"metadata.annotations[{key}]", f"{shown(value)} must be text")


def _container(
    checker: _Checker, pod_name: str, container: Mapping[str, Any], spec: Mapping[str, Any]
) -> PodSpec:
    at = "spec.containers[0]"
    command = checker.texts(container, "command", at) + checker.texts(container, "args", at)
    if not command:
        checker.require(f"{at}.command", "localpods runs no images, so command or args must say what to run")
    checker.unsupported(container, at)
    resources = checker.mapping(container, "resources", at)
    limits = checker.amounts(resources, "limits", f"{at}.resources")
    given = checker.amounts(resources, "requests", f"{at}.resources")
    for resource in sorted(given.keys() - limits.keys() - {CPU, MEMORY}):
        checker.require(
            f"{at}.resources.limits.{resource}", "what comes whole must be limited, not only requested"
        )
    # Kubernetes' own default: what is limited and not requested is requested up to its limit.
    requests = {**limits, **given}
    for resource in sorted(limits):
        if requests[resource] > limits[resource]:
            checker.refuse(f"{at}.resources.requests.{resource}", f"must not exceed the {resource} limit")
    return PodSpec(
        name=pod_name,
        container=_container_name(checker, container, at),
        image=str(container.get("image") or ""),
        command=command,
        env=_env(checker, container, f"{at}.env"),
        env_from=_env_from(checker, container, f"{at}.envFrom"),
        requests=requests,
        limits=limits,
        grace_seconds=checker.integer(
            spec, "terminationGracePeriodSeconds", "spec", 0, DEFAULT_GRACE_SECONDS
        ),
        deadline_seconds=checker.integer(spec, "activeDeadlineSeconds", "spec", 1, None),
    )


def _without_shared_memory(part: Mapping[str, Any]) -> dict[str, Any]:
    """A pod's spec or its container, less a volume in memory and what is mounted at ``/dev/shm``."""
    kept = dict(part)
    if isinstance(volumes := kept.get("volumes"), list):
        kept["volumes"] = [
            entry
            for entry in volumes
            if not (isinstance(entry, dict) and (entry.get("emptyDir") or {}) == _in_memory(entry))
        ]
    if isinstance(mounts := kept.get("volumeMounts"), list):
        kept["volumeMounts"] = [
            entry
            for entry in mounts
            if not (isinstance(entry, dict) and entry.get("mountPath") == "/dev/shm")
        ]
    return kept


def _in_memory(volume: Mapping[str, Any]) -> dict[str, Any]:
    given = volume.get("emptyDir")
    return {**(given if isinstance(given, dict) else {}), "medium": "Memory"}


def _container_name(checker: _Checker, container: Mapping[str, Any], at: str) -> str:
    name = checker.name(container, at)
    if _NAME.fullmatch(name) and not _CONTAINER_NAME.fullmatch(name):
        checker.refuse(f"{at}.name", f"{shown(name)} must have no '.' and at most 63 characters")
    return name


def _env(checker: _Checker, container: Mapping[str, Any], at: str) -> tuple[Mapping[str, Any], ...]:
    entries = checker.mappings(container, "env", at)
    for index, entry in enumerate(entries):
        field = f"{at}[{index}]"
        if not isinstance(entry.get("name"), str) or not _ENV_NAME.fullmatch(entry["name"]):
            checker.require(f"{field}.name", "must be text without '='")
        if not isinstance(entry.get("value") or "", str) or "\0" in (entry.get("value") or ""):
            checker.refuse(f"{field}.value", "must be text without NUL; quote numbers")
        source = checker.mapping(entry, "valueFrom", field)
        if source and source.keys() - {"secretKeyRef", "fieldRef"}:
            checker.refuse(f"{field}.valueFrom", f"{sorted(source)} must be secretKeyRef or fieldRef")
        if "secretKeyRef" in source:
            checker.keys(source, "secretKeyRef", f"{field}.valueFrom", "name", "key")
        if "fieldRef" in source:
            checker.keys(source, "fieldRef", f"{field}.valueFrom", "fieldPath")
    return entries


def _env_from(checker: _Checker, container: Mapping[str, Any], at: str) -> tuple[Mapping[str, Any], ...]:
    entries = checker.mappings(container, "envFrom", at)
    for index, entry in enumerate(entries):
        if "secretRef" not in entry:
            checker.refuse(f"{at}[{index}]", "must be a secretRef")
        else:
            checker.keys(entry, "secretRef", f"{at}[{index}]", "name")
    return entries


class _Checker:
    """Reads untyped JSON, noting each fault and going on with something harmless."""

    def __init__(self) -> None:
        self.causes: list[Cause] = []

    def refuse(self, field: str, message: str) -> None:
        self.causes.append(Cause(field, f"Invalid value: {message}"))

    def require(self, field: str, message: str) -> None:
        self.causes.append(Cause(field, f"Required value: {message}", "FieldValueRequired"))

    def forbid(self, field: str, message: str) -> None:
        self.causes.append(Cause(field, f"Forbidden: {message}", "FieldValueForbidden"))

    def unsupported(self, parent: Mapping[str, Any], at: str) -> None:
        for key, advice in _UNSUPPORTED.items():
            if parent.get(key):
                self.forbid(f"{at}.{key}", advice)

    def mapping(self, parent: Mapping[str, Any], key: str, at: str) -> dict[str, Any]:
        value = parent.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(f"{at}.{key}".lstrip("."), "must be an object")
        return value if isinstance(value, dict) else {}

    def sequence(self, parent: Mapping[str, Any], key: str, at: str) -> list[Any]:
        value = parent.get(key)
        if value is not None and not isinstance(value, list):
            self.refuse(f"{at}.{key}", "must be a list")
        return value if isinstance(value, list) else []

    def mappings(self, parent: Mapping[str, Any], key: str, at: str) -> tuple[dict[str, Any], ...]:
        items = self.sequence(parent, key, at.rpartition(".")[0])
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                self.refuse(f"{at}[{index}]", "must be an object")
        return tuple(item for item in items if isinstance(item, dict))

    def texts(self, parent: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        items = self.sequence(parent, key, at)
        for index, item in enumerate(items):
            if not isinstance(item, str) or "\0" in item:
                self.refuse(f"{at}.{key}[{index}]", "must be text without NUL; quote numbers")
        return tuple(str(item) for item in items)

    def keys(self, parent: Mapping[str, Any], key: str, at: str, *wanted: str) -> None:
        value = self.mapping(parent, key, at)
        for name in wanted:
            if not isinstance(value.get(name), str) or not value[name]:
                self.require(f"{at}.{key}.{name}", "must be text")

    def name(self, parent: Mapping[str, Any], at: str) -> str:
        value = parent.get("name")
        if not value:
            self.require(f"{at}.name", "name is required")
        elif not isinstance(value, str) or not _NAME.fullmatch(value):
            self.refuse(
                f"{at}.name", f"{shown(value)} must be lower-case letters, digits, '-' or '.', at most 253"
            )
        return str(value or "")

    def integer(self, parent: Mapping[str, Any], key: str, at: str, least: int, default: int | None) -> Any:
        value = parent.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_SECONDS:
            self.refuse(f"{at}.{key}", f"{shown(value)} must be a whole number from {least} to {MAX_SECONDS}")
            return default
        return value

    def amounts(self, parent: Mapping[str, Any], key: str, at: str) -> dict[str, int]:
        amounts = {}
        for resource, value in self.mapping(parent, key, at).items():
            if resource not in _RESOURCES and "/" not in resource:
                self.refuse(
                    f"{at}.{key}.{resource}", f"must be one of {_RESOURCES} or have a domain, as {GPU} has"
                )
            try:
                amounts[resource] = parse_amount(resource, value)
            except ValueError as error:
                self.refuse(f"{at}.{key}.{resource}", str(error))
        # Disk is neither counted nor limited here.
        return {name: amount for name, amount in amounts.items() if name != "ephemeral-storage"}
