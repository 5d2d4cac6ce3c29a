"""Small types shared by the specs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Strict(BaseModel):
    """Base of all spec objects: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse_duration(value: Any) -> Any:
    """``"24h"`` → timedelta. Units: s, m, h, d, w."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)([smhdw])", value)):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    raise ValueError(f"{value!r} is not a duration: write a whole number and a unit, such as 30m, 24h or 7d")


def format_duration(value: timedelta) -> str:
    """The shortest text :func:`parse_duration` reads back."""
    seconds = int(value.total_seconds())
    for unit, size in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d+[smhdw]$", "examples": ["30m", "24h", "7d"]}),
]

# Versions are text: 2.10 and 2.1 differ. The loader hands scalars over as they are written.
VersionText = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value),
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$"),
]

# Becomes a DAG id, a path segment and an endpoint's name.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]

# An Airflow connection id.
ConnectionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]
