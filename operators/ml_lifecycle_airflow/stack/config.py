"""Where the stack's state, ports and secrets are, and the environment its processes share."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.localpods.connection import connection_json
from ml_lifecycle.settings import Settings
from ml_lifecycle.spec.problems import suggest

REPOSITORY = Path(__file__).resolve().parents[3]
ENVIRONMENTS = ("staging", "production")
USERS = {"admin": "admin", "alice": "op"}
"""Name → role of Airflow's simple auth manager."""
_PORT = "ML_LIFECYCLE_PORT_"
DATABASES = ("airflow", "mlflow", "lifecycle")


class PortTakenError(LifecycleError):
    """Something else listens on a port the stack needs. Retry: yes, with that freed or another port."""

    retryable = True


@dataclass(frozen=True)
class Ports:
    """TCP ports, all on loopback. ``ML_LIFECYCLE_PORT_<NAME>`` sets each."""

    airflow: int = 8080
    mlflow: int = 5001
    pods: int = 8091
    staging: int = 8092
    production: int = 8093
    staging_grpc: int = 8094
    production_grpc: int = 8095

    @classmethod
    def from_environment(cls) -> Ports:
        """The defaults, where the environment does not say otherwise.

        :raises LifecycleError: a variable is not a port number, or two are the same, or one is of no port.
            Retry: no.
        """
        variables = [f"{_PORT}{name.upper()}" for name in cls.__dataclass_fields__]
        for unknown in sorted(name for name in os.environ if name.startswith(_PORT)):
            if unknown not in variables:
                raise LifecycleError(f"{unknown} is no port's: {'; '.join(suggest(unknown, variables))}")
        chosen: dict[str, int] = {}
        for name in cls.__dataclass_fields__:
            variable = f"{_PORT}{name.upper()}"
            if text := os.environ.get(variable):
                if not (text.isdigit() and 0 < int(text) < 65536):
                    raise LifecycleError(f"{variable}={text!r} is not a port: use a number from 1 to 65535")
                chosen[name] = int(text)
        ports = cls(**chosen)
        users: dict[int, str] = {}
        for name in cls.__dataclass_fields__:
            if (other := users.setdefault(getattr(ports, name), name)) != name:
                raise LifecycleError(
                    f"{other} and {name} both have port {getattr(ports, name)}: move one with "
                    f"{_PORT}{name.upper()}=…"
                )
        return ports

    @classmethod
    def kept_in(cls, file: Path) -> Ports | None:
        """Those that a stack was started with; None where it never was, or not by this version."""
        return cls(**json.loads(file.read_text())) if file.exists() else None

    def check_free(self) -> None:
        """Say which port is taken, by its variable.

        :raises PortTakenError: a port is in use. Retry: yes, with another.
        """
        for name in self.__dataclass_fields__:
            port = getattr(self, name)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise PortTakenError(
                        f"port {port} ({name}) is taken: stop what listens there, or choose another with "
                        f"{_PORT}{name.upper()}=… in front of the command"
                    ) from error


def postgres_from_environment() -> URL | None:
    """The PostgreSQL server that ``ML_LIFECYCLE_POSTGRES`` names; None where it is not set.

    :raises LifecycleError: it is no such URL; the message does not repeat it, for it may hold a password.
        Retry: no.
    """
    variable = "ML_LIFECYCLE_POSTGRES"
    if not (text := os.environ.get(variable)):
        return None
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = URL.create("")
    if url.drivername not in ("postgresql", "postgres") or not url.host or url.database or url.query:
        raise LifecycleError(
            f"{variable} names no PostgreSQL server: write postgresql://user:password@host:port, special "
            f"characters percent-encoded; the databases {', '.join(DATABASES)} are made there"
        )
    return url


