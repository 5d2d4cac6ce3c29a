"""Profiles: small, mergeable sketches of columns, with which the future is compared.

A numeric column is a histogram on the quantiles of the reference, a categorical one the counts of its
commonest values. A profile of any size is a few kilobytes of JSON (:func:`ml_lifecycle.records.to_json`),
so that no monitoring run has to read the training rows again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import ColumnSpec, Record

SCORE_COLUMN = "__score__"
"""The column that holds a model's scores in a profile, beside its features."""

_BINS = 10
_MAX_CATEGORIES = 1000


class ProfileError(LifecycleError):
    """Two profiles cannot be compared or merged: other kinds or edges, or no values. Retry: no."""


@dataclass(frozen=True)
class NumericColumn:
    """A histogram. What is no finite number (null, NaN, infinite, text) counts as ``missing``.

    :param count: values that are not missing
    :param edges: rising; bin ``i`` holds ``edges[i-1] < value <= edges[i]`` and both end bins are open.
        Of a reference they are its quantiles, from the minimum to the maximum
    :param counts: one more than ``edges``
    :param std: population standard deviation; None, as the other moments, without values
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

    :param count: values that are not missing
    :param counts: of the commonest values, at most 1,000; a bool's are ``true`` and ``false``
    :param other: rows with a value that is not in ``counts``
    """

    count: int
    missing: int
    counts: dict[str, int]
    other: int = 0
    kind: Literal["categorical"] = "categorical"


ColumnProfile = NumericColumn | CategoricalColumn
_Moments = tuple[float | None, float | None, float | None, float | None]  # min, max, mean, std


@dataclass(frozen=True)
class Profile(Record):
    """What a set of rows looks like, column by column."""

    schema: ClassVar[str] = "profile/1"
    rows: int
    columns: dict[str, Annotated[ColumnProfile, Field(discriminator="kind")]]


def make_profile(frame: pl.DataFrame, columns: Sequence[ColumnSpec], like: Profile | None = None) -> Profile:
    """Profile ``columns`` of ``frame``; one that the frame lacks is missing in every row.

    :param like: a reference whose edges are used, so that the two can be compared and merged
    """
    known: Mapping[str, ColumnProfile] = like.columns if like is not None else {}
    numeric = [column.name for column in columns if column.type in ("float", "int")]
    values = as_profiled(frame, columns)
    edges = {}
    for name in numeric:
        reference = known.get(name)
        use = isinstance(reference, NumericColumn)
        edges[name] = reference.edges if use else _quantile_edges(values[name])  # type: ignore[union-attr]
    made: dict[str, ColumnProfile] = dict(_histograms(values, edges))
    for column in columns:
        if column.name not in edges:
            made[column.name] = _categories(values[column.name], known.get(column.name))
    return Profile(frame.height, {column.name: made[column.name] for column in columns})


def as_profiled(frame: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """The columns as Float64 or String, with null for all that counts as missing."""
    return frame.select(_values(frame, column).alias(column.name) for column in columns)


def merge(one: Profile, two: Profile) -> Profile:
    """The profile of both sets of rows together, exact but for the rounding of mean and std.

    Counts of categories are exact up to 1,000 different values.

    :raises ProfileError: the columns, their kinds or edges differ. Retry: no.
    """
    if one.columns.keys() != two.columns.keys():
        differing = ", ".join(sorted(one.columns.keys() ^ two.columns.keys()))
        raise ProfileError(
            f"profiles of different columns cannot be merged: only one of them has {differing}"
        )
    merged = {name: _merge_column(name, one.columns[name], two.columns[name]) for name in one.columns}
    return Profile(one.rows + two.rows, merged)


def _values(frame: pl.DataFrame, column: ColumnSpec) -> pl.Expr:
    if column.name not in frame.columns:
        dtype = pl.Float64 if column.type in ("float", "int") else pl.String
        return pl.repeat(None, pl.len(), dtype=dtype)
    value = pl.col(column.name)
    # strict=False: a value of another type is itself an incident to measure, and no reason to fail.
    if column.type in ("float", "int"):
        number = value.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number)
    if column.type == "bool":
        if frame.schema[column.name].is_numeric():
            value = value != 0
        text = value.cast(pl.String, strict=False).str.to_lowercase()
        return text.replace({"": None, "1": "true", "0": "false"})
    return value.cast(pl.String, strict=False).replace("", None)


