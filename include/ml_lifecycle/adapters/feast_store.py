"""A Feast offline store over Parquet files that joins as of a moment, with Polars.

Feast finds it by its class path in the RepoConfig. Unlike the stock file store it keeps every entity row,
in order: a value that is missing, or older than the view's time to live, is null. Of rows with the same key
and event time the one created last counts, without a created timestamp the later one in the file.

As everywhere in Feast a value counts from its event time on, that instant included, and a range includes
both its ends. Times are compared in microseconds.

Neither the entity rows nor the views' tables nor the result need fit into memory, if the entity rows are
handed in as a Parquet file and the result goes to one: :mod:`.as_of` cuts the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureView, FileSource, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import (
    _get_requested_feature_views_to_features_dict,
    _get_requested_on_demand_feature_views,
)

from ml_lifecycle.adapters.as_of import TIMESTAMP, Table, batches, in_microseconds, join_as_of
from ml_lifecycle.adapters.feast_frame import EntityFrame
from ml_lifecycle.adapters.feast_retrieval import AsOfRetrievalJob, replacing
from ml_lifecycle.adapters.newest import newest
from ml_lifecycle.adapters.parquet import COMPRESSION, COMPRESSION_LEVEL, ROW_GROUP_ROWS
from ml_lifecycle.errors import FeatureError


class AsOfOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast has no types
    """What RepoConfig validates the offline store's section with."""

    type: Literal["ml_lifecycle.adapters.feast_store.AsOfOfflineStore"] = (
        "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"
    )


class AsOfOfflineStore(OfflineStore):  # type: ignore[misc]  # Feast has no types
    """Feast's offline store interface over Parquet ``FileSource``s."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """The features of each row of ``entity_df`` as of its event timestamp.

        :param entity_df: a pandas data frame, or the path or URI of Parquet with the same columns: what SQL
            stores take as a query. A path may be relative to the repository, and need not fit into memory
        :raises FeatureError: neither of them, no event timestamp, or a column is missing. Retry: no.
        """
        if isinstance(entity_df, pd.DataFrame):
            columns, times = [*entity_df.columns], [*entity_df.select_dtypes(["datetime", "datetimetz"])]
        else:
            scanned = _scan_entities(entity_df, config)
            schema = scanned.collect_schema()
            columns, times = schema.names(), [name for name, kind in schema.items() if kind == pl.Datetime]
        moment = _event_timestamp_column(columns, times)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        for view in on_demand:
            if missing := sorted(view.get_request_data_schema().keys() - set(columns)):
                raise FeatureError(f"on-demand view {view.name!r} needs the entity columns {missing}")
        requested, _ = _get_requested_feature_views_to_features_dict(
            feature_refs,
            feature_views,
            _get_requested_on_demand_feature_views(feature_refs, project, registry),
        )

        def slices() -> Iterator[pa.Table]:
            tables = []
            for view, features in requested.items():
                prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""
                tables.append(_table(view, {name: prefix + name for name in features}, config))
            if isinstance(entity_df, pd.DataFrame):
                return _join_frame(entity_df, moment, tables)
            return map(_old_types, join_as_of(scanned, moment, tables))

        def metadata() -> RetrievalMetadata:
            if isinstance(entity_df, pd.DataFrame):
                span = entity_df[moment].min(), entity_df[moment].max()
            else:
                bounds = pl.col(moment).min().alias("first"), pl.col(moment).max().alias("last")
                span = scanned.select(bounds).collect().row(0)
            return RetrievalMetadata(feature_refs, [name for name in columns if name != moment], *span)

        return AsOfRetrievalJob(slices, config.repo_path, full_feature_names, on_demand, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each key, of ``start_date <= event time <= end_date``; see :mod:`.newest`."""
        order = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        columns = [*join_key_columns, *feature_name_columns, *order]

        def slices() -> Iterator[pa.Table]:
            rows = _between(_scan(data_source, config, columns), timestamp_field, start_date, end_date)
            for part in newest(rows, join_key_columns, order):
                yield _old_types(_with_dummy(part, join_key_columns))

        return AsOfRetrievalJob(slices, config.repo_path)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows within ``start_date <= event time <= end_date``, as they are."""
        created = [created_timestamp_column] if created_timestamp_column else []
        columns = [*join_key_columns, *feature_name_columns, timestamp_field, *created]

        def slices() -> Iterator[pa.Table]:
            rows = _between(_scan(data_source, config, columns), timestamp_field, start_date, end_date)
            for batch in batches(rows):
                yield _old_types(_with_dummy(batch, join_key_columns))

        return AsOfRetrievalJob(slices, config.repo_path)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the file behind a view's source; readers see the old file or the new one."""
        path = Path(_path(feature_view.batch_source, config))
        rows = pl.DataFrame(pl.from_arrow(table)).lazy()
        if path.exists():
            old = pl.scan_parquet(path)
            schema = old.collect_schema()
            rows = pl.concat([old, rows.select(schema.names()).cast(schema)])
        with replacing(path) as temporary:
            rows.sink_parquet(
                temporary,
                compression=COMPRESSION,
                compression_level=COMPRESSION_LEVEL,
                row_group_size=ROW_GROUP_ROWS,
            )
        if progress:
            progress(table.num_rows)


