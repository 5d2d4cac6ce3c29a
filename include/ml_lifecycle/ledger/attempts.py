"""The attempts at each training: which pods were launched for it, where, and what became of them.

The numbers are the fencing tokens: taken here, by one writer at a time, they rise with every pod of a job,
whoever launches it. An attempt whose row was written and whose pod never came costs a number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import attempts
from ml_lifecycle.records import canonical_json
from ml_lifecycle.training.outcomes import Ended, Launch, Outcome


@dataclass(frozen=True)
class AttemptRow:
    """One attempt.

    :param owner: the task instance it was launched for
    :param try_number: of that task
    :param outcome: None while it is open
    :param usage: what the pod said that it used: seconds, bytes
    """

    number: int
    owner: str
    try_number: int
    pool: str
    memory_factor: float
    opened_at: datetime
    closed_at: datetime | None
    outcome: Outcome | None
    usage: dict[str, float]


def open_attempt(
    database: Database, job: str, model: str, owner: str, try_number: int, launch: Launch, now: datetime
) -> int:
    """Take the next number of a job.

    :param job: its digest
    :raises DatabaseUnavailableError: the database does not answer. Retry: yes.
    """
    with database.write() as connection:
        newest = connection.scalar(select(func.max(attempts.c.number)).where(attempts.c.job == job))
        number = int(newest or 0) + 1
        connection.execute(
            insert(attempts).values(
                job=job,
                number=number,
                model=model,
                owner=owner,
                try_number=try_number,
                pool=launch.pool.name if launch.pool else "",
                memory_factor=launch.memory_factor,
                opened_at=now,
            )
        )
    return number


def close_attempt(
    database: Database, job: str, number: int, outcome: Outcome, usage: dict[str, float], now: datetime
) -> None:
    """Say what became of an attempt; one that is closed already stays as it was."""
    here = (attempts.c.job == job) & (attempts.c.number == number) & attempts.c.closed_at.is_(None)
    with database.write() as connection:
        connection.execute(
            update(attempts)
            .where(here)
            .values(
                closed_at=now,
                outcome=outcome.kind,
                message=outcome.message,
                usage=canonical_json(usage).decode(),
            )
        )


def attempts_of(database: Database, job: str, owner: str | None = None) -> tuple[AttemptRow, ...]:
    """The attempts at a job, oldest first; of one owner if given."""
    query = select(attempts).where(attempts.c.job == job).order_by(attempts.c.number)
    if owner is not None:
        query = query.where(attempts.c.owner == owner)
    with database.read() as connection:
        return tuple(_row(row) for row in connection.execute(query))


def history_of(rows: tuple[AttemptRow, ...]) -> tuple[Ended, ...]:
    """Those that are over, as :func:`~ml_lifecycle.training.outcomes.next_launch` asks for them."""
    return tuple(
        Ended(row.outcome, row.try_number, row.pool, row.memory_factor)
        for row in rows
        if row.outcome is not None
    )


def _row(row: Row[Any]) -> AttemptRow:
    return AttemptRow(
        number=row.number,
        owner=row.owner,
        try_number=row.try_number,
        pool=row.pool,
        memory_factor=row.memory_factor,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        outcome=Outcome(row.outcome, row.message or "") if row.outcome else None,
        usage=json.loads(row.usage) if row.usage else {},
    )
