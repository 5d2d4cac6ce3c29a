"""Records of score: the slices of a batch, and its files of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ml_lifecycle.records.record import Interval, Record, Run


@dataclass(frozen=True)
class RowSlice:
    """Some of the rows that there are to score: ``rows`` from ``first`` on.

    So they are counted among the ``of`` rows whose moment lies in ``window``, ordered by moment and keys.
    """

    window: Interval
    first: int
    rows: int
    of: int


@dataclass(frozen=True)
class ScoringPlan(Record):
    """What is scored, and by which version, for several tasks that share the slices.

    :param digest: of what the plan follows from; names it
    :param snapshot_path: of the snapshot's manifest
    :param training_path: folder of the training whose model scores
    :param code_digest: of the model folder that the slices were planned with
    """

    schema: ClassVar[str] = "scoring_plan/1"
    run: Run
    digest: str
    path: str
    snapshot_path: str
    snapshot_digest: str
    training_path: str
    version: str
    code_digest: str
    slices: tuple[RowSlice, ...]


@dataclass(frozen=True)
class ScoredFile:
    """One partition's answers: a Parquet file.

    :param partition: what it is of the input: a file of the lake, or a span of time
    :param digest: of the file's bytes
    """

    partition: str
    path: str
    digest: str
    rows: int


@dataclass(frozen=True)
class ScoredPartition(Record):
    """A finished partition, by the digest of all that its answers follow from.

    :param columns: of the file, as ``name → Arrow type``
    """

    schema: ClassVar[str] = "scored_partition/1"
    file: ScoredFile
    columns: dict[str, str]


@dataclass(frozen=True)
class ScoredShare(Record):
    """What one of several tasks that share a scoring has seen to.

    :param plan: the plan's digest
    :param share: its number, from 0
    """

    schema: ClassVar[str] = "scored_share/1"
    run: Run
    plan: str
    share: int
    partitions: int
    rows: int


@dataclass(frozen=True)
class Scoring(Record):
    """Rows scored with a version's ONNX file, written to the lake as Parquet.

    :param output_path: the folder with the files
    :param files: one a partition, in the partitions' order
    :param columns: of each file, as ``name → Arrow type``; none if there was no partition
    """

    schema: ClassVar[str] = "scoring/2"
    run: Run
    digest: str
    path: str
    output_path: str
    rows: int
    version: str
    model_digest: str
    files: tuple[ScoredFile, ...]
    columns: dict[str, str]
