"""What a training pod asks of a node, and whether any node could ever give it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

from ml_lifecycle.localpods.environment import ANY_SELECTION
from ml_lifecycle.quantity import Amounts, insufficient, parse_amount, parse_quantity
from ml_lifecycle.spec.training import Pool, Resources, Toleration


def requests(resources: Resources, memory_factor: float = 1.0) -> dict[str, str]:
    """What a pod asks for, by resource."""
    gpu = {resources.gpu_resource: str(resources.gpu)} if resources.gpu else {}
    return {"cpu": resources.cpu, "memory": _times(resources.memory, memory_factor), **gpu}


def limits(resources: Resources, memory_factor: float = 1.0) -> dict[str, str]:
    """What a pod may use at most, by resource."""
    asked = requests(resources, memory_factor)
    memory = _times(resources.limits.memory or resources.memory, memory_factor)
    return {**asked, "cpu": resources.limits.cpu or resources.cpu, "memory": memory}


def never_fits(
    nodes: Sequence[Mapping[str, Any]], resources: Resources, pool: Pool | None, memory_factor: float = 1.0
) -> str:
    """Why no node could run the pod even if it were empty; nothing if one could, or may be made.

    :param nodes: the cluster's, as the Kubernetes API returns them (JSON names)
    """
    if pool is not None and pool.scales:
        return ""
    where = f"pool {pool.name}" if pool is not None else "the cluster"
    matching = [node for node in nodes if _takes(node, pool)]
    if not matching:
        wanted = f" with labels {_shown(pool.node_selector)}" if pool and pool.node_selector else ""
        return f"{where} has no node{wanted} whose taints are tolerated, of {len(nodes)} nodes"
    wanted_amounts = {
        name: parse_amount(name, amount) for name, amount in requests(resources, memory_factor).items()
    }
    short: dict[str, int] = {}
    for node in matching:
        free = _allocatable(node)
        lacking = insufficient(wanted_amounts, free)
        if not lacking:
            return ""
        for name in lacking:
            short[name] = max(short.get(name, 0), free.get(name, 0))
    asked = requests(resources, memory_factor)
    reasons = ", ".join(
        f"{name} {asked[name]} (at most {_amount(name, most)})" for name, most in short.items()
    )
    return f"no node of {where} is large enough: it asks for {reasons}"


def _times(memory: str, factor: float) -> str:
    return memory if factor == 1 else str(ceil(parse_quantity(memory) * parse_quantity(factor)))


def _takes(node: Mapping[str, Any], pool: Pool | None) -> bool:
    labels = (node.get("metadata") or {}).get("labels") or {}
    if labels.get(ANY_SELECTION) == "true":
        return True
    selector = pool.node_selector if pool is not None else {}
    tolerations = pool.tolerations if pool is not None else ()
    taints = [
        taint
        for taint in (node.get("spec") or {}).get("taints") or ()
        # A node that is not ready, or cordoned, may be again; these taints are Kubernetes' own.
        if taint.get("effect") in ("NoSchedule", "NoExecute")
        and not str(taint.get("key", "")).startswith("node.kubernetes.io/")
    ]
    return all(labels.get(key) == value for key, value in selector.items()) and all(
        any(_tolerates(toleration, taint) for toleration in tolerations) for taint in taints
    )


def _tolerates(toleration: Toleration, taint: Mapping[str, Any]) -> bool:
    if toleration.effect is not None and toleration.effect != taint.get("effect"):
        return False
    if toleration.key is not None and toleration.key != taint.get("key"):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.get("value") or "")


def _allocatable(node: Mapping[str, Any]) -> Amounts:
    offered: Mapping[str, Any] = (node.get("status") or {}).get("allocatable") or {}
    return {name: parse_amount(name, amount) for name, amount in offered.items()}


def _amount(name: str, amount: int) -> str:
    if name == "cpu":
        return f"{amount / 1000:g}"
    return f"{amount / 2**30:.1f}Gi" if name == "memory" else str(amount)


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def fitting(
    nodes: Sequence[Mapping[str, Any]], resources: Resources, pools: Iterable[Pool]
) -> tuple[list[Pool], list[str]]:
    """The pools that could run the pod, and why the others could not."""
    found = [(pool, never_fits(nodes, resources, pool)) for pool in pools]
    return [pool for pool, reason in found if not reason], [reason for _, reason in found if reason]
