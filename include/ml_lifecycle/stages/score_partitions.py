"""What is scored, in partitions: files of the lake, or slices of the rows that ``features.py`` predicts for.

A partition has the digest of whatever its rows follow from, so that a finished one is known again without
being read: of a file its bytes, or the name by which the lake addresses its content; of a slice the snapshot,
the model folder's code, and which of the rows it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.parquet import reading_parquet
from ml_lifecycle.errors import SpecError
from ml_lifecycle.records import RowSlice, ScoringPlan, Snapshot, digest_of, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.scoring_rows import ScoringRows, slice_rows

_CONTENT = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})\.parquet")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class OpenRows:
    """A partition that is being read.

    :param batches: of some columns, at most so many rows each; the same in every attempt
    """

    schema: pa.Schema
    batches: Callable[[Sequence[str], int], Iterator[pa.RecordBatch]]


class Partition(Protocol):
    """Rows that are scored together and have one file of answers."""

    @property
    def name(self) -> str:
        """What it is of the whole."""
        ...

    @property
    def digest(self) -> str:
        """Of what the rows follow from."""
        ...

    def open(self) -> AbstractContextManager[OpenRows]:
        """Read it."""
        ...


@dataclass(frozen=True)
class FilePartition:
    """A Parquet file of the lake. What folders above it say (``day=2013-09-04/…``) is a text column."""

    lake: Lake
    path: str

    @property
    def name(self) -> str:
        """Its path."""
        return self.path

    @cached_property
    def digest(self) -> str:
        """Of its bytes and of its folders' columns.

        :raises LakeFileMissingError: there is no such file. Retry: no.
        """
        if addressed := _CONTENT.fullmatch(self.path):
            return addressed[2]
        read = self.lake.digest(self.path)
        return digest_of({"file": read, "folders": self._folders}) if self._folders else read

    @cached_property
    def _folders(self) -> dict[str, str | None]:
        named = (part.partition("=") for part in self.path.split("/")[:-1] if "=" in part)
        return {name: None if value == _NO_VALUE else value for name, _, value in named}

    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        """Read it. Raises as :func:`~ml_lifecycle.adapters.parquet.reading_parquet`."""
        with reading_parquet(self.lake, self.path) as file:
            schema = file.schema
            added = {name: value for name, value in self._folders.items() if name not in schema.names}
            for name in added:
                schema = schema.append(pa.field(name, pa.string()))

            def batches(columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
                for batch in file.batches([name for name in columns if name not in added], rows):
                    for name, value in added.items():
                        constant = pa.repeat(pa.scalar(value, pa.string()), batch.num_rows)
                        batch = batch.append_column(name, constant)
                    yield batch.select(list(columns))

            yield OpenRows(schema, batches)


@dataclass(frozen=True)
class SlicePartition:
    """Some of the rows that the model folder predicts for, with their features."""

    rows: ScoringRows
    part: RowSlice
    snapshot_digest: str
    code_digest: str

    @property
    def name(self) -> str:
        """The span of time, and the place within it if it has several slices."""
        window, part = self.part.window, self.part
        span = f"{window.start.isoformat()}/{window.end.isoformat()}"
        return span if part.rows == part.of else f"{span}#{part.first}"

    @property
    def digest(self) -> str:
        """Of snapshot, code and place."""
        window, part = self.part.window, self.part
        return digest_of(
            {
                "snapshot": self.snapshot_digest,
                "code": self.code_digest,
                "window": [window.start.isoformat(), window.end.isoformat()],
                "rows": [part.first, part.rows, part.of],
            }
        )

    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        """Join the slice with its features."""
        table = self.rows.read(self.part).to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()

        def batches(columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
            yield from table.select(list(columns)).to_batches(max_chunksize=rows)

        yield OpenRows(table.schema, batches)


def lake_partitions(lake: Lake, prefix: str) -> list[FilePartition]:
    """The Parquet files below ``prefix``, or the one that it is, each a partition; in the order of paths.

    :raises LakeFileMissingError: there is none. Retry: no.
    """
    paths = [prefix] if lake.exists(prefix) else [p for p in lake.list(prefix) if p.endswith(".parquet")]
    if not paths:
        raise LakeFileMissingError(f"no Parquet file {prefix!r}, and none below it, in {lake.url}")
    return [FilePartition(lake, path) for path in paths]


def plan_scoring(
    folder: ModelFolder,
    lake: Lake,
    snapshot: Snapshot,
    training_path: str,
    version: str,
) -> ScoringPlan:
    """What there is to predict in the snapshot's interval, in slices, for one version of the model.

    :param training_path: folder of the version's training
    :raises FeatureError: as for :func:`~ml_lifecycle.stages.scoring_rows.entity_rows`. Retry: no.
    """
    run, rows = snapshot.run, folder.spec.scoring.partition_rows
    digest = digest_of(
        {
            "stage": "plan_scoring/1",
            "snapshot": snapshot.digest,
            "code": folder.code_digest,
            "interval": [run.interval.start.isoformat(), run.interval.end.isoformat()],
            "training": training_path,
            "version": version,
        }
    )
    path = f"scoring_plans/{folder.spec.name}/{digest}"
    if lake.exists(f"{path}/manifest.json"):
        return replace(from_json(ScoringPlan, lake.read_json(f"{path}/manifest.json")), run=run)
    plan = ScoringPlan(
        run=run,
        digest=digest,
        path=path,
        snapshot_path=snapshot.path,
        snapshot_digest=snapshot.digest,
        training_path=training_path,
        version=version,
        code_digest=folder.code_digest,
        slices=slice_rows(folder, lake, snapshot, run.interval, rows),
    )
    lake.write_json(f"{path}/manifest.json", to_json(plan))
    return plan


@contextmanager
def planned_partitions(folder: ModelFolder, lake: Lake, plan: ScoringPlan) -> Iterator[list[SlicePartition]]:
    """The plan's slices; feature tables that reading them needs are kept at hand within the block.

    :raises SpecError: the folder is not the one that the scoring was planned with. Retry: no.
    """
    if folder.code_digest != plan.code_digest:
        raise SpecError(
            f"{folder.path} changed since the scoring was planned: clear the task that planned it, "
            "and a new one begins"
        )
    snapshot = from_json(Snapshot, lake.read_json(plan.snapshot_path))
    window = plan.run.interval if len(plan.slices) > 1 else None
    with ScoringRows(folder, lake, snapshot, window) as rows:
        yield [SlicePartition(rows, part, plan.snapshot_digest, plan.code_digest) for part in plan.slices]
