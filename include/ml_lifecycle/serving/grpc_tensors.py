"""gRPC messages ↔ the V2 requests and answers that every protocol shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.decoding import binary_values
from ml_lifecycle.serving.encoding import DATATYPES_OF_OUTPUTS, chosen_outputs, to_binary
from ml_lifecycle.serving.errors import BadRequestError
from ml_lifecycle.serving.grpc_messages import MESSAGES
from ml_lifecycle.serving.model import Outputs
from ml_lifecycle.serving.types import (
    DTYPES,
    KNOWN_DATATYPES,
    InferRequest,
    RequestedOutput,
    Tensor,
    Values,
)

# FP16 has no field of its own: it comes as raw contents only.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_PARAMETERS: Mapping[type, str] = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


def read_request(message: Any) -> InferRequest:
    """A ModelInferRequest.

    Parameters are as in REST; what is no single value there is JSON text here: ``entities``, and
    ``event_time`` if it is a list.

    :raises BadRequestError: it is not well formed. Retry: no.
    """
    inputs, raw = message.inputs, message.raw_input_contents
    if not inputs:
        raise BadRequestError('"inputs" must have at least one tensor')
    if raw and len(raw) != len(inputs):
        raise BadRequestError(f"{len(raw)} raw_input_contents for {len(inputs)} inputs")
    if len(message.id) > 200:
        raise BadRequestError('"id" must be text of 1 to 200 characters')
    return InferRequest(
        inputs=tuple(
            _read_tensor(number, tensor, raw[number] if raw else None) for number, tensor in enumerate(inputs)
        ),
        id=message.id or None,
        parameters=_read_parameters(message.parameters),
        outputs=tuple(RequestedOutput(output.name) for output in message.outputs),
    )


def _read_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name, parameter in given.items():
        chosen = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, chosen) if chosen else None
        if isinstance(value, str) and (name == "entities" or (name == "event_time" and value[:1] == "[")):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError as error:
                raise BadRequestError(f'parameter "{name:.60}" is not JSON: {error}') from error
        parameters[name] = value
    return parameters


def _read_tensor(number: int, tensor: Any, raw: bytes | None) -> Tensor:
    where = f"inputs[{number}]"
    if not 0 < len(tensor.name) <= 200:
        raise BadRequestError(f'{where}: "name" must be text of 1 to 200 characters')
    where = f"{where} ({tensor.name!r})"
    if tensor.datatype not in KNOWN_DATATYPES:
        raise BadRequestError(
            f"{where}: datatype {tensor.datatype!r:.60} is not one of {sorted(KNOWN_DATATYPES)}"
        )
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or any(size < 0 for size in shape):
        raise BadRequestError(f'{where}: "shape" must be [rows] or [rows, columns], got {shape[:5]}')
    if raw is not None:
        values = binary_values(where, tensor.datatype, shape, raw)
    else:
        values = _contents(where, tensor.datatype, shape, tensor.contents)
    return Tensor(tensor.name, tensor.datatype, tuple(shape), values)


def _contents(where: str, datatype: str, shape: list[int], contents: Any) -> Values:
    if datatype not in _CONTENTS:
        raise BadRequestError(f"{where}: {datatype} is taken in raw_input_contents only")
    field = _CONTENTS[datatype]
    if odd := [one.name for one, _ in contents.ListFields() if one.name != field]:
        raise BadRequestError(f"{where}: {datatype} is read from contents.{field}, not {odd[0]}")
    values = getattr(contents, field)
    if len(values) != prod(shape):
        raise BadRequestError(
            f"{where}: {field} has {len(values)} values, the shape {shape} needs {prod(shape)}"
        )
    if datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise BadRequestError(f"{where}: an element is no UTF-8 text") from error
    try:
        return np.array(values, dtype=DTYPES[datatype])
    except OverflowError as error:
        raise BadRequestError(f"{where}: a value is no {datatype}") from error


def make_response(raw: bool, scored: Scored, query: Query, outputs: Outputs) -> Any:
    """A ModelInferResponse.

    :param raw: whether outputs go out as raw contents, as the inputs came
    """
    response = MESSAGES["ModelInferResponse"](
        model_name=scored.route.endpoint, model_version=scored.variant.version, id=query.id
    )
    response.parameters["route_revision"].int64_param = scored.route.revision
    response.parameters["model_digest"].string_param = scored.variant.model_digest
    for name, array in chosen_outputs(query, outputs).items():
        datatype = DATATYPES_OF_OUTPUTS[array.dtype.kind]
        output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(to_binary(array))
        else:
            getattr(output.contents, _CONTENTS[datatype]).extend(_plain(array))
    return response


def _plain(array: NDArray[Any]) -> Sequence[Any]:
    values: list[Any] = array.ravel().tolist()
    return [str(value).encode() for value in values] if array.dtype.kind == "O" else values


def tensor_metadata(described: Mapping[str, Any]) -> Any:
    """The message of an input or output as :func:`~ml_lifecycle.serving.encoding.describe` lists it.

    Lists among its parameters are JSON text, as in requests.
    """
    message = MESSAGES["TensorMetadata"](
        name=described["name"], datatype=described["datatype"], shape=described["shape"]
    )
    for name, value in described.get("parameters", {}).items():
        if isinstance(value, list):
            message.parameters[name].string_param = orjson.dumps(value).decode()
        else:
            setattr(message.parameters[name], _PARAMETERS[type(value)], value)
    return message
