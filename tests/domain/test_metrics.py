"""Metrics against scikit-learn's, and what they refuse."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ml_lifecycle.metrics import (
    METRICS,
    UNKNOWN_CLASS,
    Answers,
    MetricError,
    class_indices,
    measure,
    measure_all,
    worse_by,
)
from ml_lifecycle.spec.metrics import TASK_METRICS


def binary(n: int = 400) -> Answers:
    rng = np.random.default_rng(7)
    score = np.round(rng.random(n), 2)  # rounded, so that there are ties
    truth = (rng.random(n) < score).astype(np.int64)
    return Answers("binary", truth, np.column_stack([1 - score, score]), threshold=0.4)


def multiclass(n: int = 400) -> Answers:
    rng = np.random.default_rng(7)
    outputs = rng.dirichlet([1, 1, 1], n)
    return Answers("multiclass", np.array([rng.choice(3, p=row) for row in outputs]), outputs)


def regression(n: int = 400) -> Answers:
    rng = np.random.default_rng(7)
    truth = rng.normal(50, 10, n)
    return Answers("regression", truth, truth + rng.normal(0, 3, n))


def test_binary_metrics_are_scikit_learns() -> None:
    from sklearn import metrics as sk

    answers = binary()
    truth, score, decided = answers.truth, answers.score, answers.score >= 0.4
    expected = {
        "roc_auc": sk.roc_auc_score(truth, score),
        "pr_auc": sk.average_precision_score(truth, score),
        "log_loss": sk.log_loss(truth, np.clip(score, 1.2e-7, 1 - 1.2e-7)),
        "brier": sk.brier_score_loss(truth, score),
        "accuracy": sk.accuracy_score(truth, decided),
        "precision": sk.precision_score(truth, decided),
        "recall": sk.recall_score(truth, decided),
        "f1": sk.f1_score(truth, decided),
    }
    values, reasons = measure_all(answers)
    assert reasons == {}
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_multiclass_metrics_are_scikit_learns() -> None:
    from sklearn import metrics as sk

    answers = multiclass()
    values, _ = measure_all(answers)
    decided = answers.outputs.argmax(axis=1)
    assert values["log_loss"] == pytest.approx(sk.log_loss(answers.truth, answers.outputs))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(answers.truth, decided))
    assert values["f1_macro"] == pytest.approx(sk.f1_score(answers.truth, decided, average="macro"))


def test_regression_metrics_are_scikit_learns() -> None:
    from sklearn import metrics as sk

    answers = regression()
    values, _ = measure_all(answers)
    assert values["rmse"] == pytest.approx(sk.root_mean_squared_error(answers.truth, answers.outputs))
    assert values["mae"] == pytest.approx(sk.mean_absolute_error(answers.truth, answers.outputs))
    assert values["median_ae"] == pytest.approx(sk.median_absolute_error(answers.truth, answers.outputs))
    assert values["bias"] == pytest.approx(abs(answers.outputs.mean() - answers.truth.mean()))
    assert values["r2"] == values["skill"] == pytest.approx(sk.r2_score(answers.truth, answers.outputs))


def test_skill_is_zero_at_the_base_rate_and_does_not_move_with_it() -> None:
    for rate in (0.1, 0.3):
        truth = (np.arange(1000) < rate * 1000).astype(np.int64)
        base = Answers("binary", truth, np.tile([1 - rate, rate], (1000, 1)))
        assert measure("skill", base) == pytest.approx(0, abs=1e-9)


def test_calibration_error_of_a_bin_is_its_distance_from_the_share() -> None:
    truth = (np.arange(100) < 20).astype(np.int64)
    answers = Answers("binary", truth, np.tile([0.45, 0.55], (100, 1)))
    assert measure("calibration_error", answers) == pytest.approx(0.35)


def test_a_perfect_probability_falls_into_the_last_bin() -> None:
    answers = Answers("binary", np.array([1, 0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert measure("calibration_error", answers) == 0


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc", "skill"])
def test_one_class_only_is_refused(metric: str) -> None:
    with pytest.raises(MetricError, match="classes"):
        measure(metric, Answers("binary", np.zeros(10, dtype=np.int64), np.tile([0.7, 0.3], (10, 1))))


def test_nothing_predicted_positive_has_no_precision() -> None:
    values, reasons = measure_all(Answers("binary", np.array([0, 1]), np.tile([0.7, 0.3], (2, 1))))
    assert "precision" not in values
    assert "no row reaches the threshold 0.5" in reasons["precision"]


@pytest.mark.parametrize("answers", [binary(), multiclass(), regression()], ids=lambda answers: answers.task)
def test_nan_answers_and_no_rows_are_refused_by_every_metric(answers: Answers) -> None:
    broken = answers.outputs.copy()
    broken[3] = np.nan
    for name in METRICS[answers.task]:
        with pytest.raises(MetricError, match="NaN"):
            measure(name, Answers(answers.task, answers.truth, broken))
        with pytest.raises(MetricError, match="no rows"):
            measure(name, answers.take(np.array([], dtype=np.int64)))


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(MetricError, match=r"'auc': use one of accuracy, .*roc_auc"):
        measure("auc", binary())


def test_a_class_the_model_does_not_know_counts_as_wrong_and_as_probability_zero() -> None:
    outputs = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    answers = Answers("multiclass", np.array([0, UNKNOWN_CLASS]), outputs)
    assert measure("accuracy", answers) == 0.5
    assert measure("log_loss", answers) > 7


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([True, False], ("0", "1")), ([1.0, 0.0], ("0", "1")), ([1, 0], ("0", "1")), (["b", "a"], ("a", "b"))],
)
def test_labels_find_their_class_whatever_their_type(labels: list[object], classes: tuple[str, ...]) -> None:
    assert class_indices(pl.Series(labels), classes).tolist() == [1, 0]
    assert class_indices(pl.Series(["c"]), classes).tolist() == [UNKNOWN_CLASS]


def test_worse_has_a_direction() -> None:
    assert worse_by("roc_auc", 0.7, 0.8) == pytest.approx(0.1)
    assert worse_by("log_loss", 0.7, 0.8) == pytest.approx(-0.1)


def test_every_metric_a_spec_may_name_can_be_measured() -> None:
    for task, names in TASK_METRICS.items():
        assert set(names) <= METRICS[task].keys()
