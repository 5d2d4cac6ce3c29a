from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.__main__ import EXIT_PORT, EXIT_USAGE, TOKEN_VARIABLE
from ml_lifecycle.serving.server import listen
from tests.serving.conftest import Built, Publisher, Server, logged, row


def run(*arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if token is not None:
        environment[TOKEN_VARIABLE] = token
    command = [sys.executable, "-m", "ml_lifecycle.serving", "--environment", "staging", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("token", [None, "", " \n"])
def test_it_refuses_to_start_without_a_token(tmp_path: Path, token: str | None) -> None:
    result = run("--lake", str(tmp_path), token=token)
    assert result.returncode == EXIT_USAGE
    assert result.stderr.count("\n") == 1
    assert TOKEN_VARIABLE in result.stderr


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--lake", str(tmp_path), "--port", str(port), token="token")
    assert result.returncode == EXIT_PORT
    assert result.stderr == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_is_none_is_one_clear_line(tmp_path: Path, option: str, port: str) -> None:
    result = run("--lake", str(tmp_path), f"{option}={port}", token="token")
    assert result.returncode == EXIT_USAGE
    told = result.stderr.splitlines()[-1]
    assert told.endswith(f"argument {option}: must be a whole number from 0 to 65535, got {port!r}")


def test_the_start_line_names_every_port(publisher: Publisher, start: Callable[..., Server]) -> None:
    server = start(publisher.lake, "--grpc-port", "0")
    host, _, port = server.grpc.partition(":")
    assert host == "127.0.0.1"
    socket.create_connection((host, int(port)), timeout=10).close()
    assert server.stop() == 0


@pytest.mark.full
def test_who_connects_and_says_nothing_does_not_keep_it(
    publisher: Publisher, start: Callable[..., Server]
) -> None:
    """gRPC waits 20 s for a first word."""
    server = start(publisher.lake, "--grpc-port", "0")
    host, _, port = server.grpc.partition(":")
    with socket.create_connection((host, int(port)), timeout=10):
        assert server.stop() == 0


def test_a_lake_without_anything_published_is_said_once(
    tmp_path: Path, built: dict[str, Built], start: Callable[..., Server]
) -> None:
    lake = Lake(str(tmp_path / "later"))
    missing, empty = (
        f"the lake {lake.url} does not exist: there is no such folder",
        f"the lake {lake.url} has nothing published",
    )
    server = start(lake, "--poll-seconds", "0.01")
    with server.http() as http:

        def trouble() -> str | None:
            found: str | None = http.get("/v2").json()["lake_error"]
            return found

        wait_until(lambda: trouble() == missing)
        assert http.get("/v2/health/ready").status_code == 200, "it may be filled later"
        lake.write_bytes("a-file", b"")
        wait_until(lambda: trouble() == empty)
        Publisher(lake, built)("late", "binary", 1, "1")
        wait_until(lambda: trouble() is None)
    assert server.stop() == 0
    warnings = [line.partition("routes: ")[2] for line in server.errors if " WARNING " in line]
    assert warnings == [f"{one}; it is looked at again and again\n" for one in (missing, empty)]


def test_a_lake_that_cannot_be_looked_at_is_said_once(tmp_path: Path, start: Callable[..., Server]) -> None:
    (tmp_path / "a-file").write_bytes(b"")
    server = start(Lake(str(tmp_path / "a-file")), "--poll-seconds", "0.01")
    with server.http() as http:
        wait_until(lambda: http.get("/v2").json()["lake_error"])
        assert "a-file cannot be looked at: NotADirectoryError" in http.get("/v2").json()["lake_error"]
        assert http.get("/v2/health/ready").status_code == 503
    assert server.stop() == 0
    assert len([line for line in server.errors if " WARNING " in line]) == 1
    assert "Traceback" not in "".join(server.errors)


def test_a_token_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    result = run("--lake", str(tmp_path), "--token-file", str(tmp_path / "none"))
    assert result.returncode == EXIT_USAGE
    assert result.stderr.count("\n") == 1
    assert "none" in result.stderr


def test_the_token_can_come_from_a_file(
    publisher: Publisher, start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from the file\n")
    server = start(publisher.lake, "--token-file", str(tmp_path / "token"))
    with httpx.Client(base_url=server.url) as http:
        for token, status in (("from the file", 200), ("a token of the tests", 401)):
            response = http.get("/v2", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_orderly_stop_exits_with_0(
    publisher: Publisher, start: Callable[..., Server], number: int
) -> None:
    server = start(publisher.lake)
    assert server.stop(signal.Signals(number)) == 0


def test_vectors_need_neither_pandas_nor_feast(publisher: Publisher, start: Callable[..., Server]) -> None:
    """They would take an idle server from 75 to 200 MiB; native libraries show in the memory map."""
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake, "--online-store", "sqlite:////nowhere.db")
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
        client.post("late", row())
    wait_until(lambda: len(logged(publisher.lake)) == 1)
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "/onnxruntime/" in mapped
    for package in ("pandas", "pyarrow", "sklearn", "google/_upb"):
        assert f"/{package}/" not in mapped


def test_no_answer_waits_for_the_acknowledgement_of_its_own_head() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
