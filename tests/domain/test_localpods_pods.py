"""Manifests, quantities, selectors, placement and the pod's life as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ml_lifecycle.localpods.environment import expand, resolve_environment
from ml_lifecycle.localpods.manifest import check_metadata_patch, check_pod
from ml_lifecycle.localpods.pods import KILLED, Event, Exit, Pod, place
from ml_lifecycle.localpods.secrets import NotPrivateError, SecretFolder
from ml_lifecycle.localpods.selectors import event_selector, label_selector
from ml_lifecycle.localpods.status import ApiError
from ml_lifecycle.quantity import CPU, GPU, MEMORY, parse_amount

GiB = 1024**3
MACHINE = {CPU: 4000, MEMORY: 8 * GiB, GPU: 2}


def manifest(name: str = "train", requests: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    requests = requests or {}
    # As in Kubernetes, what comes whole is requested by its limit.
    resources = {
        "requests": requests,
        "limits": {key: value for key, value in requests.items() if "/" in key},
    }
    return {
        "metadata": {"name": name, "labels": {"task": "train"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "base", "command": ["true"], "resources": resources, **container}],
        },
    }


def pod(name: str, created_at: float = 0, **requests: Any) -> Pod:
    wanted = {{"gpu": GPU}.get(key, key): value for key, value in requests.items()}
    return Pod(manifest(name, wanted), "default", name, created_at)


@pytest.mark.parametrize(
    ("resource", "text", "amount"),
    [
        (CPU, "500m", 500),
        (CPU, "1.5", 1500),
        (CPU, 2, 2000),
        (CPU, 0.1, 100),
        (CPU, "0.0001", 1),
        (MEMORY, "1Gi", GiB),
        (MEMORY, "1.5Mi", 1_572_864),
        (MEMORY, "1G", 10**9),
        (MEMORY, "1k", 1000),
        (MEMORY, "1e3", 1000),
        (MEMORY, "2E", 2 * 10**18),
        (MEMORY, 1024, 1024),
        (GPU, "2", 2),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(resource: str, text: object, amount: int) -> None:
    assert parse_amount(resource, text) == amount


@pytest.mark.parametrize("text", ["", "1 Gi", "-1", "lots", "1KiB", True, None, "1e", "0x10"])
def test_what_is_no_quantity_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        parse_amount(MEMORY, text)


def test_half_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_amount(GPU, "500m")


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("task=train", True),
        ("task==train,team=a", True),
        ("task!=train", False),
        ("other!=x", True),
        ("!other", True),
        ("!task", False),
        ("task", True),
        ("task in (score, train),team", True),
        ("task notin (score, train)", False),
        ("airflow.apache.org/x!=True, !airflow-worker", True),
        ("empty=", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert label_selector(selector)({"task": "train", "team": "a", "empty": ""}) is matches


@pytest.mark.parametrize("selector", ["a=b=c", "=b", "a in b", "a>1", "!"])
def test_a_label_selector_that_cannot_be_parsed_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError, match="unable to parse") as refused:
        label_selector(selector)
    assert refused.value.code == 400


def test_events_are_selected_by_known_fields_only() -> None:
    matches = event_selector("involvedObject.name=a,type!=Normal")
    assert matches({"involvedObject.name": "a", "type": "Warning"})
    assert not matches({"involvedObject.name": "a", "type": "Normal"})
    with pytest.raises(ApiError, match="not a known field selector"):
        event_selector("spec.nodeName=x")


def _broken(path: str, value: Any) -> dict[str, Any]:
    """A good manifest with one thing changed, e.g. ``spec.containers.0.name``."""
    broken: Any = manifest()
    at = broken
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key) if key.isdigit() else key]
    at[last] = value
    return dict(broken)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("metadata.name", None, "metadata.name"),
        ("metadata.name", "Upper", "metadata.name"),
        ("metadata.labels", ["x"], "metadata.labels"),
        ("metadata.labels", {"a": "x" * 64}, "metadata.labels[a]"),
        ("spec", [], "spec"),
        ("spec.restartPolicy", "Always", "spec.restartPolicy"),
        ("spec.containers", [], "spec.containers"),
        ("spec.containers", "x", "spec.containers"),
        ("spec.initContainers", [{"name": "i"}], "spec.initContainers"),
        ("spec.volumes", [{"name": "v", "emptyDir": {}}], "spec.volumes"),
        ("spec.activeDeadlineSeconds", 0, "spec.activeDeadlineSeconds"),
        ("spec.terminationGracePeriodSeconds", "5", "spec.terminationGracePeriodSeconds"),
        ("spec.containers.0.name", None, "spec.containers[0].name"),
        ("spec.containers.0.name", "a.b", "spec.containers[0].name"),
        ("spec.containers.0.command", [], "spec.containers[0].command"),
        ("spec.containers.0.command", "true", "spec.containers[0].command"),
        ("spec.containers.0.args", ["-n", 3], "spec.containers[0].args[1]"),
        ("spec.containers.0.workingDir", "/x", "spec.containers[0].workingDir"),
        ("spec.containers.0.resources", {"limits": {"cpu": "x"}}, "spec.containers[0].resources.limits.cpu"),
        ("spec.containers.0.resources", {"limits": {"gpu": 1}}, "spec.containers[0].resources.limits.gpu"),
        (
            "spec.containers.0.resources",
            {"requests": {"nvidia.com/gpu": 1}},
            "spec.containers[0].resources.limits.nvidia.com/gpu",
        ),
        ("spec.containers.0.env", [{"name": "A", "value": 1}], "spec.containers[0].env[0].value"),
        ("spec.containers.0.env", ["A"], "spec.containers[0].env[0]"),
        ("spec.containers.0.env", [{"value": "1"}], "spec.containers[0].env[0].name"),
        (
            "spec.containers.0.env",
            [{"name": "A", "valueFrom": {"configMapKeyRef": {}}}],
            "spec.containers[0].env[0].valueFrom",
        ),
        (
            "spec.containers.0.env",
            [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}],
            "spec.containers[0].env[0].valueFrom.secretKeyRef.key",
        ),
        ("spec.containers.0.envFrom", [{"configMapRef": {"name": "c"}}], "spec.containers[0].envFrom[0]"),
    ],
)
def test_a_malformed_manifest_is_refused_naming_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_pod(_broken(path, value), "default")
    status = refused.value.to_json()
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert field in [cause["field"] for cause in status["details"]["causes"]]
    assert field in status["message"]


def test_all_faults_are_named_at_once() -> None:
    broken = _broken("spec.restartPolicy", "Always")
    broken["spec"]["containers"][0]["command"] = []
    with pytest.raises(ApiError) as refused:
        check_pod(broken, "default")
    assert [cause.field for cause in refused.value.causes] == [
        "spec.restartPolicy",
        "spec.containers[0].command",
    ]


def test_a_limit_is_the_default_request_and_no_request_exceeds_it() -> None:
    limited = manifest(resources={"limits": {CPU: "1", MEMORY: "1Gi"}, "requests": {CPU: "500m"}})
    assert check_pod(limited, "default").requests == {CPU: 500, MEMORY: GiB}
    limited["spec"]["containers"][0]["resources"]["requests"] = {CPU: 2}
    with pytest.raises(ApiError, match=r"requests\.cpu"):
        check_pod(limited, "default")


def test_a_manifest_for_another_namespace_is_a_bad_request() -> None:
    other = manifest()
    other["metadata"]["namespace"] = "b"
    with pytest.raises(ApiError) as refused:
        check_pod(other, "a")
    assert refused.value.code == 400


def test_a_patch_changes_labels_and_annotations_and_nothing_else() -> None:
    patch = {"metadata": {"labels": {"a": "1", "b": None}, "annotations": {"c": "x y"}}}
    assert check_metadata_patch("p", patch) == patch["metadata"]
    for wrong in ({"spec": {}}, {"metadata": {"uid": "1"}}, {"metadata": {"labels": {"a": 1}}}):
        with pytest.raises(ApiError) as refused:
            check_metadata_patch("p", wrong)
        assert refused.value.code == 422


def names(found: list[tuple[Pod, Any]]) -> list[str]:
    return [found_pod.name for found_pod, _ in found]


def test_pods_start_in_order_while_there_is_room() -> None:
    placement = place([pod("b", 2, cpu=2), pod("a", 1, cpu=2), pod("c", 3, cpu="100m")], MACHINE)
    assert names(placement.start) == ["a", "b"]
    assert [(p.name, why) for p, why in placement.waiting] == [
        ("c", "0/1 nodes are available: 1 Insufficient cpu.")
    ]


def test_nobody_takes_what_an_earlier_pod_waits_for_but_others_pass() -> None:
    running = pod("running", 0, memory="6Gi")
    running.start(now=0)
    big, small, other = pod("big", 1, memory="4Gi"), pod("small", 2, memory="1Gi"), pod("other", 3, cpu=1)
    placement = place([running, big, small, other], MACHINE)
    assert names(placement.start) == ["other"]
    assert {why for _, why in placement.waiting} == {"0/1 nodes are available: 1 Insufficient memory."}
    running.finish(Exit(0), now=9)
    assert names(place([running, big, small, other], MACHINE).start) == ["big", "small", "other"]


def test_a_pod_larger_than_the_machine_holds_nobody_up() -> None:
    huge = pod("huge", 1, memory="9Gi", cpu=5, gpu=3)
    placement = place([huge, pod("small", 2, memory="8Gi")], MACHINE)
    assert names(placement.start) == ["small"]
    short = "1 Insufficient cpu, 1 Insufficient memory, 1 Insufficient nvidia.com/gpu"
    assert placement.waiting == [(huge, f"0/1 nodes are available: {short}.")]


def test_gpus_are_given_to_one_pod_at_a_time() -> None:
    first, second, third = (pod(name, at, gpu=1) for at, name in enumerate("abc"))
    placement = place([first, second, third], MACHINE)
    assert [(p.name, gpus) for p, gpus in placement.start] == [("a", [0]), ("b", [1])]
    for started, gpus in placement.start:
        started.start(0, gpus)
    first.finish(Exit(0), now=1)
    assert place([first, second, third], MACHINE).start == [(third, [0])]


def test_phases_and_the_state_of_the_container() -> None:
    life = pod("a")
    life.unschedulable = "0/1 nodes are available: 1 Insufficient cpu."
    status = life.to_json()["status"]
    assert status["phase"] == "Pending"
    assert "containerStatuses" not in status
    assert status["conditions"][0] == {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": life.unschedulable,
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }
    life.start(now=10)
    status = life.to_json()["status"]
    assert (status["phase"], status["conditions"][0]["status"]) == ("Running", "True")
    assert status["containerStatuses"][0]["state"] == {"running": {"startedAt": "1970-01-01T00:00:10Z"}}
    life.finish(Exit(3), now=12.9)
    status = life.to_json()["status"]
    assert status["phase"] == "Failed"
    assert status["containerStatuses"][0]["state"] == {
        "terminated": {
            "exitCode": 3,
            "reason": "Error",
            "startedAt": "1970-01-01T00:00:10Z",
            "finishedAt": "1970-01-01T00:00:12Z",
        }
    }


@pytest.mark.parametrize(("ending", "code"), [("Evicted", 0), ("DeadlineExceeded", 143), ("Terminated", 137)])
def test_a_pod_that_was_made_to_stop_failed_even_if_it_exits_with_zero(ending: Any, code: int) -> None:
    life = pod("a")
    life.start(now=0)
    life.end(ending, "because", now=5, grace_seconds=30)
    assert (life.phase, life.kill_at, life.to_json()["status"].get("reason")) == ("Running", 35, None)
    life.finish(Exit(code), now=6)
    status = life.to_json()["status"]
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", ending, "because")


def test_out_of_memory_is_the_containers_reason_with_exit_code_137() -> None:
    life = pod("a")
    life.start(now=0)
    life.end("OOMKilled", "too much", now=1, grace_seconds=0)
    life.finish(Exit(1), now=2)
    status = life.to_json()["status"]
    terminated = status["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"], "reason" in status) == (KILLED, "OOMKilled", False)


def test_a_second_delete_may_shorten_the_grace_period_and_never_extends_it() -> None:
    life = pod("a")
    life.start(now=0)
    life.delete(now=10, grace_seconds=30)
    assert life.kill_at == 40
    life.delete(now=11, grace_seconds=60)
    assert life.kill_at == 40
    life.delete(now=12, grace_seconds=0)
    assert life.kill_at == 12
    assert life.to_json()["metadata"]["deletionGracePeriodSeconds"] == 0
    assert not life.gone
    life.finish(Exit(0), now=13)
    assert (life.gone, life.phase) == (True, "Succeeded")


def test_deleting_a_pod_that_waits_ends_it_at_once() -> None:
    life = pod("a")
    life.delete(now=1, grace_seconds=30)
    assert (life.gone, life.phase, "containerStatuses" in life.to_json()["status"]) == (True, "Failed", False)


def test_a_pod_survives_being_written_down() -> None:
    life = pod("a", 1, gpu=1)
    life.start(2, [1])
    life.events.append(Event(7, 2, "Started", "Started container base"))
    life.end("Evicted", "room", 3, 4)
    life.finish(Exit(137, "Error", "gone"), 5)
    assert Pod.from_record(life.to_record()) == life


def test_variables_are_expanded_as_kubernetes_does() -> None:
    assert expand("$(A)-$(B)-$$(A)-$A", {"A": "1"}) == "1-$(B)-$(A)-$A"


def _secret_reference(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": name, "key": key, **more}}}


def test_the_environment_comes_from_values_secrets_and_fields(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "default" / "db").mkdir(parents=True)
    (tmp_path / "default" / "db" / "password").write_text("s3cret\n")
    container = {
        "envFrom": [{"secretRef": {"name": "db"}, "prefix": "DB_"}],
        "env": [
            {"name": "URL", "value": "x://$(DB_password)"},
            _secret_reference("db", "password"),
            {**_secret_reference("db", "absent", optional=True), "name": "NONE"},
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "TASK", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['task']"}}},
            {"name": "EMPTY"},
        ],
    }
    metadata = {"name": "train", "namespace": "default", "uid": "1", "labels": {"task": "t"}}
    spec = check_pod(manifest(**container), "default")
    assert resolve_environment(spec, metadata, SecretFolder(tmp_path)) == {
        "DB_password": "s3cret\n",
        "URL": "x://s3cret\n",
        "SECRET": "s3cret\n",
        "ME": "train",
        "TASK": "t",
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    ("secret", "key"),
    [("db", "absent"), ("none", "x"), ("..", "x"), ("a/b", "x"), ("db", "../t/x"), ("db", "..")],
)
def test_a_secret_that_is_not_there_is_refused_and_none_leads_out(
    tmp_path: Path, secret: str, key: str
) -> None:
    tmp_path.chmod(0o700)
    for path in ("default/db/x", "default/t/x", "default/x", "x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
    spec = check_pod(manifest(env=[{"name": "A"}, _secret_reference(secret, key)]), "default")
    with pytest.raises(ApiError, match=r"env\[1\]\.valueFrom\.secretKeyRef: Not found") as refused:
        resolve_environment(spec, {"name": "a", "namespace": "default", "uid": "1"}, SecretFolder(tmp_path))
    assert refused.value.code == 422


def test_a_secret_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(NotPrivateError, match="chmod 0700"):
        SecretFolder(tmp_path)
