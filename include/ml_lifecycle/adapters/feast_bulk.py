"""Feature rows into any online store in bulk; in all of them the newest event stays.

Our own store and Redis are given bytes that are made from whole columns, without an object a value. Every
other store is written through Feast's ``online_write_batch``, guarded by a read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import polars as pl
from feast import FeatureStore, FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values

from ml_lifecycle.adapters.feast_online import (
    PackedSqliteOnlineStore,
    PackedSqliteOnlineStoreConfig,
    fields_of,
    keys_of,
    microseconds,
    table_name,
)
from ml_lifecycle.adapters.feast_store import source_columns
from ml_lifecycle.adapters.online_rows import DTYPES, Kind
from ml_lifecycle.errors import FeatureError

EVENT, CREATED = "__event", "__created"
_TIMESTAMP = pl.Datetime("us", "UTC")
_PACKED_ROWS = 100_000  # a transaction's; some 50 MiB
_GUARDED_ROWS = 10_000
_SKEW = timedelta(minutes=1)  # clocks of two machines differ


class BulkWriter(Protocol):
    """Writes rows to one online store."""

    def write(self, view: FeatureView, rows: pl.DataFrame) -> None:
        """Write a registered view's rows, as :func:`rows_of` makes them; what is newer already stays."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def bulk_writer(config: RepoConfig) -> BulkWriter:
    """The quickest writer for the repository's online store."""
    if isinstance(config.online_store, PackedSqliteOnlineStoreConfig):
        return _PackedWriter(config)
    if config.online_store.type == "redis" and config.online_store.redis_type != "redis_cluster":
        from ml_lifecycle.adapters.feast_redis import RedisWriter

        return RedisWriter(config)
    return _GuardedWriter(config)


def stored_views(store: FeatureStore) -> list[FeatureView]:
    """The registered views that go into the online store, with the key that a view without entities has."""
    # Asked of the registry: a FeatureStore hides that key.
    return [view for view in store.registry.list_feature_views(store.project) if view.online]


def rows_of(view: FeatureView, table: pl.DataFrame, known_by: datetime | None = None) -> pl.DataFrame:
    """A registered view's rows out of its source's table, of each key the newest.

    :param known_by: when the rows were created, for a source that does not say it itself
    """
    source, in_source = view.batch_source, source_columns(view.batch_source)
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    created = source.created_timestamp_column
    rows = table.select(
        *(pl.col(in_source.get(key, key)).alias(key) for key in keys),
        *(_feature(pl.col(in_source.get(name, name)), kind).alias(name) for name, kind in fields_of(view)),
        pl.col(source.timestamp_field).cast(_TIMESTAMP).alias(EVENT),
        (pl.col(created) if created else pl.lit(known_by)).cast(_TIMESTAMP).alias(CREATED),
    )
    rows = rows.drop_nulls([*keys, EVENT])
    if keys and rows.select(keys).n_unique() == rows.height:
        return rows
    rows = rows.sort(EVENT, CREATED, maintain_order=True, nulls_last=False)
    if keys:
        return rows.unique(keys, keep="last", maintain_order=True)
    return rows.tail(1).with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


def _feature(column: pl.Expr, kind: Kind) -> pl.Expr:
    return column.cast(DTYPES[kind]) if kind in DTYPES else column


def materialise(
    store: FeatureStore, start: datetime, end: datetime, clock: Callable[[], float] = time.time
) -> dict[str, int]:
    """Write all views' newest rows of a window from the offline into the online store, both ends included.

    Windows may come in any order and be repeated, and nobody's reads stop meanwhile: Feast's registry is
    not told.

    :param clock: seconds since 1970
    :return: view → rows
    :raises FeatureError: the window is reversed, or ends in the future. Retry: no.
    """
    check_window(start, end, clock)
    config, written = store.config, {}
    offline = get_offline_store_from_config(config.offline_store)
    with contextlib.closing(bulk_writer(config)) as writer:
        for view in stored_views(store):
            source, in_source = view.batch_source, source_columns(view.batch_source)
            keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
            job = offline.pull_latest_from_table_or_query(
                config=config,
                data_source=source,
                join_key_columns=[in_source.get(key, key) for key in keys],
                feature_name_columns=[in_source.get(field.name, field.name) for field in view.features],
                timestamp_field=source.timestamp_field,
                created_timestamp_column=source.created_timestamp_column or None,
                start_date=start,
                end_date=end,
            )
            rows = rows_of(view, pl.DataFrame(pl.from_arrow(job.to_arrow())))
            writer.write(view, rows)
            written[view.name] = rows.height
    return written


