"""Both engines say the same of any rows and any contract."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ml_lifecycle.adapters.expectations import Expectations
from ml_lifecycle.adapters.tables import column_types
from ml_lifecycle.rules import one_pass
from ml_lifecycle.rules.conditions import comparison, nullity
from ml_lifecycle.rules.duplicates import find_duplicates
from ml_lifecycle.rules.patterns import lacks_pattern, translate
from ml_lifecycle.rules.references import find_unknown
from ml_lifecycle.rules.rule import Batch, Checked, Rule
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.stages.validation_rules import reference_batch, row_batch, type_batch, unique_batch

LIMIT = 20
HUGE = (2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63))
INTEGERS = st.sampled_from((0, 1, 2, 3, -1)) | st.sampled_from(HUGE)
FLOATS = st.sampled_from((0.0, -0.0, 1.0, 1.5, 5e-324, 1e308, math.nan, math.inf, -math.inf))
TEXTS = st.text(st.sampled_from("ab1 \n\x1cé٣_"), max_size=3)
MOMENTS = st.sampled_from([datetime(1700, 1, 1, tzinfo=UTC), datetime(2013, 1, 1, microsecond=1, tzinfo=UTC)])
DATES = st.sampled_from([date(1, 1, 1), date(2013, 1, 1), date(2024, 2, 29)])
COLUMNS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "integer": (INTEGERS, pl.Int64),
    "float": (FLOATS, pl.Float64),
    "string": (TEXTS, pl.String),
    "boolean": (st.booleans(), pl.Boolean),
    "timestamp": (MOMENTS, pl.Datetime("us", "UTC")),
    "date": (DATES, pl.Date),
}
PATTERNS = (
    *("[ab]*", r"\d+", r"\w*\s?", "^a.$", "(?=a).*", "(?i:AB)", "a|b$", "[^a]*", r"\S+", r"(a)\1", "é+"),
    *(r"(?:a|b{1,2}|)+?", "$|a", r"\Aa\Z", "a\n?", r"[\s\d-]*", r"\ba", "(?s:.)*", "a$\n", "(?:a$|b)1?", ""),
)
FINITE = st.sampled_from((-math.inf, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0**53, math.inf)) | st.none()


# Beside each of these stands another of its type to be compared with.
COMPARED = ("integer", "float", "timestamp", "date")
COLUMNS |= {f"other {kind}": COLUMNS[kind] for kind in COMPARED}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(0, 12))
    columns = {}
    for kind, (values, dtype) in COLUMNS.items():
        held = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[kind] = pl.Series(held, dtype=dtype)
    return pl.DataFrame(columns)


def rules_of(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Rules that a column's values can be held to."""
    values, kind = COLUMNS[name][0], name.removeprefix("other ")
    rules: dict[str, Any] = {"severity": draw(st.sampled_from(["halt", "warn"]))}
    rules["nullable"] = draw(st.booleans())
    if rules["nullable"]:
        rules["max_missing"] = draw(st.none() | st.sampled_from((0, 0.25, 1 / 3, 0.5, 1)))
    if kind in ("integer", "float"):
        low, high = draw(FINITE), draw(FINITE)
        if low is not None and high is not None and low > high:
            low, high = high, low
        rules |= {"min": low, "max": high}
    if kind in ("integer", "float", "string", "boolean") and draw(st.booleans()):
        rules["allowed_values"] = draw(st.lists(known(values), min_size=1, max_size=3))
    if name in COMPARED:
        rules[draw(st.sampled_from(["at_least", "above"]))] = f"other {name}"
    if kind == "string":
        rules["pattern"] = draw(st.sampled_from(PATTERNS))
    return rules


