"""What trainings cost Airflow while their pods wait for room: worker slots, memory and CPU.

    python benchmarks/waiting_pods.py [PODS]

The pods are real and wait on a localpods whose node another pod has taken whole. Blocking, each is a task's
process, forked from one that has imported everything, as Airflow's executor forks its tasks; deferrable, all
their triggers run in one event loop, as in a triggerer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from common import table
from pods import WAYS, forked, localpods
from task_context import make_context

MEASURED_SECONDS = 20.0
SETTLING_SECONDS = 30.0  # a trigger looks every second at first


@contextmanager
def waiting_room(root: Path) -> Iterator[Any]:
    """A localpods without room, and what makes the operator of a training that waits there."""
    from localpods_kit import SLEEP
    from training_world import make_folder, make_training_set

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.records import to_json
    from ml_lifecycle_airflow.operators.train import TrainOperator

    cores = str(os.cpu_count())
    with localpods(root) as cluster:
        asked = {"requests": {"cpu": cores}, "limits": {"cpu": cores}}
        cluster.create("hog", SLEEP, container={"resources": asked})
        parameters = f'{{max_iter: 8}}\n  resources: {{cpu: "{cores}", memory: 64Mi}}'
        folder = make_folder(root / "models", "regression", name="delays", parameters=parameters)
        lake = Lake(str(root / "lake"))
        os.environ["AIRFLOW_CONN_ML_LIFECYCLE_LAKE"] = json.dumps({"extra": {"url": lake.url}})
        training_set = to_json(make_training_set(lake, folder))

        def execute(way: dict[str, Any], number: int) -> Any:
            from airflow.sdk.exceptions import TaskDeferred

            task = TrainOperator(
                task_id="train",
                folder=str(folder.path),
                training_set=training_set,
                training=folder.spec.training,
                kubernetes_conn_id="ml_lifecycle_pods",
                **way,
            )
            try:
                task.execute(make_context("train", run_id=f"run-{number}"))
            except TaskDeferred as deferral:
                return deferral.trigger.serialize()[1]
            raise AssertionError("there was room")

        yield cluster, execute
        cluster.http.delete("/api/v1/namespaces/default/pods", params={"gracePeriodSeconds": "0"})


def all_wait(cluster: Any, pods: int) -> None:
    """Return once so many pods are there and pending."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        items = cluster.http.get("/api/v1/pods").json()["items"]
        if sum(pod["status"]["phase"] == "Pending" for pod in items) >= pods:
            return
        time.sleep(0.5)
    raise SystemExit("the pods were not all made in ten minutes")


def used(processes: list[psutil.Process]) -> float:
    """CPU seconds so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def blocking(root: Path, pods: int) -> tuple[float, float]:
    """MiB that the tasks' processes have for themselves, and CPU seconds a minute."""
    with waiting_room(root) as (cluster, execute):
        children = []
        for number in range(pods):
            child = os.fork()
            if not child:
                os.setpgid(0, 0)
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until it ends
                execute(WAYS["blocking"], number)
                os._exit(1)
            children.append(psutil.Process(child))
        try:
            all_wait(cluster, pods)
            before = used(children)
            time.sleep(MEASURED_SECONDS)
            cpu = (used(children) - before) * 60 / MEASURED_SECONDS
            return sum(child.memory_full_info().uss for child in children) / 2**20, cpu
        finally:
            for child in children:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def deferrable(root: Path, pods: int) -> tuple[float, float]:
    """MiB that the triggers add to one process, and its CPU seconds a minute."""
    from ml_lifecycle_airflow.triggers.train import TrainTrigger

    with waiting_room(root) as (cluster, execute):
        deferred = [forked(partial(execute, WAYS["deferrable"], number)) for number in range(pods)]
        all_wait(cluster, pods)

        async def watch() -> tuple[float, float]:
            async def one(arguments: dict[str, Any]) -> None:
                async for event in TrainTrigger(**arguments).run():
                    raise AssertionError(f"there was room: {event}")

            here = psutil.Process()
            before = here.memory_info().rss
            running = [asyncio.create_task(one(arguments)) for arguments in deferred]
            await asyncio.sleep(SETTLING_SECONDS)
            spent = used([here])
            await asyncio.sleep(MEASURED_SECONDS)
            cpu = (used([here]) - spent) * 60 / MEASURED_SECONDS
            grown = (here.memory_info().rss - before) / 2**20
            for task in running:
                assert not task.done(), task.exception()
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            return grown, cpu

        return asyncio.run(watch())


def main() -> int:
    """Measure and print."""
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rows = []
    for name, measure, slots in (("blocking", blocking, pods), ("deferrable", deferrable, 0)):
        with tempfile.TemporaryDirectory(prefix="waiting-") as root:
            memory, cpu = forked(partial(measure, Path(root), pods))
        rows.append((name, slots, f"{memory:.0f}", f"{cpu:.1f}"))
    table((f"{pods} waiting pods", "worker slots", "MiB", "CPU s a minute"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
