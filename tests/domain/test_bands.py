"""Bounds of metrics: how often the truth is within them."""

from __future__ import annotations

import numpy as np
import pytest

from ml_lifecycle.evaluation.bands import ROWS, bounds
from ml_lifecycle.metrics import METRICS, Answers, measure

SHARE = 0.7


def right_in_seven_of_ten(rows: int, rng: np.random.Generator) -> Answers:
    """Answers that are right with a probability of 0.7, whatever they are."""
    truth = rng.integers(0, 2, rows)
    decided = np.where(rng.random(rows) < SHARE, truth, 1 - truth)
    score = np.where(decided == 1, 0.6, 0.4)
    return Answers("binary", truth, np.column_stack([1 - score, score]))


def test_the_truth_is_within_the_bounds_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    found = [bounds(right_in_seven_of_ten(400, rng), ["accuracy"], seed)["accuracy"] for seed in range(300)]
    within = np.mean([low <= SHARE <= high for low, high in found])
    # Of 300 cases 95 ± 2.5 in a hundred, by two standard deviations; and at 400 rows it is a little narrow.
    assert 0.915 <= within <= 0.98


def calibrated(rows: int, rng: np.random.Generator) -> Answers:
    score = rng.beta(1, 2, rows)
    return Answers("binary", (rng.random(rows) < score).astype(int), np.column_stack([1 - score, score]))


def test_so_is_that_of_every_metric_whose_draws_are_centred_on_the_truth() -> None:
    """Not of the calibration error, which is no number of rows away from 0 where the truth is 0."""
    rng = np.random.default_rng(4)
    names = [name for name in METRICS["binary"] if name != "calibration_error"]
    whole = calibrated(1_000_000, rng)
    true = {name: measure(name, whole) for name in names}
    within = dict.fromkeys(names, 0)
    for seed in range(300):
        found = bounds(calibrated(400, rng), names, seed)
        for name, (low, high) in found.items():
            within[name] += low <= true[name] <= high
    assert {name: share for name, n in within.items() if not 0.91 <= (share := n / 300) <= 0.985} == {}


def test_of_many_rows_some_are_drawn_and_the_bounds_are_as_narrow() -> None:
    rows = 4 * ROWS
    low, high = bounds(right_in_seven_of_ten(rows, np.random.default_rng(2)), ["accuracy"], 0)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(SHARE * (1 - SHARE) / rows), rel=0.2)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_metric_has_bounds_around_it(task: str) -> None:
    rng = np.random.default_rng(3)
    classes = {"binary": 2, "multiclass": 3}.get(task)
    if classes is None:
        truth = rng.normal(size=800)
        answers = Answers("regression", truth, truth + rng.normal(size=800))
    else:
        outputs = rng.dirichlet(np.ones(classes), 800)
        truth = np.array([rng.choice(classes, p=row) for row in outputs])
        answers = Answers(task, truth, outputs)  # type: ignore[arg-type]
    found = bounds(answers, list(METRICS[answers.task]), seed=0)
    assert found.keys() == METRICS[answers.task].keys()
    for metric, (low, high) in found.items():
        assert low <= measure(metric, answers) <= high
    assert found == bounds(answers, list(METRICS[answers.task]), seed=0)


def test_what_the_rows_cannot_give_has_no_bounds() -> None:
    one_class = Answers("binary", np.ones(50, dtype=int), np.full((50, 2), 0.5))
    assert bounds(one_class, ["roc_auc", "accuracy"], 0).keys() == {"accuracy"}
    assert bounds(one_class.take(np.zeros(50, dtype=bool)), ["accuracy"], 0) == {}
