"""Every bad input ends in one clear error, says whether a retry helps, and leaves what was there untouched.

A row of a table is one bad input: how it comes about, the error, and words of its message.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import contract, events, put, run, spec
from localpods_kit import Cluster, manifest, terminated
from small_disk import small_disk
from small_model import DAY, HOUR, START, land, readings, write_model
from standing import Standing
from test_pod import main_here
from tests.domain.training_world import make_folder, make_rows, make_training_set, pod_environment, run_pod

import ml_lifecycle
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.errors import (
    ConversionError,
    DataHaltedError,
    FeatureError,
    LifecycleError,
    NoSpaceError,
    PodFailedError,
    SourceError,
    SourceNotReadyError,
    TrainingError,
)
from ml_lifecycle.ledger.database import Database, DatabaseUnavailableError
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import Interval, Run, TaskType
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.train import collect_training, plan_training
from ml_lifecycle.stages.validate import latest_validated, raise_if_halted, validate
from ml_lifecycle.training.job import TrainingJob

Error = type[LifecycleError]


@dataclass(frozen=True)
class Raised:
    """What a bad input should end in."""

    error: Error
    retry: bool
    words: str

    def check(self, call: Callable[[], object]) -> None:
        with pytest.raises(LifecycleError) as caught:
            call()
        assert type(caught.value) is self.error, repr(caught.value)
        assert caught.value.retryable is self.retry
        assert self.words in str(caught.value)
        assert "Traceback" not in str(caught.value)


# ------------------------------------------------------------------------------------------- source files

FIELDS = [
    {"name": "id", "type": "integer"},
    {"name": "at", "type": "timestamp"},
    {"name": "value", "type": "float"},
]


def torn(keep: float) -> Callable[[Path], None]:
    """Cut a file's end off, as a copy that was interrupted leaves it."""

    def tear(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return tear


def rewritten(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        put(path.parent, path.name, change(events("2013-01-05", 40)))

    return rewrite


def replaced(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


TORN = "raw/2."
# name: the file's suffix, what happens to it, what it ends in
SOURCES: dict[str, tuple[str, Callable[[Path], Any], Raised]] = {
    "Parquet without its end": ("parquet", torn(0.99), Raised(SourceError, False, "2.parquet is torn")),
    "half a Parquet file": ("parquet", torn(0.5), Raised(SourceError, False, "2.parquet is torn")),
    "an empty Parquet file": ("parquet", replaced(b""), Raised(SourceError, False, "2.parquet is torn")),
    "zeros for Parquet": ("parquet", replaced(b"\0" * 4096), Raised(SourceError, False, "2.parquet is torn")),
    "a Parquet file of text": (
        "parquet",
        replaced(b"id,at\n1,2\n"),
        Raised(SourceError, False, "or no parquet"),
    ),
    "half a line of CSV": ("csv", torn(0.97), Raised(SourceError, False, "raw/2.csv")),
    "half a CSV quotation": (
        "csv",
        replaced(b'id,at,value\n1,"2013-01-05T00:00:00Z,1.0\n'),
        Raised(SourceError, False, "a quotation mark is never closed"),
    ),
    "CSV that is no UTF-8": (
        "csv",
        replaced("id,at,value\n1,2013-01-05T00:00:00Z,zwölf\n".encode("latin-1")),
        Raised(SourceError, False, "2.csv is torn"),
    ),
    "half a JSON object": ("json", torn(0.97), Raised(SourceError, False, "2.json is torn")),
    "JSON of another kind": ("json", replaced(b"[1, 2"), Raised(SourceError, False, "2.json is torn")),
    "a column gone": (
        "parquet",
        rewritten(lambda rows: rows.drop("at")),
        Raised(SourceError, False, "2.parquet has no column 'at'; it has id, value"),
    ),
    "a column renamed": (
        "csv",
        rewritten(lambda rows: rows.rename({"id": "ident"})),
        Raised(SourceError, False, "2.csv has no column 'id'; it has ident, at, value"),
    ),
    "text for numbers": (
        "csv",
        rewritten(lambda rows: rows.with_columns(value=pl.lit("many"))),
        Raised(SourceError, False, "column 'value', row 2: 'many' is not of type float (40 such values"),
    ),
    "numbers for times": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(at=pl.lit(5.5))),
        Raised(SourceError, False, "'at' holds Float64, but must hold timestamps or dates"),
    ),
    "another type than before": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(value=pl.lit("many"))),
        Raised(SourceError, False, "raw/2.parquet"),
    ),
    "lists in a column": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(value=pl.concat_list("value"))),
        Raised(SourceError, False, "2.parquet, column 'value'"),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_source_file_is_named_and_no_snapshot_made(tmp_path: Path, name: str) -> None:
    suffix, spoil, raised = SOURCES[name]
    lake = Lake(str(tmp_path / "lake"))
    declared = {
        "uri": f"raw/*.{suffix}",
        "format": suffix,
        "event_time": "at",
        "keys": ["id"],
        "contract": "events",
    }
    model, contracts = spec(events=declared), contract("events", FIELDS)
    put(tmp_path / "lake" / "raw", f"1.{suffix}", events("2013-01-02", 12))
    first = ingest(model, lake, run("2013-01-01", "2013-01-05"), contracts=contracts)
    spoilt = put(tmp_path / "lake" / "raw", f"2.{suffix}", events("2013-01-05", 40))
    spoil(spoilt)
    before = Standing.of(lake)

    second = run("2013-01-05", "2013-01-16", run_id="run_2")
    raised.check(lambda: ingest(model, lake, second, contracts=contracts))
    before.check(Standing.of(lake))
    put(tmp_path / "lake" / "raw", spoilt.name, events("2013-01-05", 40))
    assert ingest(model, lake, second, contracts=contracts).digest != first.digest, "mended, it is taken"


