"""Whatever training.py does, and however its pod ends: one clear error that says whether a retry helps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from bad_input import Raised
from localpods_kit import Cluster, manifest, terminated
from standing import Standing
from test_pod import main_here
from tests.domain.training_world import (
    attempt_at,
    collect,
    make_folder,
    make_rows,
    make_training_set,
    pod_environment,
    run_pod,
)

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    PodFailedError,
    TrainingError,
)
from ml_lifecycle.records import TaskType
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.training.job import TrainingJob

HEAD = """
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

def on_distance(estimator):
    return make_pipeline(make_column_transformer(("passthrough", ["distance"])), estimator)

class Foreign(BaseEstimator):
    def fit(self, rows, labels): return self
    def __sklearn_is_fitted__(self): return True
    def predict(self, rows): return np.zeros(len(rows))
    def predict_proba(self, rows): return np.full((len(rows), 2), 0.5)

"""


def body(text: str) -> str:
    lines = "".join(f"    {line}\n" for line in text.strip().splitlines())
    return f"{HEAD}\ndef train(rows, labels, parameters, seed):\n{lines}"


NOT_A_NUMBER = "model[-1].coef_[:] = np.nan\nreturn model"


def user_error(words: str) -> Raised:
    return Raised(TrainingError, False, words)


# name: task, training.py, what it ends in
TRAINING: dict[str, tuple[TaskType, str, Raised]] = {
    "raises": ("binary", body("raise KeyError('late')"), user_error("train() raised KeyError: 'late'")),
    "raises what is no error": (
        "binary",
        body("raise KeyboardInterrupt"),
        user_error("raised KeyboardInterrupt"),
    ),
    "raises while it is imported": (
        "binary",
        "raise GeneratorExit\n" + body("pass"),
        user_error("training.py does not import: GeneratorExit"),
    ),
    "raises for ever": (
        "binary",
        body("return train(rows, labels, parameters, seed)"),
        user_error("raised RecursionError"),
    ),
    "raises a novel": (
        "binary",
        body("raise ValueError('x' * 10_000_000)"),
        user_error("… (10000000 characters)"),
    ),
    "raises half a character": (
        "binary",
        body(r"raise ValueError('\ud800')"),
        user_error(r"ValueError: \ud800"),
    ),
    "raises what has no text": (
        "binary",
        body("class Mute(Exception):\n    def __str__(self): raise OSError\nraise Mute"),
        user_error("raised Mute: (its text cannot be had: OSError)"),
    ),
    "imports what is not there": (
        "binary",
        "import xgboost_of_tomorrow\n" + body("pass"),
        user_error("does not import: ModuleNotFoundError: No module named 'xgboost_of_tomorrow'"),
    ),
    "exits": ("binary", body("raise SystemExit(0)"), user_error("raised SystemExit: 0")),
    "changes folder and closes its output": (
        "binary",
        body("import os, sys; os.chdir('/'); sys.stderr.close(); raise ValueError('lost')"),
        user_error("raised ValueError: lost"),
    ),
    "removes its own folder": (
        "binary",
        body(
            "import shutil, pathlib; shutil.rmtree(pathlib.Path(__file__).parent); raise ValueError('gone')"
        ),
        user_error("raised ValueError: gone"),
    ),
    "returns nothing": (
        "binary",
        body("pass"),
        user_error("train() returned None; for binary it must return"),
    ),
    "returns a number": (
        "regression",
        body("return 0.5"),
        user_error("returned 0.5; for regression it must"),
    ),
    "returns a class": (
        "binary",
        body("return LogisticRegression"),
        user_error("the class LogisticRegression"),
    ),
    "returns what has no text": (
        "binary",
        body("class Mute:\n    def __repr__(self): raise OSError\nreturn Mute()"),
        user_error("train() returned (its text cannot be had: OSError); for binary"),
    ),
    "returns it unfitted": (
        "regression",
        body("return LinearRegression()"),
        user_error("that is not fitted"),
    ),
    "returns no classifier": (
        "binary",
        body("return on_distance(LinearRegression()).fit(rows, labels)"),
        user_error("with predict and predict_proba"),
    ),
    "classes of its own": (
        "binary",
        body("return on_distance(LogisticRegression()).fit(rows, np.arange(len(rows)) % 3)"),
        user_error("an estimator of the classes ['0', '1', '2'], the labels are ['0', '1']"),
    ),
    "no classes": (
        "binary",
        body("return Foreign()"),
        user_error("whose classes_ cannot be read: AttributeError"),
    ),
    "one class": (
        "binary",
        body("return on_distance(HistGradientBoostingClassifier(max_iter=2)).fit(rows, labels * 0)"),
        user_error("an estimator of the classes ['0'], the labels are ['0', '1']: fit it on the labels"),
    ),
    "two numbers a row": (
        "regression",
        body("return on_distance(MultiOutputRegressor(LinearRegression())).fit(rows, np.c_[labels, labels])"),
        user_error("predict() gives an array of shape (200, 2), expected (200,)"),
    ),
    "NaN for every row": (
        "regression",
        body(f"model = on_distance(LinearRegression()).fit(rows, labels)\n{NOT_A_NUMBER}"),
        user_error("predict() gives NaN or infinity for 200 of 200 rows"),
    ),
    "probabilities of NaN": (
        "binary",
        body(f"model = on_distance(LogisticRegression()).fit(rows, labels)\n{NOT_A_NUMBER}"),
        user_error("predict_proba() gives NaN or infinity for 200 of 200 rows"),
    ),
    "does not convert": (
        "regression",
        body("return on_distance(Foreign()).fit(rows, labels)"),
        Raised(ConversionError, False, "Foreign (in ColumnTransformer → Foreign) does not convert to ONNX"),
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_whatever_training_py_does_is_its_own_clear_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, code, raised = TRAINING[name]
    monkeypatch.chdir(tmp_path)  # and back, whatever the code does
    monkeypatch.setattr("sys.stderr", open(os.devnull, "w"))  # noqa: SIM115 - it may be closed by the code
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", task, code)
    job = plan_training(folder, lake, make_training_set(lake, folder))
    before = Standing.of(lake)
    main_here(lake, job, 1)
    raised.check(lambda: collect(lake, job))
    with pytest.raises(raised.error) as caught:
        collect(lake, job)
    assert len(str(caught.value)) < 10_000
    before.check(Standing.of(lake))


def test_labels_that_are_no_numbers_have_no_regression(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", "regression")
    texts = make_rows(400, "regression", 1).with_columns(label=pl.lit("many"))
    job = plan_training(folder, lake, make_training_set(lake, folder, train=texts))
    main_here(lake, job, 1)
    words = "regression needs numbers as labels, 'label' holds String"
    Raised(FeatureError, False, words).check(lambda: collect(lake, job))


def test_credentials_of_the_lake_are_not_in_reach_of_training_py(tmp_path: Path) -> None:
    """Printed or raised by accident they would be in logs and in the lake for good."""
    lake = Lake(str(tmp_path / "lake"))
    code = body("import os\nprint(os.environ)\nraise ValueError(str(os.environ))")
    folder = make_folder(tmp_path / "models", training=code)
    job = plan_training(folder, lake, make_training_set(lake, folder))
    ended = run_pod(lake, job, ML_LIFECYCLE_LAKE_OPTIONS='{"auto_mkdir": true, "unused": "canary"}')
    assert ended.returncode == 1
    assert "PYTHONHASHSEED" in ended.stdout, "the environment was printed"
    assert "canary" not in ended.stdout + ended.stderr + str(lake.read_json(attempt_at(job).failure_path))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("localpods"))
    yield cluster
    cluster.close()


def pod_of(lake: Lake, job: TrainingJob, limits: dict[str, str], **spec: Any) -> dict[str, Any]:
    """The pod that the train operator asks for."""
    env = [
        {"name": name, "value": value} for name, value in pod_environment(lake, job).items() if name != "PATH"
    ]
    container = {"command": list(job.command), "env": env, "resources": {"limits": limits}}
    return manifest("training", "", container=container, **spec)


# name: train()'s body, the pod's limits, how the pod ends; the job's own word, if it had one
PODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "eats memory": (
        "kept = []\nwhile True: kept.append(bytearray(10_000_000))",
        {"limits": {"memory": "900Mi"}},
        "OOMKilled",
    ),
    "never ends": (
        "while True: pass",
        {"limits": {}, "activeDeadlineSeconds": 15, "terminationGracePeriodSeconds": 0},
        "DeadlineExceeded",
    ),
    "dies": ("import os; os._exit(9)", {"limits": {}}, "Error"),
}


@pytest.mark.parametrize("name", [*PODS])
@pytest.mark.proof
def test_a_pod_that_is_ended_may_be_tried_again(tmp_path: Path, cluster: Cluster, name: str) -> None:
    code, given, reason = PODS[name]
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", training=body(code))
    job = plan_training(folder, lake, make_training_set(lake, folder))
    before = Standing.of(lake)
    cluster.call("POST", "pods", 201, json=pod_of(lake, job, **given))
    try:
        status = cluster.ended("training", 90)
        assert status["phase"] == "Failed"
        assert reason in (status.get("reason"), terminated(status)[1])
        words = ("neither a result nor a failure", "asked to end (SIGTERM)")
        with pytest.raises(PodFailedError) as caught:
            collect(lake, job)
        assert caught.value.retryable
        assert any(text in str(caught.value) for text in words)
        before.check(Standing.of(lake))
    finally:
        cluster.call("DELETE", "pods/training")
