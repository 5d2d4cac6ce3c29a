"""How far chance alone could have moved a metric: bounds from drawing its rows again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.evaluation.draws import draw_metrics
from ml_lifecycle.metrics import Answers, measure

LEVEL = 0.95
DRAWS = 200
ROWS = 20_000
"""Of more rows that many are drawn: the work stays the same for any window."""

Bounds = tuple[float, float]


def bounds(
    answers: Answers,
    metrics: Sequence[str],
    seed: int,
    measured: Mapping[str, float] | None = None,
    rows: int | None = None,
) -> dict[str, Bounds]:
    """95 % bounds of each metric, from 200 draws of the rows with replacement.

    The percentile bootstrap (Efron, Annals of Statistics 7, 1979), its draws centred on the measured value.
    Of more than 20,000 rows so many are picked, evenly, and drawn from, the distances scaled to the number
    of all (m out of n: Bickel, Götze & van Zwet, Statistica Sinica 7, 1997; from few of them: Kleiner,
    Talwalkar, Sarkar & Jordan, JRSS B 76, 2014). Rows count as independent: where neighbours err together
    the truth is wider.

    A metric that these rows, or one in ten draws of them, cannot give has no bounds.

    :param seed: the same one gives the same bounds
    :param measured: the metrics of all rows, where ``answers`` are a sample of them
    :param rows: how many rows there are, where ``answers`` are a sample
    """
    if not len(answers):
        return {}
    rng = np.random.default_rng(seed)
    some = answers.take(np.arange(0, len(answers), -(-len(answers) // ROWS)))
    drawn = len(some)
    shrunk = np.sqrt(drawn / (rows or len(answers)))
    found = {}
    for metric, draws in draw_metrics(some, metrics, DRAWS, lambda _: rng.integers(0, drawn, drawn)).items():
        value = measure(metric, answers) if measured is None else measured[metric]
        low, high = spread(draws)
        middle = np.mean(draws)
        found[metric] = (float(value + (low - middle) * shrunk), float(value + (high - middle) * shrunk))
    return found


def spread(draws: NDArray[np.float64]) -> Bounds:
    """Between which values the middle 95 % of the draws are."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
