"""A contract's rules as stock expectations, grouped by the rows they look at.

What is no property of single rows (types, rows a day, staleness, shift) is measured first and judged as a
small frame of its own, so that all verdicts are outcomes of expectations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from ml_lifecycle.adapters.tables import ARROW_NAMES
from ml_lifecycle.rules.conditions import comparison, every, nullity
from ml_lifecycle.rules.rule import Batch, Rule
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.contract_rules import Condition, RuleSeverity


def type_batch(source: str, contract: Contract, columns: Mapping[str, str], known: Iterable[str]) -> Batch:
    """Present, typed and extra columns: one row with each column's type.

    :param known: columns that the spec itself names, which are never extra
    """
    rules = []
    for item in contract.fields:
        name, halts, arrow = item.name, item.severity == "halt", ARROW_NAMES[item.type]
        exists = {"column": name}
        rules.append(Rule(source, "present", name, halts, "a column", "ExpectColumnToExist", exists))
        if name in columns:
            right, expected = {"column": name, "value_set": [arrow]}, f"{item.type} ({arrow})"
            stock = "ExpectColumnValuesToBeInSet"
            rules.append(Rule(source, "type", name, halts, expected, stock, right, (name,)))
    if contract.extra_columns != "allow":
        allowed = {item.name for item in contract.fields} | set(known)
        rules.append(
            Rule(
                source,
                "extra_columns",
                None,
                contract.extra_columns == "halt",
                "no column beyond the contract's",
                "ExpectTableColumnsToMatchSet",
                {"column_set": sorted(allowed & columns.keys()), "exact_match": True},
                shown=tuple(columns),
            )
        )
    frame = pl.LazyFrame({name: [kind] for name, kind in columns.items()})
    return Batch(f"{source}.types", frame, tuple(columns), tuple(rules))


def row_batch(source: str, contract: Contract, columns: Mapping[str, str], frame: pl.LazyFrame) -> Batch:
    """Missing values, ranges, allowed values and patterns of the rows in ``frame``."""
    rules: list[Rule] = []
    for item in contract.fields:
        rules += _field_rules(source, item, columns)
    rules += _order_rules(source, contract.fields, contract, columns)
    rules += _conditional_rules(source, contract, columns)
    used = {column: None for rule in rules if rule.blocked is None for column in rule.columns}
    return Batch(f"{source}.rows", frame, tuple(used), tuple(rules), of_source=True)


def _field_rules(source: str, item: ContractField, columns: Mapping[str, str]) -> list[Rule]:
    """A field's rules about its own values."""
    blocked, rules = blocked_values(item, columns), []
    for rule in _value_rules(source, item):
        # What depends on the type cannot be computed without it; missing values can.
        typed = rule.rule not in ("not_null", "max_missing")
        if item.name not in columns or (typed and blocked is not None):
            rule = Rule(source, rule.rule, rule.field, rule.halts, rule.expected, blocked=blocked)
        rules.append(rule)
    return rules


def _conditional_rules(source: str, contract: Contract, columns: Mapping[str, str]) -> list[Rule]:
    """The rules that some rows alone must keep, which Great Expectations calls a row condition."""
    by_name = {item.name: item for item in contract.fields}
    rules = []
    for item in contract.fields:
        for conditional in item.conditional:
            alone = item.under(conditional)
            condition = every([one for asked in conditional.when for one in _row_condition(asked)])
            named = [by_name[asked.field] for asked in conditional.when]
            blocked = next(
                (f"{why} ({one.name})" for one in named if (why := blocked_values(one, columns))), None
            )
            for rule in (
                *_field_rules(source, alone, columns),
                *_order_rules(source, [alone], contract, columns),
            ):
                rules.append(
                    replace(
                        rule,
                        expected=f"{rule.expected} {conditional.words}",
                        arguments={**rule.arguments, "row_condition": condition},
                        blocked=rule.blocked or blocked,
                    )
                )
    return rules


