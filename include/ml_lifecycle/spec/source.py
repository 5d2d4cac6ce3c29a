"""Where a model's rows come from: the ``sources:`` of ``model.yaml``."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import ConnectionId, Duration, FieldError, Lines, Name, Strict, Text


class Sql(Strict):
    """Rows of a database, fetched by every run that ingests and kept in the lake.

    :param query: one SELECT, of one line or several. A colon before a word is written ``\\:``; ``::`` stays
    :param cursor: column that rises with every row that is inserted or updated: a time or a whole number.
        Only what is new by it is fetched. What was updated needs ``known_at`` too, or both states of the row
        stay; what was deleted stays. Without a cursor all rows are fetched each time, and replace the former
    :param overlap: how far before the newest cursor a fetch begins, where it is a time: a transaction may
        commit later than another that began after it. A row that comes later still is never seen
    :param overlap_numbers: the same where it is a number
    :param chunk_rows: so many rows are held, and written as one file
    """

    query: Lines
    cursor: Text | None = None
    overlap: Duration = timedelta(hours=1)
    overlap_numbers: int = Field(default=1000, ge=0)
    chunk_rows: int = Field(default=100_000, ge=1)


class Http(Strict):
    """Rows of an HTTP API that answers JSON, fetched by every run that ingests and kept in the lake.

    :param path: below the address of ``connection``, an Airflow connection of type ``http``, which has
        the credentials and headers too
    :param parameters: what is asked for in the URL, always
    :param rows: where the list of rows is in an answer, such as ``data.items``; empty for the answer itself
    :param next: where the next page is said, as a URL or, with ``next_parameter``, as what that gets; there
        is no next one where it is null, empty or not there. A first page with rows must have it, or a
        misspelt one would look like the last page
    :param next_optional: a first page may lack it too, of an API that leaves it out where one page is all
    :param page_parameter: gets 1, 2, 3 … until a page is empty, where answers do not say what is next
    :param cursor: column that rises with every row that is new or updated: a time or a whole number. What
        ``cursor_parameter`` gets is the newest less ``overlap``; without a cursor all rows are fetched each
        time, and replace the former
    :param overlap: how much later than others a row may appear, where the cursor is a time
    :param overlap_numbers: the same where it is a number
    """

    path: Text
    parameters: dict[Text, str] = Field(default_factory=dict)
    rows: str = ""
    next: Text | None = None
    next_optional: bool = False
    next_parameter: Text | None = None
    page_parameter: Text | None = None
    cursor: Text | None = None
    cursor_parameter: Text | None = None
    overlap: Duration = timedelta(hours=1)
    overlap_numbers: int = Field(default=1000, ge=0)

    @model_validator(mode="after")
    def _path_is_only_that(self) -> Http:
        if "://" in self.path or self.path.startswith("//"):
            raise FieldError("path", "is below the address of the connection: leave the address out")
        if "?" in self.path or "#" in self.path:
            raise FieldError("path", "ends before '?' and '#': what is asked for stands in parameters")
        return self

    @model_validator(mode="after")
    def _pages_go_on_in_one_way(self) -> Http:
        if self.page_parameter is not None and self.next is not None:
            raise FieldError("page_parameter", "or next, not both")
        if self.next_parameter is not None and self.next is None:
            raise FieldError("next_parameter", "needs next: where what it gets is said")
        if self.next_optional and self.next is None:
            raise FieldError("next_optional", "needs next: what an answer may lack")
        if (self.cursor is None) != (self.cursor_parameter is None):
            raise FieldError("cursor", "and cursor_parameter go together")
        return self


class Kafka(Strict):
    """Records of a Kafka topic, fetched by every run that ingests and kept in the lake, each one once.

    A fetch reads every partition from where the lake's own manifest says that the last one ended, up to
    what is committed as it begins. Offsets of consumer groups are neither read nor written.

    :param topic: its name, on the brokers of ``connection``, an Airflow connection of type ``kafka``
    :param format: ``json``: a value is an object, whose fields become columns, nested ones such as
        ``price.amount``, lists as JSON text; ``text``: a value is UTF-8 text, in the column ``value``
    :param key: column that gets the record's key, as text
    :param timestamp: column that gets the record's time; ``event_time`` and ``known_at`` may name it
    :param deleted: column that is true in the row that a tombstone (a key without a value) becomes; needs
        ``key``. Without it tombstones are left out
    :param unreadable: what is done where a record is not of its format, or holds a value of another type
        than its column did before: ``halt``, or ``set_aside``, beside the rows, for somebody to look at
    :param lost: what is done where records were deleted before they were read, or the topic was made anew:
        ``halt``, or ``skip``: go on with what there is, and write down how many were lost
    :param chunk_rows: so many records are held, and written as one file
    """

    topic: Text
    format: Literal["json", "text"] = "json"
    key: Text | None = None
    timestamp: Text | None = None
    deleted: Text | None = None
    unreadable: Literal["halt", "set_aside"] = "halt"
    lost: Literal["halt", "skip"] = "halt"
    chunk_rows: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _own_columns_are_told_apart(self) -> Kafka:
        if self.deleted is not None and self.key is None:
            raise FieldError("deleted", "needs key: the column that says which one was")
        value = ("value",) if self.format == "text" else ()
        own = [name for name in (self.key, self.timestamp, self.deleted, *value) if name is not None]
        if doubled := sorted({name for name in own if own.count(name) > 1}):
            raise ValueError(f"{', '.join(doubled)} cannot be two columns at once")
        return self


class Evolution(Strict):
    """What a source's files may do to its columns as time goes by; what halts names the file.

    Changes that could lose a value always halt: docs/data.md has them all.

    :param added: a file has a column that its contract does not list
    :param removed: a file lacks a column that its contract lists; in its rows that is null
    :param widened: whole numbers in one file and fractions in another, where no contract says which
    """

    added: Literal["allow", "halt"] = "allow"
    removed: Literal["allow", "halt"] = "allow"
    widened: Literal["allow", "halt"] = "allow"


class Source(Strict):
    """Where rows come from.

    :param uri: fsspec URL or path of the files, ``*`` and ``**`` allowed; relative ones are relative to the
        lake. ``{start}`` and ``{end}`` are not expanded: files are filtered by their rows' event time.
    :param sql: in place of ``uri``: rows of a database, whose Airflow connection is ``connection``
    :param http: in place of ``uri``: rows of an HTTP API, the same
    :param kafka: in place of ``uri``: records of a Kafka topic, the same
    :param event_time: when a row's event happened; None for a static table, which is read whole each time.
        Rows at or after the end of the run's interval are left out. Times without an offset are UTC
    :param known_at: when a row became known; rows known at or after ``as_of`` are left out. It replaces the
        cut by event time: a schedule is known before its events. A row without it is known at its event
    :param keys: what identifies a row, together with ``event_time``. Of rows with the same identity the one
        with the newest ``known_at`` stays; name ``known_at`` here as well to keep every revision. Features
        of a source that is revised need them all: for a moment before a revision the former row counts
    :param null_values: texts that mean a missing value in CSV
    :param renamed: former names of columns: ``{price: [cost, amount]}`` reads as ``price`` what older files
        call ``cost`` or ``amount``
    :param contract: name of its contract in ``contract.yaml``; None leaves it unchecked
    """

    uri: Text | None = None
    sql: Sql | None = None
    http: Http | None = None
    kafka: Kafka | None = None
    format: Literal["csv", "parquet", "json"] = "parquet"
    connection: ConnectionId | None = None
    event_time: Text | None = None
    known_at: Text | None = None
    keys: tuple[Text, ...] = ()
    partition: Literal["day", "month", "year"] = "month"
    null_values: tuple[str, ...] = ("",)
    renamed: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    evolution: Evolution = Evolution()
    contract: Name | None = None

    @property
    def fetched(self) -> Sql | Http | Kafka | None:
        """How rows are fetched that are in no file yet."""
        return self.sql or self.http or self.kafka

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Source:
        places = [name for name in ("uri", "sql", "http", "kafka") if getattr(self, name) is not None]
        if len(places) != 1:
            has = ", ".join(places) or "none"
            raise ValueError(f"a source needs exactly one of uri, sql, http and kafka; it has {has}")
        (place,) = places
        if self.fetched is None:
            return self
        if self.connection is None:
            raise FieldError(place, "needs connection: an Airflow connection")
        if self.format != "parquet":
            raise FieldError("format", f"goes with uri: what {place} gives has types already")
        if not isinstance(self.fetched, Kafka) and self.fetched.cursor is not None and not self.keys:
            raise FieldError("keys", f"are needed with {place}.cursor: by them a row fetched twice is known")
        return self

    @model_validator(mode="after")
    def _a_column_was_one_column(self) -> Source:
        former = [name for names in self.renamed.values() for name in names]
        for name in former:
            if former.count(name) > 1 or name in self.renamed:
                raise FieldError(
                    "renamed", f"{name!r} can be the former name of one column only, and no present one"
                )
        for change in ("added", "removed"):
            if self.contract is None and getattr(self.evolution, change) == "halt":
                raise FieldError("evolution", f"{change}: halt needs a contract, which lists the columns")
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
