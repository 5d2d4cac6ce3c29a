"""``ml-lifecycle pod check``: our own pod keeps the contract, and each way to break it is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.cli import main
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import TaskType, from_json, to_json
from ml_lifecycle.training import pod
from ml_lifecycle.training.job import Attempt, Failure, PodResult
from ml_lifecycle.training.pod_check import Broken, Check, Ended, PodCommand, check_pod

Meddle = Callable[[Lake, Attempt], None]


class Here(PodCommand):
    """Our own pod in this process, which has imported everything; then somebody meddles with what it left."""

    def __init__(self, meddle: Meddle | None = None, *, fenced: bool = True, killed: bool = False) -> None:
        super().__init__(["python"])
        self._meddle, self._fenced, self._killed = meddle, fenced, killed

    def run(
        self, environment: Mapping[str, str], lake: Path, grace: float, term_after: float | None = None
    ) -> Ended:
        attempt = Attempt.given(Lake(str(lake)), environment)
        if term_after is not None:
            if self._killed:
                raise Broken("it still ran")
            failure = Failure("interrupted", "asked to end")
            Lake(str(lake)).write_json(attempt.failure_path, to_json(failure))
            return Ended(143, 0.1, "")
        given = dict(environment)
        if not self._fenced:
            given["ML_LIFECYCLE_FENCE"] = f"{attempt.job.path}/fences/nobody.json"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pod, "_end_on_sigterm", lambda *_: None)
            code = pod.main(given)
        if code == 0 and self._meddle is not None:
            self._meddle(Lake(str(lake)), attempt)
        return Ended(code, 0.1, "its last words")


def checked(command: PodCommand, task: TaskType = "binary") -> dict[str, Check]:
    return {check.demand: check for check in check_pod(command, task, {})}


@pytest.mark.parametrize(
    "task",
    [
        "binary",
        pytest.param("multiclass", marks=pytest.mark.full),
        pytest.param("regression", marks=pytest.mark.full),
    ],
)
def test_our_own_pod_keeps_the_contract(task: TaskType) -> None:
    found = checked(Here(), task)
    assert len(found) == 10
    assert [check for check in found.values() if not check.kept] == []


def test_whoever_leaves_no_manifest_is_not_asked_any_further() -> None:
    found = checked(Here(lambda lake, attempt: lake.delete(attempt.result_path)))
    assert list(found) == ["it trains, exits with 0 and leaves manifest.json"]
    (check,) = found.values()
    assert "it left no training/pod_check/job/attempts/000001/manifest.json" in check.detail


def altered_result(**changes: Any) -> Meddle:
    def meddle(lake: Lake, attempt: Attempt) -> None:
        result = from_json(PodResult, lake.read_json(attempt.result_path))
        lake.write_json(attempt.result_path, to_json(replace(result, **changes)))

    return meddle


def other_model(lake: Lake, attempt: Attempt) -> None:
    """The same answers in a file that says which attempt made it."""
    path = f"{attempt.path}/model.onnx"
    model = onnx.load_from_string(lake.read_bytes(path))
    model.doc_string = f"attempt {attempt.number}"
    lake.write_bytes(path, model.SerializeToString())
    result = from_json(PodResult, lake.read_json(attempt.result_path))
    files = {**result.files, "model.onnx": sha256(model.SerializeToString())}
    lake.write_json(attempt.result_path, to_json(replace(result, files=files)))


def torn(name: str) -> Meddle:
    return lambda lake, attempt: lake.write_bytes(f"{attempt.path}/{name}", b"torn") and None


@pytest.mark.parametrize(
    ("command", "demand", "words"),
    [
        (Here(torn("metrics.json")), "every file is there", "metrics.json has digest"),
        (Here(altered_result(files={})), "every file is there", "gives no digest of model.onnx, reference"),
        (Here(altered_result(metrics={"skill": 2.0})), "profile.json and metrics.json", "different metrics"),
        (Here(altered_result(classes=("yes",))), "model.onnx takes one input", "2 probabilities a row"),
        (Here(torn("reference.parquet")), "the model answers as", "reference.parquet cannot be read"),
        (Here(other_model), "another attempt ends in the same model", "it is another model"),
        (Here(fenced=False), "an attempt that was given up", "although ML_LIFECYCLE_FENCE named a newer"),
        (Here(killed=True), "asked to end (SIGTERM)", "it still ran"),
    ],
)
def test_each_broken_demand_is_found(command: PodCommand, demand: str, words: str) -> None:
    found = next(check for check in check_pod(command, "binary", {}) if check.demand.startswith(demand))
    assert not found.kept
    assert words in found.detail


def test_a_command_that_fails_is_shown_with_its_last_words(capsys: pytest.CaptureFixture[str]) -> None:
    code = "print('one'); print('two'); raise SystemExit(3)"
    assert main(["pod", "check", "--", sys.executable, "-c", code]) == 1
    shown = capsys.readouterr().out
    demand = "it trains, exits with 0 and leaves manifest.json"
    assert shown == f"BROKEN  {demand}: exit code 3, expected 0\n    one\n    two\n"


def test_a_command_that_never_ends_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    wait = "import threading; threading.Event().wait()"
    assert main(["pod", "check", "--timeout", "0.5", "--", sys.executable, "-c", wait]) == 1
    assert "it ran for more than 0.5 s and was killed" in capsys.readouterr().out


def test_an_image_needs_an_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pod", "check", "--image", "mine", "--engine", "no-such-engine"]) == 1
    assert "there is no no-such-engine here" in capsys.readouterr().err
    with pytest.raises(LifecycleError):
        PodCommand([], "mine", "no-such-engine")


def test_parameters_are_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pod", "check", "--parameters", json.dumps([1])])
    assert "write an object" in capsys.readouterr().err


@pytest.mark.full
def test_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own pod as a real process, asked to end in the middle and resumed."""
    assert main(["pod", "check", "--task", "regression"]) == 0
    assert capsys.readouterr().out.count("kept  ") == 10
