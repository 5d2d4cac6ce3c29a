"""Metrics of answers that come in batches, held against those of all at once."""

from __future__ import annotations

import numpy as np
import pytest

from ml_lifecycle.evaluation import totals
from ml_lifecycle.evaluation.totals import Totals
from ml_lifecycle.metrics import Answers, MetricError, measure_all


def answers(task: str, rows: int) -> Answers:
    rng = np.random.default_rng(rows)
    if task == "regression":
        truth = 1e6 + rng.normal(size=rows)
        return Answers("regression", truth, truth + rng.normal(0.3, 1, rows))
    outputs = rng.dirichlet(np.ones(2 if task == "binary" else 4), rows)
    truth = (outputs.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return Answers(task, truth, outputs, 0.4)  # type: ignore[arg-type]


def in_batches(whole: Answers, size: int) -> Totals:
    total = Totals(whole.task)
    for first in range(0, len(whole), size):
        total.add(whole.take(np.arange(first, min(len(whole), first + size))))
    return total


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_batches_give_what_all_give(task: str) -> None:
    whole = answers(task, 5000)
    total = in_batches(whole, 700)
    assert total.rows == 5000
    assert total.metrics() == pytest.approx(measure_all(whole)[0], rel=1e-9)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_of_many_ranks_near_ones_count_as_equal(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "EXACT_RANKS", 1000)
    whole = answers(task, 60_000)
    total = in_batches(whole, 7000)
    assert total.metrics() == pytest.approx(measure_all(whole)[0], rel=2e-4)
    held = total._ranks.height
    assert held < 40_000
    # Whatever the batches were.
    assert in_batches(whole, 60_000).metrics() == pytest.approx(total.metrics(), rel=2e-4)


def test_certainties_and_exact_answers_have_a_rank_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "EXACT_RANKS", 1)
    score = np.array([0.0, 1.0, 0.5, 0.5, 1.0, 0.0])
    sure = Answers("binary", np.array([0, 1, 0, 1, 1, 1]), np.column_stack([1 - score, score]))
    assert in_batches(sure, 2).metrics() == pytest.approx(measure_all(sure)[0])
    right = Answers("regression", np.arange(4.0), np.arange(4.0))
    assert in_batches(right, 2).metrics()["median_ae"] == 0


def test_what_the_rows_cannot_give_is_left_out() -> None:
    one_class = Answers("binary", np.ones(5, dtype=int), np.full((5, 2), 0.5))
    assert in_batches(one_class, 2).metrics().keys() == measure_all(one_class)[0].keys()
    odd = Answers("regression", np.zeros(3), np.array([0.0, np.nan, 1.0]))
    with pytest.raises(MetricError, match="NaN or infinite"):
        in_batches(odd, 1).metrics()
    assert Totals("binary").metrics() == {}


def test_means_say_the_direction() -> None:
    whole = answers("regression", 1000)
    truth, error = in_batches(whole, 300).means()
    assert truth == pytest.approx(whole.truth.mean())
    assert error == pytest.approx((whole.outputs - whole.truth).mean())
    binary = answers("binary", 1000)
    truth, error = in_batches(binary, 300).means()
    assert (truth, error) == pytest.approx((binary.truth.mean(), (binary.score - binary.truth).mean()))
