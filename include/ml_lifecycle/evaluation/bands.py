"""How far chance alone could have moved a metric: bounds from drawing its rows again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.metrics import Answers, MetricError, measure

LEVEL = 0.95
DRAWS = 200
ROWS = 20_000
"""Of more rows that many are drawn: the work stays the same for any window."""

Bounds = tuple[float, float]


def bounds(answers: Answers, metrics: Sequence[str], seed: int) -> dict[str, Bounds]:
    """95 % bounds of each metric, from 200 draws of the rows with replacement.

    The percentile bootstrap (Efron, Annals of Statistics 7, 1979), its draws centred on the measured value;
    of more than 20,000 rows m out of n, the distances scaled by √(m/n) (Bickel, Götze & van Zwet, Statistica
    Sinica 7, 1997). Rows count as independent: where neighbours err together the truth is wider.

    A metric that these rows, or one in ten draws of them, cannot give has no bounds.

    :param seed: the same one gives the same bounds
    """
    rng = np.random.default_rng(seed)
    rows = len(answers)
    drawn = min(rows, ROWS)
    if not rows:
        return {}
    values = draw_metrics(metrics, lambda: answers.take(rng.integers(0, rows, drawn)), DRAWS)
    shrunk = np.sqrt(drawn / rows)
    found = {}
    for metric, draws in values.items():
        low, high = spread(draws)
        middle, value = np.mean(draws), measure(metric, answers)
        found[metric] = (float(value + (low - middle) * shrunk), float(value + (high - middle) * shrunk))
    return found


def spread(draws: NDArray[np.float64]) -> Bounds:
    """Between which values the middle 95 % of the draws are."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def draw_metrics(
    metrics: Sequence[str], draw: Callable[[], Answers], draws: int
) -> dict[str, NDArray[np.float64]]:
    """Each metric of every draw; without those that more than one in ten draws cannot give."""
    values: dict[str, list[float]] = {metric: [] for metric in metrics}
    for _ in range(draws):
        answers = draw()
        for metric, found in values.items():
            try:
                found.append(measure(metric, answers))
            except MetricError:
                continue
    return {metric: np.array(found) for metric, found in values.items() if len(found) >= 0.9 * draws}
