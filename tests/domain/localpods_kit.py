"""The real localpods server in a process of its own, and a client of its API."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx
import psutil
from waiting import wait_until

import ml_lifecycle

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ml_lifecycle.__file__).parents[1])}
SLEEP = "import time; time.sleep(600)"


def manifest(name: str, code: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "base", "command": ["python", "-u", "-c", textwrap.dedent(code)]}
    container |= spec.pop("container", {})
    metadata = {"name": name, **spec.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [container], **spec}}


class Cluster:
    """A server and a client of its API."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.pids: set[int] = set()
        self.start()

    def start(self) -> None:
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command("--port-file", str(port_file)), env=ENVIRONMENT)
        wait_until(lambda: port_file.exists() or self.process.poll() is not None)
        url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        token = (self.folder / "token").read_text().strip()
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20
        )

    def command(self, *more: str) -> list[str]:
        state, token = str(self.folder / "state"), str(self.folder / "token")
        server = [sys.executable, "-m", "ml_lifecycle.localpods", "--state-dir", state, "--token-file", token]
        return [*server, *self.options, *more]

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(15)
        self.http.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        subprocess.run(self.command("--sweep"), check=True, timeout=30, env=ENVIRONMENT)

    def call(self, method: str, path: str, expect: int = 200, **kwargs: Any) -> Any:
        answer = self.http.request(method, f"/api/v1/namespaces/default/{path}", **kwargs)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def create(self, name: str, code: str, **spec: Any) -> Any:
        return self.call("POST", "pods", 201, json=manifest(name, code, **spec))

    def pod(self, name: str) -> Any:
        return self.call("GET", f"pods/{name}")

    def log(self, name: str, **params: Any) -> str:
        answer = self.http.get(f"/api/v1/namespaces/default/pods/{name}/log", params=params)
        assert answer.status_code == 200, answer.text
        return answer.text

    def ended(self, name: str, seconds: float = 15) -> Any:
        """The pod's status once it has ended."""

        def status() -> Any:
            status = self.pod(name)["status"]
            return status if status["phase"] in ("Succeeded", "Failed") else None

        return wait_until(status, f"{name} has ended", seconds)

    def printed(self, name: str, pattern: str) -> list[str]:
        """The groups of ``pattern`` once it is in the log."""
        found: Any = wait_until(lambda: re.search(pattern, self.log(name)))
        return list(found.groups())


def terminated(status: Any) -> tuple[int, str]:
    state = status["containerStatuses"][0]["state"]["terminated"]
    return state["exitCode"], state["reason"]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
