from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from ledger_processes import migrate_and_write
from sqlalchemy import func, insert, select
from sqlalchemy.exc import StatementError

from ml_lifecycle.ledger.database import Database, DatabaseUrlError
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.ledger.tables import intervals, metadata, windows
from ml_lifecycle.ledger.windows import newest_windows, record_window
from ml_lifecycle.records import Interval

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/lifecycle.db")
    database.migrate()
    return database


def claim(database: Database, run_id: str, as_of: datetime) -> Interval:
    own = Interval(START, as_of)
    return claim_interval(database, "delays__train", run_id, own, whole=False, succeeded=lambda _: True)


def ends(database: Database) -> list[datetime]:
    with database.read() as connection:
        return list(connection.scalars(select(intervals.c.end).order_by(intervals.c.end)))


def test_migrations_make_the_declared_tables(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_again_keeps_what_is_there(database: Database) -> None:
    claim(database, "one", NOW)
    database.migrate()
    assert ends(database) == [NOW]


def test_several_processes_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/lifecycle.db"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=migrate_and_write, args=(url, f"w{n}")) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    with Database(url).read() as connection:
        assert connection.scalar(select(func.count()).select_from(windows)) == 3
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_an_exception_undoes_the_whole_transaction(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(insert(intervals).values(dag_id="d", run_id="r", start=START, end=NOW))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert ends(database) == []


def test_a_reader_is_not_held_up_by_a_writer(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(intervals).values(dag_id="d", run_id="r", start=START, end=NOW))
        assert ends(database) == []


def test_times_are_utc(database: Database) -> None:
    east = datetime(2026, 3, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    claim(database, "one", east)
    (stored,) = ends(database)
    assert stored == east
    assert stored.isoformat() == "2026-03-01T12:00:00.123456+00:00"


def test_a_time_without_offset_is_refused(database: Database) -> None:
    naive = insert(intervals).values(dag_id="d", run_id="r", start=datetime(2026, 3, 1), end=NOW)  # noqa: DTZ001
    with pytest.raises(StatementError, match="has no offset"), database.write() as connection:
        connection.execute(naive)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(DatabaseUrlError, match="needs a file"):
        Database(url)


def test_a_window_is_one_row_however_often_it_is_monitored(database: Database) -> None:
    first, second = Interval(NOW, NOW + timedelta(days=1)), Interval(NOW, NOW + timedelta(days=2))
    assert record_window(database, "delays", "delays", first, {"alerts": 0}, NOW)
    assert not record_window(database, "delays", "delays", first, {"alerts": 1}, NOW + timedelta(hours=1))
    assert record_window(database, "delays", "delays", second, {"alerts": 2}, NOW)
    newest, oldest = newest_windows(database, ["delays"], 5)["delays"]
    assert (newest.window, newest.payload) == (second, {"alerts": 2})
    assert (oldest.window, oldest.payload) == (first, {"alerts": 1})
    assert oldest.recorded_at == NOW + timedelta(hours=1)