def known(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What a contract can name: NaN is no value."""
    return values.filter(lambda value: value == value)


# Each comparison with the types it can be made in.
OPERATORS = [
    *((op, kind) for op in ("missing", "present") for kind in COLUMNS),
    *((op, kind) for op in ("is", "is_not") for kind in ("integer", "float", "string", "boolean")),
    *((op, kind) for op in ("in", "not_in") for kind in ("integer", "float", "string")),
    *((op, kind) for op in ("above", "at_least", "below", "at_most") for kind in ("integer", "float")),
]


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    op, name = draw(st.sampled_from(OPERATORS))
    if op in ("missing", "present"):
        return {"field": name, "op": op}
    # No YAML holds an infinity, nor can Great Expectations write one into a query.
    value = known(COLUMNS[name][0]).filter(lambda one: one not in (math.inf, -math.inf))
    several = op in ("in", "not_in")
    return {
        "field": name,
        "op": op,
        "value": draw(st.lists(value, min_size=1, max_size=3) if several else value),
    }


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    fields = []
    for name in COLUMNS:
        field = {"name": name, "type": name.removeprefix("other "), **rules_of(draw, name)}
        if draw(st.booleans()):
            when = draw(st.lists(conditions(), min_size=1, max_size=2))
            ruled = {**rules_of(draw, name), "when": when}
            if ruled["nullable"]:
                ruled["max_missing"] = ruled["max_missing"] or 0.75  # so that there is a rule at all
            field["conditional"] = [ruled]
        fields.append(field)
    return Contract.model_validate({"name": "t", "version": "1", "fields": fields})


def compare(batch: Batch, expectations: Expectations) -> Checked:
    """Both engines' results and reports, held against each other; returns ours."""
    ours, theirs = one_pass.check(batch), expectations.check(batch)
    for mine, stock in zip(ours.results, theirs.results, strict=True):
        assert (mine.error is None) == (stock.error is None), (mine, stock)
        if mine.error is None:
            assert mine == stock
    by_rule = {outcome["expectation_config"]["meta"]["rule"]: outcome for outcome in theirs.report["results"]}
    for outcome in ours.report["results"]:
        stock_outcome = by_rule[outcome["expectation_config"]["meta"]["rule"]]
        config, stock_config = outcome["expectation_config"], stock_outcome["expectation_config"]
        assert outcome["success"] == stock_outcome["success"], (outcome, stock_outcome)
        assert (config["type"], config["severity"]) == (stock_config["type"], stock_config["severity"])
        assert comparable(outcome["result"]) == comparable(stock_outcome["result"]), config
    assert ours.report["success"] == theirs.report["success"]
    assert ours.report["statistics"] == theirs.report["statistics"]
    assert [result for result, _ in ours.offending] == [result for result, _ in theirs.offending]
    for (_, mine_rows), (_, stock_rows) in zip(ours.offending, theirs.offending, strict=True):
        assert sorted(map(repr, mine_rows.rows())) == sorted(map(repr, stock_rows.rows()))
    json.dumps(ours.report, allow_nan=False)
    json.dumps(theirs.report, allow_nan=False)
    return ours


def comparable(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without the sample's order, and without the place of rows in a frame that only pandas has."""
    plain = {name: value for name, value in result.items() if not name.startswith("partial_")}
    if result.get("unexpected_count", 0) <= LIMIT and "partial_unexpected_list" in result:
        plain["values"] = {value_of(value) for value in result["partial_unexpected_list"]}
    return plain


def value_of(value: Any) -> Any:
    """A value as the report shows it, whatever pandas made of a missing one, an integer or a date."""
    if isinstance(value, list):
        return tuple(map(value_of, value))
    if isinstance(value, dict):
        return tuple((name, value_of(inner)) for name, inner in sorted(value.items()))
    if value in ("NaT", "nan", None):
        return None
    if not isinstance(value, str):
        return float(value)
    if not re.match(r"\d{4}-\d\d-\d\d", value):
        return value
    # Of times that pandas' nanoseconds do not reach it writes all of the fraction, and no zone.
    value = value.removesuffix("+00:00")
    return (value.rstrip("0").rstrip(".") if "." in value else value).removesuffix("T00:00:00")


@pytest.fixture(scope="module")
def expectations() -> Expectations:
    return Expectations()


NUMBERS = iter(range(10**6))


def named(batch: Batch) -> Batch:
    """Great Expectations keeps what it has seen by its name."""
    return Batch(f"{batch.name}{next(NUMBERS)}", *list(vars(batch).values())[1:])


def agree_on(
    expectations: Expectations, frame: pl.DataFrame, older: pl.DataFrame, contract: Contract
) -> None:
    columns = column_types(frame)
    compare(named(row_batch("t", contract, columns, frame.lazy())), expectations)
    compare(named(type_batch("t", contract, {**columns, "date": "string"}, [])), expectations)
    # A snapshot holds no NaN, and only there are rows judged beside older ones.
    both = [rows.with_columns(pl.col("float").fill_nan(None)).lazy() for rows in (frame, older)]
    for fields in (["integer"], ["float"], ["string", "date"], ["timestamp", "float", "boolean"]):
        alone = unique_batch("t", "unique", fields, "halt", frame.lazy(), [], hidden=False)
        compare(named(alone), expectations)
        beside = unique_batch("t", "unique", fields, "warn", both[0], [], hidden=False, older=both[1])
        compare(named(beside), expectations)


# Without shrinking, for which Great Expectations is too slow.
PHASES = [Phase.explicit, Phase.generate]


@settings(max_examples=8, phases=PHASES)
@given(frame=frames(), older=frames(), contract=contracts())
def test_any_contract_on_any_rows(expectations: Expectations, **drawn: Any) -> None:
    agree_on(expectations, **drawn)


@pytest.mark.full
@settings(max_examples=40, phases=PHASES)
@given(frame=frames(), older=frames(), contract=contracts())
def test_many_contracts_on_many_rows(expectations: Expectations, **drawn: Any) -> None:
    agree_on(expectations, **drawn)


@settings(max_examples=15, phases=PHASES)
@given(data=st.data(), share=st.sampled_from((0, 0.25, 0.5)), kind=st.sampled_from(("integer", "string")))
def test_values_of_another_table(
    expectations: Expectations, data: st.DataObject, share: float, kind: str
) -> None:
    drawn, dtype = COLUMNS[kind]
    one, other = (pl.Series(data.draw(st.lists(st.none() | drawn, max_size=12)), dtype=dtype) for _ in "ab")
    references = {"contract": "o", "field": "y", "max_unknown": share}
    item = ContractField.model_validate({"name": "x", "type": kind, "references": references})
    frame, known = pl.LazyFrame({"x": one, "row": range(len(one))}), pl.LazyFrame({"y": other})
    compare(named(reference_batch("t", item, frame, known, None)), expectations)
    unknown = [value is not None and value not in other.to_list() for value in one]
    for at_once in (1, 3, 100):
        found = find_unknown(frame, known, "x", limit=5, at_once=at_once)
        assert (found.unknown, found.missing) == (sum(unknown), one.null_count())
        if found.sample is not None:
            assert found.sample["row"].to_list() == [n for n, lacks in enumerate(unknown) if lacks][:5]


def rule(expectation: str, column: str | None = "x", **arguments: Any) -> Rule:
    given_arguments = arguments if column is None else {"column": column, **arguments}
    return Rule("t", "rule", column, True, "", expectation, given_arguments, ("x",))


EDGES: list[tuple[str, list[Any], Any, dict[str, Any], int | None]] = [
    ("BeBetween", [1, 2, 3], pl.Int64, {"min_value": 1, "strict_min": True}, 1),
    ("BeBetween", [1, 2, 3], pl.Int64, {"min_value": 1.5, "max_value": 2.5, "strict_max": True}, 2),
    ("BeBetween", [1.0, 2.0, None], pl.Float64, {"max_value": 2, "strict_max": True}, 1),
    ("BeBetween", [2**53, 2**53 + 1], pl.Int64, {"max_value": 2.0**53}, 1),
    ("BeBetween", [2**53 + 1, None], pl.Int64, {"max_value": 2.0**53}, 1),
    ("BeBetween", [2**63 - 1], pl.Int64, {"max_value": 1e19, "min_value": -1e19}, 0),
    ("BeBetween", [2**63 - 1, -5, None], pl.Int64, {"max_value": 1e300, "min_value": -1e40}, 0),
    ("BeBetween", [2**63 - 1, -5, None], pl.Int64, {"min_value": 1e40}, 2),
    ("BeBetween", [math.nan, math.inf, -math.inf, 0.0], pl.Float64, {"min_value": 0}, 1),
    ("BeBetween", [-0.0, 5e-324], pl.Float64, {"min_value": 0.0, "max_value": 0.0}, 1),
    ("BeBetween", [], pl.Float64, {"min_value": 0}, 0),
    ("BeBetween", [None, None], pl.Float64, {"min_value": 0}, 0),
    ("BeBetween", ["a"], pl.String, {"min_value": 0}, None),
    ("BeInSet", [-0.0, 0.0, math.nan], pl.Float64, {"value_set": [0.0]}, 0),
    ("BeInSet", [2**53, 2**53 + 1, None], pl.Int64, {"value_set": [2**53]}, 1),
    ("BeInSet", ["", " ", None, "a\n"], pl.String, {"value_set": ["", "a"]}, 2),
    ("BeInSet", [1.0, 2.0], pl.Float64, {"value_set": [1, 2.5]}, 1),
    ("MatchRegex", ["a", "a\n", "b"], pl.String, {"regex": "^a$"}, 1),
    ("MatchRegex", ["a", "a\n"], pl.String, {"regex": r"\A(?:^a$)\Z"}, 1),
    ("MatchRegex", ["٣", "3", "x"], pl.String, {"regex": r"\d"}, 1),
    ("MatchRegex", ["\x1c", "\x85", "\u3000", "a"], pl.String, {"regex": r"^\s$"}, 1),
    ("MatchRegex", [None, ""], pl.String, {"regex": "x"}, 1),
    ("BeUnique", [0.0, -0.0, math.nan, math.nan], pl.Float64, {}, 2),
    ("BeUnique", [2**53, 2**53 + 1, None, None], pl.Int64, {}, 0),
    ("BeUnique", ["", None, "", "e\u0301", "é"], pl.String, {}, 2),
    ("BeUnique", list(range(30)) * 2, pl.Int64, {}, 60),
    ("NotBeNull", [math.nan, None, math.inf], pl.Float64, {}, 2),
    ("NotBeNull", ["", None], pl.String, {"mostly": 0.5}, 1),
    *(
        ("NotBeNull", [*values, None], dtype, {"row_condition": met}, unexpected)
        for values, dtype, met, unexpected in (
            ([1, 2, 3], pl.Int64, nullity("x", is_null=True), 1),
            ([1, 2, 3], pl.Int64, nullity("x", is_null=False), 0),
            ([1, 2, 3], pl.Int64, comparison("x", ">", 3), 0),
            ([2**53, 2**53 + 1], pl.Int64, comparison("x", "==", 2**53 + 1), 0),
            (["", "é", "'\"\\\n"], pl.String, comparison("x", "IN", ["'\"\\\n"]), 0),
            ([math.nan], pl.Float64, nullity("x", is_null=True), 2),
        )
    ),
    ("BeBetween", [1, 2, 3], pl.Int64, {"max_value": 1, "row_condition": comparison("x", ">=", 2)}, 2),
    (
        "BeBetween",
        [-0.0, math.inf],
        pl.Float64,
        {"max_value": 1, "row_condition": comparison("x", "==", 0)},
        0,
    ),
    (
        "BeInSet",
        [True, False, None],
        pl.Boolean,
        {"value_set": [], "row_condition": comparison("x", "==", False)},
        1,
    ),
]


@pytest.mark.parametrize(("kind", "values", "dtype", "arguments", "unexpected"), EDGES)
def test_at_the_edges(
    expectations: Expectations,
    kind: str,
    values: list[Any],
    dtype: Any,
    arguments: dict[str, Any],
    unexpected: int | None,
) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype, strict=False)}).lazy()
    ours = compare(
        named(Batch("t", frame, ("x",), (rule(f"ExpectColumnValuesTo{kind}", **arguments),), True)),
        expectations,
    )
    if unexpected is None:
        assert "could not be computed" in str(ours.results[0].error)
    else:
        assert ours.results[0].unexpected_rows == unexpected


