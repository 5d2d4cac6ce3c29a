"""What was live at a time, and who let it: answered from the ledger alone.

The table of releases says what is live now, and changes; the ledger says how it came to that, and is chained.
So these answers come from its entries. What an entry only names by its digest, the evidence of a release that
needed no approval, is read from the lake and held against that digest. Shares stand in the routes beside the
ledger, each of which names its release's entry; :func:`verify` holds them against what was published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.delivery.release_history import PRODUCTION, ReleaseHistory
from ml_lifecycle.delivery.release_rows import asked_by, subject_of
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.errors import IntegrityError, LedgerError, LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import DECISION, RELEASE, Entry, Ledger
from ml_lifecycle.records import Release, digest_of, from_json


class UnknownModelError(LifecycleError):
    """The ledger has no release of such a model. Retry: no."""


class UnknownEnvironmentError(LifecycleError):
    """Neither the ledger nor the settings know such an environment. Retry: no."""


class DatabaseUnreadableError(LifecycleError):
    """There is no lifecycle database at a URL, or it does not answer. Retry: if it is a server, yes."""


@dataclass(frozen=True)
class Live:
    """One version that an endpoint served at some time; all but the first three are None if it served none.

    :param role: ``champion``, ``canary`` or ``shadow``; ``standby`` where what was live answered nobody,
        because the next version had all traffic and was still to be confirmed
    :param share: of the users that it answered, 0 to 1; a shadow gets a copy and answers none
    :param state: of the release then; ``confirmed`` for what was live
    :param revision: of the release; ``restores`` the revision whose version a rollback brought back
    :param since: when the release came to be live, or to its share, by the ledger's entry ``ledger_seq``
    :param requested_by: who started the promotion or the rollback; None for what started by itself
    :param trained_for: who started the training; None for schedules
    :param approved_by: None in environments that need no approval, as are the three after it
    :param snapshot_digest: the data version; it and the two after it are None if the evidence is not at hand
    :param train_end: where the training rows end
    """

    environment: str
    endpoint: str
    model: str
    version: str | None = None
    model_digest: str | None = None
    role: str | None = None
    share: float | None = None
    state: str | None = None
    revision: int | None = None
    restores: int | None = None
    since: datetime | None = None
    ledger_seq: int | None = None
    requested_by: str | None = None
    trained_for: str | None = None
    approved_by: str | None = None
    approved_at: datetime | None = None
    approval_reason: str | None = None
    approval_seq: int | None = None
    evidence_digest: str | None = None
    snapshot_digest: str | None = None
    train_end: datetime | None = None
    code_digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, times as ISO text."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


def live_at(
    ledger: Ledger,
    environment: str,
    moment: datetime,
    *,
    model: str | None = None,
    lake: Lake | None = None,
    known: Iterable[str] = (),
) -> list[Live]:
    """Every version that an endpoint of an environment served at ``moment``, by endpoint.

    What was live comes first, then what had a part of the traffic beside it. An endpoint that the ledger
    knows is listed whether or not it served anything then.

    :param model: only this model's endpoints
    :param lake: where evidence is read that is not in the ledger
    :param known: environments beside production that may have no release yet
    :raises UnknownModelError: the ledger has no release of that model. Retry: no.
    :raises UnknownEnvironmentError: it has none there, and nobody else knows of it. Retry: no.
    :raises IntegrityError: evidence in the lake does not have the digest in the ledger. Retry: no.
    :raises LedgerError: a release is not in the table beside the ledger. Retry: no.
    """
    entries = ledger.entries()
    releases = [(entry, from_json(Release, entry.payload)) for entry in entries if entry.kind == RELEASE]
    models = sorted({release.model for _, release in releases})
    if model is not None and model not in models:
        raise UnknownModelError(
            f"the ledger has no release of model {model!r}; it has those of: {', '.join(models) or 'none'}"
        )
    environments = {PRODUCTION, *known, *(release.environment for _, release in releases)}
    if environment not in environments:
        raise UnknownEnvironmentError(
            f"there is no environment {environment!r}; known are: {', '.join(sorted(environments))}"
        )
    endpoints = {
        release.endpoint: Live(environment, release.endpoint, release.model)
        for _, release in releases
        if release.environment == environment and model in (None, release.model)
    }
    routes = _routes(ledger, entries)
    found: list[Live] = []
    for name, nothing in sorted(endpoints.items()):
        told = [
            (entry, release)
            for entry, release in releases
            if (release.environment, release.endpoint) == (environment, name) and entry.at <= moment
        ]
        served = [
            replace(_describe(nothing, entry, release, entries, lake), role=role, share=share)
            for entry, release, role, share in _served(told, routes)
        ]
        found += served or [nothing]
    return found


def _routes(ledger: Ledger, entries: Iterable[Entry]) -> dict[str, Route]:
    """Every release's route by the subject of its entries: a route names the entry of the intent."""
    routes = ReleaseHistory(ledger.database).routes()
    return {
        entry.subject: routes[entry.digest]
        for entry in entries
        if entry.kind == RELEASE and entry.digest in routes
    }


