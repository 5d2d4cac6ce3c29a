"""An unpatched KubernetesPodOperator on localpods, or on any cluster: see :mod:`pod_cluster`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from living_files import read_living
from pod_cluster import PodCluster, pod_cluster
from waiting import wait_until

# Runs where Airflow is imported for the first time, with the environment that it needs: a process of its own.
DRIVER = """
    import asyncio, json, os, sys, threading, time
    from types import SimpleNamespace

    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from airflow.sdk.exceptions import TaskDeferred


    def context(task, attempt=1):
        ti = SimpleNamespace(
            dag_id=os.environ["MARK"], task_id=task.task_id, map_index=-1, try_number=attempt, start_date=None
        )
        ti.xcom_push = lambda *_, **__: None
        return {"ti": ti, "run_id": "r", "dag": SimpleNamespace(parent_dag=None), "task_state_store": None}


    def operator(name, code, **arguments):
        return KubernetesPodOperator(
            task_id=name, name=name, kubernetes_conn_id="pods", do_xcom_push=False, image=os.environ["IMAGE"],
            cmds=["python", "-u", "-c"], arguments=[code], poll_interval=0.2, **arguments,
        )


    def outcome(run):
        try:
            run()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "success"


    def deferred(task):
        try:
            task.execute(context(task))
        except TaskDeferred as deferral:
            async def first():
                async for event in deferral.trigger.run():
                    return event

            event = asyncio.run(first())
            getattr(task, deferral.method_name)(context(task), event.payload)


    def interrupted(task, interrupt):
        results = []
        thread = threading.Thread(target=lambda: results.append(outcome(lambda: task.execute(context(task)))))
        thread.start()
        deadline = time.monotonic() + 300
        while not (task.pod and "pid" in log_of(task)) and time.monotonic() < deadline:
            time.sleep(0.05)
        interrupt(task)
        thread.join(300)
        return results


    def log_of(task):
        from kubernetes.client import ApiException

        try:
            log = task.client.read_namespaced_pod_log(task.pod.metadata.name, task.pod.metadata.namespace)
        except ApiException:
            return ""
        return log or ""  # None until it has a node


    def evict(task):
        from kubernetes.client import V1Eviction, V1ObjectMeta

        name, namespace = task.pod.metadata.name, task.pod.metadata.namespace
        eviction = V1Eviction(metadata=V1ObjectMeta(name=name))
        task.client.create_namespaced_pod_eviction(name, namespace, eviction)


    sleep = "import os, time; print('pid', os.getpid()); time.sleep(600)"


    def attempted(name, code, attempt):
        task = operator(name, code, on_finish_action="keep_pod")
        return outcome(lambda: task.execute(context(task, attempt)))


    if sys.argv[1:]:
        print(attempted("reattached", sleep, int(sys.argv[1])))
        sys.exit()
    results = {}
    task = operator("good", "for i in range(3): print('line', i)")
    results["good"] = outcome(lambda: task.execute(context(task)))
    failing = operator("bad", "print('last words'); raise SystemExit(3)")
    results["bad"] = outcome(lambda: failing.execute(context(failing)))
    waiting = operator("late", "import time; time.sleep(0.5); print('resumed')", deferrable=True)
    results["late"] = outcome(lambda: deferred(waiting))
    task = operator("killed", sleep, termination_grace_period=1)
    results["killed"] = interrupted(task, lambda task: task.on_kill())
    results["evicted"] = interrupted(operator("evicted", sleep), evict)
    results["repeated"] = [attempted("repeated", "raise SystemExit(3)", attempt) for attempt in (1, 2)]
    with open(os.environ["RESULTS"], "w") as file:
        json.dump(results, file)
