from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.route import Pointer, publish
from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.serving.dataplane import DataPlane
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.routes import RouteFollower, RouteLoader
from tests.serving.conftest import Publisher, Server, row

Start = Callable[..., Server]


def live(client: ModelClient, revision: int) -> Callable[[], bool]:
    return lambda: (
        client.ready("late") and client.metadata("late")["parameters"]["route_revision"] == revision
    )


def test_a_switch_under_load_drops_nothing_and_never_mixes_versions(
    publisher: Publisher, start: Start
) -> None:
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    stop = threading.Event()
    seen: list[tuple[str, int, float]] = []

    def ask() -> None:
        with server.http() as http:
            while not stop.is_set():
                response = http.post("/v2/models/late/infer", json=row())
                assert response.status_code == 200, response.text
                body = response.json()
                probability = body["outputs"][1]["data"][1]
                seen.append((body["model_version"], body["parameters"]["route_revision"], probability))

    with server.client() as client, ThreadPoolExecutor(8) as pool:
        wait_until(live(client, 1))
        askers = [pool.submit(ask) for _ in range(8)]
        try:
            for revision in range(2, 8):
                count = len(seen)
                wait_until(lambda count=count: len(seen) > count + 50)
                version = "1" if revision % 2 else "2"
                publisher("late", "binary" if revision % 2 else "inverted", revision, version)
                wait_until(live(client, revision))
            count = len(seen)
            wait_until(lambda: len(seen) > count + 50)
        finally:
            stop.set()
        for asker in askers:
            asker.result()
    answers = {(version, revision): set() for version, revision, _ in seen}
    for version, revision, probability in seen:
        answers[version, revision].add(round(probability, 5))
    assert sorted(revision for _, revision in answers) == list(range(1, 8))
    first, second = answers["1", 1], answers["2", 2]
    assert len(first) == len(second) == 1
    assert first != second
    for (version, _), probabilities in answers.items():
        assert probabilities == (first if version == "1" else second)


def test_rolling_back_is_an_earlier_version_under_a_higher_revision(
    publisher: Publisher, start: Start
) -> None:
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(live(client, 1))
        before = client.post("late", row())["outputs"]
        publisher("late", "inverted", 2, "2")
        wait_until(live(client, 2))
        assert client.post("late", row())["outputs"] != before
        publisher("late", "binary", 3, "1")
        wait_until(live(client, 3))
        answer = client.post("late", row())
        assert answer["model_version"] == "1"
        assert answer["outputs"] == before


def test_a_lower_revision_is_refused_and_said_so(publisher: Publisher, start: Start) -> None:
    publisher("late", "binary", 1, "1")
    higher = publisher("late", "inverted", 2, "2")
    server = start(publisher.lake)
    with server.client() as client, server.http() as http:
        wait_until(live(client, 2))
        publisher("late", "binary", 1, "1")
        error = wait_until(lambda: client.metadata("late")["parameters"]["route_error"])
        assert "revision 1 is published, but 2 is live" in error
        assert client.post("late", row())["model_version"] == "2"
        metrics = http.get("/metrics").text
        assert 'ml_lifecycle_route_failing{endpoint="late"} 1.0' in metrics
        assert 'ml_lifecycle_route_revision{endpoint="late"} 2.0' in metrics
        publish(publisher.lake, higher)
        wait_until(lambda: client.metadata("late")["parameters"]["route_error"] is None)
    server.stop()
    assert any("revision 1 is published, but 2 is live" in line for line in server.errors)


def test_a_torn_model_is_refused_while_the_old_one_answers(publisher: Publisher, start: Start) -> None:
    first = publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    with server.client() as client, server.http() as http:
        wait_until(live(client, 1))
        data = publisher.built["inverted"].data
        path = publisher.built["inverted"].variant("2").model_path
        publisher.lake.write_bytes(path, data[:-100])
        publisher("late", "inverted", 2, "2")
        error = wait_until(lambda: client.metadata("late")["parameters"]["route_error"])
        assert "IntegrityError" in error
        assert path in error
        answer = client.post("late", row())
        assert answer["model_version"] == "1"
        assert answer["parameters"] == {
            "route_revision": 1,
            "model_digest": first.champion.model_digest,
        }
        assert 'ml_lifecycle_route_errors_total{endpoint="late"} 1.0' in http.get("/metrics").text
        publisher.lake.write_bytes(path, data)
        wait_until(live(client, 2))
        assert client.metadata("late")["parameters"]["route_error"] is None


