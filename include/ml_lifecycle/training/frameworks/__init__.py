"""The frameworks' own ways to train in segments, for ``train(…, checkpoints)``.

:func:`fit_in_segments` fits an estimator of scikit-learn, XGBoost or LightGBM; :class:`TorchState` is what a
loop over a PyTorch module hands to :meth:`~ml_lifecycle.training.checkpoints.Checkpoints.segments`, and
:class:`PickledState` what one over any other object does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import lightgbm_trees, warm_start, xgboost_trees
from ml_lifecycle.training.frameworks.grown import Measure
from ml_lifecycle.training.frameworks.torch_state import TorchState
from ml_lifecycle.training.frameworks.warm_start import PickledState

__all__ = ["PickledState", "TorchState", "fit_in_segments"]


def fit_in_segments(
    estimator: Any,
    rows: Any,
    labels: Any,
    checkpoints: Checkpoints,
    *,
    every: int | None = None,
    sample_weight: Any = None,
    before: Any = None,
) -> Any:
    """Fit an estimator a segment at a time, with a checkpoint after each; returns it fitted.

    XGBoost's and LightGBM's classifiers and regressors, and any scikit-learn estimator with ``warm_start``
    that grows: forests, gradient boosting. What comes before it in a pipeline is fitted first, by yourself::

        columns = encode.fit_transform(training_set)
        model = fit_in_segments(XGBClassifier(**parameters), columns, labels, checkpoints, before=encode)
        return make_pipeline(encode, model)

    Each segment has a seed of its own, so rows and features are sampled otherwise than by one call of
    ``fit()``, and always in the same way. Without sampling the answers of XGBoost and LightGBM are those of
    ``fit()``, bit for bit.

    :param every: trees, or rounds, a segment; if not given a twentieth of all, with scikit-learn a fifth,
        with LightGBM at least 100
    :param sample_weight: as ``fit()`` takes it
    :param before: what the rows went through, fitted; a trial of a search needs it to measure itself
    :raises ValueError: the estimator cannot be fitted in segments as it is set; the text says why. Retry: no.
    """
    libraries = {cls.__module__.partition(".")[0] for cls in type(estimator).__mro__}
    measure = _measure(checkpoints, before)
    if "xgboost" in libraries:
        return xgboost_trees.fit(estimator, rows, labels, checkpoints, every, sample_weight, measure)
    if "lightgbm" in libraries:
        return lightgbm_trees.fit(estimator, rows, labels, checkpoints, every, sample_weight, measure)
    return warm_start.fit(estimator, rows, labels, checkpoints, every, sample_weight, measure)


def _measure(checkpoints: Checkpoints, before: Any) -> Measure:
    """What is called after each segment: the estimator is made only where something measures it."""

    def measure(made: Callable[[], Any]) -> None:
        if not checkpoints.measures:
            return
        from sklearn.pipeline import make_pipeline

        estimator = made()
        checkpoints.measure(estimator if before is None else make_pipeline(before, estimator))

    return measure
