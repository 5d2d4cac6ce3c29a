"""A V2 request held against a variant: a query that the variant can answer."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ml_lifecycle.records import TaskType
from ml_lifecycle.serving.assignment import key_of
from ml_lifecycle.serving.dataplane import LoadedVariant, Query, ServedRoute
from ml_lifecycle.serving.decoding import parse_request, read_json, wants_binary
from ml_lifecycle.serving.errors import BadRequestError, TooLargeError
from ml_lifecycle.serving.model import OUTPUTS
from ml_lifecycle.serving.packed import WORTH_BYTES, Packed, read_packed
from ml_lifecycle.serving.signature import Signature, entity_values, few, may_be_keys
from ml_lifecycle.serving.types import InferRequest, RequestedOutput, Tensor
from ml_lifecycle.shown import shown

_ENTITY_TYPES = frozenset((str, int, type(None)))
_MAX_DAYS = 100
# Those of a request that say something here.
_PARAMETERS = frozenset(("event_time", "entities", "assignment_key", "binary_data_output"))
# How alike a name must be; Triton's own (sequence_id, priority, timeout) are far from that.
_NEAR = 0.8
_PLAIN_KEYS = frozenset(("id", "inputs"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request before its body is read.

    :param received_us: when it came, in microseconds since 1970
    :param version: the version asked for by name
    :param key: what it is assigned by, if a header says it
    :param id: a header's id, for a body without one
    """

    served: ServedRoute
    received_us: int
    version: str | None = None
    key: str | None = None
    id: str | None = None


def one_version(path: str | None, header: str | None) -> str | None:
    """The version that is asked for, in either place or in both.

    :raises BadRequestError: they contradict each other. Retry: no.
    """
    if path is not None and header is not None and path != header:
        raise BadRequestError(
            f"the request names version {shown(path)}, and its ml-lifecycle-version {shown(header)}: send one"
        )
    return path or header


def decode_query(
    body: bytes, json_bytes: int | None, asked: Asked, max_rows: int
) -> tuple[LoadedVariant, Query]:
    """The body of a REST request as a query, and the variant that is to answer it.

    :param json_bytes: where binary data begins; None if all of the body is JSON
    :raises BadRequestError: it is no V2 request, or does not fit the variant. Retry: no.
    :raises UnknownModelError: the version is not served. Retry: no.
    :raises TooLargeError: more than ``max_rows`` rows. Retry: no.
    """
    if json_bytes is None and len(body) >= WORTH_BYTES and (packed := read_packed(body)) is not None:
        found = _quick_packed(packed, asked, max_rows, len(body))
        if found is not None:
            return found
    data, binary = read_json(body, json_bytes)
    if json_bytes is None and data.keys() <= _PLAIN_KEYS:
        found = _quick(data, asked, max_rows, len(body))
        if found is not None:
            return found
    return make_query(parse_request(data, binary), asked, max_rows, len(body))


def _quick(
    data: dict[str, Any], asked: Asked, max_rows: int, size: int
) -> tuple[LoadedVariant, Query] | None:
    """The query of what almost every request is: vectors by known columns, and nothing else."""
    inputs, given = data.get("inputs"), data.get("id")
    if type(inputs) is not list or not inputs or not (given is None or type(given) is str):
        return None
    if given is not None and not 0 < len(given) <= 200:
        return None
    key_sets = asked.served.key_sets
    if key_sets and frozenset(tensor.get("name") for tensor in inputs if type(tensor) is dict) in key_sets:
        return None  # by whichever of them it is assigned
    request_id = given or asked.id or new_id()
    loaded = asked.served.pick(asked.version, asked.key or request_id)
    features = loaded.signature.quick(inputs)
    if features is None or not 0 < features.rows <= max_rows:
        return None
    return loaded, Query(features.rows, features, {}, None, request_id, asked.received_us, size=size)


