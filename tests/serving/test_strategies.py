"""Several versions behind one endpoint: shares of the traffic, and copies of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from live_server import live_client
from waiting import wait_until

from ml_lifecycle.adapters.lake import sha256
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.assignment import key_of, share_of
from ml_lifecycle.serving.server import ModelServer
from ml_lifecycle.serving.shadows import Load
from tests.serving.conftest import TOKEN, Built, Publisher, logged, row

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = [f"user-{number}" for number in range(2_000)]


def variant(publisher: Publisher, model: str, version: str, **changes: Any) -> Variant:
    """A variant of the lake's."""
    from dataclasses import replace

    data = publisher.built[model].data
    publisher.lake.write_bytes(f"models/{sha256(data)}.onnx", data)
    return replace(publisher.built[model].variant(version), **changes)


def release(
    publisher: Publisher, revision: int, variants: Sequence[Variant], salt: str = "a", endpoint: str = "late"
) -> None:
    """A route of several variants."""
    publish(
        publisher.lake, Route(endpoint, "flight_delay", revision, tuple(variants), "0" * 64, MOMENT, salt)
    )


@pytest.fixture
def client(publisher: Publisher) -> Iterator[httpx.Client]:
    server = ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02)
    with live_client(server, TOKEN) as http:
        yield http


def wait_for(client: httpx.Client, revision: int, endpoint: str = "late") -> None:
    def live() -> bool:
        response = client.get(f"/v2/models/{endpoint}")
        return response.is_success and response.json()["parameters"]["route_revision"] == revision

    wait_until(live)


def answered_by(client: httpx.Client, **request: Any) -> str:
    headers = request.pop("headers", {})
    response = client.post("/v2/models/late/infer", json={**row(), **request}, headers=headers)
    assert response.status_code == 200, response.text
    version: str = response.json()["model_version"]
    return version


def test_shares_are_even_independent_of_each_other_and_do_not_move() -> None:
    shares = np.array([share_of("salt", key) for key in KEYS])
    counts, _ = np.histogram(shares, 10, (0, 1))
    assert counts.min() > 150
    assert counts.max() < 250
    other = np.array([share_of("other", key) for key in KEYS])
    assert abs(np.corrcoef(shares, other)[0, 1]) < 0.07
    # A figure that must never change: users would change sides with it.
    assert share_of("salt", "user-1") == pytest.approx(0.8298019805, abs=1e-9)


def test_what_a_request_is_assigned_by() -> None:
    assert key_of({"assignment_key": "u"}, {"flight": [7]}, "id") == "u"
    assert key_of({"assignment_key": 5}, {}, "id") == "5"
    assert key_of({}, {"origin": ["JFK", "EWR"], "flight": [7, 8]}, "id") == "7\0JFK"
    assert key_of({}, {}, "id") == "id"


def test_a_growing_canary_keeps_whom_it_has(publisher: Publisher, client: httpx.Client) -> None:
    users = [f"u{number}" for number in range(300)]
    sides: dict[float, set[str]] = {}
    for revision, weight in enumerate((0.05, 0.25, 0.5, 1.0), start=1):
        champion = variant(publisher, "binary", "1")
        canary = variant(publisher, "inverted", "2", role="canary", weight=weight)
        release(publisher, revision, [champion, canary])
        wait_for(client, revision)
        for _ in range(2):  # asked again, the same side
            found = {
                user for user in users if answered_by(client, parameters={"assignment_key": user}) == "2"
            }
            assert sides.setdefault(weight, found) == found
    assert sides[0.05] < sides[0.25] < sides[0.5] < sides[1.0] == set(users)
    assert 3 <= len(sides[0.05]) <= 30
    assert 50 <= len(sides[0.25]) <= 100
    assert 120 <= len(sides[0.5]) <= 180


def test_who_is_asked_can_be_said(publisher: Publisher, client: httpx.Client) -> None:
    champion = variant(publisher, "binary", "1")
    canary = variant(publisher, "inverted", "2", role="canary", weight=0.5)
    shadow = variant(publisher, "binary", "3", role="shadow", threshold=0.9)
    release(publisher, 1, [champion, canary, shadow])
    wait_for(client, 1)
    for version in ("1", "2", "3"):
        assert answered_by(client, headers={"ml-lifecycle-version": version}) == version
        path = f"/v2/models/late/versions/{version}/infer"
        assert client.post(path, json=row()).json()["model_version"] == version
    response = client.post("/v2/models/late/infer", json=row(), headers={"ml-lifecycle-version": "4"})
    assert response.status_code == 404
    by_header = [
        {answered_by(client, headers={"ml-lifecycle-key": key}) for _ in range(3)} for key in KEYS[:20]
    ]
    assert all(len(versions) == 1 for versions in by_header)
    assert len({versions.pop() for versions in by_header}) == 2
    by_entity = {
        flight: {answered_by(client, parameters={"entities": {"flight": [flight]}}) for _ in range(3)}
        for flight in range(20)
    }
    assert all(len(versions) == 1 for versions in by_entity.values())
    # Without any key each request is assigned anew; a shadow answers only who names it.
    anew = Counter(answered_by(client) for _ in range(60))
    assert anew.keys() == {"1", "2"}
    assert min(anew.values()) > 10


