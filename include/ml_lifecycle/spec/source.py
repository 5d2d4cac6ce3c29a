"""Where a model's rows come from: the ``sources:`` of ``model.yaml``."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import ConnectionId, Duration, FieldError, Name, Strict, Text


class Sql(Strict):
    """Rows of a database, fetched by every run that ingests and kept in the lake.

    :param query: one SELECT. A colon before a word is written ``\\:``; ``::`` stays as it is
    :param cursor: column that rises with every row that is inserted or updated: a time or a whole number.
        Only what is new by it is fetched. What was updated needs ``known_at`` too, or both states of the row
        stay; what was deleted stays. Without a cursor all rows are fetched each time, and replace the former
    :param overlap: how far before the newest cursor a fetch begins, where it is a time: a transaction may
        commit later than another that began after it. A row that comes later still is never seen
    :param overlap_numbers: the same where it is a number
    :param chunk_rows: so many rows are held, and written as one file
    """

    query: Text
    cursor: Text | None = None
    overlap: Duration = timedelta(hours=1)
    overlap_numbers: int = Field(default=1000, ge=0)
    chunk_rows: int = Field(default=100_000, ge=1)


class Source(Strict):
    """Where rows come from.

    :param uri: fsspec URL or path of the files, ``*`` and ``**`` allowed; relative ones are relative to the
        lake. ``{start}`` and ``{end}`` are not expanded: files are filtered by their rows' event time.
    :param sql: in place of ``uri``: rows of a database, whose Airflow connection is ``connection``
    :param event_time: when a row's event happened; None for a static table, which is read whole each time.
        Rows at or after the end of the run's interval are left out. Times without an offset are UTC
    :param known_at: when a row became known; rows known at or after ``as_of`` are left out. It replaces the
        cut by event time: a schedule is known before its events. A row without it is known at its event
    :param keys: what identifies a row, together with ``event_time``. Of rows with the same identity the one
        with the newest ``known_at`` stays; name ``known_at`` here as well to keep every revision. Features
        of a source that is revised need them all: for a moment before a revision the former row counts
    :param null_values: texts that mean a missing value in CSV
    :param contract: name of its contract in ``contract.yaml``; None leaves it unchecked
    """

    uri: Text | None = None
    sql: Sql | None = None
    format: Literal["csv", "parquet", "json"] = "parquet"
    connection: ConnectionId | None = None
    event_time: Text | None = None
    known_at: Text | None = None
    keys: tuple[Text, ...] = ()
    partition: Literal["day", "month", "year"] = "month"
    null_values: tuple[str, ...] = ("",)
    contract: Name | None = None

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Source:
        if (self.uri is None) == (self.sql is None):
            raise ValueError("a source needs exactly one of uri and sql")
        if self.sql is None:
            return self
        if self.connection is None:
            raise FieldError("sql", "needs connection, the database's Airflow connection")
        if self.format != "parquet":
            raise FieldError("format", "goes with uri: what a query gives has types already")
        if self.sql.cursor is not None and not self.keys:
            raise FieldError("keys", "are needed with sql.cursor: by them a row fetched twice is known")
        return self

    @model_validator(mode="after")
    def _stays_in_the_lake(self) -> Source:
        if self.uri is None:
            return self
        absolute = "://" in self.uri or self.uri.startswith("/")
        if not absolute and ".." in self.uri.split("/"):
            raise FieldError("uri", f"{self.uri!r} leaves the lake; write a full URL instead")
        return self

    @model_validator(mode="after")
    def _known_at_needs_event_time(self) -> Source:
        if self.known_at is not None and self.event_time is None:
            raise FieldError("known_at", "needs event_time")
        return self
