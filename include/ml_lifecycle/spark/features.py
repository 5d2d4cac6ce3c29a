"""Features on Spark: Feast's own Spark store joins, and answers as :mod:`ml_lifecycle.adapters.as_of` does.

Feast's store (0.67) would answer otherwise where rows tie, and where it writes moments and keys into SQL.
So it is given tables and rows in a form in which it cannot:

- Of rows with the same key and event time it keeps all, and an entity row then comes back several times; a
  row without its created timestamp never counts. It is given the one that counts.
- It tells entity rows apart by their keys in one text, where ``("a", "bc")`` is ``("ab", "c")``. It is given
  keys that say how long they are.
- It reads the first and the last moment through Python, in the time zone of the driver's machine, and takes
  them for UTC. It is given moments without a zone, which are read as they are.
- It makes columns of the entity rows columns of the result, whatever they are called. They travel in one.
"""

from __future__ import annotations

import re
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import RetrievalMetadata

from ml_lifecycle.adapters.feast_store import source_columns, time_columns
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.spark.on_demand import OnDemandFeatures
from ml_lifecycle.spark.passing import passing_rows
from ml_lifecycle.spark.session import spark_path

if TYPE_CHECKING:
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkOfflineStore
    from pyspark.sql import Column, DataFrame, SparkSession

    from ml_lifecycle.adapters.feast_repo import Features

POSITION = "__position"  # of a row in its table
_MOMENT, _CARRIED, _ROW = "event_timestamp", "__carried", "__row"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What Feast's SQL calls columns of its own, and what is no name in SQL: ``null`` would be one, in every row.
_TAKEN = {_MOMENT, "created_timestamp", "entity_timestamp", "row_number", "false", "not", "null", "true"}
# Feast sets it for its own use of the session, and everybody's quoted names become patterns.
_PATTERNS = "spark.sql.parser.quotedRegexColumnNames"


@contextmanager
def historical_slices(
    session: SparkSession,
    lake: Lake,
    tables: Mapping[str, str],
    features: Features,
    rows: Iterable[pl.DataFrame],
) -> Iterator[Iterator[pl.DataFrame]]:
    """As :func:`ml_lifecycle.adapters.feast_repo.historical_slices`, joined on Spark.

    What it yields can be read within the block.

    :param tables: feature table → path in the lake
    :param rows: entity keys and ``event_timestamp``, some rows at a time
    :raises FeatureError: the views have what Feast's Spark store cannot work with, see :func:`check`; or the
        join lost rows, or made some. Retry: no.
    """
    numbered = _Numbered(rows, features)
    with passing_rows(session, lake) as passing:
        asked = passing.to_spark(numbered)
        joined = SparkFeatures(session, features, read_tables(session, lake, tables)).join(asked)
        found = passing.from_spark(joined.rows, _ROW, numbered.rows)
        names = {plain: name for name, plain in numbered.kept.items()}
        yield (joined.on_demand(part.rename(names)).drop(_ROW) for part in found)


class _Numbered:
    """Rows that come in frames, each with its number, and with names that Spark can have."""

    def __init__(self, frames: Iterable[pl.DataFrame], features: Features) -> None:
        self._frames = frames
        self._features = features
        self.kept: dict[str, str] = {}
        self.rows = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for frame in self._frames:
            self.kept = kept_names(self._features, frame.columns)
            yield frame.rename(self.kept).with_row_index(_ROW, self.rows)
            self.rows += frame.height


def kept_names(features: Features, columns: Iterable[str]) -> dict[str, str]:
    """What columns that only come along are called meanwhile: theirs may be anything, dots and quotes too."""
    asked = {*features.join_keys(), _MOMENT}
    return {name: f"__kept{number}" for number, name in enumerate(columns) if name not in asked}


def read_tables(session: SparkSession, lake: Lake, tables: Mapping[str, str]) -> dict[str, DataFrame]:
    """Feature tables of the lake, one file each, every row with its position."""
    from pyspark.sql import functions as F

    read = {name: session.read.parquet(spark_path(lake, path)) for name, path in tables.items()}
    return {
        name: rows.select("*", F.col("_metadata.row_index").alias(POSITION)) for name, rows in read.items()
    }


@contextmanager
def feasts_spark_store(session: SparkSession) -> Iterator[type[SparkOfflineStore]]:
    """Feast's Spark store; what it sets in the session, and its warnings, end with the block."""
    # Imported before its warnings are filtered: it sets a filter of its own.
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkOfflineStore

    before = session.conf.get(_PATTERNS, "false") or "false"
    try:
        with warnings.catch_warnings():
            # Each says that the store is experimental.
            warnings.filterwarnings("ignore", message="The spark .* experimental", category=RuntimeWarning)
            yield SparkOfflineStore
    finally:
        session.conf.set(_PATTERNS, before)


class Joined:
    """Entity rows with their features, on Spark, in no order.

    :param rows: all but on-demand features
    """

    def __init__(
        self, rows: DataFrame, views: Sequence[OnDemandFeatureView], metadata: RetrievalMetadata | None
    ) -> None:
        self.rows = rows
        self.on_demand = OnDemandFeatures(views, metadata)


