"""The rows of the table of releases: read, inserted and changed, each change with its entry of the ledger.

Nothing is decided here. Every function works within its caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.ledger.ledger import RELEASE, append_entry
from ml_lifecycle.ledger.tables import releases
from ml_lifecycle.records import Release, canonical_json, from_json, to_json

UNDER_WAY = ("intent", "applied")
APPROVAL_ENDED = "its approval was withdrawn"
"""Why the watch takes a release back that nothing speaks against."""

State = Literal["intent", "applied", "confirmed", "rolled_back", "superseded"]

_FIELDS = tuple(field.name for field in fields(Release))


def insert_release(
    connection: Connection, release: Release, variants: Sequence[Variant], now: datetime
) -> None:
    """Insert a release with its route, which holds the digest of the release's ledger entry."""
    entry = _record(connection, release, now)
    route = Route(
        endpoint=release.endpoint,
        model=release.model,
        revision=release.revision,
        variants=tuple(variants),
        ledger_head=entry,
        published_at=now,
        salt=release.evidence_digest or "",
    )
    values: dict[str, Any] = {name: getattr(release, name) for name in _FIELDS}
    values["route"] = canonical_json(to_json(route)).decode()
    connection.execute(insert(releases).values(**values, updated_at=now))


def set_state(
    connection: Connection, release: Release, state: State, now: datetime, reason: str | None = None
) -> Release:
    """Change a release's state."""
    changed = replace(release, state=state, reason=release.reason if reason is None else reason)
    connection.execute(
        update(releases)
        .where(_is(release))
        .values(state=changed.state, reason=changed.reason, request=changed.request, updated_at=now)
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
        subject=subject_of(release),
        key=release.state,
    ).digest


def live_release(connection: Connection, environment: str, endpoint: str) -> Release | None:
    """The newest confirmed release; None if there is none, or it withdrew what was served."""
    query = newest_first(environment, endpoint).where(releases.c.state == "confirmed")
    newest = first_release(connection, query)
    return None if newest is None or newest.kind == "withdraw" else newest


def release_under_way(connection: Connection, environment: str, endpoint: str) -> Release | None:
    """The release that has begun and is neither confirmed nor rolled back."""
    query = newest_first(environment, endpoint).where(releases.c.state.in_(UNDER_WAY))
    return first_release(connection, query)


def next_revision(connection: Connection, environment: str, endpoint: str) -> int:
    """The revision of the release that comes next."""
    newest = first_release(connection, newest_first(environment, endpoint))
    return 1 if newest is None else newest.revision + 1


def get_release(connection: Connection, environment: str, endpoint: str, revision: int) -> Release:
    """One release."""
    query = newest_first(environment, endpoint).where(releases.c.revision == revision)
    return release_of(connection.execute(query).one())


def route_of(connection: Connection, release: Release) -> Route:
    """The route of a release, exactly as it is published."""
    text = connection.execute(select(releases.c.route).where(_is(release))).scalar_one()
    return from_json(Route, json.loads(text))


def newest_first(environment: str, endpoint: str) -> Any:
    """The query for an endpoint's releases."""
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


def first_release(connection: Connection, query: Any) -> Release | None:
    """The first release that a query gives."""
    row = connection.execute(query.limit(1)).first()
    return None if row is None else release_of(row)


def release_of(row: Row[Any]) -> Release:
    """A row as a record."""
    return Release(**{name: getattr(row, name) for name in _FIELDS})


def subject_of(release: Release) -> str:
    """What the ledger's entries about a release have as their subject."""
    return f"{release.environment}/{release.endpoint}/{release.revision}"


def name_of(release: Release) -> str:
    """What messages call a release."""
    return f"{release.environment}/{release.endpoint} revision {release.revision}"


def asked_by(release: Release) -> str | None:
    """Who asked for it; None for what began by itself, as schedules do, and the watch when it takes back."""
    # In older ledgers, a rollback that nobody asked for names who asked for the release that it takes back.
    return None if began_by_itself(release) else release.requested_by


def began_by_itself(release: Release) -> bool:
    """Whether it is a rollback that no person asked for."""
    # What people wish is kept on the last step only; a rollback that nobody asked for has no other.
    return release.kind != "deploy" and release.request is None and release.state != "superseded"
