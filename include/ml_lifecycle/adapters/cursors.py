"""Cursors: what rises with every row that is new, and says up to where a source was fetched.

A time, a date or a whole number; or text, for databases without a type for times keep them so.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta

import polars as pl

from ml_lifecycle.errors import SourceError

Cursor = datetime | date | int | str


def newest_cursor(rows: pl.DataFrame, column: str, what: str) -> Cursor:
    """The highest cursor of at least one row.

    :param what: the source, for errors
    :raises SourceError: the rows have no such column, one lacks a value, or it is no cursor. Retry: no.
    """
    if column not in rows.columns:
        raise SourceError(f"{what}: the rows have {', '.join(rows.columns)}, and not their cursor {column!r}")
    if missing := rows[column].null_count():
        raise SourceError(
            f"{what}: {missing} rows have no {column}, and would be missed by the next fetch: give them one, "
            "leave them out of what is asked for, or name another cursor"
        )
    dtype = rows.schema[column]
    if not (dtype.is_integer() or dtype in (pl.Date, pl.Datetime, pl.String)):
        raise SourceError(
            f"{what}: {column} is {dtype}; a cursor is a time or a whole number: name another column, or none"
        )
    newest: Cursor = rows[column].max()  # type: ignore[assignment]
    return newest


def same_kind(newest: Cursor, found: Cursor, what: str, declared: str) -> None:
    """Whether a column still holds what it held when it was fetched last.

    A time with an offset and one without are two kinds: a database takes the latter for its own clock's, and
    rows between the two would never be seen.

    :param what: source and column, for errors
    :param declared: what of the source says which rows there are, for errors
    :raises SourceError: it holds another kind. Retry: no.
    """
    was, now = _kind(newest), _kind(found)
    if was != now:
        raise SourceError(
            f"{what} is {now} now, and was {was} when it was fetched last: what is new cannot be told by it. "
            f"Give it its former type, or fetch anew: with another {declared}, such as one that casts it, "
            "the source begins from nothing"
        )


def _kind(cursor: Cursor) -> str:
    if isinstance(cursor, datetime):
        return "a time without an offset" if cursor.tzinfo is None else "a time with an offset"
    if isinstance(cursor, date):
        return "a date"
    return "text" if isinstance(cursor, str) else "a whole number"


def before(newest: Cursor, overlap: timedelta, numbers: int, what: str) -> Cursor:
    """Where a fetch begins that goes back by an overlap.

    :param what: source and column, for errors
    :raises SourceError: a text is no time. Retry: no.
    """
    if isinstance(newest, int):
        return newest - numbers
    if not isinstance(newest, str):
        return newest - overlap
    try:
        moment = datetime.fromisoformat(newest) - overlap
    except ValueError as error:
        raise SourceError(
            f"{what} is text that is no time, such as 2013-06-30 12:00:00; a cursor is a time or a whole "
            "number"
        ) from error
    return moment.isoformat(newest[10:11] or " ") if len(newest) > 10 else moment.date().isoformat()


def cursor_text(cursor: Cursor) -> str:
    """As text, which :func:`read_cursor` reads by the name of its type."""
    return cursor.isoformat() if isinstance(cursor, date) else str(cursor)


def read_cursor(text: str, kind: str) -> Cursor:
    """Read :func:`cursor_text`'s text back."""
    match kind:
        case "datetime":
            return datetime.fromisoformat(text)
        case "date":
            return date.fromisoformat(text)
        case "int":
            return int(text)
    return text
