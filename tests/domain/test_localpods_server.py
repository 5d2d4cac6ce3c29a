"""The real server in a process of its own, over real HTTP, running real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from living_files import read_living
from localpods_kit import ENVIRONMENT, SLEEP, Cluster, alive, manifest, terminated
from waiting import wait_until

from ml_lifecycle.localpods.__main__ import listen


def test_no_answer_waits_for_the_acknowledgement_of_its_own_head() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("localpods")
    secret = folder / "secrets" / "default" / "lake"
    secret.mkdir(parents=True)
    (folder / "secrets").chmod(0o700)
    (secret / "key").write_text("open sesame")
    cluster = Cluster(folder, "--secrets-dir", str(folder / "secrets"), "--gpus", "2")
    yield cluster
    cluster.close()


def test_every_call_needs_the_token(cluster: Cluster) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(f"{cluster.http.base_url}/api/v1/pods", headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")


def test_the_token_is_made_for_its_owner_only(cluster: Cluster) -> None:
    assert (cluster.folder / "token").stat().st_mode & 0o777 == 0o600


def test_it_listens_on_loopback_only(cluster: Cluster) -> None:
    listening = [
        c.laddr.ip for c in psutil.Process(cluster.process.pid).net_connections() if c.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]


def test_a_pod_runs_when_its_creation_is_answered_and_its_output_is_kept(cluster: Cluster) -> None:
    created = cluster.create("hello", "print('one'); print('two')")
    assert created["status"]["phase"] == "Running"
    assert created["metadata"]["uid"]
    status = cluster.ended("hello")
    assert (status["phase"], terminated(status)) == ("Succeeded", (0, "Completed"))
    assert cluster.log("hello", container="base") == "one\ntwo\n"
    assert cluster.log("hello", tailLines=1) == "two\n"


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("exit", "raise SystemExit(7)", (7, "Error")),
        ("signal", "import os; os.kill(os.getpid(), 15)", (143, "Error")),
    ],
)
def test_a_failure_shows_its_exit_code(
    cluster: Cluster, name: str, code: str, expected: tuple[int, str]
) -> None:
    cluster.create(name, code)
    status = cluster.ended(name)
    assert (status["phase"], terminated(status)) == ("Failed", expected)


def test_a_command_that_does_not_exist_fails_with_its_name(cluster: Cluster) -> None:
    cluster.create("nocommand", "", container={"command": ["no-such-program"]})
    status = cluster.ended("nocommand")
    assert terminated(status) == (128, "StartError")
    assert "no-such-program" in status["containerStatuses"][0]["state"]["terminated"]["message"]


def test_a_container_gets_what_its_manifest_gives_and_nothing_of_the_server(cluster: Cluster) -> None:
    cluster.create(
        "env",
        "import os, json; print(json.dumps(dict(os.environ))); print(os.getcwd()); print(os.listdir())",
        container={
            "env": [
                {"name": "PLAIN", "value": "1"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "lake", "key": "key"}}},
            ],
            "resources": {"limits": {"nvidia.com/gpu": "2"}},
        },
    )
    cluster.ended("env")
    environment, folder, content = cluster.log("env").splitlines()
    variables = json.loads(environment)
    assert variables.keys() - {"PWD", "LC_CTYPE", "OLDPWD", "SHLVL", "_"} == {
        "PATH", "HOME", "TMPDIR", "LANG", "HOSTNAME", "CUDA_VISIBLE_DEVICES", "PLAIN", "KEY",
    }  # fmt: skip
    assert (variables["KEY"], variables["CUDA_VISIBLE_DEVICES"]) == ("open sesame", "0,1")
    assert (variables["HOME"], content) == (folder, "[]")
    assert "open sesame" not in json.dumps(cluster.pod("env"))
    found = read_living(cluster.folder / "state", ".json")
    assert not [path for path, content in found if b"open sesame" in content]


def test_python_in_a_command_is_the_configured_interpreter(cluster: Cluster) -> None:
    code = "python -c 'import sys; print(sys.prefix)'"
    cluster.create("python", "", container={"command": ["sh", "-c"], "args": [code]})
    cluster.ended("python")
    assert cluster.log("python").strip() == sys.prefix


def test_names_are_unique_and_manifests_are_checked(cluster: Cluster) -> None:
    cluster.create("unique", SLEEP)
    refused = cluster.call("POST", "pods", 409, json=manifest("unique", SLEEP))
    assert (refused["kind"], refused["reason"]) == ("Status", "AlreadyExists")
    refused = cluster.call("POST", "pods", 422, json=manifest("other", SLEEP, restartPolicy="Always"))
    assert refused["details"]["causes"][0]["field"] == "spec.restartPolicy"
    assert cluster.call("POST", "pods", 400, content=b"{")["reason"] == "BadRequest"
    for method, path, code in (("GET", "pods/absent", 404), ("GET", "services", 404), ("PUT", "pods", 405)):
        assert cluster.call(method, path, code)["code"] == code
    cluster.call("DELETE", "pods/unique", params={"gracePeriodSeconds": 0})
    cluster.ended("unique")
    # The tombstone does not keep its name from the next one.
    cluster.create("unique", "print(1)")
    assert cluster.ended("unique")["phase"] == "Succeeded"


def test_labels_select_and_can_be_patched(cluster: Cluster) -> None:
    for name in ("l1", "l2"):
        cluster.create(name, "", metadata={"labels": {"set": "l", "name": name}})

    def listed(selector: str) -> list[str]:
        found = cluster.call("GET", "pods", params={"labelSelector": selector})
        return [item["metadata"]["name"] for item in found["items"]]

    assert listed("set=l,already_checked!=True,!airflow-worker") == ["l1", "l2"]
    patch = json.dumps({"metadata": {"labels": {"already_checked": "True", "name": None}}})
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    before = cluster.pod("l1")["metadata"]["resourceVersion"]
    patched = cluster.call("PATCH", "pods/l1", content=patch, headers=headers)["metadata"]
    assert patched["labels"] == {"set": "l", "already_checked": "True"}
    assert int(patched["resourceVersion"]) > int(before)
    assert listed("set=l,already_checked!=True") == ["l2"]
    headers = {"Content-Type": "application/json-patch+json"}
    assert cluster.call("PATCH", "pods/l1", 415, content="[]", headers=headers)["code"] == 415


def test_a_followed_log_closes_only_after_the_container_is_terminated(cluster: Cluster) -> None:
    """KubernetesPodOperator reads the pod when the log closes, and follows it again if that says Running."""
    cluster.create("follow", "import time\nfor i in range(3): print('line', i); time.sleep(0.2)")
    params = {"container": "base", "follow": "True", "timestamps": "True"}
    path = "/api/v1/namespaces/default/pods/follow/log"
    arrived: list[float] = []
    lines: list[str] = []
    with cluster.http.stream("GET", path, params=params) as answer:
        for line in answer.iter_lines():
            arrived.append(time.monotonic())
            lines.append(line)
    assert terminated(cluster.pod("follow")["status"]) == (0, "Completed")
    assert [line.split(" ", 1)[1] for line in lines] == ["line 0", "line 1", "line 2"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line.split(" ")[0]) for line in lines)
    assert arrived[2] - arrived[0] > 0.2  # they came while it ran


def test_no_line_of_the_second_in_which_since_seconds_lies_is_lost(cluster: Cluster) -> None:
    cluster.create("since", "import time\nprint('early'); time.sleep(2.5); print('late')")
    cluster.ended("since")
    last = cluster.log("since", timestamps="true").splitlines()[-1].split(" ")[0]
    age = time.time() - time.mktime(time.strptime(last[:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone
    # From the second in which the last line was written on: as old as asked for, or a little older.
    seconds = max(1, int(age))  # as in Kubernetes, 0 is no span
    assert cluster.log("since", sinceSeconds=seconds).splitlines()[-1:] == ["late"]
    assert "early" not in cluster.log("since", sinceSeconds=seconds)
    assert cluster.log("since", sinceSeconds=60) == "early\nlate\n"


def test_output_that_is_no_text_or_has_no_end_of_line_is_kept(cluster: Cluster) -> None:
    cluster.create(
        "raw",
        r"import os, sys; os.write(1, b'\xff\r\n\n'); os.write(2, b'x' * 300_000); os.write(1, b'\nend')",
    )
    cluster.ended("raw")
    answer = cluster.http.get("/api/v1/namespaces/default/pods/raw/log")
    assert answer.content.replace(b"\n", b"") == b"\xff\r" + b"x" * 300_000 + b"end"


def test_events_are_listed_and_a_watch_is_held_for_its_whole_time(cluster: Cluster) -> None:
    cluster.create("events", "")
    cluster.ended("events")
    params: dict[str, Any] = {"fieldSelector": "involvedObject.name=events"}
    listed = cluster.call("GET", "events", params=params)["items"]
    assert [event["reason"] for event in listed] == ["Scheduled", "Started"]
    started = time.monotonic()
    path = "/api/v1/namespaces/default/events"
    with cluster.http.stream("GET", path, params={**params, "watch": "True", "timeoutSeconds": 2}) as answer:
        assert time.monotonic() - started < 1
        lines = answer.iter_lines()
        seen = [json.loads(next(lines)) for _ in listed]
        assert [(item["type"], item["object"]) for item in seen] == [("ADDED", event) for event in listed]
        cluster.call("POST", "pods/events/eviction", 201, json={})
        assert list(lines) == []
    assert 1.9 < time.monotonic() - started < 4
    after = listed[0]["metadata"]["resourceVersion"]
    params |= {"watch": "True", "timeoutSeconds": 0, "resourceVersion": after}
    answer = cluster.http.get(path, params=params)
    assert [json.loads(line)["object"]["reason"] for line in answer.text.splitlines()] == ["Started"]


STUBBORN = """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, lambda *_: print('asked'))
    child = subprocess.Popen([sys.executable, '-c', 'import os, time; os.setsid(); time.sleep(60)'])
    print('pids', child.pid)
    while True: time.sleep(0.1)