class SparkFeatures:
    """The feature tables on Spark, and Feast's Spark store over them.

    :param tables: by name, each row with its :data:`POSITION`
    :raises FeatureError: see :func:`check`. Retry: no.
    """

    def __init__(self, session: SparkSession, features: Features, tables: Mapping[str, DataFrame]) -> None:
        check(features)
        self._session = session
        self._features = features
        self._tables = tables

    def join(self, rows: DataFrame) -> Joined:
        """The rows with the features that counted at each one's ``event_timestamp``, that instant included.

        :param rows: at least one; columns that are no keys come along
        :raises FeatureError: a key is missing. Retry: no.
        """
        from pyspark.sql import functions as F

        keys = self._features.join_keys()
        if missing := [key for key in keys if key not in rows.columns]:
            raise FeatureError(f"the rows to join lack the keys {missing}; they have {rows.columns}")
        asked = rows.select(
            *(_sized(F.col(key)).alias(key) for key in keys),
            F.lit("").alias(DUMMY_ENTITY_ID),
            F.col(_MOMENT).cast("timestamp_ntz").alias(_MOMENT),
            F.struct(*(F.col(name) for name in rows.columns)).alias(_CARRIED),
        )
        with tempfile.TemporaryDirectory(prefix="feast-") as folder, feasts_spark_store(self._session):
            store, service = self._store(Path(folder))
            job = store.get_historical_features(entity_df=asked, features=service)
            found = job.to_spark_df()
        names = [name for name in found.columns if name not in asked.columns]
        return Joined(found.select(f"{_CARRIED}.*", *names), job.on_demand_feature_views, job.metadata)

    def _store(self, folder: Path) -> tuple[FeatureStore, FeatureService]:
        features = self._features
        store = FeatureStore(
            config=RepoConfig(
                project=features.project,
                provider="local",
                repo_path=folder,
                registry={"registry_type": "file", "path": str(folder / "registry.pb")},
                offline_store={"type": "spark"},
                online_store=None,
                entity_key_serialization_version=3,
            )
        )
        views = [self._on_spark(view) for view in features.views]
        store.apply([*features.entities, *views, *features.on_demand, features.service])
        return store, store.get_feature_service(features.service.name)

    def _on_spark(self, view: FeatureView) -> FeatureView:
        """The view over its table as Feast's store is given it."""
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        name = f"{view.name}__{uuid.uuid4().hex}"
        self._that_count(view).createOrReplaceTempView(name)
        moved = copy(view)
        moved.batch_source = SparkSource(name=view.name, table=name, timestamp_field=_MOMENT)
        return moved

    def _that_count(self, view: FeatureView) -> DataFrame:
        """Of the rows with a key and event time the one created last, else the last in the table."""
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        source, in_source = view.batch_source, source_columns(view.batch_source)
        keys = list(self._features.keys_of(view))
        named = [field.name for field in view.schema if field.name not in keys]
        rows = self._tables[source.name]
        moment, created = time_columns(source)
        event = F.col(moment)
        same = Window.partitionBy(*(F.col(in_source.get(key, key)) for key in keys), event)
        newest = [*([F.col(created).desc_nulls_last()] if created else []), F.col(POSITION).desc()]
        ranked = rows.withColumn("__rank", F.row_number().over(same.orderBy(*newest)))
        return ranked.where("__rank = 1").select(
            *(_sized(F.col(in_source.get(key, key))).alias(key) for key in keys),
            *([] if keys else [F.lit("").alias(DUMMY_ENTITY_ID)]),
            *(F.col(in_source.get(name, name)).alias(name) for name in named),
            event.cast("timestamp_ntz").alias(_MOMENT),
        )


def check(features: Features) -> None:
    """Whether Feast's Spark store can work with these views.

    :raises FeatureError: a name is no plain one in SQL, two differ in case only, or a time to live is not in
        whole seconds, as the store counts it. Retry: no.
    """
    names = [*features.columns(), *features.join_keys()]
    for name in [*names, *(view.name for view in features.views)]:
        if not _NAME.fullmatch(name) or name.lower() in _TAKEN:
            raise FeatureError(
                f"engine: spark cannot have a feature, key or view named {name!r}: use letters, digits and "
                f"'_', and none of {', '.join(sorted(_TAKEN))}"
            )
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.lower(), name)
        if other != name:
            raise FeatureError(f"{other!r} and {name!r} are one name to Spark: rename one")
    for view in features.views:
        if view.ttl and view.ttl % timedelta(seconds=1):
            raise FeatureError(
                f"feature view {view.name!r} has a ttl of {view.ttl.total_seconds()} seconds, of which "
                "Feast's Spark store drops the fraction: give whole seconds"
            )


def _sized(key: Column) -> Column:
    from pyspark.sql import functions as F

    text = key.cast("string")
    return F.concat(F.length(text).cast("string"), F.lit(":"), text)
