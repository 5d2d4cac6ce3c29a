"""Every metric of a task from sums over rows, of as many weightings of the rows as one likes at once.

The definitions are :mod:`ml_lifecycle.metrics`'; tests hold the two against each other. Drawing rows again,
and drawing their truth, both come to weights: what each row adds is computed once and not once a draw. The
same sums can be added up over batches of rows that do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.metrics import CALIBRATION_BINS, PROBABILITY_FLOOR, Answers, Array
from ml_lifecycle.records import TaskType

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]

# Floats of weights that are held at once.
_HELD = 4_000_000


@dataclass(frozen=True)
class Summands:
    """What rows add to the sums that metrics are made of.

    :param names: of the sums, in the order of the columns
    :param rows: ``(rows, sums)``
    """

    names: tuple[str, ...]
    rows: csr_array


@dataclass(frozen=True)
class Ranked:
    """For metrics that depend on an order: rising ranks, and how much of what kind is at each.

    :param rank: ``(ranks,)`` the score (binary), the absolute error (regression)
    :param weight: ``(draws, ranks)``
    :param positive: ``(draws, ranks)``, of the weight; binary only
    """

    rank: Floats
    weight: Floats
    positive: Floats


def summands(answers: Answers, origin: float = 0.0) -> Summands:
    """What each row adds.

    :param origin: regression: subtracted from truths, so that squares of large ones cancel nothing; near them
    """
    return _sparse(_columns(answers, origin), len(answers))


def sums_of(answers: Answers, origin: float = 0.0) -> dict[str, float]:
    """What all rows add together; see :func:`summands`."""
    rows = len(answers)
    return {
        name: float(np.sum(column, dtype=np.float64)) if np.ndim(column) else column * rows
        for name, column in _columns(answers, origin)
    }


def rank_of(answers: Answers) -> Floats | None:
    """What rows are ordered by; None where no metric of the task asks."""
    if answers.task == "binary":
        return answers.score
    if answers.task == "regression":
        return np.abs(np.asarray(answers.outputs, np.float64) - answers.truth)
    return None


def metrics_of_sums(
    task: TaskType, names: Sequence[str], sums: Floats, ranked: Ranked | None
) -> Mapping[str, Floats]:
    """Each metric of the task of each weighting; NaN where these weights cannot give it.

    :param sums: ``(draws, sums)``
    """
    total = dict(zip(names, sums.T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        if task == "regression":
            return _regression(total, ranked)
        found = _classification(total)
        if task == "multiclass":
            return {**found, "f1_macro": _f1_macro(total)}
        return {**found, **_binary(total, ranked)}


def draw_metrics(
    answers: Answers, metrics: Sequence[str], draws: int, draw: Callable[[int], Array]
) -> dict[str, Floats]:
    """Each metric of every draw; without those that more than one in ten draws cannot give.

    :param draw: number of the draw → indices of the rows that are in it, as often as they are
    """
    if not np.isfinite(answers.outputs).all():
        return {}  # as metrics.measure
    found: dict[str, list[Floats]] = {metric: [] for metric in metrics}
    for part in _weighted(answers, draws, draw):
        for metric, values in found.items():
            values.append(part[metric])
    whole = {metric: np.concatenate(values) for metric, values in found.items()}
    known = {metric: values[~np.isnan(values)] for metric, values in whole.items()}
    return {metric: values for metric, values in known.items() if len(values) >= 0.9 * draws}


def _weighted(answers: Answers, draws: int, draw: Callable[[int], Array]) -> Iterator[Mapping[str, Floats]]:
    rank = rank_of(answers)
    order = np.arange(len(answers)) if rank is None else np.argsort(rank, kind="stable")
    answers = answers.take(order)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    added = summands(answers, _origin(answers))
    ties = None if rank is None else _Ties.of(rank[order])
    positive = answers.positive.astype(np.float64) if answers.task == "binary" else np.zeros(len(answers))
    step = max(1, _HELD // len(answers))
    for first in range(0, draws, step):
        numbers = range(first, min(draws, first + step))
        weights = np.empty((len(numbers), len(order)))
        for row, number in enumerate(numbers):
            weights[row] = np.bincount(position[draw(number)], minlength=len(order))
        ranked = None
        if ties is not None:
            ranked = Ranked(ties.rank, ties.sums(weights), ties.sums(weights * positive))
        yield metrics_of_sums(answers.task, added.names, weights @ added.rows, ranked)


def _origin(answers: Answers) -> float:
    return float(answers.truth[0]) if answers.task == "regression" and len(answers) else 0.0


@dataclass(frozen=True)
class _Ties:
    """Where each run of equal ranks starts."""

    rank: Floats
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, rising: Floats) -> _Ties:
        starts = np.flatnonzero(np.concatenate([[True], rising[1:] != rising[:-1]]))
        return cls(rising[starts], starts)

    def sums(self, weights: Floats) -> Floats:
        return np.asarray(np.add.reduceat(weights, self.starts, axis=1))


_Column = tuple[str, Any]  # a value a row, or one for all


def _columns(answers: Answers, origin: float) -> Iterator[_Column]:
    return _of_errors(answers, origin) if answers.task == "regression" else _of_classes(answers)


def _of_errors(answers: Answers, origin: float) -> Iterator[_Column]:
    error = np.asarray(answers.outputs, np.float64) - answers.truth
    near = np.asarray(answers.truth, np.float64) - origin
    yield "rows", 1.0
    yield "error", error
    yield "absolute", np.abs(error)
    yield "squared", error * error
    yield "truth", near
    yield "truth squared", near * near


def _of_classes(answers: Answers) -> Iterator[_Column]:
    truth, decided, outputs = answers.truth, answers.decisions, np.asarray(answers.outputs, np.float64)
    known = truth >= 0
    chosen = np.where(known, np.take_along_axis(outputs, np.where(known, truth, 0)[:, None], 1)[:, 0], 0.0)
    yield "rows", 1.0
    yield "loss", -np.log(np.clip(chosen, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR))
    yield "right", decided == truth
    if answers.task == "binary":
        probability, correct = answers.score, answers.positive
        yield "score", answers.score
        yield "squared", (answers.score - answers.positive) ** 2
    else:
        probability, correct = outputs.max(axis=1), decided == truth
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    for one in range(CALIBRATION_BINS):
        yield f"calibration {one}", (correct - probability) * (bins == one)
    yield "truth unknown", ~known
    for one in range(outputs.shape[1]):
        yield f"truth {one}", truth == one
        yield f"decided {one}", decided == one
        yield f"hit {one}", (truth == one) & (decided == one)


def _sparse(columns: Iterator[_Column], rows: int) -> Summands:
    from scipy.sparse import csr_array

    names, at, values, ends = [], [], [], [0]
    for name, column in columns:
        found = np.broadcast_to(np.asarray(column, np.float64), rows)
        filled = np.flatnonzero(found)
        names.append(name)
        at.append(filled)
        values.append(found[filled])
        ends.append(ends[-1] + len(filled))
    # A column at a time, so the transpose is what is built.
    made = csr_array((np.concatenate(values), np.concatenate(at), ends), shape=(len(names), rows))
    return Summands(tuple(names), made.T.tocsr())


def _classification(total: Mapping[str, Floats]) -> dict[str, Floats]:
    rows = total["rows"]
    shares = np.array([value / rows for name, value in total.items() if name.startswith("truth ")])
    entropy = -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1.0)), 0.0).sum(axis=0)
    loss = total["loss"] / rows
    several = (shares > 0).sum(axis=0) > 1
    apart = [np.abs(value) for name, value in total.items() if name.startswith("calibration ")]
    return {
        "log_loss": loss,
        "skill": np.where(several, 1 - loss / entropy, np.nan),
        "accuracy": total["right"] / rows,
        "calibration_error": np.sum(apart, axis=0) / rows,
    }


def _f1_macro(total: Mapping[str, Floats]) -> Floats:
    classes = [name.removeprefix("decided ") for name in total if name.startswith("decided ")]
    truth = np.array([*(total[f"truth {one}"] for one in classes), total["truth unknown"]])
    decided = np.array([*(total[f"decided {one}"] for one in classes), np.zeros_like(truth[-1])])
    hits = np.array([*(total[f"hit {one}"] for one in classes), np.zeros_like(truth[-1])])
    return np.asarray(np.nanmean(np.where(truth + decided > 0, 2 * hits / (truth + decided), np.nan), axis=0))


def _binary(total: Mapping[str, Floats], ranked: Ranked | None) -> dict[str, Floats]:
    assert ranked is not None  # binary always is
    hits, decided, positives = total["hit 1"], total["decided 1"], total["truth 1"]
    return {
        "brier": total["squared"] / total["rows"],
        "precision": hits / decided,
        "recall": hits / positives,
        "f1": 2 * hits / (decided + positives),
        **_areas(ranked),
    }


def _areas(ranked: Ranked) -> dict[str, Floats]:
    """ROC AUC and average precision, as in :mod:`ml_lifecycle.metrics`."""
    positive, negative = ranked.positive, ranked.weight - ranked.positive
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    area = (positive * below).sum(axis=1) / (positives * negatives)
    hits = np.cumsum(positive[:, ::-1], axis=1)
    taken = np.cumsum(ranked.weight[:, ::-1], axis=1)
    gained = np.where(taken > 0, positive[:, ::-1] * hits / np.maximum(taken, 1), 0.0).sum(axis=1)
    both = (positives > 0) & (negatives > 0)
    return {
        "roc_auc": np.where(both, area, np.nan),
        "pr_auc": np.where(both, gained / positives, np.nan),
    }


def _regression(total: Mapping[str, Floats], ranked: Ranked | None) -> dict[str, Floats]:
    assert ranked is not None  # regression always is
    rows = total["rows"]
    spread = total["truth squared"] - total["truth"] ** 2 / rows
    told = np.where(spread > 0, 1 - total["squared"] / spread, np.nan)
    return {
        "rmse": np.sqrt(total["squared"] / rows),
        "mae": total["absolute"] / rows,
        "median_ae": _medians(ranked),
        "bias": np.abs(total["error"]) / rows,
        "r2": told,
        "skill": told,
    }


def _medians(ranked: Ranked) -> Floats:
    below = np.cumsum(ranked.weight, axis=1)
    middles = [
        ranked.rank[np.searchsorted(row, [(row[-1] + 1) // 2, row[-1] // 2 + 1])].mean() for row in below
    ]
    return np.array(middles)
