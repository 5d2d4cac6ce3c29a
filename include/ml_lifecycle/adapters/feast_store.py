"""A Feast offline store over Parquet files that joins as of a moment, with Polars.

Feast finds it by its class path in the RepoConfig. Unlike the stock file store it keeps every entity row,
in order: a value that is missing, or older than the view's time to live, is null. Of rows with the same key
and event time the one created last counts, without a created timestamp the later one in the file.

As everywhere in Feast a value counts from its event time on, that instant included, and a range includes
both its ends. Times are compared in microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureView, FileSource, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import (
    _get_requested_feature_views_to_features_dict,
    _get_requested_on_demand_feature_views,
)

from ml_lifecycle.errors import FeatureError

_TIMESTAMP = pl.Datetime("us", "UTC")
_ROW, _EVENT, _CREATED, _MOMENT = "__row", "__event", "__created", "__moment"


class AsOfOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast has no types
    """What RepoConfig validates the offline store's section with."""

    type: Literal["ml_lifecycle.adapters.feast_store.AsOfOfflineStore"] = (
        "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"
    )


class AsOfRetrievalJob(RetrievalJob):  # type: ignore[misc]  # Feast has no types
    """A retrieval that runs when its result is asked for; on-demand views are computed by Feast's base."""

    def __init__(
        self,
        evaluate: Callable[[], pl.DataFrame],
        repo_path: Path | None,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._repo_path = repo_path
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views that are computed from the result."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for; None when a table was read as it is."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        # Old types, large_string rather than string_view: Feast's conversions know no others.
        return self._evaluate().to_arrow(compat_level=pl.CompatLevel.oldest())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Write the result, on-demand features included, as one Parquet file.

        :raises SavedDatasetLocationAlreadyExists: there is a file and it may not be overwritten. Retry: no.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise FeatureError(
                f"this store persists to SavedDatasetFileStorage, not {type(storage).__name__}"
            )
        uri = storage.file_options.uri
        path = Path(FileSource.get_uri_for_file_path(self._repo_path, uri))
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=uri)
        _write(pl.DataFrame(pl.from_arrow(self.to_arrow())), path)


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

        :raises FeatureError: no data frame, no event timestamp, or a column is missing. Retry: no.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise FeatureError(f"entity_df must be a pandas data frame, not {type(entity_df).__name__}")
        moment = _event_timestamp_column(entity_df)
        requested, _ = _get_requested_feature_views_to_features_dict(
            feature_refs,
            feature_views,
            _get_requested_on_demand_feature_views(feature_refs, project, registry),
        )

        def evaluate() -> pl.DataFrame:
            rows = pl.from_pandas(entity_df).with_columns(
                pl.int_range(pl.len()).alias(_ROW), _in_microseconds(pl.col(moment)).alias(_MOMENT)
            )
            rows = rows.sort(_MOMENT, maintain_order=True)
            for view, features in requested.items():
                prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""
                rows = _join_as_of(rows, view, {name: prefix + name for name in features}, config)
            return rows.sort(_ROW).drop(_ROW, _MOMENT)

        return AsOfRetrievalJob(
            evaluate,
            config.repo_path,
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in entity_df.columns if column != moment],
                min_event_timestamp=entity_df[moment].min(),
                max_event_timestamp=entity_df[moment].max(),
            ),
        )

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
        """The newest row of each key within ``start_date <= event time <= end_date``."""

        def evaluate() -> pl.DataFrame:
            columns = _columns(
                join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column
            )
            rows = _between(_scan(data_source, config, columns), timestamp_field, start_date, end_date)
            order = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
            rows = rows.sort(order, maintain_order=True, nulls_last=False)
            if join_key_columns:
                return _with_dummy(
                    rows.unique(join_key_columns, keep="last", maintain_order=True), join_key_columns
                ).collect()
            return _with_dummy(rows.tail(1), join_key_columns).collect()

        return AsOfRetrievalJob(evaluate, config.repo_path)

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

        def evaluate() -> pl.DataFrame:
            columns = _columns(
                join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column
            )
            rows = _between(_scan(data_source, config, columns), timestamp_field, start_date, end_date)
            return _with_dummy(rows, join_key_columns).collect()

        return AsOfRetrievalJob(evaluate, config.repo_path)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the file behind a view's source; readers see the old file or the new one."""
        path = Path(_path(feature_view.batch_source, config))
        new = pl.DataFrame(pl.from_arrow(table))
        if path.exists():
            old = pl.read_parquet(path)
            new = pl.concat([old, new.select(old.columns).cast(old.schema)])
        _write(new, path)
        if progress:
            progress(table.num_rows)


def source_columns(source: DataSource) -> dict[str, str]:
    """Feast's name → the column's name in the source, where the two differ."""
    return {name: column for column, name in source.field_mapping.items()}