@pytest.mark.parametrize("missing", ["ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToBeUnique"])
def test_a_missing_column_is_an_error_of_its_rule_only(expectations: Expectations, missing: str) -> None:
    frame = pl.LazyFrame({"x": [1.0]})
    largest = rule("ExpectColumnMaxToBeBetween", min_value=0, max_value=1)
    batch = Batch("t", frame, ("x",), (rule(missing, "y"), rule("ExpectColumnToExist", "y"), largest))
    results = compare(named(batch), expectations).results
    assert [result.passed for result in results] == [False, False, True]
    assert '"y"' in str(results[0].error)


@pytest.mark.parametrize("values", [[], [None], [math.nan, 2.0], [math.inf], [-math.inf, 0.5]])
def test_the_largest_value(expectations: Expectations, values: list[float | None]) -> None:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64)}).lazy()
    largest = rule("ExpectColumnMaxToBeBetween", min_value=0, max_value=1)
    compare(named(Batch("t", frame, ("x",), (largest,))), expectations)


@settings(max_examples=300)
@given(pattern=st.sampled_from(PATTERNS), texts=st.lists(TEXTS | st.none(), max_size=8))
def test_patterns_are_pythons(pattern: str, texts: list[str | None]) -> None:
    frame = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    for regex in (pattern, rf"\A(?:{pattern})\Z"):
        lacks = frame.select(lacks_pattern(pl.col("x"), regex)).to_series().to_list()
        assert lacks == [None if text is None else not re.search(regex, text) for text in texts]


