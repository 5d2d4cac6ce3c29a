"""What no client of ours would send: every row has its answer, and the server goes on as before.

``test_rest.py`` holds the requests that are merely wrong; here are those that mean harm.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import pytest
from live_server import live
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.http import Bounds
from ml_lifecycle.serving.server import ModelServer
from tests.serving.conftest import TOKEN, Built, Publisher, Server, row

INFER = b"/v2/models/late/infer"
GOOD = json.dumps(row()).encode()
MIB = 1024 * 1024
# What it takes to start, a few of the largest requests, and their rows of the log.
MEMORY = 700 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[Server]:
    publish = Publisher(Lake(str(tmp_path_factory.mktemp("bad"))), built)
    publish("late", "binary", 1, "1")
    publish("line", "regression", 1, "1")
    running = Server(publish.lake)
    try:
        with running.client() as client, running.http() as http:
            wait_until(lambda: client.ready("late") and client.ready("line"))
            yield running
            wait_until(lambda: metric(http, "pending") == 0)
            assert metric(http, "lost_total") == 0
            assert memory(running) < MEMORY
    finally:
        assert running.stop() == 0
        assert "Traceback" not in "".join(running.errors)


@pytest.fixture(autouse=True)
def it_still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        with server.http() as http:
            assert http.post(INFER.decode(), json=row()).status_code == 200


def memory(server: Server) -> int:
    """Bytes of it that are in memory and its own."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


def head(
    method: bytes = b"POST",
    path: bytes = INFER,
    length: bytes | int = 0,
    headers: bytes = b"",
    token: str = TOKEN,
) -> bytes:
    length = length if isinstance(length, bytes) else b"%d" % length
    start = b"%s %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % (method, path, token.encode())
    return start + headers + b"content-length: %s\r\n\r\n" % length


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def status_of(client: socket.socket) -> int:
    """The status of the next answer; 0 if the connection ends without one."""
    heard = b""
    with suppress(ConnectionError):  # closed while we were still sending
        while not (found := re.search(rb"HTTP/1\.1 (\d{3}) ", heard)):
            if not (data := client.recv(4096)):
                return 0
            heard += data
        return int(found[1])
    return 0


def send(url: str, parts: Iterable[bytes], end: bool = False) -> int:
    """Send as far as the server lets us; ``end`` closes our side before the answer."""
    with connect(url) as client:
        with suppress(ConnectionError):  # it has heard enough
            for part in parts:
                client.sendall(part)
            if end:
                client.shutdown(socket.SHUT_WR)
        return status_of(client)


def chunked(*chunks: bytes) -> bytes:
    return head().replace(b"content-length: 0", b"transfer-encoding: chunked") + b"".join(chunks)


WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
# name: what is sent, the status; 0: the connection ends.
MALFORMED: dict[str, tuple[bytes, int]] = {
    "random bytes": (bytes(range(256)) * 400, 400),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\x8d" * 200, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown method": (head(b"FOO"), 400),
    "CONNECT": (head(b"CONNECT", b"elsewhere:80"), 400),
    "another method": (head(b"DELETE"), 405),
    "TRACE": (head(b"TRACE"), 405),
    "OPTIONS *": (head(b"OPTIONS", b"*"), 404),
    "a broken URL": (head(path=b"http://[x/v2"), 400),
    "a path that is no ASCII": (head(path="/v2/models/lätä".encode()), 400),
    "a path that is no UTF-8": (head(path=b"/v2/models/%ff%zz/infer"), 404),
    "a path that climbs": (head(path=b"/v2/models/../../etc/passwd"), 404),
    "a path that climbs, encoded": (head(path=b"/v2/models/..%2f..%2fetc%2fpasswd/infer"), 404),
    "NUL in the path": (head(path=b"/v2/models/late%00/infer"), 404),
    "a negative length": (head(length=-1), 400),
    "a length that is none": (head(length=b"ten"), 400),
    "a length beyond 64 bits": (head(length=b"9" * 30), 400),
    "an enormous length": (head(length=10**18), 413),
    "two lengths": (head(length=len(GOOD), headers=b"content-length: 3\r\n") + GOOD, 400),
    "length and chunks": (head(length=len(GOOD), headers=b"transfer-encoding: chunked\r\n") + GOOD, 400),
    "a chunk of no size": (chunked(b"zz\r\n"), 400),
    "a header with NUL": (head(headers=b"x: a\0b\r\n"), 400),
    "a header across lines": (head(headers=b"x: a\r\n b\r\n"), 400),
    "compressed": (head(length=20, headers=b"content-encoding: gzip\r\n") + b"\x1f\x8b" + b"\0" * 18, 400),
    "a WebSocket": (head(b"GET", b"/v2/models/late", headers=WEBSOCKET), 200),
    "a WebSocket, no token": (head(b"GET", b"/v2", headers=WEBSOCKET, token="x"), 401),
    "no token and a large body": (head(length=10**12, token="x"), 401),
    "an empty token": (head(token=""), 401),
    "half a token": (head(token=TOKEN[:5]), 401),
    "the token and more": (head(token=TOKEN + "x"), 401),
    "a token that is no ASCII": (head(token="töken"), 401),
    "another scheme": (head(token="x", headers=b"authorization: Basic %s\r\n" % TOKEN.encode()), 401),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_call_has_its_status(server: Server, name: str) -> None:
    data, status = MALFORMED[name]
    assert send(server.url, [data]) == status


def test_a_body_cut_short_is_no_request(server: Server) -> None:
    """Less than its length says; the client is gone, so nobody hears the 400."""
    for part in (b"", GOOD[:20], GOOD):
        assert send(server.url, [head(length=len(GOOD) + 1), part], end=True) in (0, 400)
    assert send(server.url, [chunked(b'5\r\n{"inp')], end=True) in (0, 400)


@pytest.mark.parametrize(
    ("name", "start", "piece"),
    [
        ("one endless header", b"GET /v2 HTTP/1.1\r\nx: ", b"a" * 65536),
        ("endless headers", b"GET /v2 HTTP/1.1\r\n", b"x: y\r\n" * 10_000),
        ("an endless path", b"GET /", b"a" * 65536),
    ],
)
def test_an_endless_head_is_cut_off_at_once(server: Server, name: str, start: bytes, piece: bytes) -> None:
    began = time.monotonic()
    # A piece at a time, lest one packet holds all of it.
    assert send(server.url, [start, *[piece] * 1_600]) in (0, 431)
    assert time.monotonic() - began < 5, "100 MB of header held the server up"


def sized(size: int) -> bytes:
    """A whole head of so many bytes."""
    short = head(b"GET", b"/v2", headers=b"x-long: \r\n")
    return short.replace(b"x-long: ", b"x-long: " + b"a" * (size - len(short)))


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_heads_limit_is_exact_however_a_head_comes(server: Server, pieces: int) -> None:
    """Also where all of it is read at once, which a whole head of 100,000 bytes may be."""
    limit = Bounds().head_bytes
    for size, expected in ((limit, {200}), (limit + 1, {431}), (100_000, {0, 431})):
        data = sized(size)
        assert len(data) == size
        half = len(data) // pieces
        assert send(server.url, [data[:half], data[half:]]) in expected
    told = heard(server.url, sized(limit + 1))
    assert b"path and headers have more than 65536 bytes: send fewer, or shorter ones" in told


def test_a_long_body_behind_a_head_is_no_head(server: Server) -> None:
    data = GOOD + b" " * 300_000
    last = head(length=len(data), headers=b"connection: close\r\n")
    assert statuses(heard(server.url, last + data)) == [200]


def heard(url: str, data: bytes, until: bytes = b"") -> bytes:
    """All that is answered until the server closes, or until ``until`` was heard."""
    found = b""
    with connect(url) as client, suppress(ConnectionError):
        client.sendall(data)
        while not until or until not in found:
            if not (piece := client.recv(65536)):
                break
            found += piece
    return found


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


GOOD_CALL = head(length=len(GOOD)) + GOOD


@pytest.mark.parametrize("nonsense", [b"\0\1\2\r\n\r\n", b"GET /v2 HTTP/9\r\n\r\n"])
def test_what_is_no_request_is_told_after_the_answers_before_it(server: Server, nonsense: bytes) -> None:
    assert statuses(heard(server.url, GOOD_CALL * 3 + nonsense)) == [200, 200, 200, 400]


def test_what_follows_a_last_request_is_not_looked_at(server: Server) -> None:
    last = head(length=len(GOOD), headers=b"connection: close\r\n") + GOOD
    assert statuses(heard(server.url, last + b"\0\1 nonsense")) == [200]


CLOSED: dict[str, tuple[bytes, list[int]]] = {
    "HTTP/1.0, refused": (b"GET /no HTTP/1.0\r\nauthorization: Bearer x\r\n\r\n", [401]),
    "HTTP/1.0, kept alive": (b"GET /v2/health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", [200]),
    "refused with a body": (
        head(length=2, headers=b"connection: close\r\n", token="x") + b"{}",
        [401],
    ),
    "an upgrade": (
        b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        [200],
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_who_reads_to_the_end_gets_there(server: Server, name: str) -> None:
    data, expected = CLOSED[name]
    began = time.monotonic()
    answers = heard(server.url, data)
    assert statuses(answers) == expected
    assert b"connection: close" in answers
    assert time.monotonic() - began < 20, "it was left open until it was idle for too long"


def test_trailers_and_bodies_of_readers_have_bounds(server: Server) -> None:
    """Before anybody has shown a token."""
    before = memory(server)
    chunked_head = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    endless = [chunked_head, b"0\r\n", *[b"x-trailer: " + b"a" * 60_000 + b"\r\n"] * 500]
    assert send(server.url, endless) in (0, 413)
    assert (
        send(server.url, [b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 999999\r\n\r\n"])
        == 413
    )
    assert memory(server) - before < 20 * MIB


def test_who_does_not_read_answers_is_left(publisher: Publisher) -> None:
    publisher("late", "binary", 1, "1")
    with live(impatient(publisher.lake)) as url:
        wait_until(lambda: send(url, [head(length=len(GOOD)), GOOD]) == 200)
        with connect(url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1)
            with suppress(TimeoutError, ConnectionError):
                for _ in range(2_000):
                    client.sendall(head(b"GET", b"/v2/openapi.json") * 16)
            port = client.getsockname()[1]
            mine = psutil.Process()
            wait_until(lambda: all(one.raddr.port != port for one in mine.net_connections() if one.raddr))


def with_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    return {**row(), "parameters": parameters}


def changed(number: int, **changes: Any) -> dict[str, Any]:
    request = row()
    request["inputs"][number].update(changes)
    return request


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


DAY = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = [(DAY + timedelta(days=number)).isoformat() for number in range(200)]
PACKED = {"name": "input", "datatype": "FP32", "shape": [200, 2], "data": [0.5] * 400}
# name: endpoint, the request, the status, words of the answer
HOSTILE: dict[str, tuple[str, Any, int, str]] = {
    "nested too deep": ("late", b'{"inputs":' * 2_000, 400, "not JSON"),
    "a deep shape": ("late", changed(0, shape=nested(900)), 400, '"shape" must be [rows]'),
    "a deep datatype": ("late", changed(0, datatype=nested(900)), 400, "is not one of"),
    "a deep value": ("late", changed(1, data=[nested(900)]), 400, "expected a number, got [["),
    "a deep entity": (
        "late",
        with_parameters({"entities": {"k": [nested(600)]}}),
        400,
        "a key is text, a whole number or null",
    ),
    "a deep event_time": (
        "late",
        with_parameters({"event_time": {"a": nested(900)}}),
        400,
        "ISO time",
    ),
    "a long event_time": ("late", {**row(), "parameters": {"event_time": "2" * 4 * MIB}}, 400, "ISO time"),
    "a long datatype": ("late", changed(0, datatype="F" * 4 * MIB), 400, "is not one of"),
    "a long value": ("late", changed(1, data=["9" * 4 * MIB]), 400, "expected a number"),
    "a day a row": (
        "line",
        {"inputs": [PACKED], "parameters": {"event_time": DAYS}},
        400,
        "names 200 days, at most 100",
    ),
    "a name like another": ("late", changed(2, name="hоur"), 400, "did you mean 'hour'?"),
    "a name with a line end": ("late", changed(2, name="hour\n"), 400, "unknown inputs ['hour\\n']"),
    "NaN": ("late", GOOD.replace(b"12.5", b"NaN"), 400, "not JSON"),
    "-Infinity": ("late", GOOD.replace(b"12.5", b"-Infinity"), 400, "not JSON"),
    "beyond every float": ("late", GOOD.replace(b"12.5", b"1e999"), 400, "not JSON"),
    "5,000 digits": ("late", GOOD.replace(b"17", b"9" * 5_000), 400, "not JSON"),
    "half a character": ("late", GOOD.replace(b"AA", rb"\ud800"), 400, "not JSON"),
    "more values than memory": ("late", changed(1, shape=[2**62, 2**62]), 400, "data has 1 values"),
    "a shape below zero": ("late", changed(1, shape=[-(2**62)]), 400, '"shape" must be'),
    "100,000 unknown outputs": (
        "late",
        {**row(), "outputs": [{"name": f"label{number}"} for number in range(100_000)]},
        400,
        "and 99995 more",
    ),
    # These are odd, and fine.
    "NUL in a text": ("late", row(carrier="A\0A"), 200, ""),
    "a text of 7 MiB": ("late", row(carrier="A" * 7 * MIB), 200, ""),
    "right to left": ("late", row(carrier="\u202eAA\U0001f600"), 200, ""),
    "an id to write files by": ("late", {**row(), "id": "../../x\n\0"}, 200, "x\\n\\u0000"),
    "the last moment there is": (
        "late",
        {**row(), "parameters": {"event_time": "9999-12-31T23:59:59.999999Z"}},
        200,
        "",
    ),
    "one output 100,000 times": ("late", {**row(), "outputs": [{"name": "label"}] * 100_000}, 200, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_has_one_short_answer(server: Server, name: str) -> None:
    endpoint, request, status, words = HOSTILE[name]
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    with server.http() as http:
        answer = http.post(f"/v2/models/{endpoint}/infer", content=body)
    assert answer.status_code == status, answer.text[:500]
    assert words in (answer.text if status == 200 else answer.json()["error"])
    assert len(answer.content) < 1_500, "an answer does not grow with what a request invents"


def test_what_is_too_large_is_refused_by_its_length_and_by_its_bytes(server: Server) -> None:
    with server.http() as http:
        answer = http.post(INFER.decode(), content=b" " * (8 * MIB + 1))
        assert (answer.status_code, answer.json()["error"]) == (
            413,
            "the body has 8388609 bytes, at most 8388608 are taken",
        )
        answer = http.post(INFER.decode(), content=(b" " * MIB for _ in range(9)))
        assert (answer.status_code, answer.json()["error"]) == (413, "the body has more than 8388608 bytes")


@pytest.mark.proof
def test_large_requests_in_a_row_cost_no_more_than_a_few(
    publisher: Publisher, start: Callable[[Lake], Server]
) -> None:
    """More of them than the log can take: what it has no room for is counted as lost, and not kept."""
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    large = json.dumps(row(carrier="A" * 7 * MIB)).encode()

    def ask(_: int) -> int:
        with server.http() as http:
            return http.post(INFER.decode(), content=large, timeout=60).status_code

    with server.client() as client, ThreadPoolExecutor(8) as pool, server.http() as http:
        wait_until(lambda: client.ready("late"))
        for _ in range(5):
            assert set(pool.map(ask, range(40))) == {200}
            assert memory(server) < MEMORY
        wait_until(lambda: metric(http, "pending") == 0, seconds=60)
        assert metric(http, "written_total") + metric(http, "lost_total") == 200


def metric(http: httpx.Client, name: str) -> float:
    """One of the prediction log's."""
    lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines())
    return float(lines[f"ml_lifecycle_log_rows_{name}"])


def impatient(lake: Lake) -> ModelServer:
    """A server with little patience."""
    return ModelServer(lake, "test", TOKEN, bounds=Bounds(2_000, 0.5, body_seconds=0.5))


def drip(url: str, first: bytes, then: bytes) -> int:
    """Send ``then`` every tenth of a second for as long as the server listens; at most ten seconds."""
    with connect(url) as client:
        client.sendall(first)
        for _ in range(100):
            if select.select([client], [], [], 0.1)[0]:
                return status_of(client)
            client.sendall(then)
    raise AssertionError("it waits for ever")


SLOW: dict[str, tuple[bytes, bytes, int]] = {
    "says nothing": (b"", b"", 408),
    "a head without end": (b"GET /v2 HTTP/1.1\r\nx: ", b"a", 408),
    "a body without end": (head(length=1_000), b" ", 408),
}


def test_slow_clients_are_not_waited_for_and_hold_nobody_up(publisher: Publisher) -> None:
    publisher("late", "binary", 1, "1")
    with live(impatient(publisher.lake)) as url, ThreadPoolExecutor(len(SLOW) * 8) as pool:
        wait_until(lambda: send(url, [head(length=len(GOOD)), GOOD]) == 200)
        began = time.monotonic()
        waiting = {name: [pool.submit(drip, url, *case[:2]) for _ in range(8)] for name, case in SLOW.items()}
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            while not all(done.done() for group in waiting.values() for done in group):
                assert http.post(INFER.decode(), content=GOOD).status_code == 200
        assert time.monotonic() - began < 10
        for name, case in SLOW.items():
            assert {done.result() for done in waiting[name]} == {case[2]}, name


def test_a_long_but_honest_head_and_a_large_body_after_it_are_taken(publisher: Publisher) -> None:
    publisher("late", "binary", 1, "1")
    padded = json.dumps(row(carrier="A" * 300_000)).encode()
    with live(impatient(publisher.lake)) as url:
        wait_until(lambda: send(url, [head(length=len(GOOD)), GOOD]) == 200)
        # A head in two packets, the second with much of the body: only the head counts.
        whole = head(length=len(padded), headers=b"x: %s\r\n" % (b"a" * 1_500)) + padded
        with connect(url) as client:
            for _ in range(3):
                client.sendall(whole[:100])
                time.sleep(0.05)  # lest both make one packet
                client.sendall(whole[100:])
                assert status_of(client) == 200


@pytest.mark.proof
def test_the_limits_as_they_are_hold_a_flood_of_idle_clients(server: Server) -> None:
    """300 clients that never finish a head, 20 that never finish a body: none is waited for for ever."""

    def hold(first: bytes) -> int:
        with connect(server.url) as client:
            client.settimeout(60)
            client.sendall(first)
            return status_of(client)

    firsts = [b"GET /v2 HTTP/1.1\r\nx: "] * 300 + [head(length=100) + b"{"] * 20
    with ThreadPoolExecutor(len(firsts)) as pool, server.http() as http:
        held = [pool.submit(hold, first) for first in firsts]
        while not all(future.done() for future in held):
            began = time.monotonic()
            assert http.post(INFER.decode(), json=row()).status_code == 200
            assert time.monotonic() - began < 5
            time.sleep(0.5)
        assert {future.result() for future in held} == {408}
