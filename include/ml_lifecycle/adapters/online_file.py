"""A SQLite file with a table a feature view and one packed row an entity, of which the newest stays.

Readers are never blocked by a writer (write-ahead log), nor stopped by one that died: what it had begun to
write is rolled back. Times are microseconds since 1970.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from ml_lifecycle.adapters.online_rows import Fields, Layout
from ml_lifecycle.errors import FeatureError

_APPLICATION, _VERSION = 0x4D4C6F73, 1  # what SQLite keeps in the file's header for us
_BUSY_SECONDS = 30
_KEYS_OFTEN = 128  # and no more: texts of such queries are kept
_KEYS_A_QUERY = 10_000  # SQLite takes 32,766 variables
_ROWS_A_STATEMENT = 50  # a statement a row took a third longer
_LAYOUTS = (
    "layouts"  # no table of a view is named so: those have a project's name and a line before their own
)

PackedRow = tuple[bytes, int, int | None, bytes]
"""Entity key, event time, when it was created, packed values."""


class OnlineFile:
    """One connection to the file, which is made where there is none.

    Not for several threads at once.

    :raises FeatureError: the file holds something else, such as an online store of Feast's own SQLite layout.
        Retry: no, it must be moved away.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._layouts: dict[int, Layout] = {}
        self._numbers: dict[Fields, Layout] = {}
        self._queries: dict[tuple[str, int], str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        try:
            self._is_ours()
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def create(self, tables: Iterable[str]) -> None:
        """Make the tables that are not there."""
        wanted = set(tables)
        if self._is_ours() and wanted <= set(self._tables()):
            return
        with self._transaction():
            if not self._is_ours():
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
                self._connection.execute(
                    f"CREATE TABLE {_LAYOUTS} (number INTEGER PRIMARY KEY, fields TEXT NOT NULL UNIQUE)"
                )
            for table in sorted(wanted):
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_quoted(table)} (entity_key BLOB PRIMARY KEY, "
                    "event_us INTEGER NOT NULL, created_us INTEGER, row BLOB NOT NULL) WITHOUT ROWID"
                )

    def drop(self, tables: Iterable[str]) -> None:
        """Remove the tables that are there, with all that they hold."""
        present = set(self._tables())
        for table in tables:
            if table in present:
                self._connection.execute(f"DROP TABLE IF EXISTS {_quoted(table)}")

    def layout(self, fields: Fields) -> Layout:
        """The layout of rows with these fields, noted in the file if they are new to it."""
        if fields not in self._numbers:
            text = json.dumps(fields)
            find = f"SELECT number FROM {_LAYOUTS} WHERE fields = ?"
            found = self._connection.execute(find, (text,)).fetchone()
            if found is None:
                self._connection.execute(f"INSERT OR IGNORE INTO {_LAYOUTS} (fields) VALUES (?)", (text,))
                found = self._connection.execute(find, (text,)).fetchone()
            self._numbers[fields] = Layout(found[0], fields)
        return self._numbers[fields]

    def layout_of(self, row: bytes) -> Layout:
        """The layout that a row of this file has."""
        number = Layout.number_of(row)
        if number not in self._layouts:
            for known, text in self._connection.execute(f"SELECT number, fields FROM {_LAYOUTS}"):
                fields = tuple((name, kind) for name, kind in json.loads(text))
                self._layouts[known] = Layout(known, fields)
        return self._layouts[number]

    def write(self, table: str, rows: Iterable[PackedRow]) -> None:
        """Write all rows or none; one that is older than the stored one changes nothing.

        The newer event stays, and of one event the newer creation; of two that are alike the one that is
        written later.
        """
        whole = 4 * _ROWS_A_STATEMENT
        with self._transaction():
            values = chain.from_iterable(rows)
            while flat := tuple(islice(values, whole)):
                self._connection.execute(_upsert(table, len(flat) // 4), flat)

    def read(self, table: str, keys: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
        """Event time and packed values of the keys that are there; none if nothing was ever written."""
        if len(keys) > _KEYS_A_QUERY:
            found: dict[bytes, tuple[int, bytes]] = {}
            for first in range(0, len(keys), _KEYS_A_QUERY):
                found |= self.read(table, keys[first : first + _KEYS_A_QUERY])
            return found
        query = self._queries.get((table, len(keys)))
        if query is None:
            query = (
                f"SELECT entity_key, event_us, row FROM {_quoted(table)} "
                f"WHERE entity_key IN ({','.join('?' * len(keys))})"
            )
            if len(keys) <= _KEYS_OFTEN:
                self._queries[table, len(keys)] = query
        try:
            rows = self._connection.execute(query, keys).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return {}
        return {key: (event, row) for key, event, row in rows}

    def _is_ours(self) -> bool:
        """Whether the file was begun; an empty one was not."""
        tables = self._tables()  # looked at first: whoever begins the file commits both together
        application, version = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        if application == _APPLICATION and version <= _VERSION:
            return True
        if application == _APPLICATION:
            raise FeatureError(
                f"the online store {self._path} has layout {version}; this version reads up to {_VERSION}"
            )
        if tables:
            raise FeatureError(
                f"{self._path} is no online store of this layout (a packed row an entity). Earlier "
                "versions, and Feast's own SQLite store, keep a row a feature: move the file away and "
                "materialise again, which writes everything into a new one"
            )
        return False

    def _tables(self) -> list[str]:
        names = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [name for (name,) in names]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()


def _upsert(table: str, rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?)"] * rows)
    return (
        f"INSERT INTO {_quoted(table)} AS stored (entity_key, event_us, created_us, row) VALUES {values} "
        "ON CONFLICT (entity_key) DO UPDATE SET event_us = excluded.event_us, "
        "created_us = excluded.created_us, row = excluded.row "
        "WHERE (excluded.event_us, ifnull(excluded.created_us, 0)) "
        ">= (stored.event_us, ifnull(stored.created_us, 0))"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
