"""The rules of a contract's fields that have keys of their own, and what all of them are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import FieldError, Name, Strict, Text

RuleSeverity = Literal["halt", "warn"]
FieldType = Literal["string", "integer", "float", "boolean", "timestamp", "date"]
Scalar = str | int | float | bool
VALUE_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "text (quote it)"),
    "integer": ((int,), "whole numbers"),
    "float": ((int, float), "numbers"),
    "boolean": ((bool,), "true or false"),
}


class Distribution(Strict):
    """How far a field may move from the last validated snapshot.

    :param max_psi: population stability index, 10 quantile bins of the earlier snapshot
    :param max_missing_increase: rise of the null share, absolute
    """

    max_psi: float | None = Field(default=None, gt=0)
    max_missing_increase: float | None = Field(default=None, gt=0, le=1)
    severity: RuleSeverity = "warn"


Operator = Literal[
    "is", "is_not", "in", "not_in", "above", "at_least", "below", "at_most", "missing", "present"
]


class Condition(Strict):
    """What a row must hold in one field. A row that lacks a value meets ``missing`` alone.

    :param field: a field of the same contract
    :param op: how it is compared; ``missing`` and ``present`` take no value
    :param value: what it is compared with, for ``in`` and ``not_in`` a list
    """

    field: Text
    op: Operator
    value: Scalar | tuple[Scalar, ...] | None = None

    @model_validator(mode="after")
    def _value_fits_the_operator(self) -> Condition:
        several = isinstance(self.value, tuple)
        if self.op in ("missing", "present"):
            if self.value is not None:
                raise FieldError("value", f"{self.op!r} takes none")
        elif self.op in ("in", "not_in"):
            if not several or not self.value:
                raise FieldError("value", f"{self.op!r} needs a list of values")
        elif self.value is None or several:
            raise FieldError("value", f"{self.op!r} needs one value")
        return self

    @property
    def values(self) -> tuple[Scalar, ...]:
        """What it is compared with."""
        if self.value is None:
            return ()
        return self.value if isinstance(self.value, tuple) else (self.value,)

    @property
    def words(self) -> str:
        """The condition as it stands in messages."""
        shown = (str(one).lower() if isinstance(one, bool) else str(one) for one in self.values)
        return " ".join([self.field, self.op.replace("_", " "), ", ".join(shown)]).rstrip()

    def misfit(self, kind: FieldType) -> tuple[str, str] | None:
        """What is wrong, and why, if a field of this type cannot be compared so."""
        if self.op in ("missing", "present"):
            return None
        if kind not in VALUE_TYPES:
            return "op", f"{self.op!r} cannot be used with type {kind}: use missing or present"
        ordered, listed = self.op in ("above", "at_least", "below", "at_most"), self.op in ("in", "not_in")
        if (ordered and kind not in ("integer", "float")) or (listed and kind == "boolean"):
            return "op", f"{self.op!r} cannot be used with type {kind}"
        odd = odd_value(self.values, kind)
        return None if odd is None else ("value", odd)


class Conditional(Strict):
    """Rules of a field for the rows alone that meet every condition.

    :param when: conditions, all of which must be met
    :param nullable: whether some of these rows' values may be missing
    :param max_missing: largest share of nulls among these rows, 0 to 1
    :param pattern: regular expression that the whole of each value must match
    :param at_least: another field of its type: never more than this one in a row that has both
    :param above: another field of its type: always less than this one in a row that has both
    :param severity: what a broken rule does: halt the run, or warn
    """

    when: tuple[Condition, ...] = Field(min_length=1, max_length=20)
    nullable: bool = True
    max_missing: float | None = Field(default=None, ge=0, le=1)
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    pattern: str | None = None
    at_least: Text | None = None
    above: Text | None = None
    severity: RuleSeverity = "halt"

    @property
    def words(self) -> str:
        """Which rows it is about."""
        return "where " + " and ".join(condition.words for condition in self.when)


class References(Strict):
    """Every value of a field is one of another table's; null is left out.

    :param contract: a contract of the same file, whose sources' rows are looked in
    :param field: the field there, of the same type
    :param max_unknown: largest share of the values that may be none of its, 0 to 1
    :param severity: what a broken reference does: halt the run, or warn
    """

    contract: Name
    field: Text
    max_unknown: float = Field(default=0, ge=0, lt=1)
    severity: RuleSeverity = "halt"

    @property
    def words(self) -> str:
        """The other side as it stands in messages."""
        return f"{self.contract}.{self.field}"


def odd_value(values: Iterable[Scalar], kind: FieldType) -> str | None:
    """Why a field of this type, which is no time, cannot hold these values; None if it can."""
    types, expected = VALUE_TYPES[kind]
    for value in values:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            return f"must be {expected} for type {kind}, not {value!r}"
    return None
