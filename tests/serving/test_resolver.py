from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from live_server import live_client
from waiting import wait_until

from ml_lifecycle.adapters.lake import sha256
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.serving.dataplane import DataPlane
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.moments import microseconds
from ml_lifecycle.serving.routes import RouteFollower, RouteLoader
from ml_lifecycle.serving.server import ModelServer
from tests.serving.conftest import TOKEN, Publisher, logged

REGISTRY = b"a registry"
ROWS: dict[tuple[object, ...], dict[str, object]] = {
    ("EWR", 1): {"carrier": "AA", "wind": 12.5, "hour": 17},
    ("JFK", 2): {"carrier": None, "wind": None, "hour": 3},
    ("LGA", 3): {"carrier": "UA", "wind": 1.0, "hour": None},
    ("STALE", 5): {"carrier": "AA", "wind": None, "hour": 4},
    ("torn", 4): {"carrier": "UA", "wind": "much", "hour": 1},
}
NOBODY: dict[str, object] = {"hour": 7}  # of a view without keys; no other has anything of them

LookedUp = tuple[Mapping[str, list[object]], Mapping[str, int], Sequence[int], Mapping[str, float]]
RECEIVED = datetime(2026, 3, 1, 12, tzinfo=UTC)


class MemoryReader:
    """An online store in memory."""

    made: list[tuple[bytes, str, str]] = []
    asked: list[list[datetime]] = []
    closed: list[bytes] = []

    def __init__(self, registry: bytes, service: str, online_store: str) -> None:
        self.registry = registry
        self.made.append((registry, service, online_store))

    def look_up(self, entities: Mapping[str, Sequence[object]], as_of: Sequence[datetime]) -> LookedUp:
        self.asked.append(list(as_of))
        origins, flights = entities["origin"], entities["flight"]
        if "down" in origins:
            raise ConnectionError("refused")
        if "view" in origins:
            raise FeatureError("no view of this name")
        if any(not isinstance(flight, int) for flight in flights):
            raise TypeError("flight must be an integer")
        found = [
            NOBODY if key[0] in ("XXX", "YYY") else ROWS.get(key, {})
            for key in zip(origins, flights, strict=True)
        ]
        stale = {"wind": origins.count("STALE")} if "STALE" in origins else {}
        unknown = [number for number, row in enumerate(found) if row in ({}, NOBODY)]
        values = {name: [row.get(name) for row in found] for name in ("carrier", "wind", "hour")}
        ages = {"flights": 7200.0} if len(unknown) < len(origins) else {}
        return values, stale, unknown, ages

    def close(self) -> None:
        self.closed.append(self.registry)


def by_keys(origins: list[Any], flights: list[Any], **rest: Any) -> dict[str, Any]:
    n = len(origins)
    return {
        "inputs": [
            {"name": "origin", "datatype": "BYTES", "shape": [n], "data": origins},
            {"name": "flight", "datatype": "INT64", "shape": [n], "data": flights},
        ],
        **rest,
    }


def with_registry(
    publisher: Publisher, revision: int = 1, registry: bytes = REGISTRY, **changes: Any
) -> None:
    path = f"registries/{sha256(registry)}"
    publisher.lake.write_bytes(path, registry)
    publisher(
        "late",
        "binary",
        revision,
        "1",
        registry_path=path,
        registry_digest=sha256(registry),
        feature_service="late_features",
        entity_keys=("origin", "flight"),
        **changes,
    )


@pytest.fixture
def client(publisher: Publisher) -> Iterator[httpx.Client]:
    MemoryReader.made.clear()
    MemoryReader.asked.clear()
    MemoryReader.closed.clear()
    server = ModelServer(
        publisher.lake,
        "test",
        TOKEN,
        "memory://",
        poll_seconds=0.02,
        reader_factory=MemoryReader,
        clock=lambda: microseconds(RECEIVED),
    )
    with live_client(server, TOKEN) as client:
        yield client


def wait_for(client: httpx.Client, revision: int) -> None:
    def live() -> bool:
        response = client.get("/v2/models/late")
        return response.status_code == 200 and response.json()["parameters"]["route_revision"] == revision

    wait_until(live)


