"""Which interval each run stands for, so that runs follow each other without gap.

The runs of a DAG that a schedule made, or that name no interval, are a chain: each goes on where the newest
one that succeeded ended, and so stands for those that failed, or never came, as well. What a run got is
kept: retried or cleared, it stands for the same interval, whatever ran after it. A run that names its
interval is no link of the chain, and is not kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import intervals
from ml_lifecycle.records import Interval


def claim_interval(
    database: Database,
    dag_id: str,
    run_id: str,
    own: Interval,
    *,
    whole: bool,
    succeeded: Callable[[str], bool],
) -> Interval:
    """The interval of a run of the chain: from where the chain stands to ``own.end``, and always the same.

    :param own: what the run stands for if it is the DAG's first
    :param whole: it stands for all of ``own`` even if an earlier run did so for part of it
    :param succeeded: whether the DAG's run with this id did its work
    """
    with database.read() as connection:
        if (kept := _kept(connection, dag_id, run_id)) is not None:
            return kept
        before = (intervals.c.dag_id == dag_id) & (intervals.c.end <= own.end)
        earlier = connection.execute(select(intervals).where(before).order_by(intervals.c.end.desc())).all()
    # Not within a transaction: whoever is asked may take its time.
    start = _goes_on_at(earlier, succeeded) or own.start
    claimed = Interval(min(start, own.start) if whole else start, own.end)
    with database.write() as connection:
        if (kept := _kept(connection, dag_id, run_id)) is not None:
            return kept
        connection.execute(
            insert(intervals).values(dag_id=dag_id, run_id=run_id, start=claimed.start, end=claimed.end)
        )
    return claimed


def _kept(connection: Connection, dag_id: str, run_id: str) -> Interval | None:
    here = (intervals.c.dag_id == dag_id) & (intervals.c.run_id == run_id)
    row = connection.execute(select(intervals.c.start, intervals.c.end).where(here)).first()
    return None if row is None else Interval(row.start, row.end)


def _goes_on_at(earlier: Iterable[Row[Any]], succeeded: Callable[[str], bool]) -> datetime | None:
    """The end of the newest run that did its work; if none did, the start of the first that tried."""
    start: datetime | None = None
    for run in earlier:
        if succeeded(run.run_id):
            end: datetime = run.end
            return end
        start = run.start if start is None else min(start, run.start)
    return start
