"""The studies of hyperparameter searches: Optuna's own journal entries, in the lifecycle database.

A study is read by replaying its entries in their order; whoever reads and then writes does both in one
transaction of :meth:`~ml_lifecycle.ledger.database.Database.write`, so that no trial is asked for twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select

from ml_lifecycle.ledger.tables import study_entries
from ml_lifecycle.records import canonical_json


def read_entries(connection: Connection, study: str, since: int = 0) -> Iterator[dict[str, Any]]:
    """A study's entries from number ``since`` on, oldest first."""
    query = (
        select(study_entries.c.entry)
        .where(study_entries.c.study == study, study_entries.c.number >= since)
        .order_by(study_entries.c.number)
    )
    for entry in connection.scalars(query):
        yield json.loads(entry)


def append_entries(connection: Connection, study: str, entries: Sequence[dict[str, Any]]) -> None:
    """Write more; ``connection`` is a writer's."""
    newest = connection.scalar(select(func.max(study_entries.c.number)).where(study_entries.c.study == study))
    first = 0 if newest is None else int(newest) + 1
    rows = [
        {"study": study, "number": first + place, "entry": canonical_json(entry).decode()}
        for place, entry in enumerate(entries)
    ]
    if rows:
        connection.execute(insert(study_entries), rows)
