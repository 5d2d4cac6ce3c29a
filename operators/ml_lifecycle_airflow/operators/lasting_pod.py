"""A pod operator whose pod outlives its worker, and that knows what became of it."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException

from ml_lifecycle.quantity import parse_grace
from ml_lifecycle_airflow.pod_watch import PodLostError, WatchfulPodManager, is_lost

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger
    from kubernetes.client import V1Pod

    from ml_lifecycle.training.outcomes import PodFacts

# What somebody's mark or clear makes of a task that runs. In every other state only its worker goes away.
_ENDED = frozenset({"failed", "success", "skipped", "removed", "restarting"})
_ASKING_SECONDS = 3.0  # the supervisor kills a task five seconds after it has told it to stop
_LOST = "NodeLost"  # the reason that older versions of Kubernetes gave themselves

ATTEMPT = "ml-lifecycle/attempt"
"""A pod's annotation: the number of the attempt that it is."""


class LastingPodOperator(KubernetesPodOperator):
    """Base of the operators that run one pod after another until one has left a result.

    A worker that stops or dies leaves its pod to the task's next try. The pod ends when somebody marks or
    clears the task. Of several pods only that of the attempt under way counts, by its annotation.
    """

    _instance: Any = None
    _attempt_number: int | None = None
    _facts: PodFacts | None = None
    _timed_out = False
    _ended_by_somebody = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.termination_grace_period is not None:
            try:
                parse_grace(self.termination_grace_period)
            except ValueError as error:
                raise ValueError(f"task {self.task_id!r}: termination_grace_period: {error}") from error

    def on_kill(self) -> None:
        """End the pod if somebody ended the task; leave it to the next attempt if only the worker stops.

        Airflow calls this for both, and after a timeout.

        :raises AirflowException: the worker stops: this attempt is over. Retry: yes, the pod is still there.
        """
        if self._killed or self.pod is None:
            return
        if self._ended():
            self._ended_by_somebody = True
            self._end_pod()
            return
        self._killed = True
        raise AirflowException(f"the worker stops; pod {self.pod.metadata.name} goes on for the next attempt")

    def _end_pod(self) -> None:
        super().on_kill()

    def cleanup(
        self,
        pod: V1Pod,
        remote_pod: V1Pod,
        xcom_result: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        """Remove a pod that has ended; one that trains is the next attempt's, whatever this one failed of."""
        if self.pod is not None:
            self._facts = self._look(self.pod)
        if self._facts is not None and self._facts.reason == _LOST:
            self._forget(self.pod)
            return
        if self._facts is not None and self._trains(self._facts):
            self.log.info("pod %s still trains and is left to the next attempt", self._facts.name)
            return
        super().cleanup(pod, remote_pod, xcom_result, context)

    @cached_property
    def pod_manager(self) -> WatchfulPodManager:
        """The provider's, that does not wait for a pod that is lost with its node."""
        return WatchfulPodManager(kube_client=self.client, callbacks=self.callbacks)

    def defer(self, *, trigger: BaseTrigger, **kwargs: Any) -> NoReturn:
        """Wait by a trigger that does not wait for a lost pod either."""
        from ml_lifecycle_airflow.triggers.train import TrainTrigger

        super().defer(trigger=TrainTrigger(**trigger.serialize()[1]), **kwargs)

    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> V1Pod | None:
        """The pod of the attempt that is open; those of earlier ones, which may linger, are none."""
        number = None if self._attempt_number is None else str(self._attempt_number)
        found = [pod for pod in self._pods(namespace, context) if _number(pod) == number]
        return found[0] if found else None

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        """Create it: whether there is one to go on with was found out before its attempt began."""
        self.pod_manager.create_pod(pod=pod_request_obj)
        return pod_request_obj

    def _come_back(self, context: Context, event: dict[str, Any]) -> None:
        """What KubernetesPodOperator does when its trigger has ended, but for a pod that is lost."""
        from kubernetes.client import ApiException

        # A pod that did not start in time is a "timeout" as well, and no reason to end the task.
        self._timed_out = event["status"] == "timeout" and time.time() >= event.get(
            "_execution_deadline", math.inf
        )
        if event["status"] == "error":
            with suppress(ApiException):  # gone, or the API is away: the provider finds that out, too
                self.pod = self.hook.get_pod(event["name"], event["namespace"])
                self._facts = self._look(self.pod)
                if self._facts.reason == _LOST:
                    self._forget(self.pod)
                    raise PodLostError(event["message"])
        super().trigger_reentry(context, event)

    def _raise_unless_it_ended(self, cause: Exception) -> None:
        """Raise what is no news of a pod's end: the pod may well go on, and the next attempt with it.

        :raises ServerUnavailableError: the Pods API does not answer. Retry: yes.
        """
        from airflow.sdk.exceptions import AirflowFailException
        from kubernetes.client import ApiException
        from urllib3.exceptions import MaxRetryError

        from ml_lifecycle.errors import LifecycleError, ServerUnavailableError
        from ml_lifecycle.training.outcomes import refused

        if isinstance(cause, LifecycleError | AirflowFailException):
            raise cause
        if isinstance(cause, ApiException) and self.pod is None:
            self._facts = refused(str(self.name), cause.status, cause.body)
            return
        if isinstance(cause, MaxRetryError):
            pool = cause.pool
            raise ServerUnavailableError(
                f"the Pods API at {pool.host}:{pool.port} (connection {self.kubernetes_conn_id!r}) does not "
                f"answer: {cause.reason}"
            ) from cause
        if self._facts is not None and self._trains(self._facts):
            raise cause

    def _trains(self, facts: PodFacts) -> bool:
        return facts.running and not facts.deleted and not self._timed_out

    def _look(self, pod: V1Pod) -> PodFacts:
        """What the cluster says of a pod now."""
        from kubernetes.client import ApiException

        from ml_lifecycle.training.outcomes import pod_facts

        try:
            now, gone = self.client.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace), False
        except ApiException as error:
            if error.status != 404:
                raise
            now, gone = pod, True
        plain = self.client.api_client.sanitize_for_serialization(now)
        facts = pod_facts(plain, self.base_container_name, gone)
        return replace(facts, reason=_LOST) if not gone and is_lost(now) else facts

    def _forget(self, pod: V1Pod) -> None:
        """Have the cluster forget a pod whose node will not say that it has ended."""
        from kubernetes.client import ApiException

        with suppress(ApiException):  # it may have gone by itself
            self.client.delete_namespaced_pod(
                pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0
            )

    def _namespace(self, context: Context) -> str:
        return str(self.build_pod_request_obj(context).metadata.namespace)

    def _pods(self, namespace: str, context: Context) -> list[V1Pod]:
        selector = self._build_find_pod_label_selector(context, exclude_checked=True)
        return list(self.client.list_namespaced_pod(namespace=namespace, label_selector=selector).items)

    def _remove_pods_of_others(self, namespace: str, context: Context) -> None:
        """Pods of earlier attempts can publish nothing any more; they would only cost."""
        for pod in self._pods(namespace, context):
            self.log.info("pod %s is of an earlier attempt and is removed", pod.metadata.name)
            self.pod_manager.delete_pod(pod)

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


def _number(pod: V1Pod) -> str | None:
    return (pod.metadata.annotations or {}).get(ATTEMPT)


def grace_seconds(pod: V1Pod) -> float:
    """From SIGTERM to SIGKILL as the built pod has it: a template or Airflow's pod policy may say it, too."""
    from ml_lifecycle.training.job import GRACE_SECONDS

    given = pod.spec.termination_grace_period_seconds
    return GRACE_SECONDS if given is None else float(given)