@dataclass(frozen=True)
class Stack:
    """One stack: its root folder holds all of its state, its databases excepted if they are on PostgreSQL.

    :param users: name → role: viewer, user, op or admin
    :param postgres: the server that holds the three databases; None keeps them in SQLite files
    """

    root: Path
    ports: Ports
    dags: Path = REPOSITORY / "dags"
    users: Mapping[str, str] = field(default_factory=lambda: USERS)
    postgres: URL | None = None

    @property
    def logs(self) -> Path:
        """Standard output of every process."""
        return self.root / "logs"

    @property
    def airflow_home(self) -> Path:
        """AIRFLOW_HOME."""
        return self.root / "airflow"

    @property
    def lake(self) -> Path:
        """The lake that training stages share."""
        return self.root / "lake"

    def environment_lake(self, name: str) -> Path:
        """The lake of one serving environment."""
        return self.root / name / "lake"

    def online_store(self, name: str) -> str:
        """URL of an environment's online store."""
        return f"sqlite:///{self.root / name / 'online_store.db'}"

    def postgres_url(self, database: str) -> URL:
        """One of the server's databases."""
        assert self.postgres is not None
        return self.postgres.set(drivername="postgresql+psycopg2", database=database)

    @property
    def database_urls(self) -> dict[str, str]:
        """URL of each of :data:`DATABASES`, password included."""
        if self.postgres is not None:
            return {name: self.postgres_url(name).render_as_string(hide_password=False) for name in DATABASES}
        files = {"airflow": self.airflow_home, "mlflow": self.root, "lifecycle": self.root}
        return {name: f"sqlite:///{folder / name}.db" for name, folder in files.items()}

    @property
    def database_url(self) -> str:
        """The lifecycle database."""
        return self.database_urls["lifecycle"]

    @property
    def settings(self) -> Settings:
        """Where the command ``ml-lifecycle`` finds this stack's state."""
        lakes = {name: str(self.environment_lake(name)) for name in ENVIRONMENTS}
        return Settings(self.database_url, str(self.lake), lakes)

    @property
    def settings_file(self) -> Path:
        """The same as a file for a shell to source."""
        return self.root / "lifecycle.env"

    @property
    def ports_file(self) -> Path:
        """The ports it was started with last."""
        return self.root / "ports.json"

    @property
    def airflow_url(self) -> str:
        """Airflow's web UI and REST API."""
        return f"http://127.0.0.1:{self.ports.airflow}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and API."""
        return f"http://127.0.0.1:{self.ports.mlflow}"

    def server_url(self, environment: str) -> str:
        """The model server of an environment."""
        return f"http://127.0.0.1:{getattr(self.ports, environment)}"

    @property
    def secrets(self) -> dict[str, str]:
        """Keys, tokens and passwords, made once and kept in a private file."""
        path = self.root / "secrets.json"
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            made = {name: secrets.token_urlsafe(24) for name in ("jwt", "api", "pods", *ENVIRONMENTS)}
            made["fernet"] = base64.urlsafe_b64encode(os.urandom(32)).decode()
            made |= {f"user_{name}": secrets.token_urlsafe(9) for name in self.users}
            temporary = path.with_suffix(".tmp")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(made, indent=1))
            temporary.replace(path)
        return dict(json.loads(path.read_text()))

    def password(self, user: str) -> str:
        """A user's Airflow password."""
        return self.secrets[f"user_{user}"]

    def connections(self) -> dict[str, dict[str, Any]]:
        """Airflow connections by id."""
        keys = self.secrets
        found: dict[str, dict[str, Any]] = {
            "ml_lifecycle_lake": _lake(self.lake),
            "ml_lifecycle_database": self._database_connection(),
            "ml_lifecycle_mlflow": {
                "conn_type": "ml_lifecycle_mlflow",
                "host": "http://127.0.0.1",
                "port": self.ports.mlflow,
            },
            "ml_lifecycle_pods": json.loads(
                connection_json(f"http://127.0.0.1:{self.ports.pods}", keys["pods"])
            ),
        }
        for name in ENVIRONMENTS:
            found[f"{name}_lake"] = _lake(self.environment_lake(name))
            found[f"{name}_online_store"] = {
                "conn_type": "ml_lifecycle_online_store",
                "extra": {"url": self.online_store(name)},
            }
            found[f"{name}_server"] = {
                "conn_type": "ml_lifecycle_server",
                "host": "http://127.0.0.1",
                "port": getattr(self.ports, name),
                "password": keys[name],
            }
        return found

    def _database_connection(self) -> dict[str, Any]:
        if self.postgres is None:
            return {"conn_type": "ml_lifecycle_database", "extra": {"url": self.database_url}}
        # Field by field, so that Airflow knows which of it is the password and masks that.
        return {
            "conn_type": "postgres",
            "host": self.postgres.host,
            "port": self.postgres.port,
            "login": self.postgres.username,
            "password": self.postgres.password,
            "schema": "lifecycle",
        }

    def environment(self) -> dict[str, str]:
        """Variables of every process of the stack, on top of the caller's own."""
        keys, databases = self.secrets, self.database_urls
        variables = {
            # `down` finds every process of this stack by it, whatever became of the supervisor.
            "ML_LIFECYCLE_STACK": str(self.root),
            # Airflow's process titles would overwrite that mark otherwise.
            "SPT_NOENV": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            # Proxies must not see loopback traffic, the Kubernetes client's included.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "AIRFLOW_HOME": str(self.airflow_home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            # SQLite: 4 to 8; at 32 its writers lock each other out.
            "AIRFLOW__CORE__PARALLELISM": "4" if self.postgres is None else "8",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
                f"{name}:{role}" for name, role in self.users.items()
            ),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.root / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": databases["airflow"],
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.ports.airflow),
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": keys["api"],
            "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            # A task whose process ends a little after its sockets is noticed at the next heartbeat only.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
            # Runs are looked at in turn, so many a loop (20 by default). Runs that wait for a person take
            # their turns too: with 500 of them another run's next step waited 26 loops, 11 seconds.
            "AIRFLOW__SCHEDULER__MAX_DAGRUNS_PER_LOOP_TO_SCHEDULE": "100",
            # Tasks of a scheduler that died are taken up again within a minute, not five.
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
            # Tasks wait two minutes or more for an API server that starts again; with Airflow's own fifteen
            # seconds or so each attempt fails, and a run's retries are gone before it answers.
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "30",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "10",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.airflow_home / "logs"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Not on its command line, which every user of the machine can read.
            "MLFLOW_BACKEND_STORE_URI": databases["mlflow"],
            "FEAST_USAGE": "False",
            "DO_NOT_TRACK": "1",
        }
        for connection_id, connection in self.connections().items():
            variables[f"AIRFLOW_CONN_{connection_id.upper()}"] = json.dumps(connection)
        return variables


def _lake(folder: Path) -> dict[str, Any]:
    return {"conn_type": "ml_lifecycle_lake", "extra": {"url": str(folder)}}
