"""The lifecycle database: SQLite embedded, PostgreSQL beyond. Small, and every write is serialised.

Writers are few (a handful a run) and must see each other: a ledger entry names the one before it, a release
the one it follows. So one writer at a time is the design, not a limit: ``BEGIN IMMEDIATE`` on SQLite, a
transaction-long advisory lock on PostgreSQL. Readers never wait.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from ml_lifecycle.errors import LifecycleError

_BUSY_SECONDS = 30
# Any fixed number: it names our lock among the advisory locks of a PostgreSQL database.
_WRITER_LOCK = 7_311_220_514_090_001


class DatabaseUrlError(LifecycleError):
    """The URL names no database that outlives its connection. Retry: no."""


class Database:
    """Connections to the lifecycle database.

    :param url: an SQLAlchemy URL, e.g. ``sqlite:////var/lib/lifecycle.db`` or ``postgresql+psycopg://…``
    :raises DatabaseUrlError: SQLite without a file. Retry: no.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        if self._sqlite and self._url.database in (None, "", ":memory:"):
            raise DatabaseUrlError("the lifecycle database needs a file: sqlite:////absolute/path.db")
        # No pool: Airflow forks its tasks, and a connection must not be shared across a fork.
        self._engine = create_engine(self._url, poolclass=NullPool)
        if self._sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer overlaps; committed at the end, rolled back on an exception."""
        with self._engine.connect().execution_options(writer=True) as connection, connection.begin():
            if not self._sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITER_LOCK})
            yield connection

    def migrate(self) -> None:
        """Bring the tables to this version. Safe when several processes start at once."""
        if self._sqlite:
            self._use_wal()
        config = Config()
        config.set_main_option("script_location", "ml_lifecycle.ledger:migrations")
        config.set_main_option("path_separator", "os")
        with self.write() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _use_wal(self) -> None:
        # The switch is kept in the file. SQLite does not wait for other openers here, busy timeout or not.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                with self._engine.connect() as connection:
                    driver: Any = connection.connection.driver_connection
                    driver.execute("PRAGMA journal_mode=WAL").fetchone()
                return
            except (sqlite3.OperationalError, OperationalError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver opens transactions late and never before DDL; _begin_sqlite says BEGIN itself.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    writer = connection.get_execution_options().get("writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")
