"""Rows that were fetched from elsewhere, kept in the lake as files: a snapshot of them can be made again.

``landed/<source>-<definition>/`` holds *landings*, numbered as they came: a Parquet file and, written after
it, a manifest that says what it is. A file without manifest does not exist. Models that fetch the same share
them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from ml_lifecycle.adapters.cursors import Cursor, cursor_text, read_cursor
from ml_lifecycle.adapters.lake import Lake, safe_name, sha256
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.records import Record, digest_of, from_json, to_json
from ml_lifecycle.spec.source import Source


@dataclass(frozen=True)
class Landing(Record):
    """One file of fetched rows.

    :param number: rising; two that were fetched at the same time may share one
    :param newest: the highest cursor of this and all landings before; as text, see ``kind``
    :param kind: the cursor's type: ``datetime``, ``date``, ``int`` or ``str``; None without a cursor
    :param whole: it replaces all before it
    """

    schema: ClassVar[str] = "landing/1"
    number: int
    path: str
    rows: int
    digest: str
    newest: str | None = None
    kind: str | None = None
    whole: bool = False

    @property
    def cursor(self) -> Cursor | None:
        """The highest cursor, as the database gave it."""
        return None if self.newest is None else read_cursor(self.newest, str(self.kind))


# Of what is fetched, what says how it is read and what is done in need, and not which rows there are.
_MANNERS = {"overlap", "overlap_numbers", "next_optional", "chunk_rows", "unreadable", "lost"}


def landed_folder(name: str, source: Source) -> str:
    """Where a source's fetched rows are; one that fetches other rows, or from elsewhere, has another."""
    assert source.fetched is not None
    definition = {"connection": source.connection, **source.fetched.model_dump(mode="json", exclude=_MANNERS)}
    return f"landed/{safe_name(name)}-{digest_of(definition)[:16]}"


class Landings:
    """The landings of one source; one that is declared otherwise starts anew."""

    def __init__(self, lake: Lake, name: str, source: Source) -> None:
        self._lake = lake
        self._folder = landed_folder(name, source)

    def current(self) -> list[Landing]:
        """Those whose rows count, in their order."""
        found: list[Landing] = []
        for path in self._lake.list(self._folder):
            if path.endswith(".json"):
                landing = from_json(Landing, self._lake.read_json(path))
                found = [landing] if landing.whole else [*found, landing]
        return found

    @staticmethod
    def newest(landings: Sequence[Landing]) -> Cursor | None:
        """The highest cursor that was fetched; None where nothing was."""
        return max((one.cursor for one in landings if one.cursor is not None), default=None)

    def add(self, rows: pl.DataFrame, newest: Cursor) -> Landing:
        """Keep further rows.

        :param newest: the highest cursor of these and all before
        """
        return self._write(parquet_bytes(rows), rows.height, newest)

    def replace(self, rows: pl.DataFrame) -> Landing:
        """Keep rows in place of all before; if they are the same, those stay."""
        data = parquet_bytes(rows)
        if (now := self.current()) and now[-1].digest == sha256(data):
            return now[-1]
        return self._write(data, rows.height, None)

    def rows_since(self, landings: Sequence[Landing], since: Cursor) -> pl.DataFrame:
        """The rows of all landings that may hold some at or after a cursor."""
        found = [pl.DataFrame()]
        for landing in reversed(landings):
            # Its newest is that of all before it too: what came earlier has only older rows.
            if landing.cursor is not None and landing.cursor < since:  # type: ignore[operator]
                break
            found.append(pl.read_parquet(self._lake.read_bytes(landing.path)))
        return pl.concat(found, how="diagonal_relaxed")

    def _write(self, data: bytes, rows: int, newest: Cursor | None) -> Landing:
        """The file, and then its manifest."""
        number = max((landing.number for landing in self.current()), default=0) + 1
        # Another task may fetch the same at this moment: both landings stay, and equal rows count once.
        stem = f"{self._folder}/{number:08d}-{uuid.uuid4().hex[:12]}"
        landing = Landing(
            number=number,
            path=self._lake.write_bytes(f"{stem}.parquet", data),
            rows=rows,
            digest=sha256(data),
            newest=None if newest is None else cursor_text(newest),
            kind=None if newest is None else type(newest).__name__,
            whole=newest is None,
        )
        self._lake.write_json(f"{stem}.json", to_json(landing))
        return landing
