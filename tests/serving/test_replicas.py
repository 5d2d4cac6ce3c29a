"""A release is followed by every server behind a name: real servers, each at an address of its own."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from ml_lifecycle.delivery.checks import Clock, Golden
from ml_lifecycle.delivery.route import Route, publish
from ml_lifecycle.delivery.targets import ModelServers
from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.serving.replicas import Replicas, addresses_of
from tests.serving.conftest import TOKEN, Publisher, Server, row, with_repository

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAME = "models.test"
# What real servers are given to follow in.
LONG = 60.0


@dataclass
class Names:
    """A name service: what it answers next, the last for ever."""

    answers: list[Sequence[str]]
    asked: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass
class Fleet:
    """Servers of one lake at 127.0.0.2 and so on, all on one port."""

    publisher: Publisher
    start: Callable[..., Server]
    servers: dict[str, Server] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(next(iter(self.servers.values())).url.rpartition(":")[2]) if self.servers else 0

    def add(self, *addresses: str, options: tuple[str, ...] = ()) -> Fleet:
        for address in addresses:
            arguments = ("--host", address, "--port", str(self.port), "--poll-seconds", "0.02")
            self.servers[address] = self.start(self.publisher.lake, *arguments, *options)
        return self

    def target(self, *answers: Sequence[str]) -> ModelServers:
        """The servers behind a name that leads to these addresses, one answer after the other."""
        replicas = Replicas(f"http://{NAME}:{self.port}", TOKEN, Names(list(answers)))
        return ModelServers("production", self.publisher.lake, replicas)

    def golden(self, **changes: Any) -> Golden:
        """A row and its answer, as one of the servers gives it."""
        with next(iter(self.servers.values())).client() as client:
            outputs = client.post("late", row())["outputs"]
        expected = {output["name"]: output["data"] for output in outputs}
        return Golden(row(), {**expected, **changes}, 1e-6)


@pytest.fixture
def fleet(publisher: Publisher, start: Callable[..., Server]) -> Fleet:
    return Fleet(publisher, start)


def steps(sleep: Callable[[float], None] = lambda _: None) -> Clock:
    """A clock that moves only when it is waited on."""
    passed = [0.0]

    def wait(seconds: float) -> None:
        sleep(seconds)
        passed[0] += seconds

    return Clock(lambda: NOW, lambda: passed[0], wait)


REAL = Clock(lambda: NOW)


def release(fleet: Fleet, revision: int) -> Route:
    return fleet.publisher("late", "binary", revision, str(revision))


def test_every_server_behind_the_name_follows(fleet: Fleet) -> None:
    release(fleet, 1)
    fleet.add("127.0.0.2", "127.0.0.3")
    target = fleet.target(("127.0.0.2", "127.0.0.3"))
    target.ready()
    route = release(fleet, 2)
    assert target.follow(route, LONG, REAL) == []
    for server in fleet.servers.values():
        with server.client() as client:
            assert client.metadata("late")["parameters"]["route_revision"] == 2
    assert target.check(route, route.champion, fleet.golden(), None) == []


def test_the_one_that_does_not_follow_is_named(fleet: Fleet, tmp_path: Path) -> None:
    release(fleet, 1)
    fleet.add("127.0.0.2", "127.0.0.3", options=with_repository(tmp_path))
    target = fleet.target(("127.0.0.2", "127.0.0.3"))
    assert target.follow(release(fleet, 2), LONG, REAL) == []
    with fleet.servers["127.0.0.3"].http() as http:
        http.post("/v2/repository/models/late/unload", json={}).raise_for_status()
    route = release(fleet, 3)
    assert fleet.target(("127.0.0.2",)).follow(route, LONG, REAL) == []
    (failure,) = target.follow(route, 2.0, steps())
    assert failure.startswith(
        f"http://{NAME}:{fleet.port} at 127.0.0.3 did not come to revision 3 within 2 s: "
    )
    assert "it was unloaded on request" in failure


def test_one_that_has_gone_is_not_waited_for(fleet: Fleet) -> None:
    release(fleet, 1)
    fleet.add("127.0.0.2", "127.0.0.3")
    both, one = ("127.0.0.2", "127.0.0.3"), ("127.0.0.2",)
    assert fleet.target(both).follow(release(fleet, 2), LONG, REAL) == []
    fleet.servers["127.0.0.3"].stop(signal.SIGKILL)
    route = release(fleet, 3)
    assert fleet.target(one).follow(route, LONG, REAL) == []
    # The name service takes a few looks to hear of it.
    waited: list[float] = []
    assert fleet.target(both, both, both, one).follow(route, 5.0, steps(waited.append)) == []
    assert len(waited) == 3
    (failure,) = fleet.target(both).follow(route, 1.0, steps())
    assert "at 127.0.0.3 did not come to revision 3 within 1 s" in failure
    assert "no answer" in failure


def test_one_that_comes_late_follows_before_it_is_ready(fleet: Fleet) -> None:
    release(fleet, 1)
    fleet.add("127.0.0.2")
    route = release(fleet, 2)
    assert fleet.target(("127.0.0.2",)).follow(route, LONG, REAL) == []
    fleet.add("127.0.0.3")
    with fleet.servers["127.0.0.3"].client() as client:
        wait_until(client.ready)
    # One look, which is all that a second of none leaves room for.
    assert fleet.target(("127.0.0.2", "127.0.0.3")).follow(route, 0.0, steps()) == []


def test_nothing_is_served_once_every_server_has_withdrawn_it(fleet: Fleet) -> None:
    route = release(fleet, 1)
    fleet.add("127.0.0.2", "127.0.0.3")
    target = fleet.target(("127.0.0.2", "127.0.0.3"))
    assert target.follow(route, LONG, REAL) == []
    withdrawn = Route("late", "flight_delay", 2, (), "0" * 64, NOW)
    (first, _) = target.follow(withdrawn, 1.0, steps())
    assert first.endswith("at 127.0.0.2 did not withdraw late within 1 s: it still serves")
    publish(fleet.publisher.lake, withdrawn)
    assert target.follow(withdrawn, LONG, REAL) == []


@pytest.mark.parametrize("why", ["nobody", "no such name"])
def test_a_name_that_leads_nowhere_is_one_clear_error(fleet: Fleet, why: str) -> None:
    route = release(fleet, 1)

    def nobody(name: str) -> Sequence[str]:
        if why == "nobody":
            return ()
        raise OSError(-2, "Name or service not known")

    target = ModelServers("production", fleet.publisher.lake, Replicas(f"http://{NAME}:1", TOKEN, nobody))
    reason = "it has no address" if why == "nobody" else "Name or service not known"
    message = f"no model server is ready behind {NAME}: {reason}"
    with pytest.raises(ServerUnavailableError) as raised:
        target.ready()
    assert str(raised.value) == message
    assert raised.value.retryable
    assert target.follow(route, 1.0, steps()) == [
        f"what serves production did not come to revision 1 within 1 s: {message}"
    ]
    assert target.check(route, route.champion, Golden({}, {}, 0.0), None) == [message]


def test_checks_count_where_the_server_is_still_there(fleet: Fleet) -> None:
    route = release(fleet, 1)
    fleet.add("127.0.0.2", "127.0.0.3")
    both, one = ("127.0.0.2", "127.0.0.3"), ("127.0.0.2",)
    assert fleet.target(both).follow(route, LONG, REAL) == []
    golden, wrong = fleet.golden(), fleet.golden(probability_1=[9.0])
    failures = fleet.target(both).check(route, route.champion, wrong, None)
    assert all(failure.startswith("golden rows: ") for failure in failures)
    assert [failure.rpartition(" at ")[2] for failure in failures] == [f"{address})" for address in both]
    fleet.servers["127.0.0.3"].stop(signal.SIGKILL)
    assert fleet.target(both, one).check(route, route.champion, golden, None) == []
    silent = fleet.target(both).check(route, route.champion, golden, None)
    assert silent
    assert all(failure.endswith("at 127.0.0.3)") for failure in silent)
    # The one that was asked has gone, and the one that has come does not answer as it should.
    (failure,) = fleet.target(("127.0.0.3",), one).check(route, route.champion, wrong, None)
    assert failure.startswith("golden rows: ")
    assert failure.endswith("at 127.0.0.2)")


def test_a_client_is_kept_for_as_long_as_its_address_is_there() -> None:
    names = Names([("127.0.0.2", "127.0.0.3"), ("127.0.0.3", "127.0.0.4"), ("127.0.0.3",)])
    replicas = Replicas(f"https://{NAME}:8093", TOKEN, names)
    first, second, third = list(replicas), list(replicas), list(replicas)
    assert [str(client).rpartition(" ")[2] for client in second] == ["127.0.0.3", "127.0.0.4"]
    assert first[1] is second[0] is third[0]
    assert names.asked == [NAME] * 3


def test_names_are_looked_up_as_the_machine_does() -> None:
    assert addresses_of("127.0.0.2") == ["127.0.0.2"]
    assert "127.0.0.1" in addresses_of("localhost")


@contextmanager
def tls_server(folder: Path, name: str) -> Iterator[tuple[int, list[str | None]]]:
    """Answers with TLS at 127.0.0.2, with a certificate of ``name``; its port, and who it was asked for."""
    certificate, key = write_certificate(folder, name)
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"])
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _socket, sni, _context: asked.append(sni)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that it signed itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "certificate.pem", folder / "key.pem"


def test_an_address_is_asked_in_the_name_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path, NAME) as (port, asked):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        with ModelClient(f"https://{NAME}:{port}", TOKEN, address="127.0.0.2") as client:
            assert client.ready()
        assert asked == [NAME, f"{NAME}:{port}"]
        # The certificate is not of the other name, wherever that leads.
        with (
            ModelClient(f"https://other.test:{port}", TOKEN, address="127.0.0.2") as client,
            pytest.raises(ServerUnavailableError, match=r"not valid for 'other.test'"),
        ):
            client.ready()
