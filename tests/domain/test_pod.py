"""The training pod as a real process: its result, its failures, its interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.domain.training_world import (
    COLUMNS,
    HOLDOUT_ROWS,
    attempt_at,
    collect,
    make_folder,
    make_rows,
    make_training_set,
    pod_environment,
    run_pod,
)
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import as_served, feeds, open_session, predict
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    IntegrityError,
    PodFailedError,
    StaleAttemptError,
    TrainingError,
)
from ml_lifecycle.profiles.profile import Profile
from ml_lifecycle.records import ColumnSpec, TaskType, from_json, to_json
from ml_lifecycle.stages.train import collect_training, plan_training
from ml_lifecycle.training import pod
from ml_lifecycle.training.job import Attempt, Failure, PodResult, TrainingJob
from ml_lifecycle.training.reference import UNSEEN_CATEGORY, read_reference


def new_job(
    tmp_path: Path, training: str | None = None, task: TaskType = "binary"
) -> tuple[Lake, TrainingJob]:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", task, training)
    return lake, plan_training(folder, lake, make_training_set(lake, folder))


@pytest.mark.parametrize("task", ["binary", pytest.param("multiclass", marks=pytest.mark.full), "regression"])
def test_a_pod_leaves_a_model_that_answers_as_the_estimator_did(tmp_path: Path, task: TaskType) -> None:
    lake, job = new_job(tmp_path, task=task)
    job = replace(job, segments={"weekend": ("true",)})
    lake.write_json(job.job_path, to_json(job))
    ended = run_pod(lake, job)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    training = collect(lake, job)

    classes = {"binary": ("0", "1"), "multiclass": ("early", "late", "on time"), "regression": ()}
    assert training.classes == classes[task]
    assert training.columns == COLUMNS
    assert training.parameters == {"max_iter": 8}
    assert {"python", "scikit-learn", "skl2onnx", "onnxruntime"} <= training.packages.keys()
    assert training.resources["peak_memory_bytes"] > 50e6
    assert training.resources["wall_seconds"] > 0
    assert training.metrics["skill"] > 0.3

    reference = read_reference(lake, training.reference_path, COLUMNS, task)
    holdout = as_served(make_rows(HOLDOUT_ROWS, task, seed=2), COLUMNS)
    session = open_session(lake.read_bytes(training.model_path, training.model_digest))
    answer = predict(session, feeds(pl.concat([holdout, reference.probes])))
    assert reference.holdout_rows == HOLDOUT_ROWS
    assert answer.outputs == pytest.approx(reference.outputs, rel=1e-4, abs=1e-5)
    assert reference.probe_names == ("wind missing", "carrier unseen", "carrier missing", "all together")
    assert reference.probes["carrier"].to_list()[1:3] == [UNSEEN_CATEGORY, ""]
    assert np.isnan(reference.probes["wind"][3])

    profile = from_json(Profile, lake.read_json(training.profile_path))
    assert set(profile.columns) == {*(column.name for column in COLUMNS), "__score__"}
    assert profile.columns["__score__"].count == HOLDOUT_ROWS
    weekend = profile.segments["weekend=true"]
    assert weekend.columns.keys() == profile.columns.keys()
    assert weekend.columns["__score__"].count == int(holdout["weekend"].sum())


FOREST = """
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
import numpy as np


def train(training_set, labels, parameters, seed):
    numbers = list({"distance", "hour", "weekend"})  # a set: its order depends on the hash seed
    encoder = ("text", OneHotEncoder(handle_unknown="ignore"), ["carrier"])
    columns = ColumnTransformer([encoder, ("rest", "passthrough", numbers)])
    forest = RandomForestClassifier(5, random_state=np.random.randint(1000))  # from the seeded global state
    return make_pipeline(columns, forest).fit(training_set, labels)
