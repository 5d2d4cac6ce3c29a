"""Making profiles: of rows in batches, each sorted once, whatever segments are profiled apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.personal import coarse, pseudonym
from ml_lifecycle.profiles.moments import MOST_COLUMNS, pair_moments
from ml_lifecycle.profiles.profile import (
    NO_SEGMENTS,
    NUMERIC,
    SCORE_COLUMN,
    CategoricalColumn,
    Columns,
    NumericColumn,
    Part,
    Profile,
    ProfileError,
    Segments,
    categorical,
    finite,
    merge_all,
)
from ml_lifecycle.profiles.sketches import Floats, Quantiles
from ml_lifecycle.records import ColumnSpec

_BATCH_ROWS = 131_072
_AT_ONCE = 8  # profiles that are merged together


def make_profile(
    frame: pl.DataFrame, columns: Sequence[ColumnSpec], segments: Segments = NO_SEGMENTS
) -> Profile:
    """Profile ``columns`` of ``frame``; one that the frame lacks is missing in every row.

    :raises ProfileError: a column of ``segments`` is none of ``columns``. Retry: no.
    """
    return profile_batches([frame], columns, segments)


def profile_batches(
    batches: Iterable[pl.DataFrame],
    columns: Sequence[ColumnSpec],
    segments: Segments = NO_SEGMENTS,
) -> Profile:
    """As :func:`make_profile`, of rows that come in batches of any size."""
    profiling = Profiling(columns, segments)
    for batch in batches:
        profiling.add(batch)
    return profiling.profile()


class Profiling:
    """A profile of rows that are on their way to somewhere else. Raises as :func:`make_profile`."""

    def __init__(self, columns: Sequence[ColumnSpec], segments: Segments = NO_SEGMENTS) -> None:
        if unknown := segments.keys() - {column.name for column in columns}:
            raise ProfileError(f"no segments of {', '.join(sorted(unknown))}: not a column of the model")
        self._columns = columns
        self._segments = segments
        self._found = [_profile(pl.DataFrame(), columns, segments)]

    def add(self, batch: pl.DataFrame) -> None:
        """Profile some more rows."""
        for rows in batch.iter_slices(_BATCH_ROWS):
            self._found.append(_profile(rows, self._columns, self._segments))
            if len(self._found) == _AT_ONCE:
                self._found = [merge_all(self._found)]

    def profile(self) -> Profile:
        """The profile of all rows so far."""
        return merge_all(self._found)


def as_profiled(frame: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """The columns as Float64 or String, with null for all that counts as missing."""
    return frame.select(_values(frame, column).alias(column.name) for column in columns)


def _values(frame: pl.DataFrame, column: ColumnSpec) -> pl.Expr:
    if column.name not in frame.columns:
        dtype = pl.Float64 if column.type in NUMERIC else pl.String
        return pl.repeat(None, pl.len(), dtype=dtype)
    value = pl.col(column.name)
    # strict=False: a value of another type is itself an incident to measure, and no reason to fail.
    if column.type in NUMERIC:
        number = value.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number)
    if column.type == "bool":
        if frame.schema[column.name].is_numeric():
            value = value != 0
        text = value.cast(pl.String, strict=False)
        if frame.schema[column.name] == pl.Boolean:
            return text
        return text.str.to_lowercase().replace({"": None, "1": "true", "0": "false"})
    text = value.cast(pl.String, strict=False)
    return pl.when(text != "").then(text)


def has_value(name: str, value: str, *, numeric: bool) -> pl.Expr:
    """Whether a profiled row has the value, as the spec writes it."""
    if not numeric:
        return pl.col(name) == value
    try:
        return pl.col(name) == float(value)
    except ValueError:
        return pl.repeat(False, pl.len())


def _profile(frame: pl.DataFrame, columns: Sequence[ColumnSpec], segments: Segments) -> Profile:
    values = as_profiled(frame, columns)
    batch = _Batch(values, columns, cut=bool(segments))
    parts = {}
    for name, wanted in segments.items():
        numeric = name in batch.numeric
        for value in wanted:
            inside = values.select(has_value(name, value, numeric=numeric).fill_null(value=False))
            parts[f"{name}={value}"] = batch.part(inside.to_series())
    whole = batch.part(None)
    return Profile(whole.rows, whole.columns, whole.pairs, parts)


class _Batch:
    """Some rows as they are profiled, each numeric column in order.

    A personal column's texts are profiled under pseudonyms, its numbers by their first digits.

    :param cut: whether parts of them will be asked for
    """

    def __init__(self, values: pl.DataFrame, columns: Sequence[ColumnSpec], *, cut: bool) -> None:
        self.numeric = tuple(column.name for column in columns if column.type in NUMERIC)
        self._names = values.columns
        self._personal = {column.name for column in columns if column.personal}
        self._rows = values.height
        self._texts = values.drop(self.numeric)
        self._followed = tuple(name for name in self.numeric if name != SCORE_COLUMN)[:MOST_COLUMNS]
        self._matrix = values.select(self._followed).to_numpy()
        numbers = values.select(
            coarse(pl.col(name)) if name in self._personal else pl.col(name) for name in self.numeric
        )
        # An order takes a third longer than the values in order, and no longer for any number of parts.
        found = numbers.select((pl.all().arg_sort() if cut else pl.all().sort()).implode())
        self._ordered = {
            name: _Ordered.by(found[name][0], numbers[name]) if cut else _Ordered.of(found[name][0])
            for name in self.numeric
        }

    def part(self, inside: pl.Series | None) -> Part:
        """The profile of some of the rows, or of all of them.

        :param inside: which rows
        """
        chosen = None if inside is None else inside.to_numpy()
        texts = self._texts if inside is None else self._texts.filter(inside)
        rows = self._rows if chosen is None else int(np.count_nonzero(chosen))
        found = texts.select(
            pl.col(name).alias("value").value_counts(name="rows").implode().alias(name)
            for name in texts.columns
        )
        pairs = None
        if len(self._followed) > 1:
            pairs = pair_moments(self._followed, self._matrix if chosen is None else self._matrix[chosen])
        columns: Columns = {
            name: _numbers(self._ordered[name].part(chosen), rows)
            if name in self._ordered
            else _categories(found[name][0], hidden=name in self._personal)
            for name in self._names
        }
        return Part(rows, columns, pairs)


@dataclass(frozen=True)
class _Ordered:
    """A column's numbers, rising.

    :param rows: the row of each
    """

    values: Floats
    rows: NDArray[np.uint32] | None = None

    @classmethod
    def of(cls, rising: pl.Series) -> _Ordered:
        """:param rising: nulls first"""
        return cls(rising[rising.null_count() :].to_numpy())

    @classmethod
    def by(cls, order: pl.Series, numbers: pl.Series) -> _Ordered:
        """:param order: of the rows, those of nulls first"""
        rows = order[numbers.null_count() :].to_numpy()
        return cls(numbers.to_numpy()[rows], rows)

    def part(self, chosen: NDArray[np.bool_] | None) -> Floats:
        """Those of some rows, rising too; of all without ``chosen``."""
        if chosen is None or self.rows is None:
            return self.values
        return self.values[np.flatnonzero(chosen[self.rows])]


def _numbers(ordered: Floats, rows: int) -> NumericColumn:
    """:param rows: how many there are, with those that have no value"""
    n = len(ordered)
    if not n:
        return NumericColumn(0, rows)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = ordered.mean()
        apart = ordered - mean
        apart *= apart  # no product of vectors: of long ones it wakes every core, and differs by how many
        std = finite(math.sqrt(apart.mean()))
    sketch = Quantiles.of_sorted(ordered)
    return NumericColumn(n, rows - n, sketch.encode(), sketch.low, sketch.high, finite(mean), std)


def _categories(found: pl.Series, *, hidden: bool) -> CategoricalColumn:
    """:param found: structs of ``value`` and ``rows``"""
    counts = dict(zip(found.struct["value"].to_list(), found.struct["rows"].to_list(), strict=True))
    missing = counts.pop(None, 0)
    if hidden:
        counts = {pseudonym(value): rows for value, rows in counts.items()}
    return categorical(counts, missing, sum(counts.values()))