def _quick_packed(
    packed: Packed, asked: Asked, max_rows: int, size: int
) -> tuple[LoadedVariant, Query] | None:
    """The same of one large packed tensor."""
    if not (packed.id is None or 0 < len(packed.id) <= 200) or not 0 < packed.rows <= max_rows:
        return None
    if frozenset((packed.name,)) in asked.served.key_sets:
        return None
    request_id = packed.id or asked.id or new_id()
    loaded = asked.served.pick(asked.version, asked.key or request_id)
    features = loaded.signature.packed(packed)
    if features is None:
        return None
    return loaded, Query(features.rows, features, {}, None, request_id, asked.received_us, size=size)


def new_id() -> str:
    """An id for a prediction whose client gave none."""
    return f"{random.getrandbits(128):032x}"


def make_query(request: InferRequest, asked: Asked, max_rows: int, size: int) -> tuple[LoadedVariant, Query]:
    """The request as a query: typed columns, or entity keys to read features with.

    :param size: bytes of the request
    :raises BadRequestError: names, datatypes, shapes or values do not fit the variant. Retry: no.
    :raises UnknownModelError: the version is not served. Retry: no.
    :raises TooLargeError: more than ``max_rows`` rows. Retry: no.
    """
    rows = request.inputs[0].shape[0]
    _check_rows(request.inputs, rows, max_rows)
    names = Counter(tensor.name for tensor in request.inputs)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise BadRequestError(f"inputs given more than once: {few(repeated)}")
    if request.parameters and not request.parameters.keys() <= _PARAMETERS:
        _check_parameters(request.parameters)
    request_id = request.id or asked.id or new_id()
    entities = _entity_parameter(request.parameters, rows)
    by_entity = [_by_entity(names, one.signature) for one in asked.served.variants]
    if all(by_entity) or (any(by_entity) and all(map(may_be_keys, request.inputs))):
        entities = {tensor.name: entity_values(tensor) for tensor in request.inputs}
    key = asked.key or key_of(request.parameters, entities, request_id)
    loaded = asked.served.pick(asked.version, key)
    _check_outputs(request.outputs, loaded.variant.task)
    features = None
    if not _by_entity(names, loaded.signature):
        features = loaded.signature.features(request.inputs)
    return loaded, Query(
        rows=rows,
        features=features,
        entities=entities,
        event_times=_event_times(request.parameters, rows),
        id=request_id,
        received_us=asked.received_us,
        outputs=request.outputs,
        binary=wants_binary(request.parameters),
        size=size,
    )


def _check_parameters(given: Iterable[str]) -> None:
    """Refuse what is almost one of ours. Others are the protocol's or a client's own, and passed over.

    A misspelt event_time would be passed over too, and the rows be read, logged and monitored as if of now.
    """
    for name in given:
        near = difflib.get_close_matches(name[:60], _PARAMETERS, n=1, cutoff=_NEAR)
        if near and name not in _PARAMETERS:
            raise BadRequestError(f"unknown parameter {shown(name)}: did you mean {near[0]!r}?")


def _by_entity(names: Collection[str], signature: Signature) -> bool:
    """Whether the inputs are a variant's entity keys, to read its features by."""
    keys = set(signature.entity_keys)
    return bool(keys) and set(names) == keys and keys != {column.name for column in signature.columns}


def _check_rows(inputs: Iterable[Tensor], rows: int, max_rows: int) -> None:
    if rows == 0:
        raise BadRequestError("the request has no rows")
    if rows > max_rows:
        raise TooLargeError(f"{rows} rows in one request, at most {max_rows} are taken")
    for tensor in inputs:
        if tensor.shape[0] != rows:
            raise BadRequestError(f"input {tensor.name!r} has {tensor.shape[0]} rows, the first has {rows}")


def _check_outputs(outputs: Sequence[RequestedOutput], task: TaskType) -> None:
    if unknown := sorted({output.name for output in outputs} - set(OUTPUTS[task])):
        raise BadRequestError(f"unknown outputs {few(unknown)}; the model gives {list(OUTPUTS[task])}")


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
        if any(type(value) is int and not -(2**63) <= value < 2**63 for value in values):
            raise BadRequestError(f'parameter "entities": {shown(key)} exceeds a 64-bit integer')
    return entities


def _event_times(parameters: Mapping[str, Any], rows: int) -> tuple[datetime | None, ...] | None:
    given = parameters.get("event_time")
    if given is None:
        return None
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