def test_entity_keys_give_what_the_vector_gives(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    assert client.get("/v2/models/late").json()["parameters"]["entity_keys"] == ["origin", "flight"]
    vector = {
        "inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": [None, "AA"]},
            {"name": "wind", "datatype": "FP32", "shape": [2], "data": [None, 12.5]},
            {"name": "hour", "datatype": "INT64", "shape": [2], "data": [3, 17]},
        ]
    }
    expected = client.post("/v2/models/late/infer", json=vector).json()
    found = client.post("/v2/models/late/infer", json=by_keys(["JFK", "EWR"], [2, 1])).json()
    assert found["outputs"] == expected["outputs"]
    assert MemoryReader.made == [(REGISTRY, "late_features", "memory://")]


def test_the_store_is_opened_before_anybody_asks_by_keys(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_until(lambda: MemoryReader.made)
    assert client.post("/v2/models/late/infer", json=by_keys(["JFK"], [2])).status_code == 200
    assert MemoryReader.made == [(REGISTRY, "late_features", "memory://")]


def test_the_store_of_a_route_that_is_no_longer_live_is_closed(
    publisher: Publisher, client: httpx.Client
) -> None:
    for revision in (1, 2, 3):
        with_registry(publisher, revision, b"registry %d" % revision)
        wait_for(client, revision)
        assert client.post("/v2/models/late/infer", json=by_keys(["JFK"], [2])).status_code == 200
    wait_until(lambda: len(MemoryReader.closed) == 2)
    assert MemoryReader.closed == [b"registry 1", b"registry 2"]
    assert client.post("/v2/models/late/infer", json=by_keys(["JFK"], [2])).status_code == 200


def test_routes_are_followed_while_the_store_is_slow(publisher: Publisher) -> None:
    """A slow read ends on the reader that it began with, which is closed after it."""
    reading, go = threading.Event(), threading.Event()

    class SlowReader(MemoryReader):
        made: list[tuple[bytes, str, str]] = []
        closed: list[bytes] = []
        is_closed = False

        def look_up(self, entities: Mapping[str, Sequence[object]], as_of: Sequence[datetime]) -> LookedUp:
            reading.set()
            assert go.wait(300)
            assert not self.is_closed
            return super().look_up(entities, as_of)

        def close(self) -> None:
            self.is_closed = True
            super().close()

    plane, loader = DataPlane(), RouteLoader(publisher.lake, Metrics("test"), "memory://", SlowReader)
    follower = RouteFollower(publisher.lake, plane, loader, Metrics("test"))
    with_registry(publisher)
    follower.poll()
    before = plane.served("late").pick().resolver
    keys = {"origin": ["EWR"], "flight": [1]}
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(before.resolve, keys, [RECEIVED])
        try:
            assert reading.wait(60)
            with_registry(publisher, 2, b"another registry")
            threads.submit(follower.poll).result(60)
            assert plane.served("late").route.revision == 2
            assert SlowReader.closed == []
        finally:
            go.set()
        assert slow.result(60).origin == "online_store"
    wait_until(lambda: SlowReader.closed)
    assert SlowReader.closed == [REGISTRY]
    # By a route that was live a moment ago: with a reader of its own, which nobody else would close.
    before.resolve(keys, [RECEIVED])
    assert SlowReader.closed == [REGISTRY, REGISTRY]
    assert len(SlowReader.made) == 3


def ask_while_the_store_is_read(publisher: Publisher, *origins: str) -> tuple[list[int], list[int], str]:
    """One asks for EWR; while that is read, one asks for each of the origins.

    :returns: the statuses of all, how many rows the store was asked for at a time, and the metrics
    """
    go, reading = threading.Event(), threading.Event()

    class SlowReader(MemoryReader):
        asked: list[list[datetime]] = []

        def look_up(self, entities: Mapping[str, Sequence[object]], as_of: Sequence[datetime]) -> LookedUp:
            reading.set()
            assert go.wait(60)
            return super().look_up(entities, as_of)

    server = ModelServer(
        publisher.lake, "test", TOKEN, "memory://", poll_seconds=0.02, reader_factory=SlowReader
    )
    with live_client(server, TOKEN) as client, ThreadPoolExecutor(8) as pool:
        wait_for(client, 1)

        def ask(origin: str) -> int:
            return client.post("/v2/models/late/infer", json=by_keys([origin], [1])).status_code

        asking = [pool.submit(ask, "EWR")]
        assert reading.wait(60)
        asking += [pool.submit(ask, origin) for origin in origins]
        waiting = f"ml_lifecycle_feature_reads_waiting {len(origins)}.0"
        wait_until(lambda: waiting in client.get("/metrics").text)
        go.set()
        statuses = [one.result() for one in asking]
        return statuses, [len(moments) for moments in SlowReader.asked], client.get("/metrics").text


def test_who_comes_while_the_store_is_read_is_read_for_together(publisher: Publisher) -> None:
    """And nobody pays for the one whose keys are wrong."""
    with_registry(publisher)
    statuses, rows, _ = ask_while_the_store_is_read(publisher, *["EWR"] * 5, "view")
    assert statuses == [200] * 6 + [500]
    # Alone; together with the one that is wrong; and each by itself, to tell who it is.
    assert rows[:2] == [1, 6]


def test_what_is_missing_or_too_old_is_counted(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    keys = by_keys(["EWR", "JFK", "STALE", "JFK"], [1, 2, 5, 2])
    assert client.post("/v2/models/late/infer", json=keys).status_code == 200
    text = client.get("/metrics").text
    assert 'ml_lifecycle_feature_rows_total{endpoint="late"} 4.0' in text
    lacking = 'ml_lifecycle_features_lacking_total{endpoint="late",feature="%s",reason="%s"} %.1f'
    assert lacking % ("wind", "missing", 2) in text
    assert lacking % ("wind", "stale", 1) in text
    assert lacking % ("carrier", "missing", 2) in text
    assert 'feature="hour"' not in text
    age = 'ml_lifecycle_feature_age_seconds_%s{endpoint="late",%sview="flights"} %.1f'
    assert age % ("bucket", 'le="3600.0",', 0) in text
    assert age % ("bucket", 'le="21600.0",', 1) in text
    assert age % ("sum", "", 7200) in text
    assert age % ("count", "", 1) in text


def test_unknown_keys_are_answered_from_missing_values_and_show(
    publisher: Publisher, client: httpx.Client
) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    keys = by_keys(["XXX", "EWR", "YYY"], [9, 1, 9])
    assert client.post("/v2/models/late/infer", json=keys).status_code == 200
    text = client.get("/metrics").text
    assert 'ml_lifecycle_unknown_keys_total{endpoint="late",outcome="answered",version="1"} 2.0' in text
    client.post("/v2/models/late/infer", json=by_keys(["EWR"], [1]))
    wait_until(lambda: len(logged(publisher.lake)) == 4)
    rows = logged(publisher.lake).sort("received_at", "row")
    found = dict(zip(rows["entity_keys"], rows["features_from"], strict=True))
    assert found == {
        '{"origin":"XXX","flight":9}': "missing",
        '{"origin":"YYY","flight":9}': "missing",
        '{"origin":"EWR","flight":1}': "online_store",
    }


def test_unknown_keys_may_be_refused(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher, not_found="refuse")
    wait_for(client, 1)
    refused = client.post("/v2/models/late/infer", json=by_keys(["EWR", "XXX"], [1, 9]))
    assert refused.status_code == 404
    assert refused.json()["error"] == (
        "the online store has nothing of the entity in row 1 ({'flight': 9, 'origin': 'XXX'}), and this "
        "endpoint refuses to answer from missing values only (features.not_found in model.yaml)"
    )
    assert client.post("/v2/models/late/infer", json=by_keys(["EWR"], [1])).status_code == 200
    text = client.get("/metrics").text
    assert 'ml_lifecycle_unknown_keys_total{endpoint="late",outcome="refused",version="1"} 1.0' in text


def test_who_is_unknown_is_refused_alone(publisher: Publisher) -> None:
    with_registry(publisher, not_found="refuse")
    statuses, _, text = ask_while_the_store_is_read(publisher, "EWR", "XXX", "EWR")
    assert statuses == [200, 200, 404, 200]
    assert 'ml_lifecycle_unknown_keys_total{endpoint="late",outcome="refused",version="1"} 1.0' in text


def test_features_are_read_as_of_each_rows_moment(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    moments = {"event_time": ["2026-02-01T08:00:00Z", "2026-02-02T08:00:00Z"]}
    client.post("/v2/models/late/infer", json=by_keys(["JFK", "EWR"], [2, 1], parameters=moments))
    client.post("/v2/models/late/infer", json=by_keys(["JFK"], [2]))
    given = [datetime(2026, 2, 1, 8, tzinfo=UTC), datetime(2026, 2, 2, 8, tzinfo=UTC)]
    assert MemoryReader.asked == [given, [RECEIVED]]


def test_resolved_features_are_logged_with_their_keys(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    client.post("/v2/models/late/infer", json=by_keys(["JFK", "EWR"], [2, 1]))
    wait_until(lambda: len(logged(publisher.lake)) == 2)
    frame = logged(publisher.lake)
    assert set(frame["features_from"]) == {"online_store"}
    assert [json.loads(text) for text in frame["entity_keys"]] == [
        {"origin": "JFK", "flight": 2},
        {"origin": "EWR", "flight": 1},
    ]
    assert json.loads(frame["features"][0]) == {"carrier": None, "wind": None, "hour": 3}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (by_keys(["LGA"], [3]), 400, "'hour' (from the online store) is null in row 0"),
        (by_keys(["EWR", "nowhere"], [1, 9]), 400, "is null in row 1"),
        (by_keys(["torn"], [4]), 400, "expected a number, got 'much'"),
        (by_keys(["EWR"], ["1"]), 400, "row 0: expected a whole number (INT64), got '1'"),
        (by_keys(["EWR"], [None]), 400, "row 0: expected a whole number (INT64), got null"),
        (by_keys([], []), 400, "no rows"),
        (by_keys(["down"], [1]), 503, "the online store did not answer: refused"),
        (by_keys(["view"], [1]), 500, "features cannot be read: no view of this name"),
    ],
)
def test_keys_that_lead_nowhere(
    publisher: Publisher, client: httpx.Client, request_: dict[str, Any], status: int, message: str
) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    response = client.post("/v2/models/late/infer", json=request_)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


def test_keys_of_another_type_are_refused(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    request = by_keys(["EWR"], ["1"])
    request["inputs"][1]["datatype"] = "BYTES"
    response = client.post("/v2/models/late/infer", json=request)
    assert response.status_code == 400
    assert "flight must be an integer" in response.json()["error"]
    request["inputs"][1].update(datatype="FP32", data=[1.5])
    assert "must be BYTES or INT64" in client.post("/v2/models/late/infer", json=request).json()["error"]


def test_some_keys_are_not_all_keys(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    request = by_keys(["EWR"], [1])
    del request["inputs"][1]
    response = client.post("/v2/models/late/infer", json=request)
    assert response.status_code == 400
    assert "or the entity keys origin, flight" in response.json()["error"]


def test_a_switch_makes_the_next_reader_ahead(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    client.post("/v2/models/late/infer", json=by_keys(["EWR"], [1]))
    with_registry(publisher, 2, b"another registry")
    wait_for(client, 2)
    assert [registry for registry, _, _ in MemoryReader.made] == [REGISTRY, b"another registry"]


def test_a_torn_registry_is_refused(publisher: Publisher, client: httpx.Client) -> None:
    with_registry(publisher)
    wait_for(client, 1)
    path = f"registries/{sha256(b'next')}"
    with_registry(publisher, 2, b"next")
    wait_for(client, 2)
    publisher.lake.write_bytes(path, b"torn")
    publisher(
        "late",
        "binary",
        3,
        "1",
        registry_path=path,
        registry_digest=sha256(b"next"),
        feature_service="late_features",
        entity_keys=("origin", "flight"),
    )
    error = wait_until(lambda: client.get("/v2/models/late").json()["parameters"]["route_error"])
    assert "IntegrityError" in error
    assert client.post("/v2/models/late/infer", json=by_keys(["EWR"], [1])).status_code == 200


def test_a_server_without_an_online_store_says_so(publisher: Publisher) -> None:
    with_registry(publisher)
    server = ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02, reader_factory=MemoryReader)
    with live_client(server, TOKEN) as client:
        wait_for(client, 1)
        response = client.post("/v2/models/late/infer", json=by_keys(["EWR"], [1]))
    assert response.status_code == 400
    assert "started without an online store" in response.json()["error"]