_SIGNS = {
    "is": "==",
    "is_not": "!=",
    "in": "IN",
    "not_in": "NOT_IN",
    "above": ">",
    "at_least": ">=",
    "below": "<",
    "at_most": "<=",
}


def _row_condition(asked: Condition) -> list[dict[str, Any]]:
    """A condition as Great Expectations has it; on pandas a null passes where something is not."""
    if asked.op in ("missing", "present"):
        return [nullity(asked.field, is_null=asked.op == "missing")]
    value = list(asked.value) if isinstance(asked.value, tuple) else asked.value
    compared = comparison(asked.field, _SIGNS[asked.op], value)
    return [nullity(asked.field, is_null=False), compared] if "not" in asked.op else [compared]


def _order_rules(
    source: str, fields: Iterable[ContractField], contract: Contract, columns: Mapping[str, str]
) -> list[Rule]:
    """Fields that are compared with another of their row."""
    by_name = {item.name: item for item in contract.fields}
    rules = []
    for item in fields:
        for kind, other in (("at_least", item.at_least), ("above", item.above)):
            if other is None:
                continue
            both = (item, by_name[other])
            arguments = {
                "column_A": item.name,
                "column_B": other,
                "or_equal": kind == "at_least",
                "ignore_row_if": "either_value_is_missing",
            }
            rules.append(
                Rule(
                    *(source, kind, item.name, item.severity == "halt", f"{kind.replace('_', ' ')} {other}"),
                    "ExpectColumnPairValuesAToBeGreaterThanB",
                    arguments,
                    () if any(one.pii for one in both) else (item.name, other),
                    blocked_values(both[0], columns) or blocked_values(both[1], columns),
                )
            )
    return rules


def blocked_values(item: ContractField, columns: Mapping[str, str]) -> str | None:
    """Why rules about the values cannot be computed; None if they can."""
    if item.name not in columns:
        return "could not be computed: the column is missing"
    found = columns[item.name]
    if found != ARROW_NAMES[item.type]:
        return f"could not be computed: the column is {found}, not {item.type}"
    return None


def _value_rules(source: str, item: ContractField) -> list[Rule]:
    name, halts = item.name, item.severity == "halt"
    shown = () if item.pii else (name,)

    def rule(kind: str, expected: str, expectation: str, **arguments: Any) -> Rule:
        return Rule(source, kind, name, halts, expected, expectation, {"column": name, **arguments}, shown)

    def missing(kind: str, expected: str, mostly: float) -> Rule:
        return rule(kind, expected, "ExpectColumnValuesToNotBeNull", mostly=mostly)

    rules = []
    if not item.nullable:
        rules.append(missing("not_null", "a value in every row", 1))
    elif item.max_missing is None:
        # Nullable means that some values may be missing; for all of them, say max_missing: 1.
        rules.append(missing("max_missing", "at least one value (or max_missing: 1)", 1e-12))
    elif item.max_missing < 1:
        rules.append(missing("max_missing", f"at most {item.max_missing:.2%} missing", 1 - item.max_missing))
    if item.min is not None or item.max is not None:
        low = -math.inf if item.min is None else item.min
        high = math.inf if item.max is None else item.max
        rules.append(
            rule(
                "range",
                f"{low:.15g} to {high:.15g}",
                "ExpectColumnValuesToBeBetween",
                min_value=item.min,
                max_value=item.max,
            )
        )
    if item.allowed_values is not None:
        values = list(item.allowed_values)
        rules.append(
            rule(
                "allowed_values",
                f"one of {', '.join(map(str, values))}",
                "ExpectColumnValuesToBeInSet",
                value_set=values,
            )
        )
    if item.pattern is not None:
        # Great Expectations searches; a contract's pattern is about the whole value.
        whole = rf"\A(?:{item.pattern})\Z"
        rules.append(
            rule(
                "pattern",
                f"text that matches {item.pattern}",
                "ExpectColumnValuesToMatchRegex",
                regex=whole,
            )
        )
    return rules


