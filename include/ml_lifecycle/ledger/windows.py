"""Monitored windows: one row each, whatever is retried."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update

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


def recorded_windows(database: Database, model: str, limit: int = 100) -> list[Window]:
    """The newest windows of a model, newest first."""
    query = select(windows).where(windows.c.model == model).order_by(windows.c.end.desc()).limit(limit)
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [_window(row) for row in rows]


def _window(row: Row[Any]) -> Window:
    span = Interval(row.start, row.end)
    return Window(row.model, row.endpoint, span, row.recorded_at, json.loads(row.payload))
