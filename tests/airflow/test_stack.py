"""The stack's ports, secrets, environment and configuration; and that nothing of it can hide."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from postgres_kit import PostgresServer
from sqlalchemy import make_url
from supervisor.options import ServerOptions
from waiting import wait_until

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.settings import Settings
from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook
from ml_lifecycle_airflow.hooks.lake import LakeHook
from ml_lifecycle_airflow.hooks.mlflow import MlflowHook
from ml_lifecycle_airflow.hooks.model_server import ModelServerHook, OnlineStoreHook
from ml_lifecycle_airflow.stack import __main__ as commands
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.config import (
    DATABASES,
    ENVIRONMENTS,
    Ports,
    PortTakenError,
    Stack,
    postgres_from_environment,
)
from ml_lifecycle_airflow.stack.supervise import StackError


def free_ports() -> Ports:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in Ports.__dataclass_fields__]
    numbers = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return Ports(*numbers)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(root=tmp_path / "a run, 100% %(name)s", ports=free_ports())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_taken_port_is_named_with_the_variable_that_moves_it() -> None:
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports.mlflow)), pytest.raises(PortTakenError) as raised:
        ports.check_free()
    message = str(raised.value)
    assert f"port {ports.mlflow} (mlflow) is taken" in message
    assert "ML_LIFECYCLE_PORT_MLFLOW=" in message
    ports.check_free()


def test_a_taken_port_stops_the_start_before_anything_is_written(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.ports.pods)), pytest.raises(PortTakenError):
        supervise.start(stack, lambda text: None)
    assert not stack.root.exists()


@pytest.fixture(autouse=True)
def no_ports_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fields(Ports):
        monkeypatch.delenv(f"ML_LIFECYCLE_PORT_{name.name.upper()}", raising=False)


def test_ports_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Ports.__dataclass_fields__:
        monkeypatch.delenv(f"ML_LIFECYCLE_PORT_{name.upper()}", raising=False)
    monkeypatch.setenv("ML_LIFECYCLE_PORT_AIRFLOW", "18080")
    assert Ports.from_environment() == Ports(airflow=18080)


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "80.5"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ML_LIFECYCLE_PORT_PODS", text)
    with pytest.raises(LifecycleError, match=r"ML_LIFECYCLE_PORT_PODS='.*' is not a port"):
        Ports.from_environment()


def test_a_port_s_variable_that_is_misspelt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_LIFECYCLE_PORT_AIRFLW", "18080")
    near = "ML_LIFECYCLE_PORT_AIRFLW is no port's: did you mean 'ML_LIFECYCLE_PORT_AIRFLOW'?; allowed: "
    with pytest.raises(LifecycleError, match=re.escape(near)):
        Ports.from_environment()


def test_a_second_up_prints_where_the_stack_runs(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supervise.write_configuration(stack)
    monkeypatch.setattr(commands, "_stack", lambda name: replace(stack, ports=Ports()))
    environment = {**os.environ, "ML_LIFECYCLE_STACK": str(stack.root)}
    process = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        wait_until(lambda: supervise.processes(stack) == [process.pid], "the process with the stack's mark")
        assert commands.up() == 0
    finally:
        process.kill()
        process.wait()
    printed = capsys.readouterr().out
    assert "already running" in printed
    assert f"Airflow  {stack.airflow_url} " in printed
    assert f"MLflow   {stack.mlflow_url}\n" in printed
    command = Path(sys.executable).with_name("ml-lifecycle")
    assert f"ask      . {shlex.quote(str(stack.settings_file))}; {command} live\n" in printed


def test_a_folder_that_cannot_be_made_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    beneath = Stack(root=tmp_path / "file" / "run", ports=free_ports())
    monkeypatch.setattr(commands, "_stack", lambda name: beneath)
    monkeypatch.setattr(commands.signal, "signal", lambda *_: None)  # the test's own process keeps its own
    assert commands.main(["up"]) == 1
    assert capsys.readouterr().err.startswith(f"error: [Errno 20] Not a directory: '{beneath.root}")


def test_two_processes_on_one_port_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_LIFECYCLE_PORT_MLFLOW", "8080")
    with pytest.raises(LifecycleError, match="airflow and mlflow both have port 8080"):
        Ports.from_environment()


def test_secrets_are_private_made_once_and_of_this_stack_only(stack: Stack, tmp_path: Path) -> None:
    first = stack.secrets
    assert stack.secrets == first
    assert mode(stack.root / "secrets.json") == 0o600
    other = Stack(root=tmp_path / "other", ports=stack.ports).secrets
    assert all(first[name] != other[name] for name in first)
    assert len(set(first.values())) == len(first)


def test_a_shell_that_sources_the_settings_file_knows_where_the_state_is(stack: Stack) -> None:
    supervise.write_configuration(stack)
    sourced = f". {shlex.quote(str(stack.settings_file))} && env --null"
    done = subprocess.run(
        ["bash", "-c", sourced], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    variables = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    assert Settings.read(variables) == stack.settings
    assert Settings.read(variables).environment_lakes.keys() == set(ENVIRONMENTS)


def test_whatever_holds_a_secret_on_disk_is_private(stack: Stack) -> None:
    supervise.write_configuration(stack)
    values = set(stack.secrets.values())
    holders = [
        path
        for path in stack.root.rglob("*")
        if path.is_file() and any(value in path.read_text() for value in values)
    ]
    assert {path.name for path in holders} >= {"secrets.json", "passwords.json", "pods", *ENVIRONMENTS}
    assert {path.name: mode(path) for path in holders if mode(path) != 0o600} == {}
    assert mode(stack.root / "pod-secrets") == 0o700


def test_no_command_line_holds_a_secret(stack: Stack) -> None:
    values = set(stack.secrets.values())
    for name, command in supervise._programs(stack).items():
        assert not any(value in part for part in command for value in values), name


@pytest.fixture
def on_postgres(tmp_path: Path) -> Stack:
    url = make_url("postgresql://me:p%40ss%2Fw%25@db.internal:6432")
    return Stack(root=tmp_path / "on postgres", ports=free_ports(), postgres=url)


def test_the_databases_can_be_on_a_postgresql_server(on_postgres: Stack) -> None:
    environment = on_postgres.environment()
    server = "postgresql+psycopg2://me:p%40ss%2Fw%25@db.internal:6432"
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"{server}/airflow"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"{server}/mlflow"
    assert on_postgres.database_url == f"{server}/lifecycle"
    assert not [value for value in environment.values() if "sqlite" in value and "online_store" not in value]


def test_the_lifecycle_database_s_connection_leads_to_the_same_server(
    on_postgres: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in on_postgres.environment().items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)
    assert LifecycleDatabaseHook().url() == on_postgres.database_url
    # Airflow masks this field in its logs; it would not know of one within a URL.
    assert LifecycleDatabaseHook().get_connection("ml_lifecycle_database").password == "p@ss/w%"


def test_a_database_s_password_is_in_no_command_and_in_one_private_file(on_postgres: Stack) -> None:
    supervise.write_configuration(on_postgres)
    private = on_postgres.settings_file
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    files = [path.read_text() for path in on_postgres.root.rglob("*") if path.is_file() and path != private]
    commands = [" ".join(command) for command in supervise._programs(on_postgres).values()]
    shown = [*files, *commands, repr(on_postgres)]
    assert len(shown) > 10
    assert not [text for text in shown if "p@ss/w%" in text or "p%40ss" in text]


def test_a_postgresql_server_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_LIFECYCLE_POSTGRES", raising=False)
    assert postgres_from_environment() is None
    monkeypatch.setenv("ML_LIFECYCLE_POSTGRES", "postgresql://me:p%40ss@db:6432")
    url = postgres_from_environment()
    assert url is not None
    assert (url.username, url.password, url.host, url.port) == ("me", "p@ss", "db", 6432)


@pytest.mark.parametrize(
    "text",
    ["secret", "mysql://me:secret@db", "postgresql://me:secret@db/name", "postgresql://me:secret@db:x"],
)
def test_what_is_no_postgresql_server_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ML_LIFECYCLE_POSTGRES", text)
    with pytest.raises(
        LifecycleError, match=r"ML_LIFECYCLE_POSTGRES names no .* write postgresql:"
    ) as raised:
        postgres_from_environment()
    assert "secret" not in "".join(traceback.format_exception(raised.value))


def test_missing_databases_are_made_on_the_server(tmp_path: Path, postgres: PostgresServer) -> None:
    stack = Stack(root=tmp_path, ports=Ports(), postgres=make_url(postgres.url))
    said: list[str] = []
    postgres.run("postgres", "CREATE DATABASE mlflow")
    try:
        supervise._create_databases(stack, said.append)
        assert said == [f"making the database {name} on PostgreSQL" for name in ("airflow", "lifecycle")]
        supervise._create_databases(stack, said.append)
        assert len(said) == 2
        Database(stack.database_url).migrate()
    finally:
        for name in DATABASES:
            postgres.run("postgres", f"DROP DATABASE {name}")


def test_a_server_that_does_not_answer_is_named_without_its_password(on_postgres: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = make_url(f"postgresql://me:p%40ss@127.0.0.1:{port}")
    mistyped = replace(on_postgres, postgres=url)
    with pytest.raises(StackError, match=r"me:\*\*\*@127\.0\.0\.1.* refused") as raised:
        supervise.start(mistyped, print)
    assert "p@ss" not in str(raised.value)
    supervise._check_databases(on_postgres)  # the right one is as free as before


def test_lakes_keep_to_the_databases_they_began_with(stack: Stack, on_postgres: Stack) -> None:
    moved = replace(on_postgres, root=stack.root)
    for began, would in ((stack, moved), (on_postgres, replace(stack, root=on_postgres.root))):
        supervise._check_databases(began)
        supervise._check_databases(would)  # neither has begun yet
        supervise._keep_databases(began)
        supervise._check_databases(began)
        with pytest.raises(LifecycleError, match=r"began with its databases on .* move .* away") as raised:
            supervise._check_databases(would)
        assert "p@ss" not in str(raised.value)


def test_everything_that_listens_binds_loopback(stack: Stack) -> None:
    environment, programs = stack.environment(), supervise._programs(stack)
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    for name in ("mlflow", "localpods", "api-server", *(f"server-{name}" for name in ENVIRONMENTS)):
        command = programs[name]
        assert command[command.index("--host") + 1] == "127.0.0.1", name
    # These serve logs on 0.0.0.0 otherwise.
    assert "--skip-serve-logs" in programs["scheduler"]
    assert "--skip-serve-logs" in programs["triggerer"]


def test_proxies_do_not_see_loopback(stack: Stack) -> None:
    environment = stack.environment()
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert "127.0.0.1" in environment["NO_PROXY"].split(",")


def test_every_connection_of_the_example_is_one_its_hook_takes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.environment().items():
        if name.startswith("AIRFLOW_CONN_"):
            monkeypatch.setenv(name, value)
    assert LakeHook().get_conn().url == str(stack.lake)
    LifecycleDatabaseHook().get_conn().migrate()
    assert (stack.root / "lifecycle.db").exists()
    assert MlflowHook().get_conn() == stack.mlflow_url
    for name in ENVIRONMENTS:
        assert LakeHook(f"{name}_lake").get_conn().url == str(stack.environment_lake(name))
        assert OnlineStoreHook(f"{name}_online_store").get_conn() == stack.online_store(name)
        ModelServerHook(f"{name}_server").get_conn()
    assert stack.online_store("staging") != stack.online_store("production")
    assert stack.environment_lake("staging") != stack.environment_lake("production")


def parsed(stack: Stack) -> dict[str, Any]:
    """The configuration as supervisord itself reads it, by program."""
    options = ServerOptions()
    options.realize(args=["-c", str(supervise.write_configuration(stack))])
    return {
        config.name: config for group in options.process_group_configs for config in group.process_configs
    }


def test_supervisord_reads_what_was_written_percent_signs_and_blanks_included(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills in ``%(…)s`` everywhere, and ``sqlite:///a%20b`` is none of that."""
    written = {**supervise._programs(stack), "odd": [sys.executable, "-c", "print('100%')", "a%20b"]}
    monkeypatch.setattr(supervise, "_programs", lambda stack: written)
    programs = parsed(stack)
    assert set(programs) == set(written)
    for name, command in written.items():
        assert shlex.split(programs[name].command) == command
        assert programs[name].directory == str(stack.root)
        assert programs[name].stdout_logfile == str(stack.logs / f"{name}.log")


