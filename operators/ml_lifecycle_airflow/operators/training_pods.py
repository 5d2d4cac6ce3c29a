"""What every operator has that trains in pods: one pod after another, until one has left a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowTaskTimeout

from ml_lifecycle_airflow.links import ModelPageLink
from ml_lifecycle_airflow.operators.base import Resources, final_errors_fail_at_once, required_folder
from ml_lifecycle_airflow.operators.lasting_pod import ATTEMPT, LastingPodOperator, grace_seconds
from ml_lifecycle_airflow.pod_arguments import container_resources, pod_arguments, tolerations

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Training
    from ml_lifecycle.spec.training import Pool
    from ml_lifecycle.spec.training import Training as TrainingSpec
    from ml_lifecycle.stages.train_attempts import TrainingAttempts
    from ml_lifecycle.training.job import Attempt, TrainingJob
    from ml_lifecycle.training.outcomes import Launch


class TrainingPodsOperator(LastingPodOperator):
    """Base of the operators that have a job trained by pods.

    A pod gets lake URIs and digests, nothing else, and writes its result to the lake, manifest last; there is
    no XCom sidecar. Success without a manifest is a failure. Every KubernetesPodOperator argument is open,
    here and as ``training.pod`` in the spec.

    A pod that never started, or that the infrastructure ended, is followed by another that goes on from the
    newest checkpoint, within the budgets of ``training.recovery``: no retry of the task is spent. A pod
    outlives a worker that stops or dies: the next attempt finds it and goes on with it. It ends when somebody
    marks or clears the task, and at the spec's ``timeout``.

    :param folder: the model folder
    :param training: the spec's ``training`` section: image, resources, pools, recovery
    """

    operator_extra_links: Collection[BaseOperatorLink] = (ModelPageLink(),)
    _prefix = "train"  # of the pods' names
    _attempt: Attempt | None = None
    _given: tuple[list[Any], list[Any]] | None = None  # environment and secrets, without the attempt's own

    def __init__(self, *, folder: str | None = None, training: TrainingSpec, **kwargs: Any) -> None:
        super().__init__(**{**pod_arguments(training), **kwargs}, do_xcom_push=False)
        self.folder = required_folder(folder, self.task_id)

    def _plan(self, resources: Resources, context: Context) -> TrainingJob:
        """The job to be done."""
        raise NotImplementedError

    def _finish(
        self, resources: Resources, attempts: TrainingAttempts, training: Training, context: Context
    ) -> None:
        """A pod has left a result, which is published: push the record as the return value."""
        raise NotImplementedError

    def execute(self, context: Context) -> None:
        """Launch pods until there is a result, and push its record as the return value.

        :raises AirflowFailException: the user's code failed, it does not convert, or no node could ever run
            the pod; no retry helps.
        :raises PodFailedError: the budgets of ``training.recovery`` are spent. Retry: yes.
        """
        from ml_lifecycle.stages.train import finished_training

        self._instance = context["ti"]
        resources = Resources(self.folder)
        job = self._plan(resources, context)
        attempts = self._attempts(resources, job)
        training = finished_training(resources.lake(), job) or self._take_up(attempts, context)
        if training is not None:
            self._finish(resources, attempts, training, context)
        elif self.pod is not None:
            self._supervise(resources, attempts, context, lambda: self._run(context))
        else:
            self._supervise(resources, attempts, context, lambda: self._launch(resources, attempts, context))

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> None:
        """Come back from the trigger, in deferrable mode. Errors as in :meth:`execute`."""
        self._instance = context["ti"]
        resources = Resources(self.folder)
        attempts = self._attempts(resources, self._plan(resources, context))
        self._go_on_with(attempts.open_attempt())
        self._supervise(resources, attempts, context, lambda: self._come_back(context, event))

    def _supervise(
        self, resources: Resources, attempts: TrainingAttempts, context: Context, run: Callable[[], object]
    ) -> None:
        """Run pods until one has left a result, or the history of them allows no further one."""
        from ml_lifecycle.records import Training

        while True:
            cause: Exception | None = None
            try:
                run()
            except AirflowTaskTimeout:
                self._end_pod()
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the pod's own end says more
                cause = error
            if self._ended_by_somebody:
                raise cause or AirflowException("somebody ended the task, and its pod with it")
            if cause is not None:
                self._raise_unless_it_ended(cause)
            if self._attempt is None:
                raise cause or AirflowException("no attempt was begun")
            ended = attempts.settle(self._attempt, self._facts, str(cause or ""))
            if isinstance(ended, Training):
                self._finish(resources, attempts, ended, context)
                return
            if self._timed_out and cause is not None:
                raise cause
            run = lambda: self._launch(resources, attempts, context)  # noqa: E731

    def _launch(self, resources: Resources, attempts: TrainingAttempts, context: Context) -> None:
        """Begin the next attempt, if its history allows one, and run its pod."""
        self._go_on_with(None)  # what goes wrong from here on is not the end of the one before
        self._facts = self.pod = self.pod_request_obj = self.remote_pod = None
        with final_errors_fail_at_once():
            attempt, launch = attempts.begin(self._fitting_pools(resources.spec.training))
        self._go_on_with(attempt)
        time.sleep(launch.delay_seconds)
        shape = self.build_pod_request_obj(context)
        self._remove_pods_of_others(shape.metadata.namespace, context)
        self._prepare(replace(attempt, grace_seconds=grace_seconds(shape)), launch, resources)
        self.log.info("attempt %d%s", attempt.number, f" in pool {launch.pool.name}" if launch.pool else "")
        self._run(context)

    def _go_on_with(self, attempt: Attempt | None) -> None:
        self._attempt, self._attempt_number = attempt, attempt.number if attempt is not None else None

    def _run(self, context: Context) -> None:
        super().execute(context)

    def _take_up(self, attempts: TrainingAttempts, context: Context) -> Training | None:
        """Go on with the pod of an attempt that an earlier worker left open, if it is still there.

        Returns what a pod left that has ended and gone, unseen.
        """
        from ml_lifecycle.records import Training

        self._go_on_with(attempts.open_attempt())
        if self._attempt is None:
            return None
        self.pod = self.find_pod(self._namespace(context), context)
        if self.pod is not None:
            return None
        ended = attempts.settle(self._attempt, None, "its pod is not there any more")
        return ended if isinstance(ended, Training) else None

    def _prepare(self, attempt: Attempt, launch: Launch, resources: Resources) -> None:
        from airflow.providers.cncf.kubernetes.secret import Secret
        from kubernetes.client import V1EnvVar

        from ml_lifecycle_airflow.hooks.lake import LakeHook

        self.name = self.name or f"{self._prefix}-{resources.spec.name}".replace("_", "-")
        self.cmds = list(attempt.job.command)
        self.arguments = []
        self.annotations = {**(self.annotations or {}), ATTEMPT: str(attempt.number)}
        self.container_resources = container_resources(
            resources.spec.training.resources, launch.memory_factor
        )
        if launch.pool is not None:
            self.node_selector = dict(launch.pool.node_selector)
            self.tolerations = tolerations(launch.pool)
        if self._given is None:
            self._given = list(self.env_vars), list(self.secrets)
        env_vars, secrets = self._given
        given = attempt.environment(resources.lake().url)
        self.env_vars = [
            *env_vars,
            *(V1EnvVar(name=key, value=value) for key, value in given.items()),
        ]
        if secret := LakeHook(resources.spec.connections.lake).pod_secret():
            self.secrets = [*secrets, Secret("env", "ML_LIFECYCLE_LAKE_OPTIONS", *secret)]

    def _attempts(self, resources: Resources, job: TrainingJob) -> TrainingAttempts:
        from ml_lifecycle.records import digest_of
        from ml_lifecycle.stages.train_attempts import TrainingAttempts

        one = self._instance
        return TrainingAttempts(
            resources.database(),
            resources.lake(),
            job,
            resources.spec.training,
            owner=digest_of([one.dag_id, one.run_id, one.task_id, one.map_index])[:32],
            try_number=one.try_number,
            now=lambda: datetime.now(UTC),
        )

    def _fitting_pools(self, training: TrainingSpec) -> list[Pool]:
        """The pools that could run the pod.

        :raises AirflowFailException: none ever could.
        """
        from kubernetes.client import ApiException

        from ml_lifecycle.errors import NeverSchedulableError
        from ml_lifecycle.training.placement import fitting, never_fits

        try:
            nodes = self.client.api_client.sanitize_for_serialization(self.client.list_node())["items"]
        except ApiException as error:
            if error.status not in (401, 403, 404):
                raise
            self.log.info(
                "the cluster's nodes may not be listed, so nobody knows whether one is large enough"
            )
            return list(training.pools)
        if training.pools:
            pools, reasons = fitting(nodes, training.resources, training.pools)
            refused = not pools
        else:
            reason = never_fits(nodes, training.resources, None)
            pools, reasons, refused = [], [reason] if reason else [], bool(reason)
        for reason in reasons:
            self.log.warning("%s", reason)
        if refused:
            with final_errors_fail_at_once():
                raise NeverSchedulableError("; ".join(reasons))
        return pools
