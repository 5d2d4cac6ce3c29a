"""Great Expectations on Polars frames: a batch of rules in, results, the report and offending rows out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import polars as pl

from ml_lifecycle.records import RuleResult

MAX_SAMPLED_ROWS = 1000
_EXAMPLES = 3


@dataclass(frozen=True)
class Rule:
    """One rule of a contract on one source.

    :param expectation: name of the class in ``great_expectations.expectations``
    :param offending: selects the rows that break the rule; None where it is not about rows
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
    offending: pl.Expr | None = None
    shown: tuple[str, ...] = ()
    blocked: str | None = None

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

    :param columns: those the rules read; only they are handed to Great Expectations
    :param of_source: whether the rows are the source's own, so that offending ones can be quarantined
    """

    name: str
    frame: pl.LazyFrame
    columns: tuple[str, ...]
    rules: tuple[Rule, ...]
    of_source: bool = False


@dataclass(frozen=True)
class Checked:
    """A batch's results in the order of its rules, the report, and offending rows of rules that halt."""

    results: tuple[RuleResult, ...]
    report: dict[str, Any]
    offending: tuple[tuple[RuleResult, pl.DataFrame], ...]


class Expectations:
    """An ephemeral Great Expectations context; importing it costs seconds, so it is made once a task."""

    def __init__(self) -> None:
        # Its import alone logs hundreds of INFO lines.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        import great_expectations
        import great_expectations.expectations

        # This module sets its own level while it is imported.
        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        self._gx = great_expectations
        self._classes = great_expectations.expectations
        self._context = great_expectations.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        self._data_source = self._context.data_sources.add_pandas("lake")

    def check(self, batch: Batch) -> Checked:
        """Run the batch's rules. One that raises has not passed and says why."""
        computable = {index: rule for index, rule in enumerate(batch.rules) if rule.blocked is None}
        outcomes: dict[int, dict[str, Any]] = {}
        report: dict[str, Any] = {}
        if computable:
            report = self._run(batch, computable)
            outcomes = {
                outcome["expectation_config"]["meta"]["rule"]: outcome for outcome in report["results"]
            }
        results, offending = [], []
        for index, rule in enumerate(batch.rules):
            if rule.blocked is not None:
                results.append(rule.result(passed=False, error=rule.blocked))
                continue
            outcome = outcomes[index]
            if not rule.shown:
                _hide_values(outcome["result"])
            error = _error(outcome["exception_info"])
            passed = bool(outcome["success"]) and error is None
            sample = None
            if not passed and error is None and rule.offending is not None:
                sample = batch.frame.filter(rule.offending).head(MAX_SAMPLED_ROWS).collect()
            result = rule.result(
                passed=passed,
                error=error,
                observed=_observed(outcome["result"], rule, sample),
                unexpected_rows=int(outcome["result"].get("unexpected_count", 0)) if batch.of_source else 0,
            )
            results.append(result)
            if sample is not None and batch.of_source and rule.halts:
                offending.append((result, sample))
        return Checked(tuple(results), report, tuple(offending))

    def _run(self, batch: Batch, rules: Mapping[int, Rule]) -> dict[str, Any]:
        """Great Expectations' own result as JSON; each result's ``meta.rule`` is the rule's index."""
        suite = self._context.suites.add(
            self._gx.ExpectationSuite(
                name=batch.name,
                expectations=[
                    getattr(self._classes, rule.expectation)(
                        **rule.arguments,
                        severity="critical" if rule.halts else "warning",
                        meta={"rule": index, "name": rule.rule},
                    )
                    for index, rule in rules.items()
                ],
            )
        )
        asset = self._data_source.add_dataframe_asset(batch.name)
        definition = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(
                name=batch.name, data=asset.add_batch_definition_whole_dataframe("whole"), suite=suite
            )
        )
        frame = batch.frame.select(batch.columns).collect(engine="streaming").to_pandas()
        # COMPLETE would list every unexpected row: 44 MB on 3.4 million rows.
        result = definition.run(batch_parameters={"dataframe": frame}, result_format="SUMMARY")
        report: dict[str, Any] = result.to_json_dict()
        return report


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
