"""The lifecycle database: SQLite embedded, PostgreSQL beyond. Small, and every write is serialised.

Writers are few (a handful a run) and must see each other: a ledger entry names the one before it, a release
the one it follows. So one writer at a time is the design, not a limit: ``BEGIN IMMEDIATE`` on SQLite, a
transaction-long advisory lock on PostgreSQL. Readers never wait, and see one state for as long as they read.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from ml_lifecycle.errors import LifecycleError

# Any fixed number: it names our lock among the advisory locks of a PostgreSQL database.
_WRITER_LOCK = 7_311_220_514_090_001
# A server drops a writer that says nothing for so long: its machine is gone, and the lock with it.
_SILENT_SECONDS = 300

# Never the server's or the role's own defaults. A reader sees one state; a writer that has waited must see
# what the one before it wrote, so its snapshot may not be older than its lock.
_POSTGRES_READER = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
_POSTGRES_WRITER = {"isolation_level": "READ COMMITTED", "postgresql_readonly": False}


class DatabaseUrlError(LifecycleError):
    """The URL names no database that could be the lifecycle database. Retry: no."""


class DatabaseBusyError(LifecycleError):
    """Another writer did not end in time. Retry: yes."""

    retryable = True


class DatabaseUnavailableError(LifecycleError):
    """The database does not answer, or its disk has no room; nothing was changed. Retry: yes."""

    retryable = True


class DatabaseTooNewError(LifecycleError):
    """A newer version of this package has migrated the database. Retry: no, install that version."""


class Database:
    """Connections to the lifecycle database.

    :param url: an SQLAlchemy URL: ``sqlite:////var/lib/lifecycle.db``, ``postgresql://user:password@host/name``
    :param busy_seconds: how long a writer waits for its turn
    :raises DatabaseUrlError: SQLite without a file, or neither SQLite nor PostgreSQL. Retry: no.
    """

    def __init__(self, url: str, *, busy_seconds: float = 30) -> None:
        self._url = _checked(make_url(url))
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self._busy_seconds = busy_seconds
        # No pool: Airflow forks its tasks, and a connection must not be shared across a fork.
        self._engine = create_engine(self._url, poolclass=NullPool)
        if self._sqlite:
            event.listen(self._engine, "connect", self._prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database, and changes nothing.

        :raises DatabaseUnavailableError: it does not answer. Retry: yes.
        """
        with (
            self._available(),
            self._connect({} if self._sqlite else _POSTGRES_READER) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other writer overlaps; committed at the end, rolled back on an exception.

        :raises DatabaseBusyError: another writer did not end in time. Retry: yes.
        :raises DatabaseUnavailableError: it does not answer, or has no room. Retry: yes.
        """
        with (
            self._available(),
            self._connect({"writer": True} if self._sqlite else _POSTGRES_WRITER) as connection,
        ):
            try:
                transaction = connection.begin()
                if not self._sqlite:
                    self._lock_postgres(connection)
            except OperationalError as error:
                if "lock" not in str(error.orig):
                    raise
                raise DatabaseBusyError(
                    f"another writer has held {self._url!r} for {self._busy_seconds:g} s: {error.orig}"
                ) from error
            with transaction:
                yield connection

    @contextmanager
    def _available(self) -> Iterator[None]:
        """Say in one sentence that the database cannot be used now."""
        try:
            yield
        except OperationalError as error:
            hint = "; is there room on its disk?" if "disk" in str(error.orig) else ""
            raise DatabaseUnavailableError(
                f"the lifecycle database {self._url!r} cannot be used now: {str(error.orig).strip()}{hint}"
            ) from error

    def migrate(self) -> str:
        """Bring the tables to this version, all or nothing. Safe when several processes start at once.

        :returns: the revision they are at now
        :raises DatabaseTooNewError: a newer version of this package has been here. Retry: no.
        :raises DatabaseUnavailableError: it does not answer, or has no room. Retry: yes.
        """
        if self._sqlite:
            with self._available():
                self._use_wal()
        config = Config()
        config.set_main_option("script_location", "ml_lifecycle.ledger:migrations")
        config.set_main_option("path_separator", "os")
        with self.write() as connection:
            self._refuse_newer(connection, ScriptDirectory.from_config(config))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            return str(MigrationContext.configure(connection).get_current_revision())

    def _connect(self, options: dict[str, Any]) -> Connection:
        return self._engine.connect().execution_options(**options)

    def _refuse_newer(self, connection: Connection, scripts: ScriptDirectory) -> None:
        known = {script.revision for script in scripts.walk_revisions()}
        unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
        if unknown:
            raise DatabaseTooNewError(
                f"{self._url!r} is at revision {', '.join(unknown)}; this version of airflow-ml-lifecycle "
                f"knows up to {scripts.get_current_head()}: install the one that migrated it, or a newer one"
            )

    def _lock_postgres(self, connection: Connection) -> None:
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = {round(self._busy_seconds * 1000)}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {_SILENT_SECONDS * 1000}; "
            f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})"
        )

    def _use_wal(self) -> None:
        # The switch is kept in the file. SQLite does not wait for other openers here, busy timeout or not.
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                with self._engine.connect() as connection:
                    driver: Any = connection.connection.driver_connection
                    driver.execute("PRAGMA journal_mode=WAL").fetchone()
                return
            except (sqlite3.OperationalError, OperationalError) as error:
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        # The driver opens transactions late and never before DDL; _begin_sqlite says BEGIN itself.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={round(self._busy_seconds * 1000)}")
        connection.execute("PRAGMA synchronous=FULL")


def _checked(url: URL) -> URL:
    if url.drivername in ("postgresql", "postgres"):
        # The driver that the `postgres` extra brings; SQLAlchemy by itself would take another.
        return url.set(drivername="postgresql+psycopg2")
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise DatabaseUrlError(
            f"the lifecycle database cannot be on {backend}: use sqlite:////absolute/path.db or "
            "postgresql://user:password@host:port/name"
        )
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise DatabaseUrlError("the lifecycle database needs a file: sqlite:////absolute/path.db")
    return url


def _begin_sqlite(connection: Connection) -> None:
    writer = connection.get_execution_options().get("writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")
