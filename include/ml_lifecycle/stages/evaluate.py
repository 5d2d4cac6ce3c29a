"""Evaluate: the ONNX file that will be served, on the holdout, against its gates and the champion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.onnx import Prediction, as_served, feeds, open_session, predict
from ml_lifecycle.errors import FeatureError, GateError
from ml_lifecycle.evaluation.gates import Champion, Segment, gate_results, measure_segments
from ml_lifecycle.evaluation.golden import golden_rows, make_golden
from ml_lifecycle.evaluation.parity import finite_gate, parity_gates
from ml_lifecycle.evaluation.report import render_html
from ml_lifecycle.metrics import Answers, class_indices, measure_all
from ml_lifecycle.records import (
    ColumnSpec,
    Evaluation,
    GateResult,
    Training,
    TrainingSet,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.training.reference import Reference, batches, read_reference

Array = NDArray[Any]


def evaluate(
    spec: ModelSpec,
    lake: Lake,
    training: Training,
    champion: Training | None,
    champion_version: str | None,
    now: datetime,
) -> Evaluation:
    """Measure every gate; the verdict is in the record, :func:`raise_if_failed` acts on it.

    The holdout is scored in batches, so that memory grows with its answers and not with its columns.

    :param champion: the training of the version in production; None if there is none yet
    :param now: written on the report
    :raises FeatureError: the holdout lacks a column of the model. Retry: no.
    :raises IntegrityError: a model's bytes do not have its digest. Retry: no.
    """
    digest = inputs_digest(spec, training, champion, champion_version)
    path = f"evaluations/{spec.name}/{digest}"
    manifest_path = f"{path}/manifest.json"
    try:
        return replace(from_json(Evaluation, lake.read_json(manifest_path)), run=training.run)
    except LakeFileMissingError:
        pass
    training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
    reference = read_reference(lake, training.reference_path, training.columns, spec.task)
    session = open_session(lake.read_bytes(training.model_path, training.model_digest))
    on_holdout = _score(session, lake, training_set.holdout_path, training.columns)
    labels = _read_column(lake, training_set.holdout_path, training_set.label_column)
    answers = _answers(spec, labels, on_holdout, training.classes)
    compared = None
    if champion is not None:
        compared = _compare_with(champion, spec, lake, training_set, labels)
    parity = _parity(
        spec,
        reference,
        session,
        on_holdout,
        labels,
        lambda: _asked(lake, training_set.holdout_path, training.columns, reference),
    )
    gates, segments = _gates(spec, lake, training_set, answers, compared)
    metrics, not_computed = measure_all(answers)
    champion_metrics = measure_all(compared.answers)[0] if compared and compared.answers else {}
    evaluation = Evaluation(
        run=training.run,
        digest=digest,
        path=path,
        training_path=training.path,
        model_digest=training.model_digest,
        passed=all(gate.passed for gate in (*parity, *gates)),
        gates=(*parity, *gates),
        metrics=metrics,
        champion_metrics=champion_metrics,
        champion_version=champion_version if champion else None,
        champion_digest=champion.model_digest if champion else None,
        golden_path=f"{path}/golden.json",
        report_path=f"{path}/report.html",
        holdout_rows=training_set.holdout_rows,
        for_record=champion is not None and training.train_end < champion.train_end,
    )
    golden = _read_rows(lake, training_set.holdout_path, training.columns, golden_rows(len(answers)))
    golden = pl.concat([golden, reference.probes])
    lake.write_json(evaluation.golden_path, make_golden(session, training, golden, spec.evaluation.threshold))
    page = render_html(evaluation, training, training_set, segments, not_computed, now)
    lake.write_bytes(evaluation.report_path, page)
    details = {
        "evaluated_at": now.isoformat(),
        "segments": [asdict(segment) for segment in segments],
        "not_computed": not_computed,
    }
    lake.write_json(f"{path}/report.json", {**to_json(evaluation), **details})
    lake.write_json(manifest_path, to_json(evaluation))
    return evaluation


def inputs_digest(
    spec: ModelSpec, training: Training, champion: Training | None, champion_version: str | None
) -> str:
    """What names the evaluation of a model by these gates against this champion."""
    return digest_of(
        {
            "schema": Evaluation.schema,
            "training": training.digest,
            "model": training.model_digest,
            "champion": [champion.digest, champion.model_digest, champion_version] if champion else None,
            "evaluation": spec.evaluation.model_dump(mode="json"),
            "embargo": spec.labels.delay.total_seconds(),
        }
    )


def raise_if_failed(evaluation: Evaluation) -> None:
    """Stop a run whose model missed a gate. One for the record goes on: it cannot become a candidate.

    :raises GateError: a gate was missed or could not be computed. Retry: no.
    """
    if evaluation.passed or evaluation.for_record:
        return
    failed = [gate for gate in evaluation.gates if not gate.passed]
    raise GateError(
        f"{len(failed)} of {len(evaluation.gates)} gates failed on {evaluation.holdout_rows} holdout rows:\n"
        + "\n".join(f"  {_describe(gate)}" for gate in failed)
    )


def _describe(gate: GateResult) -> str:
    measured = "could not be computed" if gate.measured is None else f"is {gate.measured:.6g}"
    reason = f" ({gate.reason})" if gate.reason else ""
    return f"{gate.gate} {measured}, must be {gate.threshold}{reason}"


def _score(session: Any, lake: Lake, path: str, columns: Sequence[ColumnSpec]) -> Prediction:
    parts = [predict(session, feeds(as_served(batch, columns))) for batch in batches(lake, path)]
    labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
    return Prediction(np.concatenate([part.outputs for part in parts]), labels)


def _answers(spec: ModelSpec, labels: pl.Series, prediction: Prediction, classes: Sequence[str]) -> Answers:
    truth = class_indices(labels, classes) if classes else labels.cast(pl.Float64).to_numpy()
    return Answers(spec.task, truth, prediction.outputs, spec.evaluation.threshold)


def _compare_with(
    champion: Training, spec: ModelSpec, lake: Lake, training_set: TrainingSet, labels: pl.Series
) -> Champion:
    """The champion's answers to the same rows, or why a comparison would not be honest."""
    known_until = champion.train_end + spec.labels.delay
    if known_until > training_set.holdout.start:
        return Champion(
            None,
            f"its training rows, with the embargo, reach to {known_until.isoformat()}, "
            f"into the holdout that starts at {training_set.holdout.start.isoformat()}",
        )
    session = open_session(lake.read_bytes(champion.model_path, champion.model_digest))
    types = {column.name: column.type for column in training_set.columns}
    if odd := [column.name for column in champion.columns if types.get(column.name) != column.type]:
        return Champion(
            None, f"it needs columns that this training set lacks or types otherwise: {', '.join(odd)}"
        )
    try:
        prediction = _score(session, lake, training_set.holdout_path, champion.columns)
    except FeatureError as error:
        return Champion(None, str(error))
    return Champion(_answers(spec, labels, prediction, champion.classes))


