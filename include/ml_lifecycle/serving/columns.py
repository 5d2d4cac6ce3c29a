"""Values of named, typed columns → the arrays a model is run on. Knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.personal import MASK
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.errors import BadRequestError
from ml_lifecycle.serving.types import Values
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
_GIVEN = {"float": np.float64, "int": np.int64, "bool": np.bool_}
_NUMBERS = frozenset((float, int, _NULL))
_PLAIN = frozenset((float, int))


@dataclass(frozen=True, slots=True)
class Features:
    """Rows to score, as they were given.

    :param values: one sequence a column, in the model's order, nulls as None (or NaN in an array); or all
        columns packed, row-major: ``[rows, columns]``
    :param unknown: numbers of the rows whose entity keys the online store does not know
    """

    rows: int
    values: Sequence[Values] | NDArray[np.floating]
    origin: Origin
    unknown: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Checked rows, column by column.

    :param given: column → ``[rows]`` values as they were given, for the log: bins of a profile must not move
        because a model takes 32 bits. Nulls are None in a list and NaN in an array
    :param columns: column → array of shape ``[rows]``, in the type a model takes
    :param unknown: as in :class:`Features`
    """

    rows: int
    origin: Origin
    given: Mapping[str, Values]
    columns: Mapping[str, NDArray[Any]]
    unknown: Sequence[int] = ()


class Matrix:
    """The same of rows that came packed and are all floats; taken apart only where columns are asked for.

    :param matrix: ``[rows, columns]``, as a model takes it
    :param packed: the same, as it was given
    """

    unknown: Sequence[int] = ()  # nothing of it was looked up

    def __init__(
        self,
        specs: Sequence[ColumnSpec],
        origin: Origin,
        matrix: NDArray[np.float32],
        packed: NDArray[np.floating],
    ) -> None:
        self.rows = len(matrix)
        self.origin = origin
        self.matrix = matrix
        self.packed = packed
        self._specs = specs

    @property
    def given(self) -> Mapping[str, Values]:
        """As in :class:`Columns`."""
        return {spec.name: values for spec, values in zip(self._specs, self.packed.T, strict=True)}

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """As in :class:`Columns`."""
        transposed = np.ascontiguousarray(self.matrix.T)
        return {spec.name: values for spec, values in zip(self._specs, transposed, strict=True)}


Table = Columns | Matrix


def make_table(specs: Sequence[ColumnSpec], parts: Sequence[Features]) -> Table:
    """Check every value of one or several requests and make one table of them, in their order.

    :raises BadRequestError: a value has the wrong type, is null where it must not be, or is too large.
        Retry: no.
    """
    origin = parts[0].origin
    packed = [part.values for part in parts if isinstance(part.values, np.ndarray)]
    if len(packed) == len(parts):
        return _packed_table(specs, packed, origin)
    given: dict[str, Values] = {}
    columns: dict[str, NDArray[Any]] = {}
    plain = _plain_floats(specs, parts)
    for number, spec in enumerate(specs):
        if spec.name in plain:
            given[spec.name], columns[spec.name] = plain[spec.name]
            continue
        pieces = [_piece(spec, part, number) for part in parts]
        values = pieces[0]
        if len(pieces) > 1:
            if any(isinstance(piece, np.ndarray) for piece in pieces):
                values = np.concatenate([_read(spec, piece, origin) for piece in pieces])
            else:
                values = list(chain.from_iterable(pieces))
        values = _read(spec, values, origin)
        given[spec.name] = values
        columns[spec.name] = _as_taken(spec, values, origin)
    return Columns(sum(part.rows for part in parts), origin, given, columns, _unknown(parts))


def features_of(table: Table, given: Sequence[ColumnSpec], wanted: Sequence[ColumnSpec]) -> Features | None:
    """The rows of a table for a model that takes other columns; None if it takes some that are not there.

    :param given: the columns of the table
    :param wanted: the columns of the other model
    """
    if isinstance(table, Matrix) and given == wanted:
        return Features(table.rows, table.packed, table.origin)
    types = {spec.name: spec.type for spec in given}
    if any(types.get(spec.name) != spec.type for spec in wanted):
        return None
    values = table.given
    return Features(table.rows, [values[spec.name] for spec in wanted], table.origin, table.unknown)


def _unknown(parts: Sequence[Features]) -> Sequence[int]:
    """The numbers of all parts' unknown rows, as they stand behind each other."""
    found: list[int] = []
    start = 0
    for part in parts:
        found += [start + number for number in part.unknown]
        start += part.rows
    return found


def pack(values: Sequence[Any], specs: Sequence[ColumnSpec]) -> NDArray[np.float64]:
    """Numbers of a JSON tensor, row-major, as ``[rows, columns]``; null is NaN.

    :raises BadRequestError: one is no number. Retry: no.
    """
    width = len(specs)
    if not set(map(type, values)) <= _NUMBERS:
        place, odd = next((at, value) for at, value in enumerate(values) if type(value) not in _NUMBERS)
        spec = specs[place % width]
        raise BadRequestError(
            f"column {spec.name!r} (from the request), row {place // width}: "
            f"expected a number, got {as_told(spec, odd)}"
        )
    return np.array(values, dtype=np.float64).reshape(-1, width)


