"""The Pods API for triggers: one connection a trigger, not one a look."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient


class LastingPodsHook(AsyncKubernetesHook):
    """Keeps its client until it is closed.

    The provider's makes one for each call, and a client loads the machine's certificates first: 40 ms of CPU
    each time, so that fifty trainings that are looked at every two seconds take a whole core of a triggerer.

    A connection whose token comes from a plugin (EKS, GKE) keeps the provider's way: tokens expire.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Following events makes clients of its own, one a second while a pod waits; asking for them does not.
        self._event_polling_fallback = True
        self._kept: ApiClient | None = None
        self._closing = AsyncExitStack()

    @asynccontextmanager
    async def get_conn(self) -> AsyncGenerator[ApiClient, None]:
        """The client."""
        if self._kept is not None:
            yield self._kept
            return
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(super().get_conn())
            if self._config_loaded and self._kept is None:  # the provider's word for: it stays as it is
                self._kept, self._closing = made, stack.pop_all()
            yield made

    async def close(self) -> None:
        """Let go of the client; another is made if need be."""
        self._kept = None
        await self._closing.aclose()