@pytest.mark.parametrize("name", ['a "run"', "a\nrun", "a ;run", "a #1", "a\\run", "%(here)s"])
def test_a_folder_that_supervisord_cannot_be_told_of_is_refused(stack: Stack, name: str) -> None:
    odd = replace(stack, root=stack.root.parent / name)
    with pytest.raises(
        supervise.StackPathError, match="move the checkout, or Python, to a folder whose name"
    ):
        supervise.write_configuration(odd)


def test_the_status_shows_each_process_with_its_state(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {
        "works": [sys.executable, "-c", "import time; time.sleep(60)"],
        "fails": ["false"],
    }
    monkeypatch.setattr(supervise, "_programs", lambda stack: programs)
    monkeypatch.setattr(commands, "_stack", lambda name: replace(stack, root=stack.root / name))
    assert commands.status() == 0
    assert capsys.readouterr().out == "no stack was ever started here: make up starts one\n"

    running = replace(stack, root=stack.root / ".run")
    configuration = supervise.write_configuration(running)
    assert supervise.program_states(running) == []
    assert commands.status() == 0
    assert capsys.readouterr().out == f"{running.root}: stopped\n"
    subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)],
        env=os.environ | {"ML_LIFECYCLE_STACK": str(running.root)},
        check=True,
    )
    try:
        wanted = (
            re.escape(f"{running.root}:\n")
            + r"  fails  (BACKOFF|FATAL) +\S.*\n"
            + r"  works  RUNNING   pid \d+, uptime \d:\d\d:\d\d\n"
        )

        def shown() -> bool:
            # One look at a time: what fails is started again and again, and being asked wakes supervisord.
            code, out = commands.status(), capsys.readouterr().out
            return code == 1 and re.fullmatch(wanted, out) is not None

        wait_until(shown, "one runs and one has failed")
    finally:
        supervise.stop(running, lambda text: None)
    assert commands.status() == 0


