"""Rows at the edges of what a contract allows, and rows that break exactly one of its rules.

Every field has candidates: its bounds, what lies just inside and just outside of them, its allowed values,
texts of its pattern, odd but fine texts. Rows are put together from them, so that the rules of each row hold,
or all but one. What is about a table as a whole (freshness, volume, shares of values, distributions) is left
to the data.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ml_lifecycle.adapters.tables import POLARS_TYPES
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.contract_rules import Condition
from ml_lifecycle.spec.pattern_examples import examples, near_misses
from ml_lifecycle.spec.sample_values import around, many, plain

_MOST_STEPS = 20_000

Row = dict[str, Any]
Known = Mapping[str, Sequence[Any]]


class SampleError(LifecycleError):
    """No rows can be made up for a contract, or not so many. Retry: no, or ask for fewer."""


@dataclass(frozen=True)
class Check:
    """A rule that one row can break.

    :param fields: those that it looks at
    :param holds: whether a row keeps it that has all of them
    :param by_one_row: whether one row can break it; it may be about a share of rows
    """

    rule: str
    field: str
    fields: frozenset[str]
    holds: Callable[[Row], bool]
    by_one_row: bool = True


@dataclass(frozen=True)
class Broken:
    """A row that breaks one rule; ``row`` is None where no row could break it alone."""

    rule: str
    field: str
    row: Row | None


def good_rows(contract: Contract, rows: int, known: Known) -> pl.DataFrame:
    """Rows that keep every rule about rows; as many nulls as are allowed, and every bound, if there is room.

    :param known: values of the fields that this contract refers to, by ``contract.field``
    :raises SampleError: there are no such rows, or not so many. Retry: no.
    """
    maker = _Maker(contract, rows, known)
    return maker.frame([maker.row(number, rows) for number in range(rows)])


def bad_rows(contract: Contract, good: pl.DataFrame, known: Known) -> list[Broken]:
    """A row for each rule that one row can break; beside the good rows it breaks that rule and no other."""
    maker = _Maker(contract, good.height, known)
    for row in good.iter_rows(named=True):
        maker.remember(row)
    found = list[Broken]()
    for check in maker.checks:
        if check.by_one_row:
            found.append(Broken(check.rule, check.field, next(maker.rows(check), None)))
    for group in maker.groups:
        rule = "unique" if len(group) == 1 else "unique_together"
        found.append(Broken(rule, "+".join(group), _repeating(maker, group, good)))
    return found


def _repeating(maker: _Maker, group: tuple[str, ...], good: pl.DataFrame) -> Row | None:
    """A row with another one's values in ``group``."""
    for twin in good.iter_rows(named=True):
        if any(twin[name] is not None for name in group):
            given = {name: twin[name] for name in group}
            return next(maker.rows(None, (), given, group), None)
    return None


def samples(contracts: Mapping[str, Contract], rows: int) -> Iterator[tuple[Contract, pl.DataFrame, Known]]:
    """Good rows of every contract, those first that others refer to, each with the values it refers to.

    :raises SampleError: as :func:`good_rows`, or contracts refer to each other in a circle. Retry: no.
    """
    made: dict[str, pl.DataFrame] = {}
    known: dict[str, list[Any]] = {}
    while len(made) < len(contracts):
        ready = [
            contract
            for name, contract in contracts.items()
            if name not in made and _referred_to(contract) <= made.keys()
        ]
        if not ready:
            circle = ", ".join(sorted(contracts.keys() - made.keys()))
            raise SampleError(f"contracts refer to each other in a circle: {circle}")
        for contract in ready:
            rows_of = made[contract.name] = good_rows(contract, rows, known)
            known |= {
                f"{contract.name}.{name}": rows_of[name].drop_nulls().to_list() for name in rows_of.columns
            }
            yield contract, rows_of, known


