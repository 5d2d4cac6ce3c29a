"""Profiles: small, mergeable sketches of columns, with which the future is compared.

A numeric column is a sketch of its quantiles beside exact moments, a categorical one its values' counts. A
profile of any size is some kilobytes of JSON a column (:func:`ml_lifecycle.records.to_json`), so that no
monitoring run has to read the training rows again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.personal import coarse, pseudonym
from ml_lifecycle.profiles.moments import MOST_COLUMNS, PairMoments, pair_moments
from ml_lifecycle.profiles.sketches import Quantiles
from ml_lifecycle.records import ColumnSpec, Record, from_json

SCORE_COLUMN = "__score__"
"""The column that holds a model's scores in a profile, beside its features."""
NUMERIC = ("float", "int")
"""Types of columns that are profiled as numbers."""

Segments = Mapping[str, Sequence[str]]
"""Column to the values whose rows are profiled apart, as in the spec."""
NO_SEGMENTS: Segments = MappingProxyType({})

_BATCH_ROWS = 65_536
_AT_ONCE = 8  # profiles that are merged together
_MAX_CATEGORIES = 1000


class ProfileError(LifecycleError):
    """Two profiles cannot be compared or merged: other kinds or columns, or no values. Retry: no."""


@dataclass(frozen=True)
class NumericColumn:
    """Numbers. What is no finite number (null, NaN, infinite, text) counts as ``missing``.

    :param count: values that are not missing
    :param sketch: :meth:`.sketches.Quantiles.encode`'s text; None without values
    :param std: population standard deviation; None, as the other moments, without values
    """

    count: int
    missing: int
    sketch: str | None = None
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    kind: Literal["quantiles"] = "quantiles"

    @cached_property
    def quantiles(self) -> Quantiles:
        """The sketch.

        :raises ProfileError: there are no values. Retry: no.
        """
        if self.sketch is None:
            raise ProfileError(f"the column has no values, only {self.missing} missing")
        return Quantiles.decode(self.sketch)


@dataclass(frozen=True)
class HistogramColumn:
    """A numeric column of a profile/1: a histogram, to be read as a reference only.

    :param edges: rising; bin ``i`` holds ``edges[i-1] < value <= edges[i]`` and both end bins are open
    :param counts: one more than ``edges``
    """

    count: int
    missing: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    kind: Literal["numeric"] = "numeric"


@dataclass(frozen=True)
class CategoricalColumn:
    """Counts by value. Nulls and empty strings (how a model is given a null string) are ``missing``.

    With up to 1,000 different values all counts are exact. Beyond, the commonest are kept; merging may have
    dropped a value before it became common, so a count may be up to ``error`` too low, and a value that is
    not there has at most ``error`` rows.

    :param count: values that are not missing
    :param counts: a bool's are ``true`` and ``false``
    :param other: rows that are not in ``counts``
    """

    count: int
    missing: int
    counts: dict[str, int]
    other: int = 0
    error: int = 0
    kind: Literal["categorical"] = "categorical"


ColumnProfile = NumericColumn | HistogramColumn | CategoricalColumn
Columns = dict[str, Annotated[ColumnProfile, Field(discriminator="kind")]]


@dataclass(frozen=True)
class Part:
    """What some of a profile's rows look like, column by column; ``pairs`` as in :class:`Profile`."""

    rows: int
    columns: Columns
    pairs: PairMoments | None = None


@dataclass(frozen=True)
class Profile(Record):
    """What a set of rows looks like, column by column.

    :param pairs: of the first 30 numeric columns; None if there are fewer than two
    :param segments: ``column=value`` → the rows with that value
    """

    schema: ClassVar[str] = "profile/2"
    rows: int
    columns: Columns
    pairs: PairMoments | None = None
    segments: dict[str, Part] = field(default_factory=dict)


def read_profile(data: dict[str, Any]) -> Profile:
    """Read a stored profile, also one of schema 1, whose histograms tell fewer distances.

    :raises RecordError: it is none. Retry: no.
    """
    if data.get("schema") == "profile/1":
        data = {**data, "schema": Profile.schema}
    return from_json(Profile, data)


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


def merge(one: Profile, two: Profile) -> Profile:
    """The profile of both sets of rows together; see :func:`merge_all`.

    :raises ProfileError: the columns, their kinds or the segments differ. Retry: no.
    """
    return merge_all([one, two])


