"""What a cluster with Kubeflow's Spark operator answers, as far as Airflow's operator asks: on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Manifest = dict[str, Any]


class SparkCluster:
    """Applications that were asked for, and their drivers.

    :param run: runs an application's driver; returns its exit code
    """

    def __init__(self, run: Callable[[Manifest], int]) -> None:
        self.run = run
        self.asked: list[Manifest] = []
        self.applications: dict[str, Manifest] = {}
        self.pods: dict[str, Manifest] = {}
        self.url = ""

    def create(self, manifest: Manifest) -> tuple[int, Manifest]:
        name = manifest["metadata"]["name"]
        if name in self.applications:
            return 409, {"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "code": 409}
        self.asked.append(manifest)
        self.applications[name] = manifest
        code = self.run(manifest)
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
        driver = "spark-kubernetes-driver"
        labels = {**manifest["spec"]["driver"].get("labels", {}), "spark-role": "driver"}
        self.pods[f"{name}-driver"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{name}-driver", "namespace": "default", "labels": labels, "uid": name},
            "spec": {"containers": [{"name": driver, "image": manifest["spec"]["image"]}]},
            "status": {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [
                    {
                        "name": driver,
                        "image": "",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"terminated": ended},
                    }
                ],
            },
        }
        return 201, manifest

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        kind, name, tail = _split(path)
        if kind == "sparkapplications":
            if method == "POST":
                return self.create(body)
            if name not in self.applications:
                return 404, {"kind": "Status", "code": 404}
            if method == "DELETE":
                self.pods.pop(f"{name}-driver", None)
                return 200, self.applications.pop(name)
            return 200, {**self.applications[name], "status": {"applicationState": {"state": "RUNNING"}}}
        if kind == "pods" and not name:
            phases = query.get("fieldSelector", [""])[0]
            found = [pod for pod in self.pods.values() if f"!={pod['status']['phase']}" not in phases]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found}
        if kind == "pods" and name in self.pods:
            return 200, "the driver's log\n" if tail == "log" else self.pods[name]
        return 404, {"kind": "Status", "code": 404}


def _split(path: str) -> tuple[str, str, str]:
    """Kind, name and what is asked of it, of a path below a namespace."""
    _, _, below = path.partition("/namespaces/default/")
    kind, name, tail = (*below.split("/"), "", "")[:3]
    return kind, name, tail


@contextmanager
def spark_cluster(run: Callable[[Manifest], int]) -> Iterator[SparkCluster]:
    """A cluster for as long as the context lasts."""
    cluster = SparkCluster(run)

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            split = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            code, said = cluster.answer(self.command, split.path, parse_qs(split.query), body)
            text = said if isinstance(said, str) else json.dumps(said)
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = do_PATCH = _do

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
