"""What the tests run in processes of their own, importable there."""

from __future__ import annotations

from datetime import UTC, datetime

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.windows import record_window
from ml_lifecycle.records import Interval

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def migrate_and_write(url: str, endpoint: str) -> None:
    """Migrate, then write one window."""
    database = Database(url)
    database.migrate()
    record_window(database, "delays", endpoint, Interval(NOW, NOW), {}, NOW)


def append_many(url: str, name: str, count: int) -> None:
    """Append ``count`` entries of one's own, and as many that every process tries to write."""
    ledger = Ledger(Database(url))
    for n in range(count):
        ledger.append("note", name, {"n": n}, NOW)
        ledger.append("once", name, {"by": name}, NOW, subject="shared", key=str(n))