def _plain_floats(
    specs: Sequence[ColumnSpec], parts: Sequence[Features]
) -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """The float columns as they were given and as a model takes them; none if any takes a closer look.

    A few numbers each, they cost half when they are looked at together, and almost always all are plain.
    """
    numbers = [number for number, spec in enumerate(specs) if spec.type == "float"]
    if any(isinstance(part.values, np.ndarray) for part in parts):
        return {}
    pieces = [part.values[number] for number in numbers for part in parts]
    if not pieces or any(isinstance(piece, np.ndarray) for piece in pieces):
        return {}
    values = list(chain.from_iterable(pieces))
    if not _PLAIN.issuperset(map(type, values)):
        return {}
    try:
        given = np.array(values, np.float64).reshape(len(numbers), -1)
    except OverflowError:
        return {}
    with np.errstate(over="ignore"):
        taken = given.astype(np.float32)
    if not np.isfinite(taken).all():
        return {}
    names = (specs[number].name for number in numbers)
    return dict(zip(names, zip(given, taken, strict=True), strict=True))


def _piece(spec: ColumnSpec, part: Features, number: int) -> Values:
    """One request's values of a column: whole numbers always of 64 bits, lest joining them changes some."""
    packed = isinstance(part.values, np.ndarray)
    values = part.values[:, number] if isinstance(part.values, np.ndarray) else part.values[number]
    if spec.type != "int" or not isinstance(values, np.ndarray):
        return values
    return _whole(spec, values, part.origin) if packed else _as_taken(spec, values, part.origin)


def _packed_table(
    specs: Sequence[ColumnSpec], parts: Sequence[NDArray[np.floating]], origin: Origin
) -> Table:
    given = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if all(spec.type == "float" for spec in specs):
        with np.errstate(over="ignore"):
            matrix = given.astype(np.float32, copy=False)
        # One look at all of it; a closer one only if something is missing or out of range.
        if not np.isfinite(matrix).all():
            for spec, values in zip(specs, given.T, strict=True):
                _as_taken(spec, values, origin)
        return Matrix(specs, origin, matrix, given)
    kept = {
        spec.name: _whole(spec, values, origin) if spec.type == "int" else values
        for spec, values in zip(specs, given.T, strict=True)
    }
    taken = {spec.name: _as_taken(spec, kept[spec.name], origin) for spec in specs}
    return Columns(len(given), origin, kept, taken)


def _whole(spec: ColumnSpec, values: NDArray[np.floating], origin: Origin) -> NDArray[np.int64]:
    """3.0 in a float tensor is the integer 3."""
    _refuse_nulls(spec, np.isnan(values), origin)
    odd = (values != np.rint(values)) | (np.abs(values) >= 2.0**63)
    if odd.any():
        row = int(odd.argmax())
        raise BadRequestError(
            f"column {spec.name!r} ({where_from(origin)}), row {row}: expected a whole number of 64 bits, "
            f"got {as_told(spec, float(values[row]))}"
        )
    return values.astype(np.int64)


def _read(spec: ColumnSpec, values: Values, origin: Origin) -> Values:
    """One column as it was given, its types checked: an array, or of text a list."""
    if isinstance(values, np.ndarray):
        return values
    _check_types(spec, values, origin)
    if spec.type == "string":
        return values
    try:
        # None becomes NaN.
        return np.array(values, dtype=_GIVEN[spec.type])
    except OverflowError as error:
        raise _exceeds(spec, origin) from error


def _as_taken(spec: ColumnSpec, values: Values, origin: Origin) -> NDArray[Any]:
    """One column in the type a model takes."""
    if not isinstance(values, np.ndarray):
        return np.array([value or "" for value in values], dtype=np.object_)
    if spec.type == "float":
        if not spec.nullable:
            _refuse_nulls(spec, np.isnan(values), origin)
        with np.errstate(over="ignore"):
            taken = values.astype(np.float32, copy=False)
        if np.isinf(taken).any():
            raise _exceeds(spec, origin)
        return taken
    if values.dtype == np.uint64 and values.size and values.max() >= 2**63:
        raise _exceeds(spec, origin)
    return values.astype(_GIVEN[spec.type], copy=False)


def _exceeds(spec: ColumnSpec, origin: Origin) -> BadRequestError:
    limit = "32-bit float" if spec.type == "float" else "64-bit integer"
    return BadRequestError(f"column {spec.name!r} ({where_from(origin)}): a value exceeds a {limit}")


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
        raise _null(spec, row, origin)
    raise BadRequestError(
        f"column {spec.name!r} ({where_from(origin)}), row {row}: expected {_EXPECTED[spec.type]}, "
        f"got {as_told(spec, value)}"
    )


def _refuse_nulls(spec: ColumnSpec, nulls: NDArray[np.bool_], origin: Origin) -> None:
    if nulls.any():
        raise _null(spec, int(nulls.argmax()), origin)


def _null(spec: ColumnSpec, row: int, origin: Origin) -> BadRequestError:
    hint = (
        ""
        if origin == "request"
        else (
            ": the entity is unknown, or its value is older than its time to live at the request's "
            'event_time (now, unless parameters say {"event_time": "2026-01-31T12:00:00Z"})'
        )
    )
    return BadRequestError(
        f"column {spec.name!r} ({where_from(origin)}) is null in row {row}, and the model takes no null "
        f"there{hint}"
    )


def as_told(spec: ColumnSpec, value: object) -> str:
    """A value of a column, for an error: what is personal stands in none, of whatever type it was sent."""
    return MASK if spec.personal else shown(value)


def where_from(origin: Origin) -> str:
    """Where values come from, for messages."""
    return "from the request" if origin == "request" else "from the online store"
