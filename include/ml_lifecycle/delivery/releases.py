"""The order of releases: decided in the lifecycle database by compare-and-set, copied to the lake.

A release goes ``intent → applied → confirmed``, or ends ``rolled_back``. Per endpoint at most one is under
way, and it is the newest. **Live is the newest confirmed release**: one that is under way changes nothing
until it is confirmed, in the same transaction that takes the one before it out of service.

Going back is itself a release, a ``restore``: a new, higher revision with an earlier release's route. It
restores the newest earlier ``deploy`` that was confirmed and never rolled back, so that a second rollback
goes further back. Every change of state is an entry of the ledger, written in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, insert, select, update

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.errors import (
    LedgerError,
    NothingToRollBackToError,
    ReleaseConflictError,
    ReleaseUnderWayError,
)
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import RELEASE, append_entry, withdraw_approval
from ml_lifecycle.ledger.tables import ledger, releases
from ml_lifecycle.records import Release, canonical_json, from_json, to_json

PRODUCTION = "production"
"""The environment whose live release is the champion, and which takes approved evidence only."""

_FIELDS = tuple(field.name for field in fields(Release))
_UNDER_WAY = ("intent", "applied")
State = Literal["intent", "applied", "confirmed", "rolled_back"]


@dataclass(frozen=True)
class Deployment:
    """What a caller wants to be served.

    :param variants: the route's, with paths in the environment's own lake
    :param expected: revision that was live when the caller looked; None if nothing was
    """

    model: str
    environment: str
    endpoint: str
    version: str
    model_digest: str
    evidence_digest: str
    strategy: str
    variants: tuple[Variant, ...]
    expected: int | None
    requested_by: str | None = None


@dataclass(frozen=True)
class Served:
    """What an endpoint serves.

    :param since: when the release was confirmed
    """

    release: Release
    route: Route
    since: datetime


class Releases:
    """The releases of all endpoints."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live(self, environment: str, endpoint: str) -> Release | None:
        """What the endpoint serves; None before its first confirmed release and after a withdrawal."""
        with self._database.read() as connection:
            return _live(connection, environment, endpoint)

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
            select(releases)
            .join(
                newest,
                (releases.c.endpoint == newest.c.endpoint) & (releases.c.revision == newest.c.revision),
            )
            .where(confirmed, releases.c.kind != "withdraw")
            .order_by(releases.c.endpoint)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Served(_release(row), from_json(Route, json.loads(row.route)), row.updated_at) for row in rows
        ]

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
            rows = {_subject(row): row for row in map(_release, connection.execute(select(releases)))}
            entries = {entry.subject: entry for entry in connection.execute(query)}
        for subject, entry in entries.items():
            if rows.get(subject) != from_json(Release, json.loads(entry.payload)):
                raise LedgerError(f"release {subject} is not in its table as ledger entry {entry.seq} has it")
        if unknown := sorted(rows.keys() - entries.keys()):
            raise LedgerError(f"release {unknown[0]} is in its table, but no ledger entry is about it")
        return len(rows)

    def all_under_way(self, environment: str) -> list[Release]:
        """The releases of all endpoints that have begun and are neither confirmed nor rolled back."""
        query = select(releases).where(
            releases.c.environment == environment, releases.c.state.in_(_UNDER_WAY)
        )
        with self._database.read() as connection:
            return [_release(row) for row in connection.execute(query)]

    def of_model(self, environment: str, model: str, limit: int) -> list[Release]:
        """The newest releases of a model, newest first."""
        query = (
            select(releases)
            .where(releases.c.environment == environment, releases.c.model == model)
            .order_by(releases.c.created_at.desc(), releases.c.revision.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_release(row) for row in connection.execute(query)]

    def under_way(self, environment: str, endpoint: str) -> Release | None:
        """The release that has begun and is neither confirmed nor rolled back."""
        with self._database.read() as connection:
            return _under_way(connection, environment, endpoint)

    def get(self, environment: str, endpoint: str, revision: int) -> Release:
        """One release."""
        with self._database.read() as connection:
            return _get(connection, environment, endpoint, revision)

    def history(self, environment: str, endpoint: str) -> list[Release]:
        """All releases of an endpoint, newest first."""
        with self._database.read() as connection:
            return [_release(row) for row in connection.execute(_newest_first(environment, endpoint))]

    def requested(self, environment: str, endpoint: str, request: str) -> Release | None:
        """The release begun for a request, whatever became of it."""
        query = _newest_first(environment, endpoint).where(releases.c.request == request)
        with self._database.read() as connection:
            return _first(connection, query)

    def route(self, release: Release) -> Route:
        """The route of a release, exactly as it is published."""
        with self._database.read() as connection:
            return _route(connection, release)

    def begin(self, deployment: Deployment, now: datetime) -> Release:
        """Write the intent to release; a release of the same evidence that is under way is returned.

        :raises ReleaseUnderWayError: another release is under way. Retry: yes, once it has ended.
        :raises ReleaseConflictError: another one is live than expected. Retry: no.
        """
        where = deployment.environment, deployment.endpoint
        with self._database.write() as connection:
            if (busy := _under_way(connection, *where)) is not None:
                if busy.kind == "deploy" and busy.evidence_digest == deployment.evidence_digest:
                    return busy
                raise conflict(busy)
            live = _live(connection, *where)
            revision = None if live is None else live.revision
            if revision != deployment.expected:
                raise ReleaseConflictError(
                    f"{deployment.environment}/{deployment.endpoint}: revision {deployment.expected} was "
                    f"expected to be live, but {revision} is"
                )
            release = Release(
                model=deployment.model,
                environment=deployment.environment,
                endpoint=deployment.endpoint,
                revision=_next_revision(connection, *where),
                state="intent",
                version=deployment.version,
                model_digest=deployment.model_digest,
                evidence_digest=deployment.evidence_digest,
                strategy=deployment.strategy,
                created_at=now,
                previous_revision=revision,
                requested_by=deployment.requested_by,
            )
            _insert(connection, release, deployment.variants, now)
        return release

    def begin_restore(
        self,
        replaced: Release,
        now: datetime,
        *,
        reason: str,
        requested_by: str | None = None,
        request: str | None = None,
    ) -> Release:
        """Write the intent to go back from ``replaced``.

        If that is under way it is rolled back at once and what is live is published anew (or nothing, if
        nothing is: a ``withdraw``). If it is live, the newest earlier confirmed release takes its place,
        and it is rolled back when the restore is confirmed.

        :param request: set when people ask: a name for their wish, under which :meth:`requested` finds it
            again. It takes the approval of what is rolled back too; failed checks leave that standing
        :raises ReleaseConflictError: ``replaced`` is neither under way nor live any more. Retry: no.
        :raises NothingToRollBackToError: no earlier confirmed release exists. Retry: no.
        """
        where = replaced.environment, replaced.endpoint
        with self._database.write() as connection:
            busy, live = _under_way(connection, *where), _live(connection, *where)
            if busy is not None and busy.revision == replaced.revision:
                _set_state(connection, busy, "rolled_back", now, reason)
                if request is not None:
                    _withdraw_approval(connection, busy, requested_by, reason, now)
                target = None if live is None else _origin(connection, live)
            elif busy is not None:
                raise conflict(busy)
            elif live is not None and live.revision == replaced.revision:
                target = _before(connection, _origin(connection, live))
            else:
                raise ReleaseConflictError(f"{_name(replaced)} is neither under way nor live any more")
            release = replace(
                target or replaced,
                revision=_next_revision(connection, *where),
                state="intent",
                kind="withdraw" if target is None else "restore",
                created_at=now,
                previous_revision=None if live is None else live.revision,
                restores=None if target is None else target.revision,
                replaces=replaced.revision,
                reason=reason,
                requested_by=requested_by,
                request=request,
            )
            variants = () if target is None else _route(connection, target).variants
            _insert(connection, release, variants, now)
        return release

    def apply(self, release: Release, lake: Lake, now: datetime) -> Release:
        """Publish its route to the environment's lake; doing it again changes nothing.

        The lake's pointer is written while the database's only writer, so that it never goes back: neither
        can two releases publish at once, nor a slow one after another that has rolled it back.

        :raises ReleaseConflictError: it was rolled back meanwhile. Retry: no.
        """
        with self._database.write() as connection:
            standing = _standing(connection, release)
            if standing.revision + 1 == _next_revision(connection, release.environment, release.endpoint):
                publish(lake, _route(connection, standing))
            if standing.state != "intent":
                return standing
            return _set_state(connection, standing, "applied", now)

    def confirmed(self, release: Release, now: datetime) -> Release:
        """It is live from now on; what a restore replaces is rolled back in the same transaction.

        :raises ReleaseConflictError: it was rolled back meanwhile. Retry: no.
        """
        with self._database.write() as connection:
            standing = _standing(connection, release)
            if standing.state == "confirmed":
                return standing
            _retire_replaced(connection, standing, now)
            return _set_state(connection, standing, "confirmed", now)


def published_heads(lake: Lake, endpoint: str) -> list[str]:
    """The ledger heads that the routes in an environment's lake recorded, oldest first."""
    paths = [path for path in lake.list(f"routes/{endpoint}") if not path.endswith("/current.json")]
    return [from_json(Route, lake.read_json(path)).ledger_head for path in paths]


def _standing(connection: Connection, release: Release) -> Release:
    standing = _get(connection, release.environment, release.endpoint, release.revision)
    if standing.state == "rolled_back":
        raise ReleaseConflictError(f"{_name(standing)} was rolled back meanwhile: {standing.reason}")
    return standing


def conflict(busy: Release) -> ReleaseUnderWayError:
    """The error of who comes while ``busy`` is under way."""
    return ReleaseUnderWayError(
        f"{_name(busy)} (version {busy.version}) is under way: let its task end or run it again; "
        "a rollback of the endpoint ends it too"
    )


def _retire_replaced(connection: Connection, restore: Release, now: datetime) -> None:
    """Roll back what a restore replaces, and what that one had itself restored."""
    if restore.replaces is None:
        return
    replaced = _get(connection, restore.environment, restore.endpoint, restore.replaces)
    if replaced.state == "rolled_back":
        return
    origin = _origin(connection, replaced)
    _withdraw_approval(connection, replaced, restore.requested_by, restore.reason, now)
    _set_state(connection, replaced, "rolled_back", now, restore.reason)
    if origin.revision != replaced.revision:
        _set_state(connection, origin, "rolled_back", now, restore.reason)


def _withdraw_approval(
    connection: Connection, release: Release, user: str | None, reason: str, now: datetime
) -> None:
    if release.environment == PRODUCTION and release.evidence_digest is not None:
        withdraw_approval(connection, release.model, release.evidence_digest, user, reason, now)


def _insert(connection: Connection, release: Release, variants: Sequence[Variant], now: datetime) -> None:
    entry = _record(connection, release, now)
    route = Route(
        endpoint=release.endpoint,
        model=release.model,
        revision=release.revision,
        variants=tuple(variants),
        ledger_head=entry,
        published_at=now,
    )
    values: dict[str, Any] = {name: getattr(release, name) for name in _FIELDS}
    values["route"] = canonical_json(to_json(route)).decode()
    connection.execute(insert(releases).values(**values, updated_at=now))


def _set_state(
    connection: Connection, release: Release, state: State, now: datetime, reason: str | None = None
) -> Release:
    changed = replace(release, state=state, reason=release.reason if reason is None else reason)
    connection.execute(
        update(releases)
        .where(_is(release))
        .values(state=changed.state, reason=changed.reason, updated_at=now)
    )
    _record(connection, changed, now)
    return changed


def _record(connection: Connection, release: Release, now: datetime) -> str:
    return append_entry(
        connection,
        RELEASE,
        release.model,
        to_json(release),
        now,
        subject=_subject(release),
        key=release.state,
    ).digest


def _origin(connection: Connection, release: Release) -> Release:
    """The ``deploy`` whose version it serves."""
    if release.restores is None:
        return release
    return _get(connection, release.environment, release.endpoint, release.restores)


def _before(connection: Connection, origin: Release) -> Release:
    query = _newest_first(origin.environment, origin.endpoint).where(
        releases.c.kind == "deploy",
        releases.c.state == "confirmed",
        releases.c.revision < origin.revision,
    )
    if (earlier := _first(connection, query)) is None:
        raise NothingToRollBackToError(
            f"{origin.environment}/{origin.endpoint} has no confirmed release before revision "
            f"{origin.revision} that was never rolled back"
        )
    return earlier


def _live(connection: Connection, environment: str, endpoint: str) -> Release | None:
    query = _newest_first(environment, endpoint).where(releases.c.state == "confirmed")
    newest = _first(connection, query)
    return None if newest is None or newest.kind == "withdraw" else newest


def _under_way(connection: Connection, environment: str, endpoint: str) -> Release | None:
    query = _newest_first(environment, endpoint).where(releases.c.state.in_(_UNDER_WAY))
    return _first(connection, query)


def _next_revision(connection: Connection, environment: str, endpoint: str) -> int:
    newest = _first(connection, _newest_first(environment, endpoint))
    return 1 if newest is None else newest.revision + 1


def _get(connection: Connection, environment: str, endpoint: str, revision: int) -> Release:
    query = _newest_first(environment, endpoint).where(releases.c.revision == revision)
    return _release(connection.execute(query).one())


def _route(connection: Connection, release: Release) -> Route:
    text = connection.execute(select(releases.c.route).where(_is(release))).scalar_one()
    return from_json(Route, json.loads(text))


def _newest_first(environment: str, endpoint: str) -> Any:
    return (
        select(releases)
        .where(releases.c.environment == environment, releases.c.endpoint == endpoint)
        .order_by(releases.c.revision.desc())
    )


def _is(release: Release) -> Any:
    return (
        (releases.c.environment == release.environment)
        & (releases.c.endpoint == release.endpoint)
        & (releases.c.revision == release.revision)
    )


def _first(connection: Connection, query: Any) -> Release | None:
    row = connection.execute(query.limit(1)).first()
    return None if row is None else _release(row)


def _release(row: Row[Any]) -> Release:
    return Release(**{name: getattr(row, name) for name in _FIELDS})


def _subject(release: Release) -> str:
    return f"{release.environment}/{release.endpoint}/{release.revision}"


def _name(release: Release) -> str:
    return f"{release.environment}/{release.endpoint} revision {release.revision}"
