"""How far a column has moved from its reference: effect sizes, which unlike p-values do not grow with n."""

from __future__ import annotations

import math

from ml_lifecycle.profiles.profile import CategoricalColumn, ColumnProfile, NumericColumn, ProfileError

SHARE_FLOOR = 1e-4
_COMPARED_CATEGORIES = 20


def psi(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Population stability index: the sum over bins of ``(c - r) * ln(c / r)`` of the shares c and r.

    Below 0.1 a column is usually held stable, above 0.25 shifted (Siddiqi, *Credit Risk Scorecards*,
    2006). Without any shift it is still about ``(bins - 1) * (1/n + 1/m)`` (Yurdakul, *Statistical
    properties of population stability index*, 2018), which is why alerts ask for a minimum of rows.
    An empty bin would make it infinite: shares below 1e-4 count as 1e-4, the floor that Evidently's
    ``psi`` fills empty bins with. Missing values are left out; they are :func:`missing_share`'s.
    Categories beyond the reference's 20 commonest are compared as one.

    :raises ProfileError: a column has no values, or the two have other kinds or edges. Retry: no.
    """
    pairs = _shares(reference, current)
    floored = ((max(r, SHARE_FLOOR), max(c, SHARE_FLOOR)) for r, c in pairs)
    return math.fsum((c - r) * math.log(c / r) for r, c in floored)


def jensen_shannon(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Jensen–Shannon distance: the square root of the divergence to base 2, from 0 to 1.

    The root is a metric (Endres and Schindelin, *A new metric for probability distributions*, 2003);
    SciPy's and Evidently's ``jensenshannon`` with base 2 are the same. Empty bins need no floor.

    :raises ProfileError: as :func:`psi`. Retry: no.
    """
    divergence = math.fsum(_to_middle(r, c) + _to_middle(c, r) for r, c in _shares(reference, current)) / 2
    return math.sqrt(min(max(divergence, 0.0), 1.0))


def missing_share(column: ColumnProfile) -> float:
    """Share of the rows without a value, 0 to 1.

    :raises ProfileError: there are no rows. Retry: no.
    """
    rows = column.count + column.missing
    if not rows:
        raise ProfileError("the share of missing values needs at least one row")
    return column.missing / rows


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


def _to_middle(share: float, other: float) -> float:
    """One bin's part of the Kullback–Leibler divergence (bits) from the middle of two distributions."""
    return share * math.log2(2 * share / (share + other)) if share else 0.0


def _shares(reference: ColumnProfile, current: ColumnProfile) -> list[tuple[float, float]]:
    """Each bin's share of the values in both."""
    for name, column in (("reference", reference), ("current", current)):
        if not column.count:
            raise ProfileError(f"no distance: the {name} column has no values, only {column.missing} missing")
    return [(r / reference.count, c / current.count) for r, c in _bins(reference, current)]


def _bins(reference: ColumnProfile, current: ColumnProfile) -> list[tuple[int, int]]:
    if isinstance(reference, NumericColumn) and isinstance(current, NumericColumn):
        if reference.edges != current.edges:
            raise ProfileError("no distance: the edges differ; make the current like the reference")
        return list(zip(reference.counts, current.counts, strict=True))
    if not isinstance(reference, CategoricalColumn) or not isinstance(current, CategoricalColumn):
        raise ProfileError(f"no distance: the reference is {reference.kind}, the current {current.kind}")
    order = sorted(reference.counts, key=lambda value: (-reference.counts[value], value))
    pairs = [
        (reference.counts[value], current.counts.get(value, 0)) for value in order[:_COMPARED_CATEGORIES]
    ]
    rest = (reference.count - sum(r for r, _ in pairs), current.count - sum(c for _, c in pairs))
    return [*pairs, rest] if any(rest) else pairs
