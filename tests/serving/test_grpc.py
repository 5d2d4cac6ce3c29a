"""The gRPC service: the same data plane, asked by hand for what stock clients would not send."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.__main__ import EXIT_PORT, TOKEN_VARIABLE
from ml_lifecycle.serving.grpc_messages import MESSAGES, SERVICE
from tests.serving.conftest import TOKEN, Built, Publisher, Server, logged, row

Fill = Callable[[Any], object]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Client:
    """Calls methods by name; the token is sent unless another is given."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def __call__(self, method: str, request: Any = None, token: str | None = TOKEN, **fields: Any) -> Any:
        asked = MESSAGES[f"{method}Request"](**fields) if request is None else request
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(asked).SerializeToString,
            response_deserializer=MESSAGES[f"{method}Response"].FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        return call(asked, metadata=metadata, timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[tuple[Server, int]]:
    publish = Publisher(Lake(str(tmp_path_factory.mktemp("grpc"))), built)
    publish("late", "binary", 1, "7")
    publish("sizes", "multiclass", 1, "1")
    port = free_port()
    running = Server(publish.lake, "--grpc-port", str(port))
    try:
        with running.client() as client:
            wait_until(lambda: client.ready("late") and client.ready("sizes"))
        yield running, port
    finally:
        assert running.stop() == 0


@pytest.fixture
def call(server: tuple[Server, int]) -> Iterator[Client]:
    client = Client(server[1])
    yield client
    client.channel.close()


def request_of(model: str = "late", **fields: Any) -> Any:
    """One row of the binary model, by contents."""
    request = MESSAGES["ModelInferRequest"](model_name=model, **fields)
    request.inputs.add(name="carrier", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"AA")
    request.inputs.add(name="wind", datatype="FP32", shape=[1]).contents.fp32_contents.append(12.5)
    request.inputs.add(name="hour", datatype="INT64", shape=[1]).contents.int64_contents.append(17)
    return request


def test_health_is_open_and_the_rest_asks_for_the_token(call: Client) -> None:
    assert call("ServerLive", token=None).live
    assert call("ServerReady", token=None).ready
    for method in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"):
        for token in (None, "wrong"):
            with pytest.raises(grpc.RpcError) as refused:
                call(method, token=token)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_metadata_are_those_of_rest(call: Client, server: tuple[Server, int]) -> None:
    with server[0].http() as http:
        about, model = http.get("/v2").json(), http.get("/v2/models/late").json()
    found = call("ServerMetadata")
    assert (found.name, found.version, list(found.extensions)) == (
        about["name"],
        about["version"],
        about["extensions"],
    )
    found = call("ModelMetadata", name="late")
    assert (found.name, list(found.versions), found.platform) == ("late", ["7"], model["platform"])
    for ours, theirs in ((found.inputs, model["inputs"]), (found.outputs, model["outputs"])):
        assert [
            {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in ours
        ] == theirs
    assert call("ModelReady", name="late", version="7").ready
    assert not call("ModelReady", name="late", version="8").ready
    assert not call("ModelReady", name="none").ready


@pytest.mark.parametrize("raw", [False, True])
def test_answers_are_those_of_rest(call: Client, server: tuple[Server, int], raw: bool) -> None:
    request = request_of(id="mine")
    if raw:
        for tensor in request.inputs:
            tensor.ClearField("contents")
        request.raw_input_contents.extend([b"\2\0\0\0AA", np.float32(12.5).tobytes(), np.int64(17).tobytes()])
    found = call("ModelInfer", request)
    with server[0].http() as http:
        expected = http.post("/v2/models/late/infer", json=row()).json()
    assert (found.model_name, found.model_version, found.id) == ("late", "7", "mine")
    assert found.parameters["route_revision"].int64_param == 1
    label, probabilities = found.outputs
    assert (label.datatype, list(label.shape)) == ("INT64", [1])
    assert (probabilities.datatype, list(probabilities.shape)) == ("FP32", [1, 2])
    if raw:
        labels = np.frombuffer(found.raw_output_contents[0], "<i8").tolist()
        values = np.frombuffer(found.raw_output_contents[1], "<f4").tolist()
    else:
        labels, values = list(label.contents.int64_contents), list(probabilities.contents.fp32_contents)
    assert labels == expected["outputs"][0]["data"]
    np.testing.assert_allclose(values, expected["outputs"][1]["data"], rtol=1e-6)


def test_text_labels_and_chosen_outputs(call: Client) -> None:
    request = MESSAGES["ModelInferRequest"](model_name="sizes")
    request.inputs.add(name="x", datatype="FP64", shape=[1, 2]).contents.fp64_contents.extend([1.5, 0.25])
    request.outputs.add(name="label")
    (label,) = call("ModelInfer", request).outputs
    assert label.datatype == "BYTES"
    assert label.contents.bytes_contents[0].decode() in ("small", "middle", "large")


def test_parameters_reach_the_prediction_log(publisher: Publisher, start: Callable[..., Server]) -> None:
    publisher("late", "binary", 1, "7")
    port = free_port()
    server = start(publisher.lake, "--grpc-port", str(port))
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
    request = request_of(id="one")
    request.parameters["event_time"].string_param = "2013-04-01T00:30:00Z"
    request.parameters["entities"].string_param = '{"flight": [7]}'
    client = Client(port)
    client("ModelInfer", request)
    client.channel.close()
    assert server.stop() == 0
    (only,) = logged(publisher.lake).to_dicts()
    assert only["prediction_id"] == "one"
    assert only["entity_keys"] == '{"flight":7}'
    assert only["event_time"].isoformat() == "2013-04-01T00:30:00+00:00"


def wrong(change: Fill) -> Any:
    request = request_of()
    change(request)
    return request


BAD: dict[str, tuple[Fill, grpc.StatusCode, str]] = {
    "no inputs": (lambda r: r.ClearField("inputs"), grpc.StatusCode.INVALID_ARGUMENT, "at least one tensor"),
    "an unknown model": (
        lambda r: setattr(r, "model_name", "lata"),
        grpc.StatusCode.NOT_FOUND,
        "no endpoint 'lata'",
    ),
    "an unknown version": (
        lambda r: setattr(r, "model_version", "8"),
        grpc.StatusCode.NOT_FOUND,
        "does not serve version '8'",
    ),
    "an unknown datatype": (
        lambda r: setattr(r.inputs[1], "datatype", "FP8"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "'FP8' is not one of",
    ),
    "another datatype": (
        lambda r: setattr(r.inputs[1], "datatype", "FP64"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "FP64 is read from contents.fp64_contents, not fp32_contents",
    ),
    "FP16 by contents": (
        lambda r: setattr(r.inputs[1], "datatype", "FP16"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "in raw_input_contents only",
    ),
    "another shape": (
        lambda r: r.inputs[1].shape.__setitem__(0, 2),
        grpc.StatusCode.INVALID_ARGUMENT,
        "fp32_contents has 1 values, the shape [2] needs 2",
    ),
    "a negative shape": (
        lambda r: r.inputs[1].shape.__setitem__(0, -1),
        grpc.StatusCode.INVALID_ARGUMENT,
        '"shape" must be',
    ),
    "raw for some": (
        lambda r: r.raw_input_contents.append(b""),
        grpc.StatusCode.INVALID_ARGUMENT,
        "1 raw_input_contents for 3 inputs",
    ),
    "no UTF-8": (
        lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "no UTF-8",
    ),
    "a small integer that is none": (
        lambda r: (
            setattr(r.inputs[2], "datatype", "INT8"),
            r.inputs[2].contents.ClearField("int64_contents"),
            r.inputs[2].contents.int_contents.append(300),
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "a value is no INT8",
    ),
    "entities that are no JSON": (
        lambda r: setattr(r.parameters["entities"], "string_param", "{"),
        grpc.StatusCode.INVALID_ARGUMENT,
        'parameter "entities" is not JSON',
    ),
    "a missing column": (
        lambda r: r.inputs.__delitem__(2),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs are missing: ['hour']",
    ),
    "a long id": (lambda r: setattr(r, "id", "x" * 201), grpc.StatusCode.INVALID_ARGUMENT, '"id" must be'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_has_its_code_and_says_what_is_wrong(call: Client, name: str) -> None:
    change, code, message = BAD[name]
    with pytest.raises(grpc.RpcError) as refused:
        call("ModelInfer", wrong(change))
    assert refused.value.code() is code
    assert message in refused.value.details()
    assert call("ModelInfer", request_of()).model_version == "7", "the server still answers"


def test_an_error_has_the_id_of_the_metadata_and_contradicting_versions_are_one(call: Client) -> None:
    send = call.channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
        response_deserializer=MESSAGES["ModelInferResponse"].FromString,
    )
    metadata = [
        ("authorization", f"Bearer {TOKEN}"),
        ("x-request-id", "mine"),
        ("ml-lifecycle-version", "9"),
    ]
    with pytest.raises(grpc.RpcError) as refused:
        send(request_of(model_version="7"), metadata=metadata, timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "names version '7', and its ml-lifecycle-version '9'" in refused.value.details()
    assert ("x-request-id", "mine") in [tuple(pair) for pair in refused.value.trailing_metadata()]
    assert send(request_of(), metadata=metadata[:2], timeout=20).id == "mine"


def test_what_is_too_large_is_refused(call: Client) -> None:
    request = MESSAGES["ModelInferRequest"](model_name="late", raw_input_contents=[b"x" * 9 * 2**20])
    with pytest.raises(grpc.RpcError) as refused:
        call("ModelInfer", request)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_an_error_of_the_client(
    call: Client, server: tuple[Server, int]
) -> None:
    send = call.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError):
        send(b"\xff\xff\xff", metadata=[("authorization", f"Bearer {TOKEN}")], timeout=20)
    with pytest.raises(grpc.RpcError) as unknown:
        call.channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=20)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert call("ModelInfer", request_of()).model_version == "7"


def test_calls_are_counted(call: Client, server: tuple[Server, int]) -> None:
    call("ModelInfer", request_of())
    with server[0].http() as http:
        text = http.get("/metrics").text
    assert 'ml_lifecycle_requests_total{endpoint="late",operation="grpc_ModelInfer",status="200"}' in text


def test_a_taken_port_is_one_clear_line(publisher: Publisher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = subprocess.run(
            [
                *(sys.executable, "-m", "ml_lifecycle.serving", "--environment", "test"),
                *("--lake", publisher.lake.url, "--grpc-port", str(port)),
            ],
            env={
                **os.environ,
                TOKEN_VARIABLE: TOKEN,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert found.returncode == EXIT_PORT
    assert found.stderr == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert found.stdout == "", "it says that it serves only once it does"
