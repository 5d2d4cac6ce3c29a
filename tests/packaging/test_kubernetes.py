"""The manifests under include/kubernetes: whole, consistent, and with no more rights than the operator needs.

The last tests want a real cluster with RBAC: ``ML_LIFECYCLE_KUBECONFIG`` leads to it as its administrator,
and ``kubectl`` is on the PATH. They make the manifests' namespaces there and remove them again.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_until

KUBERNETES = Path(__file__).parents[2] / "include" / "kubernetes"
SETS = ("training", "nodes", "staging", "production")
TRAINING = "ml-lifecycle-training"
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass"}

Manifest = Mapping[str, Any]


def manifests(folder: Path, namespace: str | None = None) -> list[dict[str, Any]]:
    """What kustomize makes of a folder, as far as these folders go: resources, in a namespace."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    namespace = namespace or plan.get("namespace")
    found: list[dict[str, Any]] = []
    for name in plan["resources"]:
        if (folder / name).is_dir():
            found += manifests(folder / name, namespace)
        else:
            found += yaml.safe_load_all((folder / name).read_text())
    for manifest in found:
        if manifest["kind"] not in CLUSTER_WIDE and namespace:
            manifest["metadata"]["namespace"] = namespace
    return found


def only(found: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (one,) = (m for m in found if m["kind"] == kind and name in (None, m["metadata"]["name"]))
    return one


def test_every_file_belongs_to_a_set() -> None:
    used = set()
    for folder in KUBERNETES.iterdir():
        if folder.is_dir():
            plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
            # What manifests() above makes of it is what kustomize does.
            assert set(plan) <= {"apiVersion", "kind", "namespace", "resources"}, folder
            used |= {(folder / name).resolve() for name in plan["resources"]} | {
                folder / "kustomization.yaml"
            }
    assert {path for path in used if path.is_file()} == set(KUBERNETES.glob("*/*"))


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_whole(name: str) -> None:
    found = manifests(KUBERNETES / name)
    known = {(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in found}
    assert len(known) == len(found)
    for manifest in found:
        assert manifest["apiVersion"], manifest
        namespace = manifest["metadata"].get("namespace")
        if namespace:
            assert ("Namespace", None, namespace) in known
        if role := manifest.get("roleRef"):
            kept = namespace if role["kind"] == "Role" else None
            assert (role["kind"], kept, role["name"]) in known
        for subject in manifest.get("subjects", []):
            if name != "nodes":  # whose account is made with the training's
                assert (subject["kind"], namespace, subject["name"]) in known


def test_the_nodes_can_be_seen_by_the_account_of_the_training() -> None:
    (subject,) = only(manifests(KUBERNETES / "nodes"), "ClusterRoleBinding")["subjects"]
    account = only(manifests(KUBERNETES / "training"), "ServiceAccount", subject["name"])
    assert subject["namespace"] == account["metadata"]["namespace"] == TRAINING


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_what_a_model_server_refers_to_is_there(environment: str) -> None:
    found = manifests(KUBERNETES / environment)
    deployment, services = only(found, "Deployment"), [each for each in found if each["kind"] == "Service"]
    pod = deployment["spec"]["template"]
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in services),
        only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(found, "NetworkPolicy", "model-server")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod["spec"]["topologySpreadConstraints"]),
    ]
    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []
    only(found, "ServiceAccount", pod["spec"]["serviceAccountName"])
    (settings,) = (entry["configMapRef"]["name"] for entry in container["envFrom"])
    given = only(found, "ConfigMap", settings)["data"]
    assert set(re.findall(r"\$\((\w+)\)", str(container["args"]))) <= set(given)
    assert given["ENVIRONMENT"] == environment
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert {f"--port={ports['http']}", f"--grpc-port={ports['grpc']}"} <= set(container["args"])
    for service in services:
        led_to = [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]]
        assert led_to == [(number, name) for name, number in ports.items()]
    probes = {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"http"}
    policy = only(found, "NetworkPolicy", "model-server")["spec"]["ingress"]
    assert {each["port"] for rule in policy for each in rule["ports"]} == set(ports)
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["spec"]["volumes"]}
    paths = [entry["value"] for entry in container["env"]]
    paths += [arg.partition("=")[2] for arg in container["args"] if arg.startswith("--token-file")]
    assert [path for path in paths if str(Path(path).parent) not in mounted.values()] == []


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_a_model_server_understands_its_arguments(environment: str) -> None:
    from ml_lifecycle.serving.__main__ import _parse

    found = manifests(KUBERNETES / environment)
    (container,) = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    given = only(found, "ConfigMap")["data"]
    words = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], word) for word in container["args"]]
    assert words[:3] == ["python", "-m", "ml_lifecycle.serving"]
    options = _parse(words[3:])
    assert (options.environment, options.lake) == (environment, f"s3://{environment}")


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_the_servers_are_as_many_as_the_autoscaler_says(environment: str) -> None:
    found = manifests(KUBERNETES / environment)
    deployment, scaler = only(found, "Deployment"), only(found, "HorizontalPodAutoscaler")["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], deployment["kind"])
    assert target["name"] == deployment["metadata"]["name"]
    # A number of its own would be set anew whenever the manifests are applied.
    assert "replicas" not in deployment["spec"]
    allowed = only(found, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert scaler["maxReplicas"] > scaler["minReplicas"] > allowed
    (metric,) = scaler["metrics"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # A share of what is asked for can only be told where something is asked for.
    assert metric["resource"]["name"] in container["resources"]["requests"]


def test_a_release_finds_every_server_by_its_own_address() -> None:
    found = manifests(KUBERNETES / "production")
    headless = only(found, "Service", "model-server-replicas")
    assert headless["spec"]["clusterIP"] == "None"
    # Only those that are ready have one.
    assert "publishNotReadyAddresses" not in headless["spec"]
    host = f"http://{headless['metadata']['name']}.{headless['metadata']['namespace']}.svc"
    assert (
        f"`production_server` is `{host}`, port {headless['spec']['ports'][0]['port']}"
        in (KUBERNETES / "README.md").read_text()
    )


def test_a_server_has_time_to_end() -> None:
    from ml_lifecycle.serving import server
    from ml_lifecycle.serving.__main__ import _parse

    pod = only(manifests(KUBERNETES / "serving"), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain = _parse(container["args"][3:]).drain_seconds
    # Until the name service forgets it: CoreDNS keeps what Kubernetes says for five seconds.
    assert drain >= 10
    # Then what is in flight, then the prediction log.
    assert pod["terminationGracePeriodSeconds"] >= drain + server._SHUTDOWN_SECONDS + 10


def secrets_made_by_hand() -> set[tuple[str, str, str]]:
    """Namespace, name and key of each secret that the README has one make."""
    lines = re.findall(r"^kubectl .* create secret generic .*$", (KUBERNETES / "README.md").read_text(), re.M)
    made = set()
    for words in map(shlex.split, lines):
        key = words[-1].removeprefix("--from-file=").partition("=")[0]
        made.add((words[words.index("-n") + 1], words[words.index("generic") + 1], key))
    return made


def test_every_secret_is_one_that_the_readme_makes() -> None:
    found = manifests(KUBERNETES / "production")
    pod = only(found, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    files = re.findall(r"/run/secrets/[\w./-]+", str((container["args"], container["env"])))
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
    used = {
        (
            only(found, "Namespace")["metadata"]["name"],
            volumes[mounts[str(Path(file).parent)]],
            Path(file).name,
        )
        for file in files
    }
    # As the lake's connection names it to pods.
    assert used | {(TRAINING, "lake", "options")} == secrets_made_by_hand()


def test_a_model_server_runs_with_no_right_it_does_not_need() -> None:
    pod = only(manifests(KUBERNETES / "serving"), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_no_rule_has_a_wildcard() -> None:
    for name in SETS:
        for manifest in manifests(KUBERNETES / name):
            for rule in manifest.get("rules", []):
                assert "*" not in str(rule), manifest["metadata"]["name"]


@pytest.fixture(scope="module")
def administrator() -> Iterator[Any]:
    """A client of a real cluster to which the manifests were applied, as kubectl applies them."""
    from kubernetes import client, config

    kubeconfig = os.environ.get("ML_LIFECYCLE_KUBECONFIG")
    if kubeconfig is None or shutil.which("kubectl") is None:
        pytest.skip(
            "no cluster to apply the manifests to: set ML_LIFECYCLE_KUBECONFIG, with kubectl on the PATH"
        )
    kubectl = ["kubectl", "--kubeconfig", kubeconfig]
    api = config.new_client_from_config(kubeconfig)
    served = {
        group.name: [v.version for v in group.versions]
        for group in client.ApisApi(api).get_api_versions().groups
    }
    rendered = []
    for name in SETS:
        made = subprocess.run(
            [*kubectl, "kustomize", str(KUBERNETES / name)], capture_output=True, check=True
        )
        rendered += list(yaml.safe_load_all(made.stdout))
    # Nodes' rights are given by the test that tries them.
    rendered = [each for each in rendered if each["kind"] not in ("ClusterRole", "ClusterRoleBinding")]
    # Kubernetes 1.20 has these with the same fields under other names.
    for group, former in (("policy", "v1beta1"), ("autoscaling", "v2beta2")):
        for each in rendered:
            in_group, _, version = each["apiVersion"].partition("/")
            if in_group == group and version not in served[group]:
                assert former in served[group]
                each["apiVersion"] = f"{group}/{former}"
    text = yaml.safe_dump_all(rendered)
    subprocess.run([*kubectl, "apply", "-f", "-"], input=text, text=True, check=True)
    core = client.CoreV1Api(api)
    try:
        # A quota holds from when the controller has first counted.
        wait_until(
            lambda: core.read_namespaced_resource_quota("training", TRAINING).status.hard,
            "the quota is counted",
            60,
        )
        yield api
    finally:
        subprocess.run([*kubectl, "delete", "-f", "-"], input=text, text=True, check=True)
        subprocess.run(
            [*kubectl, "delete", "-k", str(KUBERNETES / "nodes"), "--ignore-not-found"], check=True
        )


@pytest.fixture
def airflow(administrator: Any) -> Any:
    """A client with the rights of Airflow's account and no others."""
    from kubernetes import client

    core = client.CoreV1Api(administrator)
    answer = core.create_namespaced_service_account_token("airflow", TRAINING, {"spec": {}})
    given = client.Configuration()
    given.host, given.ssl_ca_cert = administrator.configuration.host, administrator.configuration.ssl_ca_cert
    given.api_key = {"authorization": f"Bearer {answer.status.token}"}
    return client.ApiClient(given)


def status_of(call: Callable[[], Any]) -> int:
    """The HTTP status that a call is answered with."""
    from kubernetes.client import ApiException

    try:
        call()
    except ApiException as error:
        return int(error.status)
    return 200


def pod(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"run": "test"}},
        "spec": {
            "restartPolicy": "Never",
            "priorityClassName": "ml-lifecycle-training",
            "containers": [
                {"name": "base", "image": "none", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
            ],
        },
    }


@pytest.mark.proof
def test_the_account_may_do_what_the_operator_does(airflow: Any) -> None:
    from kubernetes import client

    core = client.CoreV1Api(airflow)
    made = core.create_namespaced_pod(TRAINING, pod("allowed"))
    assert made.spec.priority == -100
    assert made.spec.containers[0].resources.limits == {"memory": "1Gi"}  # the namespace's default
    assert not made.spec.volumes  # no token of the API
    calls: dict[str, Callable[[], Any]] = {
        "find": lambda: core.list_namespaced_pod(TRAINING, label_selector="run=test"),
        "poll": lambda: core.read_namespaced_pod("allowed", TRAINING),
        "events": lambda: core.list_namespaced_event(TRAINING, field_selector="involvedObject.name=allowed"),
        "watch": lambda: core.list_namespaced_event(
            TRAINING, watch=True, timeout_seconds=1, _preload_content=False
        ).read(),
        "label": lambda: core.patch_namespaced_pod("allowed", TRAINING, {"metadata": {"labels": {"a": "b"}}}),
        "delete": lambda: core.delete_namespaced_pod("allowed", TRAINING, grace_period_seconds=0),
    }
    assert {name: status_of(call) for name, call in calls.items()} == dict.fromkeys(calls, 200)
    # Whatever the pod's log says, it is not that it may not be read.
    assert status_of(lambda: core.read_namespaced_pod_log("allowed", TRAINING)) != 403


@pytest.mark.proof
def test_the_account_may_do_nothing_else(airflow: Any) -> None:
    from kubernetes import client

    core, apps = client.CoreV1Api(airflow), client.AppsV1Api(airflow)
    other = "ml-lifecycle-production"
    calls: dict[str, Callable[[], Any]] = {
        "read secrets": lambda: core.read_namespaced_secret("lake", TRAINING),
        "list secrets": lambda: core.list_namespaced_secret(TRAINING),
        "run commands": lambda: core.connect_post_namespaced_pod_exec("allowed", TRAINING, command="sh"),
        "delete all pods": lambda: core.delete_collection_namespaced_pod(TRAINING),
        "make tokens": lambda: core.create_namespaced_service_account_token(
            "airflow", TRAINING, {"spec": {}}
        ),
        "raise the quota": lambda: core.patch_namespaced_resource_quota("training", TRAINING, {"spec": {}}),
        "see production's pods": lambda: core.list_namespaced_pod(other),
        "run pods in production": lambda: core.create_namespaced_pod(other, pod("elsewhere")),
        "run pods in default": lambda: core.create_namespaced_pod("default", pod("elsewhere")),
        "change a server": lambda: apps.patch_namespaced_deployment("model-server", other, {"spec": {}}),
        "list namespaces": lambda: core.list_namespace(),
        "see nodes": lambda: core.list_node(),
    }
    assert {name: status_of(call) for name, call in calls.items()} == dict.fromkeys(calls, 403)


@pytest.mark.proof
def test_nodes_are_seen_once_the_administrator_allows_it(airflow: Any) -> None:
    from kubernetes import client

    command = ["kubectl", "--kubeconfig", os.environ["ML_LIFECYCLE_KUBECONFIG"], "apply", "-k"]
    subprocess.run([*command, str(KUBERNETES / "nodes")], check=True)
    core = client.CoreV1Api(airflow)
    assert status_of(core.list_node) == 200
    assert status_of(lambda: core.patch_node("any", {})) == 403


@pytest.mark.proof
@pytest.mark.parametrize(
    ("kind", "group", "plural", "versions"),
    [
        ("HorizontalPodAutoscaler", "autoscaling", "horizontalpodautoscalers", ("v2", "v2beta2")),
        ("PodDisruptionBudget", "policy", "poddisruptionbudgets", ("v1", "v1beta1")),
    ],
)
def test_the_cluster_understood_all_that_it_was_told(
    administrator: Any, kind: str, group: str, plural: str, versions: tuple[str, ...]
) -> None:
    """What an API server does not know in a manifest, it drops without a word."""
    from kubernetes import client

    wanted = only(manifests(KUBERNETES / "production"), kind)
    namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
    objects = client.CustomObjectsApi(administrator)
    served = {
        version.version
        for each in client.ApisApi(administrator).get_api_versions().groups
        if each.name == group
        for version in each.versions
    }
    version = next(version for version in versions if version in served)
    kept = objects.get_namespaced_custom_object(group, version, namespace, plural, name)
    assert lacking(wanted["spec"], kept["spec"]) == []


def lacking(wanted: Any, kept: Any, path: str = "spec") -> list[str]:
    """Where ``kept`` is not what was wanted; what the cluster added by itself does not count."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        return [found for key in wanted for found in lacking(wanted[key], kept.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(kept, list) and len(wanted) == len(kept):
        pairs = enumerate(zip(wanted, kept, strict=True))
        return [found for at, (one, other) in pairs for found in lacking(one, other, f"{path}[{at}]")]
    return [] if wanted == kept else [f"{path} is {kept!r}, not {wanted!r}"]


@pytest.mark.proof
def test_the_quota_holds(airflow: Any) -> None:
    from kubernetes import client

    core = client.CoreV1Api(airflow)
    large = pod("large")
    large["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "65"}}
    assert status_of(lambda: core.create_namespaced_pod(TRAINING, large)) == 403
    wide = pod("wide")
    wide["spec"]["containers"][0]["resources"] = {"limits": {"memory": "65Gi"}}
    assert status_of(lambda: core.create_namespaced_pod(TRAINING, wide)) == 403
