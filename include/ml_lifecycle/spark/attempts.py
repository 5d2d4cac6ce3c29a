"""Which application at a job is the next: those that failed are on record in the lake."""

from __future__ import annotations

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import from_json
from ml_lifecycle.spark.job import SparkFailure, SparkJob


class SparkAttempts:
    """The applications at one job, one after another.

    The number names the next one. A task that finds the number unchanged asks for the application that was
    asked for before, whatever became of who asked.
    """

    def __init__(self, lake: Lake, job: SparkJob) -> None:
        self.job, self._lake = job, lake
        self.number = 1 + sum(1 for _ in lake.list(f"{job.folder}/failed"))

    def failed(self, error: str) -> SparkFailure | None:
        """Put a failure on record; returns what the application itself said, if it did.

        :param error: what is said of it from outside
        """
        self._lake.write_json(f"{self.job.folder}/failed/{self.number:04d}.json", {"error": error})
        if not self._lake.exists(self.job.failure_path):
            return None
        said = from_json(SparkFailure, self._lake.read_json(self.job.failure_path))
        self._lake.delete(self.job.failure_path)  # the next one speaks for itself
        return said
