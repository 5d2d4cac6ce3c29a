from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from tests.serving.conftest import TOKEN, Built, Publisher, Server, row


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[Server]:
    lake = Lake(str(tmp_path_factory.mktemp("rest")))
    publish = Publisher(lake, built)
    publish("late", "binary", 4, "7")
    publish("sizes", "multiclass", 1, "1")
    publish("grades", "grades", 1, "1")
    publish("line", "regression", 1, "1")
    publish("strict", "binary", 1, "2", threshold=0.999999)
    running = Server(lake)
    try:
        with running.client() as client:
            wait_until(
                lambda: all(client.ready(name) for name in ("late", "sizes", "grades", "line", "strict"))
            )
        yield running
    finally:
        running.stop()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def test_health_is_open_and_everything_else_asks_for_the_token(server: Server) -> None:
    with httpx.Client(base_url=server.url) as bare:
        assert bare.get("/v2/health/live").json() == {"live": True}
        assert bare.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2", "/metrics", "/v2/models/late", "/v2/models/late/ready", "/nowhere"):
            refused = bare.get(path)
            assert refused.status_code == 401, path
            assert refused.json()["error"] == "a bearer token is needed: Authorization: Bearer <token>"
        for header in ("Bearer wrong", TOKEN, f"Basic {TOKEN}", "Bearer \xe9", "Bearer"):
            response = bare.post(
                "/v2/models/late/infer", json=row(), headers={"Authorization": header.encode("latin-1")}
            )
            assert response.status_code == 401, header
            wrong = header in ("Bearer wrong", "Bearer \xe9")
            assert ("the bearer token is wrong" in response.json()["error"]) == wrong


def test_server_metadata_names_the_environment_and_the_models(http: httpx.Client) -> None:
    about = http.get("/v2").json()
    assert about["name"] == "ml_lifecycle"
    assert about["environment"] == "staging"
    assert about["models"] == ["grades", "late", "line", "sizes", "strict"]


def test_model_metadata_says_what_is_live(http: httpx.Client, built: dict[str, Built]) -> None:
    for path in ("/v2/models/late", "/v2/models/late/versions/7"):
        metadata = http.get(path).json()
        assert metadata["versions"] == ["7"]
        assert metadata["inputs"] == [
            {"name": "carrier", "datatype": "BYTES", "shape": [-1]},
            {"name": "wind", "datatype": "FP32", "shape": [-1]},
            {"name": "hour", "datatype": "INT64", "shape": [-1]},
        ]
        assert [output["name"] for output in metadata["outputs"]] == ["label", "probabilities"]
        assert metadata["outputs"][1]["shape"] == [-1, 2]
        parameters = metadata["parameters"]
        assert parameters["route_revision"] == 4
        assert parameters["model_digest"] == built["binary"].variant("7").model_digest
        assert parameters["route_error"] is None
        assert parameters["columns"][1] == {"name": "wind", "type": "float", "nullable": True}
    assert http.get("/v2/models/late/versions/7/ready").json() == {
        "name": "late",
        "version": "7",
        "ready": True,
    }


def test_binary_answers_are_the_estimators(http: httpx.Client, built: dict[str, Built]) -> None:
    table = pd.DataFrame(
        {
            "carrier": ["AA", "", "unseen"],
            "wind": np.array([12.5, np.nan, 3.0], dtype="float32"),
            "hour": [17, 3, 23],
        }
    )
    request = {
        "id": "mine",
        "inputs": [
            {"name": "hour", "datatype": "INT32", "shape": [3, 1], "data": [[17], [3], [23]]},
            {"name": "wind", "datatype": "FP64", "shape": [3], "data": [12.5, None, 3]},
            {"name": "carrier", "datatype": "BYTES", "shape": [3], "data": ["AA", None, "unseen"]},
        ],
    }
    response = http.post("/v2/models/late/infer", json=request)
    found = outputs(response)
    estimator = built["binary"].estimator
    assert found["label"]["datatype"] == "INT64"
    assert found["label"]["data"] == estimator.predict(table).tolist()
    assert found["probabilities"]["shape"] == [3, 2]
    np.testing.assert_allclose(
        np.reshape(found["probabilities"]["data"], (3, 2)), estimator.predict_proba(table), atol=1e-5
    )
    body = response.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("late", "7", "mine")
    assert body["parameters"] == {
        "route_revision": 4,
        "model_digest": built["binary"].variant("7").model_digest,
    }
    assert http.post("/v2/models/late/versions/7/infer", json=request).json() == body


