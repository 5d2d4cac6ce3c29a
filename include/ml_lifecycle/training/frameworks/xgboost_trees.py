"""XGBoost in segments: a booster a segment, on the scores of those before; joined as JSON, its own format."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks.grown import Grown, Measure, refuse


def fit(
    estimator: Any,
    rows: Any,
    labels: Any,
    checkpoints: Checkpoints,
    every: int | None,
    sample_weight: Any,
    measure: Measure,
) -> Any:
    """Fit an ``XGBClassifier`` or ``XGBRegressor``; errors as in :func:`fit_in_segments`."""
    import xgboost
    from sklearn.base import clone

    parameters = _parameters(estimator, labels)
    data = _matrix(estimator, parameters, rows, labels, sample_weight)
    grown = Grown()
    for segment in checkpoints.segments(grown, steps=estimator.get_num_boosting_rounds(), every=every):
        if grown.scores is not None:
            data.set_base_margin(grown.scores)
        booster = xgboost.Booster({**parameters, "seed": segment.seed}, [data])
        for step in segment:
            booster.update(data, step - segment.start)
        # The scores are at hand: the booster has just grown on them.
        grown.add(bytes(booster.save_raw("json")), booster.predict(data, output_margin=True))
        del booster
        measure(lambda: _loaded(clone(estimator), grown))
    return _loaded(estimator, grown)


def _loaded(estimator: Any, grown: Grown) -> Any:
    """The estimator with the trees there are."""
    asked = estimator.get_params(deep=False)
    estimator.load_model(bytearray(_joined(grown.models)))
    for name in asked.keys() - {"objective"}:  # of what loading overwrites, fit() sets the objective only
        setattr(estimator, name, asked[name])
    return estimator


def _parameters(estimator: Any, labels: Any) -> dict[str, Any]:
    """The booster's own parameters, as ``estimator.fit()`` would set them."""
    import xgboost

    parameters = {name: value for name, value in estimator.get_xgb_params().items() if value is not None}
    refuse(
        estimator,
        {
            "groups (a ranker)": isinstance(estimator, xgboost.XGBRanker),
            "early_stopping_rounds": estimator.early_stopping_rounds,
            "callbacks": estimator.callbacks,
            "an objective of your own": callable(estimator.objective),
            f"booster={estimator.booster!r}": estimator.booster not in (None, "gbtree"),
        },
    )
    parameters.pop("random_state", None)  # each segment has its own
    if isinstance(estimator, xgboost.XGBClassifier):
        classes = np.unique(np.asarray(labels))
        if not np.array_equal(classes, np.arange(len(classes))):
            raise ValueError(
                f"XGBoost wants the classes 0, 1, …, the labels are {classes.tolist()[:20]}: encode them"
            )
        if len(classes) > 2:
            if parameters.get("objective") != "multi:softmax":
                parameters["objective"] = "multi:softprob"
            parameters["num_class"] = len(classes)
    return parameters


def _matrix(estimator: Any, parameters: dict[str, Any], rows: Any, labels: Any, sample_weight: Any) -> Any:
    import xgboost

    arguments: dict[str, Any] = {
        "label": labels,
        "weight": sample_weight,
        "missing": estimator.missing,
        "nthread": estimator.n_jobs,
        "enable_categorical": estimator.enable_categorical,
        "feature_types": estimator.feature_types,
    }
    if parameters.get("tree_method", "auto") in ("auto", "hist"):
        return xgboost.QuantileDMatrix(rows, max_bin=parameters.get("max_bin", 256), **arguments)
    return xgboost.DMatrix(rows, **arguments)


def _joined(models: list[bytes]) -> bytes:
    """One model of all their trees, in order."""
    joined = json.loads(models[0])
    trees = joined["learner"]["gradient_booster"]["model"]
    for model in models[1:]:
        more = json.loads(model)["learner"]["gradient_booster"]["model"]
        for number, tree in enumerate(more["trees"], len(trees["trees"])):
            tree["id"] = number
        last = trees["iteration_indptr"][-1]
        trees["iteration_indptr"] += [last + position for position in more["iteration_indptr"][1:]]
        trees["tree_info"] += more["tree_info"]
        trees["trees"] += more["trees"]
    trees["gbtree_model_param"]["num_trees"] = str(len(trees["trees"]))
    return json.dumps(joined).encode()