def write_samples(contracts: Mapping[str, Contract], rows: int, folder: Path, *, bad: bool) -> Iterator[str]:
    """Write ``<contract>.parquet`` for each, and ``<contract>.bad.parquet``; yields what to tell about it.

    :raises SampleError: as :func:`samples`. Retry: no.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for contract, good, known in samples(contracts, rows):
        path = folder / f"{contract.name}.parquet"
        good.write_parquet(path)
        yield f"{path}: {good.height} rows that keep every rule"
        if not bad:
            continue
        broken = bad_rows(contract, good, known)
        found = [one for one in broken if one.row is not None]
        schema = {"broken_rule": pl.String(), "broken_field": pl.String(), **good.schema}
        rows_of = [{"broken_rule": one.rule, "broken_field": one.field, **(one.row or {})} for one in found]
        path = folder / f"{contract.name}.bad.parquet"
        pl.DataFrame(rows_of, schema=schema).write_parquet(path)
        yield f"{path}: {len(found)} rows that break a rule each"
        for one in broken:
            if one.row is None:
                yield f"  {one.field}: {one.rule}: no row breaks it and keeps the others"


def _referred_to(contract: Contract) -> set[str]:
    """Other contracts whose values this one needs."""
    named = {item.references.contract for item in contract.fields if item.references is not None}
    return named - {contract.name}


class _Maker:
    """Puts rows of one contract together."""

    def __init__(self, contract: Contract, rows: int, known: Known) -> None:
        self.contract = contract
        self.groups: list[tuple[str, ...]] = [(item.name,) for item in contract.fields if item.unique]
        self.groups += [group for group in contract.unique_together if group not in self.groups]
        self._known = known
        self.checks = [check for item in contract.fields for check in self._checks(item)]
        self._own = {
            item.name: item.references.field
            for item in contract.fields
            if item.references is not None and item.references.contract == contract.name
        }
        distinct = {name for group in self.groups for name in group}
        self._candidates = {
            item.name: self._candidates_of(item, rows if item.name in distinct else 0)
            for item in contract.fields
        }
        self._used: dict[str, Counter[str]] = {name: Counter() for name in self._candidates}
        self._seen: dict[tuple[str, ...], set[tuple[Any, ...]]] = {group: set() for group in self.groups}

    def frame(self, rows: Sequence[Row]) -> pl.DataFrame:
        """Rows with the contract's columns and types."""
        schema = {item.name: POLARS_TYPES[item.type] for item in self.contract.fields}
        return pl.DataFrame(list(rows), schema=schema)

    def remember(self, row: Row) -> None:
        """No later row may repeat this one where values are unique; elsewhere it should not either."""
        for group, seen in self._seen.items():
            seen.add(tuple(row[name] for name in group))
        for name, value in row.items():
            self._used[name][repr(value)] += 1

    def row(self, number: int, rows: int) -> Row:
        """The next good row."""
        missing = [item.name for item in self.contract.fields if _missing_here(item, number, rows)]
        found = next(self.rows(None, missing), None)
        if found is None:
            raise SampleError(
                f"contract {self.contract.name}: no row {number + 1} could be made up that keeps all rules; "
                "ask for fewer rows, or list allowed_values where a pattern is hard to meet"
            )
        self.remember(found)
        return found

    def rows(
        self,
        broken: Check | None,
        missing: Sequence[str] = (),
        given: Mapping[str, Any] | None = None,
        repeated: tuple[str, ...] = (),
    ) -> Iterator[Row]:
        """Rows that keep every rule but ``broken``.

        :param missing: fields that shall be null where the rules let them
        :param given: values that are settled
        :param repeated: the group in which the row must repeat another
        """
        names = sorted(self._candidates, key=lambda name: name in self._own)
        steps = iter(range(_MOST_STEPS))

        def fits(row: Row, name: str) -> bool:
            for check in self.checks:
                if (
                    name in check.fields
                    and check.fields <= row.keys()
                    and check.holds(row) == (check is broken)
                ):
                    return False
            return all(
                group == repeated or name != max(group, key=names.index) or self._is_new(row, group)
                for group in self.groups
            )

        def complete(row: Row, place: int) -> Iterator[Row]:
            if place == len(names):
                yield dict(row)
                return
            name = names[place]
            settled = dict(given or {})
            if name in self._own:  # in a table of its own a value finds itself
                settled.setdefault(name, None if name in missing else row[self._own[name]])
            for value in self._order(name, missing, settled, broken):
                if next(steps, None) is None:
                    return
                row[name] = value
                if fits(row, name):
                    yield from complete(row, place + 1)
            row.pop(name, None)

        yield from complete({}, 0)

    def _is_new(self, row: Row, group: tuple[str, ...]) -> bool:
        values = tuple(row[name] for name in group)
        return values not in self._seen[group] or all(value is None for value in values)

    def _order(
        self,
        name: str,
        missing: Sequence[str],
        given: Mapping[str, Any],
        broken: Check | None,
    ) -> list[Any]:
        """What to try for a field, the values that were used least first."""
        if name in given:
            return [given[name]]
        used = self._used[name]
        values = sorted(self._candidates[name], key=lambda value: used[repr(value)])
        if broken is not None and name in broken.fields:
            return [*values, None]
        return [None, *values] if name in missing else values

    def _candidates_of(self, item: ContractField, distinct: int) -> list[Any]:
        """The values to try: first those of the field's own rules, at last what lies outside of them."""
        shapes = [item, *(item.under(one) for one in item.conditional)]
        inside, outside = list[Any](), list[Any]()
        for shape in shapes:
            inside += [*(shape.allowed_values or ())]
            if shape.pattern is not None:
                texts = examples(shape.pattern, max(4, distinct))
                inside += texts
                outside += [miss for text in texts[:2] for miss in near_misses(text)]
            for bound in (shape.min, shape.max):
                if bound is not None:
                    inside += around(bound, item.type)
        conditions = [
            when for other in self.contract.fields for one in other.conditional for when in one.when
        ]
        inside += [value for when in conditions if when.field == item.name for value in when.values]
        if item.references is not None and item.references.contract != self.contract.name:
            inside += self._known[item.references.words]
        outside += plain(item.type)
        outside += many(item, distinct)
        values = [*inside, *outside]
        if item.type == "float":
            values = [float(value) for value in values]
        return list({repr(value): value for value in values}.values())

    def _checks(self, item: ContractField) -> Iterator[Check]:
        yield from _checks_of(item, item.nullable and item.max_missing != 0, ())
        for conditional in item.conditional:
            alone = item.under(conditional)
            # Of a share among some rows nobody can say which row breaks it: then none of them is null.
            free = alone.nullable and alone.max_missing == 1
            yield from _checks_of(alone, free, conditional.when)
        if (asked := item.references) is None:
            return
        if asked.contract == self.contract.name:
            own = frozenset((item.name, asked.field))
            yield Check(
                "references", item.name, own, lambda row: row[item.name] in (None, row[asked.field]), False
            )
        else:
            values = set(self._known[asked.words])
            yield Check(
                "references",
                item.name,
                frozenset((item.name,)),
                lambda row: row[item.name] is None or row[item.name] in values,
                not asked.max_unknown,
            )