def test_multiclass_and_regression_take_a_packed_tensor(http: httpx.Client, built: dict[str, Built]) -> None:
    table = pd.DataFrame(
        {"a": np.array([1.5, np.nan], dtype="float32"), "b": np.array([0.25, -2], dtype="float32")}
    )
    for data in ([1.5, 0.25, None, -2], [[1.5, 0.25], [None, -2]]):
        request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 2], "data": data}]}
        found = outputs(http.post("/v2/models/sizes/infer", json=request))
        assert found["label"]["datatype"] == "BYTES"
        assert found["label"]["data"] == built["multiclass"].estimator.predict(table).tolist()
        expected = built["multiclass"].estimator.predict_proba(table)
        np.testing.assert_allclose(np.reshape(found["probabilities"]["data"], (2, 3)), expected, atol=1e-5)
        found = outputs(http.post("/v2/models/line/infer", json=request))
        assert found["prediction"]["shape"] == [2]
        np.testing.assert_allclose(
            found["prediction"]["data"], built["regression"].estimator.predict(table), atol=1e-5
        )


@pytest.mark.parametrize(
    ("endpoint", "label"), [("late", "INT64"), ("sizes", "BYTES"), ("grades", "INT64"), ("line", None)]
)
def test_metadata_announce_what_is_answered(http: httpx.Client, endpoint: str, label: str | None) -> None:
    metadata = http.get(f"/v2/models/{endpoint}").json()
    values = {"BYTES": [None, "AA"], "FP32": [None, 1.5], "INT64": [3, 4]}
    inputs = [
        {"name": one["name"], "datatype": one["datatype"], "shape": [2], "data": values[one["datatype"]]}
        for one in metadata["inputs"]
        if one["name"] != "b"
    ]
    if endpoint != "late":
        inputs.append({"name": "b", "datatype": "FP32", "shape": [2], "data": [0.5, -1]})
    answered = outputs(http.post(f"/v2/models/{endpoint}/infer", json={"inputs": inputs}))
    announced = {one["name"]: one for one in metadata["outputs"]}
    assert answered.keys() == announced.keys()
    for name, one in answered.items():
        assert one["datatype"] == announced[name]["datatype"]
        assert [-1, *one["shape"][1:]] == announced[name]["shape"]
    if label is not None:
        assert announced["label"]["datatype"] == label
        kind = str if label == "BYTES" else int
        classes = [kind(one) for one in metadata["parameters"]["classes"]]
        assert all(one in classes for one in answered["label"]["data"])


def test_only_the_outputs_asked_for_are_sent(http: httpx.Client) -> None:
    found = outputs(http.post("/v2/models/late/infer", json={**row(), "outputs": [{"name": "label"}]}))
    assert list(found) == ["label"]


def test_the_routes_threshold_decides_the_label(http: httpx.Client) -> None:
    request = row(wind=60.0, hour=23)
    assert outputs(http.post("/v2/models/late/infer", json=request))["label"]["data"] == [1]
    strict = outputs(http.post("/v2/models/strict/infer", json=request))
    assert strict["label"]["data"] == [int(strict["probabilities"]["data"][1] >= 0.999999)]
    mild = outputs(http.post("/v2/models/strict/infer", json=row(wind=6.0, hour=17)))
    assert mild["probabilities"]["data"][1] > 0.5
    assert mild["label"] == {"name": "label", "datatype": "INT64", "shape": [1], "data": [0]}


def test_a_request_without_id_gets_one_of_its_own(http: httpx.Client) -> None:
    ids = {http.post("/v2/models/late/infer", json=row()).json()["id"] for _ in range(5)}
    assert len(ids) == 5


def changed(number: int, **changes: Any) -> dict[str, Any]:
    request = row()
    request["inputs"][number].update(changes)
    return request


