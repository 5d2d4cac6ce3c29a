"""What comes in held against the rules that a contract has for a model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.records import InputRules
from ml_lifecycle.rules.inputs import ColumnRules
from ml_lifecycle.serving.columns import Matrix, Table, as_told, where_from
from ml_lifecycle.serving.errors import BrokenRulesError
from ml_lifecycle.serving.types import Broken


class InputChecks:
    """The rules of a variant's columns, made ready for tables.

    Almost always all values keep all rules: that is found out for the numbers of all columns at once, and
    only if something is odd the columns are looked at one by one.
    """

    def __init__(self, variant: Variant) -> None:
        ruled = [ColumnRules(column) for column in variant.columns if column.rules is not None]
        self._ruled = [rules for rules in ruled if rules.breakable]
        self._refuses = variant.broken_rules == "refuse"
        self._texts = [rules for rules in self._ruled if rules.column.type == "string"]
        places = {column.name: place for place, column in enumerate(variant.columns)}
        numbers = [rules for rules in self._ruled if rules.column.type != "string"]
        kinds = {rules.column.type: None for rules in numbers}
        self._blocks = [
            _Block([rules for rules in numbers if rules.column.type == kind], places) for kind in kinds
        ]

    def __bool__(self) -> bool:
        """Whether there is anything to check."""
        return bool(self._ruled)

    def check(self, table: Table) -> Broken:
        """How many values break which rule.

        :raises BrokenRulesError: a vector's values do, and the endpoint refuses such. Retry: no.
        """
        if all(block.is_plain(table) for block in self._blocks) and not any(
            rules.broken(table.given[rules.column.name]) for rules in self._texts
        ):
            return ()
        found = list(self._look_closer(table))
        broken = tuple((rules.column.name, rule, int(mask.sum())) for rules, rule, mask in found)
        if found and self._refuses and table.origin == "request":
            others = sum(count for _, _, count in broken) - 1
            more = f"; and {others} more" if others else ""
            raise BrokenRulesError(f"{_told(*found[0], table)}{more}", broken)
        return broken

    def _look_closer(self, table: Table) -> Iterator[tuple[ColumnRules, str, NDArray[np.bool_]]]:
        columns, given = table.columns, table.given
        for rules in self._ruled:
            name = rules.column.name
            values = given[name] if rules.column.type == "string" else columns[name]
            for rule, mask in rules.broken(values).items():
                yield rules, rule, mask


class _Block:
    """Columns of one type of numbers: to look at all of them takes hardly longer than at one."""

    def __init__(self, ruled: Sequence[ColumnRules], places: Mapping[str, int]) -> None:
        self._names = [rules.column.name for rules in ruled]
        self._places = [places[name] for name in self._names]
        dtype = {"float": np.float32, "int": np.int64, "bool": np.int8}[ruled[0].column.type]
        low = [max(rules.low, 0) if dtype is np.int8 else rules.low for rules in ruled]
        high = [min(rules.high, 1) if dtype is np.int8 else rules.high for rules in ruled]
        self._low, self._high = (np.array(bounds, dtype).reshape(-1, 1) for bounds in (low, high))
        required = np.array([[not rules.rules.nullable] for rules in ruled])
        self._required = required if ruled[0].column.type == "float" and required.any() else None
        whole = [place for place, rules in enumerate(ruled) if rules.whole]
        self._whole = np.array(whole) if whole else None
        self._listed = [
            (place, rules.allowed) for place, rules in enumerate(ruled) if rules.allowed is not None
        ]

    def is_plain(self, table: Table) -> bool:
        """Whether no value breaks a rule."""
        values: NDArray[Any]
        if isinstance(table, Matrix):
            values = table.matrix.T[self._places]
        else:
            columns = table.columns
            values = np.concatenate([columns[name] for name in self._names]).reshape(len(self._names), -1)
        odd = (values < self._low) | (values > self._high)
        if self._required is not None:
            odd |= (values != values) & self._required  # NaN alone is not itself
        if odd.any():
            return False
        if self._whole is not None:
            numbers = values[self._whole]
            if not ((np.rint(numbers) == numbers) | (numbers != numbers)).all():
                return False
        return all(
            allowed.issuperset(value for value in values[place].tolist() if value == value)
            for place, allowed in self._listed
        )


def _told(rules: ColumnRules, rule: str, mask: NDArray[np.bool_], table: Table) -> str:
    row = int(mask.argmax())
    given = table.given[rules.column.name]
    value = given[row].item() if isinstance(given, np.ndarray) else given[row]
    missing = value is None or value != value
    got = "null" if missing else as_told(rules.column, value)
    return (
        f"column {rules.column.name!r} ({where_from(table.origin)}), row {row}: expected "
        f"{rules.expected(rule)} ({rule} of {rules.rules.contract} in the model's contract), got {got}"
    )


def as_parameters(rules: InputRules) -> dict[str, Any]:
    """The rules as the metadata show them, in the contract's own words; what says nothing is left out."""
    said = {
        "contract": rules.contract,
        "type": rules.type,
        "nullable": rules.nullable,
        "min": rules.min,
        "max": rules.max,
        "allowed_values": None if rules.allowed_values is None else list(rules.allowed_values),
        "pattern": rules.pattern,
    }
    return {name: value for name, value in said.items() if value is not None}
