"""V2 JSON ↔ the data plane's queries and predictions. Whatever is wrong with a request is said here."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from math import prod
from typing import Any

import orjson
from numpy.typing import NDArray

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.serving.columns import Features, make_features
from ml_lifecycle.serving.dataplane import Prediction, Query
from ml_lifecycle.serving.errors import BadRequestError, TooLargeError
from ml_lifecycle.serving.model import OUTPUTS, OnnxModel
from ml_lifecycle.serving.types import DATATYPES, InferRequest, Tensor, announced
from ml_lifecycle.shown import shown

_KNOWN_DATATYPES = frozenset(chain.from_iterable(DATATYPES.values()))
_OUTPUT_DATATYPES = {"f": "FP32", "i": "INT64", "O": "BYTES"}
_ENTITY_TYPES = frozenset((str, int, type(None)))
_MAX_DAYS = 100
_REQUEST_KEYS = frozenset(("id", "inputs", "outputs", "parameters"))


def parse_request(body: bytes) -> InferRequest:
    """The body as a well-formed V2 request.

    :raises BadRequestError: it is not JSON, or not a V2 request. Retry: no.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError('the body must be a JSON object with "inputs"')
    if unknown := sorted(data.keys() - _REQUEST_KEYS):
        raise BadRequestError(f"unknown keys {_few(unknown)}: a request has {sorted(_REQUEST_KEYS)}")
    inputs = data.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise BadRequestError('"inputs" must be a list of at least one tensor')
    request_id = data.get("id")
    if not (request_id is None or (isinstance(request_id, str) and 0 < len(request_id) <= 200)):
        raise BadRequestError('"id" must be text of 1 to 200 characters')
    parameters = data.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError('"parameters" must be an object')
    return InferRequest(
        inputs=tuple(_parse_tensor(number, tensor) for number, tensor in enumerate(inputs)),
        id=request_id,
        parameters=parameters,
        outputs=_parse_outputs(data.get("outputs", [])),
    )


def _parse_outputs(outputs: Any) -> tuple[str, ...]:
    if not isinstance(outputs, list):
        raise BadRequestError('"outputs" must be a list')
    names: list[str] = []
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str):
            raise BadRequestError('every one of "outputs" must be an object with a "name"')
        names.append(name)
    return tuple(names)


