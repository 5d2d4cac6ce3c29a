"""Pods whose node is lost: nobody there answers, and the cluster waits for its word before it forgets them.

Kubernetes marks such a pod as deleted and leaves it as it was, running for all that is known, until the node
comes back or is removed. KubernetesPodOperator would wait as long. The training need not: the next attempt is
launched, and whatever the lost one still does publishes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from airflow.sdk.exceptions import AirflowException

LOST_AFTER = timedelta(seconds=60)
"""A pod that is still there so long after the end of its grace period is on a lost node."""


class PodLostError(AirflowException):
    """A pod should have ended and nobody says that it has. Retry: yes, its node may not come back."""


def is_lost(pod: Any) -> bool:
    """Whether the pod should be gone by now. Its deletion timestamp is when its grace period is over."""
    due = pod.metadata.deletion_timestamp
    unfinished = pod.status.phase not in ("Succeeded", "Failed")
    return due is not None and unfinished and datetime.now(UTC) - due > LOST_AFTER


def raise_if_lost(pod: Any) -> None:
    """:raises PodLostError: the pod's node is lost."""
    if is_lost(pod):
        raise PodLostError(
            f"pod {pod.metadata.name} should have ended at {pod.metadata.deletion_timestamp.isoformat()}, "
            f"and its node {pod.spec.node_name} says nothing"
        )


class WatchfulPodManager(PodManager):
    """Stops waiting for a pod that is lost."""

    def read_pod(self, pod: Any) -> Any:
        """The pod as it is now.

        :raises PodLostError: its node is lost.
        """
        now = super().read_pod(pod)
        raise_if_lost(now)
        return now
