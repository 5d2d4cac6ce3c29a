"""The job a training pod is given, its attempts, and what a pod says when it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.quantity import parse_quantity
from ml_lifecycle.records import Record, Run, TaskType, Training, from_json
from ml_lifecycle.training.search import TrialTerms

LAKE_VARIABLE = "ML_LIFECYCLE_LAKE"
LAKE_OPTIONS_VARIABLE = "ML_LIFECYCLE_LAKE_OPTIONS"
JOB_VARIABLE = "ML_LIFECYCLE_JOB"
OUTPUT_VARIABLE = "ML_LIFECYCLE_OUTPUT"
ATTEMPT_VARIABLE = "ML_LIFECYCLE_ATTEMPT"
FENCE_VARIABLE = "ML_LIFECYCLE_FENCE"
DEADLINE_VARIABLE = "ML_LIFECYCLE_DEADLINE"
GRACE_VARIABLE = "ML_LIFECYCLE_GRACE_SECONDS"

GRACE_SECONDS = 30
"""Between SIGTERM and SIGKILL, as Kubernetes has it by default."""

# What numerical libraries read their number of threads from. Sums depend on how they are split up.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class TrainingJob(Record):
    """Lake paths and digests of everything a pod needs, and the parameters.

    :param digest: of the training set, the code and all that the result depends on: names the result
    :param path: the folder in the lake that job and result lie in
    :param threads: how many a numerical library may use: the result must not depend on the node's cores
    :param search_path: folder of the search whose best parameters these are; empty without one
    :param trial: which trial of a search this is; None if the model is to be used
    :param segments: column → values whose rows the profile tells apart
    """

    schema: ClassVar[str] = "training_job/2"
    run: Run
    digest: str
    path: str
    training_set_path: str
    training_set_digest: str
    code_path: str
    code_digest: str
    spec_digest: str
    task: TaskType
    parameters: dict[str, Any]
    seed: int
    threads: int
    search_path: str = ""
    trial: TrialTerms | None = None
    segments: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def job_path(self) -> str:
        """Where the job itself is written."""
        return f"{self.path}/job.json"

    @property
    def manifest_path(self) -> str:
        """Where the :class:`~ml_lifecycle.records.Training` is published, of the attempt that counts."""
        return f"{self.path}/manifest.json"

    @property
    def checkpoints_path(self) -> str:
        """The folder of the checkpoints, which all attempts share."""
        return f"{self.path}/checkpoints"

    def measured_file(self, step: int) -> str:
        """Where a trial's pod writes what it measured at a step, while it trained."""
        return f"{self.path}/measured/{step:012d}.json"

    @property
    def command(self) -> tuple[str, ...]:
        """The container's command."""
        return ("python", "-m", "ml_lifecycle.training.pod")


