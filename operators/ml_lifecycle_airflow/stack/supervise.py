"""Start, watch and stop the stack's processes with supervisord."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle_airflow.stack.config import DATABASES, ENVIRONMENTS, Stack

PRELOAD = """\"\"\"Imports what tasks need once, in the process they are forked from.\"\"\"

from ml_lifecycle_airflow.preload import preload

preload()
"""

_UNREADABLE = re.compile(r"[\"\\\n\r]|\s[;#]|%\(here\)s")


class StackError(LifecycleError):
    """A process of the stack did not come up. Retry: perhaps; the message names its log."""

    retryable = True


class StackPathError(LifecycleError):
    """A path cannot stand in supervisord's configuration. Retry: no, use another folder."""


def _programs(stack: Stack) -> dict[str, list[str]]:
    python, loopback = sys.executable, "127.0.0.1"
    secret_files = stack.root / "tokens"
    programs = {
        "mlflow": [
            *(python, "-m", "ml_lifecycle_airflow.stack.mlflow_server", "--host", loopback),
            *("--port", str(stack.ports.mlflow), "--workers", "1", "--serve-artifacts"),
            *("--artifacts-destination", str(stack.root / "mlflow-artifacts")),
        ],
        "localpods": [
            *(python, "-m", "ml_lifecycle.localpods", "--host", loopback, "--port", str(stack.ports.pods)),
            *("--token-file", str(secret_files / "pods"), "--state-dir", str(stack.root / "pods")),
            *("--secrets-dir", str(stack.root / "pod-secrets"), "--stop-pods-on-exit"),
        ],
        "api-server": ["airflow", "api-server", "--host", loopback, "--port", str(stack.ports.airflow)],
        "scheduler": ["airflow", "scheduler", "--skip-serve-logs"],
        "dag-processor": ["airflow", "dag-processor"],
        "triggerer": ["airflow", "triggerer", "--skip-serve-logs"],
    }
    for name in ENVIRONMENTS:
        programs[f"server-{name}"] = [
            *(python, "-m", "ml_lifecycle.serving", "--host", loopback),
            *("--port", str(getattr(stack.ports, name)), "--environment", name),
            *("--grpc-port", str(getattr(stack.ports, f"{name}_grpc"))),
            *("--lake", str(stack.environment_lake(name)), "--online-store", stack.online_store(name)),
            *("--token-file", str(secret_files / name)),
        ]
    return programs