def without(number: int, key: str) -> dict[str, Any]:
    request = row()
    del request["inputs"][number][key]
    return request


def packed(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}


BAD = [
    ("late", b"{", "not JSON"),
    ("late", b"\xff\xfe", "not JSON"),
    ("late", b'{"inputs": [NaN]}', "not JSON"),
    ("late", b"", "not JSON"),
    ("late", b"[" * 5000, "not JSON"),
    ("late", [], "JSON object"),
    ("late", {}, '"inputs" must be a list'),
    ("late", {"inputs": []}, '"inputs" must be a list'),
    ("late", {"inputs": [1]}, "inputs[0] must be an object"),
    ("late", {**row(), "input": 1}, "unknown keys ['input']"),
    ("late", {**row(), "id": 5}, '"id" must be text'),
    ("late", {**row(), "id": ""}, '"id" must be text'),
    ("late", {**row(), "parameters": []}, '"parameters" must be an object'),
    ("late", {**row(), "outputs": "label"}, '"outputs" must be a list'),
    ("late", {**row(), "outputs": [{}]}, 'with a "name"'),
    ("late", {**row(), "outputs": [{"name": "lable"}]}, "unknown outputs ['lable']"),
    ("late", changed(0, name=7), '"name" must be text'),
    ("late", changed(0, datatype="STRING"), "datatype 'STRING' is not one of"),
    ("late", changed(0, datatype=["BYTES"]), "datatype ['BYTES'] is not one of"),
    ("late", without(0, "shape"), '"shape" must be'),
    ("late", changed(0, shape=[True]), '"shape" must be'),
    ("late", changed(0, shape=[-1]), '"shape" must be'),
    ("late", changed(0, shape=[1, 1, 1]), '"shape" must be'),
    ("late", changed(0, shape=[10**18]), "data has 1 values"),
    ("late", without(1, "data"), '"data" must be a list'),
    ("late", changed(1, data=[1.0, 2.0]), "data has 2 values"),
    ("late", changed(1, shape=[2, 1], data=[[1.0], 2.0]), "do not have the shape"),
    ("late", changed(1, shape=[1, 1], data=[[1.0, 2.0]]), "do not have the shape"),
    ("late", changed(1, shape=[2], data=[1.0, 2.0]), "has 2 rows, the first has 1"),
    ("late", changed(1, shape=[1, 2], data=[1.0, 2.0]), "a column is [rows] or [rows, 1]"),
    ("late", changed(1, name="hour"), "more than once: ['hour']"),
    ("late", changed(1, name="wnid"), "did you mean 'wind'?"),
    ("late", changed(1, name="w" * 201), "1 to 200 characters"),
    ("late", {"inputs": [{**row()["inputs"][1], "name": f"x{n}"} for n in range(9_000)]}, "and 8995 more"),
    ("late", {"inputs": row()["inputs"][1:2] * 9_000}, "more than once: ['wind']"),
    ("late", {"inputs": row()["inputs"][:2]}, "missing: ['hour']"),
    ("late", changed(1, datatype="INT64"), "the column takes FP32 or FP64"),
    ("late", changed(2, datatype="FP32"), "the column takes INT64"),
    ("late", changed(1, data=["12.5"]), "expected a number, got '12.5'"),
    ("late", changed(1, data=[True]), "expected a number, got true"),
    ("late", changed(1, data=[[1.0]]), "expected a number, got [1.0]"),
    ("late", changed(1, data=[1e300]), "exceeds a 32-bit float"),
    ("late", changed(2, data=[3.5]), "expected a whole number, got 3.5"),
    ("late", changed(2, data=[2**63]), "exceeds a 64-bit integer"),
    ("late", changed(2, data=[None]), "takes no null"),
    ("late", changed(0, data=[5]), "expected text, got 5"),
    ("late", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0], "data": []}]}, "no rows"),
    ("late", packed(), "needs numeric columns only"),
    ("sizes", packed(shape=[1, 3], data=[1, 2, 3]), "has 3 columns, not 2"),
    ("sizes", packed(datatype="INT64"), "must be FP32 or FP64"),
    ("sizes", packed(data=[1, None]), "'b' (from the request) is null in row 0"),
    ("late", {**row(), "parameters": {"event_time": "yesterday"}}, "is not an ISO time"),
    ("late", {**row(), "parameters": {"event_time": "2026-01-01T00:00:00"}}, "it has no offset"),
    ("late", {**row(), "parameters": {"event_time": 5}}, "is not an ISO time"),
    ("late", {**row(), "parameters": {"event_time": "0001-01-01T00:00:00+14:00"}}, "is not an ISO time"),
    ("late", {**row(), "parameters": {"event_time": []}}, "0 times for 1 rows"),
    ("late", {**row(), "parameters": {"entities": {"flight": [1, 2]}}}, "a list of 1 values"),
]


