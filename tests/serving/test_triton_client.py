"""Stock clients of the protocol, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import InputRules
from tests.serving.conftest import COLUMNS, TOKEN, Built, Publisher, Server, row
from tests.serving.test_grpc import free_port

CARRIERS = np.array(["AA", "ÄÖ", ""], dtype=np.object_)
WIND = np.array([[12.5], [np.nan], [3.0]], dtype=np.float32)
HOURS = np.array([17, 3, 23], dtype=np.int64)


def token() -> dict[str, str]:
    """A header of its own each time: their client writes into what it is given."""
    return {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[tuple[str, str]]:
    """Addresses of REST and gRPC."""
    publish = Publisher(Lake(str(tmp_path_factory.mktemp("triton"))), built)
    # Their messages know of no parameters of an input.
    wind = replace(COLUMNS[1], rules=InputRules("weather.wind", "float", min=0))
    publish("late", "binary", 1, "7", columns=(COLUMNS[0], wind, COLUMNS[2]))
    publish("sizes", "multiclass", 1, "1")
    port = free_port()
    running = Server(publish.lake, "--grpc-port", str(port))
    try:
        with running.client() as client:
            wait_until(lambda: client.ready("late") and client.ready("sizes"))
        yield running.url.removeprefix("http://"), f"127.0.0.1:{port}"
    finally:
        running.stop()


@pytest.fixture
def expected(server: tuple[str, str]) -> np.ndarray:
    """Probabilities of the three rows, asked for in plain JSON."""
    import httpx

    request = row()
    for tensor, values in zip(request["inputs"], (CARRIERS, WIND, HOURS), strict=True):
        flat = [None if value != value else value for value in values.ravel().tolist()]
        tensor.update(shape=[3], data=flat)
    answer = httpx.post(f"http://{server[0]}/v2/models/late/infer", json=request, headers=token()).json()
    return np.reshape(answer["outputs"][1]["data"], (3, 2))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_http(server: tuple[str, str], expected: np.ndarray, binary: bool, binary_output: bool) -> None:
    client = over_http.InferenceServerClient(server[0])
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("late", headers=token())
    assert not client.is_model_ready("late", "8", headers=token())
    assert client.get_server_metadata(headers=token())["name"] == "ml_lifecycle"
    told = client.get_model_metadata("late", headers=token())["inputs"][1]
    assert (told["name"], told["parameters"]["contract"]) == ("wind", "weather.wind")
    inputs = [
        over_http.InferInput("carrier", [3], "BYTES"),
        over_http.InferInput("wind", [3, 1], "FP32"),
        over_http.InferInput("hour", [3], "INT64"),
    ]
    wind = WIND if binary else np.array([[12.5], [1.0], [3.0]], dtype=np.float32)  # JSON has no NaN
    for tensor, values in zip(inputs, (CARRIERS, wind, HOURS), strict=True):
        tensor.set_data_from_numpy(values, binary_data=binary)
    outputs = [
        over_http.InferRequestedOutput(name, binary_data=binary_output) for name in ("label", "probabilities")
    ]
    result = client.infer("late", inputs, outputs=outputs, request_id="mine", headers=token())
    assert result.get_response()["id"] == "mine"
    rows = slice(None) if binary else [0, 2]
    np.testing.assert_allclose(result.as_numpy("probabilities")[rows], expected[rows], atol=1e-6)
    assert result.as_numpy("label").dtype == np.int64
    with pytest.raises(InferenceServerException, match="no endpoint 'none'"):
        client.infer("none", inputs, headers=token())
    with pytest.raises(InferenceServerException, match="bearer token"):
        client.infer("late", inputs)
    client.close()


def test_http_compressed(server: tuple[str, str], expected: np.ndarray) -> None:
    client = over_http.InferenceServerClient(server[0])
    tensor = over_http.InferInput("x", [2, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[1.5, 0.25], [0.5, -1]], dtype=np.float32))
    plain = client.infer("sizes", [tensor], headers=token()).as_numpy("probabilities")
    for algorithm in ("gzip", "deflate"):
        found = client.infer("sizes", [tensor], headers=token(), request_compression_algorithm=algorithm)
        np.testing.assert_array_equal(found.as_numpy("probabilities"), plain)
    client.close()


def test_grpc(server: tuple[str, str], expected: np.ndarray) -> None:
    client = over_grpc.InferenceServerClient(server[1])
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("late", headers=token())
    assert client.get_server_metadata(headers=token()).name == "ml_lifecycle"
    assert client.get_model_metadata("late", headers=token()).inputs[1].name == "wind"
    inputs = [
        over_grpc.InferInput("carrier", [3], "BYTES"),
        over_grpc.InferInput("wind", [3, 1], "FP32"),
        over_grpc.InferInput("hour", [3], "INT64"),
    ]
    for tensor, values in zip(inputs, (CARRIERS, WIND, HOURS), strict=True):
        tensor.set_data_from_numpy(values)
    result = client.infer("late", inputs, request_id="mine", headers=token())
    assert result.get_response().id == "mine"
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    x = over_grpc.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([[1.5, 0.25]], dtype=np.float32))
    label = client.infer("sizes", [x], headers=token()).as_numpy("label")
    assert label[0] in (b"small", b"middle", b"large")
    with pytest.raises(InferenceServerException, match="no endpoint 'none'"):
        client.infer("none", inputs, headers=token())
    client.close()
