"""Profiles on Spark: each partition's is made by the profile itself in a Python worker, and all are merged.

They are merged in the partitions' order, so that the same files give the same profile. Its counts are exact;
its moments differ from those of one that was made in one place by rounding, its sketches by no more than
their own error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from ml_lifecycle.profiles.profile import NO_SEGMENTS, Profile, Segments, merge, read_profile
from ml_lifecycle.profiles.profiling import profile_batches
from ml_lifecycle.records import ColumnSpec, canonical_json, to_json
from ml_lifecycle.stages.validation_facts import in_pieces

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def profile_rows(
    rows: DataFrame,
    columns: Sequence[ColumnSpec],
    segments: Segments = NO_SEGMENTS,
) -> Profile:
    """As :func:`ml_lifecycle.profiles.profile.profile_batches`, of a Spark DataFrame's rows."""

    names = rows.columns  # any; to Spark those with a dot are not

    def profiled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        frames = (pl.DataFrame(pl.from_arrow(batch.rename_columns(names))) for batch in batches)
        made = profile_batches(in_pieces(frames), columns, segments)
        context = TaskContext.get()
        assert context is not None, "a worker always has one"
        if made.rows:
            yield pa.RecordBatch.from_pydict(
                {"part": [context.partitionId()], "profile": [canonical_json(to_json(made))]},
                pa.schema([("part", pa.int32()), ("profile", pa.binary())]),
            )

    plain = rows.toDF(*(f"c{number}" for number in range(len(names))))
    found = plain.mapInArrow(profiled, "part int, profile binary").collect()
    parts = [
        read_profile(json.loads(part["profile"])) for part in sorted(found, key=lambda one: int(one["part"]))
    ]
    return reduce(merge, parts, profile_batches([], columns, segments))
