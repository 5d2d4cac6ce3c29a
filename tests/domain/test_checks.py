from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import COLUMNS, NOW, Server, make_golden, make_model

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.predictions import CHECK_ID_PREFIX
from ml_lifecycle.delivery.checks import Clock, Golden, not_followed, run_checks, wait_for
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.client import ModelClient

CLOCK = Clock(now=lambda: NOW)


class Rewriting:
    """The real client, its answers altered on the way: a server that is a little wrong."""

    def __init__(self, client: ModelClient, change: Any) -> None:
        self._client = client
        self._change = change
        self.ids: list[str] = []

    def ready(self, endpoint: str | None = None) -> bool:
        return self._client.ready(endpoint)

    def metadata(self, endpoint: str, version: str | None = None) -> dict[str, Any]:
        return self._client.metadata(endpoint, version)

    def post(self, endpoint: str, request: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
        self.ids.append(request["id"])
        response = self._client.post(endpoint, request, version)
        self._change(response)
        return response


@pytest.fixture(scope="module")
def route() -> Route:
    digest = sha256(make_model(2.0))
    variant = Variant("champion", "1", f"models/{digest}.onnx", digest, "regression", COLUMNS, ())
    return Route("delays", "delays", 3, (variant,), "0" * 64, NOW)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, route: Route) -> Iterator[ModelClient]:
    lake = Lake(str(tmp_path_factory.mktemp("serving") / "lake"))
    lake.write_bytes(route.champion.model_path, make_model(2.0))
    publish(lake, route)
    server = Server(lake)
    with server.client() as client:
        assert wait_for(lambda: not_followed(client, route), 15, CLOCK, print) is None
        yield client
    server.stop()


@pytest.fixture
def golden() -> Golden:
    return Golden(**make_golden(2.0))


def test_a_right_server_passes(client: ModelClient, route: Route, golden: Golden) -> None:
    assert run_checks(client, route, route.champion, golden, None) == []


def test_golden_rows_come_from_the_evaluation(tmp_path: Path, golden: Golden) -> None:
    lake = Lake(str(tmp_path))
    lake.write_json("golden.json", {"schema": "golden/1", "model_digest": "x", **make_golden(2.0)})
    assert Golden.read(lake, "golden.json") == golden


def test_a_difference_beyond_the_tolerance_fails(client: ModelClient, route: Route, golden: Golden) -> None:
    wrong = replace(golden, expected={"prediction": [207.0, 513.0002, 17.0]})
    (failure,) = run_checks(client, route, route.champion, wrong, None)
    assert failure == "golden rows: prediction[1] is 513.0, expected 513.0002"
    assert run_checks(client, route, route.champion, replace(wrong, absolute=1e-3), None) == []


@pytest.mark.parametrize(
    ("expected", "failure"),
    [
        ({"prediction": [207.0]}, "golden rows: prediction has 3 values, expected 1"),
        ({"label": ["a", "b", "c"]}, "golden rows: the answer lacks ['label']"),
    ],
)
def test_another_form_fails(
    client: ModelClient, route: Route, golden: Golden, expected: dict[str, Any], failure: str
) -> None:
    assert run_checks(client, route, route.champion, replace(golden, expected=expected), None) == [failure]


@pytest.mark.parametrize("value", [None, float("nan"), "207.0"])
def test_what_is_no_number_fails(client: ModelClient, route: Route, golden: Golden, value: Any) -> None:
    def change(response: dict[str, Any]) -> None:
        response["outputs"][0]["data"][0] = value

    (failure,) = run_checks(Rewriting(client, change), route, route.champion, golden, None)
    assert failure == f"golden rows: prediction[0] is {value!r}, expected 207.0"


def test_another_model_behind_the_endpoint_fails(client: ModelClient, route: Route, golden: Golden) -> None:
    other = replace(route, variants=(replace(route.champion, model_digest="f" * 64),))
    (failure,) = run_checks(client, other, other.champion, golden, None)
    assert failure.startswith(f"golden rows: model {route.champion.model_digest} answered, not ffff")


def test_columns_of_another_type_fail(client: ModelClient, route: Route, golden: Golden) -> None:
    columns = (COLUMNS[0], ColumnSpec("hour", "string"))
    other = replace(route, variants=(replace(route.champion, columns=columns),))
    (failure,) = run_checks(client, other, other.champion, golden, None)
    assert failure.startswith("columns: the server takes {'distance': 'FP32', 'hour': 'INT64'}, the model")


def test_a_server_that_answers_wrong_inputs_fails(client: ModelClient, route: Route, golden: Golden) -> None:
    class Lenient(Rewriting):
        def post(
            self, endpoint: str, request: Mapping[str, Any], version: str | None = None
        ) -> dict[str, Any]:
            return super().post(endpoint, {**golden.request, "id": request["id"]}, version)

    failures = run_checks(Lenient(client, lambda _: None), route, route.champion, golden, None)
    assert failures == [
        "missing input: was answered with predictions, expected 400",
        "wrong datatype: was answered with predictions, expected 400",
    ]


def test_an_endpoint_that_is_not_there_fails_every_check(
    client: ModelClient, route: Route, golden: Golden
) -> None:
    elsewhere = replace(route, endpoint="elsewhere")
    failures = run_checks(client, elsewhere, route.champion, golden, 1000.0)
    assert [failure.split(":")[0] for failure in failures] == [
        "columns",
        "golden rows",
        "missing input",
        "wrong datatype",
        "latency",
    ]
    assert "answered 404, expected 400" in failures[2]


def test_latency_is_checked_on_single_rows(client: ModelClient, route: Route, golden: Golden) -> None:
    assert run_checks(client, route, route.champion, golden, 10_000.0) == []
    (failure,) = run_checks(client, route, route.champion, golden, 1e-6)
    assert failure.startswith("latency: p99 is ")
    assert failure.endswith(" over 200 requests, at most 1e-06 ms is allowed")


def test_the_checks_are_told_from_traffic_by_their_ids(
    client: ModelClient, route: Route, golden: Golden
) -> None:
    watched = Rewriting(client, lambda _: None)
    run_checks(watched, route, route.champion, golden, 10_000.0)
    assert len(watched.ids) == 203
    assert all(one.startswith(CHECK_ID_PREFIX) for one in watched.ids)
