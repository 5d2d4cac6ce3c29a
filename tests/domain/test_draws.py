"""Metrics of weighted rows, held against the metrics' own definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ml_lifecycle.evaluation.draws import draw_metrics
from ml_lifecycle.metrics import METRICS, Answers, MetricError, measure


def answers(task: str, rows: int, rng: np.random.Generator) -> Answers:
    if task == "regression":
        true = 1e6 + rng.normal(size=rows).round(1)
        return Answers("regression", true, true + rng.normal(size=rows).round(2))
    classes = 2 if task == "binary" else 4
    outputs = rng.dirichlet(np.ones(classes), rows).round(2)  # ties, and certainties
    truth = rng.integers(-1, classes, rows)  # a class that the model does not know is among them
    return Answers(task, truth, outputs, 0.37)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("rows", [1, 2, 7, 600])
def test_every_metric_of_a_draw_is_that_of_its_rows(task: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    given = answers(task, rows, rng)
    for seed in range(20):
        drawn = rng.integers(0, rows, rng.integers(1, 2 * rows + 1))
        found = draw_metrics(given, list(METRICS[given.task]), 1, lambda _, drawn=drawn: drawn)  # type: ignore[misc]
        for metric in METRICS[given.task]:
            try:
                value = measure(metric, given.take(drawn))
            except MetricError:
                assert metric not in found, (metric, seed)
            else:
                assert found[metric][0] == pytest.approx(value, rel=1e-9, abs=1e-9), (metric, seed)


def test_answers_that_are_no_numbers_have_no_metric() -> None:
    odd = Answers("regression", np.zeros(3), np.array([0.0, np.nan, 1.0]))
    assert draw_metrics(odd, ["mae"], 5, lambda _: np.arange(3)) == {}
