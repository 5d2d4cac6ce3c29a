"""Airflow's own API server with the plugin, on a database and a port of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

PASSWORD = "a password of the tests"
USERS = {"ada": "admin", "vera": "viewer:blue", "nick": "viewer:green", "eve": "viewer"}


@dataclass(frozen=True)
class AirflowServer:
    """A running server.

    :param log: what it prints
    """

    url: str
    log: Path

    def client(self, user: str | None) -> httpx.Client:
        """A client that is logged in as ``user``, by the cookie a browser would send; None for nobody."""
        cookies: dict[str, str] = {}
        if user is not None:
            login = {"username": user, "password": PASSWORD}
            answer = httpx.post(f"{self.url}/auth/token", json=login, trust_env=False, timeout=60)
            cookies["_token"] = answer.raise_for_status().json()["access_token"]
        return httpx.Client(base_url=self.url, cookies=cookies, trust_env=False, timeout=60)


@contextmanager
def serving(
    root: Path, models_by_team: Sequence[str], connections: dict[str, dict[str, object]]
) -> Iterator[AirflowServer]:
    """Make the metadata database, then serve until the block ends.

    :param models_by_team: see :func:`airflow_process.seed`
    """
    # Bound here and handed over: nobody can take the port, and who connects early is kept waiting.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = _environment(root, url, connections)
        log = root / "api-server.log"
        number = listener.fileno()
        script = str(Path(__file__).with_name("airflow_process.py"))
        command = [sys.executable, script, str(number), *models_by_team]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, pass_fds=[number], stdout=output, stderr=subprocess.STDOUT
            )
    try:
        httpx.get(f"{url}/api/v2/version", trust_env=False, timeout=120).raise_for_status()
        yield AirflowServer(url, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(root: Path, url: str, connections: dict[str, dict[str, object]]) -> dict[str, str]:
    passwords = root / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(USERS, PASSWORD)))
    ours = {
        "_AIRFLOW_PROCESS_CONTEXT": "server",
        "AIRFLOW_API_APPS": "core",
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": "secret of the tests, of thirty-two bytes or more",
        "AIRFLOW__API_AUTH__JWT_SECRET": "another secret of the tests, of sixty-four bytes or more, at that",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{n}:{r}" for n, r in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections.items()},
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "_AIRFLOW"))}
    return inherited | ours
