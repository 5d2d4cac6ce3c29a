"""How bad a row is, from 0 to 1: the numbers that a release's tallies are made of."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml_lifecycle.metrics import PROBABILITY_FLOOR, Answers
from ml_lifecycle.spec.watch import Scale

Loss = Literal["zero_one", "brier", "log", "absolute", "squared"]


def harm(values: ArrayLike, scale: Scale) -> NDArray[Any]:
    """Values as the tallies have them: 0 is the best of the scale, 1 the worst, and what is NaN.

    A value out of the scale counts as its end.
    """
    place = (np.asarray(values, np.float64) - scale.low) / (scale.high - scale.low)
    place = np.clip(place if scale.better == "lower" else 1 - place, 0, 1)
    return np.asarray(np.where(np.isnan(place), 1.0, place))


def losses(answers: Answers, loss: Loss) -> NDArray[Any]:
    """What each row's answer is off by; infinite where it is no number.

    ``brier`` is half the squared distance of the probabilities from those of certainty (Brier, Mon. Weather
    Rev. 78, 1950), from 0 to 1; ``log`` is −ln p(true class); ``absolute`` and ``squared`` are regression's
    errors.
    """
    outputs = np.asarray(answers.outputs, np.float64)
    if loss in ("absolute", "squared"):
        off = np.abs(outputs - answers.truth) ** (1 if loss == "absolute" else 2)
        return np.where(np.isfinite(off), off, np.inf)
    known = answers.truth >= 0
    likely = np.where(known, outputs[np.arange(len(outputs)), np.maximum(answers.truth, 0)], 0.0)
    if loss == "zero_one":
        off = (answers.decisions != answers.truth).astype(np.float64)
    elif loss == "brier":
        off = ((outputs**2).sum(axis=1) - 2 * likely + 1) / 2
    else:
        off = -np.log(np.clip(likely, PROBABILITY_FLOOR, 1))
    return np.where(np.isfinite(outputs).all(axis=1), off, np.inf)
