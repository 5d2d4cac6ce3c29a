"""The servers that are compared: how each is started on its core, held still while others run, and ended."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from answers import Pool, make_pool, verify
from load import closed_loop
from wire import V2, Bento, Mlflow, Protocol

from ml_lifecycle.adapters.lake import Lake
from models import Model, release

PEERS = Path(__file__).parent / "peers"
TOKEN_VARIABLE = "ML_LIFECYCLE_SERVER_TOKEN"
START_SECONDS = 60.0
STOP_SECONDS = 40.0

Address = tuple[str, int]


class StartError(Exception):
    """A server did not start, or answers wrongly. Its message ends with what the server printed."""


@dataclass(frozen=True)
class Kind:
    """A server to compare with.

    :param title: as its makers call it
    :param script: the file in ``peers/`` that starts it; takes the ONNX file and the port
    :param path: what is posted to; ``{model}`` stands for the model's name
    :param product: whether it is a model server that one would choose, and not a floor
    """

    name: str
    title: str
    script: str
    path: str
    protocol: Protocol
    product: bool = True


_V2 = "/v2/models/{model}/infer"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("mlserver", "MLServer", "on_mlserver.py", _V2, V2()),
        Kind("kserve", "KServe's Python server", "on_kserve.py", _V2, V2()),
        Kind("mlflow", "mlflow models serve", "on_mlflow.py", "/invocations", Mlflow()),
        Kind("bentoml", "BentoML", "on_bentoml.py", "/predict", Bento()),
        Kind("bare", "bare Granian application", "bare.py", _V2, V2(), product=False),
    )
}
OURS = "ours"


def cores() -> tuple[int, int]:
    """The server's core and the generator's.

    :raises SystemExit: there are not two. Retry: no.
    """
    own = sorted(os.sched_getaffinity(0))
    if len(own) < 2:
        raise SystemExit("one core for the server and one for the load generator are needed")
    return own[0], own[1]


class Process:
    """A command and its children, held to one core, what it prints kept in a file."""

    def __init__(
        self, command: Sequence[str], core: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    def cpu_seconds(self) -> float:
        """What it and its children have spent so far."""
        return sum(ticks for _, ticks in self._family().values()) / os.sysconf("SC_CLK_TCK")

    def pause(self) -> None:
        """Hold it still: an idle server's housekeeping is not to slow another's run."""
        _signal(self._family(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        _signal(self._family(), signal.SIGCONT)

    def stop(self) -> None:
        """End it in order; what is left of it after :data:`STOP_SECONDS` with force."""
        family = self._family()
        _signal(family, signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _signal(family, signal.SIGKILL)

    def _family(self) -> dict[int, tuple[int, int]]:
        """It and its descendants, which need not be in its group: process → parent and CPU ticks."""
        every = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                # Behind the name, which may hold anything: state, parent, … user and system ticks.
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            every[int(stat.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
        family = {pid: every[pid] for pid in (self.pid,) if pid in every}
        while more := {pid: seen for pid, seen in every.items() if seen[0] in family and pid not in family}:
            family |= more
        return family


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Server:
    """One server with one model, ready to be asked.

    :param kind: None for ours
    :param lake: for ours: where the model is published, and the prediction log is written
    """

    def __init__(self, model: Model, core: int, folder: Path, kind: Kind | None, python: str) -> None:
        self.model = model
        self.protocol = kind.protocol if kind else V2()
        self.path = (kind.path if kind else _V2).format(model=model.name)
        self.headers: Mapping[str, str] = {}
        self.answered_rows = 0
        self.address = "127.0.0.1", free_port()
        if kind is None:
            command, environment = self._ours(folder)
        else:
            file = folder / f"{model.name}.onnx"
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(model.data)
            command = [python, str(PEERS / kind.script), str(file), str(self.address[1])]
            environment = {"PYTHONPATH": ""}  # its own environment, nothing of ours
        self.process = Process(command, core, folder, environment)

    def _ours(self, folder: Path) -> tuple[list[str], Mapping[str, str]]:
        token = secrets.token_hex(16)
        self.headers = {"Authorization": f"Bearer {token}"}
        self.lake = Lake(str(folder / "lake"))
        release(self.lake, self.model)
        options = ("--lake", self.lake.url, "--environment", "bench", "--port", str(self.address[1]))
        return [sys.executable, "-m", "ml_lifecycle.serving", *options], {TOKEN_VARIABLE: token}

    def pool(self, protocol: Protocol, size: int, count: int, seed: int) -> Pool:
        """Requests for this server."""
        return make_pool(self.model, protocol, self.path, self.headers, size, count, seed)

    def wait(self) -> None:
        """Until a row is answered, and rightly.

        :raises StartError: it ended, or does neither in time. Retry: no.
        """
        pool = self.pool(self.protocol, 1, 1, 0)
        deadline, said = time.monotonic() + START_SECONDS, "nothing"
        while time.monotonic() < deadline and self.process.running:
            try:
                run = closed_loop(self.address, pool.requests, 1, 1.0)
            except OSError:
                time.sleep(0.2)
                continue
            verdict = verify(run, {"": pool}, self.protocol)
            if verdict.ok:
                self.answered_rows += 1
                return
            said = str(verdict)
            time.sleep(0.2)
        ended = "runs" if self.process.running else "has ended"
        raise StartError(f"it {ended} and answered {said}\n{self.process.tail}")

    def log_rows(self) -> int:
        """Rows in the prediction log, of ours: to be asked when the server has ended."""
        from pyarrow.parquet import read_metadata

        paths = [self.lake.full_path(path) for path in self.lake.list("predictions")]
        return sum(read_metadata(path).num_rows for path in paths)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def constant(core: int, folder: Path) -> Iterator[Address]:
    """A server that answers everything with the same bytes, as fast as Python can."""
    address = "127.0.0.1", free_port()
    process = Process([sys.executable, str(PEERS / "constant.py"), str(address[1])], core, folder, {})
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(address).close()
                break
            except OSError:
                if time.monotonic() > deadline or not process.running:
                    raise
                time.sleep(0.05)
        yield address
    finally:
        process.stop()
