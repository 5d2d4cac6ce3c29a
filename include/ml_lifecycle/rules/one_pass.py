"""The engine ``polars``: a batch's rules as one streaming pass over its rows.

Counts first, all in one pass; rows that break a rule are looked for only where some do. Memory is that of the
pass and of the samples, whatever the number of rows, and nothing heavier than Polars is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ml_lifecycle.rules.duplicates import find_duplicates
from ml_lifecycle.rules.meanings import (
    Distinct,
    LookedUp,
    Meaning,
    MeaningError,
    OfColumns,
    OfRows,
    OfTable,
    meaning_of,
    value_of,
)
from ml_lifecycle.rules.references import find_unknown
from ml_lifecycle.rules.report import Found, counts, finite, mostly, suite_result
from ml_lifecycle.rules.rule import MAX_SAMPLED_ROWS, Batch, Checked, Rule, checked


def check(batch: Batch) -> Checked:
    """Run the batch's rules. One that cannot be computed has not passed and says why."""
    rules = batch.computable
    if not rules:
        return checked(batch, {}, lambda _: None)
    schema = batch.frame.collect_schema()
    found: dict[int, Found] = {}
    meanings: dict[int, Meaning] = {}
    samples: dict[int, pl.DataFrame | None] = {}
    for index, rule in rules.items():
        try:
            meanings[index] = meaning_of(rule, schema)
        except MeaningError as error:
            found[index] = False, {}, str(error)
    measured = _measure(batch.frame, meanings, schema)
    for index, meaning in meanings.items():
        rule = rules[index]
        if isinstance(meaning, OfColumns):
            found[index] = meaning.success, meaning.result, None
        elif isinstance(meaning, OfTable):
            value = measured[f"value {index}"]
            found[index] = meaning.holds(value), {"observed_value": finite(value)}, None
        elif isinstance(meaning, Distinct):
            found[index], samples[index] = _duplicates(batch, rule, meaning)
        elif isinstance(meaning, LookedUp):
            found[index], samples[index] = _unknown(batch, rule, meaning)
        else:
            found[index], samples[index] = _of_rows(batch, rule, meaning, measured, index)
    return checked(batch, suite_result(batch, found), samples.get)


def _measure(frame: pl.LazyFrame, meanings: Mapping[int, Meaning], schema: pl.Schema) -> Mapping[str, Any]:
    """Every number that the rules need, in one pass."""
    asked: dict[str, pl.Expr] = {}
    for index, meaning in meanings.items():
        if isinstance(meaning, OfTable):
            asked[f"value {index}"] = meaning.value
        elif isinstance(meaning, OfRows):
            where = meaning.where
            asked[meaning.rows] = pl.len() if where is None else where.sum()
            missing = _missing(meaning)
            if missing not in asked:
                values = [value_of(column, schema) for column in meaning.columns]
                if where is None and len(values) == 1:
                    asked[missing] = values[0].null_count()
                else:
                    null = pl.any_horizontal([value.is_null() for value in values])
                    asked[missing] = (null if where is None else null & where).sum()
            if not meaning.judges_missing:  # that is the number of missing rows
                asked[f"unexpected {index}"] = meaning.unexpected.sum()
    if not asked:
        return {}
    named = [expr.alias(name) for name, expr in asked.items()]
    return frame.select(named).collect(engine="streaming").row(0, named=True)


def _missing(meaning: OfRows) -> str:
    return f"missing {meaning.columns!r} of {meaning.rows}"


def _of_rows(
    batch: Batch, rule: Rule, meaning: OfRows, measured: Mapping[str, Any], index: int
) -> tuple[Found, pl.DataFrame | None]:
    rows, missing = measured[meaning.rows], measured[_missing(meaning)]
    if meaning.judges_missing:
        unexpected, missing = missing, None
    else:
        unexpected = measured[f"unexpected {index}"]
    success = mostly(rows, missing, unexpected, rule.arguments.get("mostly", 1))
    sample = None
    # Of missing values that are tolerated there is nothing to see; nor where nobody may.
    told = not (success and meaning.judges_missing)
    if unexpected and told and (rule.shown or (rule.halts and batch.of_source)):
        sample = batch.frame.filter(meaning.unexpected).head(MAX_SAMPLED_ROWS).collect(engine="streaming")
    if meaning.judges_missing:
        values = [None] * min(unexpected, MAX_SAMPLED_ROWS)  # of NaN too
    else:
        values = _values(sample, meaning.columns)
    return (success, counts(rows, missing, unexpected, values), None), sample


def _duplicates(batch: Batch, rule: Rule, meaning: Distinct) -> tuple[Found, pl.DataFrame | None]:
    found = find_duplicates(batch.frame, batch.older, meaning.columns, limit=MAX_SAMPLED_ROWS)
    success = mostly(found.rows, found.missing, found.duplicated, rule.arguments.get("mostly", 1))
    values = _values(found.sample, meaning.columns)
    if len(meaning.columns) > 1:
        values = [dict(zip(meaning.columns, row, strict=True)) for row in values]
    return (success, counts(found.rows, found.missing, found.duplicated, values), None), found.sample


def _unknown(batch: Batch, rule: Rule, meaning: LookedUp) -> tuple[Found, pl.DataFrame | None]:
    assert batch.known is not None
    found = find_unknown(batch.frame, batch.known, meaning.columns[0], limit=MAX_SAMPLED_ROWS)
    success = mostly(found.rows, found.missing, found.unknown, rule.arguments.get("mostly", 1))
    values = _values(found.sample, meaning.columns)
    return (success, counts(found.rows, found.missing, found.unknown, values), None), found.sample


def _values(sample: pl.DataFrame | None, columns: tuple[str, ...]) -> list[Any]:
    """What a sample holds in the columns of a rule: a value a row, or a tuple of them."""
    if sample is None:
        return []
    held = sample.select(columns)
    return held.to_series().to_list() if held.width == 1 else held.rows()