"""


def test_delete_asks_and_then_kills_the_whole_tree(cluster: Cluster) -> None:
    cluster.create("stubborn", STUBBORN)
    (child,) = cluster.printed("stubborn", r"pids (\d+)")
    deleted = cluster.call("DELETE", "pods/stubborn", content=json.dumps({"gracePeriodSeconds": 1}))
    assert deleted["metadata"]["deletionTimestamp"]
    assert terminated(cluster.ended("stubborn")) == (137, "Error")
    assert cluster.log("stubborn").splitlines()[1:] == ["asked"]
    assert not alive(int(child))
    # Who still polls finds its end and its log; who looks for pods does not find it.
    listed = cluster.call("GET", "pods")["items"]
    assert "stubborn" not in [item["metadata"]["name"] for item in listed]
    cluster.call("DELETE", "pods/stubborn", 404)


def test_what_a_container_leaves_behind_ends_with_it(cluster: Cluster) -> None:
    cluster.create(
        "daemon",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print('daemon', os.getpid()); time.sleep(60)
            os._exit(0)
        os.wait(); time.sleep(0.3)
        """,
    )
    assert terminated(cluster.ended("daemon")) == (0, "Completed")
    (daemon,) = cluster.printed("daemon", r"daemon (\d+)")
    assert not alive(int(daemon))


