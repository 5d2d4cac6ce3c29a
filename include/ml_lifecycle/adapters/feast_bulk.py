"""Feature rows into any online store in bulk; in all of them the newest event stays.

Our own store and Redis are given bytes that are made from whole columns, without an object a value, while
those made before are being written. Every other store is written through Feast's ``online_write_batch``,
guarded by a read. No more than a few parts of the rows are held at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import polars as pl
from feast import FeatureStore, FeatureView, RepoConfig, ValueType
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values

from ml_lifecycle.adapters.feast_online import (
    PackedSqliteOnlineStore,
    PackedSqliteOnlineStoreConfig,
    fields_of,
    keys_of,
    microseconds,
    table_name,
)
from ml_lifecycle.adapters.feast_retrieval import AsOfRetrievalJob
from ml_lifecycle.adapters.feast_store import source_columns, time_columns
from ml_lifecycle.adapters.feast_values import values_of, with_messages
from ml_lifecycle.adapters.newest import changed, newest
from ml_lifecycle.adapters.online_file import PackedRow
from ml_lifecycle.adapters.online_rows import DTYPES
from ml_lifecycle.errors import FeatureError

EVENT, CREATED = "__event", "__created"
_TIMESTAMP = pl.Datetime("us", "UTC")
_PACKED_ROWS = 25_000  # a transaction's
_GUARDED_ROWS = 10_000
_SKEW = timedelta(minutes=1)  # clocks of two machines differ
_KEY_TYPES = {
    ValueType.STRING: pl.String(),
    ValueType.BYTES: pl.Binary(),
    ValueType.INT32: pl.Int32(),
    ValueType.INT64: pl.Int64(),
}

Item = TypeVar("Item")


class BulkWriter(Protocol):
    """Writes rows to one online store."""

    def write(self, view: FeatureView, parts: Iterable[pl.DataFrame]) -> None:
        """Write a registered view's rows, as :func:`rows_of` makes them; what is newer already stays.

        Within a part there is one row a key. They are written quickest in the order of their keys.
        """
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


def rows_of(view: FeatureView, table: pl.LazyFrame, known_by: datetime | None = None) -> pl.LazyFrame:
    """A registered view's rows out of its source's table.

    :param known_by: when the rows were created, for a source that does not say it itself
    """
    source, in_source = view.batch_source, source_columns(view.batch_source)
    keys, (event, created) = _key_types(view), time_columns(source)
    rows = table.select(
        *(_cast(pl.col(in_source.get(key, key)), dtype).alias(key) for key, dtype in keys.items()),
        *(
            _cast(pl.col(in_source.get(name, name)), DTYPES.get(kind)).alias(name)
            for name, kind in fields_of(view)
        ),
        pl.col(event).cast(_TIMESTAMP).alias(EVENT),
        (pl.col(created) if created else pl.lit(known_by)).cast(_TIMESTAMP).alias(CREATED),
    ).drop_nulls([*keys, EVENT])
    return rows if keys else rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


def newest_rows(
    view: FeatureView, rows: pl.LazyFrame, known: pl.LazyFrame | None = None
) -> Iterator[pl.DataFrame]:
    """Of each key the newest of a view's rows, part by part.

    :param known: rows of which those that are the newest in it too are left out
    """
    keys, order = [*_key_types(view)] or [DUMMY_ENTITY_ID], (EVENT, CREATED)
    return newest(rows, keys, order) if known is None else changed(rows, known, keys, order)


def _key_types(view: FeatureView) -> dict[str, pl.DataType | None]:
    """The columns of a registered view's keys; none for a view without entities."""
    return {
        column.name: _KEY_TYPES.get(column.dtype.to_value_type())
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    }


def _cast(column: pl.Expr, dtype: pl.DataType | None) -> pl.Expr:
    return column if dtype is None else column.cast(dtype)


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
            event, created = time_columns(source)
            job = offline.pull_latest_from_table_or_query(
                config=config,
                data_source=source,
                join_key_columns=[in_source.get(key, key) for key in _key_types(view)],
                feature_name_columns=[in_source.get(field.name, field.name) for field in view.features],
                timestamp_field=event,
                created_timestamp_column=created,
                start_date=start,
                end_date=end,
            )
            tables = job.slices() if isinstance(job, AsOfRetrievalJob) else [job.to_arrow()]
            frames = (pl.DataFrame(pl.from_arrow(table)) for table in tables)
            counted = _Counted(rows_of(view, frame.lazy()).collect() for frame in frames)
            writer.write(view, counted)
            written[view.name] = counted.rows
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


class _Counted:
    """Parts, and how many rows they had."""

    def __init__(self, parts: Iterable[pl.DataFrame]) -> None:
        self._parts = parts
        self.rows = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for part in self._parts:
            self.rows += part.height
            yield part


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items; while one is in use another thread makes the next."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = maker.submit(next, items, None)
            yield item


class _PackedWriter:
    """Our own store: keys and values are packed and handed to SQLite."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._online = PackedSqliteOnlineStore()

    def write(self, view: FeatureView, parts: Iterable[pl.DataFrame]) -> None:
        file, table = self._online.file(self._config), table_name(self._config, view)
        keys, layout = keys_of(view), file.layout(fields_of(view))

        def packed() -> Iterator[list[PackedRow]]:
            for part in parts:
                for rows in part.iter_slices(_PACKED_ROWS):
                    moments = (rows[name].to_physical().to_list() for name in (EVENT, CREATED))
                    values = layout.pack_frame(with_messages(view, rows)).to_pylist()
                    yield list(zip(keys.pack_frame(rows).to_pylist(), *moments, values, strict=True))

        with contextlib.closing(ahead(packed())) as batches:
            for batch in batches:
                file.write(table, batch)

    def close(self) -> None:
        asyncio.run(self._online.close())


class _GuardedWriter:
    """Any other store, by Feast's own calls; of two that write at the same time either may be the last."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._online = get_online_store_from_config(config.online_store)

    def write(self, view: FeatureView, parts: Iterable[pl.DataFrame]) -> None:
        for rows in parts:
            for part in rows.iter_slices(_GUARDED_ROWS):
                self._write(view, part)

    def _write(self, view: FeatureView, part: pl.DataFrame) -> None:
        types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        fields = dict(fields_of(view))
        columns = [python_values_to_proto_values(part[name].to_list(), one) for name, one in types.items()]
        keys = [EntityKey(join_keys=[*types], entity_values=values) for values in zip(*columns, strict=True)]
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