def _served(
    told: Sequence[tuple[Entry, Release]], routes: Mapping[str, Route]
) -> Iterator[tuple[Entry, Release, str, float]]:
    """What was live and what had traffic beside it, with role and share, by what was told of an endpoint."""
    newest = {release.revision: (entry, release) for entry, release in told}
    # A pointer never goes back: what was published last is served, whatever has become of its release since.
    begun = {release.revision: entry for entry, release in told if release.state == "applied"}
    published = newest[max(begun)][1] if begun else None
    variants = {} if published is None else _variants(published, routes)
    rest = 1 - sum(variant.weight for variant in variants.values() if variant.role == "canary")

    def part(release: Release) -> tuple[str, float]:
        variant = variants.get(release.version)
        role = "standby" if variant is None else variant.role
        shares = {"champion": rest, "canary": variant.weight if variant else 0.0}
        return role, shares.get(role, 0.0)

    live = _confirmed(newest)
    if live is not None:
        yield *live, *part(live[1])
    if published is not None and (live is None or live[1].version != published.version):
        role, share = part(published)
        if role != "standby":
            yield begun[published.revision], published, role, share


def _variants(published: Release, routes: Mapping[str, Route]) -> dict[str, Variant]:
    if (route := routes.get(subject_of(published))) is None:
        raise LedgerError(f"release {subject_of(published)} is not in its table as the ledger has it")
    return {variant.version: variant for variant in route.variants}


def _confirmed(newest: Mapping[int, tuple[Entry, Release]]) -> tuple[Entry, Release] | None:
    """The release that was live: of those confirmed by then and not rolled back, the newest."""
    confirmed = [revision for revision, (_, release) in newest.items() if release.state == "confirmed"]
    if not confirmed or newest[max(confirmed)][1].kind == "withdraw":
        return None
    return newest[max(confirmed)]


def _describe(
    where: Live, entry: Entry, release: Release, entries: Sequence[Entry], lake: Lake | None
) -> Live:
    live = replace(
        where,
        version=release.version,
        model_digest=release.model_digest,
        state=release.state,
        revision=release.revision,
        restores=release.restores,
        since=entry.at,
        ledger_seq=entry.seq,
        requested_by=asked_by(release),
        evidence_digest=release.evidence_digest,
    )
    approval = _approval(entries[: entry.seq], release.evidence_digest)
    if approval is not None:
        live = replace(
            live,
            approved_by=approval.payload["user"],
            approved_at=approval.at,
            approval_reason=approval.payload["reason"],
            approval_seq=approval.seq,
        )
    evidence = _evidence(release, lake) if approval is None else approval.payload["evidence"]
    if evidence is None:
        return live
    # Evidence of an older schema may lack what it now has.
    train_end = evidence.get("train_end")
    return replace(
        live,
        trained_for=evidence["requested_by"],
        snapshot_digest=evidence["snapshot_digest"],
        train_end=None if train_end is None else datetime.fromisoformat(train_end),
        code_digest=evidence.get("code_digest"),
    )


def _approval(entries: Sequence[Entry], evidence_digest: str | None) -> Entry | None:
    """The newest yes to this evidence among the entries up to a release."""
    for entry in reversed(entries):
        about_it = (entry.kind, entry.subject) == (DECISION, evidence_digest)
        if about_it and entry.payload["decision"] == "approve":
            return entry
    return None


def _evidence(release: Release, lake: Lake | None) -> Mapping[str, Any] | None:
    if lake is None or release.evidence_digest is None:
        return None
    path = f"evidence/{release.model}/{release.evidence_digest}.json"
    try:
        found: dict[str, Any] = lake.read_json(path)
    except LakeFileMissingError:
        return None
    if digest_of({**found, "digest": "", "path": ""}) != release.evidence_digest:
        raise IntegrityError(f"{lake.uri(path)} is not the evidence that the ledger names by this digest")
    return found


