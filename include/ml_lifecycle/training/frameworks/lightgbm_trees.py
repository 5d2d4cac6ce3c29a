"""LightGBM in segments: a booster a segment, on the scores of those before; joined as model text."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks.grown import Array, Grown, Measure, refuse

_FEW_ROWS = 50
# Each segment's booster lays all rows out anew; with its checkpoint that takes as long as two trees (measured
# with 800,000 rows of 30 columns): so many trees keep it at 2 % of the training.
_TREES = 100
# What fit() handles itself, or must be each segment's own.
_NOT_THE_BOOSTERS = ("n_estimators", "class_weight", "importance_type", "random_state", "n_jobs", "verbose")


def fit(
    estimator: Any,
    rows: Any,
    labels: Any,
    checkpoints: Checkpoints,
    every: int | None,
    sample_weight: Any,
    measure: Measure,
) -> Any:
    """Fit an ``LGBMClassifier`` or ``LGBMRegressor``; errors as in :func:`fit_in_segments`."""
    import lightgbm
    from sklearn.base import clone

    labels = np.asarray(labels)
    targets, classes = labels, None
    if isinstance(estimator, lightgbm.LGBMClassifier):
        classes, targets = np.unique(labels, return_inverse=True)
    parameters = _parameters(estimator, classes)
    data = lightgbm.Dataset(
        rows, targets, weight=_weights(estimator, labels, sample_weight), params=parameters
    ).construct()
    grown = Grown()
    if every is None:
        every = max(-(-estimator.n_estimators // 20), _TREES)
    for segment in checkpoints.segments(grown, steps=estimator.n_estimators, every=every):
        if grown.scores is not None:
            data.set_init_score(grown.scores)
        booster = lightgbm.Booster({**parameters, "seed": segment.seed}, data)
        for _ in segment:
            booster.update()
        grown.add(booster.model_to_string().encode(), _raw_scores(booster))
        del booster
        measure(lambda: _loaded(clone(estimator), grown, rows, labels, classes))
    return _loaded(estimator, grown, rows, labels, classes)


def _loaded(estimator: Any, grown: Grown, rows: Any, labels: Array, classes: Array | None) -> Any:
    """The estimator with the trees there are."""
    import lightgbm

    _fit_on_few(estimator, rows, labels, classes)
    # There is no public way to hand a booster to an estimator; all else about it is as fit() left it.
    estimator._Booster = lightgbm.Booster(model_str=_joined([model.decode() for model in grown.models]))
    return estimator


def _parameters(estimator: Any, classes: Array | None) -> dict[str, Any]:
    """The booster's own parameters, as ``estimator.fit()`` would set them."""
    import lightgbm

    given = {name: value for name, value in estimator.get_params().items() if value is not None}
    boosting = given.get("boosting", given.get("boosting_type"))
    stopping = ("early_stopping", "early_stopping_round", "early_stopping_rounds", "n_iter_no_change")
    refuse(
        estimator,
        {
            "groups (a ranker)": isinstance(estimator, lightgbm.LGBMRanker),
            "early stopping": any(given.get(name) for name in stopping),
            "an objective of your own": callable(estimator.objective),
            "linear_tree": given.get("linear_tree"),
            f"boosting_type={boosting!r}": boosting not in ("gbdt", "goss", "gbrt"),
        },
    )
    parameters = {name: value for name, value in given.items() if name not in _NOT_THE_BOOSTERS}
    if classes is None:
        parameters.setdefault("objective", "regression")
    elif len(classes) > 2:
        parameters["num_class"] = len(classes)
        if parameters.get("objective") != "multiclassova":
            parameters["objective"] = "multiclass"
    else:
        parameters.setdefault("objective", "binary")
    if isinstance(estimator.n_jobs, int) and estimator.n_jobs > 0:
        parameters["num_threads"] = estimator.n_jobs  # else as many as OMP_NUM_THREADS says
    # Left alone, LightGBM tries two ways to sum and takes the faster one: other sums at every attempt.
    if not given.get("force_col_wise"):
        parameters.setdefault("force_row_wise", True)
    parameters.setdefault("deterministic", True)
    return {"verbosity": -1, **parameters}


def _weights(estimator: Any, labels: Array, sample_weight: Any) -> Any:
    from sklearn.utils.class_weight import compute_sample_weight

    if (class_weight := getattr(estimator, "class_weight", None)) is None:
        return sample_weight
    weights = compute_sample_weight(class_weight, labels)
    return weights if sample_weight is None else weights * np.asarray(sample_weight)


def _raw_scores(booster: Any) -> Array:
    """The scores of the training rows, as the booster grows on them; it is of no further use then.

    They are what it hands to an objective of the user's own, which is asked for and not answered.
    """
    taken: list[Array] = []

    class EnoughError(Exception):
        pass

    def take(scores: Array, _: Any) -> None:
        taken.append(scores.copy())
        raise EnoughError

    with suppress(EnoughError):
        booster.update(fobj=take)
    return taken[0]


def _joined(models: list[str]) -> str:
    """One model of all their trees, in order."""
    end = "end of trees"
    parts = [model.partition("\ntree_sizes=") for model in models]
    # Without the line of sizes the trees are read one after the other, whatever their numbers.
    trees = ["Tree=" + tree for _, _, rest in parts for tree in rest.partition(end)[0].split("\nTree=")[1:]]
    return parts[0][0] + "\n\n" + "\n".join(trees) + "\n" + end + parts[0][2].partition(end)[2]


def _fit_on_few(estimator: Any, rows: Any, labels: Array, classes: Array | None) -> None:
    """Fit on a few rows, of every class: the estimator then knows classes and columns."""
    few = np.arange(min(_FEW_ROWS, len(labels)))
    if classes is not None:
        few = np.unique(np.concatenate([few, np.unique(labels, return_index=True)[1]]))
    set_to = {
        name: estimator.get_params()[name]
        for name in ("n_estimators", "verbose")
        if name in estimator.get_params()
    }
    estimator.set_params(n_estimators=1, verbose=-1)
    estimator.fit(rows.iloc[few] if hasattr(rows, "iloc") else rows[few], labels[few])
    estimator.set_params(**set_to)
