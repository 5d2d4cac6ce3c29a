"""How far a column has moved from its reference: effect sizes, which unlike p-values do not grow with n."""

from __future__ import annotations

import math

import numpy as np

from ml_lifecycle.profiles.moments import PairMoments
from ml_lifecycle.profiles.profile import (
    CategoricalColumn,
    ColumnProfile,
    HistogramColumn,
    NumericColumn,
    ProfileError,
)
from ml_lifecycle.profiles.sketches import Quantiles, in_bins, shares_of_both

SHARE_FLOOR = 1e-4
_BINS = 10
_COMPARED_CATEGORIES = 20
_LEAST_STD = 0.001  # Evidently's


def psi(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Population stability index: the sum over bins of ``(c - r) * ln(c / r)`` of the shares c and r.

    The bins are the reference's tenths, or its values where it has no more. Below 0.1 a column is usually
    held stable, above 0.25 shifted (Siddiqi, *Credit Risk Scorecards*, 2006). Without any shift it is still
    about ``(bins - 1) * (1/n + 1/m)`` (Yurdakul, *Statistical properties of population stability index*,
    2018), which is why alerts ask for a minimum of rows. An empty bin would make it infinite: shares below
    1e-4 count as 1e-4, the floor that Evidently's ``psi`` fills empty bins with. Missing values are left out;
    they are :func:`missing_share`'s. Categories beyond the reference's 20 commonest are compared as one.

    :raises ProfileError: a column has no values, or the two are of other kinds. Retry: no.
    """
    pairs = _shares(reference, current)
    floored = ((max(r, SHARE_FLOOR), max(c, SHARE_FLOOR)) for r, c in pairs)
    return math.fsum((c - r) * math.log(c / r) for r, c in floored)


def jensen_shannon(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Jensen–Shannon distance: the square root of the divergence to base 2, from 0 to 1, on PSI's bins.

    The root is a metric (Endres and Schindelin, *A new metric for probability distributions*, 2003);
    SciPy's and Evidently's ``jensenshannon`` with base 2 are the same. Empty bins need no floor.

    :raises ProfileError: as :func:`psi`. Retry: no.
    """
    divergence = math.fsum(_to_middle(r, c) + _to_middle(c, r) for r, c in _shares(reference, current)) / 2
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def kolmogorov_smirnov(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Kolmogorov–Smirnov statistic: the largest distance between both distribution functions, 0 to 1.

    :raises ProfileError: as :func:`psi`, or the reference is a histogram. Retry: no.
    """
    _, before, now = shares_of_both(*_sketches(reference, current))
    return float(np.abs(before - now).max())


def wasserstein(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Wasserstein distance: how far values moved on average, in the column's own unit.

    Infinite where values are near the largest number there is.

    :raises ProfileError: as :func:`kolmogorov_smirnov`. Retry: no.
    """
    points, before, now = shares_of_both(*_sketches(reference, current))
    with np.errstate(over="ignore"):
        return float((np.abs(before - now)[:-1] * np.diff(points)).sum())


def wasserstein_normed(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Wasserstein distance in standard deviations of the reference, as Evidently's ``wasserstein``.

    Evidently takes a smaller standard deviation than 0.001 as 0.001, and 0.1 as drift.

    :raises ProfileError: as :func:`wasserstein`. Retry: no.
    """
    distance = wasserstein(reference, current)
    if not isinstance(reference, NumericColumn) or reference.std is None:
        raise ProfileError("no normed distance: the reference has no standard deviation")
    return distance / max(reference.std, _LEAST_STD)


def cramers_v(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Cramér's V of category by side: chi-square freed of the number of rows, from 0 to 1.

    :raises ProfileError: as :func:`psi`, or the columns are numeric. Retry: no.
    """
    statistic, _ = chi_square(reference, current)
    return math.sqrt(statistic / (reference.count + current.count))


def chi_square(reference: ColumnProfile, current: ColumnProfile) -> tuple[float, int]:
    """Pearson's chi-square of category by side, on the categories of :func:`psi`; and its degrees of freedom.

    The reference is a sample as the window is: the expected counts come from both together. (Evidently's
    ``chisquare`` takes the reference's shares as the truth, and cannot be made where a category is new.)

    :raises ProfileError: as :func:`cramers_v`. Retry: no.
    """
    if not isinstance(reference, CategoricalColumn) or not isinstance(current, CategoricalColumn):
        raise ProfileError("chi-square is of categories")
    n, m = reference.count, current.count
    bins = [(r * n, c * m) for r, c in _shares(reference, current) if r or c]
    total = n + m
    statistic = math.fsum(
        (r - (r + c) * n / total) ** 2 / ((r + c) * n / total)
        + (c - (r + c) * m / total) ** 2 / ((r + c) * m / total)
        for r, c in bins
    )
    return statistic, len(bins) - 1


def missing_share(column: ColumnProfile) -> float:
    """Share of the rows without a value, 0 to 1.

    :raises ProfileError: there are no rows. Retry: no.
    """
    rows = column.count + column.missing
    if not rows:
        raise ProfileError("the share of missing values needs at least one row")
    return column.missing / rows


def new_share(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Share of the values whose category is one of :func:`new_categories`.

    :raises ProfileError: there are no values. Retry: no.
    """
    if not current.count:
        raise ProfileError(f"the column has no values, only {current.missing} missing")
    return sum(new_categories(reference, current).values()) / current.count


def new_categories(reference: ColumnProfile, current: ColumnProfile) -> dict[str, int]:
    """Values that the reference never saw, with their counts, commonest first.

    Empty for numeric columns, and where the reference had more values than a profile keeps: which of
    the others are new cannot be known then.
    """
    if not isinstance(reference, CategoricalColumn) or not isinstance(current, CategoricalColumn):
        return {}
    if reference.other:
        return {}
    new = {value: n for value, n in current.counts.items() if n and value not in reference.counts}
    return dict(sorted(new.items(), key=lambda item: (-item[1], item[0])))


def correlation_changes(reference: PairMoments, current: PairMoments) -> dict[str, tuple[float, str]]:
    """Column → the largest change of its Pearson correlation with another, and with which; 0 to 2.

    Columns that do not vary have none.

    :raises ProfileError: the pairs are of other columns. Retry: no.
    """
    if reference.columns != current.columns:
        raise ProfileError("no change of correlation: the profiles follow other columns")
    changes = np.abs(current.correlations() - reference.correlations())
    np.fill_diagonal(changes, np.nan)
    found = {}
    for name, row in zip(reference.columns, changes, strict=True):
        if not np.isnan(row).all():
            most = int(np.nanargmax(row))
            found[name] = (float(row[most]), reference.columns[most])
    return found


def _to_middle(share: float, other: float) -> float:
    """One bin's part of the Kullback–Leibler divergence (bits) from the middle of two distributions."""
    return share * math.log2(2 * share / (share + other)) if share else 0.0


def _check_values(reference: ColumnProfile, current: ColumnProfile) -> None:
    for name, column in (("reference", reference), ("current", current)):
        if not column.count:
            raise ProfileError(f"no distance: the {name} column has no values, only {column.missing} missing")


def _sketches(reference: ColumnProfile, current: ColumnProfile) -> tuple[Quantiles, Quantiles]:
    _check_values(reference, current)
    if isinstance(reference, HistogramColumn):
        raise ProfileError("the reference is a histogram of an earlier version: train again to measure this")
    if not isinstance(reference, NumericColumn) or not isinstance(current, NumericColumn):
        raise ProfileError(f"no distance: the reference is {reference.kind}, the current {current.kind}")
    return reference.quantiles, current.quantiles


def _shares(reference: ColumnProfile, current: ColumnProfile) -> list[tuple[float, float]]:
    """Each bin's share of the values in both."""
    _check_values(reference, current)
    if isinstance(reference, CategoricalColumn) and isinstance(current, CategoricalColumn):
        return [(r / reference.count, c / current.count) for r, c in _categories(reference, current)]
    if isinstance(reference, HistogramColumn) and isinstance(current, NumericColumn):
        before = [count / reference.count for count in reference.counts]
        return list(zip(before, in_bins(current.quantiles, reference.edges).tolist(), strict=True))
    sketch, other = _sketches(reference, current)
    cuts = sketch.cuts(_BINS)
    return list(zip(in_bins(sketch, cuts).tolist(), in_bins(other, cuts).tolist(), strict=True))


def _categories(reference: CategoricalColumn, current: CategoricalColumn) -> list[tuple[int, int]]:
    order = sorted(reference.counts, key=lambda value: (-reference.counts[value], value))
    pairs = [
        (reference.counts[value], current.counts.get(value, 0)) for value in order[:_COMPARED_CATEGORIES]
    ]
    rest = (reference.count - sum(r for r, _ in pairs), current.count - sum(c for _, c in pairs))
    return [*pairs, rest] if any(rest) else pairs