def _parse_tensor(number: int, tensor: Any) -> Tensor:
    where = f"inputs[{number}]"
    if not isinstance(tensor, dict):
        raise BadRequestError(f"{where} must be an object with name, datatype, shape and data")
    name, datatype, shape, data = (tensor.get(key) for key in ("name", "datatype", "shape", "data"))
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise BadRequestError(f'{where}: "name" must be text of 1 to 200 characters')
    where = f"{where} ({name!r})"
    if not isinstance(datatype, str) or datatype not in _KNOWN_DATATYPES:
        raise BadRequestError(f"{where}: datatype {shown(datatype)} is not one of {sorted(_KNOWN_DATATYPES)}")
    if (
        not isinstance(shape, list)
        or len(shape) not in (1, 2)
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        raise BadRequestError(f'{where}: "shape" must be [rows] or [rows, columns], got {shown(shape)}')
    if not isinstance(data, list):
        raise BadRequestError(f'{where}: "data" must be a list; binary tensors are not supported')
    return Tensor(name, datatype, tuple(shape), _flat(where, shape, data))


def _flat(where: str, shape: list[int], data: list[Any]) -> list[Any]:
    """V2 allows a matrix flat or as a list of rows."""
    if len(shape) == 2 and data and isinstance(data[0], list):
        if len(data) != shape[0] or any(not isinstance(row, list) or len(row) != shape[1] for row in data):
            raise BadRequestError(f"{where}: the rows of data do not have the shape {shape}")
        return list(chain.from_iterable(data))
    if len(data) != prod(shape):
        raise BadRequestError(f"{where}: data has {len(data)} values, the shape {shape} needs {prod(shape)}")
    return data


def decode_query(body: bytes, variant: Variant, max_rows: int, received_at: datetime) -> Query:
    """The request as a query the variant can answer: typed columns, or entity keys to read features with.

    :raises BadRequestError: names, datatypes, shapes or values do not fit the variant. Retry: no.
    :raises TooLargeError: more than ``max_rows`` rows. Retry: no.
    """
    request = parse_request(body)
    rows = request.inputs[0].shape[0]
    _check_rows(request.inputs, rows, max_rows)
    if unknown := sorted(set(request.outputs) - set(OUTPUTS[variant.task])):
        raise BadRequestError(
            f"unknown outputs {_few(unknown)}; the model gives {list(OUTPUTS[variant.task])}"
        )
    names = Counter(tensor.name for tensor in request.inputs)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise BadRequestError(f"inputs given more than once: {_few(repeated)}")
    features, entities = None, _entity_parameter(request.parameters, rows)
    by_entity = variant.entity_keys and set(names) == set(variant.entity_keys)
    if by_entity and set(names) != {column.name for column in variant.columns}:
        entities = {tensor.name: _entity_values(tensor) for tensor in request.inputs}
    else:
        features = _decode_features(request.inputs, variant)
    return Query(
        rows=rows,
        features=features,
        entities=entities,
        event_times=_event_times(request.parameters, rows),
        id=request.id or f"{random.getrandbits(128):032x}",
        received_at=received_at,
        outputs=request.outputs,
    )


def _few(names: Sequence[str]) -> str:
    """The first few: an answer must not grow with what a request invents."""
    shown = ", ".join(f"{name!r:.60}" for name in names[:5])
    return f"[{shown}]" if len(names) <= 5 else f"[{shown} and {len(names) - 5} more]"


def _check_rows(inputs: Iterable[Tensor], rows: int, max_rows: int) -> None:
    if rows == 0:
        raise BadRequestError("the request has no rows")
    if rows > max_rows:
        raise TooLargeError(f"{rows} rows in one request, at most {max_rows} are taken")
    for tensor in inputs:
        if tensor.shape[0] != rows:
            raise BadRequestError(f"input {tensor.name!r} has {tensor.shape[0]} rows, the first has {rows}")


def _decode_features(inputs: Sequence[Tensor], variant: Variant) -> Features:
    columns = {column.name: column for column in variant.columns}
    if len(inputs) == 1 and inputs[0].name not in columns and len(inputs[0].shape) == 2:
        return make_features(variant.columns, _unpack(inputs[0], variant), "request")
    given = {tensor.name: tensor for tensor in inputs}
    _check_names(given.keys(), variant)
    for name, tensor in given.items():
        accepted = DATATYPES[columns[name].type]
        if tensor.datatype not in accepted:
            raise BadRequestError(
                f"input {name!r} has datatype {tensor.datatype}, the column takes {' or '.join(accepted)}"
            )
        if len(tensor.shape) == 2 and tensor.shape[1] != 1:
            raise BadRequestError(
                f"input {name!r} has shape {list(tensor.shape)}, a column is [rows] or [rows, 1]"
            )
    values = {column.name: given[column.name].data for column in variant.columns}
    return make_features(variant.columns, values, "request")


def _check_names(given: Iterable[str], variant: Variant) -> None:
    columns = [column.name for column in variant.columns]
    if unknown := sorted(set(given) - set(columns)):
        near = difflib.get_close_matches(unknown[0], columns, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BadRequestError(f"unknown inputs {_few(unknown)}{hint}; {_allowed(variant)}")
    if missing := [name for name in columns if name not in given]:
        raise BadRequestError(f"inputs are missing: {missing}; {_allowed(variant)}")


def _allowed(variant: Variant) -> str:
    columns = ", ".join(f"{column.name} {announced(column)}" for column in variant.columns)
    keys = f"; or the entity keys {', '.join(variant.entity_keys)}" if variant.entity_keys else ""
    return f"the model takes {columns}{keys}"


def _unpack(tensor: Tensor, variant: Variant) -> dict[str, Sequence[Any]]:
    if others := [column.name for column in variant.columns if column.type not in ("float", "int")]:
        raise BadRequestError(
            f"unknown input {tensor.name!r}: one packed tensor needs numeric columns only, "
            f"these are not: {others}; {_allowed(variant)}"
        )
    if tensor.datatype not in DATATYPES["float"]:
        raise BadRequestError(
            f"the packed tensor {tensor.name!r} must be FP32 or FP64, not {tensor.datatype}"
        )
    width = len(variant.columns)
    if tensor.shape[1] != width:
        raise BadRequestError(
            f"the packed tensor {tensor.name!r} has {tensor.shape[1]} columns, not {width}; "
            f"{_allowed(variant)}, in that order"
        )
    values: dict[str, Sequence[Any]] = {}
    for number, column in enumerate(variant.columns):
        picked = tensor.data[number::width]
        values[column.name] = [_whole(value) for value in picked] if column.type == "int" else picked
    return values


def _whole(value: Any) -> Any:
    # 3.0 in a float tensor is the integer 3; anything else is left for the type check to refuse.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _entity_values(tensor: Tensor) -> list[Any]:
    accepted = (str,) if tensor.datatype == "BYTES" else (int,) if tensor.datatype.startswith("INT") else ()
    if not accepted:
        raise BadRequestError(f"entity key {tensor.name!r} must be BYTES or INT64, not {tensor.datatype}")
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise BadRequestError(f"entity key {tensor.name!r} has shape {list(tensor.shape)}, use [rows]")
    for row, value in enumerate(tensor.data):
        if type(value) not in accepted:
            raise BadRequestError(
                f"entity key {tensor.name!r}, row {row}: {shown(value)} is no {tensor.datatype}"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise BadRequestError(f"entity key {tensor.name!r}, row {row}: exceeds a 64-bit integer")
    return list(tensor.data)


def _entity_parameter(parameters: Mapping[str, Any], rows: int) -> Mapping[str, Sequence[Any]]:
    entities = parameters.get("entities", {})
    if not isinstance(entities, dict) or any(
        not isinstance(values, list) or len(values) != rows for values in entities.values()
    ):
        raise BadRequestError(f'parameter "entities" must map each key to a list of {rows} values')
    for key, values in entities.items():
        # They are logged with every row: one that cannot be written would take others' rows with it.
        if odd := [value for value in values if type(value) not in _ENTITY_TYPES]:
            raise BadRequestError(
                f'parameter "entities": {shown(key)} has {shown(odd[0])}; '
                "a key is text, a whole number or null"
            )
    return entities


def _event_times(parameters: Mapping[str, Any], rows: int) -> tuple[datetime | None, ...]:
    given = parameters.get("event_time")
    if given is None:
        return (None,) * rows
    if isinstance(given, list):
        if len(given) != rows:
            raise BadRequestError(f'parameter "event_time" has {len(given)} times for {rows} rows')
        times = tuple(_parse_time(text) for text in given)
        # The prediction log keeps a file a day: a request must not make thousands of them.
        if (days := len({moment.date() for moment in times})) > _MAX_DAYS:
            raise BadRequestError(
                f'parameter "event_time" names {days} days, at most {_MAX_DAYS} in one request: send several'
            )
        return times
    return (_parse_time(given),) * rows


def _parse_time(text: Any) -> datetime:
    reason = ""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
        reason = ": it has no offset"
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRequestError(
        f'parameter "event_time": {shown(text)} is not an ISO time such as 2026-01-31T12:00:00Z{reason}'
    )


def encode_prediction(prediction: Prediction) -> bytes:
    """The V2 response, with the outputs that were asked for."""
    variant, wanted = prediction.variant, prediction.query.outputs
    response = {
        "model_name": prediction.route.endpoint,
        "model_version": variant.version,
        "id": prediction.query.id,
        "parameters": {"route_revision": prediction.route.revision, "model_digest": variant.model_digest},
        "outputs": [
            _encode_output(name, array)
            for name, array in prediction.outputs.items()
            if not wanted or name in wanted
        ],
    }
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def _encode_output(name: str, array: NDArray[Any]) -> dict[str, Any]:
    datatype = _OUTPUT_DATATYPES[array.dtype.kind]
    data = array.tolist() if datatype == "BYTES" else array.ravel()
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": data}


def describe(model: OnnxModel) -> dict[str, Any]:
    """A model's inputs and outputs as the V2 metadata lists them."""
    variant = model.variant
    return {
        "inputs": [
            {"name": column.name, "datatype": announced(column), "shape": [-1]} for column in variant.columns
        ],
        "outputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [-1, len(variant.classes)] if name == "probabilities" else [-1],
            }
            for name, datatype in model.datatypes.items()
        ],
    }
