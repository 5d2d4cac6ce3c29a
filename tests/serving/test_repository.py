"""Models in memory and out of it: the repository's calls, and a budget."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from live_server import live_client
from waiting import wait_until

from ml_lifecycle.delivery.route import Pointer, Route
from ml_lifecycle.serving.door import Client
from ml_lifecycle.serving.errors import RouteRefusedError
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.routes import RouteLoader
from ml_lifecycle.serving.server import ModelServer
from ml_lifecycle.serving.shelf import Shelf, Slot, estimated_bytes
from tests.serving.conftest import TOKEN, Publisher, Server, row, with_repository
from tests.serving.test_grpc import Client as GrpcClient
from tests.serving.test_grpc import free_port

NOT_YOURS = "{} may not load or unload models: that is for a client of --clients with repository: true"
PACKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


@pytest.fixture
def client(publisher: Publisher) -> Iterator[httpx.Client]:
    publisher("late", "binary", 1, "7")
    publisher("line", "regression", 1, "1")
    clients = {TOKEN: Client("platform", repository=True), "other": Client("scoring")}
    with live_client(ModelServer(publisher.lake, "test", clients, poll_seconds=0.02), TOKEN) as http:
        wait_until(lambda: all(http.get(f"/v2/models/{name}/ready").is_success for name in ("late", "line")))
        yield http


def index(client: httpx.Client, **asked: Any) -> dict[str, tuple[str, str]]:
    found = client.post("/v2/repository/index", json=asked).json()
    return {one["name"]: (one["version"], one["state"]) for one in found}


def test_unloaded_it_says_so_and_loaded_it_answers_again(publisher: Publisher, client: httpx.Client) -> None:
    assert index(client) == {"late": ("7", "READY"), "line": ("1", "READY")}
    assert client.post("/v2/repository/models/late/unload").json() == {}
    assert index(client) == {"late": ("", "UNAVAILABLE"), "line": ("1", "READY")}
    assert index(client, ready=True) == {"line": ("1", "READY")}
    refused = client.post("/v2/models/late/infer", json=row())
    assert refused.status_code == 503
    assert "unloaded on request" in refused.json()["error"]
    assert client.get("/v2/models/late/ready").status_code == 503
    # A new revision does not bring it back by itself.
    publisher("late", "inverted", 2, "8")
    publisher("line", "regression", 2, "2")
    wait_until(lambda: index(client)["line"] == ("2", "READY"))
    assert index(client)["late"] == ("", "UNAVAILABLE")
    assert client.post("/v2/repository/models/late/load", json={}).json() == {}
    assert index(client)["late"] == ("8", "READY")
    assert client.post("/v2/models/late/infer", json=row()).json()["model_version"] == "8"
    # It is followed again.
    publisher("late", "binary", 3, "9")
    wait_until(lambda: index(client)["late"] == ("9", "READY"))
    for call in ("unload", "unload", "load", "load"):  # twice is no error
        assert client.post(f"/v2/repository/models/late/{call}").status_code == 200


def test_a_load_takes_what_was_published_a_moment_ago(publisher: Publisher) -> None:
    clients = {TOKEN: Client("platform", repository=True)}
    with live_client(ModelServer(publisher.lake, "test", clients, poll_seconds=3600), TOKEN) as client:
        wait_until(lambda: client.get("/v2/health/ready").is_success)
        publisher("late", "binary", 1, "7")
        assert client.get("/v2/models/late").status_code == 404
        assert client.post("/v2/repository/models/late/load").status_code == 200
        assert index(client) == {"late": ("7", "READY")}


def test_who_may_not_and_what_is_not_there(client: httpx.Client) -> None:
    for call in ("load", "unload"):
        path = f"/v2/repository/models/late/{call}"
        refused = client.post(path, headers={"Authorization": "Bearer other"})
        assert refused.status_code == 403
        assert refused.json()["error"] == NOT_YOURS.format("scoring")
        assert client.post(f"/v2/repository/models/none/{call}").status_code == 404
        assert client.post(path, content=b"[").status_code == 400
        assert client.get(path).status_code == 405
    assert client.post("/v2/repository/index", headers={"Authorization": "Bearer other"}).status_code == 200
    assert client.post("/v2/repository/models/late/reload").status_code == 404
    assert index(client) == {"late": ("7", "READY"), "line": ("1", "READY")}


def test_the_one_token_of_all_asks_for_predictions_only(
    publisher: Publisher, start: Callable[..., Server]
) -> None:
    publisher("late", "binary", 1, "7")
    port = free_port()
    server = start(publisher.lake, "--grpc-port", str(port))
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
    call = GrpcClient(port)
    with server.http() as http:
        for word in ("load", "unload"):
            refused = http.post(f"/v2/repository/models/late/{word}")
            assert (refused.status_code, refused.json()["error"]) == (403, NOT_YOURS.format("anybody"))
            with pytest.raises(grpc.RpcError) as error:
                call(f"RepositoryModel{word.title()}", model_name="late")
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert error.value.details() == NOT_YOURS.format("anybody")
        assert index(http) == {"late": ("7", "READY")}
    call.channel.close()
    server.stop()
    assert "client anybody" not in "".join(server.errors)


def test_over_grpc(publisher: Publisher, start: Callable[..., Server], tmp_path: Path) -> None:
    publisher("late", "binary", 1, "7")
    port = free_port()
    server = start(publisher.lake, "--grpc-port", str(port), *with_repository(tmp_path))
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
    call = GrpcClient(port)

    def states() -> list[tuple[str, str, str]]:
        return [(one.name, one.version, one.state) for one in call("RepositoryIndex").models]

    assert states() == [("late", "7", "READY")]
    call("RepositoryModelUnload", model_name="late")
    assert states() == [("late", "", "UNAVAILABLE")]
    with pytest.raises(grpc.RpcError) as refused:
        call("ModelInfer", model_name="late")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    call("RepositoryModelLoad", model_name="late")
    assert states() == [("late", "7", "READY")]
    with pytest.raises(grpc.RpcError) as unknown:
        call("RepositoryModelLoad", model_name="none")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    call.channel.close()
    with server.http() as http:
        assert http.post("/v2/repository/models/late/unload").status_code == 200
    server.stop()
    noted = [line.partition("client platform: ")[2].strip() for line in server.errors]
    changes = [line for line in noted if line]
    assert changes == ["unload 'late'", "load 'late'", "load 'none'", "unload 'late'"]


def slots(publisher: Publisher, shelf: Shelf, count: int, **changes: Any) -> list[Slot]:
    """Places of endpoints that nobody has asked yet."""
    loader = RouteLoader(publisher.lake, Metrics("test"), shelf=shelf)
    found = []
    for number in range(count):
        route = publisher(f"e{number}", "regression", 1, "1", **changes)
        found.append(loader.load(route, Pointer(1, "", "")).champion.slot)
    return found


def test_within_a_budget_those_asked_for_last_stay(publisher: Publisher) -> None:
    size = estimated_bytes(len(publisher.built["regression"].data))
    metrics = Metrics("test")
    shelf = Shelf(metrics, budget=3 * size)
    some = slots(publisher, shelf, 3)
    assert [slot.loaded for slot in some] == [True] * 3
    assert shelf.used == 3 * size
    later = slots(publisher, shelf, 5)[3:]
    assert [slot.loaded for slot in later] == [False, False], "a full shelf loads at the first request"
    some[0].get()
    later[0].get()  # puts out the one asked for the longest ago
    assert [slot.loaded for slot in some] == [True, False, True]
    later[1].get()
    assert [slot.loaded for slot in some] == [True, False, False]
    assert shelf.used == 3 * size
    assert b"ml_lifecycle_model_evictions_total 2.0" in metrics.expose()
    assert some[1].get().run is not None
    assert [slot.loaded for slot in (*some, *later)] == [False, True, False, True, True]


def test_what_is_no_longer_served_makes_room_by_itself(publisher: Publisher) -> None:
    size = estimated_bytes(len(publisher.built["regression"].data))
    shelf = Shelf(Metrics("test"), budget=10 * size)
    some = slots(publisher, shelf, 3)
    del some[0]
    gc.collect()
    assert shelf.used == 2 * size


def test_a_challenger_is_loaded_and_stays(publisher: Publisher) -> None:
    size = estimated_bytes(len(publisher.built["regression"].data))
    shelf = Shelf(Metrics("test"), budget=size)
    loader = RouteLoader(publisher.lake, Metrics("test"), shelf=shelf)
    champion = publisher("a", "regression", 1, "1").champion
    canary = publisher("b", "regression", 1, "2", role="canary", threshold=0.4).variants[0]
    both = Route("a", "m", 2, (champion, canary), "0" * 64, publisher("c", "binary", 1, "1").published_at)
    served = loader.load(both, Pointer(2, "", ""))
    assert [loaded.slot.loaded for loaded in served.variants] == [False, True]
    (other,) = slots(publisher, shelf, 1)
    other.get()
    assert served.canaries[0].slot.loaded


def test_a_model_is_loaded_once_however_many_ask(publisher: Publisher) -> None:
    shelf = Shelf(Metrics("test"))
    loads: list[int] = []
    ready = threading.Barrier(8)
    served = RouteLoader(publisher.lake, Metrics("test"), shelf=shelf).load(
        publisher("late", "binary", 1, "1"), Pointer(1, "", "")
    )
    model = served.champion.slot.get()

    def load() -> tuple[Any, int]:
        loads.append(1)
        return model, 1

    slot = shelf.slot(load)

    def ask() -> object:
        ready.wait()
        return slot.get()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ask(), range(8)))
    assert found == [model] * 8
    assert loads == [1]


def test_a_model_that_does_not_load_is_tried_again(publisher: Publisher) -> None:
    def load() -> tuple[Any, int]:
        raise RouteRefusedError("not today")

    slot = Shelf(Metrics("test")).slot(load)
    for _ in range(2):
        with pytest.raises(RouteRefusedError):
            slot.get()
    assert not slot.loaded


def test_a_server_with_too_little_memory_answers_for_all_its_models(publisher: Publisher) -> None:
    names = [f"e{number}" for number in range(6)]
    for name in names:
        publisher(name, "regression", 1, "1")
    size = estimated_bytes(len(publisher.built["regression"].data))
    server = ModelServer(publisher.lake, "test", TOKEN, poll_seconds=0.02, model_memory=2 * size)
    with live_client(server, TOKEN) as client:
        wait_until(lambda: all(client.get(f"/v2/models/{name}/ready").is_success for name in names))
        for _ in range(2):
            for name in names:
                assert client.post(f"/v2/models/{name}/infer", json=PACKED).status_code == 200
                assert client.get(f"/v2/models/{name}").json()["outputs"][0]["name"] == "prediction"
        text = client.get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("ml_lifecycle_models_bytes ")]
    assert float(line.split()[1]) == 2 * size
