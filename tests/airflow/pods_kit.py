"""A Pods API for operators, and what Airflow does with an operator that may defer."""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import TaskDeferred
from living_files import read_living

from ml_lifecycle_airflow.operators.training_pods import TrainingPodsOperator


@dataclass(frozen=True)
class Pods:
    """A running Pods API: its folder holds a record of every pod it was asked for."""

    url: str
    folder: Path

    def records(self) -> list[dict[str, Any]]:
        """Of the pods that are there, the oldest first; those deleted a while ago are forgotten."""
        found = read_living(self.folder / "state/pods", "/pod.json")
        return sorted((json.loads(content) for _, content in found), key=lambda record: record["created_at"])

    def end(self, name: str, how: str) -> None:
        """Have a pod evicted, or deleted from outside, perhaps with no grace."""
        token = (self.folder / "token").read_text().strip()
        pod = f"{self.url}/api/v1/namespaces/default/pods/{name}"
        headers = {"Authorization": f"Bearer {token}"}
        if how == "evict":
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            httpx.post(f"{pod}/eviction", json=body, headers=headers).raise_for_status()
        else:
            grace = {"gracePeriodSeconds": "0"} if how == "delete at once" else {}
            httpx.delete(pod, headers=headers, params=grace).raise_for_status()

    def pending(self, name: str) -> str:
        """A pod that no node has room for; returns its name."""
        token = (self.folder / "token").read_text().strip()
        asked = {"cpu": "10000"}
        container = {
            "name": "base",
            "command": ["true"],
            "resources": {"requests": asked, "limits": asked},
        }
        body = {"metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [container]}}
        url = f"{self.url}/api/v1/namespaces/default/pods"
        httpx.post(url, headers={"Authorization": f"Bearer {token}"}, json=body).raise_for_status()
        return name

    def uids(self) -> set[str]:
        return {record["uid"] for record in self.records()}


def carry_out(task: TrainingPodsOperator, context: Any) -> None:
    """What Airflow does: execute it, and whenever it defers run the trigger and come back anew."""
    call = lambda operator: operator.execute(context)  # noqa: E731
    while True:
        try:
            call(task)
        except TaskDeferred as deferral:
            call = coming_back(deferral, context)
            task = copy.copy(task)
            for name in (
                "pod",
                "remote_pod",
                "pod_request_obj",
                "_attempt",
                "_attempt_number",
                "_facts",
                "_given",
            ):
                setattr(task, name, None)
        else:
            return


def coming_back(deferral: TaskDeferred, context: Any) -> Callable[[TrainingPodsOperator], None]:
    async def first() -> Any:
        path, arguments = deferral.trigger.serialize()
        module, _, name = path.rpartition(".")
        async for event in getattr(importlib.import_module(module), name)(**arguments).run():
            return event.payload

    event = asyncio.run(first())
    return lambda operator: getattr(operator, deferral.method_name)(context, event)


DEFERRABLE = {"deferrable": True, "poll_interval": 0.2}
# Each holds both ways; the quick tests take one of them, and between them both.
BLOCKING_QUICKLY = pytest.mark.parametrize(
    "way", [{}, pytest.param(DEFERRABLE, marks=pytest.mark.full)], ids=["blocking", "deferrable"]
)
DEFERRABLE_QUICKLY = pytest.mark.parametrize(
    "way", [pytest.param({}, marks=pytest.mark.full), DEFERRABLE], ids=["blocking", "deferrable"]
)
