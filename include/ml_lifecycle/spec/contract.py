"""The typed form of ``contract.yaml``: what each source's data must look like.

A rule either halts the run and quarantines the snapshot, or warns. Every rule halts unless marked
``severity: warn``; distribution rules warn unless marked ``halt``, or the very drift that calls for a
retraining would stop it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, cast

from pydantic import Field, ValidationError, model_validator

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.contract_rules import (
    VALUE_TYPES,
    Conditional,
    Distribution,
    FieldType,
    References,
    RuleSeverity,
    Scalar,
    odd_value,
)
from ml_lifecycle.spec.problems import suggest
from ml_lifecycle.spec.source import Source
from ml_lifecycle.spec.types import FieldError, Name, PositiveDuration, Strict, Text, VersionText

Engine = Literal["polars", "great_expectations"]


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
    :param conditional: further rules, for the rows that meet a condition
    :param references: the field of another contract in which every value must be found
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
    conditional: tuple[Conditional, ...] = ()
    references: References | None = None
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
            raise FieldError("min", f"{self.min:.15g} is above max ({self.max:.15g})")
        if self.pattern is not None and self.type != "string":
            raise FieldError("pattern", f"needs type string, not {self.type}")
        if self.max_missing is not None and not self.nullable:
            raise FieldError("max_missing", "needs nullable: true")
        for key in ("at_least", "above"):
            if getattr(self, key) is not None and self.type in ("string", "boolean"):
                raise FieldError(key, f"cannot be used with type {self.type}")
        if self.references is not None and self.type not in ("string", "integer"):
            raise FieldError("references", f"needs type string or integer, not {self.type}")
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
        if self.type not in VALUE_TYPES:
            raise FieldError("allowed_values", f"cannot be used with type {self.type}")
        if odd := odd_value(self.allowed_values, self.type):
            raise FieldError("allowed_values", odd)
        return self

    @model_validator(mode="after")
    def _conditional_rules_fit_the_type(self) -> ContractField:
        for number, conditional in enumerate(self.conditional):
            if conditional == Conditional(when=conditional.when, severity=conditional.severity):
                raise FieldError("conditional", "states no rule beside its condition", number)
            try:
                self.under(conditional)
            except ValidationError as error:
                reason = cast(FieldError, error.errors()[0]["ctx"]["error"])
                raise FieldError("conditional", reason.message, number, *reason.path) from error
        return self

    def under(self, conditional: Conditional) -> ContractField:
        """The field as ``conditional`` alone describes it."""
        rules = conditional.model_dump(exclude={"when"})
        if conditional.nullable and conditional.max_missing is None:
            rules["max_missing"] = 1  # only the field itself asks for at least one value
        return ContractField(name=self.name, type=self.type, pii=self.pii, **rules)


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
            ruled: list[tuple[tuple[str | int, ...], str | None, str | None]]
            ruled = [((number,), field.at_least, field.above)]
            for place, one in enumerate(field.conditional):
                ruled.append(((number, "conditional", place), one.at_least, one.above))
            for path, *others in ruled:
                for key, other in zip(("at_least", "above"), others, strict=True):
                    if other is None:
                        continue
                    if other == field.name or other not in types:
                        raise FieldError("fields", f"names no other field: {other!r}", *path, key)
                    if types[other] != field.type:
                        message = f"needs a field of type {field.type}, {other} is {types[other]}"
                        raise FieldError("fields", message, *path, key)
        return self

    @model_validator(mode="after")
    def _conditions_can_be_told(self) -> Contract:
        types = {field.name: field.type for field in self.fields}
        for number, field in enumerate(self.fields):
            for place, conditional in enumerate(field.conditional):
                for at, condition in enumerate(conditional.when):
                    path = (number, "conditional", place, "when", at)
                    if condition.field not in types:
                        near = "; ".join(suggest(condition.field, list(types)))
                        message = f"no field {condition.field!r}: {near}"
                        raise FieldError("fields", message, *path, "field")
                    if odd := condition.misfit(types[condition.field]):
                        raise FieldError("fields", odd[1], *path, odd[0])
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

    @model_validator(mode="after")
    def _references_lead_somewhere(self) -> ContractFile:
        known = {contract.name: contract for contract in self.all}
        for number, contract in enumerate(self.all):
            for place, item in enumerate(contract.fields):
                if (asked := item.references) is None:
                    continue
                root = ("contracts", number) if self.contracts else ("contract",)
                path = (*root[1:], "fields", place, "references")
                if asked.contract not in known:
                    near = "; ".join(suggest(asked.contract, list(known)))
                    raise FieldError(root[0], f"no contract {asked.contract!r}: {near}", *path, "contract")
                types = {other.name: other.type for other in known[asked.contract].fields}
                if asked.field not in types:
                    near = "; ".join(suggest(asked.field, list(types)))
                    message = f"contract {asked.contract} has no field {asked.field!r}: {near}"
                    raise FieldError(root[0], message, *path, "field")
                if types[asked.field] != item.type:
                    message = f"needs a field of type {item.type}, {asked.words} is {types[asked.field]}"
                    raise FieldError(root[0], message, *path, "field")
        return self

    @property
    def all(self) -> tuple[Contract, ...]:
        """Every contract of the file."""
        return (self.contract,) if self.contract is not None else self.contracts


def contract_of(name: str, source: Source, contracts: Mapping[str, Contract] | None) -> Contract | None:
    """The contract that a source names; None without one.

    :raises SpecError: it names one that does not exist. Retry: no.
    """
    if source.contract is None or contracts is None:
        return None
    if source.contract not in contracts:
        raise SpecError(
            f"source {name!r} names the contract {source.contract!r}; "
            f"contract.yaml has {', '.join(sorted(contracts)) or 'none'}"
        )
    return contracts[source.contract]
