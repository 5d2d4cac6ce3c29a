"""``ml-lifecycle pod check``: does a command, or an image, honour the contract of training pods?

It is run as the operator would run it, on a small job with made-up rows, several times: to its end, once
more, asked to end in the middle, resumed, and given up. Each check says what was expected and what was seen.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.onnx import as_served, feeds, open_session, predict
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.profiles.profile import read_profile
from ml_lifecycle.records import TaskType, from_json, to_json
from ml_lifecycle.training.job import GRACE_SECONDS, RESULT_FILES, Attempt, Failure, PodResult, TrainingJob
from ml_lifecycle.training.pod_world import COLUMNS, make_job
from ml_lifecycle.training.reference import read_reference

_OWNER = "pod-check"
_TOLERANCE = 1e-4
_LAST_LINES = 15
_INTERRUPTED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Check:
    """One demand of the contract: kept, broken, or not tried because another one was broken.

    :param detail: what was seen instead, or worth knowing
    """

    demand: str
    kept: bool
    detail: str = ""


class Broken(Exception):
    """A demand of the contract was not kept; the text says what was seen."""


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    code: int
    seconds: float
    output: str


class PodCommand:
    """What is checked: a command on this machine, or an image with an optional command.

    :param engine: the container engine's command, e.g. ``docker``; needed for an image
    :param timeout: seconds that one run may take
    """

    def __init__(
        self, command: Sequence[str], image: str | None = None, engine: str = "docker", timeout: float = 600
    ) -> None:
        if image is not None and shutil.which(engine) is None:
            raise LifecycleError(f"there is no {engine} here to run the image {image} with")
        self._command, self._image, self._engine, self._timeout = tuple(command), image, engine, timeout

    def run(
        self, environment: Mapping[str, str], lake: Path, grace: float, term_after: float | None = None
    ) -> Ended:
        """Run it once, asked to end after so many seconds, killed when the grace is over."""
        began = time.monotonic()
        with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                self._arguments(environment, lake, Path(folder, "id")),
                env=self._environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._wait(process, term_after, grace, Path(folder, "id"))
            finally:
                self._kill(process, Path(folder, "id"))
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Ended(process.returncode, time.monotonic() - began, text)

    def _wait(
        self, process: subprocess.Popen[bytes], term_after: float | None, grace: float, container: Path
    ) -> None:
        try:
            process.wait(self._timeout if term_after is None else term_after)
        except subprocess.TimeoutExpired:
            if term_after is None:
                self._kill(process, container)
                process.wait()
                raise Broken(f"it ran for more than {self._timeout:g} s and was killed") from None
        else:
            return
        process.terminate()  # a container engine's client passes it on
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            self._kill(process, container)
            process.wait()
            raise Broken(f"it still ran {grace:g} s after SIGTERM and was killed") from None

    def _arguments(self, environment: Mapping[str, str], lake: Path, container: Path) -> list[str]:
        if self._image is None:
            return list(self._command)
        given = [part for name in environment for part in ("--env", name)]
        mounted = ["--volume", f"{lake}:{lake}", "--user", f"{os.getuid()}:{os.getgid()}"]
        run = [self._engine, "run", "--rm", "--init", "--network=none", "--cidfile", str(container)]
        return [*run, *mounted, *given, self._image, *self._command]

    def _environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        kept = ("PATH", "HOME", "LANG", "DOCKER_HOST", "XDG_RUNTIME_DIR", "VIRTUAL_ENV")
        return {name: os.environ[name] for name in kept if name in os.environ} | dict(environment)

    def _kill(self, process: subprocess.Popen[bytes], container: Path) -> None:
        if self._image is not None and process.poll() is None and container.exists():
            subprocess.run(
                [self._engine, "kill", container.read_text().strip()], capture_output=True, check=False
            )
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def check_pod(
    command: PodCommand, task: TaskType, parameters: dict[str, Any], grace: float = GRACE_SECONDS
) -> Iterator[Check]:
    """Try every demand of the contract, one after another; those that need a result only if there is one.

    :param parameters: handed to the training code as they are
    :param grace: seconds from SIGTERM to SIGKILL
    """
    with tempfile.TemporaryDirectory(prefix="pod-check-") as folder:
        trial = _Trial(command, Lake(folder), Path(folder).resolve(), task, parameters, grace)
        for demand, attempt in trial.demands():
            try:
                yield Check(demand, True, attempt() or "")
            except Broken as broken:
                yield Check(demand, False, str(broken))
                if not trial.trains:
                    return  # nothing else can be tried


class _Trial:
    def __init__(
        self,
        command: PodCommand,
        lake: Lake,
        folder: Path,
        task: TaskType,
        parameters: dict[str, Any],
        grace: float,
    ) -> None:
        self._command, self._lake, self._folder, self._grace = command, lake, folder, grace
        self._job = make_job(lake, task, parameters)
        self._seconds = 0.0
        self.trains = False

    def demands(self) -> list[tuple[str, Callable[[], str | None]]]:
        return [
            ("it trains, exits with 0 and leaves manifest.json", self._trains),
            ("every file is there and has the digest that the manifest gives", self._files_are_whole),
            ("model.onnx takes one input a column and answers every row", self._model_answers),
            ("the model answers as the original estimator did", self._answers_agree),
            ("profile.json and metrics.json can be read", self._profile_reads),
            ("another attempt ends in the same model, or says why not", self._is_the_same_again),
            ("asked to end (SIGTERM) it ends in time, and says so", self._ends_when_asked),
            ("the attempt after an interrupted one ends in the same model", self._resumes),
            ("an attempt that was given up publishes nothing", self._is_fenced),
            ("a training set that is not the one meant is refused", self._refuses_other_rows),
        ]

    def _trains(self) -> str:
        ended = self._run(1)
        if ended.code != 0:
            raise Broken(_said(f"exit code {ended.code}, expected 0", ended))
        self._result(1)
        self.trains, self._seconds = True, ended.seconds
        return f"{ended.seconds:.1f} s"

    def _files_are_whole(self) -> None:
        result, attempt = self._result(1), self._attempt(1)
        if missing := [name for name in RESULT_FILES if name not in result.files]:
            raise Broken(f"the manifest gives no digest of {', '.join(missing)}")
        for name, digest in result.files.items():
            try:
                self._lake.read_bytes(f"{attempt.path}/{name}", digest)
            except LifecycleError as error:
                raise Broken(str(error)) from error

    def _model_answers(self) -> str:
        session = self._session()
        wanted, given = {column.name for column in COLUMNS}, {item.name for item in session.get_inputs()}
        if extra := given - wanted:
            raise Broken(
                f"it wants {', '.join(sorted(extra))}, and the columns are {', '.join(sorted(wanted))}"
            )
        try:
            answers = predict(session, feeds(self._holdout()))
        except (LifecycleError, KeyError) as error:
            raise Broken(f"{error}; outputs are label and probabilities, or prediction") from error
        if not np.isfinite(answers.outputs).all():
            raise Broken("some answers are NaN or infinite")
        classes = self._result(1).classes
        if answers.outputs.ndim == 2 and answers.outputs.shape[1] != len(classes):
            raise Broken(f"{answers.outputs.shape[1]} probabilities a row, and classes are {list(classes)}")
        unused = wanted - given
        return f"it does not use {', '.join(sorted(unused))}" if unused else ""

    def _answers_agree(self) -> str:
        path = f"{self._attempt(1).path}/reference.parquet"
        try:
            reference = read_reference(self._lake, path, COLUMNS, self._job.task)
        except Exception as error:  # whatever Polars finds wrong with the file
            raise Broken(f"reference.parquet cannot be read: {type(error).__name__}: {error}") from error
        rows = pl.concat([self._holdout(), reference.probes])
        got = predict(self._session(), feeds(rows)).outputs
        if reference.outputs.shape != got.shape:
            raise Broken(f"the reference has answers {reference.outputs.shape}, the model {got.shape}")
        scale = float(np.std(got)) or 1.0 if self._job.task == "regression" else 1.0
        worst = float(np.abs(reference.outputs - got).max()) / scale
        if not worst <= _TOLERANCE:
            raise Broken(f"they differ by up to {worst:.3g}, at most {_TOLERANCE:g} is allowed")
        return f"within {worst:.1e}"

    def _profile_reads(self) -> None:
        attempt = self._attempt(1)
        try:
            profile = read_profile(self._lake.read_json(f"{attempt.path}/profile.json"))
            metrics = self._lake.read_json(f"{attempt.path}/metrics.json")["metrics"]
        except (LifecycleError, KeyError, TypeError) as error:
            raise Broken(str(error)) from error
        if missing := [column.name for column in COLUMNS if column.name not in profile.columns]:
            raise Broken(f"the profile lacks {', '.join(missing)}")
        if metrics != self._result(1).metrics:
            raise Broken("metrics.json and the manifest name different metrics")

    def _is_the_same_again(self) -> str:
        ended = self._run(2)
        if ended.code != 0:
            raise Broken(_said(f"exit code {ended.code}, expected 0", ended))
        self._seconds = min(self._seconds, ended.seconds)  # the first one waited for a cold disk
        return self._same_model(1, 2)

    def _ends_when_asked(self) -> str:
        ended = self._run(3, term_after=self._seconds / 2)
        if ended.code == 0:
            self._result(3)
            return "it had finished before"
        if ended.code != _INTERRUPTED:
            raise Broken(_said(f"exit code {ended.code}, expected {_INTERRUPTED}", ended))
        if (failure := self._failure(3)) is None or failure.kind != "interrupted":
            raise Broken(f"failure.json says {failure and failure.kind}, expected kind 'interrupted'")
        return ""

    def _resumes(self) -> str:
        ended = self._run(4)
        if ended.code != 0:
            raise Broken(_said(f"exit code {ended.code}, expected 0", ended))
        return self._same_model(1, 4)

    def _is_fenced(self) -> None:
        self._attempt(6).raise_fence(self._lake)
        ended = self._run(5)
        if ended.code == 0 or self._lake.exists(self._attempt(5).result_path):
            raise Broken("it published although ML_LIFECYCLE_FENCE named a newer attempt")

    def _refuses_other_rows(self) -> None:
        altered = replace(self._job, path=f"{self._job.path}-altered", training_set_digest="f" * 64)
        self._lake.write_json(altered.job_path, to_json(altered))
        ended = self._run(1, altered)
        if ended.code == 0 or self._lake.exists(self._attempt(1, altered).result_path):
            raise Broken("it trained although the training set's digest is not the job's")

    def _run(self, number: int, job: TrainingJob | None = None, term_after: float | None = None) -> Ended:
        attempt = self._attempt(number, job)
        environment = attempt.environment(str(self._folder))
        return self._command.run(environment, self._folder, self._grace, term_after)

    def _attempt(self, number: int, job: TrainingJob | None = None) -> Attempt:
        return Attempt(job or self._job, number, _OWNER, grace_seconds=self._grace)

    def _result(self, number: int) -> PodResult:
        attempt = self._attempt(number)
        try:
            result = from_json(PodResult, self._lake.read_json(attempt.result_path))
        except LakeFileMissingError:
            raise Broken(f"it left no {attempt.result_path}") from None
        except LifecycleError as error:
            raise Broken(str(error)) from error
        if (result.job, result.attempt) != (self._job.digest, number):
            raise Broken(f"it is the result of attempt {result.attempt} at {result.job}")
        return result

    def _failure(self, number: int) -> Failure | None:
        try:
            return from_json(Failure, self._lake.read_json(self._attempt(number).failure_path))
        except LifecycleError:
            return None

    def _same_model(self, one: int, other: int) -> str:
        first, second = self._result(one), self._result(other)
        if first.files.get("model.onnx") == second.files.get("model.onnx"):
            return ""
        if not second.not_reproducible_because:
            raise Broken("it is another model, and not_reproducible_because says nothing")
        return "; ".join(second.not_reproducible_because)

    def _session(self) -> Any:
        try:
            return open_session(self._lake.read_bytes(f"{self._attempt(1).path}/model.onnx"))
        except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
            raise Broken(f"ONNX Runtime does not load it: {error}") from error

    def _holdout(self) -> pl.DataFrame:
        with self._lake.open("training_sets/pod_check/rows/holdout.parquet") as file:
            return as_served(pl.read_parquet(file), COLUMNS)


def _said(what: str, ended: Ended) -> str:
    lines = ended.output.strip().splitlines()[-_LAST_LINES:]
    return "\n    ".join([what, *lines])
