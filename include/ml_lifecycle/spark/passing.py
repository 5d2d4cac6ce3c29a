"""Rows on their way between this process and Spark: as files of the lake, which both of them reach.

So neither the driver's JVM nor its limit on results (``spark.driver.maxResultSize``) has to hold them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import writing_parquet
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.spark.session import spark_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FOLDER = "spark_rows"


class PassingRows:
    """Files of one use, told from others' by their names."""

    def __init__(self, session: SparkSession, lake: Lake) -> None:
        self._session = session
        self._lake = lake
        self._prefix = f"{_FOLDER}/{uuid.uuid4().hex}"

    def to_spark(self, frames: Iterable[pl.DataFrame]) -> DataFrame:
        """The frames, at least one, as one of Spark's; they are written one by one."""
        paths = [
            write_parquet(self._lake, f"{self._prefix}-{number}.parquet", frame)
            for number, frame in enumerate(frames)
        ]
        return self._session.read.parquet(*(spark_path(self._lake, path) for path in paths))

    def put(self, rows: pl.LazyFrame) -> str:
        """Write rows of any number to one file, in their order; returns its path in the lake."""
        path = f"{self._prefix}-{uuid.uuid4().hex}.parquet"
        first = rows.head(0).collect()
        with writing_parquet(self._lake, path, _arrow(first).schema) as file:
            for frame in rows.collect_batches(maintain_order=True):
                for batch in _arrow(frame).to_batches():
                    file.write(batch)
        return path

    def from_spark(self, rows: DataFrame) -> pl.DataFrame:
        """The rows, at least one, in no order."""
        lake, prefix = self._lake, self._prefix

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            from pyspark import TaskContext

            if (first := next(batches, None)) is None:
                return
            task = TaskContext.get()
            assert task is not None  # this runs in a task
            # An attempt that is given up leaves its file, which nobody reads.
            path = f"{prefix}-of-{task.taskAttemptId()}.parquet"
            with writing_parquet(lake, path, first.schema) as file:
                for batch in chain([first], batches):
                    file.write(batch)
            yield pa.RecordBatch.from_pydict({"path": [path]})

        written = rows.mapInArrow(write, "path string").collect()
        return lake.scan([row.path for row in written]).collect()

    def delete(self) -> None:
        """Remove the files, whoever wrote them."""
        for path in [path for path in self._lake.list(_FOLDER) if path.startswith(self._prefix)]:
            self._lake.delete(path)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


@contextmanager
def passing_rows(session: SparkSession, lake: Lake) -> Iterator[PassingRows]:
    """Files that are gone with the block."""
    rows = PassingRows(session, lake)
    try:
        yield rows
    finally:
        rows.delete()
