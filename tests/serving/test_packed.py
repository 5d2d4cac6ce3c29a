"""Large packed tensors take a way of their own; what it takes is what the usual way takes, and the same."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_lifecycle.serving.packed import read_packed

simdjson = pytest.importorskip("simdjson", reason="no wheel of simdjson for this Python")


def request(data: Any, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "rows", "datatype": "FP32", "shape": [len(data) // 2, 2], "data": data}
    return {"inputs": [{**tensor, **changes}]}


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False)
        | st.integers(-(2**63), 2**63 - 1)
        | st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("<d", raw)[0]).filter(np.isfinite),
        min_size=2,
        max_size=40,
    ).filter(lambda values: len(values) % 2 == 0),
    st.booleans(),
)
def test_numbers_are_the_same_bit_by_bit(values: list[float], plain: bool) -> None:
    body = orjson.dumps(request(values)) if plain else json.dumps(request(values), indent=1).encode()
    packed = read_packed(body)
    assert packed is not None
    assert (packed.rows, packed.width, packed.name, packed.id) == (len(values) // 2, 2, "rows", None)
    usual = np.array(orjson.loads(body)["inputs"][0]["data"], np.float64)
    assert packed.values.tobytes() == usual.tobytes()


def test_an_id_goes_along() -> None:
    packed = read_packed(json.dumps({"id": "mine", **request([1.5, 2])}).encode())
    assert packed is not None
    assert packed.id == "mine"


ODD: dict[str, Any] = {
    "a null": request([1.0, None]),
    "a truth value": request([1.0, True]),
    "text": request([1.0, "2"]),
    "a list of rows": request([[1.0, 2.0], [3.0, 4.0]], shape=[2, 2]),
    "ragged rows": request([1.0, [2.0, 3.0], 4.0], shape=[2, 2]),
    "an empty list": request([], shape=[0, 2]),
    "too few values": request([1.0, 2.0], shape=[2, 2]),
    "a third dimension": request([1.0, 2.0], shape=[1, 2, 1]),
    "a shape of floats": request([1.0, 2.0], shape=[1.0, 2.0]),
    "a shape of truth values": request([1.0, 2.0], shape=[True, 2]),
    "a negative shape": request([1.0, 2.0], shape=[-1, -2]),
    "no name": request([1.0, 2.0], name=None),
    "a list as the name": request([1.0, 2.0], name=["a"]),
    "parameters of the tensor": request([1.0, 2.0], parameters={}),
    "parameters of the request": {**request([1.0, 2.0]), "parameters": {}},
    "an id that is no text": {**request([1.0, 2.0]), "id": 7},
    "two tensors": {"inputs": request([1.0, 2.0])["inputs"] * 2},
    "no tensor": {"inputs": []},
    "a tensor that is none": {"inputs": [7]},
    "inputs that are no list": {"inputs": {"a": 1}},
    "a list": [request([1.0, 2.0])],
    "a number": 7,
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_anything_else_is_left_to_the_usual_way(name: str) -> None:
    assert read_packed(json.dumps(ODD[name]).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.0}]}',
        b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [99999999999999999999]}]}',
        b'{"inputs": [{"name": "\xff", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}',
        b'{"inputs": [{"name": "a", "name": "b", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}',
    ],
)
def test_so_is_what_is_no_json_or_says_things_twice(body: bytes) -> None:
    assert read_packed(body) is None
    good = b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]}'
    assert read_packed(good) is not None, "nothing is left behind"