def _quantile_edges(values: pl.Series) -> tuple[float, ...]:
    """The 0th, 10th … 100th percentile; each distinct value, where there are no more of those."""
    ordered = values.drop_nulls().sort()
    if ordered.is_empty():
        return ()
    last = len(ordered) - 1
    # Values that occur, not interpolated ones: a discrete column's bins then end at its values.
    edges = ordered.gather([round(last * step / _BINS) for step in range(_BINS + 1)]).unique().sort()
    if len(edges) <= _BINS:
        distinct = ordered.unique().sort()
        edges = distinct if len(distinct) <= _BINS + 1 else edges
    return tuple(edges.to_list())


def _histograms(
    values: pl.DataFrame, edges: Mapping[str, tuple[float, ...]]
) -> Iterator[tuple[str, NumericColumn]]:
    """Every numeric column in one pass."""
    measures = [
        measure.alias(f"{index}:{key}")
        for index, (name, cuts) in enumerate(edges.items())
        for key, measure in _measures(pl.col(name), cuts)
    ]
    row: dict[str, Any] = values.select(measures).row(0, named=True) if measures else {}
    for index, (name, cuts) in enumerate(edges.items()):
        low, high, mean, std = (_finite(row[f"{index}:{key}"]) for key in ("min", "max", "mean", "std"))
        count = row[f"{index}:count"]
        below = [0, *(row[f"{index}:{cut}"] for cut in range(len(cuts))), count]
        counts = tuple(upper - lower for lower, upper in itertools.pairwise(below))
        yield name, NumericColumn(count, values.height - count, cuts, counts, low, high, mean, std)


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold: moments of values near the largest float overflow."""
    return value if value is not None and math.isfinite(value) else None


def _measures(value: pl.Expr, edges: tuple[float, ...]) -> Iterator[tuple[str, pl.Expr]]:
    yield "count", value.count()
    yield "min", value.min()
    yield "max", value.max()
    yield "mean", value.mean()
    yield "std", value.std(ddof=0)
    # Counting below each edge is vectorised; a binary search a row is several times slower.
    for cut, edge in enumerate(edges):
        yield str(cut), (value <= edge).sum()


def _categories(values: pl.Series, like: ColumnProfile | None) -> CategoricalColumn:
    present = values.drop_nulls()
    found = present.alias("value").value_counts(name="n")
    counts = dict(zip(found["value"].to_list(), found["n"].to_list(), strict=True))
    known = like.counts if isinstance(like, CategoricalColumn) else {}
    return _categorical(counts, len(values) - len(present), known)


def _categorical(
    counts: Mapping[str, int], missing: int, known: Mapping[str, int], other: int = 0
) -> CategoricalColumn:
    """Keep the commonest categories, those that the reference knows first."""
    order = sorted(counts, key=lambda value: (value not in known, -counts[value], value))
    kept = {value: counts[value] for value in order[:_MAX_CATEGORIES]}
    total = sum(counts.values()) + other
    return CategoricalColumn(total, missing, kept, total - sum(kept.values()))


def _merge_column(name: str, one: ColumnProfile, two: ColumnProfile) -> ColumnProfile:
    missing = one.missing + two.missing
    if isinstance(one, CategoricalColumn) and isinstance(two, CategoricalColumn):
        counts = {
            value: one.counts.get(value, 0) + two.counts.get(value, 0) for value in {*one.counts, *two.counts}
        }
        return _categorical(counts, missing, {}, one.other + two.other)
    if not isinstance(one, NumericColumn) or not isinstance(two, NumericColumn):
        raise ProfileError(f"column {name!r} is {one.kind} in one profile and {two.kind} in the other")
    if one.edges != two.edges:
        raise ProfileError(f"column {name!r} has other edges in each profile: make both like one reference")
    counts_sum = tuple(a + b for a, b in zip(one.counts, two.counts, strict=True))
    return NumericColumn(one.count + two.count, missing, one.edges, counts_sum, *_merge_moments(one, two))


def _merge_moments(one: NumericColumn, two: NumericColumn) -> _Moments:
    """Pairwise update of mean and variance (Chan, Golub and LeVeque, 1979)."""
    first, second = _moments(one), _moments(two)
    if not one.count or not two.count:
        return first if one.count else second
    low_1, high_1, mean_1, std_1 = first
    low_2, high_2, mean_2, std_2 = second
    low = None if low_1 is None or low_2 is None else min(low_1, low_2)
    high = None if high_1 is None or high_2 is None else max(high_1, high_2)
    if mean_1 is None or mean_2 is None or std_1 is None or std_2 is None:
        return low, high, None, None
    share = two.count / (one.count + two.count)
    delta = mean_2 - mean_1
    variance = std_1 * std_1 * (1 - share) + std_2 * std_2 * share + delta * delta * share * (1 - share)
    return low, high, _finite(mean_1 + delta * share), _finite(math.sqrt(variance))


def _moments(column: NumericColumn) -> _Moments:
    return column.min, column.max, column.mean, column.std
