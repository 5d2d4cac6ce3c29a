"""Messages made of whole columns are, byte for byte, what Feast's own classes serialise to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ml_lifecycle.adapters.feast_online import fields_of
from ml_lifecycle.adapters.feast_values import values_of, with_messages
from ml_lifecycle.adapters.online_bytes import (
    data,
    joined,
    messages,
    sizes,
    texts,
    timestamps,
    varint,
    varints,
)

TIME = pl.Datetime("us", "UTC")
MOMENT = st.datetimes(timezones=st.just(UTC))
TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS: dict[FeastType, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    Int32: (pl.Int32(), st.integers(-(2**31), 2**31 - 1)),
    Int64: (pl.Int64(), INT64),
    Float32: (pl.Float32(), st.floats(width=32, allow_nan=False)),
    Float64: (pl.Float64(), st.floats(allow_nan=False)),
    Bool: (pl.Boolean(), st.booleans()),
    String: (pl.String(), TEXT),
    Bytes: (pl.Binary(), st.binary(max_size=300)),
    UnixTimestamp: (TIME, MOMENT),
}


def view_of(dtype: FeastType) -> FeatureView:
    entity = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    source = FileSource(name="rows", path="rows.parquet", timestamp_field="event_timestamp")
    return FeatureView(
        name="view", entities=[entity], schema=[Field(name="value", dtype=dtype)], source=source
    )


def expected(values: list[Any], dtype: FeastType) -> list[bytes]:
    found = python_values_to_proto_values(values, dtype.to_value_type())
    return [message.SerializeToString() for message in found]


@pytest.mark.parametrize("dtype", [dtype for dtype in SCALARS if dtype != UnixTimestamp], ids=str)
@given(st.data())
def test_a_scalar_is_as_feast_writes_it(dtype: FeastType, drawn: st.DataObject) -> None:
    polars, strategy = SCALARS[dtype]
    values = drawn.draw(st.lists(st.one_of(st.none(), strategy), max_size=6))
    ((_, kind),) = fields_of(view_of(dtype))
    assert kind != "value"
    column = pl.Series("value", values, polars)
    # Of a column of nothing but b"" Feast makes nulls.
    theirs = expected([*values, b"x"], dtype)[:-1] if dtype == Bytes else expected(values, dtype)
    assert messages(column, kind).to_pylist() == theirs
    one_by_one = values_of(view_of(dtype), column.to_frame(), "value")
    assert [message.SerializeToString() for message in one_by_one] == theirs


@pytest.mark.parametrize("dtype", [UnixTimestamp, *(Array(dtype) for dtype in SCALARS)], ids=str)
@given(st.data())
def test_lists_and_times_are_as_feast_writes_them(dtype: FeastType, drawn: st.DataObject) -> None:
    base = dtype.base_type if isinstance(dtype, Array) else dtype
    polars, strategy = SCALARS[base]
    if isinstance(dtype, Array):
        # One list in some has a null in it, for which Feast puts a value of its own.
        nulls = st.one_of(strategy, st.none()) if drawn.draw(st.integers(0, 9)) == 0 else strategy
        strategy, polars = st.lists(nulls, max_size=4), pl.List(polars)
    values = drawn.draw(st.lists(st.one_of(st.none(), strategy), max_size=6))
    packed = with_messages(view_of(dtype), pl.DataFrame({"value": pl.Series(values, dtype=polars)}))
    assert packed["value"].to_list() == [message or None for message in expected(values, dtype)]


def test_nan_stays_apart_from_null() -> None:
    column = pl.Series([float("nan"), None], dtype=pl.Float64)
    nan, null = messages(column, "double").to_pylist()
    assert Value.FromString(nan).WhichOneof("val") == "double_val"
    assert null == b""


@given(st.lists(MOMENT, max_size=6))
def test_events_are_timestamp_messages(moments: list[datetime]) -> None:
    made = []
    for moment in moments:
        message = Timestamp()
        message.FromDatetime(moment)
        made.append(message.SerializeToString())
    assert timestamps(pl.Series(moments, dtype=TIME)).to_pylist() == made


@given(st.lists(INT64, max_size=6))
def test_whole_numbers_are_varints(numbers: list[int]) -> None:
    column = pl.Series(numbers, dtype=pl.Int64)
    assert varints(column.to_numpy()).to_pylist() == [varint(number % 2**64) for number in numbers]


def test_a_slice_has_its_own_bytes() -> None:
    column = joined(texts(pl.Series(["a", "", "é", None])), b"|")
    assert bytes(data(column[1:3])) == b"|\xc3\xa9|"
    assert sizes(column[2:]).tolist() == [3, 1]
    assert bytes(data(column[:0])) == b""


def test_a_moment_that_is_no_whole_float_is_left_to_feast() -> None:
    late = datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)
    values = [late, late - timedelta(days=3_000_000), None]
    packed = with_messages(view_of(UnixTimestamp), pl.DataFrame({"value": pl.Series(values, dtype=TIME)}))
    assert packed["value"].to_list() == [message or None for message in expected(values, UnixTimestamp)]
