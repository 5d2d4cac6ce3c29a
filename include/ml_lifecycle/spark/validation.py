"""A batch's rules on Great Expectations' Spark engine: verdicts, counts and messages are those of ``polars``.

Great Expectations counts what breaks each rule, all of a batch in one pass but for uniqueness. Rows that do
are found by its own conditions, in the order of the table's files, so that the same ones are shown.

Where Spark means something else than a contract does, the columns that are handed over say what is meant: NaN
is missing, and minus zero is zero. Patterns are Python's. One difference is left: a bound beyond 2⁵³ compares
with integers as the floats that both are to Spark.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa  # Spark reads the types of what works on columns

from ml_lifecycle.adapters.gx_import import great_expectations
from ml_lifecycle.rules.patterns import lacks_pattern
from ml_lifecycle.rules.report import Found, counts, suite_result
from ml_lifecycle.rules.rule import MAX_SAMPLED_ROWS, Batch, Checked, Rule, checked
from ml_lifecycle.spark.tables import NAME, ROW, TURN, places, read_rows

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_OLDER = "older"
_NO_LISTS = {"result_format": "BASIC", "partial_unexpected_count": 0}
_CONDITIONS = {
    "ExpectColumnValuesToNotBeNull": "column_values.nonnull",
    "ExpectColumnValuesToBeBetween": "column_values.between",
    "ExpectColumnValuesToBeInSet": "column_values.in_set",
    "ExpectColumnValuesToMatchRegex": "column_values.match_regex",
    "ExpectColumnPairValuesAToBeGreaterThanB": "column_pair_values.a_greater_than_b",
    "ExpectColumnValuesToBeUnique": "column_values.unique",
    "ExpectCompoundColumnsToBeUnique": "compound_columns.unique",
}


class SparkExpectations:
    """Great Expectations on a Spark session; importing it costs seconds, so it is made once a task."""

    def __init__(self, session: SparkSession) -> None:
        self._session = session
        self._gx = great_expectations()
        _register_python_patterns()
        self._classes = self._gx.expectations
        self._context = self._gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        self._data_source = self._context.data_sources.add_spark("lake", persist=False)
        self._numbers = itertools.count()

    def check(self, batch: Batch) -> Checked:
        """Run a batch's rules on the files of its rows. One that raises has not passed and says why."""
        if not batch.computable:
            return checked(batch, {}, lambda _: None)
        judged = _Judged(self._session, batch)
        found: dict[int, Found] = {}
        samples: dict[int, pl.DataFrame | None] = {}
        conditions = _Conditions(self._context, *self._run(judged, found))
        for index, (success, result, error) in list(found.items()):
            if error is None:
                told, samples[index] = self._told(judged, conditions, index, success, result)
                found[index] = success, told, None
        return checked(batch, suite_result(batch, found, engine="spark"), samples.get)

    def _run(self, judged: _Judged, found: dict[int, Found]) -> tuple[Any, Any]:
        """Have everything counted; returns what asks further questions about the same rows."""
        name = f"{judged.batch.name} {next(self._numbers)}"
        suite = self._context.suites.add(
            self._gx.ExpectationSuite(
                name=name,
                expectations=[
                    getattr(self._classes, rule.expectation)(**judged.arguments(rule), meta={"rule": index})
                    for index, rule in judged.batch.computable.items()
                ],
            )
        )
        asset = self._data_source.add_dataframe_asset(name)
        whole = asset.add_batch_definition_whole_dataframe("whole")
        definition = self._context.validation_definitions.add(
            self._gx.ValidationDefinition(name=name, data=whole, suite=suite)
        )
        given = {"dataframe": judged.frame}
        report = definition.run(batch_parameters=given, result_format=_NO_LISTS).to_json_dict()
        for outcome in report["results"]:
            index = outcome["expectation_config"]["meta"]["rule"]
            error = _error(outcome["exception_info"])
            found[index] = bool(outcome["success"]) and error is None, outcome["result"], error
        return whole, given

    def _told(
        self, judged: _Judged, conditions: _Conditions, index: int, success: bool, result: Mapping[str, Any]
    ) -> tuple[dict[str, Any], pl.DataFrame | None]:
        """The counts with the first values that break the rule, and the first such rows."""
        rule = judged.batch.rules[index]
        about_missing = rule.expectation == "ExpectColumnValuesToNotBeNull"
        unexpected = int(result.get("unexpected_count") or 0)
        missing = None if about_missing else int(result.get("missing_count") or 0)
        sample = None
        # Of missing values that are tolerated there is nothing to see; nor where nobody may.
        if unexpected and not (success and about_missing) and (rule.shown or rule.halts):
            sample = judged.sample(*conditions.of(rule, judged.arguments(rule)))
        values: list[Any] = []
        if about_missing:
            values = [None] * min(unexpected, MAX_SAMPLED_ROWS)
        elif sample is not None:
            held = sample.select(_judged_columns(rule))
            values = held.to_series().to_list() if held.width == 1 else held.rows()
            if "column_list" in rule.arguments:
                values = held.to_dicts()
        return counts(int(result["element_count"]), missing, unexpected, values), sample


