"""Score: a batch of rows through the champion's ONNX file, part by part in bounded memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import as_served, decide, feeds, open_session, predict
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Run, Scoring, Training, digest_of, from_json, to_json
from ml_lifecycle.spec.model import ModelSpec

PART_ROWS = 50_000


def score(
    spec: ModelSpec,
    lake: Lake,
    run: Run,
    training: Training,
    version: str,
    rows: str | pl.LazyFrame,
    part_rows: int = PART_ROWS,
) -> Scoring:
    """Score ``rows`` with the model of ``training``; the answers are those that a server gives.

    Parts go to ``scores/<model>/<digest>/part-NNNNN.parquet``, the manifest last: whatever is not a feature
    or the label passes through, beside ``label`` and ``probabilities``, or ``prediction``; then ``score`` as
    in the prediction log, ``model_version`` and ``model_digest``. Parts that an interrupted run has finished
    are kept. The rows are read twice, first for the digest that names the result.

    :param version: the registry version of the model
    :param rows: a Parquet file in the lake, or a frame whose order does not change from one read to the next
    :raises FeatureError: a feature is missing, or null where its type has no null. Retry: no.
    :raises IntegrityError: the model file is not the registered one. Retry: no.
    """
    frame = lake.scan([rows]) if isinstance(rows, str) else rows
    columns = _columns(frame, training, spec.labels.column)
    frame = frame.select(columns)
    digest = digest_of(
        {
            "stage": "score/1",
            "model": training.model_digest,
            "version": version,
            "part_rows": part_rows,
            "threshold": spec.evaluation.threshold,
            "columns": columns,
            "rows": _rows_digest(frame, part_rows),
        }
    )
    path = f"scores/{spec.name}/{digest}"
    if lake.exists(f"{path}/manifest.json"):
        return replace(from_json(Scoring, lake.read_json(f"{path}/manifest.json")), run=run)
    session = open_session(lake.read_bytes(training.model_path, training.model_digest))
    total = 0
    for number, batch in enumerate(_batches(frame, part_rows)):
        part = f"{path}/part-{number:05d}.parquet"
        if not lake.exists(part):
            lake.write_bytes(part, _parquet(_answers(spec, session, batch, training, version)))
        total += batch.height
    scoring = Scoring(
        run=run,
        digest=digest,
        path=path,
        output_path=path,
        rows=total,
        version=version,
        model_digest=training.model_digest,
    )
    lake.write_json(f"{path}/manifest.json", to_json(scoring))
    return scoring


def _columns(frame: pl.LazyFrame, training: Training, label: str) -> list[str]:
    present = frame.collect_schema().names()
    features = [column.name for column in training.columns]
    if missing := [name for name in features if name not in present]:
        raise FeatureError(f"the rows to score lack {', '.join(missing)}; they have {', '.join(present)}")
    passed = [name for name in present if name not in features and name != label]
    return [*passed, *features]


def _batches(frame: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """Batches of exactly ``rows`` rows but for the last, so that a part is the same in every attempt."""
    waiting = pl.DataFrame(schema=frame.collect_schema())
    for batch in frame.collect_batches(chunk_size=rows, maintain_order=True):
        waiting = pl.concat([waiting, batch])
        while waiting.height >= rows:
            yield waiting.head(rows)
            waiting = waiting.slice(rows)
    if waiting.height:
        yield waiting


def _rows_digest(frame: pl.LazyFrame, part_rows: int) -> str:
    """SHA-256 of the rows' types and values, wherever and however they are stored."""
    digest = hashlib.sha256(repr(dict(frame.collect_schema())).encode())
    for batch in _batches(frame, part_rows):
        # Nested values have no CSV form; as JSON text they have one.
        nested = [name for name, dtype in batch.schema.items() if dtype.is_nested()]
        texts = batch.with_columns(pl.struct(name).struct.json_encode().alias(name) for name in nested)
        digest.update(texts.write_csv(include_header=False, null_value="\0").encode())
    return digest.hexdigest()


def _answers(
    spec: ModelSpec, session: Any, batch: pl.DataFrame, training: Training, version: str
) -> pl.DataFrame:
    features = [column.name for column in training.columns]
    answered = predict(session, feeds(as_served(batch, training.columns)))
    outputs = answered.outputs
    if answered.labels is None:
        answers = {"prediction": pl.Series(outputs), "score": pl.Series(outputs, dtype=pl.Float64)}
    else:
        scores = outputs[:, -1] if outputs.shape[1] == 2 else outputs.max(axis=1)
        labels = answered.labels
        if spec.task == "binary":
            labels = decide(labels, outputs, training.classes, spec.evaluation.threshold)
        answers = {
            "label": pl.Series(labels.tolist()),
            "probabilities": pl.Series(outputs.tolist(), dtype=pl.List(pl.Float32)),
            "score": pl.Series(scores, dtype=pl.Float64),
        }
    return batch.drop(features).with_columns(
        **answers, model_version=pl.lit(version), model_digest=pl.lit(training.model_digest)
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