def test_eviction_fails_the_pod_and_says_so(cluster: Cluster) -> None:
    cluster.create("evicted", SLEEP)
    body = {"metadata": {"name": "evicted"}, "deleteOptions": {"gracePeriodSeconds": 1}}
    assert cluster.call("POST", "pods/evicted/eviction", 201, json=body)["status"] == "Success"
    status = cluster.ended("evicted")
    assert (status["phase"], status["reason"], terminated(status)) == ("Failed", "Evicted", (143, "Error"))
    assert "evict" in status["message"]


def test_being_told_to_stop_at_once_is_not_missed(cluster: Cluster) -> None:
    for attempt in range(5):
        cluster.create(f"brief{attempt}", SLEEP)
        cluster.call("POST", f"pods/brief{attempt}/eviction", 201, json={})
    for attempt in range(5):
        assert terminated(cluster.ended(f"brief{attempt}")) == (143, "Error")


def test_a_deadline_ends_the_pod(cluster: Cluster) -> None:
    cluster.create("late", SLEEP, activeDeadlineSeconds=1)
    status = cluster.ended("late")
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")


def test_a_memory_limit_is_held_over_all_processes(cluster: Cluster) -> None:
    code = "import os, time\nfor _ in range(3): os.fork()\nkept = bytearray(40_000_000); time.sleep(60)"
    cluster.create("hungry", code, container={"resources": {"limits": {"memory": "150Mi"}}})
    status = cluster.ended("hungry")
    assert (status["phase"], terminated(status)) == ("Failed", (137, "OOMKilled"))
    # Address space and shared pages are not memory: what stays inside its limit is left alone.
    code = (
        "import mmap, os, time\n"
        "kept = bytearray(60_000_000); mmap.mmap(-1, 2 << 30)\n"
        "for _ in range(2): os.fork()\n"
        "time.sleep(1.5)"
    )
    cluster.create("modest", code, container={"resources": {"limits": {"memory": "150Mi"}}})
    assert cluster.ended("modest")["phase"] == "Succeeded"


