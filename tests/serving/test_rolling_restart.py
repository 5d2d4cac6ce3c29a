"""Servers are replaced one after the other, as a rollout does, while clients ask: no request fails."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import pytest
from waiting import wait_until

from tests.serving.conftest import TOKEN, Publisher, Server, logged, row
from tests.serving.test_grpc import Client as GrpcClient
from tests.serving.test_grpc import free_port

PATH = "/v2/models/late/infer"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CLIENTS = 8


@dataclass
class Service:
    """Leads each new connection to a server, by turns, as Kubernetes' does; open ones stay where they are."""

    servers: list[Server]
    turn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self) -> http.client.HTTPConnection:
        with self.lock:
            self.turn += 1
            url = httpx.URL(self.servers[self.turn % len(self.servers)].url)
        return http.client.HTTPConnection(url.host, url.port or 0, timeout=30)

    def take_out(self, server: Server) -> None:
        with self.lock:
            self.servers.remove(server)

    def take_in(self, server: Server) -> None:
        with self.lock:
            self.servers.append(server)


@dataclass
class Caller:
    """Asks one request after the other, on a connection for as long as the server keeps it."""

    service: Service
    done: threading.Event
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        body = json.dumps(row())
        while not self.done.is_set():
            connection = self.service.connect()
            try:
                connection.connect()
            except ConnectionRefusedError:
                continue  # a server that has ended already: what was sent to it is sent to another
            try:
                self._ask_until_closed(connection, body)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            finally:
                connection.close()

    def _ask_until_closed(self, connection: http.client.HTTPConnection, body: str) -> None:
        while not self.done.is_set():
            connection.request("POST", PATH, body, HEADERS)
            response = connection.getresponse()
            text = response.read()
            if response.status == 200:
                self.answered += 1
            else:
                self.failures.append(f"{response.status}: {text[:200]!r}")
            if response.will_close:
                return


def ready(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/v2/health/ready", timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def ended(server: Server) -> int:
    """The exit code of a server that was told to end. It is told once, as Kubernetes does."""
    server.process.wait(timeout=60)
    return server.stop()


@pytest.mark.full
def test_a_rolling_restart_loses_no_request(publisher: Publisher, start: Callable[..., Server]) -> None:
    publisher("late", "binary", 1, "1")

    def start_one() -> Server:
        server = start(publisher.lake, "--drain-seconds", "2", "--poll-seconds", "0.1")
        wait_until(lambda: ready(server), "the server is ready")
        return server

    service, done = Service([start_one(), start_one()]), threading.Event()
    callers = [Caller(service, done) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(done.set)
        for old in tuple(service.servers):
            service.take_in(start_one())
            before = [caller.answered for caller in callers]
            old.process.send_signal(signal.SIGTERM)
            # Whoever leads requests here learns of it later only.
            wait_until(lambda old=old: not ready(old), "the server says that it leaves")
            service.take_out(old)
            assert ended(old) == 0
            for caller, count in zip(callers, before, strict=True):
                wait_until(
                    lambda caller=caller, count=count: caller.failures or caller.answered > count,
                    "every client goes on",
                )
    for server in service.servers:
        server.process.send_signal(signal.SIGTERM)
    assert [ended(server) for server in service.servers] == [0, 0]
    assert [failure for caller in callers for failure in caller.failures] == []
    # Each answer's row is in the log, those of the servers that ended included.
    assert logged(publisher.lake).height == sum(caller.answered for caller in callers)


def test_a_server_that_was_told_to_end_answers_who_still_comes(
    publisher: Publisher, start: Callable[..., Server]
) -> None:
    publisher("late", "binary", 1, "1")
    port = free_port()
    server = start(publisher.lake, "--drain-seconds", "600", "--grpc-port", str(port))
    wait_until(lambda: ready(server), "the server is ready")
    by_grpc = GrpcClient(port)
    assert by_grpc("ServerReady").ready
    with server.http() as known:
        assert "connection" not in known.post(PATH, json=row()).headers
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not ready(server), "the server says that it leaves")
        # Whoever has a connection is asked to make another one, and whoever makes one is answered.
        assert known.post(PATH, json=row()).headers["connection"] == "close"
        assert known.post(PATH, json=row()).status_code == 200
        assert known.get("/v2/health/live").status_code == 200
    assert not by_grpc("ServerReady").ready
    assert by_grpc("ModelReady", name="late").ready
    by_grpc.channel.close()
    assert server.process.poll() is None