def write_configuration(stack: Stack) -> Path:
    """Write supervisord's configuration, Airflow's and ``ml-lifecycle``'s settings and the token files."""
    for folder in (stack.logs, stack.airflow_home / "config", stack.lake, stack.root / "tokens"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ENVIRONMENTS:
        stack.environment_lake(name).mkdir(parents=True, exist_ok=True)
    (stack.root / "pod-secrets").mkdir(mode=0o700, exist_ok=True)
    (stack.airflow_home / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    keys = stack.secrets
    for name in ("pods", *ENVIRONMENTS):
        _write_private(stack.root / "tokens" / name, keys[name])
    exports = (f"export {name}={shlex.quote(value)}\n" for name, value in stack.settings.variables().items())
    _write_private(stack.settings_file, "".join(exports))  # a database's password may be in it
    passwords = {user: stack.password(user) for user in stack.users}
    _write_private(stack.root / "passwords.json", json.dumps(passwords))
    stack.ports_file.write_text(json.dumps(asdict(stack.ports)))
    root, logs, socket = (_escaped(path) for path in (stack.root, stack.logs, _socket(stack)))
    sections = [
        "[supervisord]\n"
        f"logfile={logs}/supervisord.log\npidfile={root}/supervisord.pid\n"
        f"childlogdir={logs}\nloglevel=info\n",
        f"[unix_http_server]\nfile={socket}\nchmod=0700\n",
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n",
        f"[supervisorctl]\nserverurl=unix://{socket}\n",
    ]
    for name, command in _programs(stack).items():
        quoted = " ".join(f'"{_escaped(part)}"' for part in command)
        sections.append(
            f"[program:{name}]\ncommand={quoted}\ndirectory={root}\n"
            # Of log files alone it fills in names twice.
            f"stdout_logfile={_escaped(logs)}/{name}.log\nredirect_stderr=true\n"
            "stdout_logfile_maxbytes=20MB\nstdout_logfile_backups=1\n"
            "autostart=true\nautorestart=true\nstartsecs=3\nstartretries=5\n"
            "stopasgroup=true\nkillasgroup=true\nstopwaitsecs=20\n"
        )
    path = stack.root / "supervisord.conf"
    path.write_text("\n".join(sections))
    return path


def _escaped(value: object) -> str:
    """As supervisord reads it back: it fills in names after a percent sign, and cuts comments off.

    :raises StackPathError: it cannot be written so that supervisord reads it back. Retry: no.
    """
    text = str(value)
    if _UNREADABLE.search(text):
        raise StackPathError(
            f"supervisord cannot be told of {text!r}: move the checkout, or Python, to a folder whose name "
            "has no quotation mark, backslash, line end or %(here)s, and no ';' or '#' after a blank"
        )
    return text.replace("%", "%%")


def _socket(stack: Stack) -> Path:
    # A unix socket's path may have 107 bytes at most; a deep checkout would pass that.
    path = stack.root / "supervisor.sock"
    if len(str(path)) < 100:
        return path
    from ml_lifecycle.records import digest_of

    return Path("/tmp") / f"ml-lifecycle-{os.getuid()}-{digest_of(str(stack.root))[:12]}.sock"


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def _check_databases(stack: Stack) -> None:
    """Lakes and databases name each other's contents: lakes that began with one keep to it."""
    mark, where = stack.root / "databases", _databases(stack)
    if mark.exists() and (kept := mark.read_text()) != where:
        raise LifecycleError(
            f"{stack.root} began with its databases on {kept} and would now get others on {where}: set or "
            f"unset ML_LIFECYCLE_POSTGRES as it was, or move {stack.root} away to begin anew"
        )


def _keep_databases(stack: Stack) -> None:
    """For :func:`_check_databases`, once they are there: a mistyped server is nobody's beginning."""
    stack.root.mkdir(parents=True, exist_ok=True)
    (stack.root / "databases").write_text(_databases(stack))


def _databases(stack: Stack) -> str:
    return "SQLite" if stack.postgres is None else f"{stack.postgres.host}:{stack.postgres.port or 5432}"


def _create_databases(stack: Stack, say: Callable[[str], None]) -> None:
    """Make what a PostgreSQL server lacks of the stack's databases."""
    if stack.postgres is None:
        return
    from sqlalchemy import NullPool, create_engine, text
    from sqlalchemy.exc import DBAPIError

    engine = create_engine(stack.postgres_url("postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            there = set(connection.scalars(text("SELECT datname FROM pg_database")))
            for name in sorted(set(DATABASES) - there):
                say(f"making the database {name} on PostgreSQL")
                connection.execute(text(f"CREATE DATABASE {name}"))
    except DBAPIError as error:
        raise StackError(f"PostgreSQL at {stack.postgres!r}: {error.orig}") from error


def start(stack: Stack, say: Callable[[str], None]) -> None:
    """Create the databases and start every process; returns when all of them answer.

    :raises PortTakenError: a port is in use. Retry: yes, with another.
    :raises StackPathError: the folder's name cannot be written for supervisord. Retry: no.
    :raises StackError: a process did not come up in five minutes, or PostgreSQL refused. Retry: perhaps.
    :raises LifecycleError: the stack's state belongs to databases elsewhere. Retry: no.
    """
    stack.ports.check_free()
    _check_databases(stack)
    _create_databases(stack, say)
    _keep_databases(stack)
    configuration = write_configuration(stack)
    environment = os.environ | stack.environment()
    say("migrating Airflow's database")
    _run(["airflow", "db", "migrate"], environment, stack.logs / "db-migrate.log")
    from ml_lifecycle.ledger.database import Database

    Database(stack.database_url).migrate()
    say("starting " + ", ".join(_programs(stack)))
    _run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)],
        environment,
        stack.logs / "supervisord-start.log",
    )
    wait_healthy(stack, say)


def _run(command: list[str], environment: dict[str, str], log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise StackError(f"{' '.join(command[:3])} failed with exit code {done.returncode} ({log}):\n{tail}")


def _healthy(stack: Stack) -> Iterator[tuple[str, bool]]:
    import httpx

    def get(url: str) -> httpx.Response | None:
        try:
            return httpx.get(url, timeout=5, trust_env=False)
        except httpx.HTTPError:
            return None

    health = get(f"{stack.airflow_url}/api/v2/monitor/health")
    body = health.json() if health is not None and health.status_code == 200 else {}
    yield "api-server", bool(body)
    for name, key in (
        ("scheduler", "scheduler"),
        ("dag-processor", "dag_processor"),
        ("triggerer", "triggerer"),
    ):
        yield name, (body.get(key) or {}).get("status") == "healthy"
    mlflow = get(f"{stack.mlflow_url}/health")
    yield "mlflow", mlflow is not None and mlflow.status_code == 200
    pods = get(f"http://127.0.0.1:{stack.ports.pods}/api/v1/namespaces/default/pods")
    yield "localpods", pods is not None and pods.status_code == 401  # it answers, and wants a token
    for name in ENVIRONMENTS:
        live = get(f"{stack.server_url(name)}/v2/health/live")
        yield f"server-{name}", live is not None and live.status_code == 200


def wait_healthy(stack: Stack, say: Callable[[str], None], timeout: float = 300) -> None:
    """Return when every process answers.

    :raises StackError: one did not in ``timeout`` seconds. Retry: perhaps; the message names its log.
    """
    deadline = time.monotonic() + timeout
    ready: set[str] = set()
    while True:
        states = dict(_healthy(stack))
        for name in sorted(name for name, up in states.items() if up and name not in ready):
            ready.add(name)
            say(f"{name} is up")
        missing = [name for name, up in states.items() if not up]
        if not missing:
            return
        if time.monotonic() > deadline:
            logs = ", ".join(str(stack.logs / f"{name}.log") for name in missing)
            raise StackError(f"{', '.join(missing)} did not come up in {timeout:.0f} s; see {logs}")
        time.sleep(0.5)


def processes(stack: Stack) -> list[int]:
    """Process ids of everything that carries this stack's mark, the caller excepted."""
    import psutil

    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("ML_LIFECYCLE_STACK") == str(stack.root)
        except psutil.Error:
            continue
        if marked and process.pid not in mine:
            found.append(process.pid)
    return found


@dataclass(frozen=True)
class ProgramState:
    """One program as supervisord sees it: ``RUNNING``, ``STARTING``, ``BACKOFF``, ``FATAL``, ``STOPPED`` …

    :param detail: process id and time since its start, or why it does not run
    """

    name: str
    state: str
    detail: str


def program_states(stack: Stack) -> list[ProgramState]:
    """Every program's state, by name; none when no supervisor answers, or only that it is ending."""
    from xmlrpc.client import Fault, ServerProxy

    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, f"unix://{_socket(stack)}")
    try:
        # The address is not used: the transport knows the socket.
        found: Any = ServerProxy("http://127.0.0.1", transport).supervisor.getAllProcessInfo()
    except (OSError, Fault):
        return []
    finally:
        transport.close()
    states = [ProgramState(each["name"], each["statename"], each["description"]) for each in found]
    return sorted(states, key=lambda state: state.name)


def _supervisor(stack: Stack) -> int | None:
    """Supervisord's process id; a stale file may name somebody else's by now."""
    try:
        pid = int((stack.root / "supervisord.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if pid in processes(stack) else None


def _end_left_pods(stack: Stack) -> None:
    """Pods outlive a killed localpods on purpose, and their environment is their own: ask it to end them."""
    if (stack.root / "pods").exists():
        command = [sys.executable, "-m", "ml_lifecycle.localpods", "--sweep"]
        where = ["--state-dir", str(stack.root / "pods"), "--token-file", str(stack.root / "tokens" / "pods")]
        subprocess.run([*command, *where], check=False, capture_output=True)


def _wait_while(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while holds() and time.monotonic() < deadline:
        time.sleep(0.1)


def stop(stack: Stack, say: Callable[[str], None]) -> int:
    """Stop everything; returns how many processes had to be killed because supervisord left them."""
    supervisor = _supervisor(stack)
    if supervisor is not None:
        os.kill(supervisor, signal.SIGTERM)
        # The process itself: it takes its pid file away, and then still has to end.
        _wait_while(lambda: supervisor in processes(stack), 90)
    left = processes(stack)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    _wait_while(lambda: bool(processes(stack)), 10)
    _end_left_pods(stack)
    say("stopped" + (f"; {len(left)} processes had to be killed" if left else ""))
    return len(left)