def _join_as_of(
    rows: pl.DataFrame, view: FeatureView, names: dict[str, str], config: RepoConfig
) -> pl.DataFrame:
    """``rows``, which are sorted by their moment, with ``view``'s features under their result names."""
    source = view.batch_source
    in_source = source_columns(source)
    # A view's key may go by another name among the entity rows: the projection's join key map.
    keys = {
        view.projection.join_key_map.get(column.name, column.name): in_source.get(column.name, column.name)
        for column in view.entity_columns
        if column.name != DUMMY_ENTITY_ID
    }
    features = {result: in_source.get(name, name) for name, result in names.items()}
    if missing := [key for key in keys if key not in rows.columns]:
        raise FeatureError(f"feature view {view.name!r} needs the entity columns {missing}")
    if doubled := sorted(features.keys() & set(rows.columns)):
        raise FeatureError(
            f"feature view {view.name!r}: {doubled} are columns of the entity rows or of another view too; "
            "rename them, or ask for full_feature_names"
        )
    columns = _columns(
        [*keys.values()], [*features.values()], source.timestamp_field, source.created_timestamp_column
    )
    values = (
        _scan(source, config, columns)
        .select(
            *(pl.col(column).cast(rows.schema[key]).alias(key) for key, column in keys.items()),
            *(pl.col(column).alias(result) for result, column in features.items()),
            _in_microseconds(pl.col(source.timestamp_field)).alias(_EVENT),
            _in_microseconds(pl.col(source.created_timestamp_column or source.timestamp_field)).alias(
                _CREATED
            ),
        )
        .filter(_within_reach(rows[_MOMENT], view.ttl))
        .drop_nulls([*keys, _EVENT])
        .sort(_EVENT, _CREATED, maintain_order=True, nulls_last=False)
        .unique([*keys, _EVENT], keep="last", maintain_order=True)
        .drop(_CREATED)
        .collect()
    )
    joined = rows.join_asof(
        values,
        left_on=_MOMENT,
        right_on=_EVENT,
        by=[*keys] or None,
        strategy="backward",
        coalesce=False,
        check_sortedness=False,  # both are sorted above; with keys Polars cannot check and warns
    )
    if view.ttl:
        fresh = pl.col(_EVENT) >= pl.col(_MOMENT) - view.ttl
        joined = joined.with_columns(pl.when(fresh).then(pl.col(name)).alias(name) for name in features)
    return joined.drop(_EVENT)


def _within_reach(moments: pl.Series, lifetime: timedelta | None) -> pl.Expr:
    """Whether an event can count at one of the moments; most of a long history cannot."""
    if moments.null_count() == moments.len():
        return pl.lit(True)
    first, last = (pl.lit(bound).cast(_TIMESTAMP) for bound in (moments.min(), moments.max()))
    within = pl.col(_EVENT) <= last
    return within & (pl.col(_EVENT) >= first - lifetime) if lifetime else within


def _event_timestamp_column(entity_df: pd.DataFrame) -> str:
    """Feast's rule: the column of that name, or the only one that holds times."""
    if DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL in entity_df.columns:
        return str(DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL)
    found = list(entity_df.select_dtypes(include=["datetime", "datetimetz"]).columns)
    if len(found) != 1:
        raise FeatureError(
            f"entity_df needs a column {DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL!r}, or one with times; "
            f"columns with times: {found or 'none'}"
        )
    return str(found[0])


def _columns(keys: list[str], features: list[str], timestamp: str, created: str | None) -> list[str]:
    return list(dict.fromkeys([*keys, *features, timestamp, *([created] if created else [])]))


def _scan(source: DataSource | None, config: RepoConfig, columns: list[str]) -> pl.LazyFrame:
    path = _path(source, config)
    frame = pl.scan_parquet(path)
    present = frame.collect_schema().names()
    if missing := [column for column in columns if column not in present]:
        raise FeatureError(f"{path} lacks the columns {missing}; it has {present}")
    return frame.select(columns)


def _path(source: DataSource | None, config: RepoConfig) -> str:
    if not isinstance(source, FileSource):
        raise FeatureError(f"this store reads Parquet FileSources, not {type(source).__name__}")
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.path))


def _between(
    rows: pl.LazyFrame, timestamp: str, start: datetime | None, end: datetime | None
) -> pl.LazyFrame:
    event = _in_microseconds(pl.col(timestamp))
    rows = rows.filter(event.is_not_null())
    if start is not None:
        rows = rows.filter(event >= pl.lit(start).cast(_TIMESTAMP))
    return rows if end is None else rows.filter(event <= pl.lit(end).cast(_TIMESTAMP))


def _in_microseconds(times: pl.Expr) -> pl.Expr:
    """Times without a zone are UTC."""
    return times.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _with_dummy(rows: pl.LazyFrame, join_keys: list[str]) -> pl.LazyFrame:
    """Feast keys the one row of a view without entities by a constant."""
    return rows if join_keys else rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.write_parquet(temporary)
    os.replace(temporary, path)
