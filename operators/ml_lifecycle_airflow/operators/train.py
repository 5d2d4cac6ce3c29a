"""Train: a pod of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowTaskTimeout

from ml_lifecycle_airflow.links import MlflowRunLink, ModelPageLink
from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    final_errors_fail_at_once,
    required_folder,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import V1Pod

    from ml_lifecycle.records import Training
    from ml_lifecycle.spec.model import Training as TrainingSpec
    from ml_lifecycle.training.job import TrainingJob

# What somebody's mark or clear makes of a task that runs. In every other state only its worker goes away.
_ENDED = frozenset({"failed", "success", "skipped", "removed", "restarting"})
_ASKING_SECONDS = 3.0  # the supervisor kills a task five seconds after it has told it to stop


class TrainOperator(KubernetesPodOperator):
    """Train in a pod and log the result to MLflow.

    The pod gets lake URIs and digests, nothing else, and writes its result to the lake, manifest last; there
    is no XCom sidecar. Success without a manifest is a failure. Every KubernetesPodOperator argument is open.

    The pod outlives a worker that stops or dies: the next attempt finds it and goes on with it. It ends when
    somebody marks or clears the task, and at the spec's ``timeout``.

    :param folder: the model folder
    :param training_set: the training set's record
    :param training: the spec's ``training`` section: image, resources, timeout
    """

    template_fields = (*KubernetesPodOperator.template_fields, "training_set")
    operator_extra_links = (MlflowRunLink(), ModelPageLink())
    mlflow_run_url: str | None = None
    _instance: Any = None
    _timed_out = False

    def __init__(
        self, *, folder: str | None = None, training_set: RecordArg, training: TrainingSpec, **kwargs: Any
    ) -> None:
        from kubernetes.client import V1ResourceRequirements

        wanted = training.resources
        amounts = {"cpu": wanted.cpu, "memory": wanted.memory}
        if wanted.gpu:
            amounts["nvidia.com/gpu"] = str(wanted.gpu)
        defaults: dict[str, Any] = {
            "image": training.image or "airflow-ml-lifecycle-training:latest",
            "container_resources": V1ResourceRequirements(requests=amounts, limits=amounts),
            "active_deadline_seconds": int(training.timeout.total_seconds()),
            "startup_check_interval_seconds": 1,
            "on_finish_action": "delete_pod",
        }
        super().__init__(**{**defaults, **kwargs}, do_xcom_push=False)
        self.folder = required_folder(folder, self.task_id)
        self.training_set = training_set

    def execute(self, context: Context) -> None:
        """Launch the pod, wait, and push the training's record as the return value.

        :raises AirflowFailException: the user's code failed, or it does not convert; no retry helps.
        """
        self._instance = context["ti"]
        resources = Resources(self.folder)
        job = self._plan(resources, context)
        self._launch_with(job, resources)
        if resources.lake().exists(job.manifest_path):
            self._finish(resources, job, context)
        else:
            self._supervise(resources, job, context, lambda: super(TrainOperator, self).execute(context))

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> None:
        """Come back from the trigger, in deferrable mode. Errors as in :meth:`execute`."""
        self._instance, self._timed_out = context["ti"], event["status"] == "timeout"
        resources = Resources(self.folder)
        job = self._plan(resources, context)
        self._supervise(
            resources, job, context, lambda: super(TrainOperator, self).trigger_reentry(context, event)
        )

    def on_kill(self) -> None:
        """End the pod if somebody ended the task; leave it to the next attempt if only the worker stops.

        Airflow calls this for both, and after a timeout.

        :raises AirflowException: the worker stops: this attempt is over. Retry: yes, the pod is still there.
        """
        if self._killed or self.pod is None:
            return
        if self._ended():
            super().on_kill()
            return
        self._killed = True
        raise AirflowException(f"the worker stops; pod {self.pod.metadata.name} goes on for the next attempt")

    def cleanup(
        self,
        pod: V1Pod,
        remote_pod: V1Pod,
        xcom_result: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        """Remove a pod that has ended; one that trains is the next attempt's, whatever this one failed of."""
        if remote_pod is not None and not self._timed_out and self._trains(remote_pod):
            self.log.info("pod %s still trains and is left to the next attempt", remote_pod.metadata.name)
            return
        super().cleanup(pod, remote_pod, xcom_result, context)

    def _ended(self) -> bool:
        """Whether somebody ended this task. Nobody, as far as is known, if Airflow does not answer."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        one, states = self._instance, {}

        def ask() -> None:
            with suppress(Exception):  # an API server that is away must not end a training
                states.update(
                    RuntimeTaskInstance.get_task_states(
                        one.dag_id, map_index=one.map_index, task_ids=[one.task_id], run_ids=[one.run_id]
                    )
                )

        # A signal may have come in the middle of another question, which holds the only line.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_ASKING_SECONDS)
        return bool(_ENDED.intersection(states.get(one.run_id, {}).values()))

    def _trains(self, pod: V1Pod) -> bool:
        from airflow.providers.cncf.kubernetes.utils.container import container_is_running
        from kubernetes.client import ApiException

        try:
            now = self.pod_manager.read_pod(pod)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return now.metadata.deletion_timestamp is None and container_is_running(now, self.base_container_name)

    def _plan(self, resources: Resources, context: Context) -> TrainingJob:
        from ml_lifecycle.records import TrainingSet
        from ml_lifecycle.stages.train import plan_training

        with final_errors_fail_at_once():
            training_set = resources.received(TrainingSet, self.training_set, context)
            return plan_training(resources.model, resources.lake(), training_set)

    def _supervise(
        self, resources: Resources, job: TrainingJob, context: Context, run: Callable[[], object]
    ) -> None:
        from urllib3.exceptions import MaxRetryError

        from ml_lifecycle.errors import ServerUnavailableError

        try:
            run()
        except AirflowTaskTimeout:
            super().on_kill()
            raise
        except MaxRetryError as error:
            pool = error.pool
            raise ServerUnavailableError(
                f"the Pods API at {pool.host}:{pool.port} (connection {self.kubernetes_conn_id!r}) does not "
                f"answer: {error.reason}"
            ) from error
        except Exception as error:
            # Whatever KubernetesPodOperator raised, the pod's own account of a failure says more.
            self._finish(resources, job, context, cause=error)
            if isinstance(error, MaxRetryError):
                pool = error.pool
                raise ServerUnavailableError(
                    f"the Pods API at {pool.host}:{pool.port} (connection {self.kubernetes_conn_id!r}) "
                    f"does not answer: {error.reason}"
                ) from error
            raise
        self._finish(resources, job, context)

    def _launch_with(self, job: TrainingJob, resources: Resources) -> None:
        from airflow.providers.cncf.kubernetes.secret import Secret
        from kubernetes.client import V1EnvVar

        from ml_lifecycle_airflow.hooks.lake import LakeHook

        self.name = self.name or f"train-{resources.spec.name}".replace("_", "-")
        self.cmds = list(job.command)
        self.arguments = []
        self.env_vars = [
            *self.env_vars,
            *(
                V1EnvVar(name=key, value=value)
                for key, value in job.environment(resources.lake().url).items()
            ),
        ]
        if secret := LakeHook(resources.spec.connections.lake).pod_secret():
            self.secrets = [*self.secrets, Secret("env", "ML_LIFECYCLE_LAKE_OPTIONS", *secret)]

    def _finish(
        self, resources: Resources, job: TrainingJob, context: Context, cause: Exception | None = None
    ) -> None:
        from ml_lifecycle.errors import PodFailedError
        from ml_lifecycle.records import to_json
        from ml_lifecycle.stages.train import collect_training, log_training

        with final_errors_fail_at_once():
            try:
                training: Training = collect_training(resources.lake(), job)
            except PodFailedError:
                if cause is not None:
                    return  # the pod left no account of its own: the cause says what is known
                raise
            training = log_training(resources.mlflow(), resources.lake(), training)
        if page := resources.mlflow_page():
            self.mlflow_run_url = f"{page}/#/runs/{training.mlflow_run_id}"
        self.log.info("model %s: %s", training.model_digest[:12], training.metrics)
        context["ti"].xcom_push(key="return_value", value=to_json(training))
