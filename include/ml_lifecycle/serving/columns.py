"""Values of a named, typed column → the array a model is run on. Knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.errors import BadRequestError
from ml_lifecycle.shown import shown

Origin = Literal["request", "online_store"]

_NULL = type(None)
_ACCEPTED: Mapping[str, frozenset[type]] = {
    "float": frozenset((float, int)),
    "int": frozenset((int,)),
    "bool": frozenset((bool,)),
    "string": frozenset((str,)),
}
_EXPECTED = {"float": "a number", "int": "a whole number", "bool": "true or false", "string": "text"}
_DTYPES = {"float": np.float32, "int": np.int64, "bool": np.bool_, "string": np.object_}


@dataclass(frozen=True, slots=True)
class Features:
    """The rows to score.

    :param values: column → values as they were given, nulls as None; these are logged
    :param arrays: column → array of shape ``[rows, 1]``, as the model takes it
    """

    rows: int
    values: Mapping[str, Sequence[Any]]
    arrays: Mapping[str, NDArray[Any]]
    origin: Origin


def make_features(
    specs: Sequence[ColumnSpec], values: Mapping[str, Sequence[Any]], origin: Origin
) -> Features:
    """Check every value and make the arrays; ``values`` holds every column, all equally long.

    :raises BadRequestError: a value has the wrong type, is null where it must not be, or is too large.
        Retry: no.
    """
    with np.errstate(over="raise"):
        arrays = {spec.name: _array(spec, values[spec.name], origin) for spec in specs}
    return Features(len(values[specs[0].name]), values, arrays, origin)


def _array(spec: ColumnSpec, values: Sequence[Any], origin: Origin) -> NDArray[Any]:
    _check_types(spec, values, origin)
    if spec.type == "string" and spec.nullable:
        values = ["" if value is None else value for value in values]
    try:
        # None becomes NaN in a float array.
        return np.array(values, dtype=_DTYPES[spec.type]).reshape(-1, 1)
    except (FloatingPointError, OverflowError) as error:
        limit = "32-bit float" if spec.type == "float" else "64-bit integer"
        raise BadRequestError(
            f"column {spec.name!r} ({_where(origin)}): a value exceeds a {limit}"
        ) from error


def _check_types(spec: ColumnSpec, values: Sequence[Any], origin: Origin) -> None:
    found = set(map(type, values))
    accepted = _ACCEPTED[spec.type]
    if found <= accepted:
        return
    if spec.nullable and spec.type in ("float", "string"):
        accepted |= {_NULL}
        if found <= accepted:
            return
    row, value = next((row, value) for row, value in enumerate(values) if type(value) not in accepted)
    if value is None:
        hint = (
            ""
            if origin == "request"
            else (
                ": the entity is unknown, or its value is older than its time to live at the request's "
                'event_time (now, unless parameters say {"event_time": "2026-01-31T12:00:00Z"})'
            )
        )
        raise BadRequestError(
            f"column {spec.name!r} ({_where(origin)}) is null in row {row}, and the model takes no null "
            f"there{hint}"
        )
    raise BadRequestError(
        f"column {spec.name!r} ({_where(origin)}), row {row}: expected {_EXPECTED[spec.type]}, "
        f"got {type(value).__name__} {shown(value)}"
    )


def _where(origin: Origin) -> str:
    return "from the request" if origin == "request" else "from the online store"
