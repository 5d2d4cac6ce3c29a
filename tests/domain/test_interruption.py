"""A pod that is told to end goes on to the next checkpoint if there is time; another pod resumes there."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.domain.test_pod import main_here
from tests.domain.training_world import (
    COLUMNS,
    collect,
    make_folder,
    make_rows,
    make_training_set,
    pod_environment,
)
from toy_loop import Attempts

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import as_served
from ml_lifecycle.errors import PodFailedError, StaleAttemptError, TrainingError
from ml_lifecycle.records import Training, from_json, to_json
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.training.fit import fit, load_train
from ml_lifecycle.training.interruption import usable
from ml_lifecycle.training.job import GRACE_VARIABLE, TrainingJob
from ml_lifecycle.training.pace import Pace


def test_the_pace_is_that_of_the_slower_segment() -> None:
    pace = Pace()
    assert pace.seconds_to_saved(0) is None
    pace.begin(10, 100)
    assert pace.seconds_to_saved(103) is None, "nothing is measured yet"
    pace.step(104)
    assert pace.seconds_to_saved(105) == 10 * 4 - 5
    pace.begin_save(120)
    assert pace.seconds_to_saved(120) == pace.seconds_to_saved(500) == 0
    pace.end_save(123)
    assert pace.seconds_to_saved(124) is None, "it is between two segments"
    pace.begin(5, 130)
    assert pace.seconds_to_saved(130) == 5 * 2 + 3, "2 s a step as before, and 3 s to save"
    pace.step(131)
    assert pace.seconds_to_saved(131) == 5 * 2 - 1 + 3
    pace.step(140)
    assert pace.seconds_to_saved(140) == 5 * 5 - 10 + 3, "this one is slower"
    assert pace.seconds_to_saved(500) == 3, "overdue, so any moment now"
    pace.leave()
    assert pace.seconds_to_saved(500) is None


@pytest.mark.parametrize(("grace", "seconds"), [(30, 27), (600, 540), (5, 4), (1, 0), (0, 0)])
def test_some_of_the_grace_is_kept_for_saying_so(grace: float, seconds: float) -> None:
    assert usable(grace) == pytest.approx(seconds)


LOOP = """
import ctypes
import json
import logging
import os
import signal
import threading
from pathlib import Path

import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


class State:
    values = []

    def save(self, path):
        act("save", len(self.values))
        path.write_text(json.dumps(self.values))

    def load(self, path):
        self.values = json.loads(path.read_text())


def train(training_set, labels, parameters, seed, checkpoints):
    global PARAMETERS
    PARAMETERS = parameters
    state = State()
    for segment in checkpoints.segments(state, steps=12, every=4):
        for step in segment:
            act("step", step)
            state.values.append(np.random.random())
    model = LogisticRegression(C=sum(state.values))
    columns = make_column_transformer(("passthrough", ["distance"]))
    return make_pipeline(columns, model).fit(training_set, labels)


def act(where, step):
    if [where, step] != PARAMETERS["at"] or os.path.exists(PARAMETERS["done"]):
        return
    Path(PARAMETERS["done"]).touch()
    heard = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: heard.set()  # it has been told, and goes on
    logging.getLogger("ml_lifecycle.training").addHandler(handler)
    for number in PARAMETERS["signals"]:
        os.kill(os.getpid(), number)
        if PARAMETERS["then"] != "end":
            assert heard.wait(120)
    if PARAMETERS["then"] != "go on":
        mutex = ctypes.create_string_buffer(128)
        while True:  # like a long fit: in C, and not to be interrupted
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def new_job(
    tmp_path: Path, at: tuple[str, int], signals: list[signal.Signals], then: str
) -> tuple[Lake, TrainingJob]:
    lake = Lake(str(tmp_path / "lake"))
    numbers = [int(number) for number in signals]
    parameters = f"{{at: [{at[0]}, {at[1]}], signals: {numbers}, then: {then}, done: {tmp_path}/done}}"
    folder = make_folder(tmp_path / "models", training=LOOP, parameters=parameters)
    return lake, plan_training(folder, lake, make_training_set(lake, folder))