class _Judged:
    """A batch's rows as Great Expectations looks at them, and as they are stored.

    Columns have names that Spark and Great Expectations both can quote: ``v…`` as stored, ``c…`` as judged.
    """

    def __init__(self, session: SparkSession, batch: Batch) -> None:
        from pyspark.sql import functions as F

        assert batch.stored is not None, "only rows of a source are judged by Spark"
        self.batch, self._session, self._stored = batch, session, batch.stored
        self._schema = batch.frame.collect_schema()
        self._values = {name: f"v{number}" for number, name in enumerate(self._stored.columns)}
        self.columns = {name: self._values[name].replace("v", "c") for name in batch.columns}
        frame = read_rows(session, self._stored, self._values).withColumn(_OLDER, F.lit(False))
        frame = self._with_judged(frame)
        if batch.older_stored is not None:
            older = read_rows(session, batch.older_stored, self._values).withColumn(_OLDER, F.lit(True))
            older = self._with_judged(older)
            frame = frame.unionByName(_sharing(older, frame, list(self.columns.values())))
        self.frame = frame

    def arguments(self, rule: Rule) -> dict[str, Any]:
        """A rule's arguments in terms of the judged columns."""
        given = dict(rule.arguments)
        for name in ("column", "column_A", "column_B"):
            if name in given:
                given[name] = self.columns[given[name]]
        if "column_list" in given:
            given["column_list"] = [self.columns[name] for name in given["column_list"]]
        if "row_condition" in given:
            given["row_condition"] = _renamed(given["row_condition"], self.columns)
        if rule.expectation == "ExpectColumnValuesToBeInSet":
            kind = self._schema[rule.arguments["column"]]
            given["value_set"] = pl.Series(given["value_set"], dtype=kind).to_list()
            if kind.is_float():
                given["value_set"] = [value + 0.0 for value in given["value_set"]]
        return given

    def sample(self, rows: DataFrame, unexpected: Column) -> pl.DataFrame:
        """The first rows that break a rule, in the order of the files, with all their columns."""
        from pyspark.sql import functions as F

        order = places(self._session, self._stored).withColumn(_OLDER, F.lit(False))
        if self.batch.older_stored is not None:
            older = places(self._session, self.batch.older_stored).withColumn(_OLDER, F.lit(True))
            order = order.unionByName(older)
        found = rows.withColumn("unexpected", unexpected).filter(F.col("unexpected"))
        placed = found.join(F.broadcast(order), [_OLDER, NAME, TURN]).orderBy(_OLDER, "place", ROW)
        first = placed.limit(MAX_SAMPLED_ROWS).select(*self._values.values()).toArrow()
        named = pl.DataFrame(pl.from_arrow(first)).rename({v: name for name, v in self._values.items()})
        return named.cast(dict(self._schema))  # type: ignore[arg-type]

    def _with_judged(self, frame: DataFrame) -> DataFrame:
        return frame.withColumns({called: self._meant(name) for name, called in self.columns.items()})

    def _meant(self, name: str) -> Column:
        from pyspark.sql import functions as F

        value = F.col(self._values[name])
        if not self._schema[name].is_float():
            return value
        return F.when(~F.isnan(value), value + F.lit(0.0))  # null otherwise; -0.0 + 0.0 is 0.0


