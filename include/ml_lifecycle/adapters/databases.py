"""Rows of a database, a chunk at a time: the server keeps the result, and this process one chunk of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from ml_lifecycle.adapters.cursors import Cursor
from ml_lifecycle.adapters.tables import types_of
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.spec.source import Sql


def engine_of(url: str) -> Engine:
    """An engine that keeps no connection open between two fetches."""
    parsed = make_url(url)
    # Without a driver SQLAlchemy takes psycopg 3 since 2.1; Airflow brings psycopg2.
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg2")
    return create_engine(parsed, poolclass=NullPool)


def chunks(engine: Engine, sql: Sql, since: Cursor | None, what: str) -> Iterator[pl.DataFrame]:
    """The query's rows, at most ``sql.chunk_rows`` at a time; with a cursor in its order, from ``since`` on.

    :param what: the source, for errors
    :raises SourceNotReadyError: the database does not answer. Retry: yes.
    :raises SourceError: it does not take the query, or gives a value that no column can hold. Retry: no.
    """
    query, values = _statement(engine, sql, since)
    yield from _rows(engine, query, values, sql.chunk_rows, what)


def one_cursor(engine: Engine, sql: Sql, what: str) -> pl.DataFrame | None:
    """The cursor of some row of the query, in a frame; None where there is no row.

    :param what: the source, for errors
    :raises SourceNotReadyError: the database does not answer. Retry: yes.
    :raises SourceError: it does not take the query. Retry: no.
    """
    assert sql.cursor is not None
    cursor = engine.dialect.identifier_preparer.quote(sql.cursor)
    query = f"SELECT {cursor} FROM ({_query(sql)}\n) fetched WHERE {cursor} IS NOT NULL"
    with closing(_rows(engine, query, {}, 1, what)) as rows:
        return next(rows, None)


def _rows(
    engine: Engine, query: str, values: Mapping[str, Cursor], size: int, what: str
) -> Generator[pl.DataFrame]:
    with _told(what), engine.connect() as connection:
        # Else drivers fetch all of it before the first row is seen.
        streaming = connection.execution_options(stream_results=True, max_row_buffer=size)
        result = streaming.execute(text(query), values)
        if not result.returns_rows:
            raise SourceError(f"{what}: the query gives no table: write a SELECT")
        names = list(result.keys())
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise SourceError(
                f"{what}: the query gives {', '.join(doubled)} more than once: name them apart by AS"
            )
        for rows in result.partitions(size):
            yield _frame(names, rows, what)


def _statement(engine: Engine, sql: Sql, since: Cursor | None) -> tuple[str, Mapping[str, Cursor]]:
    query = _query(sql)
    if sql.cursor is None:
        return query, {}
    cursor = engine.dialect.identifier_preparer.quote(sql.cursor)
    fetched = f"SELECT * FROM ({query}\n) fetched"
    if since is None:
        return f"{fetched} ORDER BY {cursor}", {}
    # Rows without a cursor too, each time: they are a mistake that must be seen.
    new = f"{cursor} >= :since OR {cursor} IS NULL"
    return f"{fetched} WHERE {new} ORDER BY {cursor}", {"since": since}


def _query(sql: Sql) -> str:
    return sql.query.strip().removesuffix(";")  # it may end in a comment, which a line break ends


def _frame(names: Sequence[str], rows: Sequence[Sequence[Any]], what: str) -> pl.DataFrame:
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return pl.DataFrame([_column(name, values, what) for name, values in columns.items()])


def _column(name: str, values: Sequence[Any], what: str) -> pl.Series:
    if any(isinstance(value, UUID) for value in values):
        values = [None if value is None else str(value) for value in values]
    kinds = {type(value) for value in values if value is not None}
    # SQLite has no type of its own for whole numbers in a column of floats. Of decimals too a snapshot makes
    # floats, and Polars' hold neither NaN nor every fraction.
    if kinds == {int, float} or (kinds == {Decimal} and not all(map(_is_whole, values))):
        values = [None if value is None else float(value) for value in values]
    try:
        column = pl.Series(name, values)
    except (TypeError, pl.exceptions.PolarsError, OverflowError, RuntimeError) as error:
        # Polars says which value: it may be personal data.
        said = "and not one type" if len(kinds) > 1 else "more digits than a column can hold"
        raise SourceError(
            f"{what}: column {name!r} holds {types_of(values)}, {said}: cast it in the query"
        ) from error
    if column.dtype == pl.Object:
        raise SourceError(
            f"{what}: column {name!r} holds {types_of(values)}, which no column can: cast it in the query"
        )
    return column


def _is_whole(value: Decimal | None) -> bool:
    exponent = 0 if value is None else value.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= 0  # of NaN and infinity it is a letter


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if getattr(error.orig, "sqlite_errorname", None) == "SQLITE_ERROR":  # of SQL itself
            raise SourceError(f"{what}: the database does not take the query: {error.orig}") from error
        raise SourceNotReadyError(f"{what}: the database cannot be read now: {error.orig}") from error
    except DataError as error:
        code = getattr(error.orig, "pgcode", None) or type(error.orig).__name__  # its text quotes the value
        raise SourceError(f"{what}: the query cannot make of a value what it asks for ({code})") from error
    except DBAPIError as error:
        raise SourceError(f"{what}: the database does not take the query: {error.orig}") from error
    except SQLAlchemyError as error:
        raise SourceError(f"{what}: {error}") from error
    except (ValueError, OverflowError) as error:  # its text may quote the value
        raise SourceError(
            f"{what}: the query gives a value that Python cannot hold, such as a time outside of the years "
            "1 to 9999: cast it in the query"
        ) from error
