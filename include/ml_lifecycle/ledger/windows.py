"""Monitored windows: one row each, whatever is retried."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import windows
from ml_lifecycle.records import Interval, canonical_json


@dataclass(frozen=True)
class Window:
    """What a monitoring run found in one span of an endpoint's traffic."""

    model: str
    endpoint: str
    window: Interval
    recorded_at: datetime
    payload: dict[str, Any]


def record_window(
    database: Database, model: str, endpoint: str, window: Interval, payload: dict[str, Any], now: datetime
) -> bool:
    """Write the window's findings; True if it is the first time.

    A window monitored again (more labels have arrived, a retry) has its findings replaced, in the same row.
    """
    here = (
        (windows.c.model == model)
        & (windows.c.endpoint == endpoint)
        & (windows.c.start == window.start)
        & (windows.c.end == window.end)
    )
    values = {"payload": canonical_json(payload).decode(), "recorded_at": now}
    with database.write() as connection:
        if connection.execute(update(windows).where(here).values(values)).rowcount:
            return False
        connection.execute(
            insert(windows).values(
                model=model, endpoint=endpoint, start=window.start, end=window.end, **values
            )
        )
    return True


def newest_windows(database: Database, models: Iterable[str], limit: int) -> dict[str, list[Window]]:
    """The newest windows of each of many models, newest first, in one query."""
    place = func.row_number().over(partition_by=windows.c.model, order_by=windows.c.end.desc())
    ranked = select(windows, place.label("place")).where(windows.c.model.in_(sorted(models))).subquery()
    query = select(ranked).where(ranked.c.place <= limit).order_by(ranked.c.model, ranked.c.place)
    found: dict[str, list[Window]] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            found.setdefault(row.model, []).append(_window(row))
    return found


def _window(row: Row[Any]) -> Window:
    span = Interval(row.start, row.end)
    return Window(row.model, row.endpoint, span, row.recorded_at, json.loads(row.payload))
