"""The order of releases: decided in the lifecycle database by compare-and-set, copied to the lake.

A release goes ``intent → applied → confirmed``, or ends ``rolled_back``. Per endpoint at most one is under
way, and it is the newest. **Live is the newest confirmed release**: one that is under way changes nothing
until it is confirmed, in the same transaction that takes the one before it out of service.

A release that goes step by step has a revision a step: in one transaction the former is ``superseded`` and
the next begins, so that there is no moment in which none is under way. The last is confirmed.

Going back is itself a release, a ``restore``: a new, higher revision with an earlier release's route. It
restores the newest earlier ``deploy`` that was confirmed and never rolled back, so that a second rollback
goes further back. Every change of state is an entry of the ledger, written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.release_history import PRODUCTION, ReleaseHistory
from ml_lifecycle.delivery.release_rows import (
    first_release,
    get_release,
    insert_release,
    live_release,
    name_of,
    newest_first,
    next_revision,
    release_under_way,
    route_of,
    set_state,
)
from ml_lifecycle.delivery.route import Variant, publish
from ml_lifecycle.errors import (
    NothingToRollBackToError,
    ReleaseConflictError,
    ReleaseUnderWayError,
)
from ml_lifecycle.ledger.ledger import legible, withdraw_approval
from ml_lifecycle.ledger.tables import releases
from ml_lifecycle.records import Release


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


class Releases(ReleaseHistory):
    """The releases of all endpoints, and what changes them."""

    def begin(self, deployment: Deployment, now: datetime) -> Release:
        """Write the intent to release; a release of the same evidence that is under way is returned.

        :raises ReleaseUnderWayError: another release is under way. Retry: yes, once it has ended.
        :raises ReleaseConflictError: another one is live than expected. Retry: no.
        """
        where = deployment.environment, deployment.endpoint
        with self._database.write() as connection:
            if (busy := release_under_way(connection, *where)) is not None:
                if is_of(busy, deployment.evidence_digest):
                    return busy
                raise conflict(busy)
            live = live_release(connection, *where)
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
                revision=next_revision(connection, *where),
                state="intent",
                version=deployment.version,
                model_digest=deployment.model_digest,
                evidence_digest=deployment.evidence_digest,
                strategy=deployment.strategy,
                created_at=now,
                previous_revision=revision,
                requested_by=deployment.requested_by,
            )
            insert_release(connection, release, deployment.variants, now)
        return release

    def advance(
        self, release: Release, variants: Sequence[Variant], now: datetime, *, reason: str = ""
    ) -> Release:
        """Write the intent of its next step, which takes its place; called again, that one is returned.

        :param variants: the next step's
        :raises ReleaseConflictError: it was rolled back meanwhile, or was never applied. Retry: no.
        """
        where = release.environment, release.endpoint
        with self._database.write() as connection:
            standing = _standing(connection, release)
            if standing.state == "superseded":
                following = get_release(connection, *where, standing.revision + 1)
                return _standing(connection, following)
            if standing.state != "applied":
                raise ReleaseConflictError(f"{name_of(standing)} is {standing.state}: there is no next step")
            following = replace(
                standing,
                revision=next_revision(connection, *where),
                state="intent",
                created_at=now,
                reason=legible(reason) or standing.reason,
            )
            # A wish of people is fulfilled by one release: by the last step.
            set_state(connection, replace(standing, request=None), "superseded", now)
            insert_release(connection, following, variants, now)
        return following

    def begin_restore(
        self,
        replaced: Release,
        now: datetime,
        *,
        reason: str,
        requested_by: str | None = None,
        request: str | None = None,
        withdraw: bool = False,
    ) -> Release:
        """Write the intent to go back from ``replaced``.

        If that is under way it is rolled back at once and what is live is published anew (or nothing, if
        nothing is: a ``withdraw``). If it is live, the newest earlier confirmed release takes its place,
        and it is rolled back when the restore is confirmed.

        :param request: set when people ask: a name for their wish, under which :meth:`requested` finds it
            again. It takes the approval of what is rolled back too; failed checks leave that standing
        :param withdraw: take the approval of a release under way too, though nobody asked
        What is to be served again begins as a standby beside what is live, to be checked; :meth:`advance`
        gives it the traffic. Only what is live already is published at once.

        :raises ReleaseConflictError: ``replaced`` is neither under way nor live any more. Retry: no.
        :raises NothingToRollBackToError: no earlier confirmed release exists. Retry: no.
        """
        where, reason = (replaced.environment, replaced.endpoint), legible(reason)
        with self._database.write() as connection:
            busy, live = release_under_way(connection, *where), live_release(connection, *where)
            if busy is not None and busy.revision == replaced.revision:
                set_state(connection, busy, "rolled_back", now, reason)
                if request is not None or withdraw:
                    _withdraw_approval(connection, busy, requested_by, reason, now)
                target = None if live is None else _origin(connection, live)
            elif busy is not None:
                raise conflict(busy)
            elif live is not None and live.revision == replaced.revision:
                target = _before(connection, _origin(connection, live))
            else:
                raise ReleaseConflictError(f"{name_of(replaced)} is neither under way nor live any more")
            release = replace(
                target or replaced,
                revision=next_revision(connection, *where),
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
            insert_release(connection, release, _restored(connection, target, live), now)
        return release

    def apply(self, release: Release, lake: Lake, now: datetime) -> Release:
        """Publish its route to the environment's lake; doing it again changes nothing.

        The lake's pointer is written while the database's only writer, so that it never goes back: neither
        can two releases publish at once, nor a slow one after another that has rolled it back.

        :raises ReleaseConflictError: it was rolled back meanwhile. Retry: no.
        """
        with self._database.write() as connection:
            standing = _standing(connection, release)
            if standing.revision + 1 == next_revision(connection, release.environment, release.endpoint):
                publish(lake, route_of(connection, standing))
            if standing.state != "intent":
                return standing
            return set_state(connection, standing, "applied", now)

    def confirmed(self, release: Release, now: datetime, *, reason: str = "") -> Release:
        """It is live from now on; what a restore replaces is rolled back in the same transaction.

        :param reason: what is to be known about it
        :raises ReleaseConflictError: it was rolled back meanwhile, or has gone to its next step. Retry: no.
        """
        with self._database.write() as connection:
            standing = _standing(connection, release)
            if standing.state == "confirmed":
                return standing
            if standing.state == "superseded":
                raise ReleaseConflictError(f"{name_of(standing)} has gone on to its next step")
            _retire_replaced(connection, standing, now)
            told = "; ".join(filter(None, (standing.reason, legible(reason))))
            return set_state(connection, standing, "confirmed", now, told)


def _standing(connection: Connection, release: Release) -> Release:
    standing = get_release(connection, release.environment, release.endpoint, release.revision)
    if standing.state == "rolled_back":
        raise ReleaseConflictError(f"{name_of(standing)} was rolled back meanwhile: {standing.reason}")
    return standing


def is_of(busy: Release, evidence_digest: str) -> bool:
    """Whether a release under way brings exactly this evidence to its endpoint."""
    return busy.kind == "deploy" and busy.evidence_digest == evidence_digest


def conflict(busy: Release) -> ReleaseUnderWayError:
    """The error of who comes while ``busy`` is under way."""
    return ReleaseUnderWayError(
        f"{name_of(busy)} (version {busy.version}) is under way: let its task end or run it again; "
        "a rollback of the endpoint ends it too"
    )


def _retire_replaced(connection: Connection, restore: Release, now: datetime) -> None:
    """Roll back what a restore replaces, and what that one had itself restored."""
    if restore.replaces is None:
        return
    replaced = get_release(connection, restore.environment, restore.endpoint, restore.replaces)
    if replaced.state == "rolled_back":
        return
    origin = _origin(connection, replaced)
    _withdraw_approval(connection, replaced, restore.requested_by, restore.reason, now)
    set_state(connection, replaced, "rolled_back", now, restore.reason)
    if origin.revision != replaced.revision:
        set_state(connection, origin, "rolled_back", now, restore.reason)


def _restored(connection: Connection, target: Release | None, live: Release | None) -> tuple[Variant, ...]:
    """The variants that a restore begins with: what is to be served again, or both while it is checked."""
    if target is None or live is None:
        return ()
    champion = route_of(connection, target).champion
    beside = route_of(connection, live).champion
    # One version cannot stand beside itself: it would not be told which is meant.
    if target.revision == _origin(connection, live).revision or beside.version == champion.version:
        return (champion,)
    return (beside, replace(champion, role="standby", weight=0.0))


def _withdraw_approval(
    connection: Connection, release: Release, user: str | None, reason: str, now: datetime
) -> None:
    if release.environment == PRODUCTION and release.evidence_digest is not None:
        withdraw_approval(connection, release.model, release.evidence_digest, user, reason, now)


def _origin(connection: Connection, release: Release) -> Release:
    """The ``deploy`` whose version it serves."""
    if release.restores is None:
        return release
    return get_release(connection, release.environment, release.endpoint, release.restores)


def _before(connection: Connection, origin: Release) -> Release:
    query = newest_first(origin.environment, origin.endpoint).where(
        releases.c.kind == "deploy",
        releases.c.state == "confirmed",
        releases.c.revision < origin.revision,
    )
    if (earlier := first_release(connection, query)) is None:
        raise NothingToRollBackToError(
            f"{origin.environment}/{origin.endpoint} has no confirmed release before revision "
            f"{origin.revision} that was never rolled back"
        )
    return earlier
