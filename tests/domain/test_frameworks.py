"""The frameworks' own ways in segments: where nothing is drawn, the answers are those of fit()."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import sklearn.base
import xgboost
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from tests.domain.training_world import make_folder
from toy_loop import FOLDER

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.spec.folder import load_module
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import fit_in_segments
from ml_lifecycle.training.frameworks.warm_start import PickledState

ROWS = 600
ONE = {"n_jobs": 1}
LIGHT = {**ONE, "verbose": -1, "force_row_wise": True, "min_child_samples": 5}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Lake(str(tmp_path / "lake")), FOLDER, 1, 3, scratch=tmp_path / "scratch")


def make_data(classes: int | list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """Six columns with values missing; ``classes`` of 0 is for regression."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(ROWS, 6)).astype(np.float32), columns=list("abcdef"))
    signal = rows["a"] + rows["b"] * rows["d"] + rng.normal(0, 0.3, ROWS)
    rows.iloc[::7, 2] = np.nan
    if classes == 0:
        return rows, signal
    names = np.array(range(classes) if isinstance(classes, int) else classes)
    edges = np.quantile(signal, np.linspace(0, 1, len(names) + 1)[1:-1])
    return rows, pd.Series(names[np.digitize(signal, edges)])


SAME: dict[str, tuple[Callable[[], Any], int | list[str]]] = {
    "XGBoost binary": (lambda: xgboost.XGBClassifier(n_estimators=11, **ONE), 2),
    "XGBoost multiclass": (lambda: xgboost.XGBClassifier(n_estimators=11, **ONE), 3),
    "XGBoost softmax": (lambda: xgboost.XGBClassifier(n_estimators=11, objective="multi:softmax", **ONE), 3),
    "XGBoost regression": (lambda: xgboost.XGBRegressor(n_estimators=11, tree_method="exact", **ONE), 0),
    "XGBoost forest": (lambda: xgboost.XGBRFRegressor(n_estimators=3, subsample=1, colsample_bynode=1), 0),
    "LightGBM binary": (lambda: lightgbm.LGBMClassifier(n_estimators=11, **LIGHT), ["no", "yes"]),
    "LightGBM balanced": (
        lambda: lightgbm.LGBMClassifier(n_estimators=11, class_weight="balanced", **LIGHT),
        ["no", "yes"],
    ),
    "LightGBM multiclass": (lambda: lightgbm.LGBMClassifier(n_estimators=11, **LIGHT), list("xyz")),
    "LightGBM one against all": (
        lambda: lightgbm.LGBMClassifier(n_estimators=11, objective="multiclassova", **LIGHT),
        3,
    ),
    "LightGBM regression": (lambda: lightgbm.LGBMRegressor(n_estimators=11, **LIGHT), 0),
    "LightGBM that has learned all": (
        lambda: lightgbm.LGBMRegressor(n_estimators=11, min_split_gain=1e9, **LIGHT),
        0,
    ),
    "histogram boosting": (lambda: HistGradientBoostingRegressor(max_iter=11), 0),
    "gradient boosting": (lambda: GradientBoostingClassifier(n_estimators=11), 3),
}


@pytest.mark.parametrize("name", SAME)
def test_where_nothing_is_drawn_the_answers_are_those_of_fit(name: str, checkpoints: Checkpoints) -> None:
    make, classes = SAME[name]
    rows, labels = make_data(classes)
    rows = rows.fillna(0) if "gradient" in name else rows
    weights = np.linspace(0.5, 2, ROWS)
    plain = make().fit(rows, labels, sample_weight=weights)
    estimator = make()
    fitted = fit_in_segments(estimator, rows, labels, checkpoints, every=4, sample_weight=weights)
    assert checkpoints.costs.written == (1 if "forest" in name else 3)
    answer = "predict_proba" if classes else "predict"
    assert np.array_equal(getattr(fitted, answer)(rows), getattr(plain, answer)(rows))
    assert np.array_equal(fitted.predict(rows), plain.predict(rows))
    assert fitted.get_params() == plain.get_params()
    assert fitted.n_features_in_ == 6
    assert list(fitted.feature_names_in_) == list("abcdef")
    if classes:
        assert list(fitted.classes_) == list(plain.classes_)
    sklearn.base.clone(fitted).fit(rows, labels)


