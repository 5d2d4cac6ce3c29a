"""Binary tensors over REST: every datatype, and whatever can be wrong with the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from live_server import live_client
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.server import ModelServer
from tests.serving.conftest import TOKEN, Built, Publisher, row

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, built: dict[str, Built]) -> Iterator[httpx.Client]:
    publish = Publisher(Lake(str(tmp_path_factory.mktemp("binary"))), built)
    publish("late", "binary", 1, "1")
    publish("line", "regression", 1, "1")
    publish("sizes", "multiclass", 1, "1")
    with live_client(ModelServer(publish.lake, "test", TOKEN), TOKEN) as client:
        wait_until(
            lambda: all(
                client.get(f"/v2/models/{name}/ready").is_success for name in ("late", "line", "sizes")
            )
        )
        yield client


def texts(*values: str) -> bytes:
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in values)


def sent(http: httpx.Client, endpoint: str, request: dict[str, Any], binary: bytes) -> httpx.Response:
    head = json.dumps(request).encode()
    return http.post(f"/v2/models/{endpoint}/infer", content=head + binary, headers={LENGTH: str(len(head))})


def tensor(name: str, datatype: str, shape: list[int], data: bytes) -> dict[str, Any]:
    size = {"binary_data_size": len(data)}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": size}


def answered(response: httpx.Response) -> dict[str, Any]:
    """Outputs by name, binary ones as arrays or lists of texts."""
    assert response.status_code == 200, response.text
    if LENGTH.lower() not in response.headers:
        return {one["name"]: one["data"] for one in response.json()["outputs"]}
    end = int(response.headers[LENGTH])
    found: dict[str, Any] = {}
    rest = response.content[end:]
    for one in json.loads(response.content[:end])["outputs"]:
        if "data" in one:
            found[one["name"]] = one["data"]
            continue
        size = one["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        if one["datatype"] == "BYTES":
            values = []
            while data:
                length = int.from_bytes(data[:4], "little")
                values.append(data[4 : 4 + length].decode())
                data = data[4 + length :]
            found[one["name"]] = values
        else:
            dtype = {"FP32": np.float32, "INT64": np.int64}[one["datatype"]]
            found[one["name"]] = np.frombuffer(data, dtype).reshape(one["shape"]).tolist()
    assert not rest
    return found


def test_binary_is_what_json_is(http: httpx.Client) -> None:
    plain = http.post(
        "/v2/models/late/infer",
        json={
            "inputs": [
                {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["ÄÖ", "UA"]},
                {"name": "wind", "datatype": "FP32", "shape": [2, 1], "data": [12.5, None]},
                {"name": "hour", "datatype": "INT64", "shape": [2], "data": [17, 3]},
            ]
        },
    )
    parts = texts("ÄÖ", "UA"), np.array([12.5, np.nan], "<f4").tobytes(), np.array([17, 3], "<i8").tobytes()
    request = {
        "inputs": [
            tensor("carrier", "BYTES", [2], parts[0]),
            tensor("wind", "FP32", [2, 1], parts[1]),
            tensor("hour", "INT64", [2], parts[2]),
        ]
    }
    expected = answered(plain)
    found = answered(sent(http, "late", request, b"".join(parts)))
    assert found == expected
    request["parameters"] = {"binary_data_output": True}  # type: ignore[assignment]
    response = sent(http, "late", request, b"".join(parts))
    assert response.headers["content-type"] == "application/octet-stream"
    binary = answered(response)
    assert binary["label"] == expected["label"]
    np.testing.assert_allclose(np.ravel(binary["probabilities"]), expected["probabilities"], rtol=1e-6)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_packed_floats_of_every_width(http: httpx.Client, datatype: str) -> None:
    values = np.array([[1.5, 0.25], [np.nan, -2.0]])
    data = values.astype({"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[datatype]).tobytes()
    found = answered(sent(http, "line", {"inputs": [tensor("x", datatype, [2, 2], data)]}, data))
    given = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 0.25, None, -2]}
    expected = answered(http.post("/v2/models/line/infer", json={"inputs": [given]}))
    assert found == expected


@pytest.mark.parametrize(
    "datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
)
def test_whole_numbers_of_every_width(http: httpx.Client, datatype: str) -> None:
    dtype = np.dtype(datatype.lower())
    request = row()
    data = np.array([17], dtype).tobytes()
    request["inputs"][2] = tensor("hour", datatype, [1], data)
    expected = answered(http.post("/v2/models/late/infer", json=row()))
    assert answered(sent(http, "late", request, data)) == expected
    changed = row()
    changed["inputs"][2]["datatype"] = datatype
    assert answered(http.post("/v2/models/late/infer", json=changed)) == expected


def test_outputs_say_for_themselves_how_they_are_sent(http: httpx.Client) -> None:
    data = np.array([[1.5, 0.25]], "<f4").tobytes()
    request = {
        "inputs": [tensor("x", "FP32", [1, 2], data)],
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "probabilities"}],
    }
    response = sent(http, "sizes", request, data)
    described = json.loads(response.content[: int(response.headers[LENGTH])])["outputs"]
    assert ["data" in one for one in described] == [False, True]
    assert answered(response)["label"][0] in ("small", "middle", "large")


def wrong(number: int, changed: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    request = row()
    request["inputs"][number] = changed
    return request, data


BAD: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "too few bytes": (*wrong(1, tensor("wind", "FP32", [1], b"123"), b"123"), "needs 4"),
    "fewer than it says": (
        *wrong(1, tensor("wind", "FP32", [1], b"1234"), b"12"),
        "2 bytes of binary data are left",
    ),
    "more than it says": (*wrong(1, tensor("wind", "FP32", [1], b"1234"), b"12345"), "the inputs say 4"),
    "both ways": (
        *wrong(1, {**tensor("wind", "FP32", [1], b"1234"), "data": [1.0]}, b"1234"),
        'both "data" and "binary_data_size"',
    ),
    "a size that is none": (
        *wrong(1, {**tensor("wind", "FP32", [1], b""), "parameters": {"binary_data_size": True}}, b""),
        "must be a whole number, not negative, got true",
    ),
    "a negative size": (
        *wrong(1, {**tensor("wind", "FP32", [1], b""), "parameters": {"binary_data_size": -4}}, b""),
        "must be a whole number, not negative, got -4",
    ),
    "a text longer than the rest": (
        *wrong(0, tensor("carrier", "BYTES", [1], b"\xff\xff\xff\xffAA"), b"\xff\xff\xff\xffAA"),
        "more than are left",
    ),
    "half a length": (*wrong(0, tensor("carrier", "BYTES", [1], b"\1"), b"\1"), "more than are left"),
    "two texts for one": (
        *wrong(0, tensor("carrier", "BYTES", [1], texts("A", "B")), texts("A", "B")),
        "2 elements of binary data, the shape needs 1",
    ),
    "no UTF-8": (
        *wrong(0, tensor("carrier", "BYTES", [1], b"\1\0\0\0\xff"), b"\1\0\0\0\xff"),
        "no UTF-8",
    ),
    "a whole number beyond 64 bits": (
        *wrong(2, tensor("hour", "UINT64", [1], b"\xff" * 8), b"\xff" * 8),
        "exceeds a 64-bit integer",
    ),
    "a double beyond 32 bits": (
        *wrong(1, tensor("wind", "FP64", [1], np.float64(1e300).tobytes()), np.float64(1e300).tobytes()),
        "exceeds a 32-bit float",
    ),
    "a flag that is none": (
        {**row(), "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        b"",
        'parameter "binary_data" must be true or false',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_bytes_are_told_apart(http: httpx.Client, name: str) -> None:
    request, data, message = BAD[name]
    response = sent(http, "late", request, data)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "99999", "1.5", "9" * 30])
def test_a_length_that_is_none_or_not_the_bodys(http: httpx.Client, length: str) -> None:
    response = http.post("/v2/models/late/infer", json=row(), headers={LENGTH: length})
    assert response.status_code == 400
    assert LENGTH in response.json()["error"]


def test_a_null_in_binary_is_refused_where_the_model_takes_none(http: httpx.Client) -> None:
    data = np.array([[1.5, np.nan]], "<f4").tobytes()
    response = sent(http, "line", {"inputs": [tensor("x", "FP32", [1, 2], data)]}, data)
    assert response.status_code == 400
    assert "'b' (from the request) is null in row 0" in response.json()["error"]
