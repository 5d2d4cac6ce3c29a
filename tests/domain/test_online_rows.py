"""The bytes of keys and rows: keys as Feast serialises them, rows that give back what was put in."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from ml_lifecycle.adapters.online_rows import DTYPES, EntityKeys, Fields, KeyKind, Kind, Layout

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
KEYS: dict[KeyKind, tuple[st.SearchStrategy[Any], pl.DataType, str]] = {
    "string": (TEXT, pl.String(), "string_val"),
    "bytes": (st.binary(max_size=300), pl.Binary(), "bytes_val"),
    "int32": (INT32, pl.Int32(), "int32_val"),
    "int64": (INT64, pl.Int64(), "int64_val"),
    "timestamp": (INT64, pl.Int64(), "unix_timestamp_val"),
}
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    "int32": INT32,
    "int64": INT64,
    "float": st.floats(width=32),
    "double": st.floats(),
    "bool": st.booleans(),
    "string": TEXT,
    "bytes": st.binary(max_size=300),
    "value": st.binary(min_size=1, max_size=300),
}


@st.composite
def keys(draw: Callable[..., Any]) -> tuple[dict[str, KeyKind], list[tuple[Any, ...]]]:
    """Join keys with their kinds, and rows of values in the order of the names as given."""
    kinds = draw(st.dictionaries(TEXT, st.sampled_from(list(KEYS)), max_size=3))
    row = st.tuples(*(KEYS[kind][0] for kind in kinds.values()))
    return kinds, draw(st.lists(row, min_size=1, max_size=5))


@given(keys())
def test_keys_are_those_of_feast(drawn: tuple[dict[str, KeyKind], list[tuple[Any, ...]]]) -> None:
    kinds, rows = drawn
    names = [*kinds]
    expected = [
        serialize_entity_key(
            EntityKey(
                join_keys=names,
                entity_values=[
                    Value(**{KEYS[kind][2]: value}) for kind, value in zip(kinds.values(), row, strict=True)
                ],
            ),
            3,
        )
        for row in rows
    ]
    packing = EntityKeys(kinds)
    in_order = [[row[names.index(name)] for name in packing.names] for row in rows]
    assert [packing.pack(row) for row in in_order] == expected
    if names:
        schema = {name: KEYS[kind][1] for name, kind in kinds.items()}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        assert packing.pack_frame(frame).to_pylist() == expected


def test_a_number_out_of_range_is_said() -> None:
    with pytest.raises(ValueError, match="2147483648 is no int32"):
        EntityKeys({"id": "int32"}).pack([2**31])


@st.composite
def rows(draw: Callable[..., Any]) -> tuple[Fields, list[list[Any]]]:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), max_size=20))
    fields = tuple((f"f{number}", kind) for number, kind in enumerate(kinds))
    row = st.tuples(*(st.none() | VALUES[kind] for kind in kinds)).map(list)
    return fields, draw(st.lists(row, min_size=1, max_size=5))


def alike(one: Any, other: Any) -> bool:
    """Equal, to the bit where they are floats: NaN is NaN, and -0 is not 0."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


@given(rows())
def test_a_row_gives_back_what_was_put_in(drawn: tuple[Fields, list[list[Any]]]) -> None:
    fields, values = drawn
    layout = Layout(7, fields)
    packed = [layout.pack(row) for row in values]
    assert {Layout.number_of(row) for row in packed} == {7}
    for row, expected in zip(packed, values, strict=True):
        found = layout.unpack(row, bytes)
        assert all(map(alike, found, expected)), (found, expected)
        assert len(found) == len(expected)
    if fields:
        schema = {name: DTYPES.get(kind, pl.Binary()) for name, kind in fields}
        frame = pl.DataFrame(values, schema=schema, orient="row")
        unpacked = [layout.unpack(row, bytes) for row in layout.pack_frame(frame).to_pylist()]
        assert all(alike(*pair) for pairs in map(zip, unpacked, values) for pair in pairs)


def test_null_nan_and_nothing_at_all_stay_apart() -> None:
    layout = Layout(1, (("number", "float"), ("text", "string"), ("message", "value")))
    for row in ([None, None, None], [math.nan, "", b"x"], [0.0, None, None]):
        assert all(map(alike, layout.unpack(layout.pack(row), bytes), row))
