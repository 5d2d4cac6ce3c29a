"""Who may come in, how often, and what is written about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from waiting import wait_until

from ml_lifecycle.serving.__main__ import EXIT_USAGE
from ml_lifecycle.serving.door import Client, Door, read_clients
from ml_lifecycle.serving.errors import ClientsFileError, TooManyRequestsError, UnauthorizedError
from tests.serving.conftest import Publisher, Server, logged, row
from tests.serving.test_main import run

Start = Callable[..., Server]
CLIENTS = """
scoring: {token: one, requests_per_second: 0.001, burst: 3}
reports: {token: two}
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_allowance_is_used_up_and_grows_again() -> None:
    clock = Clock()
    door = Door({"t": Client("scoring", rate=2.0, burst=3)}, clock)
    for _ in range(3):
        assert door.admit(b"Bearer t").name == "scoring"
    with pytest.raises(
        TooManyRequestsError, match=r"2 times a second, 3 at once; .* due in 0.5 s"
    ) as refused:
        door.admit(b"Bearer t")
    assert (refused.value.seconds, refused.value.retryable) == (1, True)
    clock.now += 0.5
    door.admit(b"Bearer t")
    with pytest.raises(TooManyRequestsError):
        door.admit(b"Bearer t")
    clock.now += 1_000  # however long the pause, no more than the burst
    for _ in range(3):
        door.admit(b"Bearer t")
    with pytest.raises(TooManyRequestsError):
        door.admit(b"Bearer t")


def test_refusals_cost_nothing_of_an_allowance() -> None:
    clock = Clock()
    door = Door({"t": Client("scoring", rate=1.0, burst=1)}, clock)
    door.admit(b"Bearer t")
    for _ in range(100):
        clock.now += 0.009
        with pytest.raises(TooManyRequestsError):
            door.admit(b"Bearer t")
    clock.now += 0.11
    door.admit(b"Bearer t")


def test_clients_do_not_share_allowances_and_strangers_have_none() -> None:
    door = Door({"a": Client("one", rate=1.0), "b": Client("two", rate=1.0), "c": Client("three")}, Clock())
    assert [door.admit(header).name for header in (b"Bearer a", b"Bearer b", b"Bearer c", b"Bearer c")] == [
        "one",
        "two",
        "three",
        "three",
    ]
    for header in (b"", b"Bearer", b"Bearer d", b"a", b"bearer a", b"Bearer a "):
        with pytest.raises(UnauthorizedError):
            door.admit(header)


BAD = {
    "not there": (None, "cannot read the clients file"),
    "no YAML": ("a: [", "cannot read the clients file"),
    "a list": ("- a", "must map each client's name"),
    "empty": ("", "must map each client's name"),
    "no token": ("a: {requests_per_second: 1}", 'a needs a "token"'),
    "a blank token": ("a: {token: ' '}", 'a needs a "token"'),
    "another key": ("a: {token: x, rate: 1}", "a has unknown keys ['rate']"),
    "no rate": ("a: {token: x, requests_per_second: -1}", "must be a number above 0, got -1"),
    "a rate in words": ("a: {token: x, requests_per_second: many}", "must be a number above 0, got 'many'"),
    "no burst": ("a: {token: x, requests_per_second: 1, burst: 0}", "whole number from 1, got 0"),
    "a burst alone": ("a: {token: x, burst: 5}", "a burst and no requests_per_second"),
    "twice": ("a: {token: x}\nb: {token: x}", "a and b have the same token"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_clients_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "clients.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ClientsFileError) as refused:
        read_clients(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_server_refuses_to_start_with_it(tmp_path: Path) -> None:
    (tmp_path / "clients.yaml").write_text("a: {}")
    result = run("--lake", str(tmp_path), "--clients", str(tmp_path / "clients.yaml"))
    assert result.returncode == EXIT_USAGE
    assert result.stderr.count("\n") == 1
    assert 'a needs a "token"' in result.stderr


def test_clients_limits_ids_and_the_access_log(publisher: Publisher, start: Start, tmp_path: Path) -> None:
    publisher("late", "binary", 1, "1")
    (tmp_path / "clients.yaml").write_text(CLIENTS)
    access = tmp_path / "access.log"
    server = start(publisher.lake, "--clients", str(tmp_path / "clients.yaml"), "--access-log", str(access))
    with server.client() as client:
        wait_until(lambda: client.ready("late"))

    def ask(token: str, **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {token}", **headers}
        return httpx.post(f"{server.url}/v2/models/late/infer", json=row(carrier="secret"), headers=given)

    answers = [ask("one") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 900
    assert "scoring may ask 0.001 times a second" in answers[-1].json()["error"]
    assert {ask("two").status_code for _ in range(5)} == {200}
    named = ask("two", **{"X-Request-ID": "from-a-header"})
    assert named.headers["x-request-id"] == named.json()["id"] == "from-a-header"
    assert ask("three").status_code == 401
    assert server.stop() == 0
    assert "from-a-header" in set(logged(publisher.lake)["prediction_id"])
    text = access.read_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    asked = [line for line in lines if line["method"] == "POST"]
    assert [(line["client"], line["status"]) for line in asked] == [
        *[("scoring", 200)] * 3,
        ("scoring", 429),
        *[("reports", 200)] * 6,
        ("", 401),
    ]
    first = asked[0]
    assert (first["path"], first["peer"]) == ("/v2/models/late/infer", "127.0.0.1")
    assert first["bytes"] > 50
    assert first["ms"] > 0
    assert first["id"] == answers[0].json()["id"]
    assert asked[-2]["id"] == "from-a-header"
