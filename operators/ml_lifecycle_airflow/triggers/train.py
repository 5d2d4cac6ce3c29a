"""The trigger of a deferred training: the provider's own, that waits for less and asks for less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.triggers.pod import ContainerState, KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent

from ml_lifecycle_airflow.hooks.pods import LastingPodsHook
from ml_lifecycle_airflow.pod_watch import raise_if_lost

# Most pods start at once, and are looked at every second for that. One that does not may wait for hours.
_AT_ONCE_SECONDS = 15
_PATIENT_SECONDS = 10.0


class TrainTrigger(KubernetesPodTrigger):
    """Emits ``error`` once the pod is lost with its node."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and what to make it from."""
        _, arguments = super().serialize()
        return "ml_lifecycle_airflow.triggers.train.TrainTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """The provider's events."""
        try:
            async for event in super().run():
                yield event
        finally:
            await self.hook.close()

    async def on_kill(self) -> None:
        """End the pod, after :meth:`run` has been cancelled."""
        try:
            await super().on_kill()
        finally:
            await self.hook.close()

    @cached_property
    def hook(self) -> LastingPodsHook:
        """As the provider's, with one connection for all it asks."""
        return LastingPodsHook(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_dict=self.config_dict,
            cluster_context=self.cluster_context,
            connection_extras=self.connection_extras,
        )

    async def _wait_for_pod_start(self) -> ContainerState:
        try:
            return await asyncio.wait_for(super()._wait_for_pod_start(), _AT_ONCE_SECONDS)
        except TimeoutError:
            self.startup_check_interval = max(self.startup_check_interval, _PATIENT_SECONDS)
            self.schedule_timeout = max(0, self.schedule_timeout - _AT_ONCE_SECONDS)
            return await super()._wait_for_pod_start()

    async def _get_pod(self) -> Any:
        pod = await super()._get_pod()
        raise_if_lost(pod)
        return pod
