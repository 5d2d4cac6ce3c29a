"""Profiles: small, mergeable sketches of columns, with which the future is compared.

A numeric column is a sketch of its quantiles beside exact moments, a categorical one its values' counts. A
profile of any size is some kilobytes of JSON a column (:func:`ml_lifecycle.records.to_json`), so that no
monitoring run has to read the training rows again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.profiles.moments import PairMoments
from ml_lifecycle.profiles.sketches import Quantiles
from ml_lifecycle.records import Record, from_json

SCORE_COLUMN = "__score__"
"""The column that holds a model's scores in a profile, beside its features."""
NUMERIC = ("float", "int")
"""Types of columns that are profiled as numbers."""

Segments = Mapping[str, Sequence[str]]
"""Column to the values whose rows are profiled apart, as in the spec."""
NO_SEGMENTS: Segments = MappingProxyType({})

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


def categorical(counts: Mapping[str, int], missing: int, total: int, error: int = 0) -> CategoricalColumn:
    """Keep the commonest; what is dropped had at most so many rows as the commonest of it, and ``error``."""
    kept = dict(counts)
    if len(counts) > _MAX_CATEGORIES:
        order = sorted(counts, key=lambda value: (-counts[value], value))
        kept = {value: counts[value] for value in order[:_MAX_CATEGORIES]}
        error += counts[order[_MAX_CATEGORIES]]
    return CategoricalColumn(total, missing, kept, total - sum(kept.values()), error)


def finite(value: float) -> float | None:
    """None for what JSON cannot hold: moments of values near the largest float overflow."""
    return float(value) if math.isfinite(value) else None


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
        return categorical(counts, missing, total, error)
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
    return finite(near + away), finite(math.sqrt(variance))
