"""The spec's ``training`` section as the operator's arguments, and as the pod that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from training_world import make_training_set

from ml_lifecycle.errors import SpecError
from ml_lifecycle.localpods.connection import connection_json
from ml_lifecycle.records import to_json
from ml_lifecycle_airflow.operators.lasting_pod import grace_seconds
from ml_lifecycle_airflow.operators.train import TrainOperator

from .conftest import World


def operator(world: World, section: str, **arguments: Any) -> TrainOperator:
    made = world.edit("model.yaml", "  seed: 5\n", f"  seed: 5\n{section}")
    return TrainOperator(
        task_id="train",
        folder=made.path,
        training_set=to_json(make_training_set(made.lake, made.folder)),
        training=made.folder.spec.training,
        **arguments,
    )


def test_everything_of_the_section_is_in_the_pod(
    world: World, context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_PODS", connection_json("http://127.0.0.1:1", "token"))
    section = (
        "  resources: {cpu: '2', memory: 4Gi, gpu: 1, shared_memory: 1Gi, limits: {memory: 6Gi}}\n"
        "  timeout: 20m\n"
        "  priority_class: training\n"
        "  recovery: {wait_for_room: 15m}\n"
        "  pod:\n"
        "    labels: {cost: ml}\n"
        "    volumes: [{name: cache, emptyDir: {}}]\n"
        "    volume_mounts: [{name: cache, mountPath: /cache}]\n"
        "    env_vars: {OWN: value}\n"
    )
    task = operator(world, section, kubernetes_conn_id="ml_lifecycle_pods")
    pod = task.build_pod_request_obj(context("train"))
    (container,) = pod.spec.containers
    assert container.resources.requests == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}
    assert container.resources.limits == {"cpu": "2", "memory": "6Gi", "nvidia.com/gpu": "1"}
    assert pod.spec.priority_class_name == "training"
    assert pod.spec.active_deadline_seconds == 1200
    assert pod.metadata.labels["cost"] == "ml"
    assert {mount.mount_path for mount in container.volume_mounts} == {"/cache", "/dev/shm"}
    memory = next(volume for volume in pod.spec.volumes if volume.name == "shared-memory")
    assert (memory.empty_dir.medium, memory.empty_dir.size_limit) == ("Memory", "1Gi")
    assert [(entry.name, entry.value) for entry in container.env] == [("OWN", "value")]
    assert task.schedule_timeout_seconds == 900
    assert task.startup_timeout_seconds == 600


def test_an_argument_given_to_the_operator_goes_before_the_spec(world: World) -> None:
    task = operator(world, "  pod: {startup_timeout_seconds: 30}\n", startup_timeout_seconds=5)
    assert task.startup_timeout_seconds == 5


TEMPLATE = "{pod_template_dict: {spec: {terminationGracePeriodSeconds: 300, containers: [{name: base}]}}}"


@pytest.mark.parametrize(
    ("in_spec", "argument", "seconds"),
    [
        ("{}", None, 30),
        ("{termination_grace_period: 10}", None, 10),
        ("{termination_grace_period: 10}", 0, 0),
        (TEMPLATE, None, 300),
        (TEMPLATE, 10, 10),
    ],
)
def test_a_pod_is_told_the_grace_period_that_it_has(
    world: World,
    context: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    in_spec: str,
    argument: int | None,
    seconds: int,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_PODS", connection_json("http://127.0.0.1:1", "token"))
    given = {} if argument is None else {"termination_grace_period": argument}
    task = operator(world, f"  pod: {in_spec}\n", kubernetes_conn_id="ml_lifecycle_pods", **given)
    assert grace_seconds(task.build_pod_request_obj(context("train"))) == seconds
    in_manifest = task.build_pod_request_obj(context("train")).spec.termination_grace_period_seconds
    assert (30 if in_manifest is None else in_manifest) == seconds


@pytest.mark.parametrize("value", [-1, "soon", 1.5])
def test_a_grace_period_that_is_none_is_an_error(world: World, value: object) -> None:
    with pytest.raises(ValueError, match=r"task 'train': termination_grace_period: .* expected whole sec"):
        operator(world, "", termination_grace_period=value)


def test_a_name_that_is_no_argument_is_an_error_with_the_nearest(world: World) -> None:
    with pytest.raises(SpecError, match=r"'lables' is no argument .*; did you mean 'labels'\?"):
        operator(world, "  pod: {lables: {a: b}}\n")


def test_a_part_of_a_manifest_that_is_none_is_an_error(world: World) -> None:
    with pytest.raises(SpecError, match=r"training\.pod\.volumes is no list\[V1Volume\]"):
        operator(world, "  pod: {volumes: [{emptyDir: {}}]}\n")


def test_arguments_of_every_airflow_operator_are_open_too(world: World) -> None:
    assert operator(world, "  pod: {queue: gpu, priority_weight: 7}\n").queue == "gpu"
