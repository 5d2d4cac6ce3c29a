"""Going back by what the lifecycle database and a lake say: no model folder, and no Airflow, is asked.

A model folder that cannot be read takes its DAGs along, the rollback among them. What was released is in the
database all the same, with the routes as they were published.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.checks import Clock, Golden
from ml_lifecycle.delivery.release_history import ReleaseHistory
from ml_lifecycle.delivery.route import Route, Variant, read_pointer, read_revision
from ml_lifecycle.errors import IntegrityError, LifecycleError, ServerUnavailableError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.spec.delivery import Delivery


class UnknownEndpointError(LifecycleError):
    """No such endpoint was ever released, or several are meant. Retry: no, name another."""


@dataclass(frozen=True)
class Released:
    """What releases tell of a model; how it is delivered is not asked on the way back."""

    name: str
    endpoint: str
    delivery: Delivery = field(default_factory=Delivery)


@dataclass(frozen=True)
class PublishedOnly:
    """An environment of which the lake alone is at hand: its servers follow what is published there, unasked.

    As while a server is down, nothing is checked before it gets the traffic.
    """

    environment: str
    lake: Lake

    def ready(self) -> None:
        """Nobody can be asked.

        :raises ServerUnavailableError: always. Retry: no.
        """
        raise ServerUnavailableError(f"no server of {self.environment} was named")

    def follow(self, route: Route, seconds: float, clock: Clock) -> list[str]:
        """Nobody is waited for."""
        return []

    def check(
        self, route: Route, variant: Variant, golden: Golden, max_latency_ms: float | None
    ) -> list[str]:
        """Nobody is asked."""
        return []


def find_released(database: Database, environment: str, name: str) -> Released:
    """The model and endpoint that ``name`` means: ``MODEL``, or ``MODEL/ENDPOINT`` where it has several.

    :raises UnknownEndpointError: no release of it is known, or those of several endpoints. Retry: no.
    """
    model, _, endpoint = name.partition("/")
    known = ReleaseHistory(database).endpoints(environment)
    found = [one for one in known if one[0] == model and endpoint in ("", one[1])]
    if len(found) != 1:
        what = f"{len(found)} endpoints are" if found else "no endpoint is"
        names = ", ".join("/".join(one) for one in known) or "none"
        raise UnknownEndpointError(
            f"{what} called {name!r} in {environment}: write MODEL/ENDPOINT; released were: {names}"
        )
    return Released(*found[0])


def check_lake(database: Database, environment: str, endpoint: str, lake: Lake) -> None:
    """See that a lake is the one that an endpoint's releases were published to.

    Published to another one, a release would be confirmed that no server ever hears of.

    :raises IntegrityError: it is not, or its routes were altered. Retry: no.
    """
    history = ReleaseHistory(database)
    pointer = read_pointer(lake, endpoint)
    if pointer is None:
        if any(one.state == "confirmed" for one in history.history(environment, endpoint)):
            raise IntegrityError(f"{lake.url} has no route of {endpoint}: this is not {environment}'s lake")
        return
    route = read_revision(lake, pointer.path, pointer.digest)
    known = {one.revision: one for one in history.history(environment, endpoint)}
    if pointer.revision not in known or history.route(known[pointer.revision]) != route:
        raise IntegrityError(
            f"revision {pointer.revision} of {endpoint} in {lake.url} is not that of {environment} in this "
            "database: one of both belongs to another platform"
        )
