from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from postgres_kit import PostgresServer
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import StatementError
from waiting import wait_until

from ml_lifecycle.ledger.database import (
    Database,
    DatabaseBusyError,
    DatabaseUrlError,
)
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.ledger.ledger import Ledger, append_entry
from ml_lifecycle.ledger.tables import intervals
from ml_lifecycle.ledger.windows import newest_windows, record_window
from ml_lifecycle.records import Interval

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Database:
    database = Database(database_url)
    database.migrate()
    return database


def claim(database: Database, run_id: str, as_of: datetime) -> Interval:
    own = Interval(START, as_of)
    return claim_interval(database, "delays__train", run_id, own, whole=False, succeeded=lambda _: True)


def ends(database: Database) -> list[datetime]:
    with database.read() as connection:
        return list(connection.scalars(select(intervals.c.end).order_by(intervals.c.end)))


def test_sqlite_s_readers_and_writer_do_not_wait_for_each_other(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/lifecycle.db")
    database.migrate()
    with database.read() as connection:
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


def test_a_reader_sees_one_state(database: Database) -> None:
    with database.read() as connection:
        count = select(func.count()).select_from(intervals)
        assert connection.scalar(count) == 0
        claim(database, "one", NOW)
        assert connection.scalar(count) == 0


def test_a_writer_does_not_wait_for_ever(database_url: str, database: Database) -> None:
    impatient = Database(database_url, busy_seconds=0.2)
    with database.write(), pytest.raises(DatabaseBusyError, match=r"another writer has held .* for 0\.2 s"):
        claim(impatient, "one", NOW)
    assert claim(impatient, "one", NOW) == Interval(START, NOW)


def test_a_writer_that_waited_sees_what_the_other_wrote(postgres: PostgresServer, postgres_url: str) -> None:
    """On a server whose own default would show it the state from before it waited."""
    name = postgres_url.rpartition("/")[2]
    for default in ("isolation TO 'repeatable read'", "read_only TO on"):
        postgres.run("postgres", f"ALTER DATABASE {name} SET default_transaction_{default}")
    database = Database(postgres_url)
    database.migrate()

    def somebody_waits() -> bool:
        with database.read() as connection:
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            return connection.scalar(waiting) == 1

    with ThreadPoolExecutor(1) as pool:
        with database.write() as connection:
            second = pool.submit(Ledger(database).append, "note", "delays", {}, NOW)
            wait_until(somebody_waits, "the second writer waits")
            first = append_entry(connection, "note", "delays", {}, NOW)
        assert second.result(20).previous == first.digest


def test_a_writer_whose_machine_vanished_gives_its_place_up(postgres_url: str) -> None:
    with Database(postgres_url).write() as connection:
        shown = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
    assert shown == "5min"


def test_the_password_is_not_shown() -> None:
    assert "secret" not in repr(Database("postgresql://me:secret@db/lifecycle"))


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


def test_another_kind_of_database_is_refused() -> None:
    with pytest.raises(DatabaseUrlError, match="cannot be on mysql: use sqlite:"):
        Database("mysql://db/lifecycle")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_postgresql_is_reached_by_the_driver_that_is_installed(postgres_url: str, scheme: str) -> None:
    database = Database(postgres_url.replace("postgresql", scheme, 1))
    database.migrate()
    assert claim(database, "one", NOW) == Interval(START, NOW)


def test_a_window_is_one_row_however_often_it_is_monitored(database: Database) -> None:
    first, second = Interval(NOW, NOW + timedelta(days=1)), Interval(NOW, NOW + timedelta(days=2))
    assert record_window(database, "delays", "delays", first, {"alerts": 0}, NOW)
    assert not record_window(database, "delays", "delays", first, {"alerts": 1}, NOW + timedelta(hours=1))
    assert record_window(database, "delays", "delays", second, {"alerts": 2}, NOW)
    newest, oldest = newest_windows(database, ["delays"], 5)["delays"]
    assert (newest.window, newest.payload) == (second, {"alerts": 2})
    assert (oldest.window, oldest.payload) == (first, {"alerts": 1})
    assert oldest.recorded_at == NOW + timedelta(hours=1)