def test_every_path_in_the_configuration_is_absolute(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    path = supervise.write_configuration(stack)
    read = configparser.RawConfigParser()
    read.read(path)
    keys = ("logfile", "pidfile", "childlogdir", "file", "directory", "stdout_logfile")
    found = [value for section in read.values() for key, value in section.items() if key in keys]
    assert len(found) > 10
    assert [value for value in found if not os.path.isabs(value)] == []


def test_a_dead_process_is_restarted_and_a_stopped_one_takes_its_children(stack: Stack) -> None:
    for config in parsed(stack).values():
        assert config.autorestart
        assert config.stopasgroup
        assert config.killasgroup


def test_the_socket_s_path_is_short_enough_for_the_kernel(tmp_path: Path) -> None:
    deep = Stack(root=tmp_path.joinpath(*["deep" * 5] * 8), ports=Ports())
    assert len(str(supervise._socket(deep))) < 108
    near = Stack(root=Path("/run/near"), ports=Ports())
    assert supervise._socket(near) == Path("/run/near/supervisor.sock")


def test_the_users_can_log_in_with_the_printed_passwords(stack: Stack) -> None:
    supervise.write_configuration(stack)
    environment = stack.environment()
    file = Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    passwords = json.loads(file.read_text())
    users = [
        user.split(":")[0] for user in environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"].split(",")
    ]
    assert passwords == {user: stack.password(user) for user in users}


SLEEPER = """
import subprocess, sys, time
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, __file__], start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleepers(stack: Stack, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """A process of this stack with a child in a session of its own, and one of another stack."""
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | {"ML_LIFECYCLE_STACK": mark},
            stdout=subprocess.PIPE,
            text=True,
        )
        for mark, arguments in ((str(stack.root), ["parent"]), (f"{stack.root}-other", []))
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_stop_finds_by_its_mark_whatever_the_supervisor_left(
    stack: Stack, sleepers: list[subprocess.Popen[str]]
) -> None:
    ours, other = sleepers
    # Found even though its parent never was supervisord, and the child left its session.
    wait_until(lambda: len(supervise.processes(stack)) == 2)
    assert ours.pid in supervise.processes(stack)
    said: list[str] = []
    assert supervise.stop(stack, said.append) == 2
    assert said == ["stopped; 2 processes had to be killed"]
    assert supervise.processes(stack) == []
    assert ours.wait(10) == -9
    assert other.poll() is None


def test_a_stale_pid_file_stops_nobody_else(stack: Stack, sleepers: list[subprocess.Popen[str]]) -> None:
    """The pid in it may be another process's by now."""
    ours, other = sleepers
    stack.root.mkdir(parents=True, exist_ok=True)
    ours.kill()
    ours.wait()
    wait_until(lambda: ours.pid not in supervise.processes(stack))
    (stack.root / "supervisord.pid").write_text(f"{other.pid}\n")
    supervise.stop(stack, lambda text: None)
    assert other.poll() is None


TITLED = """
import sys, time
from setproctitle import setproctitle
setproctitle("airflow scheduler -- " + "LocalExecutor worker " * 200)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_that_sets_its_title_is_found_too(stack: Stack) -> None:
    """Airflow's do; a title overwrites the environment that ``/proc`` shows, unless told not to."""
    process = subprocess.Popen(
        [sys.executable, "-c", TITLED],
        env=os.environ | stack.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        assert supervise.processes(stack) == [process.pid]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_stopping_what_never_ran_is_nothing(stack: Stack) -> None:
    said: list[str] = []
    assert supervise.stop(stack, said.append) == 0
    assert said == ["stopped"]
