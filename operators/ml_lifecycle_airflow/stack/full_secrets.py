"""``python -m ml_lifecycle_airflow.stack.full_secrets FOLDER``: docker-compose.yaml's secrets, a file each.

Needs the standard library only: a machine that runs containers has no environment of ours. What was made
once is kept, so that a second call changes nothing but what follows from other arguments.

The folder is private (0700) and its files are not (0444): a mounted file keeps its owner and mode, and the
users in the containers are others. Who cannot enter the folder cannot reach them.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_lifecycle.localpods.connection import connection_json

ENVIRONMENTS = ("staging", "production")
USERS = ("admin", "alice")
LAKE = "http://lake:8333"
# Who may do what in the object store, in its own words.
BUCKETS = {"pods": "lifecycle", "mlflow": "mlflow", "staging": "staging", "production": "production"}
IN_BUCKET = ("Read", "Write", "List", "Tagging")


def write_secrets(
    folder: Path,
    kubeconfig: str | None = None,
    namespace: str = "default",
    airflow_page: str = "http://localhost:8080",
    mlflow_page: str = "http://localhost:5001",
) -> None:
    """Write every file that ``secrets:`` in docker-compose.yaml names.

    :param kubeconfig: of the cluster that pods run in; None for the localpods container
    :param namespace: where pods go
    :param airflow_page: where a browser finds Airflow
    :param mlflow_page: where it finds MLflow
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    kept = _Kept(folder)
    tokens = {name: kept.token(f"{name}-token") for name in ("pods", *ENVIRONMENTS)}
    database, redis = kept.token("postgres-password"), kept.token("redis-password")
    kept.token("airflow-api-secret")
    kept.token("airflow-jwt-secret")
    kept.make("airflow-fernet-key", lambda: base64.urlsafe_b64encode(os.urandom(32)).decode())
    kept.make(
        "airflow-passwords.json", lambda: json.dumps({user: secrets.token_urlsafe(9) for user in USERS})
    )
    keys = {name: (kept.token(f"{name}-access-key"), kept.token(f"{name}-secret-key")) for name in _actions()}

    _write(folder / "pgpass", f"postgres:5432:*:airflow:{database}\n")
    _write(folder / "redis.conf", f"requirepass {redis}\n")
    _write(folder / "celery-broker-url", f"redis://:{redis}@redis:6379/0")
    _write(folder / "lake-identities.json", json.dumps({"identities": _identities(keys)}, indent=1))
    for name, (key, secret) in keys.items():
        credentials = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        _write(folder / f"aws-{name}", credentials)
    key, secret = keys["pods"]
    options = {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": LAKE}}
    _write(folder / "lake-options.json", json.dumps(options))
    local = json.loads(connection_json("http://localpods:8091", tokens["pods"]))["extra"]["kube_config"]
    _write(folder / "kubeconfig", kubeconfig or json.dumps(local))
    connections = _connections(tokens, namespace, mlflow_page)
    _write(folder / "airflow-connections.json", json.dumps(connections, indent=1))
    access = {
        "airflow_url": "http://api-server:8080",
        "airflow_page": airflow_page,
        "mlflow_url": mlflow_page,
        "passwords": json.loads((folder / "airflow-passwords.json").read_text()),
        "model_folder": "/opt/ml-lifecycle/dags/models/flight_delay",
        "lake": "s3://lifecycle",
        "production_lake": "s3://production",
        "production_url": "http://server-production:8093",
        "production_token": tokens["production"],
        "production_online_store": _online_store("production"),
    }
    _write(folder / "demo-access.json", json.dumps(access, indent=1))


def _actions() -> dict[str, list[str]]:
    """The store's identities and what each may do: Airflow works in every lake, all others in their own."""
    own = {name: [f"{action}:{bucket}" for action in IN_BUCKET] for name, bucket in BUCKETS.items()}
    return {"airflow": ["Admin", *IN_BUCKET], **own}


def _identities(keys: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    found = []
    for name, actions in _actions().items():
        key, secret = keys[name]
        found.append(
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        )
    return found


def _connections(tokens: Mapping[str, str], namespace: str, mlflow_page: str) -> dict[str, dict[str, Any]]:
    """Airflow's connections by id. The database's password comes from libpq's file, the lakes' from AWS's."""
    found: dict[str, dict[str, Any]] = {
        "ml_lifecycle_lake": _lake("s3://lifecycle", pod_secret="lake/options"),
        "ml_lifecycle_database": {
            "conn_type": "postgres",
            "host": "postgres",
            "login": "airflow",
            "schema": "lifecycle",
        },
        "ml_lifecycle_mlflow": {
            "conn_type": "ml_lifecycle_mlflow",
            "host": "http://mlflow",
            "port": 5000,
            "extra": {"page": mlflow_page},
        },
        "ml_lifecycle_pods": {
            "conn_type": "kubernetes",
            "extra": {"namespace": namespace, "kube_config_path": "/run/secrets/kubeconfig"},
        },
    }
    for number, name in enumerate(ENVIRONMENTS):
        found[f"{name}_lake"] = _lake(f"s3://{name}")
        found[f"{name}_online_store"] = {
            "conn_type": "ml_lifecycle_online_store",
            "extra": {"url": _online_store(name)},
        }
        found[f"{name}_server"] = {
            "conn_type": "ml_lifecycle_server",
            "host": f"http://server-{name}",
            "port": 8092 + number,
            "password": tokens[name],
        }
    return found


def _lake(url: str, **extra: str) -> dict[str, Any]:
    return {"conn_type": "ml_lifecycle_lake", "extra": {"url": url, **extra}}


def _online_store(environment: str) -> str:
    return f"sqlite:////online/{environment}/online.db"


class _Kept:
    """Values that are made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def token(self, name: str) -> str:
        return self.make(name, lambda: secrets.token_hex(24))

    def make(self, name: str, new: Callable[[], str]) -> str:
        path = self._folder / name
        if not path.exists():
            _write(path, new())
        return path.read_text()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.write_text(text)
    temporary.chmod(0o444)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle_airflow.stack.full_secrets")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kubeconfig", type=Path, help="of the cluster that pods run in, whole in one file")
    parser.add_argument("--namespace", default="default", help="where pods go (default: %(default)s)")
    parser.add_argument("--airflow-port", type=int, default=8080)
    parser.add_argument("--mlflow-port", type=int, default=5001)
    chosen = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        write_secrets(
            chosen.folder,
            chosen.kubeconfig.read_text() if chosen.kubeconfig else None,
            chosen.namespace,
            f"http://localhost:{chosen.airflow_port}",
            f"http://localhost:{chosen.mlflow_port}",
        )
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
