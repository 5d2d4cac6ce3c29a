"""XGBoost's and LightGBM's models answer as ONNX what they answered before, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from tests.domain.frameworks_kit import NUMBERS, NUMERIC, encode, failed, gates, holdout, training_rows
from tests.domain.training_world import COLUMNS
from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import convert, feeds, open_session, predict
from ml_lifecycle.errors import ConversionError
from ml_lifecycle.records import ColumnSpec, TaskType
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.frameworks import fit_in_segments
from ml_lifecycle.training.labels import EncodedLabels

TASKS: list[TaskType] = ["binary", "multiclass", "regression"]
XGB = {"n_estimators": 20, "max_depth": 4, "random_state": 1, "n_jobs": 1}
LGB = {"n_estimators": 20, "random_state": 1, "n_jobs": 1, "verbose": -1}


def xgb(task: TaskType, **parameters: Any) -> Any:
    if task == "regression":
        return XGBRegressor(**XGB | parameters)
    model = XGBClassifier(**XGB | parameters)
    return model if task == "binary" else EncodedLabels(model)


def lgb(task: TaskType, **parameters: Any) -> Any:
    return (LGBMRegressor if task == "regression" else LGBMClassifier)(**LGB | parameters)


def piped(model: Any, task: TaskType, labels: Any = None) -> Any:
    rows, truth = training_rows(task)
    return make_pipeline(encode(*NUMERIC), model).fit(rows, truth if labels is None else labels)


def spread(task: TaskType) -> float:
    return float(np.std(training_rows(task)[1])) if task == "regression" else 1.0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("make", [xgb, lgb])
def test_every_task_behind_an_encoder_with_nulls_text_and_unseen_categories(
    make: Any, task: TaskType
) -> None:
    assert failed(gates(piped(make(task), task), task, spread=spread(task))) == []


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("make", [xgb, lgb])
def test_every_task_alone(make: Any, task: TaskType) -> None:
    rows, labels = training_rows(task)
    model = make(task).fit(rows[[column.name for column in NUMBERS]], labels)
    assert failed(gates(model, task, NUMBERS, spread=spread(task))) == []


@pytest.mark.parametrize("make", [xgb, lgb])
def test_the_same_estimator_gives_the_same_bytes(make: Any) -> None:
    rows, labels = training_rows("binary")
    made = [
        convert(clone(make("binary")).fit(rows[["distance", "wind"]], labels), NUMBERS, "binary")
        for _ in "ab"
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("make", "task", "parameters"),
    [
        (xgb, "regression", {"objective": "reg:absoluteerror"}),
        (xgb, "regression", {"objective": "reg:quantileerror", "quantile_alpha": 0.8}),
        (xgb, "regression", {"objective": "reg:gamma"}),
        (xgb, "regression", {"objective": "reg:tweedie"}),
        (xgb, "regression", {"objective": "count:poisson"}),
        (xgb, "regression", {"base_score": 100.0}),
        (xgb, "regression", {"num_parallel_tree": 3, "subsample": 0.6}),
        (xgb, "binary", {"objective": "binary:hinge"}),
        (xgb, "binary", {"base_score": 0.2}),
        (xgb, "binary", {"num_parallel_tree": 3, "subsample": 0.6}),
        (xgb, "binary", {"feature_types": ["c", "q", "q", "c", "q"], "enable_categorical": True}),
        (xgb, "multiclass", {"objective": "multi:softmax"}),
        (xgb, "multiclass", {"num_parallel_tree": 3, "subsample": 0.6}),
        (lgb, "regression", {"objective": "poisson"}),
        (lgb, "regression", {"objective": "quantile", "alpha": 0.8}),
        (lgb, "regression", {"boosting_type": "dart"}),
        (lgb, "binary", {"boosting_type": "dart"}),
        (lgb, "binary", {"categorical_feature": [0, 3], "min_data_per_group": 5, "cat_smooth": 1}),
        (lgb, "binary", {"use_missing": False}),
        (lgb, "multiclass", {"class_weight": "balanced"}),
    ],
)
def test_kinds_of_models_that_convert(make: Any, task: TaskType, parameters: dict[str, Any]) -> None:
    labels = np.abs(training_rows(task)[1]) / 100 if task == "regression" else None
    results = gates(
        piped(make(task, **parameters), task, labels), task, spread=1.0 if labels is None else np.std(labels)
    )
    assert failed(results) == []


@pytest.mark.parametrize(
    ("make", "task", "parameters", "reason"),
    [
        (xgb, "binary", {"booster": "dart"}, r"this one is 'dart': train with gbtree"),
        (xgb, "regression", {"booster": "gblinear"}, r"this one is 'gblinear': train with gbtree"),
        (xgb, "binary", {"missing": 0.0}, r"missing=0.0 is a value like any other to ONNX"),
        (
            xgb,
            "regression",
            {"objective": "rank:pairwise"},
            r"objective is rank:pairwise.* one of reg:squared",
        ),
        (xgb, "binary", {"objective": "binary:logitraw"}, r"objective is binary:logitraw.* binary:logistic"),
        (xgb, "binary", {"objective": lambda t, p: (p - t, t * 0 + 1)}, r"its objective is a function"),
        (
            xgb,
            "multiclass",
            {"multi_strategy": "multi_output_tree"},
            r"multi_output_tree' has no form in ONNX",
        ),
        (xgb, "binary", {"n_estimators": 0}, r"it has learnt nothing"),
        (
            lgb,
            "regression",
            {"objective": "mape"},
            r"objective is mape.* use one of regression, regression_l1",
        ),
        (lgb, "multiclass", {"objective": "multiclassova"}, r"is multiclassova.* one of binary, multiclass"),
        (lgb, "binary", {"objective": lambda t, p: (p - t, t * 0 + 1)}, r"its objective is a function"),
        (lgb, "regression", {"reg_sqrt": True}, r"reg_sqrt=True: onnxmltools leaves the square out"),
        (lgb, "binary", {"sigmoid": 2.0}, r"takes sigmoid for 1: leave the argument out"),
        (lgb, "regression", {"linear_tree": True}, r"linear_tree=True: .* train without it"),
        (lgb, "binary", {"zero_as_missing": True}, r"zero_as_missing=True: .* served as NaN"),
        (lgb, "binary", {"pred_early_stop": True}, r"pred_early_stop=True .* leave it out"),
        (
            lgb,
            "binary",
            {"boosting_type": "rf", "subsample": 0.6, "subsample_freq": 1},
            r"boosting_type='rf'",
        ),
    ],
)
def test_what_would_answer_otherwise_is_refused_with_the_reason(
    make: Any, task: TaskType, parameters: dict[str, Any], reason: str
) -> None:
    labels = np.abs(training_rows(task)[1]) if task == "regression" else None
    model = piped(make(task, **parameters), task, labels)
    with pytest.raises(ConversionError, match=rf"^(XGB|LGBM)\w+ \(in ColumnTransformer → .*{reason}"):
        convert(model, COLUMNS, task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("parallel", [1, 2])
def test_early_stopping_serves_the_best_rounds_trees(task: TaskType, parallel: int) -> None:
    rows, labels = training_rows(task)
    codes = np.unique(labels, return_inverse=True)[1] if task == "multiclass" else labels
    rows = rows[["distance", "wind"]]
    stop = {"n_estimators": 100, "early_stopping_rounds": 2, "learning_rate": 1.0}
    model = (XGBRegressor if task == "regression" else XGBClassifier)(
        **XGB | stop | {"num_parallel_tree": parallel, "subsample": 0.7}
    )
    model.fit(rows[:400], codes[:400], eval_set=[(rows[400:], codes[400:])], verbose=False)
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    assert failed(gates(model, task, NUMBERS, spread=spread(task))) == []

    light = lgb(task, n_estimators=100, learning_rate=1.0)
    stopping = [lightgbm.early_stopping(2, verbose=False)]
    light.fit(rows[:400], labels[:400], eval_set=[(rows[400:], labels[400:])], callbacks=stopping)
    assert 0 < light.best_iteration_ < 100
    assert failed(gates(light, task, NUMBERS, spread=spread(task))) == []


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("make", [xgb, lgb])
def test_trained_in_segments(make: Any, task: TaskType, tmp_path: Path) -> None:
    rows, labels = training_rows(task)
    codes = np.unique(labels, return_inverse=True)[1] if task == "multiclass" else labels
    model = make(task, subsample=0.7, subsample_freq=1) if make is lgb else make(task, subsample=0.7)
    model = model.estimator if isinstance(model, EncodedLabels) else model
    checkpoints = Checkpoints(Lake(str(tmp_path / "lake")), "checkpoints", 1, 3, scratch=tmp_path / "scratch")
    fitted = fit_in_segments(model, rows[["distance", "wind"]], codes, checkpoints, every=7)
    assert failed(gates(fitted, task, NUMBERS, spread=spread(task))) == []


def test_a_feature_named_like_another_ones_position() -> None:
    """onnxmltools would take the column ``f1`` for the second one, wherever it is."""
    rows, labels = training_rows("binary")
    names = {"distance": "f1", "wind": "f0"}
    columns = tuple(ColumnSpec(names[column.name], "float", column.nullable) for column in NUMBERS)
    model = xgb("binary").fit(rows[["distance", "wind"]].rename(columns=names), labels)
    assert failed(gates(model, "binary", columns, holdout().rename(names))) == []


@pytest.mark.parametrize("make", [xgb, lgb])
def test_a_threshold_between_two_neighbouring_float32_values(make: Any) -> None:
    values = np.float32(1) + np.arange(64, dtype=np.float32) * np.spacing(np.float32(1))
    rows = pl.DataFrame({"distance": np.tile(values, 60)})
    labels = np.tile(np.random.default_rng(0).normal(size=64), 60)
    model = make("regression", n_estimators=30).fit(rows.to_pandas(), labels)
    assert failed(gates(model, "regression", NUMBERS[:1], rows)) == []


def test_labels_where_no_leaf_is_negative() -> None:
    """ONNX Runtime decides a binary ensemble whose leaves are all positive at another score."""
    rows = training_rows("binary")[0][["distance", "wind"]]
    often = (rows["distance"] > np.quantile(rows["distance"], 0.43)).to_numpy().astype(np.int64)
    timid = lgb("binary", n_estimators=1, learning_rate=0.01).fit(rows, often)
    positive = timid.predict_proba(rows)[:, 1]
    assert positive.min() > 0.5
    assert positive.max() < 0.6  # log-odds below 0.5, that other score
    assert failed(gates(timid, "binary", NUMBERS)) == []


def test_a_first_tree_that_answers_zero() -> None:
    """Of which onnxmltools makes a constant 0.5 in log-odds."""
    rows = pl.DataFrame({"distance": np.tile(np.float32([0, 1]), 50)})
    undecidable = np.repeat([0, 1], 50)
    model = XGBClassifier(**XGB, base_score=0.5).fit(rows.to_pandas(), undecidable)
    assert '"leaf": -0' in model.get_booster().get_dump(dump_format="json")[0]
    with pytest.raises(ConversionError, match=r"XGBClassifier does not .*: it has learnt nothing"):
        convert(model, NUMBERS[:1], "binary")
    # Learning goes on from there, on other labels: the trees that follow answer something.
    model = XGBClassifier(**XGB, base_score=0.5).fit(
        rows.to_pandas(), np.tile([0, 1], 50), xgb_model=model.get_booster()
    )
    assert failed(gates(model, "binary", NUMBERS[:1], rows)) == []


@pytest.mark.parametrize("labels", [["early", "late", "on time"], [3, 7, 9]], ids=["text", "numbers"])
def test_encoded_labels(labels: list[Any]) -> None:
    rows, truth = training_rows("multiclass")
    given = np.array(labels)[np.unique(truth, return_inverse=True)[1]]
    model = make_pipeline(encode(*NUMERIC), EncodedLabels(XGBClassifier(**XGB))).fit(rows, given)
    assert model.classes_.tolist() == labels
    assert failed(gates(model, "multiclass")) == []
    answered = predict(open_session(convert(model, COLUMNS, "multiclass")), feeds(holdout()))
    assert answered.labels is not None
    assert set(answered.labels.tolist()) == set(labels)


def test_labels_encoded_beforehand() -> None:
    rows, truth = training_rows("multiclass")
    classes, codes = np.unique(truth, return_inverse=True)
    rows = rows[["distance", "wind"]]
    model = EncodedLabels(XGBClassifier(**XGB).fit(rows, codes), classes)
    assert failed(gates(model, "multiclass", NUMBERS)) == []


def test_within_other_estimators() -> None:
    rows, labels = training_rows("binary")
    rows = rows[["distance", "wind"]]
    search = GridSearchCV(xgb("binary"), {"max_depth": [2, 3]}, cv=2).fit(rows, labels)
    assert failed(gates(search, "binary", NUMBERS)) == []
    calibrated = CalibratedClassifierCV(xgb("binary"), cv=2).fit(rows, labels)
    assert failed(gates(calibrated, "binary", NUMBERS)) == []
    calibrated = CalibratedClassifierCV(lgb("binary"), cv=2).fit(rows, labels)
    with pytest.raises(ConversionError, match=r"LGBMClassifier \(in .*calibrates its decision_function"):
        convert(calibrated, NUMBERS, "binary")
    forest = XGBRFClassifier(n_estimators=10, random_state=1).fit(rows, labels)
    assert failed(gates(forest, "binary", NUMBERS)) == []


def test_without_onnxmltools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = training_rows("binary")
    model = lgb("binary").fit(rows[["distance", "wind"]], labels)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"install airflow-ml-lifecycle\[lightgbm\]"):
        convert(model, NUMBERS, "binary")
    plain = LogisticRegression().fit(rows[["distance", "wind"]].fillna(0), labels)
    assert convert(plain, NUMBERS, "binary"), "others do not need it"