@dataclass(frozen=True)
class Attempt:
    """One pod's go at a job.

    :param number: rises with every pod of the job; the fencing token
    :param owner: whose attempts follow each other: of one owner only the newest attempt's result counts
    :param deadline: when the pod is ended whatever it does; None if never
    :param grace_seconds: between SIGTERM and SIGKILL
    """

    job: TrainingJob
    number: int
    owner: str
    deadline: datetime | None = None
    grace_seconds: float = GRACE_SECONDS

    @classmethod
    def given(cls, lake: Lake, environment: Mapping[str, str]) -> Attempt:
        """The attempt that a pod is, by its environment."""
        job = from_json(TrainingJob, lake.read_json(environment[JOB_VARIABLE]))
        return cls(
            job,
            int(environment[ATTEMPT_VARIABLE]),
            PurePosixPath(environment[FENCE_VARIABLE]).stem,
            grace_seconds=float(environment.get(GRACE_VARIABLE) or GRACE_SECONDS),
        )

    @property
    def path(self) -> str:
        """The folder that this attempt alone writes its result to."""
        return f"{self.job.path}/attempts/{self.number:06d}"

    @property
    def result_path(self) -> str:
        """Where the pod writes its :class:`PodResult`, last."""
        return f"{self.path}/manifest.json"

    @property
    def failure_path(self) -> str:
        """Where the pod says why there is no result."""
        return f"{self.path}/failure.json"

    @property
    def usage_path(self) -> str:
        """Where the pod says, time and again, what it has used so far."""
        return f"{self.path}/usage.json"

    @property
    def fence_path(self) -> str:
        """Where the number of the owner's newest attempt is kept."""
        return f"{self.job.path}/fences/{self.owner}.json"

    def environment(self, lake_url: str) -> dict[str, str]:
        """The container's plain environment; lake options are secret and come by ``secretKeyRef``.

        :param lake_url: the lake as the pod reaches it
        """
        return {
            LAKE_VARIABLE: lake_url,
            JOB_VARIABLE: self.job.job_path,
            OUTPUT_VARIABLE: self.path,
            ATTEMPT_VARIABLE: str(self.number),
            FENCE_VARIABLE: self.fence_path,
            GRACE_VARIABLE: f"{self.grace_seconds:g}",
            **({DEADLINE_VARIABLE: self.deadline.isoformat()} if self.deadline else {}),
            # A fixed hash seed: the order of a set of texts in the user's code must not change the model.
            "PYTHONHASHSEED": "0",
            **{name: str(self.job.threads) for name in _THREADS},
        }

    def raise_fence(self, lake: Lake) -> None:
        """Say that this is the owner's newest attempt; called before its pod is launched."""
        lake.write_json(self.fence_path, {"attempt": self.number})

    def is_superseded(self, lake: Lake) -> bool:
        """Whether its owner has begun a newer attempt: nothing that this one writes counts any more."""
        try:
            return int(lake.read_json(self.fence_path)["attempt"]) > self.number
        except LakeFileMissingError:
            return False


@dataclass(frozen=True)
class PodResult(Record):
    """What a pod says of its result: written last, and without it there is none.

    :param job: the job's digest
    :param attempt: the attempt's number, as the pod was given it
    :param files: SHA-256 by name, of :data:`RESULT_FILES` and whatever else it left in its output folder
    :param classes: class labels in output order, empty for regression
    :param usage: as in ``usage.json``: wall and CPU seconds, peak memory in bytes
    :param not_reproducible_because: why the same job may end in another model; empty if it does not
    """

    schema: ClassVar[str] = "pod_result/1"
    job: str
    attempt: int
    files: dict[str, str]
    classes: tuple[str, ...]
    metrics: dict[str, float]
    packages: dict[str, str]
    usage: dict[str, float]
    not_reproducible_because: tuple[str, ...] = ()


RESULT_FILES = ("model.onnx", "reference.parquet", "profile.json", "metrics.json")


@dataclass(frozen=True)
class Failure(Record):
    """Why a pod ended without a result.

    :param kind: ``user_error`` (``training.py``), ``memory``, ``data`` (the training set), ``conversion``
        (to ONNX) and ``integrity`` (bytes in the lake) stay with a retry; the others may go. ``superseded``:
        a newer attempt has begun. ``pruned``: it was a trial, and worse than others
    :param traceback: the frames from ``training.py`` on, paths relative to the model folder
    """

    schema: ClassVar[str] = "training_failure/1"
    kind: Literal[
        "user_error",
        "memory",
        "data",
        "conversion",
        "integrity",
        "interrupted",
        "superseded",
        "pruned",
        "error",
    ]
    message: str
    traceback: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Message and traceback."""
        return "\n  ".join([self.message, *self.traceback])


def threads_of(cpu: str) -> int:
    """Threads for a Kubernetes quantity of CPU such as ``500m`` or ``4``: whole cores, at least one."""
    return max(1, math.ceil(parse_quantity(cpu)))


def published_training(lake: Lake, job: TrainingJob) -> Training | None:
    """The job's result; None while there is none."""
    try:
        return from_json(Training, lake.read_json(job.manifest_path))
    except LakeFileMissingError:
        return None


def read_measured(lake: Lake, job: TrainingJob) -> dict[int, float]:
    """What a trial's pods measured while they trained, by step."""
    return {
        int(PurePosixPath(path).stem): float(lake.read_json(path)["value"])
        for path in lake.list(f"{job.path}/measured")
    }
