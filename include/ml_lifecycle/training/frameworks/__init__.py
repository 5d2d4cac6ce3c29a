"""The frameworks' own ways to train in segments, for ``train(…, checkpoints)``.

:func:`fit_in_segments` fits an estimator of scikit-learn, XGBoost or LightGBM; :class:`TorchState` is what a
loop over a PyTorch module hands to :meth:`~ml_lifecycle.training.checkpoints.Checkpoints.segments`, and
:class:`PickledState` what one over any other object does.
"""

from __future__ import annotations

from typing import Any

from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import lightgbm_trees, warm_start, xgboost_trees
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
) -> Any:
    """Fit an estimator a segment at a time, with a checkpoint after each; returns it fitted.

    XGBoost's and LightGBM's classifiers and regressors, and any scikit-learn estimator with ``warm_start``
    that grows: forests, gradient boosting. What comes before it in a pipeline is fitted first, by yourself::

        columns = encode.fit_transform(training_set)
        model = fit_in_segments(XGBClassifier(**parameters), columns, labels, checkpoints)
        return make_pipeline(encode, model)

    Each segment has a seed of its own, so rows and features are sampled otherwise than by one call of
    ``fit()``, and always in the same way. Without sampling the answers of XGBoost and LightGBM are those of
    ``fit()``, bit for bit.

    :param every: trees, or rounds, a segment; a twentieth of all if not given
    :param sample_weight: as ``fit()`` takes it
    :raises ValueError: the estimator cannot be fitted in segments as it is set; the text says why. Retry: no.
    """
    libraries = {cls.__module__.partition(".")[0] for cls in type(estimator).__mro__}
    if "xgboost" in libraries:
        return xgboost_trees.fit(estimator, rows, labels, checkpoints, every, sample_weight)
    if "lightgbm" in libraries:
        return lightgbm_trees.fit(estimator, rows, labels, checkpoints, every, sample_weight)
    return warm_start.fit(estimator, rows, labels, checkpoints, every, sample_weight)
