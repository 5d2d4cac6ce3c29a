"""Refused calls as Kubernetes words them: a ``Status`` object with code, reason and the fields at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ml_lifecycle.errors import LifecycleError

_NAMED = 20


@dataclass(frozen=True)
class Cause:
    """One thing wrong with a manifest: which field, and what would be right."""

    field: str
    message: str
    reason: Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"] = "FieldValueInvalid"


class ApiError(LifecycleError):
    """The API refuses a call. Retry: no, unless another pod's end would change the answer (409)."""

    def __init__(
        self, code: int, reason: str, message: str, *, name: str | None = None, causes: Sequence[Cause] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.name = name
        self.causes = tuple(causes)

    def to_json(self) -> dict[str, Any]:
        """The ``Status`` object that clients parse."""
        details: dict[str, Any] = {"kind": "pods"}
        if self.name is not None:
            details["name"] = self.name
        if self.causes:
            details["causes"] = [asdict(cause) for cause in self.causes]
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": details,
            "code": self.code,
        }


def bad_request(message: str) -> ApiError:
    """400: the call itself is malformed."""
    return ApiError(400, "BadRequest", message)


def not_found(name: str) -> ApiError:
    """404: there is no such pod."""
    return ApiError(404, "NotFound", f'pods "{name}" not found', name=name)


def already_exists(name: str) -> ApiError:
    """409: a pod of that name is there."""
    return ApiError(409, "AlreadyExists", f'pods "{name}" already exists', name=name)


def conflict(name: str, message: str) -> ApiError:
    """409: it is not the pod that the caller means."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on pods "{name}": {message}', name=name)


def invalid(name: str, causes: Sequence[Cause]) -> ApiError:
    """422: the manifest is malformed; its faults are named at once, the first twenty of them in full."""
    named = [
        replace(cause, field=cause.field[:200], message=cause.message[:500]) for cause in causes[:_NAMED]
    ]
    faults = [f"{cause.field}: {cause.message}" for cause in named]
    if len(causes) > _NAMED:
        faults.append(f"and {len(causes) - _NAMED} more")
    text = f"[{', '.join(faults)}]" if len(faults) > 1 else faults[0]
    return ApiError(422, "Invalid", f'Pod "{name[:253]}" is invalid: {text}', name=name[:253], causes=named)
