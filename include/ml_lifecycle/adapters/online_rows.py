"""The bytes of an online store: Feast's entity keys, and all values of an entity packed into one row.

A row is the number of its layout, a bit a field that says whether it is null, the values of fixed size and
the lengths of the others in the fields' order, then those others. Against JSON and protobuf it is the
smallest and the quickest to read, and whole frames are packed without an object a value. The layout names its
fields: rows that were written before a field came or went stay readable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.online_bytes import fixed, joined, sizes, texts, with_size

Kind = Literal["int32", "int64", "float", "double", "bool", "string", "bytes", "value"]
"""What a field holds; ``value`` is any other of Feast's types, as the bytes of its message."""
KeyKind = Literal["string", "bytes", "int32", "int64", "timestamp"]
Fields = tuple[tuple[str, Kind], ...]

_FIXED: Mapping[Kind, tuple[str, str, pl.DataType, object]] = {  # struct's, NumPy's, Polars', for a null
    "int32": ("i", "<i4", pl.Int32(), 0),
    "int64": ("q", "<i8", pl.Int64(), 0),
    "float": ("f", "<f4", pl.Float32(), 0.0),
    "double": ("d", "<f8", pl.Float64(), 0.0),
    "bool": ("?", "?", pl.Boolean(), False),
}
DTYPES: Mapping[Kind, pl.DataType] = {
    **{kind: dtype for kind, (_, _, dtype, _) in _FIXED.items()},
    "string": pl.String(),
    "bytes": pl.Binary(),
}
"""What a frame's columns are before they are packed."""
# The number of the type in Feast's messages, struct's and NumPy's codes of those of fixed size.
_KEYS: Mapping[KeyKind, tuple[int, str, str]] = {
    "bytes": (1, "", ""),
    "string": (2, "", ""),
    "int32": (3, "<i", "<i4"),
    "int64": (4, "<q", "<i8"),
    "timestamp": (8, "<q", "<i8"),
}
_STRING = 2
_NUMBER = struct.Struct("<I")
_TWO = struct.Struct("<II")


class Layout:
    """How the values of one set of fields stand in a row.

    :param number: of the layout in its store, with which its rows begin
    """

    def __init__(self, number: int, fields: Fields) -> None:
        self.number = number
        self.fields = fields
        self.names = tuple(name for name, _ in fields)
        self._no_nulls = bytes((len(fields) + 7) // 8)
        codes = "".join(_FIXED[kind][0] if kind in _FIXED else "I" for _, kind in fields)
        self._struct = struct.Struct(f"<I{len(self._no_nulls)}s{codes}")
        self._variable = [(at, kind) for at, (_, kind) in enumerate(fields) if kind not in _FIXED]
        columns = [
            (f"{at}", _FIXED[kind][1] if kind in _FIXED else "<u4") for at, (_, kind) in enumerate(fields)
        ]
        self._table = np.dtype([("layout", "<u4"), ("nulls", "u1", (len(self._no_nulls),)), *columns])

    @staticmethod
    def number_of(row: bytes) -> int:
        """The number of the layout that a row has."""
        number: int = _NUMBER.unpack_from(row)[0]
        return number

    def pack(self, values: Sequence[Any]) -> bytes:
        """One row; values in the fields' order, None for null, messages as bytes."""
        nulls, tail = 0, []
        fixed: list[Any] = []
        for at, ((_, kind), value) in enumerate(zip(self.fields, values, strict=True)):
            if value is None:
                nulls |= 1 << at
            if kind in _FIXED:
                fixed.append(_FIXED[kind][3] if value is None else value)
                continue
            part = b"" if value is None else value.encode() if kind == "string" else value
            fixed.append(len(part))
            tail.append(part)
        marks = nulls.to_bytes(len(self._no_nulls), "little")
        return self._struct.pack(self.number, marks, *fixed) + b"".join(tail)

    def pack_frame(self, frame: pl.DataFrame) -> pa.Array:
        """A row for each of the frame's; it has a column a field, of :data:`DTYPES`, messages as binary."""
        table = np.zeros(frame.height, self._table)
        table["layout"] = self.number
        tails = []
        for at, (name, kind) in enumerate(self.fields):
            column = frame[name]
            absent = column.is_null().to_numpy().astype(np.uint8)
            table["nulls"][:, at >> 3] |= absent << (at & 7)
            if kind in _FIXED:
                table[f"{at}"] = column.fill_null(_FIXED[kind][3]).to_numpy()
            else:
                tails.append(texts(column))
                table[f"{at}"] = sizes(tails[-1])
        return joined(fixed(table), *tails)

    def unpack(self, row: bytes, of_message: Callable[[bytes], Any]) -> list[Any]:
        """The values in the fields' order; ``of_message`` makes one of a message's bytes."""
        _, nulls, *values = self._struct.unpack_from(row)
        end = self._struct.size
        for at, kind in self._variable:
            start, end = end, end + values[at]
            values[at] = row[start:end]
            if kind == "string":
                values[at] = str(values[at], "utf-8")
            elif kind == "value" and end > start:
                values[at] = of_message(values[at])
        if nulls != self._no_nulls:
            for at in range(len(values)):
                if nulls[at >> 3] >> (at & 7) & 1:
                    values[at] = None
        return values


class EntityKeys:
    """Packs entity keys as Feast serialises them, in version 3.

    :param kinds: join key → kind of its values
    """

    def __init__(self, kinds: Mapping[str, KeyKind]) -> None:
        self.names = tuple(sorted(kinds))
        names = [name.encode() for name in self.names]
        head = _NUMBER.pack(len(names)) + b"".join(_TWO.pack(_STRING, len(name)) + name for name in names)
        self._parts: list[tuple[bytes, KeyKind]] = []
        for name in self.names:
            number, code, _ = _KEYS[kinds[name]]
            size = _NUMBER.pack(struct.calcsize(code)) if code else b""
            self._parts.append((head + _NUMBER.pack(number) + size, kinds[name]))
            head = b""
        self._none = head

    def pack(self, values: Sequence[Any]) -> bytes:
        """One key; values in the order of ``names``.

        :raises ValueError: a number is out of range. Retry: no.
        """
        packed = self._none
        for (head, kind), value in zip(self._parts, values, strict=True):
            code = _KEYS[kind][1]
            if code:
                try:
                    packed += head + struct.pack(code, value)
                except struct.error as error:
                    raise ValueError(f"{value!r} is no {kind}: {error}") from error
            else:
                part = value.encode() if kind == "string" else value
                packed += head + _NUMBER.pack(len(part)) + part
        return packed

    def pack_frame(self, frame: pl.DataFrame) -> pa.Array:
        """A key for each of the frame's rows; it has a column a join key, without nulls."""
        if not self.names:
            return pa.repeat(pa.scalar(self._none, pa.large_binary()), frame.height)
        parts: list[pa.Array | bytes] = []
        for name, (head, kind) in zip(self.names, self._parts, strict=True):
            code = _KEYS[kind][2]
            if code:
                numbers = frame[name].cast(pl.Int32 if kind == "int32" else pl.Int64)
                parts += [head, fixed(numbers.to_numpy().astype(code))]
            else:
                parts += [head, *with_size(texts(frame[name]))]
        return joined(*parts)
