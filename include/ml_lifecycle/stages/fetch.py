"""Fetch: what is new in a database → files in the lake, which ingest reads like any others.

Whoever ingests fetches first. Killed anywhere and called again it goes on from the last chunk that is whole;
two at once fetch the same, and equal rows count once. Nothing is written where nothing is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import polars as pl
from sqlalchemy import Engine

from ml_lifecycle.adapters.databases import chunks
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.landed import Cursor, Landings
from ml_lifecycle.errors import SourceError
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Source, Sql

Databases = Mapping[str, Callable[[], Engine]]
"""Makes an engine, by connection id."""


def fetch(spec: ModelSpec, lake: Lake, databases: Databases) -> dict[str, int]:
    """Bring what was fetched before up to now; source → new rows.

    :raises SourceNotReadyError: a database does not answer. Retry: yes.
    :raises SourceError: a query fails, or its cursor is none. Retry: no.
    """
    fetched = {}
    for name, source in spec.sources.items():
        if source.sql is None:
            continue
        assert source.connection is not None  # the spec says so
        if source.connection not in databases:
            raise SourceError(f"source {name!r}: its connection {source.connection!r} is not given")
        engine = databases[source.connection]()
        try:
            fetched[name] = _fetch(name, source, source.sql, lake, engine)
        finally:
            engine.dispose()
    return fetched


def _fetch(name: str, source: Source, sql: Sql, lake: Lake, engine: Engine) -> int:
    landings, what = Landings(lake, name, source), f"source {name!r}"
    if sql.cursor is None:
        return _replace(landings, sql, engine, what)
    known = landings.current()
    newest = landings.newest(known)
    since = None if newest is None else _before(newest, sql, what)
    seen = None if since is None else landings.rows_since(known, since)
    fetched = 0
    for rows in chunks(engine, sql, since, what):
        found = _newest(rows, sql.cursor, what)
        new = rows if seen is None else _unlike(rows, seen)
        newest = found if newest is None or found > newest else newest  # type: ignore[operator]
        if new.height:
            landings.add(new, newest)
        fetched += new.height
    return fetched


def _replace(landings: Landings, sql: Sql, engine: Engine, what: str) -> int:
    """All rows in place of those that were fetched before, if they are others."""
    parts = list(chunks(engine, sql, None, what))
    if not parts:
        return 0
    rows = pl.concat(parts, how="diagonal_relaxed")
    return landings.replace(rows.sort(rows.columns)).rows


def _newest(rows: pl.DataFrame, cursor: str, what: str) -> Cursor:
    if cursor not in rows.columns:
        raise SourceError(f"{what}: the query gives {', '.join(rows.columns)}, and not its cursor {cursor!r}")
    if missing := rows[cursor].null_count():
        raise SourceError(f"{what}: {missing} rows have no {cursor}, and would be missed by the next fetch")
    dtype = rows.schema[cursor]
    if not (dtype.is_integer() or dtype in (pl.Date, pl.Datetime, pl.String)):
        raise SourceError(f"{what}: {cursor} is {dtype}; a cursor is a time or a whole number")
    newest: Cursor = rows[cursor].max()  # type: ignore[assignment]
    return newest


def _before(newest: Cursor, sql: Sql, what: str) -> Cursor:
    """Where a fetch begins."""
    if isinstance(newest, int):
        return newest - sql.overlap_numbers
    if not isinstance(newest, str):
        return newest - sql.overlap
    # Databases without a type for times keep them as text.
    try:
        moment = datetime.fromisoformat(newest) - sql.overlap
    except ValueError as error:
        raise SourceError(
            f"{what}: {sql.cursor} is text such as {newest!r}; a cursor is a time or a whole number"
        ) from error
    return moment.isoformat(newest[10:11] or " ") if len(newest) > 10 else moment.date().isoformat()


def _unlike(rows: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """The rows that were not fetched before, just as they are."""
    # A column may be new, or have had no value, and no type, until now.
    both = pl.concat([rows.clear(), seen], how="diagonal_relaxed")
    known = both.select(rows.columns)
    return rows.cast(known.schema).join(known, on=rows.columns, how="anti", nulls_equal=True)
