"""Rows of an HTTP API, fetched from a real one that pages, refuses and stumbles."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import httpx
import pytest
from data_cases import run, spec
from pydantic import ValidationError

from ml_lifecycle.adapters.http_api import read_pages
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.spec.source import Http
from ml_lifecycle.stages.fetch import fetch
from ml_lifecycle.stages.ingest import ingest, read_table

Answer = tuple[int, dict[str, str], Any]
JANUARY = run("2013-01-01", "2013-02-01")


class Api:
    """``answer`` is given path and parameters; what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[str, dict[str, str]], Answer] = lambda path, given: (404, {}, {})
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlparse(self.path)
                given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                api.asked.append((parts.path, given))
                status, headers, content = api.answer(parts.path, given)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/v1/", timeout=30)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.stop()


def read(api: Api, since: Any = None, pauses: list[float] | None = None, **http: Any) -> list[dict[str, Any]]:
    how = Http.model_validate({"path": "orders", **http})
    with api.client() as client:
        waited = [] if pauses is None else pauses
        return read_pages(client, how, since, "source 'orders'", waited.append).to_dicts()


def page_of(rows: int, size: int, first: int) -> list[dict[str, int]]:
    return [{"id": number} for number in range(first, min(first + size, rows))]


def test_pages_follow_each_other_by_url_by_token_and_by_number(api: Api) -> None:
    def by_url(path: str, given: dict[str, str]) -> Answer:
        first = int(given.get("from", 0))
        following = f"orders?from={first + 3}&shop=7" if first + 3 < 7 else None
        return 200, {}, {"data": {"items": page_of(7, 3, first)}, "links": {"next": following}}

    def by_token(path: str, given: dict[str, str]) -> Answer:
        first = int(given.get("token", "t0")[1:])
        return 200, {}, {"items": page_of(7, 3, first), "next": f"t{first + 3}" if first + 3 < 7 else ""}

    def by_number(path: str, given: dict[str, str]) -> Answer:
        return 200, {}, page_of(7, 3, 3 * (int(given["page"]) - 1))

    every = [{"id": number} for number in range(7)]
    shop = {"parameters": {"shop": "7"}}
    api.answer = by_url
    assert read(api, **shop, rows="data.items", next="links.next") == every
    assert [given for _, given in api.asked] == [{"shop": "7"}, *({"from": n, "shop": "7"} for n in "36")]
    assert {path for path, _ in api.asked} == {"/v1/orders"}
    api.answer = by_token
    assert read(api, **shop, rows="items", next="next", next_parameter="token") == every
    assert api.asked[-1][1] == {"shop": "7", "token": "t6"}
    api.answer = by_number
    assert read(api, page_parameter="page") == every
    assert len(api.asked) == 3 + 3 + 4  # the last is empty


def test_the_path_is_below_the_address_with_a_slash_in_front_too(api: Api) -> None:
    api.answer = lambda path, given: (200, {}, [{"id": 1}])
    assert read(api, path="/orders") == [{"id": 1}]
    assert api.asked == [("/v1/orders", {})]


def test_a_page_may_be_empty_and_the_last_need_not_say_that_it_is(api: Api) -> None:
    pages = {"": ([{"id": 0}], "a"), "a": ([], "b"), "b": ([{"id": 1}], None)}

    def answer(path: str, given: dict[str, str]) -> Answer:
        rows, following = pages[given.get("token", "")]
        return 200, {}, {"items": rows, **({"paging": {"next": following}} if following else {})}

    api.answer = answer
    assert read(api, rows="items", next="paging.next", next_parameter="token") == [{"id": 0}, {"id": 1}]


def test_a_name_that_no_answer_has_is_not_taken_for_the_last_page(api: Api) -> None:
    answered = {"items": [{"id": 1}], "links": {"prev": None, "next": "orders?from=1"}}
    api.answer = lambda path, given: (200, {}, answered if not given else {"items": [{"id": 2}]})
    both = [{"id": 1}, {"id": 2}]
    assert read(api, rows="items", next="links.next") == both
    said = r"'links.nxt', where http.next .*: links has prev, next\. Correct it; or write next_optional: true"
    with pytest.raises(SourceError, match=said):
        read(api, rows="items", next="links.nxt")
    with pytest.raises(SourceError, match=r"'paging.next', where http.next says .*: it has items, links"):
        read(api, rows="items", next="paging.next")
    # What an empty page lacks says nothing; and once all pages were fetched, the name was there.
    api.answer = lambda path, given: (200, {}, {"items": []})
    assert read(api, rows="items", next="links.next") == []
    api.answer = lambda path, given: (200, {}, {"items": [{"id": 3}]})
    later = {"cursor": "id", "cursor_parameter": "since"}
    assert read(api, since=2, rows="items", next="links.next", **later) == [{"id": 3}]
    assert read(api, rows="items", next="links.next", next_optional=True) == [{"id": 3}]


def test_what_is_nested_becomes_columns(api: Api) -> None:
    api.answer = lambda path, given: (200, {}, [{"id": 1, "price": {"amount": 1.5}}, {"id": 2, "note": "x"}])
    assert read(api) == [
        {"id": 1, "price.amount": 1.5, "note": None},
        {"id": 2, "price.amount": None, "note": "x"},
    ]


def test_what_cannot_be_answered_now_is_asked_again(api: Api) -> None:
    stumbles: list[Answer] = [(503, {}, b""), (429, {"Retry-After": "7"}, b""), (500, {}, b"oops")]

    def answer(path: str, given: dict[str, str]) -> Answer:
        return stumbles.pop(0) if stumbles else (200, {}, [{"id": 1}])

    api.answer = answer
    pauses: list[float] = []
    assert read(api, pauses=pauses) == [{"id": 1}]
    assert pauses == [1, 7, 4]


