"""What a training makes of a pod's end, and of the nodes there are: on localpods, or on any cluster.

``ML_LIFECYCLE_KUBECONFIG=~/.kube/config pytest tests/integration/test_training_conformance.py`` runs the same
cases there, each against what that cluster really says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pod_cluster import PodCluster, pod_cluster
from waiting import wait_until

from ml_lifecycle.spec.training import Pool, Resources
from ml_lifecycle.training.outcomes import PodFacts, diagnose, pod_facts, refused
from ml_lifecycle.training.placement import never_fits

BUSY = "import time; print('running'); time.sleep(300)"
# It stays, for whoever looks at intervals only, as localpods does.
GREEDY = "import time; held = [bytearray(2**20) for _ in range(300)]; time.sleep(300)"
SMALL = {"resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodCluster]:
    with pod_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def facts(cluster: PodCluster, pod: Any, gone: bool = False) -> PodFacts:
    """As the operator reads them."""
    return pod_facts(cluster.api.api_client.sanitize_for_serialization(pod), "base", gone)


def outcome(cluster: PodCluster, pod: Any, gone: bool = False) -> tuple[str, str]:
    ended = diagnose(facts(cluster, pod, gone), None, {}, "")
    return ended.kind, ended.message


def nodes(cluster: PodCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.api.api_client.sanitize_for_serialization(cluster.api.list_node())[
        "items"
    ]
    return found


def test_a_code_of_its_own_is_a_crash(cluster: PodCluster) -> None:
    pod = cluster.ended(cluster.create("exit", "raise SystemExit(3)"))
    kind, message = outcome(cluster, pod)
    assert kind == "crashed"
    assert "ended with exit code 3" in message


def test_out_of_memory_is_told_with_its_limit(cluster: PodCluster) -> None:
    pod = cluster.ended(cluster.create("memory", GREEDY, container=SMALL))
    kind, message = outcome(cluster, pod)
    assert kind == "memory"
    assert "of 64Mi" in message


def test_past_its_deadline(cluster: PodCluster) -> None:
    pod = cluster.ended(
        cluster.create("deadline", BUSY, activeDeadlineSeconds=2, terminationGracePeriodSeconds=1)
    )
    assert outcome(cluster, pod)[0] == "deadline"


@pytest.mark.parametrize("how", ["evict", "delete"])
def test_ended_from_outside_is_an_interruption(cluster: PodCluster, how: str) -> None:
    from kubernetes.client import V1Eviction, V1ObjectMeta

    name = cluster.create(f"outside-{how}", BUSY, terminationGracePeriodSeconds=1)
    cluster.printed(name, "running")
    seen = cluster.pod(name)
    if how == "evict":
        body = V1Eviction(metadata=V1ObjectMeta(name=name))
        cluster.api.create_namespaced_pod_eviction(name, cluster.namespace, body)
    else:
        cluster.api.delete_namespaced_pod(name, cluster.namespace)

    def over() -> tuple[Any, bool] | None:
        nonlocal seen
        now = cluster.pod(name)
        if now is None:
            return seen, True
        seen = now
        return (now, False) if now.status.phase in ("Succeeded", "Failed") else None

    pod, gone = wait_until(over)
    assert outcome(cluster, pod, gone)[0] == "interrupted"


def test_no_room_now_is_not_never(cluster: PodCluster) -> None:
    """The scheduler says so of the pod, and the pre-flight beforehand, of the same amounts."""
    asked = {"resources": {"requests": {"cpu": "100000"}, "limits": {"cpu": "100000"}}}
    name = cluster.create("room", "pass", container=asked)

    def unschedulable() -> str | None:
        kind, message = outcome(cluster, cluster.pod(name))
        return message if kind == "unschedulable" and "Insufficient cpu" in message else None

    assert "no node had room" in wait_until(unschedulable)
    reason = never_fits(nodes(cluster), Resources(cpu="100000", memory="64Mi"), None)
    assert "is large enough: it asks for cpu 100000 (at most" in reason


def test_the_nodes_can_take_a_small_pod(cluster: PodCluster) -> None:
    assert never_fits(nodes(cluster), Resources(cpu="100m", memory="64Mi"), None) == ""
    assert cluster.ended(cluster.create("small", "pass", container=SMALL)).status.phase == "Succeeded"


def test_devices_that_no_node_has(cluster: PodCluster) -> None:
    wanted = Resources(cpu="100m", memory="64Mi", gpu=99, gpu_resource="example.com/none-such")
    assert "example.com/none-such 99 (at most 0)" in never_fits(nodes(cluster), wanted, None)


def test_a_pool_is_told_by_its_labels(cluster: PodCluster) -> None:
    """localpods runs pods whatever nodes they select, and its node says so."""
    pool = Pool(name="spot", node_selector={"ml-lifecycle/pool": "none-such"})
    reason = never_fits(nodes(cluster), Resources(cpu="100m", memory="64Mi"), pool)
    name = cluster.create("pool", "pass", container=SMALL, nodeSelector=dict(pool.node_selector))
    if not reason:
        assert cluster.ended(name).status.phase == "Succeeded"
        return
    assert "pool spot has no node with labels ml-lifecycle/pool=none-such" in reason
    wait_until(lambda: outcome(cluster, cluster.pod(name))[0] == "unschedulable")


def test_shared_memory_is_there_to_write(cluster: PodCluster) -> None:
    volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}}
    mount = {"volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}]}
    code = "open('/dev/shm/ml-lifecycle-conformance', 'w').write('x'); import os; " + (
        "os.unlink('/dev/shm/ml-lifecycle-conformance')"
    )
    name = cluster.create("shm", code, container=mount, volumes=[volume])
    assert cluster.ended(name).status.phase == "Succeeded", cluster.log(name)


def test_a_pod_that_the_api_refuses_can_never_start(cluster: PodCluster) -> None:
    from kubernetes.client import ApiException

    with pytest.raises(ApiException) as raised:
        cluster.create("refused", "pass", container={"resources": {"requests": {"cpu": "-1"}}})
    found = refused("refused", raised.value.status, raised.value.body)
    assert found is not None
    assert diagnose(found, None, {}, "").kind == "setup"


def test_an_image_that_no_registry_has_never_starts(cluster: PodCluster) -> None:
    if cluster.folder is not None:
        name = cluster.create("image", "pass", container={"image": "none-such/at-all:1"})
        assert cluster.ended(name).status.phase == "Succeeded", "localpods has no images"
        return
    name = cluster.create(
        "image", "pass", container={"image": "none-such/at-all:1", "imagePullPolicy": "Never"}
    )
    wait_until(lambda: outcome(cluster, cluster.pod(name))[0] == "setup")


def test_the_image_is_known_by_its_digest_where_there_are_images(cluster: PodCluster) -> None:
    pod = cluster.ended(cluster.create("digest", "pass"))
    assert (facts(cluster, pod).image == "") == (cluster.folder is not None)
