"""``model.yaml``'s ``training`` section: what it takes, and each wrong value with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.domain.training_world import MODEL_YAML, make_folder

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.spec.training import Training


def training_of(tmp_path: Path, section: str) -> Training:
    folder = make_folder(tmp_path).path
    text = MODEL_YAML.format(name=folder.name, task="binary", gates="    - {metric: skill}", parameters="{}")
    text = text.replace("{metric: skill}", "{metric: skill, min: 0}")
    (folder / "model.yaml").write_text(text.replace("  seed: 5\n", f"  seed: 5\n{section}"))
    return load_folder(folder).spec.training


def test_a_whole_section(tmp_path: Path) -> None:
    training = training_of(
        tmp_path,
        "  resources: {cpu: 3500m, memory: 16Gi, gpu: 1, shared_memory: 2Gi, limits: {memory: 20Gi}}\n"
        "  pools:\n"
        "    - {name: spot, node_selector: {cloud.example/pool: spot}, interruptions: 3,\n"
        "       tolerations: [{key: spot, operator: Exists, effect: NoSchedule}]}\n"
        "    - {name: bought, scales: true}\n"
        "  priority_class: training\n"
        "  recovery: {interruptions: 7, launches: 2, wait_for_room: 30m, memory_factor: 1.5}\n"
        "  pod: {labels: {cost: ml}, service_account_name: training, startup_timeout_seconds: 900}\n",
    )
    assert [pool.name for pool in training.pools] == ["spot", "bought"]
    assert training.pools[0].tolerations[0].operator == "Exists"
    assert training.recovery.memory_factor == 1.5
    assert training.pod["labels"] == {"cost": "ml"}
    assert training.resources.limits.memory == "20Gi"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("  resources: {memory: 2Gi, limits: {memory: 1Gi}}\n", "memory: 1Gi is less than the 2Gi asked for"),
        ("  resources: {gpu_resource: 'a b'}\n", "must be a Kubernetes name, such as nvidia.com/gpu"),
        ("  pools: [{name: a}, {name: a}]\n", "a is there twice"),
        ("  pools: [{name: a, interruptions: 0}]\n", "interruptions"),
        (
            "  pools: [{name: a, tolerations: [{key: k, operator: Exists, value: v}]}]\n",
            "takes no value",
        ),
        ("  pools: [{name: a, tolerations: [{value: v}]}]\n", "operator Equal needs a key"),
        (
            "  pools: [{name: a, tolerations: [{key: k, effect: NoSchedule, toleration_seconds: 3}]}]\n",
            "goes with effect NoExecute only",
        ),
        ("  pools: [{name: a, node_selector: {k: '{{ x }}'}}]\n", "must be a label's value"),
        ("  recovery: {memory_factor: 1}\n", "memory_factor"),
        ("  recovery: {wait_for_room: 0s}\n", "wait_for_room"),
        ("  recovery: {interruption: 3}\n", "did you mean 'interruptions'?"),
        ("  pod: {image: mine}\n", "image cannot be given here: use training.image"),
        ("  pod: {cmds: [sh]}\n", "cmds cannot be given here: the operator itself decides it"),
        *(
            (f"  pod: {{termination_grace_period: {value}}}\n", "termination_grace_period: ")
            for value in ("-1", "soon", "'30'", "1.5", "true", "2147483648")
        ),
        ("  pod: {labels: {a: '{{ var.value.secret }}'}}\n", "looks like a template: a spec is data"),
        ("  pod: {env_vars: [{name: a, value: '{% x %}'}]}\n", "looks like a template: a spec is data"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, section: str, words: str) -> None:
    with pytest.raises(SpecError) as raised:
        training_of(tmp_path, section)
    assert words in str(raised.value)
    assert "model.yaml:" in str(raised.value)
