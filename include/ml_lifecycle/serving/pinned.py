"""What a server is told that serves one version of one revision, whatever is published after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ml_lifecycle.delivery.route import Pointer, Route
from ml_lifecycle.errors import LifecycleError

METADATA = "metadata"
"""As SageMaker's custom attributes of a request: it is the model's metadata that are asked for."""

_PREFIX = "ML_LIFECYCLE_"


class PinnedVariablesError(LifecycleError):
    """A variable that says what to serve is missing, or is not what it should be. Retry: no."""


@dataclass(frozen=True)
class Pinned:
    """One version of one published revision. It travels in variables of a container's environment.

    :param lake: URL of the environment's lake
    :param digest: of the revision's file
    """

    lake: str
    environment: str
    endpoint: str
    version: str
    revision: int
    path: str
    digest: str

    @classmethod
    def of(cls, lake: str, environment: str, route: Route, version: str, pointer: Pointer) -> Pinned:
        """A version of a route that ``pointer`` leads to."""
        return cls(lake, environment, route.endpoint, version, pointer.revision, pointer.path, pointer.digest)

    @property
    def pointer(self) -> Pointer:
        """Where the revision is."""
        return Pointer(self.revision, self.path, self.digest)

    def variables(self) -> dict[str, str]:
        """The same for an environment."""
        return {f"{_PREFIX}{field.name.upper()}": str(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> Pinned:
        """What :meth:`variables` was made of.

        :raises PinnedVariablesError: one is missing, or the revision is no number. Retry: no.
        """
        names = {field.name: f"{_PREFIX}{field.name.upper()}" for field in fields(cls)}
        if missing := [name for name in names.values() if not variables.get(name)]:
            raise PinnedVariablesError(f"not set: {', '.join(missing)}; a release to SageMaker sets them")
        given = {field: variables[name] for field, name in names.items()}
        if not given["revision"].isdecimal():
            raise PinnedVariablesError(f"{names['revision']} must be a number, got {given['revision']!r}")
        return cls(**{**given, "revision": int(given["revision"])})  # type: ignore[arg-type]
