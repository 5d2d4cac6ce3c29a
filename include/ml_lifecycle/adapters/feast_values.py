"""Columns of a feature view as Feast's Value messages."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import pyarrow as pa
from feast import FeatureView, ValueType
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values

from ml_lifecycle.adapters.feast_online import fields_of
from ml_lifecycle.adapters.online_bytes import Scalar, are_exact, list_messages, messages

_TIMESTAMP = pl.Datetime("us", "UTC")
_LISTS: Mapping[ValueType, tuple[Scalar, pl.DataType]] = {
    ValueType.BYTES_LIST: ("bytes", pl.Binary()),
    ValueType.STRING_LIST: ("string", pl.String()),
    ValueType.INT32_LIST: ("int32", pl.Int32()),
    ValueType.INT64_LIST: ("int64", pl.Int64()),
    ValueType.DOUBLE_LIST: ("double", pl.Float64()),
    ValueType.FLOAT_LIST: ("float", pl.Float32()),
    ValueType.BOOL_LIST: ("bool", pl.Boolean()),
    ValueType.UNIX_TIMESTAMP_LIST: ("timestamp", _TIMESTAMP),
}


def values_of(view: FeatureView, rows: pl.DataFrame, name: str) -> list[Value]:
    """A column as Feast's messages; unlike in Feast's own conversion NaN stays apart from null."""
    kind = dict(fields_of(view))[name]
    if kind == "value":
        types = {field.name: field.dtype.to_value_type() for field in view.features}
        return list(python_values_to_proto_values(rows[name].to_list(), types[name]))
    return [Value() if one is None else Value(**{f"{kind}_val": one}) for one in rows[name].to_list()]


def with_messages(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """Columns of types that only Feast knows as its messages' bytes; null where there are none."""
    types = {field.name: field.dtype.to_value_type() for field in view.features}
    packed = []
    for name in (name for name, kind in fields_of(view) if kind == "value"):
        column = _whole(rows[name], types[name])
        if column is None:
            made = [message.SerializeToString() or None for message in values_of(view, rows, name)]
            column = pl.Series(name, made, pl.Binary)
        packed.append(column)
    return rows.with_columns(packed)


def _whole(column: pl.Series, value_type: ValueType) -> pl.Series | None:
    """Made of the whole column, if its values are just what Feast would take them for."""
    made: pa.Array
    if value_type == ValueType.UNIX_TIMESTAMP and column.dtype == _TIMESTAMP and are_exact(column):
        made = messages(column, "timestamp")
    elif value_type in _LISTS and column.dtype == pl.List(_LISTS[value_type][1]):
        elements = column.drop_nulls().explode(empty_as_null=False)
        if elements.null_count() or (elements.dtype == _TIMESTAMP and not are_exact(elements)):
            return None
        made = list_messages(column, _LISTS[value_type][0])
    else:
        return None
    packed = pl.DataFrame({column.name: pl.Series(made, dtype=pl.Binary)})
    return packed.select(pl.when(~column.is_null()).then(pl.col(column.name)))[column.name]
