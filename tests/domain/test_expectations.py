"""Each rule, one at a time, on both engines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from ml_lifecycle.adapters.expectations import Expectations
from ml_lifecycle.adapters.gx_import import great_expectations
from ml_lifecycle.adapters.tables import column_types
from ml_lifecycle.records import RuleResult
from ml_lifecycle.rules import one_pass
from ml_lifecycle.rules.rule import Batch, Checked
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.stages.validation_rules import (
    Measure,
    day_batch,
    measure_batch,
    row_batch,
    type_batch,
    unique_batch,
)

Check = Callable[[Batch], Checked]


@pytest.fixture(params=["polars", "great_expectations"])
def check(request: pytest.FixtureRequest) -> Check:
    return one_pass.check if request.param == "polars" else Expectations().check


def check_field(check: Check, values: list[Any], dtype: Any = None, **field: Any) -> dict[str, RuleResult]:
    contract = Contract.model_validate({"name": "t", "version": "1", "fields": [{"name": "x", **field}]})
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    checked = check(row_batch("t", contract, column_types(frame), frame.lazy()))
    return {result.rule: result for result in checked.results}


@pytest.mark.parametrize(
    ("rule", "values", "field", "unexpected", "observed"),
    [
        ("not_null", [1, None, 3], {"type": "integer", "nullable": False}, 1, "1 of 3 (33.33%), e.g. None"),
        ("max_missing", [1.0, None, None], {"type": "float", "max_missing": 0.5}, 2, "2 of 3 (66.67%)"),
        ("max_missing", [None, None], {"type": "float"}, 2, "2 of 2 (100.00%)"),
        ("range", [1, 5, 11, None], {"type": "integer", "min": 0, "max": 10}, 1, "1 of 4 (25.00%), e.g. 11"),
        ("range", [-0.5, 0.5], {"type": "float", "min": 0}, 1, "e.g. -0.5"),
        ("range", [float("inf"), 1.0], {"type": "float", "max": 10}, 1, "e.g. inf"),
        ("allowed_values", ["A", "B", None], {"type": "string", "allowed_values": ["A"]}, 1, "e.g. B"),
        ("allowed_values", [1, 2, None], {"type": "integer", "allowed_values": [1]}, 1, "e.g. 2"),
        ("allowed_values", [True, False, None], {"type": "boolean", "allowed_values": [True]}, 1, "False"),
        ("pattern", ["A1x"], {"type": "string", "pattern": "[A-Z][0-9]+"}, 1, "A1x"),
        ("pattern", ["ab", "b", None, "c"], {"type": "string", "pattern": "(?=a).b|c"}, 1, "e.g. b"),
    ],
)
def test_broken_rule(
    check: Check, rule: str, values: list[Any], field: dict[str, Any], unexpected: int, observed: str
) -> None:
    result = check_field(check, values, {"float": pl.Float64}.get(field["type"]), **field)[rule]
    assert not result.passed
    assert result.error is None
    assert result.unexpected_rows == unexpected
    assert observed in str(result.observed)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ([1, 2], {"type": "integer", "nullable": False, "min": 1, "max": 2, "allowed_values": [1, 2]}),
        ([1.5, None], {"type": "float", "max_missing": 0.5, "min": 0, "max": 1.5}),
        ([1, None], {"type": "integer", "min": 0, "allowed_values": [1]}),
        ([None, None], {"type": "string", "max_missing": 1, "allowed_values": ["A"], "pattern": "x"}),
        (["A1", "B22"], {"type": "string", "pattern": "[A-Z][0-9]+"}),
    ],
)
def test_kept_rules(check: Check, values: list[Any], field: dict[str, Any]) -> None:
    results = check_field(check, values, pl.String if field["type"] == "string" else None, **field)
    assert results
    assert all(result.passed for result in results.values()), results


def test_fields_compared_with_another_of_their_row(check: Check) -> None:
    fields = [
        {"name": "start", "type": "timestamp"},
        {"name": "end", "type": "timestamp", "at_least": "start"},
        {"name": "paid", "type": "integer", "above": "due", "severity": "warn"},
        {"name": "due", "type": "integer", "pii": True},
    ]
    contract = Contract.model_validate({"name": "t", "version": "1", "fields": fields})
    days = pl.Series([1, 2, None, 4], dtype=pl.Int64) * 86_400_000_000
    frame = pl.DataFrame(
        {
            "start": days.cast(pl.Datetime("us", "UTC")),
            "end": (days - pl.Series([1, 0, 0, None])).cast(pl.Datetime("us", "UTC")),
            "paid": [2, 1, None, 1],
            "due": [1, 1, 9, None],
        }
    )
    checked = check(row_batch("order", contract, column_types(frame), frame.lazy()))
    found = {(result.rule, result.field): result for result in checked.results}
    assert found["at_least", "end"].observed == (
        "1 of 4 (25.00%), e.g. 1970-01-01 23:59:59.999999+00:00, 1970-01-02 00:00:00+00:00"
    )
    assert found["at_least", "end"].expected == "at least start"
    assert found["above", "paid"].observed == "1 of 4 (25.00%)"  # the other's values are personal
    assert not found["above", "paid"].halts
    without = check(row_batch("less", contract, {"end": "timestamp[us, tz=UTC]"}, frame.lazy()))
    errors = {result.rule: result.error for result in without.results}
    assert errors["at_least"] == "could not be computed: the column is missing"


def test_rules_for_some_rows_alone(check: Check) -> None:
    where = [{"field": "paid", "op": "is", "value": True}, {"field": "to", "op": "not_in", "value": ["JFK"]}]
    fields = [
        {"name": "paid", "type": "boolean"},
        {"name": "to", "type": "string"},
        {
            "name": "fare",
            "type": "float",
            "conditional": [{"when": where, "nullable": False, "min": 1, "severity": "warn"}],
        },
    ]
    contract = Contract.model_validate({"name": "t", "version": "1", "fields": fields})
    frame = pl.DataFrame(
        {
            "paid": [True, True, True, True, None, False],
            "to": ["LGA", "LGA", "JFK", None, "LGA", "LGA"],
            "fare": [None, 0.5, None, None, None, 0.0],
        }
    )
    checked = check(row_batch("some", contract, column_types(frame), frame.lazy()))
    found = {result.rule: result for result in checked.results if result.field == "fare"}
    assert found["max_missing"].passed  # of all rows at least one has a fare
    assert found["not_null"].observed == "1 of 2 (50.00%), e.g. None"
    assert found["range"].observed == "1 of 2 (50.00%), e.g. 0.5"
    assert found["range"].expected == "1 to inf where paid is true and to not in JFK"
    assert not found["range"].halts
    assert not checked.offending
    without = check(row_batch("lack", contract, {"fare": "double", "to": "int64"}, frame.lazy()))
    assert {result.error for result in without.results if result.rule == "range"} == {
        "could not be computed: the column is missing (paid)"
    }


def test_rules_that_cannot_be_computed_have_not_passed(check: Check) -> None:
    field = {"type": "float", "min": 0, "nullable": False}
    results = check_field(check, ["a", None], **field)
    assert results["range"].error == "could not be computed: the column is string, not float"
    assert not results["not_null"].passed
    assert results["not_null"].unexpected_rows == 1


def test_an_exception_within_an_engine_is_a_failed_rule(check: Check) -> None:
    """It is found in exception_info only; the result itself is empty."""
    batch = unique_batch("t", "unique", ["x"], "halt", pl.LazyFrame({"x": [1]}), [], hidden=False)
    rule = batch.rules[0]
    asking = type(rule)(**{**vars(rule), "arguments": {"column": "y"}})
    (result,) = check(Batch("t.broken", batch.frame, ("x",), (asking,), True)).results
    assert not result.passed
    assert result.error is not None
    assert '"y"' in result.error


def types(columns: dict[str, str], extra: str, check: Check, name: str) -> Checked:
    fields = [{"name": "a", "type": "integer"}, {"name": "b", "type": "timestamp", "severity": "warn"}]
    contract = Contract.model_validate(
        {"name": "t", "version": "1", "fields": fields, "extra_columns": extra}
    )
    return check(type_batch(name, contract, columns, ["key"]))


def test_types_and_columns(check: Check) -> None:
    columns = {"a": "double", "key": "string", "more": "string"}
    results = {(r.rule, r.field): r for r in types(columns, "halt", check, "t1").results}
    assert results["present", "a"].passed
    assert not results["present", "b"].passed
    assert not results["present", "b"].halts
    assert results["type", "a"].observed == "double"
    assert results["type", "a"].expected == "integer (int64)"
    assert results["extra_columns", None].observed == "more"
    assert results["extra_columns", None].halts
    whole = {"a": "int64", "b": "timestamp[us, tz=UTC]"}
    assert all(result.passed for result in types(whole, "warn", check, "t2").results)
    assert len(types(columns, "allow", check, "t3").results) == 3
    assert not any(result.passed for result in types({}, "allow", check, "t4").results)


def test_uniqueness(check: Check) -> None:
    rows = pl.LazyFrame({"a": [1, 1, 2, None, None], "b": ["x", "x", "y", None, "z"]})
    one = check(unique_batch("u", "unique", ["a"], "halt", rows, [], hidden=False))
    assert one.results[0].unexpected_rows == 2
    assert one.offending[0][1].rows() == [(1, "x"), (1, "x")]
    two = check(unique_batch("u", "unique_together", ["a", "b"], "warn", rows, [], hidden=False))
    assert two.results[0].unexpected_rows == 2
    assert two.results[0].field == "a+b"
    assert two.offending == ()  # it only warns
    gone = check(unique_batch("u", "keys", ["a", "c"], "halt", rows, ["c"], hidden=False))
    assert gone.results[0].error == "could not be computed: no column c"


def test_measures_and_days(check: Check) -> None:
    found = check(
        measure_batch(
            "m",
            [
                Measure("freshness", "at", True, "", 30.0, max=24.0),
                Measure("psi", "x", False, "", 0.05, max=0.2),
                Measure("rows", None, True, "", 0.0, min=1),
                Measure("psi", "y", False, "", None, max=0.2, error="no rows"),
            ],
        )
    ).results
    assert [result.passed for result in found] == [False, True, False, False]
    assert [result.observed for result in found] == [30.0, 0.05, 0.0, None]
    assert found[3].error == "could not be computed: no rows"
    fields = [{"name": "a", "type": "integer"}]
    volume = {"min_rows_per_day": 2, "max_rows_per_day": 5}
    contract = Contract.model_validate({"name": "t", "version": "1", "fields": fields, "volume": volume})
    days = pl.LazyFrame({"day": ["2013-01-01", "2013-01-02", "2013-01-03"], "rows": [2, 0, 6]})
    (result,) = check(day_batch("m", contract, days)).results
    assert not result.passed
    assert result.observed == "2 of 3 (66.67%), e.g. 2013-01-02, 0; 2013-01-03, 6"
    assert result.expected == "2 to 5 rows a day"
    assert result.unexpected_rows == 0


def test_the_report_is_great_expectations_own_without_personal_values(check: Check) -> None:
    fields = [
        {"name": "phone", "type": "string", "pattern": "^[0-9]+$", "pii": True},
        {"name": "x", "type": "float", "max": 1, "severity": "warn"},
    ]
    contract = Contract.model_validate({"name": "t", "version": "1", "fields": fields})
    frame = pl.LazyFrame({"phone": ["secret", "1"], "x": [2.0, 0.0]})
    checked = check(row_batch("pii", contract, {"phone": "string", "x": "double"}, frame))
    text = json.dumps(checked.report, allow_nan=False)
    assert "secret" not in text + repr(checked.results)
    severities = {
        one["expectation_config"]["type"]: one["expectation_config"]["severity"]
        for one in checked.report["results"]
        if not one["success"]
    }
    assert severities == {
        "expect_column_values_to_match_regex": "critical",
        "expect_column_values_to_be_between": "warning",
    }
    config = great_expectations().core.expectationSuiteValidationResultSchema.load(checked.report)
    assert not config.success


def test_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither hundreds of INFO lines nor progress bars in a task's log."""
    with caplog.at_level(logging.INFO):
        assert check_field(Expectations().check, [1], type="integer", min=0)["range"].passed
    assert [record for record in caplog.records if record.name.startswith("great_expectations")] == []
    assert capfd.readouterr().err == ""


def test_a_process_without_a_main_file_is_not_ended() -> None:
    """Where PySpark is installed, its import takes such a process for a doctest and exits with 0."""
    source = "from ml_lifecycle.adapters.gx_import import great_expectations; print(great_expectations())"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "great_expectations" in done.stdout