def source_columns(source: DataSource) -> dict[str, str]:
    """Feast's name → the column's name in the source, where the two differ."""
    return {name: column for column, name in source.field_mapping.items()}


def time_columns(source: DataSource) -> tuple[str, str | None]:
    """The source's columns of event and created times; Feast takes either name of a mapped one."""
    in_source, created = source_columns(source), source.created_timestamp_column
    event = in_source.get(source.timestamp_field, source.timestamp_field)
    return event, in_source.get(created, created) or None


def _table(view: FeatureView, names: dict[str, str], config: RepoConfig) -> Table:
    """What a view's features are looked up in; ``names`` are theirs in the result."""
    source = view.batch_source
    in_source = source_columns(source)
    # A view's key may go by another name among the entity rows: the projection's join key map.
    keys = {
        view.projection.join_key_map.get(column.name, column.name): in_source.get(column.name, column.name)
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    }
    features = {result: in_source.get(name, name) for name, result in names.items()}
    event, created = time_columns(source)
    columns = [*keys.values(), *features.values(), event, *([created] if created else [])]
    rows = _scan(source, config, columns)
    return Table(f"feature view {view.name!r}", rows, keys, features, event, created, view.ttl or None)


def _join_frame(entity_df: pd.DataFrame, moment: str, tables: Sequence[Table]) -> Iterator[pa.Table]:
    """The entity rows with what was found; columns that nothing is looked up by never become Polars'."""
    frame = EntityFrame(entity_df, moment)
    asked = frame.keys([*dict.fromkeys([moment, *(key for table in tables for key in table.keys)])])
    features = [feature for table in tables for feature in table.features]
    first = 0
    for found in join_as_of(asked.lazy(), moment, tables, beside=frame.names):
        columns = [*frame.part(first, found.height), *_old_types(found.select(features)).columns]
        first += found.height
        yield pa.table(columns, names=[*frame.names, *features])


def _old_types(frame: pl.DataFrame) -> pa.Table:
    """With large_string rather than string_view: Feast's conversions know no others."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _event_timestamp_column(columns: Sequence[str], times: Sequence[str]) -> str:
    """Feast's rule: the column of that name, or the only one that holds times."""
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in columns:
        return str(DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)
    if len(times) != 1:
        raise FeatureError(
            f"entity_df needs a column {DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL!r}, or one with times; "
            f"columns with times: {[*times] or 'none'}"
        )
    return str(times[0])


def _scan_entities(entity_df: object, config: RepoConfig) -> pl.LazyFrame:
    if not isinstance(entity_df, str):
        raise FeatureError(
            "entity_df must be a pandas data frame or the path of a Parquet file, "
            f"not {type(entity_df).__name__}"
        )
    path = FileSource.get_uri_for_file_path(config.repo_path, entity_df)
    try:
        rows = pl.scan_parquet(path)
        rows.collect_schema()
    except FileNotFoundError as error:
        raise FeatureError(
            f"entity_df must be a pandas data frame or the path of a Parquet file; there is none at {path}"
        ) from error
    return rows


def _scan(source: DataSource | None, config: RepoConfig, columns: list[str]) -> pl.LazyFrame:
    path = _path(source, config)
    frame = pl.scan_parquet(path)
    present = frame.collect_schema().names()
    if missing := [column for column in columns if column not in present]:
        raise FeatureError(f"{path} lacks the columns {missing}; it has {present}")
    return frame.select([*dict.fromkeys(columns)])


def _path(source: DataSource | None, config: RepoConfig) -> str:
    if not isinstance(source, FileSource):
        raise FeatureError(f"this store reads Parquet FileSources, not {type(source).__name__}")
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.path))


def _between(
    rows: pl.LazyFrame, timestamp: str, start: datetime | None, end: datetime | None
) -> pl.LazyFrame:
    event = in_microseconds(timestamp, rows.collect_schema()[timestamp])
    rows = rows.filter(event.is_not_null())
    if start is not None:
        rows = rows.filter(event >= pl.lit(start).cast(TIMESTAMP))
    return rows if end is None else rows.filter(event <= pl.lit(end).cast(TIMESTAMP))


def _with_dummy(rows: pl.DataFrame, join_keys: list[str]) -> pl.DataFrame:
    """Feast keys the one row of a view without entities by a constant."""
    return rows if join_keys else rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