def test_which_patterns_polars_computes() -> None:
    """The usual ones; and no construct that it knows by another meaning."""
    usual = ("^[A-Z0-9]{2}$", r"\d{4}-\d\d", "[a-z]+(?:_[a-z]+)*", r".+@.+\..+", "N[0-9]{1,5}[A-Z]{0,2}")
    assert all(translate(rf"\A(?:{pattern})\Z") for pattern in usual)
    others = ("(?=a)b", "(?i:a)", r"(a)\1", r"\b", r"\D", "a{2000}", "((a{999}){999}){99}", "(?:a$)*", "a*+")
    assert not any(translate(pattern) for pattern in others)


@pytest.mark.parametrize("at_once", [1, 2, 7, 1000])
def test_duplicates_are_found_part_by_part(at_once: int) -> None:
    frame = pl.DataFrame(
        {"new": [n % 40 for n in range(50)], "b": [None if n % 3 else "x" for n in range(50)]}
    )
    older = pl.DataFrame({"new": [39, 39, 77, 77], "b": ["x", None, None, None]})
    expected = frame.filter(pl.struct("new", "b").is_duplicated())
    found = find_duplicates(frame.lazy(), None, ["new", "b"], limit=100, at_once=at_once)
    assert (found.rows, found.missing, found.duplicated) == (50, 0, expected.height)
    assert found.sample is not None
    assert found.sample.equals(expected)
    beside = find_duplicates(frame.lazy(), older.lazy(), ["new", "b"], limit=3, at_once=at_once)
    # 39 comes once among the new rows, with "x", and so does 39 with "x" among the older.
    assert (beside.rows, beside.duplicated) == (51, expected.height + 2)
    assert beside.sample is not None
    assert beside.sample.height == 3


def test_one_value_in_all_rows_is_found_without_holding_them() -> None:
    frame = pl.LazyFrame({"a": [7] * 5000})
    assert find_duplicates(frame, None, ["a"], limit=10, at_once=100).duplicated == 5000
