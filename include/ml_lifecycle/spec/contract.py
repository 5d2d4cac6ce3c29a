"""The typed form of ``contract.yaml``: what each source's data must look like.

A rule either halts the run and quarantines the snapshot, or warns. Every rule halts unless marked
``severity: warn``; distribution rules warn unless marked ``halt``, or the very drift that calls for a
retraining would stop it.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import FieldError, Name, PositiveDuration, Strict, Text, VersionText

RuleSeverity = Literal["halt", "warn"]
Engine = Literal["polars", "great_expectations"]
FieldType = Literal["string", "integer", "float", "boolean", "timestamp", "date"]
Scalar = str | int | float | bool
_VALUE_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
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


class ContractField(Strict):
    """One column: its type and the rules its values must meet.

    :param nullable: some values may be missing; all of them only with ``max_missing: 1``
    :param max_missing: largest share of nulls, 0 to 1
    :param unique: no value but null occurs twice in the snapshot
    :param pattern: regular expression that the whole of each value must match
    :param at_least: another field of its type: never more than this one in a row that has both
    :param above: another field of its type: always less than this one in a row that has both
    :param min_share: smallest share of the rows with a value that each allowed value, or true and false, must
        hold in the whole table: class balance of a label, representation of a group
    :param severity: what a broken rule of this field does: halt the run, or warn
    :param pii: whether it holds personal data: its values, and those of features and keys of its name, stay
        out of messages, records and reports
    """

    name: Text
    type: FieldType
    nullable: bool = True
    max_missing: float | None = Field(default=None, ge=0, le=1)
    unique: bool = False
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    pattern: str | None = None
    at_least: Text | None = None
    above: Text | None = None
    min_share: float | None = Field(default=None, gt=0, le=1)
    distribution: Distribution | None = None
    severity: RuleSeverity = "halt"
    pii: bool = False
    description: str = ""

    @model_validator(mode="after")
    def _rules_fit_the_type(self) -> ContractField:
        for bound in ("min", "max"):
            if getattr(self, bound) is not None and self.type not in ("integer", "float"):
                raise FieldError(bound, f"needs type integer or float, not {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise FieldError("min", f"{self.min:g} is above max ({self.max:g})")
        if self.pattern is not None and self.type != "string":
            raise FieldError("pattern", f"needs type string, not {self.type}")
        if self.max_missing is not None and not self.nullable:
            raise FieldError("max_missing", "needs nullable: true")
        for key in ("at_least", "above"):
            if getattr(self, key) is not None and self.type in ("string", "boolean"):
                raise FieldError(key, f"cannot be used with type {self.type}")
        if self.min_share is not None and not self.shared_by:
            raise FieldError("min_share", "needs allowed_values, or type boolean")
        if self.min_share is not None and self.min_share * len(self.shared_by) > 1:
            raise FieldError("min_share", f"cannot be reached by {len(self.shared_by)} values at once")
        return self

    @property
    def shared_by(self) -> tuple[Scalar, ...]:
        """The values that ``min_share`` is about."""
        return self.allowed_values or ((False, True) if self.type == "boolean" else ())

    @model_validator(mode="after")
    def _pattern_compiles(self) -> ContractField:
        try:
            re.compile(self.pattern or "")
            re.compile(rf"\A(?:{self.pattern or ''})\Z")  # as it is used, of the whole value
        except re.error as error:
            raise FieldError("pattern", f"{self.pattern!r} is not a regular expression: {error}") from error
        return self

    @model_validator(mode="after")
    def _allowed_values_fit_the_type(self) -> ContractField:
        if self.allowed_values is None:
            return self
        if self.type not in _VALUE_TYPES:
            raise FieldError("allowed_values", f"cannot be used with type {self.type}")
        types, expected = _VALUE_TYPES[self.type]
        for value in self.allowed_values:
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise FieldError("allowed_values", f"must be {expected} for type {self.type}, not {value!r}")
        return self


class Freshness(Strict):
    """The newest event may be at most ``max_staleness`` older than the run's ``as_of``."""

    max_staleness: PositiveDuration
    severity: RuleSeverity = "halt"


class Volume(Strict):
    """Rows a UTC day, over each whole day of the run's interval."""

    min_rows_per_day: int | None = Field(default=None, ge=0)
    max_rows_per_day: int | None = Field(default=None, ge=0)
    severity: RuleSeverity = "halt"

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Volume:
        low, high = self.min_rows_per_day, self.max_rows_per_day
        if low is not None and high is not None and low > high:
            raise FieldError("min_rows_per_day", f"{low} is above max_rows_per_day ({high})")
        return self


class Contract(Strict):
    """What one source's data must look like.

    :param extra_columns: what columns not listed here mean: ``allow``, ``warn`` or ``halt``
    :param engine: what computes the rules, with the same results: ``polars`` in one streaming pass, or
        ``great_expectations`` itself, slower and with all rows in memory
    """

    name: Name
    version: VersionText
    fields: tuple[ContractField, ...] = Field(min_length=1)
    unique_together: tuple[tuple[str, ...], ...] = ()
    freshness: Freshness | None = None
    volume: Volume | None = None
    extra_columns: Literal["allow", "warn", "halt"] = "warn"
    engine: Engine = "polars"
    description: str = ""

    @model_validator(mode="after")
    def _names_are_known(self) -> Contract:
        names = [field.name for field in self.fields]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise FieldError("fields", f"listed twice: {', '.join(doubled)}")
        for group in self.unique_together:
            if unknown := [name for name in group if name not in names]:
                raise FieldError("unique_together", f"names unknown fields: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _compared_fields_are_of_one_type(self) -> Contract:
        types = {field.name: field.type for field in self.fields}
        for number, field in enumerate(self.fields):
            for key in ("at_least", "above"):
                other = getattr(field, key)
                if other is None:
                    continue
                if other == field.name or other not in types:
                    raise FieldError("fields", f"names no other field: {other!r}", number, key)
                if types[other] != field.type:
                    message = f"needs a field of type {field.type}, {other} is {types[other]}"
                    raise FieldError("fields", message, number, key)
        return self


class ContractFile(Strict):
    """``contract.yaml``: either one ``contract:`` or several under ``contracts:``."""

    contract: Contract | None = None
    contracts: tuple[Contract, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> ContractFile:
        if (self.contract is None) == (not self.contracts):
            raise ValueError("write either contract: (one) or contracts: (a list)")
        names = [contract.name for contract in self.all]
        if len(set(names)) != len(names):
            raise FieldError("contracts", "two have the same name")
        return self

    @property
    def all(self) -> tuple[Contract, ...]:
        """Every contract of the file."""
        return (self.contract,) if self.contract is not None else self.contracts
