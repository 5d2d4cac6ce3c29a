"""The bytes of a V2 request → tensors, in JSON or with binary data behind it. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import orjson

from ml_lifecycle.serving.errors import BadRequestError
from ml_lifecycle.serving.signature import few, flat
from ml_lifecycle.serving.types import (
    DTYPES,
    KNOWN_DATATYPES,
    InferRequest,
    RequestedOutput,
    Tensor,
    Values,
)
from ml_lifecycle.shown import shown

_REQUEST_KEYS = frozenset(("id", "inputs", "outputs", "parameters"))


def read_json(body: bytes, json_bytes: int | None = None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object of a request, and what follows it: the binary tensors.

    :param json_bytes: the length of the JSON, as the header Inference-Header-Content-Length says; None for
        all of the body
    :raises BadRequestError: it is no JSON object. Retry: no.
    """
    binary = memoryview(body)[len(body) :]
    text: bytes | memoryview = body
    if json_bytes is not None:
        if not 0 <= json_bytes <= len(body):
            raise BadRequestError(
                f"Inference-Header-Content-Length says {json_bytes} bytes of JSON, the body has {len(body)}"
            )
        text, binary = memoryview(body)[:json_bytes], memoryview(body)[json_bytes:]
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError('the body must be a JSON object with "inputs"')
    return data, binary


def parse_request(data: dict[str, Any], binary: memoryview) -> InferRequest:
    """The request that :func:`read_json` has read.

    :raises BadRequestError: it is no V2 request. Retry: no.
    """
    if unknown := sorted(data.keys() - _REQUEST_KEYS):
        raise BadRequestError(f"unknown keys {few(unknown)}: a request has {sorted(_REQUEST_KEYS)}")
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise BadRequestError('"inputs" must be a list of at least one tensor')
    tensors: list[Tensor] = []
    at = 0
    for number, tensor in enumerate(inputs):
        parsed, size = _parse_tensor(number, tensor, binary[at:])
        tensors.append(parsed)
        at += size
    if at != len(binary):
        raise BadRequestError(f"{len(binary)} bytes of binary data came, the inputs say {at}")
    return InferRequest(
        inputs=tuple(tensors),
        id=parse_id(data.get("id")),
        parameters=parse_parameters(data.get("parameters")),
        outputs=parse_outputs(data.get("outputs", [])),
    )


def parse_id(given: Any) -> str | None:
    """The request's id.

    :raises BadRequestError: it is no short text. Retry: no.
    """
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= 200):
        raise BadRequestError('"id" must be text of 1 to 200 characters')
    return given


def parse_parameters(given: Any) -> Mapping[str, Any]:
    """The request's parameters.

    :raises BadRequestError: they are no object. Retry: no.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise BadRequestError('"parameters" must be an object')
    return given


def parse_outputs(outputs: Any) -> tuple[RequestedOutput, ...]:
    """The outputs asked for.

    :raises BadRequestError: they are no list of objects with a name. Retry: no.
    """
    if not isinstance(outputs, list):
        raise BadRequestError('"outputs" must be a list')
    found: list[RequestedOutput] = []
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise BadRequestError('every one of "outputs" must be an object with a "name"')
        parameters = parse_parameters(output.get("parameters"))
        if "classification" in parameters:
            raise BadRequestError('"classification" of outputs is not supported: use "probabilities"')
        found.append(RequestedOutput(name, _flag(parameters, "binary_data")))
    return tuple(found)


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(f'parameter "{name}" must be true or false, got {shown(value)}')
    return value


def wants_binary(parameters: Mapping[str, Any]) -> bool:
    """Whether the request asks for binary outputs where an output does not say.

    :raises BadRequestError: it says neither true nor false. Retry: no.
    """
    return bool(_flag(parameters, "binary_data_output"))


def _parse_tensor(number: int, tensor: Any, binary: memoryview) -> tuple[Tensor, int]:
    """A tensor, and how many bytes of ``binary`` it takes."""
    where = f"inputs[{number}]"
    if not isinstance(tensor, dict):
        raise BadRequestError(f"{where} must be an object with name, datatype, shape and data")
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise BadRequestError(f'{where}: "name" must be text of 1 to 200 characters')
    where = f"{where} ({name!r})"
    if not isinstance(datatype, str) or datatype not in KNOWN_DATATYPES:
        raise BadRequestError(f"{where}: datatype {shown(datatype)} is not one of {sorted(KNOWN_DATATYPES)}")
    if (
        not isinstance(shape, list)
        or len(shape) not in (1, 2)
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        raise BadRequestError(f'{where}: "shape" must be [rows] or [rows, columns], got {shown(shape)}')
    size = parse_parameters(tensor.get("parameters")).get("binary_data_size")
    if size is None:
        return Tensor(name, datatype, tuple(shape), _json_values(where, shape, tensor.get("data"))), 0
    if "data" in tensor:
        raise BadRequestError(f'{where}: has both "data" and "binary_data_size"')
    if type(size) is not int or size < 0:
        raise BadRequestError(
            f"{where}: binary_data_size must be a whole number, not negative, got {shown(size)}"
        )
    if size > len(binary):
        raise BadRequestError(
            f"{where}: binary_data_size {size}, but {len(binary)} bytes of binary data are left"
        )
    return Tensor(name, datatype, tuple(shape), binary_values(where, datatype, shape, binary[:size])), size


def _json_values(where: str, shape: list[int], data: Any) -> list[Any]:
    """V2 allows a matrix flat or as a list of rows."""
    if not isinstance(data, list):
        raise BadRequestError(f'{where}: "data" must be a list, or "parameters" say binary_data_size')
    if len(shape) == 2 and data and isinstance(data[0], list):
        if len(data) != shape[0] or any(not isinstance(row, list) or len(row) != shape[1] for row in data):
            raise BadRequestError(f"{where}: the rows of data do not have the shape {shape}")
        return flat(data)
    if len(data) != prod(shape):
        raise BadRequestError(f"{where}: data has {len(data)} values, the shape {shape} needs {prod(shape)}")
    return data


def binary_values(where: str, datatype: str, shape: list[int], data: memoryview | bytes) -> Values:
    """Values as they lie in memory, little-endian; of BYTES each after its length in four bytes.

    :param where: what errors begin with
    :raises BadRequestError: the bytes are not what datatype and shape say. Retry: no.
    """
    if datatype == "BYTES":
        return _texts(where, prod(shape), data)
    dtype = DTYPES[datatype]
    if len(data) != prod(shape) * dtype.itemsize:
        raise BadRequestError(
            f"{where}: {len(data)} bytes of binary data, {datatype} of shape {shape} needs "
            f"{prod(shape) * dtype.itemsize}"
        )
    if datatype == "BOOL":
        found = np.frombuffer(data, np.uint8)
        if found.size and found.max() > 1:
            raise BadRequestError(f"{where}: a BOOL is the byte 0 or 1")
        return found.view(np.bool_)
    return np.frombuffer(data, dtype)


def _texts(where: str, count: int, data: memoryview | bytes) -> list[str]:
    texts: list[str] = []
    at, end = 0, len(data)
    while at < end:
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if at + size > end:
            raise BadRequestError(f"{where}: element {len(texts)} says {size} bytes, more than are left")
        try:
            texts.append(str(data[at : at + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise BadRequestError(f"{where}: element {len(texts)} is no UTF-8 text") from error
        at += size
    if len(texts) != count:
        raise BadRequestError(f"{where}: {len(texts)} elements of binary data, the shape needs {count}")
    return texts