@dataclass(frozen=True)
class Verified:
    """What was checked: ledger entries, heads recorded in published routes, rows of the table of releases."""

    entries: int
    heads: int
    releases: int


def verify(ledger: Ledger, lakes: Iterable[Lake]) -> Verified:
    """Recompute the ledger's chain and hold against it what was written beside it.

    That is the heads that all routes published in ``lakes`` recorded, and the table of releases with its
    routes.

    :raises LedgerError: an entry was edited, removed or inserted, or a release is not what its entries say;
        the message names the first bad ``seq``. Or a route is not what was published. Retry: no.
    """
    routes = [route for lake in lakes for route in published_routes(lake)]
    heads = [route.ledger_head for route in sorted(routes, key=lambda route: route.published_at)]
    entries = ledger.verify(heads)
    history = ReleaseHistory(ledger.database)
    checked = Verified(entries, len(heads), history.verify())
    kept = history.routes()
    for route in routes:
        if kept.get(route.ledger_head, route) != route:
            raise LedgerError(
                f"revision {route.revision} of {route.endpoint} is not routed as it was published"
            )
    return checked


def published_routes(lake: Lake) -> list[Route]:
    """All revisions of all endpoints that an environment's lake has."""
    return [
        from_json(Route, lake.read_json(path))
        for endpoint in lake.folders("routes")
        for path in lake.list(f"routes/{endpoint}")
        if not path.endswith("/current.json")
    ]


def open_ledger(url: str) -> Ledger:
    """The ledger of a lifecycle database that is there already; reading never makes one.

    :raises DatabaseUnreadableError: there is no such database, or no ledger in it. Retry: no; if it is a
        server that does not answer, yes.
    """
    from sqlalchemy import inspect, make_url

    with _readable(url) as shown:
        parsed = make_url(url)
        database = Database(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
            raise DatabaseUnreadableError(f"{shown}: no such file")
        with database.read() as connection:
            found = inspect(connection).has_table("ledger")
    if not found:
        raise DatabaseUnreadableError(f"{shown} is no lifecycle database: it has no ledger")
    return Ledger(database)


def migrate_ledger(url: str) -> str:
    """Make a lifecycle database, or bring it to this version; returns the revision it is at now.

    :raises DatabaseUnreadableError: the URL names no database. Retry: no.
    :raises DatabaseTooNewError: a newer version of this package has been here. Retry: no.
    :raises DatabaseUnavailableError: it does not answer, or has no room. Retry: yes.
    """
    with _readable(url):
        return Database(url).migrate()


@contextmanager
def _readable(url: str) -> Iterator[str]:
    """Say in one sentence, and without its password, that a URL leads to no database."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = url
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        yield shown
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DatabaseUnreadableError(f"{shown}: {reason}") from error


def as_table(environment: str, moment: datetime, found: Sequence[Live]) -> str:
    """For people: a block a version."""
    lines = [f"{environment} at {_time(moment)}"]
    if not found:
        lines.append("none: the ledger has no release there")
    for live in found:
        lines += [live.endpoint, *(f"  {label:<13} {text}" for label, text in _rows(live).items())]
    return "\n".join(lines)


def _rows(live: Live) -> dict[str, str]:
    if live.version is None:
        return {"live": "none"}
    state = "" if live.state in (None, "confirmed") else f", {str(live.state).replace('_', ' ')}"
    restored = "" if live.restores is None else f", which brought back that of revision {live.restores}"
    approval = "none is needed"
    if live.approved_by is not None:
        reason = f': "{live.approval_reason}"' if live.approval_reason else ""
        approval = (
            f"{live.approved_by} at {_time(live.approved_at)} (ledger entry {live.approval_seq}){reason}"
        )
    return {
        "version": f"{live.version} of {live.model}",
        "share": f"{100 * (live.share or 0):.4g} % of the traffic, as {live.role}",
        "model": live.model_digest or "",
        "since": f"{_time(live.since)}, revision {live.revision}{state} (ledger entry {live.ledger_seq})"
        f"{restored}",
        "requested by": live.requested_by or "nobody: it started by itself",
        "trained for": live.trained_for or "nobody that is known",
        "approved by": approval,
        "evidence": live.evidence_digest or "none",
        "data version": live.snapshot_digest or "not in the ledger: name the lake with --lake",
        "data until": _time(live.train_end),
        "code": live.code_digest or "unknown",
    }


def _time(moment: datetime | None) -> str:
    return "unknown" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
