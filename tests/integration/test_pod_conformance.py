"""What Kubernetes does with a pod, case by case, on localpods or on any cluster.

``ML_LIFECYCLE_KUBECONFIG=~/.kube/config pytest tests/integration/test_pod_conformance.py`` runs the same
cases there. Where Kubernetes leaves room (an evicted pod may be gone or Failed) a case allows what it allows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from pod_cluster import PodCluster, pod_cluster, terminated
from waiting import wait_until

GRACE = {"terminationGracePeriodSeconds": 5}
# Says when it runs and when it is asked to end, and then ends by itself.
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end"), sys.exit(9)))
print("running")
time.sleep(300)
"""
STUBBORN = POLITE.replace('(print("asked to end"), sys.exit(9))', 'print("asked to end")').replace(
    "time.sleep(300)", "while True: time.sleep(1)"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodCluster]:
    with pod_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_start(cluster: PodCluster) -> None:
    name = cluster.create("start", POLITE, **GRACE)
    cluster.printed(name, "running")
    pod = cluster.pod(name)
    assert pod.status.phase == "Running"
    (status,) = pod.status.container_statuses
    assert (status.name, status.state.terminated, status.restart_count) == ("base", None, 0)
    assert status.state.running.started_at is not None
    conditions = {condition.type: condition.status for condition in pod.status.conditions}
    assert conditions["PodScheduled"] == "True"
    assert pod.metadata.uid
    assert pod.metadata.resource_version
    assert pod.spec.node_name


def test_success(cluster: PodCluster) -> None:
    pod = cluster.ended(cluster.create("success", "print('done')"))
    assert pod.status.phase == "Succeeded"
    assert terminated(pod) == (0, "Completed")
    state = pod.status.container_statuses[0].state.terminated
    assert timedelta(0) <= state.finished_at - state.started_at < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    # A signal of the kernel's own: one that a container's first process sends itself has no effect there.
    [("raise SystemExit(3)", 3), ("import ctypes; ctypes.string_at(0)", 139), ("1 / 0", 1)],
    ids=["exit", "signal", "exception"],
)
def test_failure(cluster: PodCluster, request: pytest.FixtureRequest, code: str, exit_code: int) -> None:
    name = cluster.create(
        f"failure-{exit_code}", f"import sys; print('last words'); sys.stdout.flush(); {code}"
    )
    pod = cluster.ended(name)
    assert pod.status.phase == "Failed"
    assert terminated(pod) == (exit_code, "Error")
    assert "last words" in cluster.log(name)


def test_logs(cluster: PodCluster) -> None:
    name = cluster.create("logs", "import time\nfor i in range(5): print('line', i); time.sleep(0.2)")
    wait_until(lambda: cluster.log(name))
    followed = cluster.log(name, follow=True)
    assert followed.splitlines() == [f"line {i}" for i in range(5)]
    # The state is terminated before a followed log ends, or whoever follows would ask for ever.
    assert terminated(cluster.pod(name)) == (0, "Completed")
    stamped = cluster.log(name, timestamps=True).splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == followed.splitlines()
    assert all(line.startswith("20") and "T" in line.split(" ")[0] for line in stamped)
    assert cluster.log(name, tail_lines=2).splitlines() == ["line 3", "line 4"]
    assert cluster.log(name, container="base") == followed
    assert cluster.log(name, since_seconds=3600) == followed


def test_out_of_memory(cluster: PodCluster) -> None:
    # It stays, for whoever looks at intervals only, as localpods does.
    code = "import time; held = [bytearray(2**20) for _ in range(300)]; time.sleep(300)"
    limits = {"resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}}
    name = cluster.create("memory", code, container=limits)
    pod = cluster.ended(name)
    assert pod.status.phase == "Failed"
    assert terminated(pod) == (137, "OOMKilled")


def test_eviction(cluster: PodCluster) -> None:
    from kubernetes.client import V1Eviction, V1ObjectMeta

    name = cluster.create("eviction", POLITE, **GRACE)
    cluster.printed(name, "running")
    body = V1Eviction(metadata=V1ObjectMeta(name=name, namespace=cluster.namespace))
    cluster.api.create_namespaced_pod_eviction(name, cluster.namespace, body)

    def ended() -> bool:
        pod = cluster.pod(name)
        return pod is None or pod.status.phase == "Failed"

    wait_until(ended)
    pod = cluster.pod(name)
    # Asked for through the API the pod is deleted; by a node under pressure it stays, Failed.
    assert pod is None or pod.status.reason == "Evicted" or pod.metadata.deletion_timestamp


def test_deletion_from_outside(cluster: PodCluster) -> None:
    name = cluster.create("deletion", STUBBORN)
    cluster.printed(name, "running")
    asked = time.monotonic()
    cluster.api.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=2)
    pod = cluster.pod(name)
    assert pod is None or pod.metadata.deletion_timestamp is not None

    def ended() -> bool:
        pod = cluster.pod(name)
        return pod is None or pod.status.phase in ("Failed", "Succeeded")

    wait_until(ended)
    assert time.monotonic() - asked >= 1.5, "it had its grace period"
    pod = cluster.pod(name)
    assert pod is None or terminated(pod)[0] == 137