def test_an_endpoint_whose_first_route_is_broken_says_why(publisher: Publisher, start: Start) -> None:
    publisher("late", "binary", 1, "1", model_path="models/none.onnx")
    publisher("line", "regression", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(lambda: client.ready("line"))
        assert not client.ready("late")
        with pytest.raises(
            ServerUnavailableError, match=r"no loaded route: LakeFileMissingError.*none\.onnx"
        ):
            client.metadata("late")


class Follower:
    """A follower driven by hand, with a clock of its own."""

    def __init__(self, lake: Lake) -> None:
        self.now = 0.0
        self.plane = DataPlane()
        self.follower = RouteFollower(
            lake,
            self.plane,
            RouteLoader(lake, Metrics("test")),
            Metrics("test"),
            retry_seconds=5,
            monotonic=lambda: self.now,
        )

    def error(self) -> str:
        self.follower.poll()
        return self.plane.get("late").error or ""


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("binary", {"classes": ("a", "b", "c")}, "declares 3 classes"),
        ("binary", {"task": "regression"}, "lacks ['prediction']"),
        ("regression", {"task": "binary"}, "lacks ['label', 'probabilities']"),
        ("binary", {"columns": ()}, "the model's inputs are"),
        ("binary", {"role": "canary"}, "exactly one champion"),
        ("binary", {"model_digest": "0" * 64}, "has digest"),
        ("binary", {"registry_path": "registries/none"}, "no file 'registries/none'"),
    ],
)
def test_a_route_that_does_not_fit_its_model_is_refused(
    publisher: Publisher, model: str, changes: dict[str, Any], message: str
) -> None:
    publisher("late", model, 1, "1", **changes)
    assert message in Follower(publisher.lake).error()


def test_bytes_that_are_no_model_are_refused(publisher: Publisher) -> None:
    from ml_lifecycle.adapters.lake import sha256

    publisher.lake.write_bytes("models/noise.onnx", b"noise")
    publisher("late", "binary", 1, "1", model_path="models/noise.onnx", model_digest=sha256(b"noise"))
    assert "does not load as an ONNX model" in Follower(publisher.lake).error()


def test_altered_revisions_and_pointers_are_refused(publisher: Publisher) -> None:
    lake = publisher.lake
    publisher("late", "binary", 1, "1")
    follower = Follower(lake)
    assert follower.error() == ""
    publisher("late", "binary", 2, "2")
    path = lake.full_path("routes/late/00000002.json")
    good = lake.read_bytes("routes/late/00000002.json")
    with open(path, "ab") as file:
        file.write(b" ")
    assert "has digest" in follower.error()
    lake.write_bytes("routes/late/00000002.json", good)
    follower.now += 5
    assert follower.error() == ""
    for pointer in (b"", b"[]", b"{}", b'{"revision": 3}'):
        lake.write_bytes("routes/late/current.json", pointer)
        assert "routes/late/current.json is no" in follower.error()
    lake.delete("routes/late/current.json")
    assert "has vanished" in follower.error()
    served = follower.plane.served("late")
    assert served.route.revision == 2


def test_another_endpoints_route_is_refused(publisher: Publisher) -> None:
    publisher("other", "binary", 1, "1")
    publisher.lake.write_json(
        "routes/late/current.json", publisher.lake.read_json("routes/other/current.json")
    )
    assert "leads to 'other' revision 1" in Follower(publisher.lake).error()


def test_a_failed_route_is_tried_again_only_after_a_while(publisher: Publisher) -> None:
    path = publisher.built["binary"].variant("1").model_path
    publisher.lake.write_bytes(path, b"torn")
    publisher("late", "binary", 1, "1")
    follower = Follower(publisher.lake)
    assert "IntegrityError" in follower.error()
    publisher.lake.write_bytes(path, publisher.built["binary"].data)
    follower.now = 4.9
    assert "IntegrityError" in follower.error()
    follower.now = 5.0
    assert follower.error() == ""


def test_a_model_that_stays_is_not_loaded_twice(publisher: Publisher) -> None:
    follower = Follower(publisher.lake)
    publisher("late", "binary", 1, "1")
    follower.follower.poll()
    before = follower.plane.served("late")
    follower.follower.poll()
    assert follower.plane.served("late") is before
    publisher("late", "binary", 2, "1")
    follower.follower.poll()
    after = follower.plane.served("late")
    assert after is not before
    assert after.variants[0].slot is before.variants[0].slot


def test_versions_are_picked_by_role_and_by_name(publisher: Publisher) -> None:
    route = publisher("late", "binary", 1, "1")
    publisher("scratch", "inverted", 1, "2")
    shadow = replace(publisher.built["inverted"].variant("2"), role="shadow")
    loader = RouteLoader(publisher.lake, Metrics("test"))
    both = replace(route, variants=(shadow, route.champion))
    served = loader.load(both, Pointer(1, "", ""))
    assert served.versions == ("1", "2")
    assert served.pick().variant.version == "1"
    assert served.pick("2").variant.role == "shadow"
