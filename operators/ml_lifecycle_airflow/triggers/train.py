"""The trigger of a deferred training: the provider's own, that does not wait for a lost pod."""

from __future__ import annotations

from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger

from ml_lifecycle_airflow.pod_watch import raise_if_lost


class TrainTrigger(KubernetesPodTrigger):
    """Emits ``error`` once the pod is lost with its node."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and what to make it from."""
        _, arguments = super().serialize()
        return "ml_lifecycle_airflow.triggers.train.TrainTrigger", arguments

    async def _get_pod(self) -> Any:
        pod = await super()._get_pod()
        raise_if_lost(pod)
        return pod
