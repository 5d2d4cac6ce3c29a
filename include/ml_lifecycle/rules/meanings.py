"""What each expectation means, said once: for the pass that counts, and for the rows that go to quarantine.

Great Expectations on pandas is what they are held against, by the tests. A missing value is null or NaN and
breaks only the rule against missing values; integers are compared exactly, whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.rules.conditions import met
from ml_lifecycle.rules.patterns import lacks_pattern
from ml_lifecycle.rules.references import find_unknown
from ml_lifecycle.rules.rule import Batch, Rule

Arguments = Mapping[str, Any]

_BEYOND = 2.0**64  # no column holds such integers, and Polars no literal much larger


class MeaningError(LifecycleError):
    """A rule cannot be computed on the columns there are. Retry: no."""


@dataclass(frozen=True)
class OfRows:
    """A rule about single rows.

    :param columns: rows without a value in any of them are missing
    :param unexpected: true for rows that break the rule; null or false where one is missing
    :param judges_missing: whether missing rows are what it is about; else they are left out
    :param where: true for the rows it is about; None for all
    :param rows: what these rows are called, the same name for the same rows
    """

    columns: tuple[str, ...]
    unexpected: pl.Expr
    judges_missing: bool = False
    where: pl.Expr | None = None
    rows: str = "rows"


@dataclass(frozen=True)
class Distinct:
    """No two rows hold the same in ``columns``; rows without any value there are left out.

    :param unexpected: rows that are not the only ones, for frames in memory: it looks at all at once
    """

    columns: tuple[str, ...]
    unexpected: pl.Expr


@dataclass(frozen=True)
class OfTable:
    """One number or value of the whole table, and what it must be.

    :param holds: whether the value, null for a table without any, is as it should be
    """

    value: pl.Expr
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class OfColumns:
    """A rule about the columns there are; ``result`` is what Great Expectations says of them."""

    success: bool
    result: dict[str, Any]


@dataclass(frozen=True)
class LookedUp:
    """Every value of the column is one of another table's; rows without one are left out."""

    columns: tuple[str, ...]


Meaning = OfRows | Distinct | OfTable | OfColumns | LookedUp


def meaning_of(rule: Rule, schema: pl.Schema) -> Meaning:
    """What ``rule`` means on a frame with these columns.

    :raises MeaningError: a column is not there or has a type that the rule cannot judge. Retry: no.
    """
    meaning = _MEANINGS[rule.expectation](rule.arguments, schema)
    condition = rule.arguments.get("row_condition")
    if condition is None or not isinstance(meaning, OfRows):
        return meaning
    where = met(condition, lambda column: value_of(column, schema))
    return replace(meaning, unexpected=meaning.unexpected & where, where=where, rows=f"rows {condition}")


def offending_rows(batch: Batch, rule: Rule, limit: int) -> pl.DataFrame | None:
    """The first rows of the batch that break the rule; None for rules that are not about rows."""
    frame = batch.rows
    schema = frame.collect_schema()
    meaning = meaning_of(rule, schema)
    if isinstance(meaning, LookedUp) and batch.known is not None:
        return find_unknown(frame, batch.known, meaning.columns[0], limit=limit).sample
    if not isinstance(meaning, OfRows | Distinct):
        return None
    if isinstance(meaning, Distinct):  # what is missing is the same, whatever it is written as
        frame = frame.with_columns(value_of(column, schema).alias(column) for column in meaning.columns)
    return frame.filter(meaning.unexpected).head(limit).collect(engine="streaming")


def value_of(column: str, schema: pl.Schema) -> pl.Expr:
    """The column with null for whatever is missing.

    :raises MeaningError: there is no such column. Retry: no.
    """
    if column not in schema:
        raise MeaningError(f'the column "{column}" does not exist')
    value = pl.col(column)
    return value.fill_nan(None) if schema[column].is_float() else value


def _not_null(arguments: Arguments, schema: pl.Schema) -> OfRows:
    column = arguments["column"]
    return OfRows((column,), value_of(column, schema).is_null(), judges_missing=True)


