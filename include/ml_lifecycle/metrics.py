"""How good answers are, once their truth is known: the same functions for training, gates and monitoring.

NumPy only, so that a pod, a stage and the monitor compute the same number the same way. A metric that the
rows at hand cannot give (one class only, nothing predicted positive) raises :class:`MetricError`; it never
returns NaN, which would compare as "not below the threshold".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import TaskType

Array = NDArray[Any]

# The spacing of float32 at 1. Served probabilities are float32: one that is nearer to 0 or 1 than this is
# rounding, and without a floor a single row of it would decide the mean.
PROBABILITY_FLOOR = float(np.finfo(np.float32).eps)
CALIBRATION_BINS = 10
UNKNOWN_CLASS = -1


class MetricError(LifecycleError):
    """A metric is unknown for the task, or these rows cannot give it. Retry: no."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to rows whose truth is known.

    :param truth: ``(n,)``: for classifiers the index of the true class in the order of the outputs,
        :data:`UNKNOWN_CLASS` for a class the model does not know; for regression the true value
    :param outputs: ``(n, classes)`` probabilities, or ``(n,)`` predictions
    :param threshold: binary only: from which probability of the positive (last) class a row counts as such
    """

    task: TaskType
    truth: Array
    outputs: Array
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if len(self.truth) != len(self.outputs):
            raise ValueError(f"{len(self.truth)} truths for {len(self.outputs)} answers")

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: Array) -> Answers:
        """The answers to some of the rows, by mask or index."""
        return Answers(self.task, self.truth[rows], self.outputs[rows], self.threshold)

    @property
    def positive(self) -> Array:
        """Whether each row is truly positive; binary only."""
        return np.asarray(self.truth == 1)

    @property
    def score(self) -> Array:
        """Probability of the positive class; binary only."""
        return np.asarray(self.outputs[:, -1], dtype=np.float64)

    @property
    def decisions(self) -> Array:
        """The class each row is put in, by threshold (binary) or by the largest probability."""
        if self.task == "binary":
            return (self.score >= self.threshold).astype(np.int64)
        return np.asarray(np.argmax(self.outputs, axis=1))


def plain_labels(labels: pl.Series) -> pl.Series:
    """Class labels as a classifier is fitted on and ONNX can answer them: int64 or text.

    Booleans become 0 and 1, floats without a fraction int64.
    """
    if labels.dtype.is_float() and not bool((labels.drop_nulls() % 1 == 0).all()):
        return labels
    if labels.dtype.is_numeric() or labels.dtype == pl.Boolean:
        return labels.cast(pl.Int64)
    return labels.cast(pl.String)


def label_texts(labels: pl.Series) -> pl.Series:
    """Class labels as text, the form :attr:`~ml_lifecycle.records.Training.classes` has."""
    return plain_labels(labels).cast(pl.String)


def class_indices(labels: pl.Series, classes: Sequence[str]) -> Array:
    """Index of each label in ``classes``; :data:`UNKNOWN_CLASS` for any other."""
    index = {name: position for position, name in enumerate(classes)}
    texts = label_texts(labels)
    return np.fromiter((index.get(text, UNKNOWN_CLASS) for text in texts), dtype=np.int64, count=len(texts))


def roc_auc(answers: Answers) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Mann and Whitney's U over the number of pairs (Hanley & McNeil, Radiology 143, 1982).
    """
    positives = int(answers.positive.sum())
    negatives = len(answers) - positives
    _need_both_classes(positives, negatives)
    _, inverse, counts = np.unique(answers.score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = ranks[answers.positive].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


def pr_auc(answers: Answers) -> float:
    """Average precision: that of each distinct threshold, weighted by the recall gained, no interpolation.

    Manning, Raghavan & Schütze, *Introduction to Information Retrieval*, 2008, chapter 8.4.
    """
    positives = int(answers.positive.sum())
    _need_both_classes(positives, len(answers) - positives)
    order = np.argsort(-answers.score, kind="stable")
    hits = np.cumsum(answers.positive[order])
    last_of_tie = np.append(np.diff(answers.score[order]) != 0, True)
    hits, taken = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float(np.sum(np.diff(hits, prepend=0) / positives * (hits / taken)))


def log_loss(answers: Answers) -> float:
    """Mean of −ln p(true class), in nats (Good, J. R. Stat. Soc. B 14, 1952).

    Probabilities are kept :data:`PROBABILITY_FLOOR` away from 0 and 1; a class the model does not know
    counts as probability 0.
    """
    known = answers.truth >= 0
    chosen = np.zeros(len(answers))
    chosen[known] = answers.outputs[known, answers.truth[known]]
    return float(-np.log(np.clip(chosen, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)).mean())


def skill(answers: Answers) -> float:
    """How much better than always answering the rows' own class shares: 1 − log loss / their entropy.

    The skill score of Murphy (Mon. Weather Rev. 116, 1988) on the logarithmic score; unlike log loss itself
    it does not move with the base rate alone. 1 is perfect, 0 no better than the base rate, below 0 worse.
    """
    counts = np.unique(answers.truth, return_counts=True)[1]
    shares = counts / counts.sum()
    if len(shares) < 2:
        raise MetricError("skill needs two classes among the rows, they hold one")
    return 1 - log_loss(answers) / float(-(shares * np.log(shares)).sum())


def brier(answers: Answers) -> float:
    """Mean squared distance of the positive class's probability from 0 or 1 (Brier, 1950)."""
    return float(np.mean((answers.score - answers.positive) ** 2))


def calibration_error(answers: Answers) -> float:
    """Expected calibration error over ten bins of equal width: |share true − mean probability|, by rows.

    Naeini, Cooper & Hauskrecht, AAAI 2015; for more than two classes on the most probable class
    (Guo et al., ICML 2017).
    """
    if answers.task == "binary":
        probability, correct = answers.score, answers.positive
    else:
        probability = np.asarray(answers.outputs.max(axis=1), dtype=np.float64)
        correct = answers.decisions == answers.truth
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    difference = np.bincount(bins, weights=correct - probability, minlength=CALIBRATION_BINS)
    return float(np.abs(difference).sum() / len(answers))


def accuracy(answers: Answers) -> float:
    """Share of rows put in their true class."""
    return float(np.mean(answers.decisions == answers.truth))


def precision(answers: Answers) -> float:
    """Share of true positives among the rows decided positive."""
    decided = answers.decisions == 1
    if not decided.any():
        raise MetricError(f"precision: no row reaches the threshold {answers.threshold:g}")
    return float(answers.positive[decided].mean())


def recall(answers: Answers) -> float:
    """Share of the positive rows that are decided positive."""
    if not answers.positive.any():
        raise MetricError("recall needs a positive row, there is none")
    return float((answers.decisions[answers.positive] == 1).mean())


def f1(answers: Answers) -> float:
    """Harmonic mean of precision and recall, as 2·TP / (2·TP + FP + FN) (van Rijsbergen, 1979)."""
    return _f1_of(answers.positive, answers.decisions == 1)


def f1_macro(answers: Answers) -> float:
    """Mean of each class's F1 over the classes that are true or decided for at least one row."""
    seen = np.union1d(answers.truth, answers.decisions)
    return float(np.mean([_f1_of(answers.truth == one, answers.decisions == one) for one in seen]))


def rmse(answers: Answers) -> float:
    """Root of the mean squared error, in the label's unit."""
    return float(np.sqrt(np.mean(_errors(answers) ** 2)))


def mae(answers: Answers) -> float:
    """Mean absolute error, in the label's unit."""
    return float(np.mean(np.abs(_errors(answers))))


def median_ae(answers: Answers) -> float:
    """Median absolute error, in the label's unit."""
    return float(np.median(np.abs(_errors(answers))))


def bias(answers: Answers) -> float:
    """Distance of the mean answer from the mean label, in the label's unit and without its sign."""
    return float(abs(np.mean(_errors(answers))))


def r2(answers: Answers) -> float:
    """1 − squared error / squared distance from the rows' own mean: Murphy's skill score on the MSE."""
    spread = float(np.sum((answers.truth - np.mean(answers.truth)) ** 2))
    if spread == 0:
        raise MetricError("r2 and skill need rows whose labels differ, they are all equal")
    return 1 - float(np.sum(_errors(answers) ** 2)) / spread


def _errors(answers: Answers) -> Array:
    return np.asarray(answers.outputs, dtype=np.float64) - answers.truth


def _f1_of(true: Array, decided: Array) -> float:
    hits = int((true & decided).sum())
    missed_or_wrong = int((true ^ decided).sum())
    if hits + missed_or_wrong == 0:
        raise MetricError("f1 needs a row that is positive or decided positive, there is none")
    return 2 * hits / (2 * hits + missed_or_wrong)


def _need_both_classes(positives: int, negatives: int) -> None:
    if positives == 0 or negatives == 0:
        raise MetricError(f"needs both classes among the rows: {positives} positive, {negatives} negative")


Metric = Callable[[Answers], float]
_BOTH: dict[str, Metric] = {
    "log_loss": log_loss,
    "skill": skill,
    "accuracy": accuracy,
    "calibration_error": calibration_error,
}
METRICS: dict[TaskType, dict[str, Metric]] = {
    "binary": {
        **_BOTH,
        "roc_auc": roc_auc,
        "pr_auc": pr_auc,
        "brier": brier,
        "precision": precision,
        "recall": recall,
        "f1": f1,
    },
    "multiclass": {**_BOTH, "f1_macro": f1_macro},
    "regression": {"rmse": rmse, "mae": mae, "median_ae": median_ae, "bias": bias, "r2": r2, "skill": r2},
}
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error", "rmse", "mae", "median_ae", "bias"})


def measure(metric: str, answers: Answers) -> float:
    """One metric, by its name in the spec.

    :raises MetricError: the task has no such metric, or these rows cannot give it. Retry: no.
    """
    known = METRICS[answers.task]
    if metric not in known:
        raise MetricError(f"{answers.task} has no metric {metric!r}: use one of {', '.join(sorted(known))}")
    if len(answers) == 0:
        raise MetricError(f"{metric}: there are no rows")
    if not np.isfinite(answers.outputs).all():
        raise MetricError(f"{metric}: some answers are NaN or infinite")
    return known[metric](answers)


def measure_all(answers: Answers) -> tuple[dict[str, float], dict[str, str]]:
    """Every metric of the task: the numbers, and the reasons of those that could not be computed."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in METRICS[answers.task]:
        try:
            values[name] = measure(name, answers)
        except MetricError as error:
            reasons[name] = str(error)
    return values, reasons


def worse_by(metric: str, value: float, reference: float) -> float:
    """How much worse ``value`` is than ``reference``; negative where it is better."""
    return value - reference if metric in LOWER_IS_BETTER else reference - value
