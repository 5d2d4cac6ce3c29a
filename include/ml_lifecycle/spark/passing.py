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
from ml_lifecycle.adapters.parquet import ROW_GROUP_ROWS, reading_parquet, writing_parquet
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.spark.session import spark_path

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FOLDER = "spark_rows"
_PART_ROWS = 1_000_000  # that one task of Spark sorts and writes


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

    def from_spark(self, rows: DataFrame, order: str, expected: int) -> Iterator[pl.DataFrame]:
        """The rows in order, some at a time; Spark is done with them before any is read.

        :param order: the column that numbers them from 0 on
        :raises FeatureError: they are not as many, or one is missing. Retry: no.
        """
        from pyspark.sql import functions as F

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
            yield pa.RecordBatch.from_pydict(
                {"part": [task.partitionId()], "path": [path], "rows": [file.rows]},
                pa.schema([("part", pa.int32()), ("path", pa.string()), ("rows", pa.int64())]),
            )

        # By number, not by range: to find ranges Spark would compute the rows twice.
        parts = -(-expected // _PART_ROWS)
        part = F.floor(F.col(order) / _PART_ROWS).cast("int")
        numbered = rows.repartitionById(parts, part).sortWithinPartitions(order)
        written = numbered.mapInArrow(write, "part int, path string, rows long").collect()
        if (found := sum(one.rows for one in written)) != expected:
            raise FeatureError(f"the join on Spark made {found} rows of {expected}")
        return self._read([one.path for one in sorted(written, key=lambda one: int(one.part))], order)

    def _read(self, paths: Iterable[str], order: str) -> Iterator[pl.DataFrame]:
        at = 0
        for path in paths:
            with reading_parquet(self._lake, path) as file:
                for batch in file.batches(file.schema.names, ROW_GROUP_ROWS):
                    frame = pl.DataFrame(pl.from_arrow(batch))
                    if not frame.select((pl.col(order) == pl.int_range(at, at + pl.len())).all()).item():
                        raise FeatureError(f"the join on Spark lost one of the rows from {at} on")
                    at += frame.height
                    yield frame

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