def merge_all(profiles: Sequence[Profile]) -> Profile:
    """The profile of at least one set of rows together.

    Counts and moments are exact but for rounding, of categories as :class:`CategoricalColumn` says; what the
    sketches tell differs a little with the order, by no more than their own error.

    :raises ProfileError: the columns, their kinds or the segments differ. Retry: no.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if first.segments.keys() != other.segments.keys():
            differing = ", ".join(sorted(first.segments.keys() ^ other.segments.keys()))
            raise ProfileError(
                f"profiles of other segments cannot be merged: only one of them has {differing}"
            )
    segments = {name: _merge_parts([one.segments[name] for one in profiles]) for name in first.segments}
    return Profile(
        sum(one.rows for one in profiles), _merge_columns(profiles), _merge_pairs(profiles), segments
    )


def _merge_parts(parts: Sequence[Part]) -> Part:
    return Part(sum(part.rows for part in parts), _merge_columns(parts), _merge_pairs(parts))


def _merge_pairs(parts: Sequence[Profile | Part]) -> PairMoments | None:
    total = parts[0].pairs
    for part in parts[1:]:
        total = total + part.pairs if total is not None and part.pairs is not None else None
    return total


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


def _profile(frame: pl.DataFrame, columns: Sequence[ColumnSpec], segments: Segments) -> Profile:
    values = as_profiled(frame, columns)
    numeric = tuple(column.name for column in columns if column.type in NUMERIC)
    personal = {column.name for column in columns if column.personal}
    followed = tuple(name for name in numeric if name != SCORE_COLUMN)[:MOST_COLUMNS]
    parts = {}
    for name, wanted in segments.items():
        for value in wanted:
            rows = values.filter(has_value(name, value, numeric=name in numeric))
            parts[f"{name}={value}"] = Part(
                rows.height, _columns(rows, numeric, personal), _pairs(rows, followed)
            )
    return Profile(values.height, _columns(values, numeric, personal), _pairs(values, followed), parts)


def _pairs(values: pl.DataFrame, followed: tuple[str, ...]) -> PairMoments | None:
    return pair_moments(followed, values.select(followed).to_numpy()) if len(followed) > 1 else None


def has_value(name: str, value: str, *, numeric: bool) -> pl.Expr:
    """Whether a profiled row has the value, as the spec writes it."""
    if not numeric:
        return pl.col(name) == value
    try:
        return pl.col(name) == float(value)
    except ValueError:
        return pl.lit(False)


def _columns(values: pl.DataFrame, numeric: Sequence[str], personal: Collection[str]) -> Columns:
    """A personal column's texts are profiled under pseudonyms, its numbers by their first digits."""
    hidden = [name for name in values.columns if name in personal]
    values = values.with_columns(coarse(pl.col(name)) for name in hidden if name in numeric)
    found = values.select(
        (
            pl.col(name).sort()
            if name in numeric
            else pl.col(name).alias("value").value_counts(name="rows").alias(name)
        ).implode()
        for name in values.columns
    )
    return {
        name: _numbers(found[name][0])
        if name in numeric
        else _categories(found[name][0], hidden=name in hidden)
        for name in values.columns
    }


def _numbers(ordered: pl.Series) -> NumericColumn:
    """:param ordered: nulls first"""
    missing = ordered.null_count()
    found = ordered[missing:].to_numpy()
    if not len(found):
        return NumericColumn(0, missing)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = found.mean()
        apart = found - mean
        std = _finite(math.sqrt(apart @ apart / len(found)))
    sketch = Quantiles.of_sorted(found)
    return NumericColumn(len(found), missing, sketch.encode(), sketch.low, sketch.high, _finite(mean), std)


def _finite(value: float) -> float | None:
    """None for what JSON cannot hold: moments of values near the largest float overflow."""
    return float(value) if math.isfinite(value) else None


def _categories(found: pl.Series, *, hidden: bool) -> CategoricalColumn:
    """:param found: structs of ``value`` and ``rows``"""
    counts = dict(zip(found.struct["value"].to_list(), found.struct["rows"].to_list(), strict=True))
    missing = counts.pop(None, 0)
    if hidden:
        counts = {pseudonym(value): rows for value, rows in counts.items()}
    return _categorical(counts, missing, sum(counts.values()))


def _categorical(counts: Mapping[str, int], missing: int, total: int, error: int = 0) -> CategoricalColumn:
    """Keep the commonest; what is dropped had at most so many rows as the commonest of it, and ``error``."""
    kept = dict(counts)
    if len(counts) > _MAX_CATEGORIES:
        order = sorted(counts, key=lambda value: (-counts[value], value))
        kept = {value: counts[value] for value in order[:_MAX_CATEGORIES]}
        error += counts[order[_MAX_CATEGORIES]]
    return CategoricalColumn(total, missing, kept, total - sum(kept.values()), error)


def _merge_columns(parts: Sequence[Profile | Part]) -> Columns:
    first = parts[0]
    for other in parts[1:]:
        if first.columns.keys() != other.columns.keys():
            differing = ", ".join(sorted(first.columns.keys() ^ other.columns.keys()))
            raise ProfileError(
                f"profiles of different columns cannot be merged: only one of them has {differing}"
            )
    return {name: _merge_column(name, [part.columns[name] for part in parts]) for name in first.columns}


def _merge_column(name: str, columns: Sequence[ColumnProfile]) -> ColumnProfile:
    missing = sum(column.missing for column in columns)
    texts = [column for column in columns if isinstance(column, CategoricalColumn)]
    if len(texts) == len(columns):
        counts: Counter[str] = Counter()
        for column in texts:
            counts.update(column.counts)
        total, error = sum(column.count for column in texts), sum(column.error for column in texts)
        return _categorical(counts, missing, total, error)
    numbers = [column for column in columns if isinstance(column, NumericColumn)]
    if len(numbers) < len(columns):
        kinds = " and ".join(sorted({column.kind for column in columns}))
        raise ProfileError(f"column {name!r} is {kinds} in profiles that are to be merged")
    some = [column for column in numbers if column.count]
    if not some:
        return NumericColumn(0, missing)
    both = Quantiles.of_all([column.quantiles for column in some])
    total = sum(column.count for column in some)
    return NumericColumn(total, missing, both.encode(), both.low, both.high, *_merge_moments(some, total))


def _merge_moments(columns: Sequence[NumericColumn], total: int) -> tuple[float | None, float | None]:
    """Mean and standard deviation: within the parts, and between them (Chan, Golub and LeVeque, 1979)."""
    known = [(one.count / total, one.mean, one.std) for one in columns if one.mean is not None]
    if len(known) < len(columns) or any(std is None for _, _, std in known):
        return None, None
    # Around one of the means: what is common to large values cancels nothing.
    near = known[0][1]
    away = math.fsum(share * (mean - near) for share, mean, _ in known)
    variance = math.fsum(
        share * ((std or 0.0) ** 2 + (mean - near - away) ** 2) for share, mean, std in known
    )
    return _finite(near + away), _finite(math.sqrt(variance))