def _between(arguments: Arguments, schema: pl.Schema) -> OfRows:
    column = arguments["column"]
    value = value_of(column, schema)
    dtype = schema[column]
    if not dtype.is_numeric():
        raise MeaningError(f'the column "{column}" is {dtype}: only numbers lie between others')
    wrong = []
    if (low := arguments.get("min_value")) is not None:
        if arguments.get("strict_min"):
            wrong.append(value <= _bound(low, dtype, math.floor))
        else:
            wrong.append(value < _bound(low, dtype, math.ceil))
    if (high := arguments.get("max_value")) is not None:
        if arguments.get("strict_max"):
            wrong.append(value >= _bound(high, dtype, math.ceil))
        else:
            wrong.append(value > _bound(high, dtype, math.floor))
    return OfRows((column,), pl.any_horizontal(wrong))


def _bound(bound: float, dtype: pl.DataType, whole: Callable[[float], int]) -> pl.Expr:
    """A bound that integers are compared with as the integers they are: as floats large ones look alike."""
    if dtype.is_integer() and abs(bound) > _BEYOND:
        bound = math.copysign(math.inf, bound)
    return pl.lit(whole(bound) if dtype.is_integer() and math.isfinite(bound) else float(bound))


def _in_set(arguments: Arguments, schema: pl.Schema) -> OfRows | LookedUp:
    column = arguments["column"]
    value = value_of(column, schema)
    if isinstance(arguments["value_set"], Mapping):  # the name of a set, which the batch brings along
        return LookedUp((column,))
    try:
        known = pl.Series(arguments["value_set"], dtype=schema[column])
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise MeaningError(f'the column "{column}" is {schema[column]}: {error}') from error
    return OfRows((column,), ~value.is_in(known.to_list()))


def _matches(arguments: Arguments, schema: pl.Schema) -> OfRows:
    column = arguments["column"]
    value = value_of(column, schema)
    if schema[column] != pl.String:
        raise MeaningError(f'the column "{column}" is {schema[column]}: only text has a pattern')
    return OfRows((column,), lacks_pattern(value, arguments["regex"]))


def _greater(arguments: Arguments, schema: pl.Schema) -> OfRows:
    columns = arguments["column_A"], arguments["column_B"]
    one, other = (value_of(column, schema) for column in columns)
    if schema[columns[0]] != schema[columns[1]]:
        raise MeaningError(f"{columns[0]} is {schema[columns[0]]} and {columns[1]} is {schema[columns[1]]}")
    return OfRows(columns, one < other if arguments["or_equal"] else one <= other)


def _distinct(arguments: Arguments, schema: pl.Schema) -> Distinct:
    columns = tuple(arguments.get("column_list") or (arguments["column"],))
    values = [value_of(column, schema) for column in columns]
    some = pl.any_horizontal([value.is_not_null() for value in values])
    return Distinct(columns, pl.struct(values).is_duplicated() & some)


def _largest(arguments: Arguments, schema: pl.Schema) -> OfTable:
    low, high = arguments.get("min_value"), arguments.get("max_value")

    def holds(value: Any) -> bool:
        return value is not None and (low is None or value >= low) and (high is None or value <= high)

    return OfTable(value_of(arguments["column"], schema).max(), holds)


def _exists(arguments: Arguments, schema: pl.Schema) -> OfColumns:
    return OfColumns(arguments["column"] in schema, {})


def _columns_match(arguments: Arguments, schema: pl.Schema) -> OfColumns:
    wanted, found = set(arguments["column_set"]), set(schema)
    mismatched = {"unexpected": sorted(found - wanted), "missing": sorted(wanted - found)}
    mismatched = {kind: names for kind, names in mismatched.items() if names}
    result: dict[str, Any] = {"observed_value": sorted(found)}
    if mismatched:
        result["details"] = {"mismatched": mismatched}
    return OfColumns(not mismatched, result)


_MEANINGS: Mapping[str, Callable[[Arguments, pl.Schema], Meaning]] = {
    "ExpectColumnValuesToNotBeNull": _not_null,
    "ExpectColumnValuesToBeBetween": _between,
    "ExpectColumnValuesToBeInSet": _in_set,
    "ExpectColumnValuesToMatchRegex": _matches,
    "ExpectColumnPairValuesAToBeGreaterThanB": _greater,
    "ExpectColumnValuesToBeUnique": _distinct,
    "ExpectCompoundColumnsToBeUnique": _distinct,
    "ExpectColumnMaxToBeBetween": _largest,
    "ExpectColumnToExist": _exists,
    "ExpectTableColumnsToMatchSet": _columns_match,
}
