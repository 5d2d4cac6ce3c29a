"""What a Spark application is asked to do for a stage, and where it says what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import Record, digest_of

LAKE_OPTIONS_VARIABLE = "ML_LIFECYCLE_LAKE_OPTIONS"
ENVIRONMENT_OPTIONS_VARIABLE = "ML_LIFECYCLE_ENVIRONMENT_LAKE_OPTIONS"


@dataclass(frozen=True)
class Job:
    """A stage with what it is given, as JSON. Its result is the stage's own manifest, as everywhere.

    :param stage: one of :data:`ml_lifecycle.spark.application.STAGES`
    """

    stage: str
    arguments: dict[str, Any] = field(default_factory=dict)


class SparkElsewhereError(LifecycleError):
    """What a stage needs is to be computed by a Spark application, not in this process. Retry: no, run it.

    The operators run the application and then call the stage again, which finds it done.

    :param job: what the application does
    """

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job.stage} is not computed yet, and Spark runs elsewhere, not in this process")
        self.job = job


@dataclass(frozen=True)
class SparkJob(Record):
    """A job as it lies in the lake, for the application to read.

    :param digest: of all the rest: names the job
    :param code_path: the packed model folder
    """

    schema: ClassVar[str] = "spark_job/1"
    digest: str
    model: str
    stage: str
    arguments: dict[str, Any]
    code_path: str
    code_digest: str
    spec_digest: str

    @classmethod
    def make(cls, model: str, job: Job, code_path: str, code_digest: str, spec_digest: str) -> SparkJob:
        """The job with its digest."""
        parts = (model, job.stage, job.arguments, code_path, code_digest, spec_digest)
        return cls(digest_of(["spark_job/1", *parts]), *parts)

    @property
    def folder(self) -> str:
        """The folder in the lake that it lies in."""
        return f"spark/{self.model}/{self.digest}"

    @property
    def path(self) -> str:
        """Where it is written."""
        return f"{self.folder}/job.json"

    @property
    def failure_path(self) -> str:
        """Where the application says why it failed."""
        return f"{self.folder}/failure.json"


@dataclass(frozen=True)
class SparkFailure(Record):
    """Why an application failed.

    :param retryable: whether a retry helps
    :param traceback: lines of it, where the error is nobody's on purpose
    """

    schema: ClassVar[str] = "spark_failure/1"
    kind: str
    text: str
    retryable: bool
    traceback: tuple[str, ...] = ()
