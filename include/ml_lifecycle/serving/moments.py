"""Moments as the server keeps them: microseconds since 1970, UTC. Datetimes are slow to log."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def now() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def microseconds(moment: datetime) -> int:
    """Of a moment with a time zone."""
    return (moment - _EPOCH) // _MICROSECOND


def moment_of(microseconds: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)
