"""Which rows a rule is about: conditions as Great Expectations writes them (``row_condition``), as JSON.

A row that lacks a value meets no condition but ``IS NULL``, so comparisons that a null would pass on pandas
(``!=``, ``NOT_IN``) stand beside a ``NOT NULL``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

Json = Mapping[str, Any]
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def comparison(column: str, sign: str, value: Any) -> dict[str, Any]:
    """``column sign value``.

    :param sign: one of ``== != < <= > >= IN NOT_IN``
    """
    return {"type": "comparison", "column": {"name": column}, "operator": sign, "parameter": value}


def nullity(column: str, *, is_null: bool) -> dict[str, Any]:
    """Whether the column lacks a value."""
    return {"type": "nullity", "column": {"name": column}, "is_null": is_null}


def every(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    """All of them."""
    return {"type": "and", "conditions": conditions}


def columns_of(condition: Json | None) -> tuple[str, ...]:
    """The columns that a condition reads."""
    if condition is None:
        return ()
    if condition["type"] == "and":
        return tuple(name for one in condition["conditions"] for name in columns_of(one))
    return (condition["column"]["name"],)


def met(condition: Json, value_of: Callable[[str], pl.Expr]) -> pl.Expr:
    """True for rows that meet the condition, false for all others.

    :param value_of: a column with null for whatever is missing
    """
    if condition["type"] == "and":
        return pl.all_horizontal([met(one, value_of) for one in condition["conditions"]])
    value = value_of(condition["column"]["name"])
    if condition["type"] == "nullity":
        return value.is_null() if condition["is_null"] else value.is_not_null()
    sign, parameter = condition["operator"], condition["parameter"]
    if sign in ("IN", "NOT_IN"):
        found = pl.any_horizontal([value == one for one in parameter])
        holds = found if sign == "IN" else ~found
    else:
        holds = _COMPARISONS[sign](value, parameter)
    return holds.fill_null(False)
