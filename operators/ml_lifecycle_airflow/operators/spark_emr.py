"""Stages that a job of Amazon EMR Serverless computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.operators.emr import EmrServerlessStartJobOperator

from ml_lifecycle_airflow.links import ModelPageLink
from ml_lifecycle_airflow.operators.base import Resources
from ml_lifecycle_airflow.operators.features import (
    MaterialiseOperator,
    PrepareFeaturesOperator,
    TrainingSetOperator,
)
from ml_lifecycle_airflow.operators.monitor import MonitorOperator
from ml_lifecycle_airflow.operators.score import ScoreOperator
from ml_lifecycle_airflow.operators.spark import ByApplication
from ml_lifecycle_airflow.operators.validate import ValidateOperator
from ml_lifecycle_airflow.spark_manifest import application_name, emr_job

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.spark.attempts import SparkAttempts
    from ml_lifecycle.spec.spark import Spark


class SparkOnEmr(EmrServerlessStartJobOperator, ByApplication):
    """Base of stages computed by a job of Amazon EMR Serverless.

    The job's token is the stage's inputs and the number of jobs that failed at them: a worker that dies
    leaves its job to the task's next try, which asks for the same one.

    :param spark: the spec's ``spark`` section
    """

    template_fields: Sequence[str] = ()
    operator_extra_links: Any = (ModelPageLink(),)

    def __init__(self, *, spark: Spark, **kwargs: Any) -> None:
        assert spark.emr is not None, "the spec says so"
        seconds = int(spark.timeout.total_seconds())
        super().__init__(
            **{"aws_conn_id": spark.connection or "aws_default", "waiter_delay": 15, **kwargs},
            application_id=spark.emr.application,
            execution_role_arn=spark.emr.role,
            job_driver={},
            waiter_max_attempts=max(seconds // kwargs.get("waiter_delay", 15), 1),
            deferrable=False,
        )
        self.spark = spark

    def execute(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """Return the stage's record, from a job if need be.

        :raises AirflowFailException: the job failed, and no retry would help.
        """
        return self._computed(context, lambda resources, attempts: self._run(resources, attempts, context))

    def _run(self, resources: Resources, attempts: SparkAttempts, context: Context) -> None:
        self.name = application_name(attempts.job, attempts.number)
        self.client_request_token = self.name
        self.job_driver, self.configuration_overrides = emr_job(resources, attempts.job)
        super().execute(context)


class ValidateOnEmrOperator(SparkOnEmr, ValidateOperator):
    """:class:`ValidateOperator`, judged by a job of Amazon EMR Serverless."""

    template_fields = ("snapshot",)
    operator_extra_links: Any = ValidateOperator.operator_extra_links


class TrainingSetOnEmrOperator(SparkOnEmr, TrainingSetOperator):
    """:class:`TrainingSetOperator`, joined by a job of Amazon EMR Serverless."""

    template_fields = ("snapshot",)


class MaterialiseOnEmrOperator(SparkOnEmr, MaterialiseOperator):
    """:class:`MaterialiseOperator`, for which a job of Amazon EMR Serverless finds the newest rows."""

    template_fields = ("snapshot",)


class PrepareFeaturesOnEmrOperator(SparkOnEmr, PrepareFeaturesOperator):
    """:class:`PrepareFeaturesOperator`, for which a job of Amazon EMR Serverless finds the newest rows."""

    template_fields = ("evidence",)


class ScoreOnEmrOperator(SparkOnEmr, ScoreOperator):
    """:class:`ScoreOperator`, scored by a job of Amazon EMR Serverless."""

    template_fields = ("snapshot", "plan")


class MonitorOnEmrOperator(SparkOnEmr, MonitorOperator):
    """:class:`MonitorOperator`, whose window a job of Amazon EMR Serverless profiles."""

    template_fields = ("snapshot",)
    operator_extra_links: Any = MonitorOperator.operator_extra_links
