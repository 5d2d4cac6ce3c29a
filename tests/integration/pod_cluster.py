"""The cluster that pod cases run on: localpods, or whatever ``ML_LIFECYCLE_KUBECONFIG`` leads to.

A real cluster wants ``ML_LIFECYCLE_POD_IMAGE``, an image with Python (default python:3.11-slim), and uses the
namespace ``ML_LIFECYCLE_POD_NAMESPACE`` (default ``default``), in which every pod of a run is deleted again.
All cases have passed on Kubernetes 1.20.2 too (dockershim, one node).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from waiting import wait_until

import ml_lifecycle
from ml_lifecycle.localpods.connection import connection_json

T = TypeVar("T")


@dataclass
class PodCluster:
    """A cluster, as the official client sees it.

    :param kubeconfig: a file
    :param folder: localpods' own folder; None for a real cluster
    """

    kubeconfig: Path
    namespace: str
    image: str
    folder: Path | None
    mark: str = field(default_factory=lambda: f"conformance-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        from kubernetes import client, config

        self.api = client.CoreV1Api(config.new_client_from_config(str(self.kubeconfig)))

    def create(self, name: str, code: str, **spec: Any) -> str:
        """Run ``python -u -c code`` as a pod; returns the pod's full name."""
        container = {
            "name": "base",
            "image": self.image,
            "command": ["python", "-u", "-c", code],
            **spec.pop("container", {}),
        }
        body = {
            "metadata": {"name": f"{name}-{self.mark}", "labels": {"run": self.mark}},
            "spec": {"restartPolicy": "Never", "containers": [container], **spec},
        }
        self.api.create_namespaced_pod(self.namespace, body)
        return f"{name}-{self.mark}"

    def pod(self, name: str) -> Any:
        """The pod; None once it is gone."""
        from kubernetes.client import ApiException

        try:
            return self.api.read_namespaced_pod(name, self.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def log(self, name: str, **options: Any) -> str:
        """The container's output; empty while it has not started."""
        from kubernetes.client import ApiException

        try:
            return str(
                self.api.read_namespaced_pod_log(
                    name, self.namespace, _preload_content=False, **options
                ).data.decode()
            )
        except ApiException as error:
            # 404: its node has not heard of it yet
            if error.status not in (400, 404):
                raise
            return ""

    def printed(self, name: str, pattern: str) -> list[str]:
        """The groups of ``pattern``, once it is in the log."""
        return list(wait_until(lambda: re.search(pattern, self.log(name))).groups())

    def ended(self, name: str) -> Any:
        """The pod, once it is Succeeded or Failed."""

        def look() -> Any:
            pod = self.pod(name)
            assert pod is not None, f"{name} is gone"
            return pod if pod.status.phase in ("Succeeded", "Failed") else None

        return wait_until(look)

    def delete_all(self) -> None:
        """Delete every pod of this run; one that is being deleted may be gone before its turn comes."""
        from kubernetes.client import ApiException

        for pod in self.api.list_namespaced_pod(self.namespace, label_selector=f"run={self.mark}").items:
            try:
                self.api.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
            except ApiException as error:
                if error.status != 404:
                    raise

    def airflow_connection(self) -> str:
        """The value of an ``AIRFLOW_CONN_…`` variable that leads here."""
        extra = {"namespace": self.namespace, "kube_config_path": str(self.kubeconfig)}
        return json.dumps({"conn_type": "kubernetes", "extra": extra})


def terminated(pod: Any) -> tuple[int, str]:
    """Exit code and reason of a pod's only container."""
    state = pod.status.container_statuses[0].state.terminated
    return state.exit_code, state.reason


@contextmanager
def pod_cluster(folder: Path) -> Iterator[PodCluster]:
    """The cluster to test; what was started or made there is gone afterwards."""
    given = os.environ.get("ML_LIFECYCLE_KUBECONFIG")
    if given:
        image = os.environ.get("ML_LIFECYCLE_POD_IMAGE", "python:3.11-slim")
        namespace = os.environ.get("ML_LIFECYCLE_POD_NAMESPACE", "default")
        cluster = PodCluster(Path(given), namespace, image, None)
        try:
            yield cluster
        finally:
            cluster.delete_all()
        return
    with _localpods(folder) as kubeconfig:
        yield PodCluster(kubeconfig, "models", "none", folder)


@contextmanager
def _localpods(folder: Path) -> Iterator[Path]:
    command = [sys.executable, "-m", "ml_lifecycle.localpods", "--stop-pods-on-exit"]
    for option in ("state-dir", "token-file", "port-file"):
        command += [f"--{option}", str(folder / option)]
    source = str(Path(ml_lifecycle.__file__).parents[1])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})
    try:
        wait_until(lambda: (folder / "port-file").exists() or process.poll() is not None)
        url = f"http://127.0.0.1:{(folder / 'port-file').read_text().strip()}"
        token = (folder / "token-file").read_text().strip()
        kubeconfig = folder / "kubeconfig"
        connection = json.loads(connection_json(url, token, "models"))
        kubeconfig.write_text(json.dumps(connection["extra"]["kube_config"]))  # YAML holds JSON
        yield kubeconfig
    finally:
        process.terminate()
        process.wait(30)
