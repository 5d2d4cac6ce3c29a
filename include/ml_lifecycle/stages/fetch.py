"""Fetch: what is new in a database, an API or a topic → files in the lake, which ingest reads as any others.

Whoever ingests fetches first. Killed anywhere and called again it goes on from the last chunk that is whole;
two at once fetch the same, and equal rows count once. Nothing is written where nothing is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import polars as pl
from sqlalchemy import Engine

from ml_lifecycle.adapters.cursors import Cursor, before, newest_cursor, same_kind
from ml_lifecycle.adapters.databases import chunks, one_cursor
from ml_lifecycle.adapters.http_api import read_pages
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.landed import Landing, Landings
from ml_lifecycle.adapters.landed_topic import TopicLandings
from ml_lifecycle.errors import SourceError
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Http, Source, Sql

Origin = Engine | httpx.Client | Mapping[str, Any]
"""A database, an API, or librdkafka's configuration of the way to brokers."""
Origins = Mapping[str, Callable[[], Origin]]
"""Opens one by connection id."""


def fetch(spec: ModelSpec, lake: Lake, origins: Origins) -> dict[str, int]:
    """Bring what was fetched before up to now; source → new rows.

    :raises SourceNotReadyError: an origin does not answer. Retry: yes.
    :raises SourceError: it refuses, its cursor is none, or records cannot be read or were lost. Retry: no.
    """
    fetched = {}
    for name, source in spec.sources.items():
        if source.fetched is None:
            continue
        assert source.connection is not None  # the spec says so
        if source.connection not in origins:
            raise SourceError(f"source {name!r}: its connection {source.connection!r} is not given")
        fetched[name] = _fetch_source(name, source, lake, origins[source.connection]())
    return fetched


def _fetch_source(name: str, source: Source, lake: Lake, origin: Origin) -> int:
    what = f"source {name!r}"
    if source.kafka is not None:
        from ml_lifecycle.stages.fetch_topic import fetch_topic  # imports librdkafka, which few have

        assert isinstance(origin, Mapping)
        return fetch_topic(source, TopicLandings(lake, name, source), origin, what)
    assert isinstance(source.fetched, Sql | Http)
    assert isinstance(origin, Engine | httpx.Client)
    try:
        return _fetch(source.fetched, Landings(lake, name, source), origin, what)
    finally:
        origin.close() if isinstance(origin, httpx.Client) else origin.dispose()


def _fetch(how: Sql | Http, landings: Landings, origin: Engine | httpx.Client, what: str) -> int:
    if how.cursor is None:
        return _replace(how, landings, origin, what)
    column = f"{what}: {how.cursor}"
    known = landings.current()
    newest = landings.newest(known)
    since = None if newest is None else before(newest, how.overlap, how.overlap_numbers, column)
    seen = None if since is None else _seen(landings, known, since)
    fetched, came = 0, False
    for rows in _chunks(how, origin, since, what):
        came, found = True, newest_cursor(rows, how.cursor, what)
        if newest is not None:
            same_kind(newest, found, column, _DECLARED[type(how)])
        new = rows if seen is None else _unlike(rows, seen)
        newest = found if newest is None or found > newest else newest  # type: ignore[operator]
        if new.height:
            landings.add(new, newest)
        fetched += new.height
    if newest is not None and not came and isinstance(origin, Engine) and isinstance(how, Sql):
        # Not even the newest row of the last time: deleted, or of a type that is compared otherwise now.
        row = one_cursor(origin, how, what)
        if row is not None:
            same_kind(newest, newest_cursor(row, how.cursor, what), column, _DECLARED[Sql])
    return fetched


_DECLARED: Mapping[type, str] = {Sql: "query", Http: "path or parameters"}


def _seen(landings: Landings, known: Sequence[Landing], since: Cursor) -> pl.DataFrame | None:
    try:
        return landings.rows_since(known, since)
    except pl.exceptions.SchemaError:  # a column's type has changed; of equal rows one counts in the end
        return None


def _chunks(
    how: Sql | Http, origin: Engine | httpx.Client, since: Cursor | None, what: str
) -> Iterator[pl.DataFrame]:
    """What was fetched, in the order of the cursor; of an API all at once, for its order is its own."""
    if isinstance(how, Sql):
        assert isinstance(origin, Engine)
        yield from chunks(origin, how, since, what)
        return
    assert isinstance(origin, httpx.Client)
    rows = read_pages(origin, how, since, what)
    if rows.height:
        yield rows


def _replace(how: Sql | Http, landings: Landings, origin: Engine | httpx.Client, what: str) -> int:
    """All rows in place of those that were fetched before, if they are others."""
    parts = list(_chunks(how, origin, None, what))
    if not parts:
        return 0
    rows = pl.concat(parts, how="diagonal_relaxed")
    return landings.replace(rows.sort(rows.columns)).rows


def _unlike(rows: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """The rows that were not fetched before, just as they are."""
    try:
        # A column may be new, or have had no value, and no type, until now.
        both = pl.concat([rows.clear(), seen], how="diagonal_relaxed")
        known = both.select(rows.columns)
        return rows.cast(known.schema).join(known, on=rows.columns, how="anti", nulls_equal=True)
    except pl.exceptions.PolarsError:  # as in _seen
        return rows