def test_who_never_answers_is_given_up_and_a_retry_may_help(api: Api) -> None:
    api.answer = lambda path, given: (503, {}, b"")
    pauses: list[float] = []
    with pytest.raises(SourceNotReadyError, match=r"source 'orders': .* cannot be read now: 503"):
        read(api, pauses=pauses)
    assert pauses == [1, 2, 4, 8, 16]
    away = httpx.Client(base_url="http://127.0.0.1:9")
    with pytest.raises(SourceNotReadyError, match="ConnectError"):
        read_pages(away, Http(path="orders"), None, "source 'orders'", pauses.append)
    away.close()


def test_an_address_that_is_none_is_not_asked_again(api: Api) -> None:
    with (
        httpx.Client(base_url="htp://shop.example") as client,
        pytest.raises(
            SourceError, match=r"address is htp://shop.example, and begins neither with http:// nor"
        ),
    ):
        read_pages(client, Http(path="orders"), None, "source 'orders'")


@pytest.mark.parametrize(
    ("answer", "http", "said"),
    [
        ((401, {}, b""), {}, "127.0.0.1/v1/orders answered 401 Unauthorized: look at the login"),
        ((404, {}, b""), {}, "answered 404 Not Found: http.path comes after the address"),
        ((422, {}, b""), {}, "answered 422 .*: are http.parameters and cursor_parameter what"),
        ((302, {"Location": "https://other/a?key=1"}, b""), {}, "leads on to https://other/a; write where"),
        ((418, {}, b""), {}, "answered 418 I'm a [Tt]eapot$"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), {}, "answered no JSON, but text/html: is that"),
        (
            (200, {}, {"data": []}),
            {"rows": "data.items"},
            "the answer has no 'data.items', .*: data is no object",
        ),
        ((200, {}, {"data": {"id": 1}}), {"rows": "data"}, "'data' is no list of objects"),
        ((200, {}, [1, 2]), {}, "the answer is no list of objects: http.rows says where"),
        (
            (200, {}, {"rows": [{"id": 1}], "next": "https://elsewhere.example/orders"}),
            {"rows": "rows", "next": "next"},
            "the next page is said to be at elsewhere.example, which is another server",
        ),
        (
            (200, {}, {"rows": [{"id": 1}], "next": "/v1/orders"}),
            {"rows": "rows", "next": "next"},
            "leads back to a page that was read: /v1/orders$",
        ),
        (
            (200, {}, {"rows": [{"id": 1}], "next": "t"}),
            {"rows": "rows", "next": "next", "next_parameter": "tok"},
            "leads back to a page that was read: /v1/orders: is 'tok' what the API takes 'next' by",
        ),
        (
            (200, {}, {"rows": [{"id": 1}], "next": "http://a:b"}),
            {"rows": "rows", "next": "next"},
            "what 'next' says of the next page is no URL",
        ),
        ((200, {}, [{"id": 1}]), {"page_parameter": "seite"}, "alike: does 'seite' name the page"),
        ((200, {}, [{"at": "now", "id": 10**40}]), {}, "of column 'id' is one that no column can hold"),
        ((200, {}, b'[{"id": "\\ud800"}]'), {}, "of column 'id' is one that no column can hold"),
    ],
)
def test_what_is_answered_otherwise_is_said(
    api: Api, answer: Answer, http: dict[str, Any], said: str
) -> None:
    api.answer = lambda path, given: answer
    with pytest.raises(SourceError, match=said):
        read(api, **http)


def orders(**http: Any):
    how = {"path": "orders", **http}
    return spec(orders={"http": how, "connection": "shop", "keys": ["id"], "event_time": "at"})


def test_only_what_is_new_is_asked_for_and_kept(api: Api, tmp_path: Path) -> None:
    rows = [{"id": n, "at": f"2013-01-0{n}T00:00:00Z"} for n in range(1, 5)]

    def answer(path: str, given: dict[str, str]) -> Answer:
        return 200, {}, [row for row in reversed(rows) if row["at"] >= given.get("since", "")]

    api.answer = answer
    lake, origins = Lake(str(tmp_path / "lake")), {"shop": api.client}
    new = orders(cursor="at", cursor_parameter="since", overlap="24h")
    assert fetch(new, lake, origins) == {"orders": 4}
    assert fetch(new, lake, origins) == {"orders": 0}
    assert api.asked[-1][1] == {"since": "2013-01-03T00:00:00+00:00"}
    rows += [{"id": 5, "at": "2013-01-05T00:00:00Z"}, {"id": 6, "at": "2013-01-04T12:00:00Z"}]
    snapshot = ingest(new, lake, JANUARY, origins=origins)
    assert sorted(read_table(lake, snapshot, "orders").collect()["id"]) == [1, 2, 3, 4, 5, 6]
    assert sum(path.endswith(".json") for path in lake.list("landed")) == 2
    # Without a cursor all rows, each time, replace the former.
    everything = orders()
    assert fetch(everything, lake, origins) == {"orders": 6}
    del rows[0]
    snapshot = ingest(everything, lake, JANUARY, origins=origins)
    assert sorted(read_table(lake, snapshot, "orders").collect()["id"]) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ({"page_parameter": "page", "next": "next"}, "or next, not both"),
        ({"next_parameter": "token"}, "needs next"),
        ({"next_optional": True}, "needs next"),
        ({"cursor": "at"}, "and cursor_parameter go together"),
        ({"path": "https://elsewhere.example/orders"}, "leave the address out"),
        ({"path": "//elsewhere.example/orders"}, "leave the address out"),
        ({"path": "orders?shop=7"}, "stands in parameters"),
    ],
)
def test_pages_are_declared_in_one_way(http: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        orders(**http)
