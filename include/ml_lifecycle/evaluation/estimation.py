"""How good answers are whose truth nobody knows yet: confidence-based performance estimation.

A classifier that says 0.8 is right in 8 of 10 such rows, if it is calibrated (Białek, Kuberski, Perrakis &
Bifet, *Estimating model performance under covariate shift without labels*, 2024). So the truth is drawn from
its own probabilities, again and again, and each metric is measured as if it were so: the mean is the
estimate, for any metric, and the spread says how sure it is.

Probabilities are calibrated first, on rows whose truth is known: multinomial logistic regression on the log
probabilities, for two classes Platt's scaling (Platt 1999; Guo et al., ICML 2017). What cannot be seen this
way is a change of what the truth is, given the features: an estimate says nothing of it, a label does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.evaluation.bands import ROWS, spread
from ml_lifecycle.evaluation.draws import draw_metrics
from ml_lifecycle.metrics import PROBABILITY_FLOOR, Answers, Array, MetricError, measure

MIN_KNOWN = 500
"""Rows with a truth that it takes to calibrate, and as many to check the estimates on."""

_CALIBRATIONS = 20
_DRAWS_EACH = 10
_CELLS = 200_000  # of classes times rows that truths are drawn for
# A realised metric this many standard deviations off was not chance: for a right estimate one in 16,000.
_TOLERATED = 4.0

Calibration = Callable[[Array], Array]


class EstimationError(LifecycleError):
    """There is too little to estimate from, or estimates have been wrong. Retry: no."""


@dataclass(frozen=True)
class Estimate:
    """A metric as it probably is, and between which values it is in 95 of 100 cases."""

    value: float
    low: float
    high: float
    std: float


def estimate(outputs: Array, known: Answers, metrics: Sequence[str], seed: int) -> dict[str, Estimate]:
    """Each metric of answers without truth; those that cannot be estimated are left out.

    :param outputs: ``(n, classes)`` probabilities as they were served
    :param known: answers of the same model whose truth is known, of at least :data:`MIN_KNOWN` rows
    :raises EstimationError: too few rows are known, or none of some class. Retry: no.
    """
    rng = np.random.default_rng(seed)
    classes = outputs.shape[1]
    served = outputs[:: -(-len(outputs) // min(ROWS, max(1, _CELLS // classes)))]
    rows = np.arange(len(served))
    fits = _fits(known, rng)
    shares = [np.cumsum(fit(served), axis=1) for fit in fits]
    # Each row once with every truth that it could have; a draw is one of them a row.
    truth = np.tile(np.arange(classes), len(served))
    every = Answers(known.task, truth, np.repeat(served, classes, axis=0), known.threshold)

    def draw(number: int) -> Array:
        steps = shares[number // _DRAWS_EACH]
        return np.asarray(rows * classes + (rng.random((len(served), 1)) > steps[:, :-1]).sum(axis=1))

    draws = draw_metrics(every, metrics, _CALIBRATIONS * _DRAWS_EACH, draw)
    return {
        metric: Estimate(float(np.mean(values)), *spread(values), float(np.std(values)))
        for metric, values in draws.items()
    }


def misses(known: Answers, metrics: Sequence[str], seed: int) -> Mapping[str, str]:
    """Metrics whose estimate for the later half of the known rows, made from the earlier half, was wrong.

    Metric → what was estimated, and what is so.

    :param known: in the order of their time
    :raises EstimationError: as :func:`estimate`. Retry: no.
    """
    middle = len(known) // 2
    rows = np.arange(len(known))
    earlier, later = known.take(rows < middle), known.take(rows >= middle)
    wrong = {}
    for metric, one in estimate(later.outputs, earlier, metrics, seed).items():
        try:
            realised = measure(metric, later)
        except MetricError:
            continue  # these rows cannot give it, so nobody knows
        if abs(realised - one.value) > _TOLERATED * one.std:
            estimated = f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"
            wrong[metric] = f"{estimated} was estimated, {realised:.3g} is so"
    return wrong


def _fits(known: Answers, rng: np.random.Generator) -> list[Calibration]:
    """Calibrations from the known rows drawn anew: what they leave open is in the estimate's spread."""
    rows, classes = known.outputs.shape
    if rows < MIN_KNOWN:
        raise EstimationError(f"{rows} rows have a known truth to calibrate on, at least {MIN_KNOWN} must")
    some = known.take(np.arange(0, rows, -(-rows // ROWS)))
    logits, truth = _logits(some.outputs), some.truth
    return [_fit(logits, truth, classes, _drawn(len(some), rng)) for _ in range(_CALIBRATIONS)]


def _drawn(rows: int, rng: np.random.Generator) -> Array:
    """How often each row is in a draw of as many, with replacement."""
    return np.bincount(rng.integers(0, rows, rows), minlength=rows)


def _fit(logits: Array, truth: Array, classes: int, weights: Array) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    used = (weights > 0) & (truth >= 0)
    if len(np.unique(truth[used])) < classes:
        raise EstimationError(f"the rows with a known truth lack one of the {classes} classes")
    # C: weak enough not to shrink a slope of 1 towards 0 on 500 rows, strong enough to end. Newton's method
    # takes a handful of steps where L-BFGS takes dozens.
    model = LogisticRegression(C=100.0, solver="newton-cholesky", max_iter=100)
    model.fit(logits[used], truth[used], sample_weight=weights[used])
    return lambda outputs: np.asarray(model.predict_proba(_logits(outputs)))


def _logits(outputs: Array) -> Array:
    """Log probabilities against the first class: one column a further class."""
    logs = np.log(np.clip(outputs, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR))
    return np.asarray(logs[:, 1:] - logs[:, :1])
