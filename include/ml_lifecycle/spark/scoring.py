"""Batch scoring on Spark: every partition goes through ONNX Runtime in one of Spark's Python workers.

A worker does what :mod:`ml_lifecycle.stages.score` does anywhere, with the same rows in the same batches, and
so writes the same file. A partition that a worker has finished stays finished, whatever becomes of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from ml_lifecycle import errors
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import FeatureError, LifecycleError
from ml_lifecycle.records import ColumnType, Training
from ml_lifecycle.spark.passing import passing_rows
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.feature_tables import INSTANT, build_tables, features_of
from ml_lifecycle.stages.score import BATCH_ROWS, finish
from ml_lifecycle.stages.score_partitions import OpenRows, Partition, SlicePartition
from ml_lifecycle.stages.served_features import as_served

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ml_lifecycle.spark.on_demand import OnDemandFeatures

_NUMBER, _ROW, _MOMENT = "__number", "__row", "event_timestamp"
_FAILED = "number int, error string, message string"

Batches = Iterator[pa.RecordBatch]


def finish_on_spark(
    session: SparkSession,
    spec: ModelSpec,
    lake: Lake,
    training: Training,
    version: str,
    partitions: Sequence[Partition],
    numbers: Sequence[int],
    threads: int,
) -> None:
    """Have the partitions of these numbers finished. What fails does not keep the others from being so.

    :param threads: of ONNX Runtime in each worker
    :raises LifecycleError: whatever :func:`~ml_lifecycle.stages.score.score` raises; of several the first
    """
    slices = {n: one for n in numbers if isinstance(one := partitions[n], SlicePartition)}
    work = _Work(spec, lake, training, version, tuple(map(_portable, partitions)), threads)
    failed = []
    if slices:
        failed += _finish_slices(session, work, slices)
    if files := [number for number in numbers if number not in slices]:
        alone = session.range(len(files), numPartitions=len(files))
        failed += _run(alone, lambda batches: work.files(batches, files))
    if failed:
        _, name, message = min(failed)
        raise getattr(errors, name, LifecycleError)(message)


def _finish_slices(
    session: SparkSession, work: _Work, slices: dict[int, SlicePartition]
) -> list[tuple[int, str, str]]:
    from ml_lifecycle.spark.features import SparkFeatures, kept_names, read_tables

    rows = next(iter(slices.values())).rows
    features = features_of(rows.folder)
    tables = build_tables(rows.folder, work.lake, rows.snapshot)
    numbers = list(slices)
    keys = rows.keys(slices[numbers[0]].part).schema
    kept = kept_names(features, keys)
    frames = (
        rows.keys(slices[number].part)
        .rename(kept)
        .with_columns(pl.col(_MOMENT) - INSTANT, pl.lit(place).alias(_NUMBER))
        .with_row_index(_ROW)
        for place, number in enumerate(numbers)
    )
    with passing_rows(session, work.lake) as passing:
        over = SparkFeatures(session, features, read_tables(session, work.lake, tables.tables))
        joined = over.join(passing.to_spark(frames))
        sliced = joined.rows.repartitionById(len(numbers), _NUMBER).sortWithinPartitions(_NUMBER, _ROW)
        served = _Served(keys, kept, features.columns(), joined.on_demand)
        sizes = [(number, slices[number].part.rows) for number in numbers]
        return _run(sliced, lambda batches: work.slices(batches, sizes, served))


def _run(rows: DataFrame, work: Callable[[Batches], Batches]) -> list[tuple[int, str, str]]:
    """What failed, as number, error and message."""
    return [(row.number, row.error, row.message) for row in rows.mapInArrow(work, _FAILED).collect()]


@dataclass(frozen=True)
class _Slice:
    """A slice as it goes to the workers, whose rows Spark brings there.

    :param frames: the rows as the model and the answers take them, a batch at a time
    """

    name: str
    digest: str
    frames: Iterable[pl.DataFrame] = ()

    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        tables = (frame.to_arrow(compat_level=pl.CompatLevel.oldest()) for frame in self.frames)
        first = next(tables)

        def batches(columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
            for table in chain([first], tables):
                yield from table.select(list(columns)).combine_chunks().to_batches(max_chunksize=rows)

        yield OpenRows(first.schema, batches)


def _portable(partition: Partition) -> Partition:
    is_slice = isinstance(partition, SlicePartition)
    return _Slice(partition.name, partition.digest) if is_slice else partition


@dataclass(frozen=True)
class _Served:
    """How joined rows become those that the model and the answers take.

    :param keys: the columns that pass through
    :param kept: what some of them were called meanwhile
    """

    keys: pl.Schema
    kept: dict[str, str]
    features: dict[str, ColumnType]
    on_demand: OnDemandFeatures

    def __call__(self, joined: pl.DataFrame) -> pl.DataFrame:
        joined = joined.rename({plain: name for name, plain in self.kept.items()})
        found = self.on_demand(joined).select(*self.features)
        asked = joined.select(pl.col(name).cast(kind) for name, kind in self.keys.items())
        return as_served(found.hstack(asked.with_columns(pl.col(_MOMENT) + INSTANT)), self.features)


@dataclass(frozen=True)
class _Work:
    """What every worker gets."""

    spec: ModelSpec
    lake: Lake
    training: Training
    version: str
    partitions: tuple[Partition, ...]
    threads: int

    def files(self, batches: Batches, numbers: Sequence[int]) -> Batches:
        """Finish files, read where they are scored; the batches hold places in ``numbers``."""
        for batch in batches:
            for place in batch.column(0).to_pylist():
                yield from self._finish(numbers[place], self.partitions)

    def slices(self, batches: Batches, sizes: Sequence[tuple[int, int]], served: _Served) -> Batches:
        """Finish slices, whose rows come in order; ``sizes`` has number and rows of each place."""
        frames = (
            (key[0], part)
            for batch in batches
            for key, part in pl.DataFrame(pl.from_arrow(batch)).group_by(_NUMBER, maintain_order=True)
        )
        for place, group in groupby(frames, lambda keyed: keyed[0]):
            number, size = sizes[place]
            coming = _cut(_counted((frame for _, frame in group), size), BATCH_ROWS)
            partitions = list(self.partitions)
            known = partitions[number]
            partitions[number] = _Slice(known.name, known.digest, map(served, coming))
            yield from self._finish(number, partitions)

    def _finish(self, number: int, partitions: Sequence[Partition]) -> Batches:
        try:
            finish(self.spec, self.lake, self.training, self.version, partitions, [number], self.threads)
        except LifecycleError as error:
            # As a row, since Spark would try again what no retry helps, and then show its own stack only.
            said = {"number": [number], "error": [type(error).__name__], "message": [str(error)]}
            schema = pa.schema([("number", pa.int32()), ("error", pa.string()), ("message", pa.string())])
            yield pa.RecordBatch.from_pydict(said, schema)


def _cut(frames: Iterator[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The frames' rows anew, ``size`` at a time."""
    held = next(frames)
    for frame in frames:
        if held.height >= size:
            yield held[:size]
            held = held[size:]
        held = pl.concat([held, frame])
    yield from (held[at : at + size] for at in range(0, held.height, size))


def _counted(frames: Iterator[pl.DataFrame], expected: int) -> Iterator[pl.DataFrame]:
    """The frames; a join that lost rows, or made more of them, is found out before its answers are kept."""
    seen = 0
    for frame in frames:
        seen += frame.height
        yield frame
    if seen != expected:
        raise FeatureError(f"the join on Spark made {seen} rows of {expected}")
