"""Stages that a SparkApplication computes, of Kubeflow's Spark operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.spark_kubernetes import SparkKubernetesOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import ApiException

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
from ml_lifecycle_airflow.spark_manifest import application_name, spark_application

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.spark.attempts import SparkAttempts
    from ml_lifecycle.spec.spark import Spark


class SparkOnKubernetes(SparkKubernetesOperator, ByApplication):
    """Base of stages computed by a SparkApplication, of Kubeflow's Spark operator.

    A worker that dies leaves its application to the task's next try, which finds it by its labels. One that
    is told to stop, or a task that somebody marks or clears, ends it.

    :param spark: the spec's ``spark`` section
    """

    def __init__(self, *, spark: Spark, **kwargs: Any) -> None:
        given: dict[str, Any] = {"random_name_suffix": False, "execution_timeout": spark.timeout}
        if spark.namespace is not None:
            given["namespace"] = spark.namespace
        # What is to be run is known when the task runs: only then is there a job.
        super().__init__(
            # Coming back from a trigger, the provider's operator ends the task: the stage would not be asked.
            **{**given, **kwargs, "deferrable": False},
            image=spark.image,
            template_spec={"spark": {}},
        )
        self.spark = spark
        self._asked = False

    def execute(self, context: Context) -> Any:
        """Return the stage's record, from an application if need be.

        :raises AirflowFailException: the application failed, and no retry would help.
        """
        return self._computed(context, lambda resources, attempts: self._run(resources, attempts, context))

    def _run(self, resources: Resources, attempts: SparkAttempts, context: Context) -> None:
        self.name, self._asked = application_name(attempts.job, attempts.number), True
        self.template_spec = {"spark": spark_application(resources, attempts.job, self.environment_lakes())}
        try:
            super().execute(context)
        except ApiException as error:
            if error.status != 409:
                raise
            raise AirflowException(f"{self.name} is there already, and its driver is not") from error

    def on_kill(self) -> None:
        """End the application, if one was asked for."""
        if self._asked:
            super().on_kill()

    def environment_lakes(self) -> tuple[str, ...]:
        """Environments whose lakes the application reads."""
        return ()


class ValidateOnKubernetesOperator(SparkOnKubernetes, ValidateOperator):
    """:class:`ValidateOperator`, judged by a SparkApplication."""

    template_fields: Any = ["snapshot", "namespace", "kubernetes_conn_id"]


class TrainingSetOnKubernetesOperator(SparkOnKubernetes, TrainingSetOperator):
    """:class:`TrainingSetOperator`, joined by a SparkApplication."""

    template_fields: Any = ["snapshot", "namespace", "kubernetes_conn_id"]


class MaterialiseOnKubernetesOperator(SparkOnKubernetes, MaterialiseOperator):
    """:class:`MaterialiseOperator`, for which a SparkApplication finds the newest rows."""

    template_fields: Any = ["snapshot", "namespace", "kubernetes_conn_id"]


class PrepareFeaturesOnKubernetesOperator(SparkOnKubernetes, PrepareFeaturesOperator):
    """:class:`PrepareFeaturesOperator`, for which a SparkApplication finds the newest rows."""

    template_fields: Any = ["evidence", "namespace", "kubernetes_conn_id"]


class ScoreOnKubernetesOperator(SparkOnKubernetes, ScoreOperator):
    """:class:`ScoreOperator`, scored by a SparkApplication."""

    template_fields: Any = ["snapshot", "plan", "namespace", "kubernetes_conn_id"]


class MonitorOnKubernetesOperator(SparkOnKubernetes, MonitorOperator):
    """:class:`MonitorOperator`, whose window a SparkApplication profiles."""

    template_fields: Any = ["snapshot", "namespace", "kubernetes_conn_id"]

    def environment_lakes(self) -> tuple[str, ...]:
        """The one that the predictions are logged in."""
        return (self.environment,)