"""


def test_the_same_job_gives_the_same_bytes_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path, FOREST)
    assert run_pod(lake, job).returncode == 0
    result_path = attempt_at(job).result_path
    first = lake.read_bytes(result_path)
    main_here(lake, job, 0)
    assert lake.read_bytes(result_path) == first

    assert run_pod(lake, job, 2).returncode == 0
    one, two = (
        from_json(PodResult, lake.read_json(attempt_at(job, number).result_path)) for number in (1, 2)
    )
    assert one.usage != two.usage, "it was made again: its seconds are others"
    assert one.files == two.files
    published = collect(lake, job, 2)
    assert collect(lake, job, 1) == published, "what is published stays"


def test_an_attempt_that_was_given_up_publishes_nothing(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path)
    attempt_at(job, 2).raise_fence(lake)
    main_here(lake, job, 1)
    assert not lake.exists(attempt_at(job, 1).result_path)
    with pytest.raises(StaleAttemptError, match="attempt 1 publishes nothing"):
        collect(lake, job, 1)

    main_here(lake, job, 0, number=2)
    attempt_at(job, 3).raise_fence(lake)
    with pytest.raises(StaleAttemptError, match="attempt 2 has ended, but a newer one has begun"):
        collect(lake, job, 2)
    others = Attempt(job, 2, "another_run")
    assert collect_training(lake, others).attempt == 2, "only attempts of one owner follow each other"


def test_a_result_of_another_job_is_none(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path)
    main_here(lake, job, 0)
    result = from_json(PodResult, lake.read_json(attempt_at(job).result_path))
    for forged, message in (
        (replace(result, attempt=7), "is the result of attempt 7"),
        (replace(result, job="0" * 64), "attempt 1 at 0000"),
        (replace(result, files={"model.onnx": "0" * 64}), "gives no digest of reference.parquet"),
    ):
        lake.write_json(attempt_at(job).result_path, to_json(forged))
        with pytest.raises(IntegrityError, match=message):
            collect(lake, job)
    assert not lake.exists(job.manifest_path)


def main_here(lake: Lake, job: TrainingJob, code: int, number: int = 1) -> None:
    """The pod's main without its signal handling, in this process, which has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pod, "_end_on_sigterm", lambda *_: None)
        assert pod.main(pod_environment(lake, job, number)) == code


def test_a_torn_model_is_refused_and_the_next_pod_trains_again(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path)
    main_here(lake, job, 0)
    training = collect(lake, job)
    lake.write_bytes(training.model_path, b"torn")
    with pytest.raises(IntegrityError):
        collect(lake, job)
    main_here(lake, job, 0, number=2)
    assert collect(lake, job, 2).model_digest == training.model_digest
    assert collect(lake, job, 1).attempt == 2


RAISES = """
def helper(training_set):
    return training_set["no_such_column"]


def train(training_set, labels, parameters, seed):
    return helper(training_set)
"""


def test_a_train_that_raises_is_shown_with_its_own_frames(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path, RAISES)
    ended = run_pod(lake, job, ML_LIFECYCLE_LAKE_OPTIONS='{"auto_mkdir": true}')
    assert ended.returncode == 1
    assert ended.stdout.startswith("fitting on 400 rows of 5 columns")
    failure = lake.read_json(attempt_at(job).failure_path)
    assert failure["kind"] == "user_error"
    assert failure["traceback"][0] == "training.py:7 in train: return helper(training_set)"
    with pytest.raises(TrainingError, match=r"train\(\) raised KeyError: 'no_such_column'") as caught:
        collect(lake, job)
    assert 'training.py:3 in helper: return training_set["no_such_column"]' in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            "def train(training_set, labels, parameters, seed): pass",
            "train.. returned None; for binary it must",
        ),
        ("def train(training_set, labels): pass", "cannot be called as train.training_set, labels, param"),
        ("import no_such_module\ndef train(a, b, c, d): pass", "does not import: ModuleNotFoundError"),
        ("import sys\ndef train(a, b, c, d): sys.exit(0)", "train.. raised SystemExit: 0"),
        (
            "from sklearn.linear_model import LogisticRegression\n"
            "def train(a, b, c, d): return LogisticRegression()",
            "returned an estimator that is not fitted",
        ),
        (
            "from sklearn.svm import LinearSVC\n"
            "def train(a, b, c, d): return LinearSVC().fit(a[['distance']], b)",
            "returned LinearSVC.*with predict and predict_proba",
        ),
        (
            "from sklearn.compose import ColumnTransformer\n"
            "from sklearn.linear_model import LogisticRegression\n"
            "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import OneHotEncoder\n"
            "def train(a, b, c, d):\n"
            "    columns = ColumnTransformer([('t', OneHotEncoder(), ['carrier'])])\n"
            "    return make_pipeline(columns, LogisticRegression()).fit(a, b)",
            "cannot answer a row with carrier unseen.*handle_unknown",
        ),
        ("def train(a, b, c, d): raise MemoryError", "out of memory while training: ask for more"),
    ],
    ids=["none", "signature", "import", "exit", "unfitted", "no_proba", "unseen", "memory"],
)
def test_whatever_is_wrong_with_training_py_is_one_clear_error(
    tmp_path: Path, training: str, message: str
) -> None:
    lake, job = new_job(tmp_path, training)
    main_here(lake, job, 1)
    with pytest.raises(TrainingError, match=f"(?s){message}"):
        collect(lake, job)