class _Conditions:
    """Great Expectations' own conditions of what breaks a rule, for looking at the rows."""

    def __init__(self, context: Any, whole: Any, given: Mapping[str, Any]) -> None:
        self._context, self._whole, self._given = context, whole, given
        self._validator: Any = None

    def of(self, rule: Rule, arguments: Mapping[str, Any]) -> tuple[DataFrame, Column]:
        """The rows that the rule is about, and whether one breaks it."""
        from great_expectations.validator.metric_configuration import MetricConfiguration

        if self._validator is None:
            batch = self._whole.get_batch(self._given)
            self._validator = self._context.get_validator(batch=batch)
        expectation = self._classes(rule)(**arguments)
        domain = {
            name: value
            for name, value in expectation.configuration.kwargs.items()
            if name in _DOMAIN and value is not None
        }
        values = {name: arguments[name] for name in _VALUES if arguments.get(name) is not None}
        metric = MetricConfiguration(f"{_CONDITIONS[rule.expectation]}.condition", domain, values)
        unexpected, compute, accessor = self._validator.get_metric(metric)
        return self._validator.execution_engine.get_domain_records({**compute, **accessor}), unexpected

    @staticmethod
    def _classes(rule: Rule) -> Any:
        return getattr(great_expectations().expectations, rule.expectation)


_DOMAIN = ("column", "column_A", "column_B", "column_list", "ignore_row_if", "row_condition")
_VALUES = ("min_value", "max_value", "strict_min", "strict_max", "value_set", "regex", "or_equal")


def _judged_columns(rule: Rule) -> list[str]:
    named = [rule.arguments.get(name) for name in ("column", "column_A", "column_B")]
    return [*(name for name in named if name is not None), *rule.arguments.get("column_list", ())]


def _renamed(condition: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row condition in terms of the judged columns."""
    if condition["type"] == "and":
        return {**condition, "conditions": [_renamed(one, columns) for one in condition["conditions"]]}
    return {**condition, "column": {"name": columns[condition["column"]["name"]]}}


def _sharing(older: DataFrame, new: DataFrame, columns: list[str]) -> DataFrame:
    """The older rows that hold the same as a new one in ``columns``, null as null."""
    from pyspark.sql import functions as F

    wanted = new.select(*(F.col(name).alias(f"new {name}") for name in columns)).distinct()
    same = reduce(
        lambda one, two: one & two,
        [F.col(name).eqNullSafe(F.col(f"`new {name}`")) for name in columns],
    )
    some = reduce(lambda one, two: one | two, [F.col(name).isNotNull() for name in columns])
    return older.filter(some).join(wanted, same, "left_semi")


def _error(info: Mapping[str, Any]) -> str | None:
    infos = [info] if "raised_exception" in info else list(info.values())
    return next((str(one["exception_message"]) for one in infos if one["raised_exception"]), None)


def _register_python_patterns() -> None:
    """Have Great Expectations' Spark engine match patterns as Python does: Java's are another dialect."""
    from great_expectations.execution_engine import SparkDFExecutionEngine
    from great_expectations.expectations.metrics.map_metric_provider import (
        ColumnMapMetricProvider,
        column_condition_partial,
    )

    # It warns that a metric is defined again, which is what is meant.
    log = logging.getLogger("great_expectations")
    before = log.level
    log.setLevel(logging.ERROR)

    class ColumnValuesMatchPythonPattern(ColumnMapMetricProvider):  # type: ignore[misc]
        """``column_values.match_regex`` on Spark, by what the engine ``polars`` matches with."""

        condition_metric_name = "column_values.match_regex"
        condition_value_keys = ("regex",)

        @column_condition_partial(engine=SparkDFExecutionEngine)  # type: ignore[untyped-decorator]
        def _spark(cls, column: Column, regex: str, **_: Any) -> Any:
            return _has_pattern(regex)(column)

    log.setLevel(before)


def _has_pattern(regex: str) -> Any:
    from pyspark.sql.pandas.functions import arrow_udf

    def has(texts: pa.Array) -> pa.Array:
        column = pl.Series("text", pl.from_arrow(texts), dtype=pl.String)
        found = column.to_frame().select(~lacks_pattern(pl.col("text"), regex)).to_series()
        return found.to_arrow()

    return arrow_udf(has, "boolean")  # type: ignore[call-overload]
