"""What an online store has to hold, found on Spark: of each feature view the newest row of each key.

Feast's own Spark store looks for them. By itself (0.67) it answers otherwise than :mod:`..adapters.newest`:

- Of rows with the same event time, and of those without a created timestamp, any may be its newest. It is
  given an order in which no two are alike.
- It writes names of columns into SQL, and the moment from which on it looks, in which a year below 1000 is no
  year. It is given names of ours, rows in one column, and no moment that is older.

What it finds lies in the lake, a few files a view, whoever writes it into a store and into however many.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl
import pyarrow as pa
from feast import FeatureView, RepoConfig
from pydantic import AwareDatetime

from ml_lifecycle.adapters.feast_repo import Features
from ml_lifecycle.adapters.feast_store import source_columns, time_columns
from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.adapters.parquet import writing_parquet
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.records import Record, Snapshot, digest_of, from_json, to_json
from ml_lifecycle.spark.features import POSITION, feasts_spark_store, read_tables
from ml_lifecycle.spark.job import Job
from ml_lifecycle.spark.passing import passing_rows
from ml_lifecycle.spark.session import session_for
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import INSTANT, features_of
from ml_lifecycle.stages.online_features import counting_rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_EVENT, _ORDER, _CARRIED = "event_timestamp", "__order", "__carried"
_FIRST = datetime(1000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class NewestRows(Record):
    """Of each feature view the newest row of each key, of those that count as of a moment.

    :param views: feature view → its files, with columns of its table
    """

    schema: ClassVar[str] = "newest_rows/1"
    digest: str
    path: str
    snapshot_digest: str
    code_digest: str
    as_of: AwareDatetime
    views: dict[str, tuple[str, ...]]

    def scan(self, lake: Lake) -> dict[str, pl.LazyFrame]:
        """The rows by feature view, in no order."""
        return {view: lake.scan(files) for view, files in self.views.items()}


def kept_newest(folder: ModelFolder, lake: Lake, snapshot: Snapshot, as_of: datetime) -> NewestRows | None:
    """What was found before of a snapshot as of a moment; None if it is not there."""
    manifest = f"{_root(folder, snapshot, as_of)}/manifest.json"
    return from_json(NewestRows, lake.read_json(manifest)) if lake.exists(manifest) else None


def find_newest(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> NewestRows:
    """Find the rows that count as of the snapshot's run, once for each snapshot, code and moment.

    :raises FeatureError: a table or column is missing. Retry: no.
    :raises SparkElsewhereError: an application is to do this. Retry: no, run it.
    """
    as_of = snapshot.run.as_of
    if (kept := kept_newest(folder, lake, snapshot, as_of)) is not None:
        return kept
    session = session_for(folder.spec.spark, lake, Job("newest_rows", {"snapshot": to_json(snapshot)}))
    features, root = features_of(folder), _root(folder, snapshot, as_of)
    with tempfile.TemporaryDirectory(prefix="features-") as name:
        tables = counting_rows(folder, features, lake, snapshot, as_of, Path(name) / "tables")
        views = newest_on_spark(session, lake, features, tables, as_of - INSTANT, root)
    found = NewestRows(root.rpartition("/")[2], root, snapshot.digest, folder.code_digest, as_of, views)
    lake.write_json(f"{root}/manifest.json", to_json(found))
    return found


def newest_on_spark(
    session: SparkSession,
    lake: Lake,
    features: Features,
    tables: Mapping[str, pl.LazyFrame],
    last: datetime,
    root: str,
) -> dict[str, tuple[str, ...]]:
    """Write the newest rows of every view that goes online below ``root``; returns the views' files.

    :param tables: every feature table
    :param last: the last moment at which an event counts
    """
    with passing_rows(session, lake) as passing:
        paths = {name: passing.put(rows) for name, rows in tables.items()}
        read, found = read_tables(session, lake, paths), {}
        for view in (view for view in features.views if view.online):
            table = view.batch_source.name
            columns = _columns(features, view)
            newest = _newest(session, features, view, read[table], columns, last)
            folder = f"{root}/{safe_name(view.name)}"
            files = _write(lake, newest, columns, folder)
            nothing = tables[table].select(columns).head(0).collect()
            found[view.name] = files or (write_parquet(lake, f"{folder}/none.parquet", nothing),)
    return found


def _root(folder: ModelFolder, snapshot: Snapshot, as_of: datetime) -> str:
    named = {"snapshot": snapshot.digest, "code": folder.code_digest, "as_of": as_of.isoformat()}
    return f"newest_rows/{folder.spec.name}/{digest_of(named)}"


def _columns(features: Features, view: FeatureView) -> list[str]:
    """What a view has of its table."""
    in_source = source_columns(view.batch_source)
    names = [*features.keys_of(view), *(field.name for field in view.features)]
    return [*dict.fromkeys([*(in_source.get(name, name) for name in names), *features.order_of(view)])]


def _newest(
    session: SparkSession,
    features: Features,
    view: FeatureView,
    table: DataFrame,
    columns: Sequence[str],
    last: datetime,
) -> DataFrame:
    """The newest row of each key, its values in the order of ``columns`` under names of ours."""
    from pyspark.sql import functions as F

    from ml_lifecycle.spark.tables import quoted

    source, in_source = view.batch_source, source_columns(view.batch_source)
    moment, created = time_columns(source)
    event = quoted(moment)
    keys = {f"key{n}": quoted(in_source.get(key, key)) for n, key in enumerate(features.keys_of(view))}
    rows = table.where(event.isNotNull()).select(
        *(key.alias(name) for name, key in keys.items()),
        # A datetime of Python would be read in Java's calendar.
        F.greatest(event, F.lit(_FIRST.isoformat()).cast("timestamp")).alias(_EVENT),
        F.struct(event, quoted(created) if created else F.lit(None), quoted(POSITION)).alias(_ORDER),
        F.struct(*(quoted(name).alias(f"c{n}") for n, name in enumerate(columns))).alias(_CARRIED),
    )
    for key in keys:
        rows = rows.where(F.col(key).isNotNull())
    with feasts_spark_store(session) as store, _as_view(rows) as name:
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        job = store.pull_latest_from_table_or_query(
            config=RepoConfig(
                project=features.project,
                provider="local",
                registry="",
                offline_store={"type": "spark"},
                online_store=None,
                entity_key_serialization_version=3,
            ),
            data_source=SparkSource(name=view.name, table=name, timestamp_field=_EVENT),
            join_key_columns=[*keys],
            feature_name_columns=[_CARRIED],
            timestamp_field=_EVENT,
            created_timestamp_column=_ORDER,
            start_date=_FIRST,
            end_date=last,
        )
        found: DataFrame = job.to_spark_df()
    return found.select(f"{_CARRIED}.*")


@contextmanager
def _as_view(rows: DataFrame) -> Iterator[str]:
    """A name by which SQL knows the rows."""
    name = "newest_rows_of_a_view"
    rows.createOrReplaceTempView(name)
    try:
        yield name
    finally:
        rows.sparkSession.catalog.dropTempView(name)


def _write(lake: Lake, rows: DataFrame, columns: Sequence[str], folder: str) -> tuple[str, ...]:
    """Have each partition that has rows written to a file of its own."""

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        if (first := next(batches, None)) is None:
            return
        task = TaskContext.get()
        assert task is not None  # this runs in a task
        # Whichever attempt writes it, its rows are the same.
        path = f"{folder}/{task.partitionId():05}.parquet"
        first = first.rename_columns(columns)
        with writing_parquet(lake, path, first.schema) as file:
            for batch in chain([first], batches):
                file.write(batch.rename_columns(columns))
        yield pa.RecordBatch.from_pydict({"path": [path]})

    written = rows.mapInArrow(write, "path string").collect()
    return tuple(sorted(row.path for row in written))
