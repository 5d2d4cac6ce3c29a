"""Features that say by a tag which contract field they hold unchanged, and what follows for their model.

``Field(name="distance", dtype=Float32, tags={"contract": "flights.distance"})``: nothing is guessed from
names. Of the field's rules those that one value alone can break become rules of the model's input, if they
halt. The features stage proves them on the training set, the model server holds what it is sent against them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnType, InputRules
from ml_lifecycle.rules.inputs import translated
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.problems import suggest

TAG = "contract"

# What a model can take a field's values as. Truth values may become numbers, and numbers floats.
_HELD_BY: Mapping[str, tuple[ColumnType, ...]] = {
    "string": ("string",),
    "integer": ("int", "float"),
    "float": ("float",),
    "boolean": ("bool", "int", "float"),
}
_DTYPES: Mapping[ColumnType, str] = {
    "float": "Float32",
    "int": "Int64",
    "string": "String",
    "bool": "Bool",
}


@dataclass(frozen=True)
class Tag:
    """What a feature says of itself.

    :param view: the feature view it is declared in
    :param type: what a model takes it as
    :param names: the tag's text, which should be ``contract.field``
    """

    view: str
    feature: str
    type: ColumnType
    names: str


class TagError(FeatureError):
    """A tag names no field of a contract, or one that its feature cannot hold. Retry: no.

    :param hints: what would be right, a line each
    :param field: the contract and its field, if there is one of that name
    """

    def __init__(
        self, tag: Tag, message: str, hints: list[str], field: tuple[Contract, ContractField] | None = None
    ) -> None:
        self.tag = tag
        self.message = f"feature {tag.feature!r} is tagged contract: {tag.names!r}, {message}"
        self.hints = hints
        self.field = field
        super().__init__("; ".join([f"features.py: {self.message}", *hints]))


def field_of(tag: Tag, contracts: Iterable[Contract]) -> tuple[Contract, ContractField]:
    """The field that a tag names.

    :raises TagError: there is none, or the feature cannot hold its values unchanged. Retry: no.
    """
    known = {f"{one.name}.{field.name}": (one, field) for one in contracts for field in one.fields}
    if tag.names not in known:
        raise TagError(tag, "and no contract has that field", suggest(tag.names, list(known)))
    found = known[tag.names]
    field = found[1]
    held_by = _HELD_BY.get(field.type, ())
    if tag.type not in held_by:
        right = " or ".join(_DTYPES[kind] for kind in held_by)
        hint = f"declare it {right}" if right else "no feature is a time: take the tag away"
        raise TagError(tag, f"which is {field.type}: no {_DTYPES[tag.type]} holds that", [hint], found)
    return found


def input_rules(contract: Contract, field: ContractField) -> InputRules | None:
    """The rules of a field that become rules of the input; None of one whose broken rules only warn."""
    if field.severity != "halt" or field.type not in ("string", "integer", "float", "boolean"):
        return None
    return InputRules(
        contract=f"{contract.name}.{field.name}",
        type=field.type,
        nullable=field.nullable and field.max_missing != 0,
        min=field.min,
        max=field.max,
        allowed_values=field.allowed_values,
        pattern=field.pattern if can_be_served(field.pattern) else None,
    )


def can_be_served(pattern: str | None) -> bool:
    """Whether a server can hold texts of clients against a pattern in a time that grows as the text does.

    Python's own engine may take for ever of some; Polars' never does, and has an equal of most.
    """
    return pattern is not None and translated(pattern) is not None


def personal_features(tags: Iterable[Tag], contracts: Iterable[Contract]) -> frozenset[str]:
    """The features that hold a field marked ``pii``, whatever they are called.

    :raises TagError: as :func:`field_of`. Retry: no.
    """
    all_of_them = tuple(contracts)
    return frozenset(tag.feature for tag in tags if field_of(tag, all_of_them)[1].pii)
