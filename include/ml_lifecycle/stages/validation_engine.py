"""Who measures and judges: Polars, Great Expectations on pandas, or Spark and Great Expectations on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import StoredRows
from ml_lifecycle.rules import one_pass
from ml_lifecycle.rules.rule import Batch, Checked
from ml_lifecycle.spark.job import Job
from ml_lifecycle.spec.contract import Engine
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.validation_facts import Facts, PolarsFacts

if TYPE_CHECKING:
    from ml_lifecycle.spark.session import SparkSession


class ValidationEngine:
    """What measures and judges; Great Expectations is imported when the first batch needs it.

    :param job: what a Spark application does, where there is none in this process
    :raises SparkElsewhereError: Spark is to do it, and runs elsewhere. Retry: no, but there.
    """

    def __init__(self, spec: ModelSpec, lake: Lake, job: Job) -> None:
        self._session: SparkSession | None = None
        if spec.engine == "spark":
            from ml_lifecycle.spark.session import session_for

            self._session = session_for(spec.spark, lake, job)

    def facts(self, rows: StoredRows) -> Facts:
        """What is measured of a table."""
        if self._session is None:
            return PolarsFacts(rows.scan())
        from ml_lifecycle.spark.facts import SparkFacts

        return SparkFacts(self._session, rows)

    def check(self, engine: Engine, batch: Batch) -> Checked:
        """Judge a batch; what is not about a source's files alone is judged without Spark."""
        if self._session is not None and batch.stored is not None:
            return self._on_spark(batch)
        return one_pass.check(batch) if engine == "polars" else self._on_pandas(batch)

    @cached_property
    def _on_spark(self) -> Callable[[Batch], Checked]:
        from ml_lifecycle.spark.validation import SparkExpectations

        assert self._session is not None, "asked before"
        return SparkExpectations(self._session).check

    @cached_property
    def _on_pandas(self) -> Callable[[Batch], Checked]:
        from ml_lifecycle.adapters.expectations import Expectations

        return Expectations().check
