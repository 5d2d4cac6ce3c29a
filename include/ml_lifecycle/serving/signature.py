"""A model's columns held against the tensors of a request. Whatever does not fit is said here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.columns import Features, as_told, pack
from ml_lifecycle.serving.errors import BadRequestError
from ml_lifecycle.serving.packed import Packed
from ml_lifecycle.serving.types import DATATYPES, Tensor, Values, announced
from ml_lifecycle.shown import shown

# Of so many requests the names and datatypes are remembered; clients send few different ones.
_LAYOUTS = 64

Kinds = tuple[tuple[str, str], ...]


class Signature:
    """What a variant takes: one tensor a column, or one packed tensor if all columns are numeric."""

    def __init__(self, variant: Variant) -> None:
        self.columns = variant.columns
        self.entity_keys = variant.entity_keys
        self._names = {column.name: number for number, column in enumerate(variant.columns)}
        self._numeric = all(column.type in ("float", "int") for column in variant.columns)
        self._layouts: dict[Kinds, tuple[int, ...]] = {}

    def quick(self, inputs: Sequence[Mapping[str, Any]]) -> Features | None:
        """The features of JSON tensors of which nothing is new; None if they take a closer look.

        Names and datatypes were seen before, and every column's shape is ``[rows]`` or ``[rows, 1]``.
        """
        try:
            shape = inputs[0]["shape"]
            if len(inputs) == 1 and len(shape) == 2 and inputs[0]["name"] not in self._names:
                return self._quick_packed(inputs[0], shape)
            order = self._layouts.get(tuple([(tensor["name"], tensor["datatype"]) for tensor in inputs]))
            if order is None:
                return None
            rows = shape[0]
            for tensor in inputs:
                sent, data = tensor["shape"], tensor["data"]
                if len(tensor) != 4 or type(data) is not list or len(data) != rows or sent[0] != rows:
                    return None
                if type(sent[0]) is not int or len(sent) > 2:
                    return None
                if len(sent) == 2 and (sent[1] != 1 or type(sent[1]) is not int or type(data[0]) is list):
                    return None
        except (KeyError, TypeError, IndexError, ValueError):
            return None
        return Features(rows, [inputs[at]["data"] for at in order], "request")

    def _quick_packed(self, tensor: Mapping[str, Any], shape: Any) -> Features | None:
        rows, width = shape
        name, data, columns = tensor["name"], tensor["data"], len(self.columns)
        known = self._numeric and tensor["datatype"] in DATATYPES["float"] and len(tensor) == 4
        named = type(name) is str and 0 < len(name) <= 200
        whole = type(rows) is int and type(width) is int and width == columns and type(data) is list
        if (
            not (known and named and whole)
            or len(data) != rows * columns
            or rows < 1
            or type(data[0]) is list
        ):
            return None
        return Features(rows, pack(data, self.columns), "request")

    def packed(self, tensor: Packed) -> Features | None:
        """The features of a packed tensor; None if it is not one for these columns."""
        known = self._numeric and tensor.datatype in DATATYPES["float"] and tensor.name not in self._names
        if not known or tensor.width != len(self.columns) or not 0 < len(tensor.name) <= 200:
            return None
        return Features(tensor.rows, tensor.values.reshape(tensor.rows, tensor.width), "request")

    def features(self, inputs: Sequence[Tensor]) -> Features:
        """The features that well-formed tensors hold.

        :raises BadRequestError: names, datatypes or shapes do not fit the columns. Retry: no.
        """
        if len(inputs) == 1 and inputs[0].name not in self._names and len(inputs[0].shape) == 2:
            return self._unpack(inputs[0])
        given = {tensor.name: number for number, tensor in enumerate(inputs)}
        self._check_names(given.keys())
        for tensor in inputs:
            column = self.columns[self._names[tensor.name]]
            accepted = DATATYPES[column.type]
            if tensor.datatype not in accepted:
                raise BadRequestError(
                    f"input {tensor.name!r} has datatype {tensor.datatype}, the column takes "
                    f"{' or '.join(accepted)}"
                )
            if len(tensor.shape) == 2 and tensor.shape[1] != 1:
                raise BadRequestError(
                    f"input {tensor.name!r} has shape {list(tensor.shape)}, a column is [rows] or [rows, 1]"
                )
            check_range(tensor, column)
        order = tuple(given[column.name] for column in self.columns)
        kinds = tuple((tensor.name, tensor.datatype) for tensor in inputs)
        if all(kind not in _NARROW for _, kind in kinds):
            self._remember(kinds, order)
        return Features(inputs[0].shape[0], [inputs[at].data for at in order], "request")

    def _remember(self, kinds: Kinds, order: tuple[int, ...]) -> None:
        if len(self._layouts) < _LAYOUTS:
            self._layouts[kinds] = order

    def _unpack(self, tensor: Tensor) -> Features:
        if others := [column.name for column in self.columns if column.type not in ("float", "int")]:
            raise BadRequestError(
                f"unknown input {tensor.name!r}: one packed tensor needs numeric columns only, "
                f"these are not: {others}; {self.allowed}"
            )
        if tensor.datatype not in DATATYPES["float"]:
            raise BadRequestError(
                f"the packed tensor {tensor.name!r} must be {' or '.join(DATATYPES['float'])}, "
                f"not {tensor.datatype}"
            )
        width = len(self.columns)
        if tensor.shape[1] != width:
            raise BadRequestError(
                f"the packed tensor {tensor.name!r} has {tensor.shape[1]} columns, not {width}; "
                f"{self.allowed}, in that order"
            )
        rows = tensor.shape[0]
        if not isinstance(tensor.data, np.ndarray):
            return Features(rows, pack(tensor.data, self.columns), "request")
        return Features(rows, tensor.data.reshape(rows, width), "request")

    def _check_names(self, given: Iterable[str]) -> None:
        columns = list(self._names)
        if unknown := sorted(set(given) - self._names.keys()):
            near = difflib.get_close_matches(unknown[0], columns, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise BadRequestError(f"unknown inputs {few(unknown)}{hint}; {self.allowed}")
        if missing := [name for name in columns if name not in given]:
            raise BadRequestError(f"inputs are missing: {missing}; {self.allowed}")

    @property
    def allowed(self) -> str:
        """What may be sent, in words."""
        columns = ", ".join(f"{column.name} {announced(column)}" for column in self.columns)
        keys = f"; or the entity keys {', '.join(self.entity_keys)}" if self.entity_keys else ""
        return f"the model takes {columns}{keys}"


_NARROW = {
    f"{sign}{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sign == "INT" else (0, 2**bits - 1)
    for sign in ("INT", "UINT")
    for bits in (8, 16, 32, 64)
    if (sign, bits) != ("INT", 64)
}


def check_range(tensor: Tensor, column: ColumnSpec) -> None:
    """Whole numbers of a JSON tensor must fit its datatype; INT64's are checked where arrays are made."""
    if tensor.datatype not in _NARROW or isinstance(tensor.data, np.ndarray):
        return
    low, high = _NARROW[tensor.datatype]
    for row, value in enumerate(tensor.data):
        if type(value) is int and not low <= value <= high:
            raise BadRequestError(
                f"input {tensor.name!r}, row {row}: {as_told(column, value)} is no {tensor.datatype}"
            )


