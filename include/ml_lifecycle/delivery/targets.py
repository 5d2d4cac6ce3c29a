"""Where an environment's models run, behind one interface: it is told a route, follows it, and is checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.checks import Client, Clock, Golden, not_followed, run_checks, wait_for
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.errors import LifecycleError

_log = logging.getLogger(__name__)


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

    :param clients: one a server; gone through anew at each look, so that they may be those of the moment
        (:class:`ml_lifecycle.serving.replicas.Replicas`)
    """

    environment: str
    lake: Lake
    clients: Iterable[Client]

    def ready(self) -> None:
        """Ask every server."""
        for client in self.clients:
            client.ready()

    def follow(self, route: Route, seconds: float, clock: Clock) -> list[str]:
        """Wait until every server that there is serves the route's revision, or a later one.

        One that has gone is not waited for. One that comes serves what is published before it is ready.
        """

        def look() -> list[tuple[str, str]]:
            try:
                states = [(str(client), not_followed(client, route)) for client in self.clients]
            except LifecycleError as error:
                return [(f"what serves {self.environment}", str(error))]
            return [(who, state) for who, state in states if state is not None]

        what = f"come to revision {route.revision}" if route.variants else f"withdraw {route.endpoint}"
        told: set[str] = set()

        def tell(late: list[tuple[str, str]]) -> None:
            for who, state in late:
                if who not in told:
                    _log.info("waiting up to %g s for %s to %s: %s", seconds, who, what, state)
                    told.add(who)

        return [
            f"{who} did not {what} within {seconds:g} s: {state}"
            for who, state in wait_for(look, seconds, clock, tell)
        ]

    def check(
        self, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
    ) -> list[str]:
        """Ask every server.

        One that fails and has gone says nothing of the variant: it may have been asked while it ended. Those
        that have come in the meantime are asked too, so that nothing passes by having no server left.
        """

        def ask(client: Client) -> list[str]:
            return [f"{one} ({client})" for one in run_checks(client, route, variant, golden, max_latency_ms)]

        try:
            found = {client: ask(client) for client in self.clients}
            if any(found.values()):
                found = {client: found[client] if client in found else ask(client) for client in self.clients}
        except LifecycleError as error:
            return [str(error)]
        return [failure for failures in found.values() for failure in failures]
