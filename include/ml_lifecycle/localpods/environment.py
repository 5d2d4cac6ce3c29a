"""A container's environment: what its manifest gives, and no more of the server's than it needs to run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_lifecycle.localpods.manifest import PodSpec
from ml_lifecycle.localpods.secrets import SecretFolder, SecretMissingError
from ml_lifecycle.localpods.status import Cause, bad_request, invalid
from ml_lifecycle.shown import shown

NODE_NAME = "localhost"
# A node's label: it runs pods whatever nodes they select. There is no other one here.
ANY_SELECTION = "ml-lifecycle/any-selection"
MAX_TEXT = 128 * 1024 - 1  # what Linux takes as one argument or variable

T = TypeVar("T")

_REFERENCE = re.compile(r"\$\$|\$\(([^()]+)\)")
_MAP_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


def base_environment(folder: Path, python_folder: Path, python: Path, pod_name: str) -> dict[str, str]:
    """What every container has: nothing of the server's own environment.

    :param folder: the pod's own, holding its working folder and its temporary one
    :param python_folder: where ``python`` is the interpreter that pods run
    """
    return {
        "PATH": os.pathsep.join([str(python_folder), str(python.parent), "/usr/local/bin:/usr/bin:/bin"]),
        "HOME": str(folder / "work"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "HOSTNAME": pod_name,
    }


def resolve_environment(spec: PodSpec, metadata: Mapping[str, Any], secrets: SecretFolder) -> dict[str, str]:
    """The manifest's ``envFrom`` and ``env`` with references resolved; the later of two names wins.

    :param metadata: the pod's, with uid and namespace
    :raises ApiError: 422, naming the entry whose secret or field does not exist. Retry: no.
    """
    resolved: dict[str, str] = {}
    for index, entry in enumerate(spec.env_from):
        at = f"spec.containers[0].envFrom[{index}].secretRef"
        reference = entry["secretRef"]
        found = _secret(spec.name, at, reference, lambda r: secrets.values(metadata["namespace"], r["name"]))
        resolved |= {f"{entry.get('prefix') or ''}{key}": value for key, value in (found or {}).items()}
    for index, entry in enumerate(spec.env):
        at = f"spec.containers[0].env[{index}].valueFrom"
        source = entry.get("valueFrom") or {}
        value: str | None
        if "secretKeyRef" in source:
            value = _secret(
                spec.name,
                f"{at}.secretKeyRef",
                source["secretKeyRef"],
                lambda r: secrets.value(metadata["namespace"], r["name"], r["key"]),
            )
        elif "fieldRef" in source:
            value = _field(spec.name, f"{at}.fieldRef", source["fieldRef"]["fieldPath"], metadata)
        else:
            value = expand(entry.get("value") or "", resolved)
        if value is not None:
            resolved[entry["name"]] = value
    return resolved


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)``; an unknown one stays as it is, and ``$$`` is a dollar sign.

    :raises ApiError: 400, the result is longer than Linux takes. Retry: no.
    """
    size = len(text)

    def replacement(found: re.Match[str]) -> str:
        nonlocal size
        name = found[1]
        value = "$" if name is None else variables.get(name, found[0])
        # Counted before it is built: a few lines of references to references can mean terabytes.
        size += len(value) - len(found[0])
        if size > MAX_TEXT:
            raise bad_request(
                f"{shown(text)} has more than {MAX_TEXT} characters once its $(…) are filled in"
            )
        return value

    return _REFERENCE.sub(replacement, text)


def expand_all(texts: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """:func:`expand` for each word of a command."""
    return [expand(text, variables) for text in texts]


def _secret(
    pod: str, at: str, reference: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]
) -> T | None:
    try:
        return read(reference)
    except SecretMissingError as error:
        if reference.get("optional"):
            return None
        raise invalid(pod, [Cause(at, f"Not found: {error}")]) from error


def _field(pod: str, at: str, path: str, metadata: Mapping[str, Any]) -> str:
    if found := _MAP_FIELD.fullmatch(path):
        return str((metadata.get(found[1]) or {}).get(found[2], ""))
    fields = {f"metadata.{name}": str(metadata[name]) for name in ("name", "namespace", "uid")}
    fields |= {"spec.nodeName": NODE_NAME, "status.hostIP": "127.0.0.1", "status.podIP": "127.0.0.1"}
    if path not in fields:
        allowed = [*sorted(fields), "metadata.labels['<key>']", "metadata.annotations['<key>']"]
        raise invalid(pod, [Cause(f"{at}.fieldPath", f"Invalid value: {shown(path)}; use one of {allowed}")])
    return fields[path]