def check_window(start: datetime | None, end: datetime, clock: Callable[[], float]) -> None:
    """Refuse a window that ends in the future or before it begins.

    A store that was told of the future would take what comes later for old.

    :raises FeatureError: so it is. Retry: no.
    """
    now = datetime.fromtimestamp(clock(), UTC)
    if end > now + _SKEW:
        raise FeatureError(f"the window to be materialised ends in the future: {end}; it is {now}")
    if start is not None and start > end:
        raise FeatureError(f"the window to be materialised is reversed: from {start} to {end}")


class _PackedWriter:
    """Our own store: keys and values are packed and handed to SQLite."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._online = PackedSqliteOnlineStore()

    def write(self, view: FeatureView, rows: pl.DataFrame) -> None:
        if rows.is_empty():
            return
        file, table = self._online.file(self._config), table_name(self._config, view)
        keys, layout = keys_of(view), file.layout(fields_of(view))
        order = keys.order(rows)  # in which SQLite writes each of its pages once
        for first in range(0, rows.height, _PACKED_ROWS):
            part = rows[order.slice(first, _PACKED_ROWS)]
            packed = layout.pack_frame(with_messages(view, part))
            events, created = (part[name].to_physical().to_list() for name in (EVENT, CREATED))
            file.write(table, zip(keys.pack_frame(part), events, created, packed, strict=True))

    def close(self) -> None:
        asyncio.run(self._online.close())


class _GuardedWriter:
    """Any other store, by Feast's own calls; of two that write at the same time either may be the last."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._online = get_online_store_from_config(config.online_store)

    def write(self, view: FeatureView, rows: pl.DataFrame) -> None:
        types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        fields = dict(fields_of(view))
        for part in rows.iter_slices(_GUARDED_ROWS):
            columns = [
                python_values_to_proto_values(part[name].to_list(), one) for name, one in types.items()
            ]
            keys = [
                EntityKey(join_keys=[*types], entity_values=values) for values in zip(*columns, strict=True)
            ]
            stored = self._online.online_read(self._config, view, keys, [*fields])
            messages = {name: values_of(view, part, name) for name in fields}
            features = [dict(zip(messages, row, strict=True)) for row in zip(*messages.values(), strict=True)]
            data = [
                (key, values, event, created)
                for key, values, event, created, (before, _) in zip(
                    keys, features, part[EVENT], part[CREATED], stored, strict=True
                )
                if before is None or microseconds(event) >= microseconds(before)
            ]
            if data:
                self._online.online_write_batch(self._config, view, data, None)

    def close(self) -> None:
        asyncio.run(self._online.close())


def values_of(view: FeatureView, rows: pl.DataFrame, name: str) -> list[Value]:
    """A column as Feast's messages; unlike in Feast's own conversion NaN stays apart from null."""
    kind = dict(fields_of(view))[name]
    if kind == "value":
        types = {field.name: field.dtype.to_value_type() for field in view.features}
        return list(python_values_to_proto_values(rows[name].to_list(), types[name]))
    return [Value() if one is None else Value(**{f"{kind}_val": one}) for one in rows[name].to_list()]


def with_messages(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """Columns of types that only Feast knows as its messages' bytes."""
    packed = [
        pl.Series(
            name,
            [message.SerializeToString() or None for message in values_of(view, rows, name)],
            pl.Binary,
        )
        for name, kind in fields_of(view)
        if kind == "value"
    ]
    return rows.with_columns(packed)
