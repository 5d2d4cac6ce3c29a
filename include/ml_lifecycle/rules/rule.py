"""A rule, the rows that it is about, and what became of it, whichever engine judged it.

Rules go by the names and arguments of Great Expectations, and what an engine finds is an outcome in Great
Expectations' own JSON: the one language that both engines, reports and Data Docs share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import polars as pl

from ml_lifecycle.adapters.tables import StoredRows
from ml_lifecycle.records import RuleResult
from ml_lifecycle.rules.conditions import columns_of

MAX_SAMPLED_ROWS = 1000
_EXAMPLES = 3


@dataclass(frozen=True)
class Rule:
    """One rule of a contract on one source.

    :param expectation: name of the class in ``great_expectations.expectations``
    :param shown: columns whose offending values may stand in messages
    :param blocked: why it cannot be computed; such a rule has not passed
    """

    source: str
    rule: str
    field: str | None
    halts: bool
    expected: str
    expectation: str = ""
    arguments: Mapping[str, Any] = dataclass_field(default_factory=dict)
    shown: tuple[str, ...] = ()
    blocked: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that its arguments name."""
        named = (self.arguments.get(name) for name in ("column", "column_A", "column_B"))
        of_rows = columns_of(self.arguments.get("row_condition"))
        return (
            *(name for name in named if name is not None),
            *self.arguments.get("column_list", ()),
            *of_rows,
        )

    def result(self, **measured: Any) -> RuleResult:
        """The rule's result, with what was measured."""
        return RuleResult(
            source=self.source,
            rule=self.rule,
            field=self.field,
            halts=self.halts,
            expected=self.expected,
            **measured,
        )


@dataclass(frozen=True)
class Batch:
    """Rules on the same rows.

    :param columns: those the rules read; an engine need look at no others
    :param of_source: whether the rows are the source's own, so that offending ones can be quarantined
    :param older: rows judged before; those with the values of a row in ``frame`` are judged again beside it
    :param stored: the rows of ``frame`` as files, for an engine that reads them itself
    :param older_stored: those of ``older``
    :param known: the one column of another table in which a rule looks values up
    """

    name: str
    frame: pl.LazyFrame
    columns: tuple[str, ...]
    rules: tuple[Rule, ...]
    of_source: bool = False
    older: pl.LazyFrame | None = None
    stored: StoredRows | None = None
    older_stored: StoredRows | None = None
    known: pl.LazyFrame | None = None

    @property
    def rows(self) -> pl.LazyFrame:
        """Every row judged. With ``older`` rows it holds the values of all new ones in memory."""
        if self.older is None:
            return self.frame
        fields = list(self.columns)
        known = self.older.filter(pl.any_horizontal(pl.col(fields).is_not_null()))
        shared = known.join(self.frame.select(fields), on=fields, how="semi", nulls_equal=True)
        return pl.concat([self.frame, shared])

    @property
    def computable(self) -> dict[int, Rule]:
        """The rules that are not blocked, by their place."""
        return {index: rule for index, rule in enumerate(self.rules) if rule.blocked is None}


@dataclass(frozen=True)
class Checked:
    """A batch's results in the order of its rules, the report, and offending rows of rules that halt.

    :param report: Great Expectations' ``ExpectationSuiteValidationResult`` as JSON; empty without any outcome
    """

    results: tuple[RuleResult, ...]
    report: dict[str, Any]
    offending: tuple[tuple[RuleResult, pl.DataFrame], ...]


def checked(batch: Batch, report: dict[str, Any], sample: Callable[[int], pl.DataFrame | None]) -> Checked:
    """What a report means for the batch. Values that may not be shown are taken out of it.

    :param report: each outcome's ``meta.rule`` is the rule's place in the batch
    :param sample: offending rows of the rule at a place; asked only where it failed
    """
    outcomes = {
        outcome["expectation_config"]["meta"]["rule"]: outcome for outcome in report.get("results", ())
    }
    results, offending = [], []
    for index, rule in enumerate(batch.rules):
        if rule.blocked is not None:
            results.append(rule.result(passed=False, error=rule.blocked))
            continue
        outcome = outcomes[index]
        found = outcome["result"]
        if not rule.shown:
            _hide_values(found)
        error = _error(outcome["exception_info"])
        passed = bool(outcome["success"]) and error is None
        rows = sample(index) if not passed and error is None else None
        result = rule.result(
            passed=passed,
            error=error,
            observed=_observed(found, rule, rows),
            unexpected_rows=int(found.get("unexpected_count", 0)) if batch.of_source else 0,
        )
        results.append(result)
        if rows is not None and batch.of_source and rule.halts:
            offending.append((result, rows))
    return Checked(tuple(results), report, tuple(offending))


def _error(info: Mapping[str, Any]) -> str | None:
    """The message of the exception behind an outcome: its own, or one by metric."""
    infos = [info] if "raised_exception" in info else list(info.values())
    for one in infos:
        if one["raised_exception"]:
            return f"could not be computed: {one['exception_message']}"
    return None


def _hide_values(result: dict[str, Any]) -> None:
    for key in [key for key in result if key.startswith("partial_unexpected")]:
        del result[key]


def _observed(result: Mapping[str, Any], rule: Rule, sample: pl.DataFrame | None) -> float | str | None:
    if "mismatched" in (result.get("details") or {}):
        return ", ".join(map(str, result["details"]["mismatched"].get("unexpected", [])))
    value = result.get("observed_value")
    if value is not None:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)
    if "unexpected_count" not in result:
        return None
    count, total = result["unexpected_count"], result["element_count"]
    share = f"{count:,} of {total:,} ({count / total:.2%})" if total else "no rows"
    if sample is None or not rule.shown:
        return share
    examples = sample.select(rule.shown).unique(maintain_order=True).head(_EXAMPLES)
    shown = "; ".join(", ".join(str(value) for value in row) for row in examples.iter_rows())
    return shown if total == 1 else f"{share}, e.g. {shown}"
