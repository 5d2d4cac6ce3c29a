"""What all records have in common: the run that they are about, their JSON, and digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar, cast

from pydantic import AwareDatetime, ConfigDict, TypeAdapter, ValidationError

from ml_lifecycle.errors import LifecycleError


class RecordError(LifecycleError):
    """A dict is not the record it should be: another schema or a missing key. Retry: no."""


def _utc(moment: datetime, name: str) -> datetime:
    """The same moment in UTC, so that equal moments have equal digests."""
    if moment.tzinfo is None:
        raise ValueError(f"{name} ({moment.isoformat()}) has no time zone")
    return moment.astimezone(UTC)


@dataclass(frozen=True)
class Interval:
    """A half-open UTC interval: ``start <= t < end``."""

    start: AwareDatetime
    end: AwareDatetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _utc(self.start, "start"))
        object.__setattr__(self, "end", _utc(self.end, "end"))
        if self.start > self.end:
            raise ValueError(
                f"interval starts ({self.start.isoformat()}) after it ends ({self.end.isoformat()})"
            )

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Record:
    """Base of the records: ``schema`` names the class and its version."""

    # Holds for the plain dataclasses within as well.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    schema: ClassVar[str]


@dataclass(frozen=True)
class Run(Record):
    """Which run this is and the time it stands for; every later record carries it unchanged.

    :param model: the model's name
    :param run_id: the orchestrator's id of the run, for lineage
    :param as_of: nothing known after this moment may be used
    :param interval: the span of new data this run is about
    :param requested_by: the user who started it; None for schedules and triggers
    """

    schema: ClassVar[str] = "run/1"
    model: str
    run_id: str
    as_of: AwareDatetime
    interval: Interval
    requested_by: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_of", _utc(self.as_of, "as_of"))


R = TypeVar("R", bound=Record)


_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {}


def _adapter(cls: type[Record]) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def to_json(record: Record) -> dict[str, Any]:
    """The record as a JSON-ready dict whose ``schema`` key names its class and version."""
    dumped: dict[str, Any] = _adapter(type(record)).dump_python(record, mode="json")
    return {"schema": record.schema, **dumped}


def from_json(cls: type[R], data: dict[str, Any]) -> R:
    """Read :func:`to_json`'s dict back.

    :raises RecordError: another schema, an unknown or a missing key, or a value of another type. Retry: no.
    """
    found = data.get("schema") if isinstance(data, dict) else data
    if found != cls.schema:
        raise RecordError(f"expected a record of schema {cls.schema!r}, got {found!r}")
    body = {key: value for key, value in data.items() if key != "schema"}
    try:
        return cast("R", _adapter(cls).validate_python(body))
    except ValidationError as error:
        reasons = (
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise RecordError(f"{cls.schema}: {'; '.join(reasons)}") from error


def canonical_json(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of :func:`canonical_json`: the name of whatever ``value`` are the inputs of."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sortable(moment: datetime) -> str:
    """Text that sorts as moments do and may be a path segment: ``20130401T000000.000000Z``."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
