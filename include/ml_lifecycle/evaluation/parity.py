"""Parity: the ONNX file must answer as the original estimator did, on every holdout row and every probe.

Three budgets, because each alone is blind: absolute differences say nothing about tiny probabilities,
relative ones exaggerate them, and neither says whether a decision changed. A model that is refused is told
how many rows differ, by how much, which kind of rows they are, and what to do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.onnx import Prediction
from ml_lifecycle.records import GateResult, TaskType
from ml_lifecycle.spec.model import Evaluation
from ml_lifecycle.training.reference import Reference

Array = NDArray[Any]

_MANY_ROWS = (
    "a part of the estimator converts inexactly, as HistGradientBoosting with categorical_features does: "
    "encode the categories and leave that argument out"
)
_FEW_ROWS = (
    "float32 rounds a value next to a tree's threshold or a bin's edge to its other side: leave out scalers "
    "before trees, or allow for it under evaluation.parity in model.yaml"
)
_FEW = 0.05
_STANDS_OUT = 0.2
_MAX_VALUES = 100


def finite_gate(prediction: Prediction) -> GateResult:
    """No answer may be NaN or infinite."""
    rows = int((~np.isfinite(_matrix(prediction.outputs)).all(axis=1)).sum())
    return GateResult("finite", rows == 0, "no row without a finite answer", float(rows))


def parity_gates(
    reference: Reference,
    prediction: Prediction,
    evaluation: Evaluation,
    task: TaskType,
    spread: float,
    rows: Callable[[], Iterable[pl.DataFrame]],
) -> list[GateResult]:
    """Compare the file's answers with the estimator's, row by row.

    :param prediction: the file's answers to the holdout, then to the probes
    :param rows: reads those rows' inputs as served, a batch at a time; asked only if they differ
    :param spread: standard deviation of the holdout's labels, for regression: ``absolute`` and
        ``relative_floor`` are in its units there, as a prediction has no scale of its own
    """
    limits = evaluation.parity
    unit = spread if task == "regression" else 1.0
    floor = limits.relative_floor * unit
    texts = {
        "parity.absolute": f"at most {limits.absolute * unit:g}",
        "parity.relative": f"at most {limits.relative:g} where the answer is {floor:g} or more",
    }
    if task != "regression":
        texts["parity.flips"] = f"at most {limits.flips} rows decided differently"
    expected, got = _matrix(reference.outputs), _matrix(prediction.outputs).astype(np.float64)
    if expected.shape != got.shape:
        reason = f"the estimator gave {expected.shape} answers, the ONNX file {got.shape}"
        return [GateResult(gate, False, text, reason=reason) for gate, text in texts.items()]
    if not (np.isfinite(expected) & np.isfinite(got)).all():
        reason = "some answers are NaN or infinite"
        return [GateResult(gate, False, text, reason=reason) for gate, text in texts.items()]

    difference = np.abs(got - expected)
    large = np.abs(expected) >= floor
    relative = np.where(large, difference / np.where(large, np.abs(expected), 1), 0)
    bounds = {
        "parity.absolute": (difference, limits.absolute * unit),
        "parity.relative": (relative, limits.relative),
    }
    results: list[GateResult] = []
    for gate, (measured, bound) in bounds.items():
        worst = float(measured.max())
        told: str | None = None
        if worst > bound:
            told = _worst_row(reference, expected, got, measured, bound)
            if all(result.passed for result in results):  # once is enough
                by_row = measured.max(axis=1)
                few = (by_row > bound).mean() <= _FEW
                kind = kind_of_rows(by_row > max(bound, worst / 10), rows())
                told = f"{told}; {kind}; {_FEW_ROWS if few else _MANY_ROWS}"
        results.append(GateResult(gate, told is None, texts[gate], worst, reason=told))
    if task != "regression":
        flipped = _flipped(reference, prediction, task, evaluation.threshold)
        results.append(
            GateResult(
                "parity.flips",
                passed=len(flipped) <= limits.flips,
                threshold=texts["parity.flips"],
                measured=float(len(flipped)),
                reason=f"first in {_row_name(reference, int(flipped[0]))}" if len(flipped) else None,
            )
        )
    return results


def kind_of_rows(differing: Array, rows: Iterable[pl.DataFrame]) -> str:
    """In words, the one value of one column that best tells the rows that differ from the others.

    Best by the correlation of two truth values (Yule's phi), by which a few odd rows do not stand out.

    :param differing: ``(n,)`` which rows do
    :param rows: their inputs as served, in batches
    """
    among: Counter[str] = Counter()
    total: Counter[str] = Counter()
    before = 0
    for batch in rows:
        here = pl.Series("differing", differing[before : before + batch.height])
        before += batch.height
        for kinds in map(_kinds, batch):
            counts = (
                pl.DataFrame([kinds, here]).drop_nulls().group_by("kind").agg(pl.len(), pl.sum("differing"))
            )
            for kind, n, hits in counts.iter_rows():
                total[kind] += n
                among[kind] += hits
    n, count = len(differing), int(differing.sum())

    def stands_out(kind: str) -> float:
        spread = total[kind] * (n - total[kind]) * count * (n - count)
        return (n * among[kind] - total[kind] * count) / math.sqrt(spread) if spread else 0.0

    best = max(total, key=stands_out, default="")
    if not best or stands_out(best) < _STANDS_OUT:
        return "no kind of rows stands out"
    return (
        f"the difference is large in {among[best]} of the {total[best]} rows where {best} "
        f"and in {count - among[best]} of the other {n - total[best]}"
    )


def _kinds(values: pl.Series) -> pl.Series:
    """What kind of row each is by this column, in words; null where there are too many kinds to tell."""
    missing = pl.lit(f"{values.name} is missing")
    words = pl.lit(None, dtype=pl.String)
    if values.dtype.is_float():
        words = pl.when(values.is_nan()).then(missing).otherwise(pl.lit(f"{values.name} is there"))
    elif values.n_unique() <= _MAX_VALUES:
        texts = values.cast(pl.String)
        words = pl.when(texts == "").then(missing).otherwise(pl.lit(f"{values.name} is ") + texts)
    return values.to_frame().select(words.alias("kind")).to_series()


def _worst_row(reference: Reference, expected: Array, got: Array, measured: Array, bound: float) -> str:
    row, column = np.unravel_index(int(measured.argmax()), measured.shape)
    differing = int((measured > bound).any(axis=1).sum())
    return (
        f"{differing} of {len(measured)} rows differ, most of all {_row_name(reference, int(row))}: the "
        f"estimator answers {expected[row, column]:.6g}, the ONNX file {got[row, column]:.6g}"
    )


def _flipped(reference: Reference, prediction: Prediction, task: TaskType, threshold: float) -> Array:
    """Rows with another label or, for binary, on the other side of the threshold."""
    labels = np.asarray([str(label) for label in np.asarray(prediction.labels).tolist()])
    differs = labels != np.asarray(reference.labels)
    if task == "binary":
        differs |= (reference.outputs[:, -1] >= threshold) != (prediction.outputs[:, -1] >= threshold)
    return np.flatnonzero(differs)


def _row_name(reference: Reference, row: int) -> str:
    if row < reference.holdout_rows:
        return f"holdout row {row}"
    return f"the probe with {reference.probe_names[row - reference.holdout_rows]}"


def _matrix(outputs: Array) -> Array:
    return outputs.reshape(len(outputs), -1)