@pytest.mark.parametrize(("endpoint", "request_", "message"), BAD)
def test_a_bad_request_is_told_what_is_wrong(
    http: httpx.Client, endpoint: str, request_: Any, message: str
) -> None:
    path = f"/v2/models/{endpoint}/infer"
    if isinstance(request_, bytes):
        response = http.post(path, content=request_)
    else:
        response = http.post(path, json=request_)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]
    assert outputs(http.post("/v2/models/late/infer", json=row())), "the server still answers"


@pytest.mark.parametrize(
    "path",
    ["/v2/models/none", "/v2/models/none/ready", "/v2/models/late/versions/8", "/v2/x", "/v2/models/late/"],
)
def test_what_is_not_there_is_404(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404
    assert response.json()["error"]


def test_a_path_that_is_none_is_told_where_to_look(http: httpx.Client) -> None:
    assert "GET /v2/openapi.json lists what there is" in http.post("/v1/models/late:predict").json()["error"]


def test_the_id_of_a_header_comes_back_with_every_answer_and_error(http: httpx.Client) -> None:
    infer, much = "/v2/models/late/infer", b" " * (8 * 1024 * 1024 + 1)
    calls: list[tuple[str, str, dict[str, Any], int]] = [
        ("POST", infer, {"json": row()}, 200),
        ("POST", infer, {"json": {}}, 400),
        ("POST", infer, {"json": row(), "headers": {"Authorization": "Bearer wrong"}}, 401),
        ("POST", "/v2/repository/models/late/load", {}, 403),
        ("POST", "/v2/models/none/infer", {"json": row()}, 404),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", infer, {}, 405),
        ("POST", infer, {"content": much}, 413),
        ("POST", infer, {"content": (piece for piece in (much, b" "))}, 413),
        ("GET", "/v2/models/late", {}, 200),
    ]
    for method, path, given, status in calls:
        headers = {**given.pop("headers", {}), "X-Request-ID": "mine"}
        answer = http.request(method, path, headers=headers, **given)
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, ["mine"]), path
    assert "x-request-id" not in http.post(infer, json={}).headers


def test_versions_that_contradict_each_other_are_refused(http: httpx.Client) -> None:
    path = "/v2/models/late/versions/7/infer"
    refused = http.post(path, json=row(), headers={"ml-lifecycle-version": "9"})
    assert refused.status_code == 400
    assert "names version '7', and its ml-lifecycle-version '9'" in refused.json()["error"]
    for same in ("7", ""):
        headers = {"ml-lifecycle-version": same}
        assert http.post(path, json=row(), headers=headers).status_code == 200
        assert http.post("/v2/models/late/infer", json=row(), headers=headers).status_code == 200


def test_only_what_is_almost_a_parameter_of_ours_is_refused(http: httpx.Client) -> None:
    request = {**row(), "parameters": {"evnt_time": "2026-01-01T00:00:00Z"}}
    refused = http.post("/v2/models/late/infer", json=request)
    assert refused.status_code == 400
    assert refused.json()["error"] == "unknown parameter 'evnt_time': did you mean 'event_time'?"
    # Triton's, MLServer's and somebody's own.
    others = {
        "sequence_id": 1,
        "sequence_start": True,
        "priority": 0,
        "timeout": 5,
        "headers": {},
        "team": "x",
    }
    request = {**row(), "parameters": {**others, "event_time": "2026-01-01T00:00:00Z"}}
    assert http.post("/v2/models/late/infer", json=request).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "words"),
    [
        ("content-encoding", "br", "gzip, deflate or identity, got 'br'"),
        ("inference-header-content-length", "ten", "must be a number of bytes, got 'ten'"),
    ],
)
def test_wrong_headers_are_shown_as_they_were_sent(
    http: httpx.Client, header: str, value: str, words: str
) -> None:
    refused = http.post("/v2/models/late/infer", json=row(), headers={header: value})
    assert refused.status_code == 400
    assert words in refused.json()["error"]