def unique_batch(
    source: str,
    rule: str,
    fields: Sequence[str],
    severity: RuleSeverity,
    frame: pl.LazyFrame,
    missing: Sequence[str],
    *,
    hidden: bool,
    older: pl.LazyFrame | None = None,
) -> Batch:
    """No row of ``frame`` has the values of another in ``fields``; rows without any are left out.

    :param missing: those of the fields that the table lacks
    :param older: rows that were judged before, which the new ones may not repeat either
    :param hidden: whether the values may not stand in messages
    """
    arguments: dict[str, Any] = {"column_list": list(fields)}
    expectation = "ExpectCompoundColumnsToBeUnique"
    if len(fields) == 1:
        arguments, expectation = {"column": fields[0]}, "ExpectColumnValuesToBeUnique"
    planned = Rule(
        source,
        rule,
        "+".join(fields),
        severity == "halt",
        "no two rows alike",
        expectation,
        arguments,
        () if hidden else tuple(fields),
        f"could not be computed: no column {', '.join(missing)}" if missing else None,
    )
    name = f"{source}.{rule}.{'+'.join(fields)}"
    return Batch(name, frame, tuple(fields), (planned,), of_source=True, older=older)


def reference_batch(
    source: str, item: ContractField, frame: pl.LazyFrame, known: pl.LazyFrame | None, blocked: str | None
) -> Batch:
    """Every value of a field is one of ``known``.

    :param blocked: why it cannot be computed
    """
    asked = item.references
    assert asked is not None
    rest = f", but for {asked.max_unknown:.2%}" if asked.max_unknown else ""
    rule = Rule(
        *(source, "references", item.name, asked.severity == "halt", f"a value of {asked.words}{rest}"),
        "ExpectColumnValuesToBeInSet",
        {
            "column": item.name,
            "value_set": {"$PARAMETER": asked.words},
            "mostly": 1 - asked.max_unknown,
        },
        () if item.pii else (item.name,),
        blocked,
    )
    name = f"{source}.references.{item.name}"
    return Batch(name, frame, (item.name,), (rule,), of_source=True, known=known)


@dataclass(frozen=True)
class Measure:
    """A number about a source as a whole, and its limits.

    :param value: None if it could not be computed, for the reason in ``error``
    """

    rule: str
    field: str | None
    halts: bool
    expected: str
    value: float | None
    min: float | None = None
    max: float | None = None
    error: str | None = None


def measure_batch(source: str, measures: Sequence[Measure]) -> Batch:
    """One row with a column a measure."""
    names = [f"{n} {measure.rule}.{measure.field or source}" for n, measure in enumerate(measures, 1)]
    rules = tuple(
        Rule(
            source,
            measure.rule,
            measure.field,
            measure.halts,
            measure.expected,
            "ExpectColumnMaxToBeBetween",
            {"column": name, "min_value": measure.min, "max_value": measure.max},
            shown=(name,),
            blocked=f"could not be computed: {measure.error or 'no value'}"
            if measure.value is None
            else None,
        )
        for name, measure in zip(names, measures, strict=True)
    )
    values = {name: [measure.value] for name, measure in zip(names, measures, strict=True)}
    return Batch(f"{source}.measures", pl.LazyFrame(values), tuple(names), rules)


def day_batch(source: str, contract: Contract, days: pl.LazyFrame) -> Batch:
    """Rows a day (columns ``day`` and ``rows``) against the contract's volume."""
    volume = contract.volume
    assert volume is not None
    low, high = volume.min_rows_per_day, volume.max_rows_per_day
    least, most = low or 0, math.inf if high is None else high
    rule = Rule(
        source,
        "volume",
        None,
        volume.severity == "halt",
        f"{least:,} to {most:,} rows a day" if high is not None else f"at least {least:,} rows a day",
        "ExpectColumnValuesToBeBetween",
        {"column": "rows", "min_value": least, "max_value": high},
        ("day", "rows"),
    )
    return Batch(f"{source}.days", days, ("day", "rows"), (rule,))
