"""The trigger of a watch that waits for its next look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

_LONGEST_SECONDS = 60.0  # a clock that is set meanwhile is noticed


class NextLookTrigger(BaseTrigger):
    """Emit one event at a moment. The provider's own says so in the task's log every second, for days.

    :param moment: an ISO time with its offset
    """

    def __init__(self, moment: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moment = moment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and what to make it from."""
        return "ml_lifecycle_airflow.triggers.watch.NextLookTrigger", {"moment": self.moment}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and emit the moment."""
        moment = datetime.fromisoformat(self.moment)
        while (seconds := (moment - datetime.now(UTC)).total_seconds()) > 0:
            await asyncio.sleep(min(seconds, _LONGEST_SECONDS))
        yield TriggerEvent(self.moment)
