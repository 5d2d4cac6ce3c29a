"""Where an environment's models run, behind one interface: it is told a route, follows it, and is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.checks import (
    Client,
    Clock,
    Golden,
    run_checks,
    wait_for_revision,
    wait_for_withdrawal,
)
from ml_lifecycle.delivery.route import Route, Variant


class Target(Protocol):
    """An environment at work.

    A route is published to the environment's lake first, in the order that the lifecycle database decides;
    the target serves what is published there, and nothing else.
    """

    @property
    def environment(self) -> str:
        """Its name in the spec."""

    @property
    def lake(self) -> Lake:
        """Where routes are published, and predictions logged."""

    def ready(self) -> None:
        """Return if it could take a release now.

        :raises ServerUnavailableError: it does not answer. Retry: yes.
        """

    def follow(self, route: Route, seconds: float, clock: Clock) -> list[str]:
        """Have a published route, or a later one, served by every replica; says which of them do not in time.

        Done again, it changes nothing. A route without variants is one by which nothing is served.

        :param seconds: how long it may take
        """

    def check(
        self, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
    ) -> list[str]:
        """What is wrong with a variant's answers; empty if nothing is.

        :param golden: requests, and what the variant must answer
        :param max_latency_ms: p99 over one-row requests; None leaves the latency unchecked
        """


@dataclass(frozen=True)
class ModelServers:
    """The project's own model servers: they look at the lake by themselves.

    :param clients: one a server
    """

    environment: str
    lake: Lake
    clients: Sequence[Client]

    def ready(self) -> None:
        """Ask every server."""
        for client in self.clients:
            client.ready()

    def follow(self, route: Route, seconds: float, clock: Clock) -> list[str]:
        """Wait until every server serves the route's revision, or a later one."""
        found = (
            wait_for_revision(client, route.endpoint, route.revision, seconds, clock)
            if route.variants
            else wait_for_withdrawal(client, route.endpoint, seconds, clock)
            for client in self.clients
        )
        return [failure for failure in found if failure is not None]

    def check(
        self, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
    ) -> list[str]:
        """Ask every server."""
        return [
            failure
            for client in self.clients
            for failure in run_checks(client, route, variant, golden, max_latency_ms)
        ]