def _parity(
    spec: ModelSpec,
    reference: Reference,
    session: Any,
    on_holdout: Prediction,
    labels: pl.Series,
    rows: Callable[[], Iterable[pl.DataFrame]],
) -> list[GateResult]:
    on_probes = predict(session, feeds(reference.probes))
    both = Prediction(
        np.concatenate([on_holdout.outputs, on_probes.outputs]),
        None if on_holdout.labels is None else np.concatenate([on_holdout.labels, on_probes.labels]),
    )
    spread = 1.0
    if spec.task == "regression":
        spread = float(labels.cast(pl.Float64).to_numpy().std()) or 1.0  # equal labels have no scale to offer
    return [
        finite_gate(both),
        *parity_gates(reference, both, spec.evaluation, spec.task, spread, rows),
    ]


def _asked(
    lake: Lake, path: str, columns: Sequence[ColumnSpec], reference: Reference
) -> Iterator[pl.DataFrame]:
    """The inputs, as served, of the rows that parity compares; without those that may not be shown."""
    shown = [column.name for column in columns if not column.personal]
    yield from (as_served(batch, columns).select(shown) for batch in batches(lake, path))
    yield reference.probes.select(shown)


def _gates(
    spec: ModelSpec, lake: Lake, training_set: TrainingSet, answers: Answers, champion: Champion | None
) -> tuple[list[GateResult], list[Segment]]:
    results: list[GateResult] = []
    measured: list[Segment] = []
    for gate in spec.evaluation.gates:
        segments: list[Segment] = []
        if gate.segment is not None:
            values = _read_column(lake, training_set.holdout_path, gate.segment)
            personal = gate.segment in training_set.personal
            segments = measure_segments(gate, answers, values, personal=personal) if len(values) else []
        results += gate_results(gate, answers, champion, segments)
        measured += segments
    return results, measured


def _read_column(lake: Lake, path: str, column: str) -> pl.Series:
    """One column of a Parquet file; empty if it has no such column."""
    with lake.open(path) as file:
        if column not in pl.read_parquet_schema(file):
            return pl.Series(column, [], dtype=pl.String)
        file.seek(0)
        return pl.read_parquet(file, columns=[column])[column]


def _read_rows(lake: Lake, path: str, columns: Sequence[ColumnSpec], rows: Sequence[int]) -> pl.DataFrame:
    wanted = pl.Series(rows)
    found, before = [], 0
    for batch in batches(lake, path):
        here = wanted.filter((wanted >= before) & (wanted < before + batch.height)) - before
        found.append(as_served(batch[here], columns))
        before += batch.height
    return pl.concat(found)