"""


@dataclass(frozen=True)
class Driver:
    """Runs the script above against a cluster."""

    cluster: PodCluster
    home: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-u", str(self.home / "driver.py"), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        kept.pop("KUBECONFIG", None)
        return kept | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW_CONN_PODS": self.cluster.airflow_connection(),
            "NO_PROXY": "127.0.0.1",
            "IMAGE": self.cluster.image,
            "MARK": self.cluster.mark,
            "RESULTS": str(self.home / "results.json"),
        }

    def run(self) -> str:
        """Run it to its end; returns what it printed."""
        done = subprocess.run(
            self.command(), env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def pods(self, task_id: str) -> list[Any]:
        """The pods made for a task."""
        selector = f"dag_id={self.cluster.mark},task_id={task_id}"
        found = self.cluster.api.list_namespaced_pod(self.cluster.namespace, label_selector=selector)
        return list(found.items)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with pod_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        driver = Driver(cluster, tmp_path_factory.mktemp("airflow"))
        (driver.home / "driver.py").write_text(textwrap.dedent(DRIVER))
        yield driver
        for task_id in ("reattached", "repeated"):
            for pod in driver.pods(task_id):
                cluster.api.delete_namespaced_pod(
                    pod.metadata.name, cluster.namespace, grace_period_seconds=0
                )


@pytest.fixture(scope="module")
def driven(driver: Driver) -> tuple[dict[str, Any], str]:
    """What the operators returned or raised, and what they logged."""
    log = driver.run()
    return json.loads((driver.home / "results.json").read_text()), log


def test_a_successful_pod_is_a_successful_task_with_its_output_in_the_log(driven: Any) -> None:
    results, log = driven
    assert results["good"] == "success"
    assert [f"[base] line {i}" in log for i in range(3)] == [True] * 3


def test_a_failing_pod_fails_the_task_with_its_exit_code(driven: Any) -> None:
    results, log = driven
    assert "returned a failure" in results["bad"]
    assert "'exit_code': 3" in results["bad"]
    assert "[base] last words" in log


def test_a_deferred_task_resumes_and_still_finds_the_log(driven: Any) -> None:
    results, log = driven
    assert results["late"] == "success"
    assert "logs: resumed" in log


def test_killing_the_task_ends_its_pod(driver: Driver, driven: Any) -> None:
    results, log = driven
    assert len(results["killed"]) == 1
    if driver.cluster.folder is None:
        return  # what became of the process can be seen on this machine only
    found = read_living(driver.cluster.folder / "state-dir/pods", "/pod.json")
    records = [json.loads(content) for _, content in found]
    (record,) = [record for record in records if record["manifest"]["metadata"]["name"].startswith("killed")]
    assert (record["namespace"], record["exit"]["code"]) == ("models", 143)
    assert record["deleted_at"] is not None
    pids = [int(pid) for pid in re.findall(r"\[base\] pid (\d+)", log)]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_evicted_pod_fails_the_task_and_says_why(driver: Driver, driven: Any) -> None:
    (raised,) = driven[0]["evicted"]
    assert raised != "success"
    # Asked for through the API, a cluster deletes the pod; localpods ends it as a node under pressure does.
    assert driver.cluster.folder is None or "'reason': 'Evicted'" in raised


def test_the_next_attempt_of_a_killed_worker_finds_the_pod_again(driver: Driver) -> None:
    _killed_once_it_says(driver, "reached Running phase", attempt="1")
    _killed_once_it_says(driver, "Found matching pod", attempt="2")
    (pod,) = driver.pods("reattached")
    assert pod.status.phase == "Running"


def _killed_once_it_says(driver: Driver, text: str, attempt: str) -> None:
    log = driver.home / f"{attempt}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            driver.command(attempt), env=driver.environment, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: text in log.read_text() or process.poll() is not None, text, seconds=600)
    finally:
        process.kill()
        process.wait()
    assert text in log.read_text()


def test_the_next_attempt_after_a_failed_pod_makes_another(driver: Driver, driven: Any) -> None:
    first, second = driven[0]["repeated"]
    assert "returned a failure" in first
    assert "returned a failure" in second
    assert len({pod.metadata.uid for pod in driver.pods("repeated")}) == 2
