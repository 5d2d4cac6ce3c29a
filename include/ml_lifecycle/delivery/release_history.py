"""What was released, is served and is under way: read, never changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select

from ml_lifecycle.delivery.release_rows import (
    UNDER_WAY,
    first_release,
    get_release,
    live_release,
    newest_first,
    release_of,
    release_under_way,
    route_of,
    subject_of,
)
from ml_lifecycle.delivery.route import Route
from ml_lifecycle.errors import LedgerError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import RELEASE
from ml_lifecycle.ledger.tables import ledger, releases
from ml_lifecycle.records import Release, from_json

PRODUCTION = "production"
"""The environment whose live release is the champion, and which takes approved evidence only."""


_replaced = releases.alias()
_SERVED = select(
    releases, _replaced.c.version.label("replaced_version"), _replaced.c.route.label("replaced_route")
).outerjoin_from(
    releases,
    _replaced,
    (_replaced.c.environment == releases.c.environment)
    & (_replaced.c.endpoint == releases.c.endpoint)
    & (_replaced.c.revision == releases.c.replaces),
)


@dataclass(frozen=True)
class Served:
    """What an endpoint serves.

    :param since: when the release came to its state
    :param replaced: the version that a ``restore`` or ``withdraw`` took out of service, and its route
    """

    release: Release
    route: Route
    since: datetime
    replaced: tuple[str, Route] | None = None


class ReleaseHistory:
    """The releases of all endpoints, to be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live(self, environment: str, endpoint: str) -> Release | None:
        """What the endpoint serves; None before its first confirmed release and after a withdrawal."""
        with self._database.read() as connection:
            return live_release(connection, environment, endpoint)

    def champion(self, endpoint: str) -> Release | None:
        """What is live in production."""
        return self.live(PRODUCTION, endpoint)

    def served(self, environment: str) -> list[Served]:
        """What every endpoint of an environment serves; those that serve nothing are left out."""
        confirmed = (releases.c.environment == environment) & (releases.c.state == "confirmed")
        newest = (
            select(releases.c.endpoint, func.max(releases.c.revision).label("revision"))
            .where(confirmed)
            .group_by(releases.c.endpoint)
            .subquery()
        )
        query = (
            _SERVED.join(
                newest,
                (releases.c.endpoint == newest.c.endpoint) & (releases.c.revision == newest.c.revision),
            )
            .where(confirmed, releases.c.kind != "withdraw")
            .order_by(releases.c.endpoint)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [_served(row) for row in rows]

    def has_confirmed(self, environment: str, evidence_digest: str) -> bool:
        """Whether exactly this evidence was released there, checked, and never rolled back."""
        query = select(releases.c.revision).where(
            releases.c.environment == environment,
            releases.c.evidence_digest == evidence_digest,
            releases.c.state == "confirmed",
            releases.c.kind != "withdraw",
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def verify(self) -> int:
        """Hold every release against the newest ledger entry about it; returns how many there are.

        :raises LedgerError: one is not what its entry says, or only one of both is there. Retry: no.
        """
        query = select(ledger).where(ledger.c.kind == RELEASE).order_by(ledger.c.seq)
        with self._database.read() as connection:
            rows = {subject_of(row): row for row in map(release_of, connection.execute(select(releases)))}
            entries = {entry.subject: entry for entry in connection.execute(query)}
        for subject, entry in entries.items():
            if rows.get(subject) != from_json(Release, json.loads(entry.payload)):
                raise LedgerError(f"release {subject} is not in its table as ledger entry {entry.seq} has it")
        if unknown := sorted(rows.keys() - entries.keys()):
            raise LedgerError(f"release {unknown[0]} is in its table, but no ledger entry is about it")
        return len(rows)

    def all_under_way(self, environment: str) -> list[Served]:
        """The releases of all endpoints that have begun and are neither confirmed nor rolled back."""
        query = _SERVED.where(releases.c.environment == environment, releases.c.state.in_(UNDER_WAY))
        with self._database.read() as connection:
            return [_served(row) for row in connection.execute(query)]

    def of_model(self, environment: str, model: str, limit: int) -> list[Served]:
        """The newest releases of a model, newest first."""
        query = (
            _SERVED.where(releases.c.environment == environment, releases.c.model == model)
            .order_by(releases.c.created_at.desc(), releases.c.revision.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_served(row) for row in connection.execute(query)]

    def endpoints(self, environment: str) -> list[tuple[str, str]]:
        """Every model and endpoint that ever had a release in an environment."""
        query = select(releases.c.model, releases.c.endpoint).distinct().order_by(releases.c.endpoint)
        with self._database.read() as connection:
            rows = connection.execute(query.where(releases.c.environment == environment))
            return [(row.model, row.endpoint) for row in rows]

    def under_way(self, environment: str, endpoint: str) -> Release | None:
        """The release that has begun and is neither confirmed nor rolled back."""
        with self._database.read() as connection:
            return release_under_way(connection, environment, endpoint)

    def get(self, environment: str, endpoint: str, revision: int) -> Release:
        """One release."""
        with self._database.read() as connection:
            return get_release(connection, environment, endpoint, revision)

    def history(self, environment: str, endpoint: str) -> list[Release]:
        """All releases of an endpoint, newest first."""
        with self._database.read() as connection:
            return [release_of(row) for row in connection.execute(newest_first(environment, endpoint))]

    def requested(self, environment: str, endpoint: str, request: str) -> Release | None:
        """The release begun for a request, whatever became of it."""
        query = newest_first(environment, endpoint).where(releases.c.request == request)
        with self._database.read() as connection:
            return first_release(connection, query)

    def route(self, release: Release) -> Route:
        """The route of a release, exactly as it is published."""
        with self._database.read() as connection:
            return route_of(connection, release)

    def routes(self) -> dict[str, Route]:
        """The routes of all releases, by the digest of the ledger entry that each is of."""
        with self._database.read() as connection:
            texts = connection.scalars(select(releases.c.route)).all()
        return {route.ledger_head: route for route in (from_json(Route, json.loads(text)) for text in texts)}


def _served(row: Row[Any]) -> Served:
    replaced = None
    if row.replaced_version is not None:
        replaced = row.replaced_version, from_json(Route, json.loads(row.replaced_route))
    return Served(release_of(row), from_json(Route, json.loads(row.route)), row.updated_at, replaced)
