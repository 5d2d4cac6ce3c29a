"""Stages that Spark computes elsewhere: by a SparkApplication on Kubernetes, or on Amazon EMR Serverless."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from ml_lifecycle_airflow.operators.base import Resources, StageOperator, final_errors_fail_at_once

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.spark.attempts import SparkAttempts
    from ml_lifecycle.spec.model import ModelSpec


class ByApplication(StageOperator):
    """A stage whose result a Spark application makes, if it is not there yet.

    The stage itself is called first and last: a result that is there costs no application, and what an
    application has left is read as any other result is. Success without a result is a failure.
    """

    def _computed(
        self, context: Context, run: Callable[[Resources, SparkAttempts], object]
    ) -> dict[str, Any]:
        from ml_lifecycle.records import to_json
        from ml_lifecycle.spark.application import plan_application
        from ml_lifecycle.spark.attempts import SparkAttempts
        from ml_lifecycle.spark.job import SparkElsewhereError

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
            try:
                return to_json(self.stage(resources, context))
            except SparkElsewhereError as needed:
                planned = plan_application(resources.model, resources.lake(), needed.job)
            attempts = SparkAttempts(resources.lake(), planned)
        try:
            run(resources, attempts)
        except AirflowException as error:
            failure = attempts.failed(str(error))
            if failure is None:
                raise
            text = f"the Spark application failed: {failure.kind}: {failure.text}"
            raise (AirflowException if failure.retryable else AirflowFailException)(text) from error
        with final_errors_fail_at_once():
            try:
                return to_json(self.stage(resources, context))
            except SparkElsewhereError as error:
                attempts.failed("it ended well, and left no result")
                raise AirflowException(
                    f"the Spark application of {planned.path} ended well and left no result"
                ) from error


# A stage's operators elsewhere are imported only where they are needed: Amazon's alone takes a second.
_ELSEWHERE = {
    "kubernetes": ("spark_kubernetes", "OnKubernetesOperator"),
    "emr": ("spark_emr", "OnEmrOperator"),
}


def on_spark(stage: type[StageOperator], spec: ModelSpec) -> Callable[..., StageOperator]:
    """The operator that runs a stage where the spec says, to be given the stage's own arguments."""
    if spec.engine != "spark" or spec.spark.on == "local":
        return stage
    module, ending = _ELSEWHERE[spec.spark.on]
    name = stage.__name__.removesuffix("Operator") + ending
    operator = getattr(import_module(f"ml_lifecycle_airflow.operators.{module}"), name)
    given: dict[str, Any] = {"spark": spec.spark}
    if spec.spark.on == "kubernetes":
        given["kubernetes_conn_id"] = spec.spark.connection or spec.connections.pods
    return partial(operator, **given)
