"""Watermarks: up to which moment a model's stage has gone. They only move forward."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import insert, select, update

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.tables import watermarks


def watermark(database: Database, model: str, name: str) -> datetime | None:
    """The watermark ``name`` of a model, e.g. ``ingest``; None before its first."""
    with database.read() as connection:
        moment: datetime | None = connection.scalar(
            select(watermarks.c.moment).where(watermarks.c.model == model, watermarks.c.name == name)
        )
    return moment


def advance_watermark(database: Database, model: str, name: str, moment: datetime) -> datetime:
    """Move it to ``moment`` unless it is there or further already; returns where it stands."""
    here = (watermarks.c.model == model) & (watermarks.c.name == name)
    with database.write() as connection:
        standing: datetime | None = connection.scalar(select(watermarks.c.moment).where(here))
        if standing is None:
            connection.execute(insert(watermarks).values(model=model, name=name, moment=moment))
        elif moment > standing:
            connection.execute(update(watermarks).where(here).values(moment=moment))
        else:
            return standing
    return moment
