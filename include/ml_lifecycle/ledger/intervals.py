"""Which interval each run stands for, so that runs follow each other without gap or overlap.

A run that names no dates begins where the newest earlier run of its DAG ended. What a run got is kept: retried
or cleared, it stands for the same interval, whatever ran after it.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, insert, select

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import intervals
from ml_lifecycle.records import Interval


def claim_interval(
    database: Database,
    dag_id: str,
    run_id: str,
    as_of: datetime,
    *,
    given: Interval | None,
    first_start: datetime,
) -> Interval:
    """The interval of a run; the same one however often it is asked for.

    :param given: what the run's conf or timetable says; None lets it begin where the last run ended
    :param first_start: where the first run of a DAG begins
    """
    here = (intervals.c.dag_id == dag_id) & (intervals.c.run_id == run_id)
    with database.write() as connection:
        kept = connection.execute(select(intervals.c.start, intervals.c.end).where(here)).first()
        if kept is not None:
            return Interval(kept.start, kept.end)
        if given is None:
            ended: datetime | None = connection.scalar(
                select(func.max(intervals.c.end)).where(intervals.c.dag_id == dag_id, intervals.c.end <= as_of)
            )
            given = Interval(min(ended or first_start, as_of), as_of)
        connection.execute(
            insert(intervals).values(dag_id=dag_id, run_id=run_id, start=given.start, end=given.end)
        )
    return given
