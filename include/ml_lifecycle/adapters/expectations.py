"""The engine ``great_expectations``: a batch's rules on Great Expectations itself, over pandas in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from ml_lifecycle.adapters.gx_import import great_expectations
from ml_lifecycle.rules.meanings import offending_rows
from ml_lifecycle.rules.report import finite
from ml_lifecycle.rules.rule import MAX_SAMPLED_ROWS, Batch, Checked, checked

if TYPE_CHECKING:
    import pandas

# As floats, which pandas makes of integers beside nulls, it and the next look alike.
_INEXACT = 2**53
_KNOWN = "known"


class Expectations:
    """An ephemeral Great Expectations context; importing it costs seconds, so it is made once a task."""

    def __init__(self) -> None:
        self._gx = great_expectations()
        self._classes = self._gx.expectations
        self._context = self._gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        self._data_source = self._context.data_sources.add_pandas("lake")

    def check(self, batch: Batch) -> Checked:
        """Run the batch's rules. One that raises has not passed and says why."""
        report = self._run(batch) if batch.computable else {}
        return checked(
            batch, report, lambda index: offending_rows(batch, batch.rules[index], MAX_SAMPLED_ROWS)
        )

    def _run(self, batch: Batch) -> dict[str, Any]:
        """Great Expectations' own result as JSON; each result's ``meta.rule`` is the rule's index."""
        suite = self._context.suites.add(
            self._gx.ExpectationSuite(
                name=batch.name,
                expectations=[
                    getattr(self._classes, rule.expectation)(
                        **_as_parameter(rule.arguments),
                        severity="critical" if rule.halts else "warning",
                        meta={"rule": index, "name": rule.rule},
                    )
                    for index, rule in batch.computable.items()
                ],
            )
        )
        asset = self._data_source.add_dataframe_asset(batch.name)
        definition = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(
                name=batch.name, data=asset.add_batch_definition_whole_dataframe("whole"), suite=suite
            )
        )
        frame = _as_pandas(batch.rows.select(batch.columns).collect(engine="streaming"))
        # COMPLETE would list every unexpected row: 44 MB on 3.4 million rows.
        known = None if batch.known is None else batch.known.collect(engine="streaming").to_series()
        result = definition.run(
            batch_parameters={"dataframe": frame},
            result_format="SUMMARY",
            expectation_parameters=None if known is None else {_KNOWN: known.drop_nulls().unique().to_list()},
        )
        report: dict[str, Any] = finite(result.to_json_dict())
        for outcome in report["results"] if known is not None else ():
            # The name of the other table's values, not all of them.
            arguments = batch.rules[outcome["expectation_config"]["meta"]["rule"]].arguments
            outcome["expectation_config"]["kwargs"]["value_set"] = arguments["value_set"]
        return report


def _as_parameter(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with a set that has a name under the one name that the values are handed over by."""
    named = isinstance(arguments.get("value_set"), Mapping)
    return {**arguments, "value_set": {"$PARAMETER": _KNOWN}} if named else dict(arguments)


def _as_pandas(frame: pl.DataFrame) -> pandas.DataFrame:
    import pandas

    converted = frame.to_pandas()
    for column in frame:
        if column.dtype.is_integer() and not column.is_between(-_INEXACT, _INEXACT, closed="none").all():
            converted[column.name] = pandas.Series(column.to_list(), dtype=object)
    return converted