def run_until_told(lake: Lake, job: TrainingJob, grace: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *job.command[1:]]
    environment = {**pod_environment(lake, job), GRACE_VARIABLE: grace}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=False
    )


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("at", "signals", "then", "grace", "resumes"),
    [
        (("step", 5), [TERM], "go on", "300", 8),
        pytest.param(("step", 5), [INT], "go on", "300", 8, marks=pytest.mark.full),
        pytest.param(("step", 1), [TERM], "go on", "300", 4, marks=pytest.mark.full),
        (("save", 4), [TERM], "go on", "300", 4),
        pytest.param(("save", 12), [TERM], "go on", "300", 12, marks=pytest.mark.full),
        (("step", 5), [TERM], "hang", "2", 4),  # it thought that there was time
        (("step", 5), [TERM], "end", "0.5", 4),
        pytest.param(("step", 0), [TERM], "end", "300", 0, marks=pytest.mark.full),  # nothing is measured yet
        (("step", 6), [TERM, TERM], "hang", "300", 4),
    ],
)
def test_told_to_end_it_ends_in_time_and_loses_no_checkpoint(
    tmp_path: Path,
    at: tuple[str, int],
    signals: list[signal.Signals],
    then: str,
    grace: str,
    resumes: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lake, job = new_job(tmp_path, at, signals, then)
    ended = run_until_told(lake, job, grace)
    assert ended.returncode == 128 + signals[0], ended.stdout
    with pytest.raises(PodFailedError, match=rf"asked to end \({signals[0].name}\)") as caught:
        collect(lake, job)
    assert caught.value.retryable

    with caplog.at_level(logging.INFO):
        main_here(lake, job, 0, number=2)
    assert ("resumed at step" in caplog.text) == (resumes > 0)
    assert f"resumed at step {resumes} of 12" in caplog.text or not resumes
    interrupted = collect(lake, job, 2)
    assert interrupted.reproducible
    assert interrupted.resources["resumed_steps"] == resumes
    assert list(lake.list(job.checkpoints_path)) == []

    lake.delete(job.manifest_path)
    main_here(lake, job, 0, number=3)
    assert collect(lake, job, 3).model_digest == interrupted.model_digest


UNSURE = """
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def train(training_set, labels, parameters, seed, *, checkpoints):
    checkpoints.not_reproducible("it looks at the clock")
    columns = make_column_transformer(("passthrough", ["distance"]))
    return make_pipeline(columns, LogisticRegression()).fit(training_set, labels)
"""


def test_what_is_not_reproducible_stands_on_the_record(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models", training=UNSURE)
    job = plan_training(folder, lake, make_training_set(lake, folder))
    main_here(lake, job, 0)
    training = collect(lake, job)
    assert not training.reproducible
    assert training.not_reproducible_because == ("it looks at the clock",)

    written = to_json(training)
    earlier = {name: value for name, value in written.items() if "reproducible" not in name}
    read = from_json(Training, earlier)
    assert read.reproducible
    assert read.not_reproducible_because == ()


def load(tmp_path: Path, signature: str, body: str = "pass") -> object:
    return load_train(make_folder(tmp_path, training=f"def train({signature}): {body}").path)


@pytest.mark.parametrize("fifth", ["checkpoints", "*, checkpoints", "checkpoints=None", "**other"])
def test_train_may_take_checkpoints(tmp_path: Path, fifth: str) -> None:
    assert callable(load(tmp_path, f"a, b, c, d, {fifth}"))


@pytest.mark.parametrize("fifth", ["saves", "checkpoints, saves", "*, saves"])
def test_what_else_train_takes_is_refused(tmp_path: Path, fifth: str) -> None:
    with pytest.raises(TrainingError, match="a fifth parameter named checkpoints: missing a required"):
        load(tmp_path, f"a, b, c, d, {fifth}")


SWALLOWS = """
    class State:
        save = load = lambda self, path: path.touch()

    def train(training_set, labels, parameters, seed, checkpoints):
        try:
            for segment in checkpoints.segments(State(), steps=2):
                pass
        except Exception:
            return "whatever"
"""


def test_a_stale_attempt_ends_whatever_train_makes_of_it(attempts: Attempts, tmp_path: Path) -> None:

    rows = make_rows(40, "binary", 1)
    train = load_train(make_folder(tmp_path / "models", training=SWALLOWS).path)
    asked = iter([False, True])
    attempts.stale = lambda: next(asked)
    with pytest.raises(StaleAttemptError):
        fit(train, as_served(rows, COLUMNS), rows["label"], {}, 1, "binary", attempts.next())
    assert attempts.files == []