def test_a_canary_may_take_other_columns(publisher: Publisher, client: httpx.Client) -> None:
    champion = variant(publisher, "binary", "1")
    canary = variant(publisher, "regression", "2", role="canary", weight=0.5)
    release(publisher, 1, [champion, canary])
    wait_for(client, 1)
    packed = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    for request, version in ((row(), "1"), (packed, "2")):
        found = client.post("/v2/models/late/infer", json=request, headers={"ml-lifecycle-version": version})
        assert found.status_code == 200
        other = {"1": "2", "2": "1"}[version]
        refused = client.post("/v2/models/late/infer", json=request, headers={"ml-lifecycle-version": other})
        assert refused.status_code == 400


def metric(client: httpx.Client, line: str) -> float:
    lines = dict(text.rsplit(" ", 1) for text in client.get("/metrics").text.splitlines())
    return float(lines.get(line, 0))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy is dropped because the machine has other work."""
    monkeypatch.setattr("ml_lifecycle.serving.shadows._PATIENCE_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
def test_a_shadow_scores_copies_that_are_logged_compared_and_not_returned(publisher: Publisher) -> None:
    champion = variant(publisher, "binary", "1")
    shadow = variant(publisher, "inverted", "2", role="shadow")
    same = variant(publisher, "binary", "3", role="shadow")
    release(publisher, 1, [champion, shadow, same])
    with live_client(ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02), TOKEN) as client:
        wait_for(client, 1)
        for number in range(40):
            assert answered_by(client, id=f"r{number}") == "1"
        scored = 'ml_lifecycle_shadow_rows_total{endpoint="late",outcome="scored",version="%s"}'
        wait_until(lambda: metric(client, scored % "2") == metric(client, scored % "3") == 40)
        differ = 'ml_lifecycle_shadow_disagreements_total{endpoint="late",version="%s"}'
        assert (metric(client, differ % "2"), metric(client, differ % "3")) == (40, 0)
    log = logged(publisher.lake)
    assert Counter(log["model_version"]) == {"1": 40, "2": 40, "3": 40}
    assert set(log.filter(pl.col("variant") == "shadow")["returned"]) == {False}
    assert set(log.filter(pl.col("variant") == "champion")["returned"]) == {True}
    sides = {
        version: {
            one["prediction_id"]: json.loads(one["outputs"])
            for one in log.filter(pl.col("model_version") == version).to_dicts()
        }
        for version in ("1", "2", "3")
    }
    assert sides["1"] == sides["3"]
    assert all(sides["1"][key]["label"] != other["label"] for key, other in sides["2"].items())


@pytest.mark.usefixtures("patient")
def test_a_shadow_that_cannot_score_hurts_nobody_and_is_counted(
    publisher: Publisher, client: httpx.Client
) -> None:
    champion = variant(publisher, "binary", "1")
    lacking = variant(publisher, "regression", "2", role="shadow")
    strict = variant(
        publisher,
        "binary",
        "3",
        role="shadow",
        columns=(ColumnSpec("carrier", "string"), ColumnSpec("wind", "float"), ColumnSpec("hour", "int")),
    )
    release(publisher, 1, [champion, lacking, strict])
    wait_for(client, 1)
    for _ in range(5):
        body = row(wind=None)
        assert client.post("/v2/models/late/infer", json=body).json()["model_version"] == "1"
    rows = 'ml_lifecycle_shadow_rows_total{endpoint="late",outcome="%s",version="%s"}'
    wait_until(lambda: metric(client, rows % ("skipped", "2")) == 5)
    wait_until(lambda: metric(client, rows % ("failed", "3")) == 5)


def test_copies_that_no_time_is_left_for_are_dropped_and_counted(
    publisher: Publisher, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_lifecycle.serving.shadows._PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("ml_lifecycle.serving.shadows.Load.is_over", lambda load, now: True)
    release(
        publisher, 1, [variant(publisher, "binary", "1"), variant(publisher, "inverted", "2", role="shadow")]
    )
    wait_for(client, 1)
    for _ in range(5):
        assert answered_by(client) == "1"
    rows = 'ml_lifecycle_shadow_rows_total{endpoint="late",outcome="%s",version="2"}'
    wait_until(lambda: metric(client, rows % "dropped") == 5)
    assert metric(client, rows % "scored") == 0


@pytest.mark.parametrize(("together", "over"), [(1, False), (32, True)])
def test_a_server_is_at_its_limit_if_it_has_no_pause_and_answers_many_at_once(
    together: int, over: bool
) -> None:
    load, now = Load(), time.monotonic()
    load.is_over(now)
    began = time.thread_time()
    while time.thread_time() - began < 0.05:
        load.answered(together)
    assert load.is_over(now + 0.05) == over
    load.answered(together)
    assert load.is_over(now + 0.06) == over, "it is looked at every now and then"
    assert not load.is_over(now + 1000)


def looked_up() -> Built:
    """A file that loads, and fails for hours that its table does not have."""
    from onnx import TensorProto, helper

    table = helper.make_tensor("table", TensorProto.FLOAT, [24], [float(hour) for hour in range(24)])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "hour"], ["prediction"])],
        "hours",
        [helper.make_tensor_value_info("hour", TensorProto.INT64, [None, 1])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None, 1])],
        [table],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return Built(model.SerializeToString(), None, "regression", (ColumnSpec("hour", "int"),), ())


def test_a_variant_that_fails_is_logged_with_what_it_failed_on(publisher: Publisher) -> None:
    """A release is judged by its errors: they must be in the log beside the answers."""
    publisher.built = {**publisher.built, "table": looked_up()}
    release(publisher, 1, [variant(publisher, "table", "1")])

    def ask(client: httpx.Client, name: str, *hours: Any) -> int:
        inputs = [{"name": "hour", "datatype": "INT64", "shape": [len(hours)], "data": hours}]
        return client.post("/v2/models/late/infer", json={"id": name, "inputs": inputs}).status_code

    with live_client(ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02), TOKEN) as client:
        wait_for(client, 1)
        assert ask(client, "good", 7) == 200
        assert ask(client, "bad", 7, 99) == 500
        assert ask(client, "wrong", "x") == 400
    log = logged(publisher.lake).sort("prediction_id", "row")
    assert log.select("prediction_id", "row", "status", "score").rows() == [
        ("bad", 0, 500, None),
        ("bad", 1, 500, None),
        ("good", 0, 200, 7.0),
    ], "a client's fault is none of ours"
    assert log["outputs"].to_list()[:2] == [None, None]


@pytest.mark.parametrize("wind", [1.5, None], ids=["other columns", "no null"])
def test_what_a_canary_refuses_the_champion_answers_and_the_log_tells(
    publisher: Publisher, wind: float | None
) -> None:
    """A new version that does not take what clients send must hurt none of them, and be seen."""
    more = (ColumnSpec("gust", "float"),) if wind else ()
    strict = (ColumnSpec("carrier", "string"), ColumnSpec("wind", "float"), ColumnSpec("hour", "int"), *more)
    canary = variant(publisher, "binary", "2", role="canary", weight=0.5, columns=strict)
    release(publisher, 1, [variant(publisher, "binary", "1", weight=0.5), canary])
    names = [f"r{number}" for number in range(40)]
    assigned = {name for name in names if share_of("a", name) < 0.5}
    with live_client(ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02), TOKEN) as client:
        wait_for(client, 1)
        assert {answered_by(client, id=name, **row(wind=wind)) for name in names} == {"1"}
        for version in ("2", None):
            path = f"/v2/models/late/versions/{version}/infer" if version else "/v2/models/late/infer"
            body = row(wind=wind) if version else row(hour="x")
            response = client.post(path, json={**body, "id": next(iter(assigned))})
            assert response.status_code == 400, "who asks that version, or nonsense, is told"
    log = logged(publisher.lake)
    refused = log.filter(pl.col("status") == 400)
    assert set(refused["prediction_id"]) == assigned
    assert set(refused.select("model_version", "variant", "returned").rows()) == {("2", "canary", False)}
    answered = log.filter(pl.col("status") == 200)
    assert sorted(answered["prediction_id"]) == sorted(names)
    assert set(answered.select("model_version", "returned").rows()) == {("1", True)}