def few(names: Sequence[str]) -> str:
    """The first few: an answer must not grow with what a request invents."""
    some = ", ".join(f"{name!r:.60}" for name in names[:5])
    return f"[{some}]" if len(names) <= 5 else f"[{some} and {len(names) - 5} more]"


def may_be_keys(tensor: Tensor) -> bool:
    """Whether a tensor is of a type that entity keys have."""
    return tensor.datatype == "BYTES" or "INT" in tensor.datatype


def entity_values(tensor: Tensor) -> list[Any]:
    """The values of an entity key's tensor.

    :raises BadRequestError: they are neither text nor whole numbers. Retry: no.
    """
    if not may_be_keys(tensor):
        raise BadRequestError(f"entity key {tensor.name!r} must be BYTES or INT64, not {tensor.datatype}")
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise BadRequestError(f"entity key {tensor.name!r} has shape {list(tensor.shape)}, use [rows]")
    accepted, expected = (str, "text") if tensor.datatype == "BYTES" else (int, "a whole number")
    values = plain(tensor.data)
    for row, value in enumerate(values):
        if type(value) is not accepted:
            raise BadRequestError(
                f"entity key {tensor.name!r}, row {row}: expected {expected} ({tensor.datatype}), "
                f"got {shown(value)}"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise BadRequestError(f"entity key {tensor.name!r}, row {row}: exceeds a 64-bit integer")
    return values


def plain(values: Values) -> list[Any]:
    """Values as Python's own."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def flat(rows: Iterable[Iterable[Any]]) -> list[Any]:
    """A list of rows as one list."""
    return list(chain.from_iterable(rows))
