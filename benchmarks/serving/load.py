"""A load generator for one core: keep-alive HTTP/1.1 on raw sockets, requests built before, answers kept.

    python benchmarks/serving/load.py

measures the generator itself, against a server on the other core that answers everything with the same bytes.

Nothing but sending, receiving and finding an answer's end happens while it runs; what the answers say is
looked at afterwards (``answers.py``). Closed loop, each connection sends its next request when its answer has
come. Open loop, requests are due at a fixed rate whatever the answers do, and their latency counts from when
they were due, not from when a connection was free: a slow server cannot hide by slowing the generator down.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# No server here is that slow: after it, what is unanswered counts as failed and the run ends.
PATIENCE_SECONDS = 30.0
_CHUNK_BYTES = 1 << 18


class AnswerError(Exception):
    """An answer whose end cannot be told, or more bytes than one answer has. Retry: no."""


@dataclass(frozen=True)
class Run:
    """What a run saw.

    :param answers: the bytes of each answer, head and body, in the order they came
    :param numbers: which request each answer is to, counted from 0
    :param latencies: seconds
    :param seconds: from the first request to the last answer
    :param failures: requests that got no answer: the connection broke, or patience ended
    :param generator_share: of the run's seconds, what the generator spent on its core; at 1 it is the limit,
        not the server. An open loop looks for answers all the time and is always near 1
    """

    answers: Sequence[bytes]
    numbers: Sequence[int]
    latencies: NDArray[np.float64]
    seconds: float
    failures: int
    generator_share: float

    @property
    def per_second(self) -> float:
        """Answered requests a second."""
        return len(self.answers) / self.seconds

    @cached_property
    def milliseconds(self) -> dict[str, float]:
        """Latency: ``p50``, ``p99`` and ``max``."""
        if not len(self.latencies):
            return dict.fromkeys(("p50", "p99", "max"), float("nan"))
        p50, p99, most = np.percentile(self.latencies, (50, 99, 100)) * 1000
        return {"p50": float(p50), "p99": float(p99), "max": float(most)}


def length_of(data: bytes) -> int:
    """How many bytes the answer has that ``data`` begins with; 0 while that cannot be told yet.

    :raises AnswerError: its head says neither a length nor that it is chunked. Retry: no.
    """
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return 0
    at = data.find(b"\r\ncontent-length:", 0, head)
    if at < 0:
        at = data.find(b"\r\nContent-Length:", 0, head)
    if at >= 0:
        return head + 4 + int(data[at + 17 : data.find(b"\r\n", at + 17)])
    if b"chunked" not in data[:head].lower():
        raise AnswerError(f"no length: {data[:200]!r}")
    # JSON, all that comes chunked here, has no line end of its own.
    return len(data) if data.endswith(b"\r\n0\r\n\r\n") else 0


class _Connection:
    """A socket and the answer it waits for."""

    __slots__ = ("began", "file", "length", "number", "parts", "size", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE_SECONDS)
        self.socket.settimeout(None)  # with one, Python asks the kernel twice a call
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.fileno()
        self.number = -1  # of the request that waits for its answer; none
        self.began = 0.0
        self.parts: list[bytes] = []
        self.size = 0  # bytes of all parts
        self.length = 0  # bytes the answer has; not known yet

    def take(self, data: bytes) -> bytes | None:
        """The whole answer, if ``data`` ends it."""
        if self.parts:
            self.parts.append(data)
            self.size += len(data)
            if self.length > self.size:
                return None
            data = b"".join(self.parts)
            self.parts = [data]
        self.length = self.length or length_of(data)
        if len(data) == self.length:
            self.parts, self.length = [], 0
            return data
        if self.length and len(data) > self.length:
            raise AnswerError(f"more than one answer to a request: {data[self.length :][:200]!r}")
        self.parts, self.size = self.parts or [data], len(data)
        return None


class _Load:
    """One run: sends what is due on connections that are idle, and keeps what comes."""

    def __init__(
        self,
        address: tuple[str, int],
        requests: Sequence[bytes],
        connections: int,
        seconds: float,
        rate: float | None,
    ) -> None:
        self._address = address
        self._requests = requests
        self._seconds = seconds
        self._gap = 0.0 if rate is None else 1 / rate
        self._due = len(requests) if rate is None else min(len(requests), round(rate * seconds))
        self._sent = 0
        self._started = 0.0
        self._epoll = select.epoll()
        self._by_file: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        self._answers: list[bytes] = []
        self._numbers: list[int] = []
        self._latencies: list[float] = []
        self._failures = 0
        for _ in range(connections):
            self._connect()

    def run(self) -> Run:
        clock = time.perf_counter
        cpu, self._started = time.process_time(), clock()
        now = heard = self._started
        deadline = self._started + self._seconds
        # An open loop must be there when a request is due, and epoll rounds up to a millisecond.
        timeout = 0.0 if self._gap else 1.0
        self._send_due(now)
        while self._sent < self._due or len(self._idle) < len(self._by_file):
            for file, _ in self._epoll.poll(timeout):
                heard = now = clock()
                if now > deadline and not self._gap:
                    self._due = self._sent
                self._receive(self._by_file[file], now)
                self._send_due(now)
            now = clock()
            if self._gap:
                self._send_due(now)
            if now - heard > PATIENCE_SECONDS:
                self._failures += len(self._by_file) - len(self._idle)
                break
        return Run(
            self._answers,
            self._numbers,
            np.array(self._latencies),
            max(heard - self._started, 1e-9),
            self._failures,
            (time.process_time() - cpu) / (now - self._started),
        )

    def close(self) -> None:
        for connection in self._by_file.values():
            connection.socket.close()
        self._epoll.close()

    def _connect(self) -> None:
        connection = _Connection(self._address)
        self._by_file[connection.file] = connection
        self._epoll.register(connection.file, select.EPOLLIN)
        self._idle.append(connection)

    def _send_due(self, now: float) -> None:
        while self._idle and self._sent < self._due:
            due = self._started + self._sent * self._gap if self._gap else now
            if due > now:
                return
            connection = self._idle.popleft()
            connection.number, connection.began = self._sent, due
            self._sent += 1
            try:
                connection.socket.sendall(self._requests[connection.number])
            except OSError:
                self._replace(connection)

    def _receive(self, connection: _Connection, now: float) -> None:
        try:
            data = connection.socket.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it stands for one that broke a moment ago
            return
        except OSError:
            data = b""
        if not data:
            self._replace(connection)
            return
        answer = connection.take(data)
        if answer is not None:
            self._answers.append(answer)
            self._numbers.append(connection.number)
            self._latencies.append(now - connection.began)
            connection.number = -1
            self._idle.append(connection)

    def _replace(self, connection: _Connection) -> None:
        """Go on with a new connection; what the broken one waited for has failed."""
        if connection.number >= 0:
            self._failures += 1
        else:
            self._idle.remove(connection)
        del self._by_file[connection.file]
        connection.socket.close()
        self._connect()


def _run(load: _Load) -> Run:
    gc.collect()
    gc.disable()  # a pause of the generator's would be a latency of the server's
    try:
        return load.run()
    finally:
        gc.enable()
        load.close()


def closed_loop(address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float) -> Run:
    """Send for ``seconds``, or until no request is left, and wait for the last answers.

    :raises OSError: the server takes no connections. Retry: when it is up.
    :raises AnswerError: what it answers is no HTTP/1.1 answer. Retry: no.
    """
    return _run(_Load(address, requests, connections, seconds, None))


def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], connections: int, seconds: float, rate: float
) -> Run:
    """Send ``rate`` requests a second, evenly, for ``seconds``. Errors as in :func:`closed_loop`."""
    return _run(_Load(address, requests, connections, seconds, rate))


def main() -> int:
    """Print what the generator can do."""
    from servers import constant, cores

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    server_core, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    request = b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: 300\r\n\r\n" + bytes(300)
    with tempfile.TemporaryDirectory() as folder, constant(server_core, Path(folder)) as address:
        for connections in (1, 32):
            run = closed_loop(address, [request] * 1_000_000, connections, 5.0)
            print(
                f"{connections} connections: {run.per_second:,.0f} requests a second, "
                f"p50 {run.milliseconds['p50']:.3f} ms, p99 {run.milliseconds['p99']:.3f} ms, "
                f"{run.generator_share:.0%} of the generator's core: "
                f"it could do {run.per_second / run.generator_share:,.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
