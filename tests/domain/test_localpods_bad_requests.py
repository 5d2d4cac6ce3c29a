"""What a client of localpods should not send: every row has its status, and the other pods live on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from living_files import read_living
from localpods_kit import SLEEP, Cluster, manifest, terminated
from small_disk import small_disk
from waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("localpods"))
    cluster.create("bystander", SLEEP)
    yield cluster
    assert memory(cluster) < 100 * MIB
    cluster.close()


@pytest.fixture(autouse=True)
def others_live_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every row all pods can be listed, and the one that was there runs."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        listed = cluster.call("GET", "pods")["items"]
        phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in listed}
        assert phases["bystander"] == "Running"


def memory(cluster: Cluster) -> int:
    return int(psutil.Process(cluster.process.pid).memory_info().rss)


def pod(**spec: Any) -> dict[str, Any]:
    return manifest("refused", SLEEP, **spec)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def with_env(*values: str) -> dict[str, Any]:
    return pod(container={"env": [{"name": f"V{n}", "value": value} for n, value in enumerate(values)]})


# Each line ten of the one before: the last would have 10¹² characters.
LAUGHS = ["x" * 100, *(f"$(V{n})" * 10 for n in range(10))]
LABELLED = pod(metadata={"labels": {"a": "b" * 64}})

# name: the manifest, the status, words of the answer
MANIFESTS: dict[str, tuple[Any, int, str]] = {
    "binary": (b"\x80\x00\xff" * 100, 400, "no JSON"),
    "cut short": (json.dumps(pod()).encode()[:-1], 400, "no JSON"),
    "a list": ([], 400, "must be a JSON object"),
    "another kind": ({**pod(), "kind": "Secret"}, 400, "of kind Pod"),
    "nested 100,000 deep": (nested(100_000), 400, "nested deeper than 50"),
    "nested 900 deep": (b'{"spec": %s}' % nested(900), 400, "nested deeper than 50"),
    "NaN": (json.dumps({**pod(), "x": float("nan")}).encode(), 400, "no JSON"),
    "Infinity": (json.dumps({**pod(), "x": float("inf")}).encode(), 400, "no JSON"),
    "half a character": (json.dumps(pod(metadata={"annotations": {"a": "\ud800"}})).encode(), 400, "no JSON"),
    "5,000 digits": (b'{"spec": {"activeDeadlineSeconds": %s}}' % (b"9" * 5_000), 400, "no JSON"),
    "4,000 digits": (
        b'{"metadata": {"name": "x"}, "spec": {"activeDeadlineSeconds": %s}}' % (b"9" * 4_000),
        422,
        "from 1 to 2147483647",
    ),
    "a deadline of ages": (pod(activeDeadlineSeconds=10**15), 422, "from 1 to 2147483647"),
    "a grace of ages": (pod(terminationGracePeriodSeconds=2**31), 422, "from 0 to 2147483647"),
    "a deadline that is true": (pod(activeDeadlineSeconds=True), 422, "must be a whole number"),
    "no name": ({**pod(), "metadata": {}}, 422, "name is required"),
    "a name that climbs": (manifest("../../x", SLEEP), 422, "must be lower-case letters"),
    "a name with a line end": (manifest("x\n", SLEEP), 422, "must be lower-case letters"),
    "a name like another": (manifest("bystаnder", SLEEP), 422, "must be lower-case letters"),
    "a name of 1 MiB": (manifest("x" * MIB, SLEEP), 422, "must be lower-case letters"),
    "a name that is a list": (manifest([["x"]], SLEEP), 422, "must be lower-case letters"),  # type: ignore[arg-type]
    "a taken name": (manifest("bystander", SLEEP), 409, "already exists"),
    "a long label": (LABELLED, 422, "at most 63"),
    "annotations of 1 MiB": (pod(metadata={"annotations": {"a": "x" * MIB}}), 422, "at most 262144"),
    "NUL in a word": (pod(container={"command": ["sleep\0", "1"]}), 422, "without NUL"),
    "NUL in a variable": (with_env("a\0b"), 422, "without NUL"),
    "a variable that is a number": (
        pod(container={"env": [{"name": "A", "value": 1}]}),
        422,
        "quote numbers",
    ),
    "a billion laughs": (with_env(*LAUGHS), 400, "more than 131071 characters"),
    "a secret that climbs": (
        pod(container={"envFrom": [{"secretRef": {"name": "../../etc"}}]}),
        422,
        'secret "default/../../etc" not found',
    ),
    "another namespace": (pod(metadata={"namespace": "kube-system"}), 400, "does not match"),
    "memory that is none": (pod(container={"resources": {"limits": {"memory": "2GB"}}}), 422, "no quantity"),
    "memory below zero": (pod(container={"resources": {"limits": {"memory": -1}}}), 422, "no quantity"),
    "half a GPU": (pod(container={"resources": {"limits": {"nvidia.com/gpu": "0.5"}}}), 422, "whole number"),
    "a host path": (pod(volumes=[{"name": "etc", "hostPath": {"path": "/etc"}}]), 422, "mounts nothing"),
    "100,000 faults": (pod(container={"command": [1] * 100_000}), 422, "and 99980 more"),
    "a key of 1 MiB": (pod(container={"resources": {"limits": {"x" * MIB: "?"}}}), 422, "no quantity"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_bad_manifest_is_refused_with_the_reason(cluster: Cluster, name: str) -> None:
    given, status, words = MANIFESTS[name]
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    refused = cluster.call("POST", "pods", status, content=body)
    assert (refused["kind"], refused["code"]) == ("Status", status)
    assert words in refused["message"]
    assert len(json.dumps(refused)) < 20_000, "an answer does not grow with what a request invents"
    assert [pod["metadata"]["name"] for pod in cluster.call("GET", "pods")["items"]] == ["bystander"]


DIGITS = "9" * 4_000
# name: method, path, what goes with it, the status, words of the answer
CALLS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "a grace of ages": (
        "DELETE",
        "pods/bystander",
        {"params": {"gracePeriodSeconds": 10**15}},
        400,
        "from 0 to",
    ),
    "a grace of ages in the body": (
        "DELETE",
        "pods/bystander",
        {"json": {"gracePeriodSeconds": 10**15}},
        400,
        "from 0",
    ),
    "a grace below zero": (
        "DELETE",
        "pods/bystander",
        {"params": {"gracePeriodSeconds": -1}},
        400,
        "from 0 to",
    ),
    "options that are a list": (
        "POST",
        "pods/bystander/eviction",
        {"json": {"deleteOptions": [1]}},
        400,
        "object",
    ),
    "lines since ever": ("GET", "pods/bystander/log", {"params": {"sinceSeconds": DIGITS}}, 400, "from 0 to"),
    "a tail that is none": (
        "GET",
        "pods/bystander/log",
        {"params": {"tailLines": "all"}},
        400,
        "whole number",
    ),
    "another container": (
        "GET",
        "pods/bystander/log",
        {"params": {"container": "x"}},
        400,
        "not valid for pod",
    ),
    "a watch for ages": (
        "GET",
        "events",
        {"params": {"watch": 1, "timeoutSeconds": DIGITS}},
        400,
        "from 0 to",
    ),
    "an unknown field": ("GET", "events", {"params": {"fieldSelector": "status=1"}}, 400, "known field"),
    "a broken selector": ("GET", "pods", {"params": {"labelSelector": "a in (b"}}, 400, "unable to parse"),
    "pods by a field": (
        "GET",
        "pods",
        {"params": {"fieldSelector": "status.phase=Failed"}},
        400,
        "use labelSelector",
    ),
    "a dry run": ("DELETE", "pods/bystander", {"params": {"dryRun": "All"}}, 400, "dry run"),
    "a dry run in the body": ("DELETE", "pods/bystander", {"json": {"dryRun": ["All"]}}, 400, "dry run"),
    "preconditions that are none": (
        "DELETE",
        "pods/bystander",
        {"json": {"preconditions": "x"}},
        400,
        "object",
    ),
    "a pod that climbs": ("GET", "pods/..%2f..%2fsecrets", {}, 404, "Not Found"),
    "a pod that is none": ("GET", "pods/absent", {}, 404, "not found"),
    "another resource": ("GET", "secrets", {}, 404, "Not Found"),
    "another method": ("PUT", "pods", {}, 405, "Method Not Allowed"),
    "another patch": ("PATCH", "pods/bystander", {"content": b"{}"}, 415, "not supported"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_changes_nothing(cluster: Cluster, name: str) -> None:
    method, path, given, status, words = CALLS[name]
    before = cluster.pod("bystander")
    refused = cluster.call(method, path, status, **given)
    assert (refused["kind"], refused["code"]) == ("Status", status)
    assert words in refused["message"]
    assert cluster.pod("bystander") == before


TOKENS = ["", "Bearer", "Bearer x", "Basic x", "Bearer tökèn".encode(), "{}x", "bearer {}"]


@pytest.mark.parametrize("given", TOKENS)
def test_another_token_is_told_nothing(cluster: Cluster, given: str | bytes) -> None:
    right = cluster.http.headers["authorization"]
    if isinstance(given, str):
        given = given.format(right.removeprefix("Bearer ") if "bearer" in given else right)
    for method, path in (
        ("GET", "/version"),
        ("GET", "/api/v1/pods"),
        ("POST", "/x"),
        ("DELETE", "/api/v1/pods"),
    ):
        answer = cluster.http.request(method, path, headers={"Authorization": given})
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")


def test_selectors_take_time_in_proportion_to_their_length(cluster: Cluster) -> None:
    began = time.monotonic()
    for selector in ("," * 60_000, "(" * 60_000, "a" + " " * 60_000, "a in (" + "b," * 30_000):
        answer = cluster.http.get(
            f"/api/v1/namespaces/default/pods?labelSelector={selector.replace(' ', '+')}"
        )
        assert answer.status_code in (200, 400)
    assert time.monotonic() - began < 2


def test_a_body_that_is_too_large_or_cut_short(cluster: Cluster) -> None:
    for content in (b" " * (3 * MIB + 1), iter([b" " * MIB] * 4)):
        refused = cluster.call("POST", "pods", 413, content=content)
        assert refused["reason"] == "RequestEntityTooLarge"
        assert "at most 3145728" in refused["message"] or "more than 3145728" in refused["message"]
    url = cluster.http.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as client:
        token = cluster.http.headers["authorization"]
        head = f"POST /api/v1/namespaces/default/pods HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n"
        client.sendall(head.encode() + b"content-length: 100\r\n\r\n{")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100)[:12] in (b"", b"HTTP/1.1 400")


def test_small_patches_make_no_large_pod(cluster: Cluster) -> None:
    headers = {"content-type": "application/merge-patch+json"}
    for number in range(5):
        patch = {"metadata": {"annotations": {f"a{number}": "x" * 60_000}}}
        answer = cluster.http.patch("/api/v1/namespaces/default/pods/bystander", json=patch, headers=headers)
        assert answer.status_code == (200 if number < 4 else 422)
    assert "at most 262144" in answer.json()["message"]
    clear = {"metadata": {"annotations": {f"a{number}": None for number in range(4)}}}
    assert cluster.http.patch(answer.url.path, json=clear, headers=headers).status_code == 200


def test_a_variable_that_its_annotation_breaks_fails_its_own_pod_only(cluster: Cluster) -> None:
    field = {"fieldRef": {"fieldPath": "metadata.annotations['a']"}}
    cluster.create(
        "broken",
        SLEEP,
        metadata={"annotations": {"a": "x\0y"}},
        container={"env": [{"name": "A", "valueFrom": field}]},
    )
    assert terminated(cluster.ended("broken")) == (128, "StartError")
    cluster.call("DELETE", "pods/broken")


def test_a_full_disk_admits_no_pod_and_ends_none(tmp_path: Path, own_cluster: Callable[..., Cluster]) -> None:
    with small_disk(tmp_path / "state", MIB) as disk:
        cluster = own_cluster()
        cluster.create("before", "import time; time.sleep(2); print('done')")
        disk.fill()
        refused = cluster.call("POST", "pods", 507, json=manifest("during", SLEEP))
        assert refused["message"] == "the pod's record cannot be written: make room in the state folder"
        cluster.call("GET", "pods/during", 404)
        assert cluster.pod("before")["status"]["phase"] == "Running"
        cluster.call("DELETE", "pods/before", params={"gracePeriodSeconds": 0})
        assert cluster.ended("before")["phase"] == "Failed"
        disk.free()
        cluster.create("after", "print('fine')")
        assert cluster.ended("after")["phase"] == "Succeeded"
        # What could not be written while the disk was full has been by now.
        records = tmp_path / "state" / "pods"
        wait_until(
            lambda: all(
                json.loads(content)["finished_at"] for _, content in read_living(records, "/pod.json")
            )
        )
        cluster.close()


def test_a_container_that_prints_for_ever_fills_no_disk(cluster: Cluster) -> None:
    cluster.create("noisy", "print(('x' * 1_000_000 + '\\n') * 100)")
    assert cluster.ended("noisy", 60)["phase"] == "Succeeded"
    uid = cluster.pod("noisy")["metadata"]["uid"]
    assert (cluster.folder / "state" / "pods" / uid / "log").stat().st_size < 66 * MIB
    assert cluster.log("noisy", tailLines=1).endswith("the log has 64 MiB: the rest is not kept\n")
    cluster.call("DELETE", "pods/noisy")