# ---------------------------------------------------------------------- data that no model can be made of

DAYS = 7


@dataclass(frozen=True)
class World:
    """The small model with a week of data behind it, all of which went well."""

    folder: ModelFolder
    lake: Lake

    def take(self, name: str, end_day: int) -> None:
        """From the files to a training set."""
        interval = Interval(START, START + end_day * DAY)
        snapshot = ingest(
            self.folder.spec,
            self.lake,
            Run("small", name, interval.end + HOUR, interval),
            contracts=self.folder.contracts,
        )
        previous = latest_validated(self.lake, "small", interval.end + HOUR)
        raise_if_halted(validate(self.folder.spec, self.folder.contracts, self.lake, snapshot, previous))
        made = build_training_set(self.folder, self.lake, snapshot)
        job = plan_training(self.folder, self.lake, made)
        main_here(self.lake, job, 1)  # what reaches it here cannot be trained on
        collect_training(self.lake, job)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("week")
    folder = load_folder(write_model(root))
    lake = Lake(str(root / "lake"))
    land(lake, days=DAYS)
    interval = Interval(START, START + DAYS * DAY)
    snapshot = ingest(
        folder.spec, lake, Run("small", "run_1", interval.end, interval), contracts=folder.contracts
    )
    raise_if_halted(validate(folder.spec, folder.contracts, lake, snapshot, None))
    return root


