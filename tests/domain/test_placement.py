"""Whether any node could ever run a pod, by the nodes as the API lists them."""

from __future__ import annotations

from typing import Any

import pytest

from ml_lifecycle.spec.training import Limits, Pool, Resources, Toleration
from ml_lifecycle.training.placement import fitting, limits, never_fits, requests

TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(cpu: str = "4", memory: str = "16Gi", gpus: int = 0, *taints: dict[str, str], **labels: str) -> Any:
    amounts = {"cpu": cpu, "memory": memory, "pods": "110"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "metadata": {"labels": labels},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": amounts},
    }


def test_one_node_that_is_large_enough_suffices() -> None:
    assert never_fits([node("1"), node()], Resources(cpu="4", memory="16Gi"), None) == ""
    assert never_fits([node("3920m", "15Gi")], Resources(cpu="3.9"), None) == ""


def test_what_is_too_large_for_every_node_is_named_with_the_most_there_is() -> None:
    nodes = [node("8", "16Gi"), node("4", "64Gi")]
    found = never_fits(nodes, Resources(cpu="16", memory="8Gi"), None)
    assert found == "no node of the cluster is large enough: it asks for cpu 16 (at most 8)"
    found = never_fits(nodes, Resources(gpu=2), Pool(name="bought"))
    assert found == "no node of pool bought is large enough: it asks for nvidia.com/gpu 2 (at most 0)"
    found = never_fits([node()], Resources(memory="12Gi"), None, memory_factor=2)
    assert "at most 16.0Gi" in found


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration(key="nvidia.com/gpu", value="present", effect="NoSchedule"), True),
        (Toleration(key="nvidia.com/gpu", operator="Exists"), True),
        (Toleration(operator="Exists"), True),
        (Toleration(key="nvidia.com/gpu", value="absent"), False),
        (Toleration(key="other", operator="Exists"), False),
        (Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoExecute"), False),
    ],
)
def test_taints_must_be_tolerated(toleration: Toleration, tolerated: bool) -> None:
    pool = Pool(name="gpus", tolerations=(toleration,))
    found = never_fits([node("4", "16Gi", 1, TAINT)], Resources(gpu=1), pool)
    assert (found == "") == tolerated
    if not tolerated:
        assert found == "pool gpus has no node whose taints are tolerated, of 1 nodes"


def test_a_node_that_is_away_may_come_back() -> None:
    away = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    assert never_fits([node("4", "16Gi", 0, away)], Resources(), None) == ""


def test_labels_must_match_unless_the_pool_makes_nodes_when_asked() -> None:
    nodes = [node(kind="bought"), node("64", kind="spot")]
    pool = Pool(name="spot", node_selector={"kind": "spot"})
    assert never_fits(nodes, Resources(cpu="32"), pool) == ""
    assert never_fits(nodes[:1], Resources(), pool) == (
        "pool spot has no node with labels kind=spot whose taints are tolerated, of 1 nodes"
    )
    assert never_fits(nodes[:1], Resources(), pool.model_copy(update={"scales": True})) == ""
    anywhere = node(**{"ml-lifecycle/any-selection": "true"})
    assert never_fits([anywhere], Resources(), pool) == "", "localpods has one node for all"


def test_pools_that_never_fit_are_left_out_with_the_reason() -> None:
    pools = [Pool(name="large", node_selector={"kind": "large"}), Pool(name="any")]
    found, reasons = fitting([node()], Resources(), pools)
    assert [pool.name for pool in found] == ["any"]
    assert len(reasons) == 1
    assert "pool large" in reasons[0]


def test_limits_are_what_is_asked_for_unless_they_are_given() -> None:
    plain = Resources(cpu="500m", memory="1Gi", gpu=1)
    assert requests(plain) == limits(plain) == {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "1"}
    wide = Resources(cpu="1", memory="1Gi", limits=Limits(cpu="4", memory="2Gi"), gpu_resource="amd.com/gpu")
    assert limits(wide) == {"cpu": "4", "memory": "2Gi"}
    assert requests(wide, 1.5) == {"cpu": "1", "memory": str(3 * 2**29)}
    assert limits(wide, 1.5)["memory"] == str(3 * 2**30)
