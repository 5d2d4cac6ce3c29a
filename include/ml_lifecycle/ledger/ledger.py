"""The ledger: append-only and hash-chained. What was decided and released, when, and by whom.

It protects against users and operators of Airflow, not against whoever holds the database's credentials:
those can rewrite the whole chain. So that this is found out too, the digest of its newest entry goes into
every published route, outside the database; :meth:`Ledger.verify` compares with those.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from ml_lifecycle.errors import LedgerError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import ledger
from ml_lifecycle.records import Approval, canonical_json, digest_of

GENESIS = "0" * 64
"""What the first entry names as the digest before it."""

DECISION = "decision"
"""Kind of the entries that say yes or no to evidence; their subject is the evidence digest."""

RELEASE = "release"
"""Kind of the entries that say what became of a release; their subject is environment/endpoint/revision."""

TRAINING = "training"
"""Kind of the entries that say what a training cost; their subject is the training's digest."""

_LONGEST_REASON = 2000


@dataclass(frozen=True)
class Entry:
    """One entry.

    :param subject: what it is about: an evidence digest, ``environment/endpoint/revision``
    :param key: unique within its kind and subject; None for entries that may repeat
    :param previous: digest of the entry before it
    :param digest: over all other fields
    """

    seq: int
    at: datetime
    kind: str
    model: str
    subject: str
    key: str | None
    payload: dict[str, Any]
    previous: str
    digest: str


def legible(words: str) -> str:
    """What somebody wrote, as every database and page can keep it: 2,000 characters, none of them hidden.

    PostgreSQL takes no NUL, UTF-8 no half of a surrogate pair; both come through JSON.
    """
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in words)
    return shown if len(shown) <= _LONGEST_REASON else f"{shown[: _LONGEST_REASON - 1]}…"


def append_entry(
    connection: Connection,
    kind: str,
    model: str,
    payload: dict[str, Any],
    now: datetime,
    *,
    subject: str = "",
    key: str | None = None,
) -> Entry:
    """Append within a transaction of :meth:`Database.write`, together with what the entry is about.

    An entry of the same kind, subject and key is returned as it stands, and nothing is written.
    """
    if key is not None and (existing := find_entry(connection, kind, subject, key)) is not None:
        return existing
    newest = connection.execute(
        select(ledger.c.seq, ledger.c.digest).order_by(ledger.c.seq.desc()).limit(1)
    ).first()
    values: dict[str, Any] = {
        "seq": 1 if newest is None else newest.seq + 1,
        "at": now.astimezone(UTC),
        "kind": kind,
        "model": model,
        "subject": subject,
        "key": key,
        "payload": canonical_json(payload).decode(),
        "previous": GENESIS if newest is None else newest.digest,
    }
    values["digest"] = _digest(values)
    connection.execute(insert(ledger).values(values))
    return Entry(**{**values, "payload": payload})


def find_entry(connection: Connection, kind: str, subject: str, key: str) -> Entry | None:
    """:meth:`Ledger.find` within a transaction."""
    row = connection.execute(
        select(ledger).where(ledger.c.kind == kind, ledger.c.subject == subject, ledger.c.key == key)
    ).first()
    return None if row is None else _entry(row)


def approval_in(connection: Connection, evidence_digest: str) -> Approval | None:
    """:meth:`Ledger.approval_for` within a transaction."""
    row = connection.execute(
        select(ledger)
        .where(ledger.c.kind == DECISION, ledger.c.subject == evidence_digest)
        .order_by(ledger.c.seq.desc())
        .limit(1)
    ).first()
    return None if row is None else as_approval(_entry(row))


def withdraw_approval(
    connection: Connection, model: str, evidence_digest: str, user: str | None, reason: str, now: datetime
) -> None:
    """Take an approval back, if there is one: what people rolled back is judged anew before it returns."""
    if approval_in(connection, evidence_digest) is not None:
        payload = {"decision": "withdraw", "user": user, "reason": reason}
        append_entry(connection, DECISION, model, payload, now, subject=evidence_digest)


def as_approval(entry: Entry) -> Approval | None:
    """A decision as the approval it is; None for a rejection or a withdrawal."""
    if entry.payload["decision"] != "approve":
        return None
    return Approval(
        model=entry.model,
        version=entry.payload["evidence"]["version"],
        evidence_digest=entry.subject,
        approved_by=entry.payload["user"],
        approved_at=entry.at,
        ledger_seq=entry.seq,
        reason=entry.payload["reason"],
    )