def test_categories_are_trees_own_in_every_segment(checkpoints: Checkpoints) -> None:
    rows, labels = make_data(2)
    rows["g"] = pd.Categorical(np.where(rows["a"] > 0.3, "much", np.where(rows["b"] > 0, "some", "none")))
    rows["g"] = rows["g"].where(rows["c"].notna())
    for make in (
        lambda: xgboost.XGBClassifier(n_estimators=9, enable_categorical=True, **ONE),
        lambda: lightgbm.LGBMClassifier(n_estimators=9, **LIGHT),
    ):
        fitted = fit_in_segments(make(), rows, labels, checkpoints, every=2)
        plain = make().fit(rows, labels)
        assert np.array_equal(fitted.predict_proba(rows), plain.predict_proba(rows))


def test_a_forest_has_all_its_trees(checkpoints: Checkpoints) -> None:
    rows, labels = make_data(2)
    forest = RandomForestClassifier(n_estimators=10, random_state=4)
    fitted = fit_in_segments(forest, rows, labels, checkpoints, every=4)
    assert len(fitted.estimators_) == 10
    assert fitted.get_params() == RandomForestClassifier(n_estimators=10, random_state=4).get_params()
    assert fitted.score(rows, labels) > 0.9


def test_what_stops_early_has_stopped(checkpoints: Checkpoints) -> None:
    rows, labels = make_data(2)
    boosting = HistGradientBoostingClassifier(max_iter=300, early_stopping=True, n_iter_no_change=3)
    fitted = fit_in_segments(boosting, rows, labels, checkpoints, every=10)
    assert fitted.n_iter_ < 200
    assert checkpoints.costs.written == fitted.n_iter_ // 10


REFUSED: dict[str, tuple[Any, int, str]] = {
    "XGBoost early": (
        xgboost.XGBClassifier(early_stopping_rounds=3),
        2,
        "segments with early_stopping_rounds",
    ),
    "XGBoost dart": (xgboost.XGBRegressor(booster="dart"), 0, "booster='dart'"),
    "XGBoost linear": (xgboost.XGBRegressor(booster="gblinear"), 0, "booster='gblinear'"),
    "XGBoost objective": (xgboost.XGBRegressor(objective=lambda a, b: (a, b)), 0, "an objective of your own"),
    "XGBoost ranker": (xgboost.XGBRanker(), 0, "groups"),
    "XGBoost labels": (xgboost.XGBClassifier(), 2, "the labels are .*'no', 'yes'.*: encode them"),
    "LightGBM early": (lightgbm.LGBMRegressor(early_stopping_round=3), 0, "with early stopping"),
    "LightGBM dart": (lightgbm.LGBMRegressor(boosting_type="dart"), 0, "boosting_type='dart'"),
    "LightGBM forest": (lightgbm.LGBMRegressor(boosting="rf"), 0, "boosting_type='rf'"),
    "LightGBM linear": (lightgbm.LGBMRegressor(linear_tree=True), 0, "linear_tree"),
    "LightGBM objective": (lightgbm.LGBMRegressor(objective=lambda a, b: (a, b)), 0, "objective of your own"),
    "LightGBM ranker": (lightgbm.LGBMRanker(), 0, "groups"),
    "no warm start": (sklearn.base.BaseEstimator(), 0, "no warm_start, no n_estimators"),
    "no total": (MLPClassifier(max_iter=8), 2, "cannot be fitted in segments with no n_est"),
    "another max_iter": (LogisticRegression(max_iter=800), 2, "cannot be fitted in segments with no n_est"),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_in_segments_is_refused(name: str, checkpoints: Checkpoints) -> None:
    estimator, classes, message = REFUSED[name]
    rows, labels = make_data(["no", "yes"] if "labels" in name else classes)
    with pytest.raises(ValueError, match=message):
        fit_in_segments(estimator, rows.fillna(0), labels, checkpoints, every=2)


def test_classes_of_training_py_are_found_in_another_pods_folder(tmp_path: Path) -> None:
    code = "class Own:\n    size = 3\n\ndef train(a, b, c, d): pass"
    first = make_folder(tmp_path / "first", training=code)
    module = load_module(first.path, "training")
    PickledState(module.Own()).save(tmp_path / "state")
    del sys.modules[module.__name__]
    second = load_module(make_folder(tmp_path / "second", training=code).path, "training")
    state = PickledState(None)
    state.load(tmp_path / "state")
    assert type(state.value) is second.Own
