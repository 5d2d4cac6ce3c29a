"""The Open Inference Protocol V2: its datatypes, and a request before it is held against a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.records import ColumnSpec

# Datatypes accepted for a column; the first is the one announced in the metadata and sent by our client.
DATATYPES: Mapping[str, tuple[str, ...]] = {
    "float": ("FP32", "FP64", "FP16"),
    "int": ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"),
    "bool": ("BOOL",),
    "string": ("BYTES",),
}
# As they lie in binary tensors: little-endian, row-major. BYTES has no fixed width.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
KNOWN_DATATYPES = frozenset((*DTYPES, "BYTES"))

Values = Sequence[Any] | NDArray[Any]

Broken = tuple[tuple[str, str, int], ...]
"""Columns, rules of theirs, and how many values break them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor.

    :param data: flat, row-major, as many values as ``shape`` says: a list of Python's own, or an array of
        what was sent in binary
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Values


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a client asked for by name.

    :param binary: how it wants it; None where it did not say
    """

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request whose tensors are well formed; whether they fit a model is not yet known.

    :param outputs: the outputs asked for; empty for all
    """

    inputs: tuple[Tensor, ...]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[RequestedOutput, ...] = ()


def announced(column: ColumnSpec) -> str:
    """The V2 datatype announced for ``column``."""
    return DATATYPES[column.type][0]