def test_a_second_deletion_leaves_the_grace_period_unless_it_says_another(cluster: PodCluster) -> None:
    name = cluster.create("again", STUBBORN, **GRACE)
    cluster.printed(name, "running")
    for asked, left in ((60, 60), (None, 60), (1, 1)):
        grace = {} if asked is None else {"grace_period_seconds": asked}
        answer = cluster.api.delete_namespaced_pod(name, cluster.namespace, **grace)
        assert answer.metadata.deletion_grace_period_seconds == left


def test_names_and_resources_that_are_none(cluster: PodCluster) -> None:
    from kubernetes.client import ApiException

    for container in (
        {"name": "a.b"},
        {"resources": {"limits": {"gpu": "1"}}},
        {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
    ):
        with pytest.raises(ApiException) as raised:
            cluster.create("wrong", "pass", container=container)
        assert (raised.value.status, '"Invalid"' in raised.value.body) == (422, True)


def test_deleting_what_is_not_there(cluster: PodCluster) -> None:
    from kubernetes.client import ApiException

    with pytest.raises(ApiException) as raised:
        cluster.api.delete_namespaced_pod("no-such-pod", cluster.namespace)
    assert (raised.value.status, '"NotFound"' in raised.value.body) == (404, True)


def test_a_pod_of_another_uid_is_not_deleted(cluster: PodCluster) -> None:
    from kubernetes.client import ApiException, V1DeleteOptions, V1Preconditions

    name = cluster.create("another", POLITE, **GRACE)
    other = V1DeleteOptions(preconditions=V1Preconditions(uid="00000000-0000-0000-0000-000000000000"))
    with pytest.raises(ApiException) as raised:
        cluster.api.delete_namespaced_pod(name, cluster.namespace, body=other)
    assert (raised.value.status, '"Conflict"' in raised.value.body) == (409, True)
    assert cluster.pod(name).metadata.deletion_timestamp is None
    own = V1DeleteOptions(preconditions=V1Preconditions(uid=cluster.pod(name).metadata.uid))
    cluster.api.delete_namespaced_pod(name, cluster.namespace, body=own)


def test_a_name_is_taken_once(cluster: PodCluster) -> None:
    from kubernetes.client import ApiException

    cluster.create("twice", "pass")
    with pytest.raises(ApiException) as raised:
        cluster.create("twice", "pass")
    assert (raised.value.status, '"AlreadyExists"' in raised.value.body) == (409, True)


@pytest.mark.parametrize(
    ("resource", "amount"), [("cpu", "100000"), ("memory", "1Pi"), ("nvidia.com/gpu", "999")]
)
def test_pending(cluster: PodCluster, resource: str, amount: str) -> None:
    limits = {"resources": {"requests": {resource: amount}, "limits": {resource: amount}}}
    name = cluster.create(f"pending-{resource.split('/')[-1]}", "pass", container=limits)

    def refused() -> list[str]:
        pod = cluster.pod(name)
        assert pod.status.phase == "Pending"
        return [
            condition.message
            for condition in pod.status.conditions or []
            if (condition.type, condition.status, condition.reason)
            == ("PodScheduled", "False", "Unschedulable")
        ]

    (message,) = wait_until(refused)
    assert cluster.api.read_namespaced_pod_log(name, cluster.namespace) is None
    assert f"Insufficient {resource}" in message
    events = cluster.api.list_namespaced_event(
        cluster.namespace, field_selector=f"involvedObject.name={name}"
    ).items
    assert "FailedScheduling" in {event.reason for event in events}


def test_deadline(cluster: PodCluster) -> None:
    name = cluster.create("deadline", STUBBORN, activeDeadlineSeconds=2, terminationGracePeriodSeconds=1)
    pod = cluster.ended(name)
    assert (pod.status.phase, pod.status.reason) == ("Failed", "DeadlineExceeded")


def test_labels_are_selected_and_patched(cluster: PodCluster) -> None:
    name = cluster.create("labels", POLITE, **GRACE)
    patch = {"metadata": {"labels": {"already_checked": "True"}}}
    cluster.api.patch_namespaced_pod(name, cluster.namespace, patch)

    def selected(selector: str) -> set[str]:
        found = cluster.api.list_namespaced_pod(
            cluster.namespace, label_selector=f"run={cluster.mark},{selector}"
        )
        return {pod.metadata.name for pod in found.items}

    assert selected("already_checked=True") == {name}
    assert name not in selected("already_checked!=True")
    assert name not in selected("!already_checked")


def test_events_are_watched_for_as_long_as_asked(cluster: PodCluster) -> None:
    from kubernetes import watch

    name = cluster.create("events", "print('short')")
    cluster.ended(name)
    began = time.monotonic()
    seen = {
        event["object"].reason
        for event in watch.Watch().stream(
            cluster.api.list_namespaced_event,
            cluster.namespace,
            field_selector=f"involvedObject.name={name}",
            timeout_seconds=3,
        )
    }
    assert "Started" in seen
    assert time.monotonic() - began >= 2.5
