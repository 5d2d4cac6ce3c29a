"""Parity: the ONNX file must answer as the original estimator did, on every holdout row and every probe.

Three budgets, because each alone is blind: absolute differences say nothing about tiny probabilities,
relative ones exaggerate them, and neither says whether a decision changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.adapters.onnx import Prediction
from ml_lifecycle.records import GateResult, TaskType
from ml_lifecycle.spec.model import Parity
from ml_lifecycle.training.reference import Reference

Array = NDArray[Any]

_HINT = (
    "the estimator does not convert exactly (HistGradientBoosting with categorical_features is known for it: "
    "encode the categories and leave that argument out)"
)


def finite_gate(prediction: Prediction) -> GateResult:
    """No answer may be NaN or infinite."""
    rows = int((~np.isfinite(_matrix(prediction.outputs)).all(axis=1)).sum())
    return GateResult("finite", rows == 0, "no row without a finite answer", float(rows))


def parity_gates(
    reference: Reference,
    prediction: Prediction,
    limits: Parity,
    task: TaskType,
    threshold: float,
    spread: float,
) -> list[GateResult]:
    """Compare the file's answers with the estimator's, row by row.

    :param prediction: the file's answers to the holdout, then to the probes
    :param spread: standard deviation of the holdout's labels, for regression: ``absolute`` and
        ``relative_floor`` are in its units there, as a prediction has no scale of its own
    """
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
    results = []
    for gate, (measured, bound) in bounds.items():
        row, column = np.unravel_index(int(measured.argmax()), measured.shape)
        worst = float(measured[row, column])
        pair = f"{expected[row, column]:.6g}, the ONNX file {got[row, column]:.6g}"
        reason = f"{_row_name(reference, int(row))}: the estimator answers {pair}; {_HINT}"
        passed = worst <= bound
        results.append(GateResult(gate, passed, texts[gate], worst, reason=None if passed else reason))
    if task != "regression":
        flipped = _flipped(reference, prediction, task, threshold)
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