def test_pods_wait_for_room_and_start_in_order(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster("--cpu", "2", "--memory", "1Gi")
    for name in ("first", "second", "third"):
        cluster.create(name, SLEEP, container={"resources": {"requests": {"cpu": "1500m"}}})
    cluster.create("huge", SLEEP, container={"resources": {"requests": {"memory": "2Gi"}}})
    waiting = cluster.pod("second")["status"]
    assert waiting["phase"] == "Pending"
    assert waiting["conditions"][0]["reason"] == "Unschedulable"
    assert waiting["conditions"][0]["message"] == "0/1 nodes are available: 1 Insufficient cpu."
    assert cluster.http.get("/api/v1/namespaces/default/pods/second/log").status_code == 204
    cluster.call("DELETE", "pods/first", params={"gracePeriodSeconds": 0})
    wait_until(lambda: cluster.pod("second")["status"]["phase"] == "Running")
    assert cluster.pod("third")["status"]["phase"] == "Pending"
    cluster.call("DELETE", "pods/third")
    assert cluster.pod("third")["status"]["phase"] == "Failed"
    huge = cluster.pod("huge")["status"]["conditions"][0]["message"]
    assert huge == "0/1 nodes are available: 1 Insufficient memory."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_pods_survive_the_server_and_the_next_one_accounts_for_them(
    own_cluster: Callable[..., Cluster], number: int
) -> None:
    cluster = own_cluster("--cpu", "1")
    waits = (
        "import os, time\nprint('started')\nwhile not os.path.exists({!r}): time.sleep(0.02)\nprint('done')"
    )
    signals = {name: str(cluster.folder / f"{name}.go") for name in ("meanwhile", "adopted")}
    for name, path in signals.items():
        cluster.create(name, waits.format(path))
        cluster.printed(name, "(started)")
    cluster.create("lost", "import os; print(os.getpid(), os.getppid());" + SLEEP)
    (container, shim) = cluster.printed("lost", r"(\d+) (\d+)")
    cluster.create("pending", "", container={"resources": {"requests": {"cpu": 2}}})
    cluster.stop(number)
    exits = set(cluster.folder.glob("state/pods/*/exit.json"))
    Path(signals["meanwhile"]).touch()
    os.kill(int(shim), signal.SIGKILL)
    wait_until(lambda: set(cluster.folder.glob("state/pods/*/exit.json")) > exits)
    cluster.start()
    assert terminated(cluster.ended("meanwhile")) == (0, "Completed")
    assert terminated(cluster.ended("lost")) == (137, "ContainerStatusUnknown")
    wait_until(lambda: not alive(int(container)))
    assert cluster.pod("pending")["status"]["phase"] == "Pending"
    assert cluster.pod("adopted")["status"]["phase"] == "Running"
    Path(signals["adopted"]).touch()
    assert terminated(cluster.ended("adopted")) == (0, "Completed")
    assert cluster.log("adopted") == "started\ndone\n"


def test_an_adopted_pod_can_be_ended(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster()
    cluster.create("stubborn", STUBBORN)
    (child,) = cluster.printed("stubborn", r"pids (\d+)")
    cluster.stop(signal.SIGKILL)
    cluster.start()
    cluster.call("DELETE", "pods/stubborn", params={"gracePeriodSeconds": 0})
    assert terminated(cluster.ended("stubborn")) == (137, "Error")
    assert not alive(int(child))


@pytest.mark.parametrize("how", ["stop-pods-on-exit", "sweep"])
def test_bringing_it_down_leaves_no_process(own_cluster: Callable[..., Cluster], how: str) -> None:
    options = ["--stop-pods-on-exit"] if how == "stop-pods-on-exit" else []
    cluster = own_cluster(*options, "--cpu", "1")
    cluster.create("runs", "import os; print(os.getpid(), os.getppid());" + SLEEP)
    cluster.create("waits", SLEEP, container={"resources": {"requests": {"cpu": 2}}})
    pids = [int(pid) for pid in cluster.printed("runs", r"(\d+) (\d+)")]
    if how == "sweep":
        refused = subprocess.run(
            cluster.command("--sweep"), capture_output=True, text=True, timeout=30, env=ENVIRONMENT
        )
        assert refused.returncode == 1
        assert "in use by another server" in refused.stderr
        cluster.stop(signal.SIGKILL)
        assert all(alive(pid) for pid in pids)
        subprocess.run(cluster.command("--sweep"), check=True, timeout=30, env=ENVIRONMENT)
    else:
        cluster.stop()
    assert not [pid for pid in pids if alive(pid)]
    cluster.start()
    for name in ("runs", "waits"):
        status = cluster.pod(name)["status"]
        assert (status["phase"], status["reason"]) == ("Failed", "Terminated")


def test_a_taken_port_is_said_clearly(cluster: Cluster, tmp_path: Path) -> None:
    port = str(cluster.http.base_url.port)
    command = [sys.executable, "-m", "ml_lifecycle.localpods", "--state-dir", str(tmp_path / "state")]
    command += ["--token-file", str(tmp_path / "token"), "--port", port]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, env=ENVIRONMENT)
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_idle_server_is_small(cluster: Cluster) -> None:
    full = psutil.Process(cluster.process.pid).memory_full_info()
    assert getattr(full, "pss", full.rss) < 60 * 1024**2
