"""An unpatched KubernetesPodOperator against the real server: blocking, deferred, killed, evicted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ml_lifecycle
from ml_lifecycle.localpods.connection import connection_json

# Runs where Airflow is imported for the first time, with the environment that it needs: a process of its own.
DRIVER = """
    import asyncio, json, os, sys, threading, time
    from types import SimpleNamespace

    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from airflow.sdk.exceptions import TaskDeferred


    def context(task):
        ti = SimpleNamespace(dag_id="d", task_id=task.task_id, map_index=-1, try_number=1, start_date=None)
        ti.xcom_push = lambda *_, **__: None
        return {"ti": ti, "run_id": "r", "dag": SimpleNamespace(parent_dag=None), "task_state_store": None}


    def operator(name, code, **arguments):
        return KubernetesPodOperator(
            task_id=name, name=name, kubernetes_conn_id="localpods", do_xcom_push=False, image="none",
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
        deadline = time.monotonic() + 20
        while not (task.pod and os.path.exists(os.environ["STARTED"])) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.unlink(os.environ["STARTED"])
        interrupt(task)
        thread.join(20)
        return results


    def evict(task):
        from kubernetes.client import V1Eviction, V1ObjectMeta

        name, namespace = task.pod.metadata.name, task.pod.metadata.namespace
        eviction = V1Eviction(metadata=V1ObjectMeta(name=name))
        task.client.create_namespaced_pod_eviction(name, namespace, eviction)


    started = os.environ["STARTED"]
    sleep = f"import os, time; open({started!r}, 'w').close(); print('pid', os.getpid()); time.sleep(60)"
    task = operator("good", "for i in range(3): print('line', i)")
    results = {"good": outcome(lambda: task.execute(context(task)))}
    failing = operator("bad", "print('last words'); raise SystemExit(3)")
    results["bad"] = outcome(lambda: failing.execute(context(failing)))
    waiting = operator("late", "import time; time.sleep(0.5); print('resumed')", deferrable=True)
    results["late"] = outcome(lambda: deferred(waiting))
    task = operator("killed", sleep, termination_grace_period=1)
    results["killed"] = interrupted(task, lambda task: task.on_kill())
    results["evicted"] = interrupted(operator("evicted", sleep), evict)
    with open(os.environ["RESULTS"], "w") as file:
        json.dump(results, file)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A running server: its URL and its folder."""
    folder = tmp_path_factory.mktemp("localpods")
    command = [sys.executable, "-m", "ml_lifecycle.localpods", "--stop-pods-on-exit"]
    for option in ("state-dir", "token-file", "port-file"):
        command += [f"--{option}", str(folder / option)]
    source = str(Path(ml_lifecycle.__file__).parents[1])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})
    deadline = time.monotonic() + 30
    while not (folder / "port-file").exists():
        assert process.poll() is None and time.monotonic() < deadline  # noqa: PT018
        time.sleep(0.02)
    yield f"http://127.0.0.1:{(folder / 'port-file').read_text().strip()}", folder
    process.terminate()
    process.wait(15)


@pytest.fixture(scope="module")
def driven(
    server: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """What the operators returned or raised, what they logged, and the pods' own records."""
    url, folder = server
    home = tmp_path_factory.mktemp("airflow")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_LOCALPODS": connection_json(url, (folder / "token-file").read_text().strip(), "models"),
        "NO_PROXY": "127.0.0.1",
        "STARTED": str(home / "started"),
        "RESULTS": str(home / "results.json"),
    }
    environment.pop("KUBECONFIG", None)
    driver = home / "driver.py"
    driver.write_text(textwrap.dedent(DRIVER))
    done = subprocess.run(
        [sys.executable, str(driver)], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text()) for path in folder.glob("state-dir/pods/*/pod.json")]
    return json.loads((home / "results.json").read_text()), done.stdout + done.stderr, records


def test_a_successful_pod_is_a_successful_task_with_its_output_in_the_log(driven: Any) -> None:
    results, log, _ = driven
    assert results["good"] == "success"
    assert [f"[base] line {i}" in log for i in range(3)] == [True] * 3


def test_a_failing_pod_fails_the_task_with_its_exit_code(driven: Any) -> None:
    results, log, _ = driven
    assert "returned a failure" in results["bad"]
    assert "'exit_code': 3" in results["bad"]
    assert "[base] last words" in log


def test_a_deferred_task_resumes_and_still_finds_the_log(driven: Any) -> None:
    results, log, _ = driven
    assert results["late"] == "success"
    assert "logs: resumed" in log


def test_killing_the_task_ends_its_pod(driven: Any) -> None:
    results, log, records = driven
    assert len(results["killed"]) == 1
    (record,) = [record for record in records if record["manifest"]["metadata"]["name"].startswith("killed")]
    assert (record["namespace"], record["exit"]["code"]) == ("models", 143)
    assert record["deleted_at"] is not None
    pids = [int(pid) for pid in re.findall(r"\[base\] pid (\d+)", log)]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_evicted_pod_fails_the_task_and_says_why(driven: Any) -> None:
    results, _, _ = driven
    (raised,) = results["evicted"]
    assert "'reason': 'Evicted'" in raised