@dataclass(frozen=True)
class GivenApproval:
    """An approval as it was given, whatever was decided later.

    :param ended: the rejection or withdrawal that ended it; None while nothing has
    """

    approval: Approval
    ended: Entry | None = None


class Ledger:
    """The ledger in a lifecycle database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def append(
        self,
        kind: str,
        model: str,
        payload: dict[str, Any],
        now: datetime,
        *,
        subject: str = "",
        key: str | None = None,
    ) -> Entry:
        """:func:`append_entry` in a transaction of its own."""
        with self.database.write() as connection:
            return append_entry(connection, kind, model, payload, now, subject=subject, key=key)

    def find(self, kind: str, subject: str, key: str) -> Entry | None:
        """The entry of this kind, subject and key."""
        with self.database.read() as connection:
            return find_entry(connection, kind, subject, key)

    def head(self) -> str:
        """Digest of the newest entry; :data:`GENESIS` while there is none."""
        with self.database.read() as connection:
            head: str | None = connection.scalar(
                select(ledger.c.digest).order_by(ledger.c.seq.desc()).limit(1)
            )
        return head or GENESIS

    def entries(self, model: str | None = None) -> list[Entry]:
        """The entries of one model, or all, oldest first."""
        query = select(ledger).order_by(ledger.c.seq)
        if model is not None:
            query = query.where(ledger.c.model == model)
        with self.database.read() as connection:
            return [_entry(row) for row in connection.execute(query)]

    def approval_for(self, evidence_digest: str) -> Approval | None:
        """The approval of exactly this evidence, if that is what was decided last about it."""
        with self.database.read() as connection:
            return approval_in(connection, evidence_digest)

    def approvals(self, evidence_digests: Iterable[str]) -> dict[str, list[GivenApproval]]:
        """Every approval that was given to each evidence, oldest first; those never approved are left out."""
        query = (
            select(ledger)
            .where(ledger.c.kind == DECISION, ledger.c.subject.in_(sorted(set(evidence_digests))))
            .order_by(ledger.c.seq)
        )
        with self.database.read() as connection:
            entries = [_entry(row) for row in connection.execute(query)]
        found: dict[str, list[GivenApproval]] = {}
        for entry in entries:
            given = found.setdefault(entry.subject, [])
            if (approval := as_approval(entry)) is not None:
                given.append(GivenApproval(approval))
            elif given and given[-1].ended is None:
                given[-1] = GivenApproval(given[-1].approval, entry)
        return found

    def verify(self, known_heads: Iterable[str] = ()) -> int:
        """Recompute the chain, and find every known head in it; returns how many entries there are.

        :param known_heads: digests of newest entries as recorded outside the database, oldest first
        :raises LedgerError: an entry was edited, removed or inserted; the message names the first bad
            ``seq``. Retry: no.
        """
        seqs: dict[str, int] = {}
        previous = GENESIS
        with self.database.read() as connection:
            for expected, row in enumerate(connection.execute(select(ledger).order_by(ledger.c.seq)), 1):
                if row.seq != expected:
                    raise LedgerError(f"ledger entry {expected} is missing: the next one is {row.seq}")
                if row.previous != previous:
                    raise LedgerError(f"ledger entry {row.seq} does not follow on entry {row.seq - 1}")
                if row.digest != _digest(row._asdict()):
                    raise LedgerError(f"ledger entry {row.seq} was edited: its digest is another")
                previous = row.digest
                seqs[row.digest] = row.seq
        last_known = 0
        for head in known_heads:
            if head != GENESIS and head not in seqs:
                raise LedgerError(
                    f"the ledger was rewritten from entry {last_known + 1} on, or later: "
                    f"the head {head} that a release recorded is not in it"
                )
            last_known = max(last_known, seqs.get(head, 0))
        return len(seqs)


def _digest(values: dict[str, Any]) -> str:
    sealed = {name: value for name, value in values.items() if name not in ("at", "digest")}
    return digest_of({**sealed, "at": values["at"].isoformat()})


def _entry(row: Row[Any]) -> Entry:
    return Entry(**{**row._asdict(), "payload": json.loads(row.payload)})
