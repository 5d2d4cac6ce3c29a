"""Open requests for approval: who was asked, about which evidence, and whether that still stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from ml_lifecycle.errors import ApprovalError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import approval_requests as requests
from ml_lifecycle.records import Evidence

Outcome = Literal["approve", "reject", "superseded", "stale"]


@dataclass(frozen=True)
class RequestKey:
    """Which task asks, and for the how-manieth time: a cleared task asks anew."""

    dag_id: str
    run_id: str
    task_id: str
    attempt: int = 1

    def __str__(self) -> str:
        return f"{self.dag_id}/{self.run_id}/{self.task_id}/{self.attempt}"


@dataclass(frozen=True)
class ApprovalRequest:
    """One time that people were asked.

    :param assigned: who may answer
    :param deadline: no answer counts from then on; None in rows older than the column
    :param outcome: None while open; ``superseded`` by a newer candidate's evidence, ``stale`` if the
        champion changed meanwhile
    """

    key: RequestKey
    model: str
    version: str
    evidence_digest: str
    assigned: tuple[str, ...]
    opened_at: datetime
    deadline: datetime | None = None
    closed_at: datetime | None = None
    outcome: Outcome | None = None
    superseded_by: str | None = None


def open_request(
    database: Database,
    evidence: Evidence,
    key: RequestKey,
    assigned: Sequence[str],
    now: datetime,
    deadline: datetime | None = None,
) -> ApprovalRequest:
    """Open a request and supersede the model's open ones. Opening the same one again returns it.

    :raises ApprovalError: a newer candidate has asked already, or the same task about other evidence.
        Retry: no.
    """
    with database.write() as connection:
        if (existing := get_request(connection, key)) is not None:
            if existing.evidence_digest != evidence.digest:
                raise ApprovalError(f"request {key} is open for evidence {existing.evidence_digest} already")
            return existing
        _refuse_if_outdated(connection, evidence)
        _refuse_if_other_evidence_is_shown(connection, evidence, key)
        supersede_requests(connection, evidence.model, evidence.digest, now)
        connection.execute(
            insert(requests).values(
                model=evidence.model,
                version=evidence.version,
                evidence_digest=evidence.digest,
                dag_id=key.dag_id,
                run_id=key.run_id,
                task_id=key.task_id,
                attempt=key.attempt,
                assigned=json.dumps(list(assigned)),
                opened_at=now,
                deadline=deadline,
            )
        )
    return ApprovalRequest(
        key, evidence.model, evidence.version, evidence.digest, tuple(assigned), now, deadline
    )


def get_request(connection: Connection, key: RequestKey) -> ApprovalRequest | None:
    """The request of this key, open or closed."""
    row = connection.execute(select(requests).where(_is(key))).first()
    return None if row is None else _request(row)


def close_request(connection: Connection, key: RequestKey, outcome: Outcome, now: datetime) -> None:
    """Close it; a closed one keeps its outcome."""
    connection.execute(
        update(requests).where(_is(key), requests.c.outcome.is_(None)).values(outcome=outcome, closed_at=now)
    )


def supersede_requests(connection: Connection, model: str, evidence_digest: str, now: datetime) -> int:
    """Close the model's open requests in favour of newer evidence; how many those were."""
    return connection.execute(
        update(requests)
        .where(requests.c.model == model, requests.c.outcome.is_(None))
        .values(outcome="superseded", superseded_by=evidence_digest, closed_at=now)
    ).rowcount


def open_requests(database: Database, model: str | None = None) -> list[ApprovalRequest]:
    """Requests nobody has answered yet, oldest first; of one model or of all."""
    query = select(requests).where(requests.c.outcome.is_(None)).order_by(requests.c.id)
    if model is not None:
        query = query.where(requests.c.model == model)
    with database.read() as connection:
        return [_request(row) for row in connection.execute(query)]


def decided_versions(database: Database, model: str) -> frozenset[str]:
    """The versions of the model that somebody approved or rejected."""
    decided = requests.c.outcome.in_(("approve", "reject"))
    with database.read() as connection:
        query = select(requests.c.version).where(requests.c.model == model, decided)
        return frozenset(connection.scalars(query))


def _refuse_if_outdated(connection: Connection, evidence: Evidence) -> None:
    versions = connection.scalars(select(requests.c.version).where(requests.c.model == evidence.model)).all()
    newest = max(map(int, versions), default=0)
    if newest > int(evidence.version):
        raise ApprovalError(
            f"version {evidence.version} of {evidence.model} is superseded: "
            f"approval was requested for version {newest} already"
        )


def _refuse_if_other_evidence_is_shown(connection: Connection, evidence: Evidence, key: RequestKey) -> None:
    """A cleared task's page keeps its first text (apache/airflow#73235): people would judge the wrong one."""
    shown = connection.scalar(
        select(requests.c.evidence_digest)
        .where(_same_task(key), requests.c.evidence_digest != evidence.digest)
        .limit(1)
    )
    if shown is not None:
        raise ApprovalError(
            f"run {key.run_id} asked about evidence {shown} before, and its page still shows that, "
            f"not {evidence.digest}: start another run of {key.dag_id} for version {evidence.version}"
        )


def _same_task(key: RequestKey) -> Any:
    return (
        (requests.c.dag_id == key.dag_id)
        & (requests.c.run_id == key.run_id)
        & (requests.c.task_id == key.task_id)
    )


def _is(key: RequestKey) -> Any:
    return _same_task(key) & (requests.c.attempt == key.attempt)


def _request(row: Row[Any]) -> ApprovalRequest:
    return ApprovalRequest(
        key=RequestKey(row.dag_id, row.run_id, row.task_id, row.attempt),
        model=row.model,
        version=row.version,
        evidence_digest=row.evidence_digest,
        assigned=tuple(json.loads(row.assigned)),
        opened_at=row.opened_at,
        deadline=row.deadline,
        closed_at=row.closed_at,
        outcome=row.outcome,
        superseded_by=row.superseded_by,
    )
