"""Columns of bytes, made of whole columns of values by NumPy and Arrow: no object a value.

What is made of Feast's values is, byte for byte, what Feast's own messages serialise to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

Scalar = Literal["bytes", "string", "int32", "int64", "double", "float", "bool", "timestamp"]
_Numbers = np.ndarray[Any, Any]

# The number of each type's field in Feast's Value message; that of its list is ten higher.
_FIELDS: Mapping[Scalar, int] = {
    "bytes": 1,
    "string": 2,
    "int32": 3,
    "int64": 4,
    "double": 5,
    "float": 6,
    "bool": 7,
    "timestamp": 8,
}
_FIXED: Mapping[Scalar, str] = {"double": "<f8", "float": "<f4", "bool": "u1"}
_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5
_WIRE: Mapping[Scalar, int] = {"bytes": _SIZED, "string": _SIZED, "double": _EIGHT, "float": _FOUR}
_EXACT = 2**53  # whole numbers up to it are exact as floats


def fixed(table: _Numbers) -> pa.Array:
    """The rows of a structured array."""
    size = table.dtype.itemsize
    return _cut(np.arange(len(table) + 1, dtype=np.int64) * size, np.ascontiguousarray(table))


def texts(column: pl.Series) -> pa.Array:
    """A column of text or bytes; a null is none."""
    return column.cast(pl.Binary).fill_null(b"").to_arrow(compat_level=pl.CompatLevel.oldest())


def joined(*columns: pa.Array | bytes) -> pa.Array:
    """The columns' bytes of each row behind one another; bytes are the same in every row."""
    parts = [pa.scalar(one, pa.large_binary()) if isinstance(one, bytes) else one for one in columns]
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


def sizes(column: pa.Array) -> _Numbers:
    """How many bytes each row has."""
    return np.diff(_offsets(column))


def with_size(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The size of each row as four bytes, and the rows."""
    return fixed(sizes(column).astype("<u4")), column


def data(column: pa.Array) -> memoryview:
    """The bytes of all rows, not copied."""
    offsets = _offsets(column)
    return memoryview(column.buffers()[2] or b"")[offsets[0] : offsets[-1]]


def varints(numbers: _Numbers) -> pa.Array:
    """Whole numbers as protobuf writes them: seven bits a byte, a negative one in ten bytes."""
    left = numbers.astype(np.int64).view(np.uint64)
    size = np.ones(len(left), np.int64)
    for shift in range(7, 64, 7):
        more = left >> np.uint64(shift) != 0
        if not more.any():
            break
        size += more
    width = np.arange(int(size.max(initial=1)))
    table = ((left[:, None] >> (7 * width).astype(np.uint64)) & np.uint64(0x7F)).astype(np.uint8)
    table |= np.where(width < size[:, None] - 1, np.uint8(0x80), np.uint8(0))
    return _cut(_running(size), table[width < size[:, None]])


def timestamps(events: pl.Series) -> pa.Array:
    """Microseconds since 1970 as Timestamp messages."""
    seconds, micros = np.divmod(events.to_physical().to_numpy(), 1_000_000)
    return joined(_unless_zero(b"\x08", seconds), _unless_zero(b"\x10", micros * 1000))


def messages(column: pl.Series, kind: Scalar) -> pa.Array:
    """Feast's Value messages of a column without lists; a null's has no bytes."""
    tag = varint((_FIELDS[kind] << 3) | _WIRE.get(kind, _VARINT))
    if kind in ("string", "bytes"):
        content = texts(column)
        made = joined(tag, varints(sizes(content)), content)
    elif kind in _FIXED:
        made = joined(tag, fixed(_numbers(column, kind)))
    else:
        made = joined(tag, varints(_numbers(column, kind)))
    return _without(made, column)


def list_messages(column: pl.Series, kind: Scalar) -> pa.Array:
    """Feast's Value messages of a column of lists, in which nothing is null; a null list's has no bytes."""
    lengths = column.list.len().fill_null(0).to_numpy()
    ends = _running(lengths)
    elements = column.drop_nulls().explode(empty_as_null=False)
    if kind in ("string", "bytes"):
        content = texts(elements)
        each = joined(b"\x0a", varints(sizes(content)), content)
        packed = _cut(_offsets(each)[ends], data(each))
    else:
        each = fixed(_numbers(elements, kind)) if kind in _FIXED else varints(_numbers(elements, kind))
        packed = _cut(_offsets(each)[ends], data(each))
        head = joined(b"\x0a", varints(sizes(packed)))
        packed = pc.if_else(pa.array(lengths > 0), joined(head, packed), pa.scalar(b"", pa.large_binary()))
    tag = varint(((_FIELDS[kind] + 10) << 3) | _SIZED)
    return _without(joined(tag, varints(sizes(packed)), packed), column)


def are_exact(column: pl.Series) -> bool:
    """Whether these microseconds are whole as floats, as which Feast cuts them to seconds."""
    least, most = column.to_physical().min(), column.to_physical().max()
    return least is None or (abs(least) <= _EXACT and abs(most) <= _EXACT)  # type: ignore[arg-type, operator]


def varint(number: int) -> bytes:
    """A whole number that is not negative, as in :func:`varints`."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _numbers(column: pl.Series, kind: Scalar) -> _Numbers:
    if kind == "timestamp":  # Feast's cut towards 1970
        return np.trunc(column.to_physical().fill_null(0).to_numpy() / 1_000_000).astype(np.int64)
    if kind == "bool":
        return column.fill_null(False).to_numpy().astype("u1")
    return column.fill_null(0).to_numpy().astype(_FIXED.get(kind, "<i8"))


def _unless_zero(tag: bytes, numbers: _Numbers) -> pa.Array:
    return pc.if_else(
        pa.array(numbers != 0), joined(tag, varints(numbers)), pa.scalar(b"", pa.large_binary())
    )


def _without(made: pa.Array, column: pl.Series) -> pa.Array:
    if not column.null_count():
        return made
    absent = column.is_null().to_arrow()
    return pc.if_else(absent, pa.scalar(b"", pa.large_binary()), made)


def _cut(offsets: _Numbers, content: Any) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _running(lengths: _Numbers) -> _Numbers:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def _offsets(column: pa.Array) -> _Numbers:
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    return offsets[column.offset : column.offset + len(column) + 1]
