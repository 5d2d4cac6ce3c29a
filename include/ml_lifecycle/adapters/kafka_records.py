"""Records of a topic → rows: every value is of its column's type, or the record's place is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from ml_lifecycle.adapters.tables import POLARS_TYPES, TIMESTAMP
from ml_lifecycle.errors import SourceError
from ml_lifecycle.spec.contract_rules import FieldType
from ml_lifecycle.spec.source import Kafka

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: Mapping[type, FieldType] = {
    bool: "boolean",
    datetime: "timestamp",
    float: "float",
    int: "integer",
    str: "string",
}
_BEYOND = 2**63


class _UnreadableError(Exception):
    """A record is not of its format. The message shows no value: values may be personal data."""


@dataclass(frozen=True)
class Decoded:
    """What records became.

    :param kinds: the type of every column that ever had a value
    :param tombstones: how many were left out
    :param set_aside: those that could not be read, as they were
    """

    rows: pl.DataFrame
    kinds: Mapping[str, FieldType]
    tombstones: int
    set_aside: pl.DataFrame


def decode(
    records: Sequence[Message],
    kafka: Kafka,
    kinds: Mapping[str, FieldType],
    what: str,
) -> Decoded:
    """The rows of some records, by partition and offset.

    :param kinds: the types that columns had before: a value of another one is unreadable, but whole numbers
        beside fractions, which make fractions
    :raises SourceError: a record cannot be read, and the source does not say to set it aside. Retry: no.
    """
    now, tombstones = dict(kinds), 0
    rows: list[Mapping[str, Any]] = []
    aside: list[tuple[Any, ...]] = []
    for record in sorted(records, key=lambda one: (one.partition() or 0, one.offset() or 0)):
        if record.value() is None and kafka.deleted is None:
            tombstones += 1
            continue
        try:
            row = _row(record, kafka)
            now = _agreed(row, now)
        except _UnreadableError as error:
            if kafka.unreadable == "halt":
                raise SourceError(
                    f"{what}: topic {kafka.topic!r}, partition {record.partition()}, offset "
                    f"{record.offset()}: {error}; nothing after it was kept. Write unreadable: set_aside "
                    "to keep such records beside the rows and go on"
                ) from error
            place = (record.partition(), record.offset(), _time(record))
            aside.append((*place, record.key(), record.value(), str(error)))
        else:
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [_column(name, [row.get(name) for row in rows], now.get(name)) for name in names]
    return Decoded(pl.DataFrame(columns), now, tombstones, pl.DataFrame(aside, schema=_ASIDE, orient="row"))


_ASIDE = {
    "partition": pl.Int64(),
    "offset": pl.Int64(),
    "timestamp": TIMESTAMP,
    "key": pl.Binary(),
    "value": pl.Binary(),
    "reason": pl.String(),
}


def _row(record: Message, kafka: Kafka) -> dict[str, Any]:
    value = record.value()
    own: dict[str, Any] = {}
    if kafka.key is not None:
        key = record.key()
        own[kafka.key] = None if key is None else _text(key, "its key")
    if kafka.timestamp is not None:
        own[kafka.timestamp] = _time(record)
    if kafka.deleted is not None:
        own[kafka.deleted] = value is None
    if value is None:
        return own
    text = _text(value, "its value")
    row = {"value": text} if kafka.format == "text" else _fields(text)
    if both := sorted(own.keys() & row.keys()):
        raise _UnreadableError(f"its value has {', '.join(both)} too, as the source calls columns of its own")
    if not own and not row:
        raise _UnreadableError("its value has no field")
    return {**own, **row}


def _text(data: bytes | str, what: str) -> str:
    try:
        return data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError as error:
        raise _UnreadableError(f"{what} is not UTF-8") from error


def _fields(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else "no value of JSON"
        raise _UnreadableError(f"its value is no JSON: {said}") from error
    if not isinstance(value, dict):
        raise _UnreadableError("its value is no object of JSON")
    found: dict[str, Any] = {}
    for name, one in _flat(value, ""):
        if name in found:
            raise _UnreadableError(f"its value has {name} more than once")
        found[name] = one
    return found


def _no_number(_: str) -> float:
    raise ValueError


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, one in value.items():
        if isinstance(one, dict):
            yield from _flat(one, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(one, ensure_ascii=False) if isinstance(one, list) else one


def _time(record: Message) -> datetime | None:
    kind, milliseconds = record.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else _EPOCH + timedelta(milliseconds=milliseconds)


def _agreed(row: Mapping[str, Any], kinds: dict[str, FieldType]) -> dict[str, FieldType]:
    """The columns' types, this row's included."""
    new: dict[str, FieldType] = {}
    for name, value in row.items():
        if value is None:
            continue
        found, known = _kind(name, value), kinds.get(name)
        if found == known or (found, known) == ("integer", "float"):
            continue
        if known is not None and (found, known) != ("float", "integer"):
            raise _UnreadableError(f"{name} is of type {found}, and was {known} before")
        new[name] = found
    return {**kinds, **new} if new else kinds


def _kind(name: str, value: Any) -> FieldType:
    kind = _KINDS[type(value)]
    if kind == "integer" and not -_BEYOND <= value < _BEYOND:
        raise _UnreadableError(f"{name} is a whole number that 64 bits cannot hold")
    if kind == "string" and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _UnreadableError(f"{name} holds half a character") from error
    return kind


def _column(name: str, values: Sequence[Any], kind: FieldType | None) -> pl.Series:
    if kind == "float":
        values = [None if value is None else float(value) for value in values]
    return pl.Series(name, values, POLARS_TYPES[kind] if kind is not None else pl.Null())
