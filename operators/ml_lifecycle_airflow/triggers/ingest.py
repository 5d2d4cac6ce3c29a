"""The trigger behind the arrival sensor: poll, emit one event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class DataArrivalTrigger(BaseTrigger):
    """Poll the sources until each has data for the interval.

    :param spec: the model's spec as JSON, as it was when the wait began: the triggerer never sees the DAG
        bundle; the sensor looks by the newest spec once this has ended
    :param run: the run's record
    :param poll_interval: seconds between two looks
    """

    def __init__(self, spec: dict[str, Any], run: dict[str, Any], poll_interval: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spec = spec
        self.run_record = run
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and what to make it from."""
        return (
            "ml_lifecycle_airflow.triggers.ingest.DataArrivalTrigger",
            {
                "spec": self.spec,
                "run": self.run_record,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Emit ``arrived`` once every source has, or ``error`` when one can never be read."""
        from ml_lifecycle.errors import LifecycleError

        while True:
            try:
                missing = await asyncio.to_thread(self._look)
            except LifecycleError as error:
                if not error.retryable:
                    yield TriggerEvent({"status": "error", "message": str(error)})
                    return
                missing = ("unknown",)
            if not missing:
                yield TriggerEvent({"status": "arrived"})
                return
            await asyncio.sleep(self.poll_interval)

    def _look(self) -> tuple[str, ...]:
        from ml_lifecycle.records import Run, from_json
        from ml_lifecycle.spec.model import ModelSpec
        from ml_lifecycle.stages.ingest import not_arrived
        from ml_lifecycle_airflow.hooks.lake import LakeHook, source_options

        spec = ModelSpec.model_validate(self.spec)
        lake, run = LakeHook(spec.connections.lake).get_conn(), from_json(Run, self.run_record)
        return not_arrived(spec, lake, run, storage_options=source_options(spec))
