"""A PostgreSQL server of the tests' own: made, started and removed again, on loopback with a password."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg2

# Unlike UTC and unlike the tests' own offsets, so that a time that loses its offset is found out.
_TIMEZONE = "Asia/Kathmandu"


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    :param url: with user and password, without a database
    """

    url: str
    password: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def databases(self) -> Iterator[Callable[[], str]]:
        """A function that makes an empty database and returns its URL; they are dropped in the end.

        Dropping one fails while somebody is connected: a connection left behind fails the test that left it.
        """
        made: list[str] = []

        def create() -> str:
            name = f"test_{next(self._numbers)}"
            self.run("postgres", f"CREATE DATABASE {name}")
            made.append(name)
            return f"{self.url}/{name}"

        try:
            yield create
        finally:
            for name in made:
                self.run("postgres", f"DROP DATABASE {name}")

    def run(self, database: str, statement: str) -> None:
        """Execute SQL outside a transaction."""
        connection = psycopg2.connect(f"{self.url}/{database}")
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


def postgres_binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; Debian keeps it off the PATH, one a major version."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    return newest and newest.parent


@contextmanager
def running_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """A server on a free port; its processes and files are gone afterwards."""
    # Not pytest's tmp_path: the server refuses to run as root, and nobody else may enter that.
    with tempfile.TemporaryDirectory(prefix="ml-lifecycle-postgres-") as name:
        home, user = Path(name), _unprivileged_user()
        if user is not None:
            shutil.chown(home, user)
        # With all that must be percent-encoded in a URL, or means something to a shell or an ini file.
        data, password = home / "data", f"p@ss/w:%d$HOME {secrets.token_urlsafe(9)}"
        password_file = home / "password"
        password_file.write_text(password)
        password_file.chmod(0o644)
        subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", data, "--username", "owner", "--pwfile", password_file),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            user=user,
            cwd=home,
        )
        port = _free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "timezone": _TIMEZONE,
            "max_connections": 200,
            # The files are thrown away: what a crash of the machine would leave of them does not matter.
            "fsync": "off",
        }
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    binaries / "postgres",
                    *("-D", data),
                    *(f"--{key}={value}" for key, value in settings.items()),
                ],
                stdout=log,
                stderr=log,
                user=user,
                cwd=home,
                preexec_fn=_end_with_parent,
            )
        try:
            server = PostgresServer(
                f"postgresql://owner:{quote(password, safe='')}@127.0.0.1:{port}", password
            )
            _wait_until_ready(server, process, home / "log")
            yield server
        finally:
            # At once, without writing down what is thrown away anyway; its children end with it.
            process.send_signal(signal.SIGQUIT)
            process.wait(30)


def _end_with_parent() -> None:
    """Have the kernel stop this process when the tests are killed (prctl's PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _unprivileged_user() -> str | None:
    """Whom a server runs as that root starts; None if the tests run as somebody else anyway."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.run("postgres", "SELECT 1")
            return
        except psycopg2.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