ALL_COLUMNS = """
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def train(training_set, labels, parameters, seed):
    imputer = SimpleImputer(keep_empty_features=KEEP)
    return make_pipeline(imputer, StandardScaler(), LogisticRegression()).fit(training_set, labels)
"""


@pytest.mark.parametrize("keep", [True, False])
def test_a_column_without_any_value_trains_or_is_named(tmp_path: Path, keep: bool) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", training=ALL_COLUMNS.replace("KEEP", str(keep)))
    columns = (ColumnSpec("distance", "float"), ColumnSpec("wind", "float", nullable=True))
    train = make_rows(400, "binary", 1).with_columns(pl.lit(None, dtype=pl.Float64).alias("wind"))
    job = plan_training(folder, lake, make_training_set(lake, folder, train=train, columns=columns))
    if keep:
        main_here(lake, job, 0)
        assert collect(lake, job).metrics["roc_auc"] > 0.6
    else:
        main_here(lake, job, 1)
        with pytest.raises(ConversionError, match=r"no training row has a value in wind"):
            collect(lake, job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": pl.lit(1)}, "exactly two classes.*holds .1."),
        ({"label": pl.lit(None, dtype=pl.Int64)}, "400 of 400 training rows have no label"),
        ({"hour": pl.lit(None, dtype=pl.Int64)}, "'hour' is int and has 400 nulls"),
    ],
    ids=["one_class", "no_labels", "int_nulls"],
)
def test_rows_that_cannot_be_trained_on_are_said_to_be_the_cause(
    tmp_path: Path, change: dict[str, pl.Expr], message: str
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models")
    train = make_rows(400, "binary", 1).with_columns(**change)
    job = plan_training(folder, lake, make_training_set(lake, folder, train=train))
    main_here(lake, job, 1)
    with pytest.raises(FeatureError, match=message):
        collect(lake, job)


def test_altered_code_is_refused(tmp_path: Path) -> None:
    lake, job = new_job(tmp_path)
    lake.write_bytes(job.code_path, b"something else")
    main_here(lake, job, 1)
    with pytest.raises(IntegrityError, match="has digest"):
        collect(lake, job)


# Like a long fit: in C, without the interpreter's lock, and not to be interrupted by a signal.
ENDLESS = """
import ctypes
from pathlib import Path


def train(training_set, labels, parameters, seed):
    Path(parameters["started"]).touch()
    mutex = ctypes.create_string_buffer(128)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (signal.SIGTERM, 143, "asked to end"),
        (signal.SIGKILL, -signal.SIGKILL, "neither a result nor a failure"),
    ],
)
def test_an_interrupted_pod_may_be_tried_again(
    tmp_path: Path, sent: signal.Signals, code: int, message: str
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    started = tmp_path / "started"
    parameters = json.dumps({"started": str(started)})
    folder = make_folder(tmp_path / "models", training=ENDLESS, parameters=parameters)
    job = plan_training(folder, lake, make_training_set(lake, folder))
    lake.write_json(attempt_at(job).failure_path, to_json(Failure("user_error", "of an earlier attempt")))
    command = [sys.executable, *job.command[1:]]
    with subprocess.Popen(command, env=pod_environment(lake, job), stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: started.exists() or process.poll() is not None, "it trains")
            assert started.exists()
            process.send_signal(sent)
            assert process.wait(timeout=10) == code
        finally:
            process.kill()
    with pytest.raises(PodFailedError, match=message) as caught:
        collect(lake, job)
    assert caught.value.retryable
