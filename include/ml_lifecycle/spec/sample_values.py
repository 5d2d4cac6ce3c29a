"""Values to try a field's rules with: at its bounds, beside them, and odd ones of its type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ml_lifecycle.spec.contract import ContractField
from ml_lifecycle.spec.contract_rules import FieldType

_MOMENTS = (
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2000, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
)
_PLAIN: Mapping[FieldType, Sequence[Any]] = {
    "string": ("", " ", "é", "e\u0301", "日本", "😀", "a\nb", "'\"\\", "x" * 1000),
    "integer": (0, 1, -1, 2**53 + 1, -(2**63), 2**63 - 1),
    "float": (0.0, -0.0, 0.1, 5e-324, 1e308, -1e308),
    "boolean": (False, True),
    "timestamp": _MOMENTS,
    "date": tuple(moment.date() for moment in _MOMENTS),
}


def around(bound: float, kind: FieldType) -> list[Any]:
    """A bound and the values next to it, on both sides."""
    if kind == "float":
        return [bound, math.nextafter(bound, math.inf), math.nextafter(bound, -math.inf)]
    whole = [math.ceil(bound), math.floor(bound)]
    near = {value + step for value in whole for step in (-1, 0, 1)}
    return sorted(
        (value for value in near if -(2**63) <= value < 2**63), key=lambda value: abs(value - bound)
    )


def plain(kind: FieldType) -> list[Any]:
    """Values of a type, odd ones among them."""
    return list(_PLAIN[kind])


def many(item: ContractField, wanted: int) -> Iterator[Any]:
    """So many different values within the field's range, and some more."""
    count = wanted + 2 if wanted else 0
    low = item.min if item.min is not None else (item.max or 0) - count
    for number in range(count):
        if item.type == "integer":
            yield math.ceil(low) + number
        elif item.type == "float":
            yield low + number if item.max is None else low + (item.max - low) * number / count
        elif item.type == "string" and item.pattern is None:
            yield f"é{number}"
        elif item.type == "timestamp":
            yield datetime(2013, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        elif item.type == "date":
            yield date(2013, 1, 1) + timedelta(days=number)
