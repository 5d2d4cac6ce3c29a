"""What every protocol's front needs of the server behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_lifecycle.serving.access_log import AccessLog
from ml_lifecycle.serving.dataplane import DataPlane, LoadedVariant, ServedRoute
from ml_lifecycle.serving.door import Door
from ml_lifecycle.serving.inference import Inference
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.routes import RouteFollower


def header_text(value: bytes | None) -> str | None:
    """A header's value; None if it is not there, or empty."""
    return None if value is None else value.decode("utf-8", "replace") or None


@dataclass(frozen=True)
class Front:
    """The server as a front sees it.

    :param about: name, version, extensions and environment of the server
    :param door: who may come in
    :param repository: which endpoints are served, and how that is changed
    :param clock: the wall clock, microseconds since 1970
    :param max_rows: in one request
    :param max_bytes: of one request
    :param leaving: set once the server was told to stop
    """

    about: Mapping[str, Any]
    door: Door
    plane: DataPlane
    inference: Inference
    metrics: Metrics
    repository: RouteFollower
    clock: Callable[[], int]
    max_rows: int
    max_bytes: int
    access_log: AccessLog | None = None
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.repository.ready and not self.leaving.is_set()

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """Every endpoint and version with its state, as the protocol's repository index lists them."""
        found: list[dict[str, str]] = []
        for name, endpoint in sorted(self.plane.endpoints.items()):
            versions = () if endpoint.served is None else endpoint.served.versions
            reason = endpoint.error or ""
            for version in versions:
                found.append({"name": name, "version": version, "state": "READY", "reason": reason})
            if not versions and not ready_only:
                state = {"state": "UNAVAILABLE", "reason": reason or "withdrawn"}
                found.append({"name": name, "version": "", **state})
        return found

    def pick(self, model: str, version: str | None) -> tuple[ServedRoute, LoadedVariant]:
        """What answers.

        :raises UnknownModelError: no such endpoint or version. Retry: no.
        :raises NotLoadedError: its route could not be loaded yet. Retry: yes.
        """
        served = self.plane.served(model)
        return served, served.pick(version)