def _checks_of(item: ContractField, free: bool, when: Sequence[Condition]) -> Iterator[Check]:
    """A field's rules about its own values, in the rows that meet all conditions.

    :param free: whether a value may be missing in any single row
    """
    name, low, high = item.name, item.min, item.max

    def check(rule: str, keeps: Callable[[Any, Row], bool], *fields: str, judged: bool = True) -> Check:
        def holds(row: Row) -> bool:
            return not all(_meets(row, one) for one in when) or keeps(row[name], row)

        looked_at = frozenset((name, *fields, *(one.field for one in when)))
        return Check(rule, name, looked_at, holds, judged)

    if not free:
        settled = not item.nullable or item.max_missing == 0
        rule = "max_missing" if item.nullable else "not_null"
        yield check(rule, lambda value, _: value is not None, judged=settled)
    if low is not None or high is not None:
        least, most = -math.inf if low is None else low, math.inf if high is None else high
        yield check("range", lambda value, _: value is None or least <= value <= most)
    if item.allowed_values is not None:
        allowed = set(item.allowed_values)
        yield check("allowed_values", lambda value, _: value is None or value in allowed)
    if item.pattern is not None:
        pattern = re.compile(rf"\A(?:{item.pattern})\Z")
        yield check("pattern", lambda value, _: value is None or pattern.search(value) is not None)
    for rule, other, keeps in (("at_least", item.at_least, operator.ge), ("above", item.above, operator.gt)):
        if other is not None:
            yield check(rule, _compared(other, keeps), other)


def _compared(other: str, keeps: Callable[[Any, Any], bool]) -> Callable[[Any, Row], bool]:
    return lambda value, row: value is None or row[other] is None or keeps(value, row[other])


_MEETS: Mapping[str, Callable[[Any, tuple[Any, ...]], bool]] = {
    "is": lambda value, given: value == given[0],
    "is_not": lambda value, given: value != given[0],
    "in": lambda value, given: value in given,
    "not_in": lambda value, given: value not in given,
    "above": lambda value, given: value > given[0],
    "at_least": lambda value, given: value >= given[0],
    "below": lambda value, given: value < given[0],
    "at_most": lambda value, given: value <= given[0],
    "present": lambda value, given: True,
    "missing": lambda value, given: False,
}


def _meets(row: Row, condition: Condition) -> bool:
    value = row[condition.field]
    return condition.op == "missing" if value is None else _MEETS[condition.op](value, condition.values)


def _missing_here(item: ContractField, number: int, rows: int) -> bool:
    """Whether this row's value is one of the nulls, which are as many as may be, evenly spread.

    Where all may be missing or no share is named, a quarter is: bounds are to be seen as well.
    """
    if not item.nullable:
        return False
    share = 0.25 if item.max_missing in (None, 1) else float(item.max_missing or 0)
    nulls = math.floor(share * rows)
    while nulls and (rows - nulls) / rows < 1 - share:  # as the engines compare
        nulls -= 1
    return (number + 1) * nulls // rows > number * nulls // rows
