"""Columns of source files in canonical types, see :mod:`ml_lifecycle.adapters.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import cast

import polars as pl

from ml_lifecycle.adapters.tables import POLARS_TYPES, TIMESTAMP
from ml_lifecycle.errors import SourceError
from ml_lifecycle.spec.contract_rules import FieldType

_WHOLE_DOUBLE = 2.0**53
_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class BadText:
    """Text that is not of its column's type: where first, and how often."""

    index: int
    count: int


def canonical(column: pl.Series, kind: FieldType | None, where: str) -> pl.Series | BadText:
    """The column as ``kind``, or as it is if it cannot be that without losing a value.

    :raises SourceError: it has a type that no snapshot can hold. Retry: no.
    """
    column = _widened(column, where)
    if kind is None or column.dtype == POLARS_TYPES[kind]:
        return column
    if column.dtype == pl.String:
        return _parsed(column, kind)
    target = POLARS_TYPES[kind]
    lossless = (
        column.dtype == pl.Null
        or (column.dtype == pl.Int64 and kind == "float" and _exact_as_float(column))
        or (column.dtype == pl.Int64 and kind == "string")
        or (column.dtype == pl.Date and kind == "timestamp")
        or (column.dtype == pl.Float64 and kind == "integer" and _all_whole(column))
        or (column.dtype == TIMESTAMP and kind == "date" and (column == column.dt.truncate("1d")).all())
    )
    return column.cast(target) if lossless else column


def _exact_as_float(column: pl.Series) -> bool:
    return bool((column.abs() <= int(_WHOLE_DOUBLE)).all())


def _all_whole(column: pl.Series) -> bool:
    return bool(((column == column.floor()) & (column.abs() < _WHOLE_DOUBLE)).all())


def _widened(column: pl.Series, where: str) -> pl.Series:
    """The column as one of the six canonical types, whatever its width, unit or encoding."""
    dtype = column.dtype
    if dtype in (pl.Date, pl.Datetime) and not _has_years(column).all():
        raise SourceError(f"{where} holds times outside of the years 1 to 9999; write them in their own unit")
    if dtype in (pl.String, pl.Boolean, pl.Date, pl.Null, pl.Int64):
        return column
    if dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0):
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() > column.null_count():
            raise SourceError(f"{where} holds integers of more than 64 bits; write them as text")
        return whole
    if dtype.is_float() or dtype.is_decimal():
        # Adding zero turns -0.0 into 0.0: they are equal, so they must have equal bytes.
        return column.cast(pl.Float64).fill_nan(None) + 0.0
    if dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if dtype == pl.Datetime:
        return utc(column)
    raise SourceError(f"{where} has type {dtype}, which a snapshot cannot hold; write one plain value a cell")


def _has_years(column: pl.Series) -> pl.Series:
    """Which dates and times Python can hold: not milliseconds that somebody took for seconds."""
    first, last = (date.toordinal(one) - date(1970, 1, 1).toordinal() for one in (date.min, date.max))
    if isinstance(column.dtype, pl.Datetime):
        day = 86_400 * _SECOND[column.dtype.time_unit]
        first, last = first * day, (last + 1) * day - 1
    return column.to_physical().is_between(max(first, -(2**63)), min(last, 2**63 - 1))


def utc(column: pl.Series) -> pl.Series:
    """Times as UTC in microseconds; those without a zone are taken as UTC."""
    zone = cast("pl.Datetime", column.dtype).time_zone
    moments = column.dt.replace_time_zone("UTC") if zone is None else column.dt.convert_time_zone("UTC")
    return moments.cast(TIMESTAMP)


def _parsed(column: pl.Series, kind: FieldType) -> pl.Series | BadText:
    """Text as ``kind``; blank text is null."""
    text = column.str.strip_chars().replace("", None)
    parsed = text.to_frame("text").select(_PARSERS[kind]).to_series().alias(column.name)
    if kind in ("timestamp", "date"):
        parsed = parsed.set(~_has_years(parsed), None)
    bad = parsed.is_null() & text.is_not_null()
    if bad.any():
        return BadText(cast("int", bad.arg_max()), int(bad.sum()))
    return parsed.fill_nan(None) + 0.0 if kind == "float" else parsed


_TEXT = pl.col("text")
_ISO = _TEXT.str.replace(" ", "T", literal=True)
_AS_FLOAT = _TEXT.cast(pl.Float64, strict=False)


def _naive(expression: pl.Expr) -> pl.Expr:
    return expression.dt.replace_time_zone("UTC")


def _zoned_formats(formats: Sequence[str]) -> list[pl.Expr]:
    return [_ISO.str.to_datetime(f, time_unit="us", time_zone="UTC", strict=False) for f in formats]


_PARSERS: Mapping[FieldType, pl.Expr] = {
    # "3.0" is how a column of integers with gaps leaves a float-only tool.
    "integer": pl.coalesce(
        _TEXT.cast(pl.Int64, strict=False),
        pl.when((_AS_FLOAT.floor() == _AS_FLOAT) & (_AS_FLOAT.abs() < _WHOLE_DOUBLE)).then(
            _AS_FLOAT.cast(pl.Int64, strict=False)
        ),
    ),
    "float": _AS_FLOAT,
    "boolean": _TEXT.str.to_lowercase().replace_strict(
        {"true": True, "false": False, "1": True, "0": False}, default=None, return_dtype=pl.Boolean
    ),
    "timestamp": pl.coalesce(
        *_zoned_formats(("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")),
        *(
            _naive(_ISO.str.to_datetime(f, time_unit="us", strict=False))
            for f in ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")
        ),
        _naive(_TEXT.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))),
    ),
    "date": _TEXT.str.to_date("%Y-%m-%d", strict=False),
}
