"""Score: rows through a version's ONNX file, partition by partition, in bounded memory.

Each partition has one file of answers, named by its place; beside the results lies what each finished
partition came to, under the digest of all that its answers follow from: its rows, the model, the version and
the threshold. So a partition is computed once, whoever asks for it next: the same run after a crash, another
task that shares it, or a later run over the same rows and more. The manifest comes last.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.onnx import (
    Prediction,
    as_served,
    decide,
    feeds,
    label_type,
    open_session,
    predict,
)
from ml_lifecycle.adapters.parquet import writing_parquet
from ml_lifecycle.errors import FeatureError, IntegrityError
from ml_lifecycle.records import (
    Run,
    ScoredFile,
    ScoredPartition,
    ScoredShare,
    Scoring,
    ScoringPlan,
    Training,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.spark.job import Job
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.score_partitions import OpenRows, Partition, planned_partitions

# What the model runs on at once, and what a row group of the answers holds.
BATCH_ROWS = 65_536


def score(
    spec: ModelSpec,
    lake: Lake,
    run: Run,
    training: Training,
    version: str,
    partitions: Sequence[Partition],
    threads: int = 1,
    job: Job | None = None,
) -> Scoring:
    """Score ``partitions`` with the model of ``training``; the answers are those that a server gives.

    They go to ``scores/<model>/<digest>/part-NNNNN.parquet``, the manifest last: whatever is not a feature or
    the label passes through, beside ``label`` and ``probabilities``, or ``prediction``; then ``score`` as in
    the prediction log, ``model_version`` and ``model_digest``. Finished partitions are not computed again.

    :param version: the registry version of the model
    :param threads: of ONNX Runtime
    :param job: asks for the same, where Spark may run elsewhere
    :raises FeatureError: a feature is missing, of another type, or null where its type has no null; or the
        partitions have different columns. Retry: no.
    :raises SourceError: a partition cannot be read. Retry: no.
    :raises IntegrityError: the model file is not the registered one. Retry: no.
    :raises SparkElsewhereError: an application is to do this. Retry: no, run it.
    """
    with _Scorer(spec, lake, training, version, threads) as scorer:
        path, keys = scorer.place(partitions)
        if lake.exists(f"{path}/manifest.json"):
            return replace(from_json(Scoring, lake.read_json(f"{path}/manifest.json")), run=run)
        if spec.engine == "spark" and (missing := scorer.unfinished(keys)):
            from ml_lifecycle.spark.scoring import finish_on_spark
            from ml_lifecycle.spark.session import session_for, spark_session

            session = spark_session(spec.spark, lake) if job is None else session_for(spec.spark, lake, job)
            finish_on_spark(session, spec, lake, training, version, partitions, missing, threads)
        scored = scorer.answer(path, partitions, keys, range(len(partitions)))
    scoring = Scoring(
        run=run,
        digest=path.rsplit("/", 1)[-1],
        path=path,
        output_path=path,
        rows=sum(one.file.rows for one in scored),
        version=version,
        model_digest=training.model_digest,
        files=tuple(one.file for one in scored),
        columns=scored[0].columns if scored else {},
    )
    lake.write_json(f"{path}/manifest.json", to_json(scoring))
    return scoring


def score_plan(folder: ModelFolder, lake: Lake, plan: ScoringPlan, training: Training) -> Scoring:
    """:func:`score` the slices of a plan.

    :raises SpecError: the folder is not the one that the scoring was planned with. Retry: no.
    """
    job = Job("score", {"plan": to_json(plan)})
    spec = folder.spec
    with planned_partitions(folder, lake, plan) as partitions:
        return score(spec, lake, plan.run, training, plan.version, partitions, spec.scoring.threads, job)


def score_share(
    spec: ModelSpec,
    lake: Lake,
    plan: ScoringPlan,
    training: Training,
    partitions: Sequence[Partition],
    share: int,
    shares: int,
    threads: int = 1,
) -> ScoredShare:
    """See to it that every ``shares``-th of the partitions, from number ``share`` on, is finished.

    What :func:`score` then finds it need not compute. Raises as that does.
    """
    numbers = range(share, len(partitions), shares)
    scored = finish(spec, lake, training, plan.version, partitions, numbers, threads)
    return ScoredShare(plan.run, plan.digest, share, len(scored), sum(one.file.rows for one in scored))


def finish(
    spec: ModelSpec,
    lake: Lake,
    training: Training,
    version: str,
    partitions: Sequence[Partition],
    numbers: Sequence[int],
    threads: int = 1,
) -> list[ScoredPartition]:
    """See to it that the partitions of these numbers are finished. Raises as :func:`score` does."""
    with _Scorer(spec, lake, training, version, threads) as scorer:
        path, keys = scorer.place(partitions)
        return scorer.answer(path, partitions, keys, numbers)


def _check_alike(first: ScoredPartition, other: ScoredPartition) -> None:
    if first.columns != other.columns:
        raise FeatureError(
            f"{other.file.partition} has the columns {_listed(other.columns)}; {first.file.partition} has "
            f"{_listed(first.columns)}: all partitions must have the same ones, or score them apart"
        )


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())


class _Scorer(AbstractContextManager["_Scorer"]):
    """One version of a model, and how partitions become its answers.

    While the model runs on one batch the next is read and the last one written, each by a thread of its own.
    All that changes the lake is the second one's doing, so it happens in the same order each time; and the
    model need not wait until a file is safely on the disk, or in the store.
    """

    def __init__(self, spec: ModelSpec, lake: Lake, training: Training, version: str, threads: int) -> None:
        self._spec = spec
        self._lake = lake
        self._training = training
        self._version = version
        self._threads = threads
        self._features = [column.name for column in training.columns]
        self._reading = ThreadPoolExecutor(1, "read")
        self._writing = ThreadPoolExecutor(1, "write")

    def __exit__(self, *error: object) -> None:
        self._reading.shutdown()
        self._writing.shutdown()

    def place(self, partitions: Sequence[Partition]) -> tuple[str, list[str]]:
        """The result's folder, and of each partition the digest of what its answers follow from."""
        terms = {
            "stage": "score/2",
            "model": self._training.model_digest,
            "version": self._version,
            "threshold": self._spec.evaluation.threshold,
            "label": self._spec.labels.column,
            "features": [[column.name, column.type] for column in self._training.columns],
            # Both decide in which order ONNX Runtime adds up, and so the last bit.
            "batch_rows": BATCH_ROWS,
            "threads": self._threads,
        }
        keys = [digest_of({**terms, "rows": partition.digest}) for partition in partitions]
        named = [[partition.name, key] for partition, key in zip(partitions, keys, strict=True)]
        return f"scores/{self._spec.name}/{digest_of({**terms, 'partitions': named})}", keys

    def unfinished(self, keys: Sequence[str]) -> list[int]:
        """Numbers of the partitions that are to be computed, of several with the same rows the first."""
        first: dict[str, int] = {}
        for number, key in enumerate(keys):
            first.setdefault(key, number)
        return [number for key, number in first.items() if not self._lake.exists(self._note(key))]

    def _note(self, key: str) -> str:
        """What a finished partition came to."""
        return f"scored_partitions/{self._spec.name}/{key}.json"

    def answer(
        self, path: str, partitions: Sequence[Partition], keys: Sequence[str], numbers: Sequence[int]
    ) -> list[ScoredPartition]:
        """The partitions of these numbers with their answers below ``path``."""
        done: list[ScoredPartition] = []
        ending: Future[ScoredPartition] | None = None
        for place, number in enumerate(numbers):
            if ending is not None and keys[number] == keys[numbers[place - 1]]:
                wait([ending])  # then this one need not be computed again
            begun = self._answer(partitions[number], keys[number], f"{path}/part-{number:05d}.parquet")
            if ending is not None:
                done.append(ending.result())
                _check_alike(done[0], done[-1])
            ending = begun
        if ending is not None:
            done.append(ending.result())
            _check_alike(done[0], done[-1])
        return done

    def _answer(self, partition: Partition, key: str, target: str) -> Future[ScoredPartition]:
        noted = self._note(key)
        if self._lake.exists(noted):
            known = from_json(ScoredPartition, self._lake.read_json(noted))
            if self._lake.exists(target) or self._writing.submit(self._copy, known.file, target).result():
                found = replace(known, file=replace(known.file, partition=partition.name, path=target))
                return self._writing.submit(lambda: found)
        try:
            with partition.open() as rows:
                return self._write(partition.name, rows, target, noted)
        except FeatureError as error:
            raise FeatureError(f"{partition.name}: {error}") from error

    def _copy(self, known: ScoredFile, target: str) -> bool:
        """Whether an earlier result still has the very file."""
        lost = (LakeFileMissingError, IntegrityError)
        with tempfile.NamedTemporaryFile(prefix="scored-") as local, suppress(*lost):
            self._lake.get_file(known.path, local.name, known.digest)
            self._lake.put_file(target, local.name)
            return True
        return False

    def _write(self, name: str, rows: OpenRows, target: str, noted: str) -> Future[ScoredPartition]:
        passed = self._passed(rows.schema)
        schema = pa.schema([*(rows.schema.field(column) for column in passed), *self._answer_fields])
        batches = rows.batches([*passed, *self._features], BATCH_ROWS)
        coming = self._reading.submit(next, batches, None)
        output = ExitStack()
        opened = self._writing.submit(output.enter_context, writing_parquet(self._lake, target, schema))
        written: Future[Any] = opened
        try:
            while (batch := coming.result()) is not None:
                coming = self._reading.submit(next, batches, None)
                arrays = [*(batch.column(column) for column in passed), *self._answers(batch)]
                file = opened.result()
                written.result()  # two batches of answers are held at most
                written = self._writing.submit(file.write, pa.record_batch(arrays, schema=schema))
            written.result()
        except BaseException:
            wait([coming])  # or the file would be closed while it is read
            self._writing.submit(output.__exit__, *sys.exc_info()).result()
            raise

        def end() -> ScoredPartition:
            output.close()
            file = opened.result()
            columns = {field.name: _kind(field.type) for field in schema}
            scored = ScoredPartition(ScoredFile(name, target, file.digest, file.rows), columns)
            self._lake.write_json(noted, to_json(scored))
            return scored

        return self._writing.submit(end)

    def _passed(self, schema: pa.Schema) -> list[str]:
        """The columns that pass through."""
        if missing := [name for name in self._features if name not in schema.names]:
            raise FeatureError(
                f"the rows to score lack {', '.join(missing)}; they have {', '.join(schema.names)}"
            )
        out = {*self._features, self._spec.labels.column}
        passed = [name for name in schema.names if name not in out]
        if clash := [field.name for field in self._answer_fields if field.name in passed]:
            raise FeatureError(
                f"the rows have columns named like the answers, {', '.join(clash)}: rename them"
            )
        return passed

    @cached_property
    def _session(self) -> Any:
        data = self._lake.read_bytes(self._training.model_path, self._training.model_digest)
        return open_session(data, self._threads)

    @cached_property
    def _answer_fields(self) -> list[pa.Field]:
        label = label_type(self._session)
        if label is None:
            answers = {"prediction": pa.float32()}
        else:
            kind = pa.int64() if label == "int" else pa.large_string()
            answers = {"label": kind, "probabilities": pa.large_list(pa.float32())}
        texts = {"model_version": pa.large_string(), "model_digest": pa.large_string()}
        return [pa.field(name, kind) for name, kind in {**answers, "score": pa.float64(), **texts}.items()]

    def _answers(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """In the order of ``_answer_fields``."""
        rows = pl.DataFrame(pl.from_arrow(batch.select(self._features)))
        try:
            served = as_served(rows, self._training.columns)
        except pl.exceptions.PolarsError as error:
            raise FeatureError(f"a feature is not of the type that the model takes: {error}") from error
        answered = predict(self._session, feeds(served))
        return [*self._of_task(answered), *(text.slice(0, batch.num_rows) for text in self._same)]

    @cached_property
    def _same(self) -> list[pa.Array]:
        """What is the same in every row, once for all batches."""
        texts = (self._version, self._training.model_digest)
        return [pa.repeat(pa.scalar(text, pa.large_string()), BATCH_ROWS) for text in texts]

    def _of_task(self, answered: Prediction) -> list[pa.Array]:
        outputs, labels = answered.outputs, answered.labels
        if labels is None:
            return [pa.array(outputs), pa.array(outputs.astype(np.float64))]
        if self._spec.task == "binary":
            labels = decide(labels, outputs, self._training.classes, self._spec.evaluation.threshold)
        rows, classes = outputs.shape
        starts = pa.array(np.arange(0, rows * classes + 1, classes, dtype=np.int64))
        probabilities = pa.LargeListArray.from_arrays(starts, pa.array(outputs.reshape(-1)))
        scores = outputs[:, -1] if classes == 2 else outputs.max(axis=1)
        kind = self._answer_fields[0].type
        return [pa.array(labels, kind), probabilities, pa.array(scores.astype(np.float64))]


def _kind(kind: pa.DataType) -> str:
    """Its name, the same for the several ways in which Arrow lays out texts and lists."""
    return str(kind).replace("large_", "").replace("_view", "")
