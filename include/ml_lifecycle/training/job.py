"""The job a training pod is given, and what it says when it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.records import Record, Run, TaskType, Training, from_json

LAKE_VARIABLE = "ML_LIFECYCLE_LAKE"
LAKE_OPTIONS_VARIABLE = "ML_LIFECYCLE_LAKE_OPTIONS"
JOB_VARIABLE = "ML_LIFECYCLE_JOB"


@dataclass(frozen=True)
class TrainingJob(Record):
    """Lake paths and digests of everything a pod needs, and the parameters.

    :param digest: of the training set, the code and the spec's training section: names the result
    :param path: the folder in the lake that job and result lie in
    """

    schema: ClassVar[str] = "training_job/1"
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

    @property
    def job_path(self) -> str:
        """Where the job itself is written."""
        return f"{self.path}/job.json"

    @property
    def manifest_path(self) -> str:
        """Where the pod writes its result, last."""
        return f"{self.path}/manifest.json"

    @property
    def failure_path(self) -> str:
        """Where the pod says why there is no result."""
        return f"{self.path}/failure.json"

    @property
    def checkpoints_path(self) -> str:
        """The folder that checkpoints lie in until there is a result."""
        return f"{self.path}/checkpoints"

    @property
    def command(self) -> tuple[str, ...]:
        """The container's command."""
        return ("python", "-m", "ml_lifecycle.training.pod")

    def environment(self, lake_url: str) -> dict[str, str]:
        """The container's plain environment; lake options are secret and come by ``secretKeyRef``.

        :param lake_url: the lake as the pod reaches it
        """
        # A fixed hash seed: the order of a set of texts in the user's code must not change the model.
        return {LAKE_VARIABLE: lake_url, JOB_VARIABLE: self.job_path, "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Failure(Record):
    """Why a pod ended without a result.

    :param kind: ``user_error`` (``training.py``), ``memory``, ``data`` (the training set), ``conversion``
        (to ONNX) and ``integrity`` (bytes in the lake) stay with a retry; the others may go
    :param traceback: the frames from ``training.py`` on, paths relative to the model folder
    """

    schema: ClassVar[str] = "training_failure/1"
    kind: Literal["user_error", "memory", "data", "conversion", "integrity", "interrupted", "error"]
    message: str
    traceback: tuple[str, ...] = ()


def finished_training(lake: Lake, job: TrainingJob) -> Training | None:
    """The job's result; None while there is no manifest."""
    try:
        return from_json(Training, lake.read_json(job.manifest_path))
    except LakeFileMissingError:
        return None
