"""The Open Inference Protocol V2 on the wire, as far as this server speaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_lifecycle.records import ColumnSpec

# Datatypes accepted for a column; the first is the one announced in the metadata and sent by our client.
DATATYPES: Mapping[str, tuple[str, ...]] = {
    "float": ("FP32", "FP64"),
    "int": ("INT64", "INT32"),
    "bool": ("BOOL",),
    "string": ("BYTES",),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor. ``data`` is flat, row-major, and has as many values as ``shape`` says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request whose tensors are well formed; whether they fit a model is not yet known.

    :param outputs: names of the outputs asked for; empty for all
    """

    inputs: tuple[Tensor, ...]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


def announced(column: ColumnSpec) -> str:
    """The V2 datatype announced for ``column``."""
    return DATATYPES[column.type][0]