def test_unknown_models_and_versions_are_named(http: httpx.Client) -> None:
    response = http.post("/v2/models/lata/infer", json=row())
    assert response.status_code == 404
    assert "'late'" in response.json()["error"]
    response = http.post("/v2/models/late/versions/8/infer", json=row())
    assert response.status_code == 404
    assert "only ['7']" in response.json()["error"]
    for name in ("..%2f..%2fetc", "%00", "a" * 5000):
        assert http.post(f"/v2/models/{name}/infer", json=row()).status_code == 404


def test_undeclared_methods_are_405(http: httpx.Client) -> None:
    response = http.get("/v2/models/late/infer")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"] == "GET is not taken at this path: send POST"
    assert "send GET or HEAD" in http.post("/v2/health/live").json()["error"]
    assert http.post("/v2/health/live").status_code == 405
    assert http.delete("/v2/models/late").status_code == 405


def test_limits(http: httpx.Client) -> None:
    response = http.post("/v2/models/late/infer", content=b" " * (8 * 1024 * 1024 + 1))
    assert response.status_code == 413
    response = http.post("/v2/models/late/infer", content=(b" " * 1024 * 1024 for _ in range(9)))
    assert response.status_code == 413
    n = 10_001
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [n, 2], "data": [0.5] * 2 * n}]}
    response = http.post("/v2/models/line/infer", json=request)
    assert response.status_code == 413
    assert "at most 10000" in response.json()["error"]
    n = 10_000
    request = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [n, 2], "data": [0.5] * 2 * n}]}
    assert outputs(http.post("/v2/models/line/infer", json=request))["prediction"]["shape"] == [n]


def test_metrics_count_what_happened(http: httpx.Client) -> None:
    http.post("/v2/models/late/infer", json=row())
    http.post("/v2/models/late/infer", json={})
    http.post("/v2/models/invented/infer", json=row())
    text = http.get("/metrics").text
    assert 'ml_lifecycle_requests_total{endpoint="late",operation="infer",status="200"}' in text
    assert 'ml_lifecycle_requests_total{endpoint="late",operation="infer",status="400"}' in text
    assert 'ml_lifecycle_requests_total{endpoint="",operation="infer",status="404"}' in text
    assert "invented" not in text
    assert 'ml_lifecycle_request_seconds_bucket{endpoint="late",le="0.005",operation="infer"}' in text
    assert 'ml_lifecycle_prediction_rows_total{endpoint="late",variant="champion",version="7"}' in text
    assert 'ml_lifecycle_route_revision{endpoint="late"} 4.0' in text
    assert 'ml_lifecycle_route_failing{endpoint="late"} 0.0' in text
    for name in ("written_total", "lost_total", "pending"):
        assert f"ml_lifecycle_log_rows_{name} " in text
    assert "ml_lifecycle_log_rows_lost_total 0.0" in text


def test_the_server_answers_a_fresh_lake_and_waits_for_the_endpoint_it_was_given(
    tmp_path: Path, publisher: Publisher, start: Any
) -> None:
    server = start(publisher.lake, "--endpoint", "late")
    with server.client() as client, server.http() as http:
        assert http.get("/v2/health/live").status_code == 200
        assert http.get("/v2/health/ready").status_code == 503
        assert http.post("/v2/models/late/infer", json=row()).status_code == 404
        publisher("other", "binary", 1, "1")
        publisher("late", "binary", 1, "1")
        wait_until(client.ready)
        assert not client.ready("other")
    assert server.stop() == 0