def every_file(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def apply(raw: Path) -> None:
        for path in raw.glob("*.parquet"):
            change(pl.read_parquet(path)).write_parquet(path)

    return apply


def next_day(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def apply(raw: Path) -> None:
        day = START + DAYS * DAY
        change(readings(day, day + DAY)).write_parquet(raw / "next.parquet")

    return apply


def nothing(_raw: Path) -> None:
    return None


def gone(raw: Path) -> None:
    shutil.rmtree(raw)


NULL = pl.lit(None)
# name: what happens to the landing folder, the day the run ends at, what it ends in
DATA: dict[str, tuple[Callable[[Path], None], int, Raised]] = {
    "no file at all": (gone, DAYS + 1, Raised(SourceNotReadyError, True, "no file matches")),
    "a column gone": (
        next_day(lambda rows: rows.drop("load")),
        DAYS + 1,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "a column renamed": (
        next_day(lambda rows: rows.rename({"load": "charge"})),
        DAYS + 1,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "a column of another type": (
        every_file(lambda rows: rows.with_columns(load=pl.lit("much"))),
        DAYS,
        Raised(SourceError, False, "column 'load', row 1: 'much' is not of type float"),
    ),
    "an empty day": (nothing, DAYS + 3, Raised(FeatureError, False, "no labelled row in the holdout span")),
    "a month without a row": (
        nothing,
        DAYS + 30,
        Raised(FeatureError, False, "the labels known by then are for 2026-01-01 00:01:00+00:00 to"),
    ),
    "a feature without a value": (
        every_file(lambda rows: rows.with_columns(load=NULL.cast(pl.Float64))),
        DAYS,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "labels without a value": (
        every_file(lambda rows: rows.with_columns(failed=NULL.cast(pl.Boolean))),
        DAYS,
        Raised(DataHaltedError, False, "readings.failed"),
    ),
    "one class": (
        every_file(lambda rows: rows.with_columns(failed=False)),
        DAYS,
        Raised(
            FeatureError,
            False,
            "binary needs exactly two classes among the training rows, 'failed' holds [0]",
        ),
    ),
    "too little": (nothing, 1, Raised(FeatureError, False, "nothing to train on: rows count from")),
}


@pytest.mark.parametrize("name", DATA)
def test_data_no_model_can_be_made_of_stop_the_run(tmp_path: Path, week: Path, name: str) -> None:
    change, end_day, raised = DATA[name]
    shutil.copytree(week, tmp_path, dirs_exist_ok=True)
    world = World(load_folder(tmp_path / "models" / "small"), Lake(str(tmp_path / "lake")))
    change(tmp_path / "lake" / "landing" / "readings")
    before = Standing.of(world.lake)
    raised.check(lambda: world.take("run_2", end_day))
    before.check(
        Standing.of(world.lake), "snapshots", "validations", "quarantine", "features", "training_sets"
    )


# ---------------------------------------------------------------------------------------- training.py

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
    raised.check(lambda: collect_training(lake, job))
    with pytest.raises(raised.error) as caught:
        collect_training(lake, job)
    assert len(str(caught.value)) < 10_000
    before.check(Standing.of(lake))


def test_labels_that_are_no_numbers_have_no_regression(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", "regression")
    texts = make_rows(400, "regression", 1).with_columns(label=pl.lit("many"))
    job = plan_training(folder, lake, make_training_set(lake, folder, train=texts))
    main_here(lake, job, 1)
    words = "regression needs numbers as labels, 'label' holds String"
    Raised(FeatureError, False, words).check(lambda: collect_training(lake, job))


def test_credentials_of_the_lake_are_not_in_reach_of_training_py(tmp_path: Path) -> None:
    """Printed or raised by accident they would be in logs and in the lake for good."""
    lake = Lake(str(tmp_path / "lake"))
    code = body("import os\nprint(os.environ)\nraise ValueError(str(os.environ))")
    folder = make_folder(tmp_path / "models", training=code)
    job = plan_training(folder, lake, make_training_set(lake, folder))
    ended = run_pod(lake, job, ML_LIFECYCLE_LAKE_OPTIONS='{"auto_mkdir": true, "unused": "canary"}')
    assert ended.returncode == 1
    assert "PYTHONHASHSEED" in ended.stdout, "the environment was printed"
    assert "canary" not in ended.stdout + ended.stderr + str(lake.read_json(job.failure_path))


# ------------------------------------------------------------------------- pods that end otherwise


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
            collect_training(lake, job)
        assert caught.value.retryable
        assert any(text in str(caught.value) for text in words)
        before.check(Standing.of(lake))
    finally:
        cluster.call("DELETE", "pods/training")


# ------------------------------------------------------------------------------------- closed ports


def test_a_database_behind_a_closed_port_is_said_to_be_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    database = Database(f"postgresql://ann:canary@127.0.0.1:{port}/lifecycle")
    words = f"://ann:***@127.0.0.1:{port}/lifecycle cannot be used now: "

    def read() -> None:
        with database.read():
            raise AssertionError("nobody listens there")

    def write() -> None:
        with database.write():
            raise AssertionError("nobody listens there")

    for call in (read, write):
        Raised(DatabaseUnavailableError, True, words).check(call)
        Raised(DatabaseUnavailableError, True, "Connection refused").check(call)


def test_a_database_whose_disk_is_full_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        lake = Lake(str(tmp_path / "disk" / "lake"))
        lake.write_bytes("a/x", b"old")
        database = Database(f"sqlite:///{tmp_path}/disk/lifecycle.db")
        database.migrate()
        ledger = Ledger(database)
        ledger.append("note", "small", {"number": 1}, START)
        before = Standing.of(lake, database)
        disk.fill()
        words = "is there room on its disk?"
        Raised(DatabaseUnavailableError, True, words).check(
            lambda: ledger.append("note", "small", {"number": 2}, START)
        )
        disk.free()
        before.check(Standing.of(lake, database))
        assert ledger.append("note", "small", {"number": 2}, START).seq == 2


# --------------------------------------------------------------------------------------- full disks


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        lake = Lake(str(tmp_path / "disk" / "lake"))
        lake.write_bytes("a/x", b"old")
        before, large = Standing.of(lake), tmp_path / "large"
        large.write_bytes(b"n" * 200_000)
        for room in (0, 4096, 64 * 1024):
            disk.fill(leave=room)
            for write in (
                lambda: lake.write_bytes("a/x", b"n" * 200_000),
                lambda: lake.write_json("b/c/d/manifest.json", ["n"] * 50_000),
                lambda: lake.put_file("a/y", large),
            ):
                Raised(NoSpaceError, True, "make room, then try again").check(write)
            before.check(Standing.of(lake))
            assert not list((tmp_path / "disk" / "lake").rglob("*.tmp"))
        disk.free()
        lake.write_bytes("a/x", b"new")
        assert lake.read_bytes("a/x") == b"new"


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    """``ulimit -f``, and quotas like it: where no small disk can be mounted it stands in for one."""
    lake = Lake(str(tmp_path / "lake"))
    lake.write_bytes("a/x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        Raised(NoSpaceError, True, "File too large").check(lambda: lake.write_bytes("a/x", b"n" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lake.read_bytes("a/x") == b"old"
    assert os.listdir(tmp_path / "lake" / "a") == ["x"]


# ---------------------------------------------------------------------------------- the command line

# name: what stands in the folder beforehand, the arguments, words on stderr
COMMANDS: dict[str, tuple[str | None, list[str], str]] = {
    "no folder": (None, ["check", "nowhere"], "nowhere: no such folder"),
    "a file for a folder": ("a file", ["check", "a file"], "a file: no such folder"),
    "an empty folder": ("empty/.keep", ["check", "empty"], "model.yaml: missing file: it holds the spec"),
    "a folder whose name is no text": (None, ["check", "b\udcff"], "no such folder"),
    "a name that climbs": (None, ["new", "../x", "--into", "."], "cannot name a model"),
    "a name with a line end": (None, ["new", "x\n", "--into", "."], "cannot name a model"),
    "a name with a look-alike": (None, ["new", "сhurn", "--into", "."], "cannot name a model"),
    "a template for a name": (None, ["new", "{{ ds }}", "--into", "."], "cannot name a model"),
    "a long name": (None, ["new", "x" * 64, "--into", "."], "cannot name a model"),
    "a taken name": ("churn/.keep", ["new", "churn", "--into", "."], "churn"),
    "nowhere to write to": (None, ["schema", "--output", "nowhere/model.json"], "nowhere/model.json"),
    "a folder to write to": ("out/.keep", ["schema", "--output", "out"], "out"),
    "a full disk": (None, ["schema", "--output", "/dev/full"], "No space left on device"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_exits_with_1_and_writes_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, arguments, words = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    if there is not None:
        Path(there).parent.mkdir(exist_ok=True)
        Path(there).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_below_one_whose_name_is_no_text_is_told_about(tmp_path: Path) -> None:
    parent = tmp_path / "b\udcff"
    parent.mkdir()
    assert main(["new", "churn", "--into", str(parent)]) == 0
    command = [sys.executable, "-m", "ml_lifecycle.cli", "check", str(parent / "churn")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(ml_lifecycle.__file__).parents[1]),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    # Feast does not import what lies there; whatever it says is shown in a terminal's letters.
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"b\\udcff/churn/features.py" in done.stderr
    assert b"Traceback" not in done.stderr
