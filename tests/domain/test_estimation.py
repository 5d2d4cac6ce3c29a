"""How good answers are without their truth, held against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_lifecycle.evaluation.estimation import MIN_KNOWN, EstimationError, estimate, misses
from ml_lifecycle.metrics import METRICS, Answers, measure

Floats = NDArray[np.float64]


def probabilities(feature: Floats, classes: int) -> Floats:
    """Of each class, by the feature."""
    logits = np.column_stack([feature * rank - 0.5 * rank for rank in range(classes)])
    raised = np.exp(logits)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def answered(feature: Floats, classes: int, rng: np.random.Generator, sharpness: float = 1.0) -> Answers:
    """Truths drawn by the feature, and answers that are surer than that by ``sharpness``."""
    true = probabilities(feature, classes)
    truth = np.array([rng.choice(classes, p=row) for row in true])
    sharper = true**sharpness
    task = "binary" if classes == 2 else "multiclass"
    return Answers(task, truth, sharper / sharper.sum(axis=1, keepdims=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_estimates_are_right_for_other_rows_than_were_known(classes: int, sharpness: float) -> None:
    """Of rows much easier than the known ones, from answers that are surer of themselves than right."""
    rng = np.random.default_rng(classes)
    known = answered(rng.normal(0, 1, 4000), classes, rng, sharpness)
    other = answered(rng.normal(1.5, 1.5, 4000), classes, rng, sharpness)
    names = list(METRICS[known.task])
    found = estimate(other.outputs, known, names, seed=0)
    assert found.keys() == set(names)
    for name, one in found.items():
        realised = measure(name, other)
        assert one.low <= one.value <= one.high
        assert abs(one.value - realised) <= 4 * one.std, name
    # What was known before would have been a bad guess.
    assert abs(measure("accuracy", known) - measure("accuracy", other)) > 5 * found["accuracy"].std
    assert misses(known, names, seed=0) == {}


def test_many_rows_are_thinned_and_estimated_as_well() -> None:
    rng = np.random.default_rng(7)
    known = answered(rng.normal(size=3000), 2, rng)
    other = answered(rng.normal(size=50_000), 2, rng)
    one = estimate(other.outputs, known, ["log_loss"], seed=0)["log_loss"]
    assert abs(one.value - measure("log_loss", other)) <= 4 * one.std


def test_who_was_wrong_before_is_found_out() -> None:
    """In the later half the truth no longer follows the feature: no probability tells that."""
    rng = np.random.default_rng(5)
    before = answered(rng.normal(size=2000), 2, rng)
    after = answered(rng.normal(size=2000), 2, rng)
    known = Answers(
        "binary",
        np.concatenate([before.truth, 1 - after.truth]),
        np.concatenate([before.outputs, after.outputs]),
    )
    wrong = misses(known, ["accuracy", "roc_auc"], seed=0)
    assert wrong.keys() == {"accuracy", "roc_auc"}
    assert " was estimated, 0." in wrong["roc_auc"]


def test_too_little_to_calibrate_on_is_said() -> None:
    rng = np.random.default_rng(6)
    few = answered(rng.normal(size=MIN_KNOWN - 1), 2, rng)
    with pytest.raises(EstimationError, match=r"499 rows have a known truth .* at least 500 must"):
        estimate(few.outputs, few, ["accuracy"], seed=0)
    one_class = Answers("binary", np.zeros(600, dtype=int), np.full((600, 2), 0.5))
    with pytest.raises(EstimationError, match="lack one of the 2 classes"):
        estimate(few.outputs, one_class, ["accuracy"], seed=0)
