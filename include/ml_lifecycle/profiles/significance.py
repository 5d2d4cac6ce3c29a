"""How surprising a distance is: p-values, told beside the effect sizes and deciding nothing.

With millions of rows any difference is significant, with dozens hardly one is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_lifecycle.profiles.distance import chi_square, kolmogorov_smirnov
from ml_lifecycle.profiles.profile import ColumnProfile, NumericColumn, ProfileError

MIN_ROWS = 100
"""Fewer values on a side have no p-value: both are those of large samples."""


def ks_p_value(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Of the two-sample Kolmogorov–Smirnov test, from its limiting distribution.

    What the sketches may add to the statistic is taken off it first, or they would be significant by
    themselves in a large sample. With ties it is larger than it need be.

    :raises ProfileError: there is none for these columns, or too few values. Retry: no.
    """
    from scipy.special import kolmogorov

    statistic = kolmogorov_smirnov(reference, current)
    _check_rows(reference, current)
    assert isinstance(reference, NumericColumn)
    assert isinstance(current, NumericColumn)
    surplus = statistic - reference.quantiles.rank_error - current.quantiles.rank_error
    effective = reference.count / (reference.count + current.count) * current.count
    return float(kolmogorov(math.sqrt(effective) * max(surplus, 0.0)))


def chi_square_p_value(reference: ColumnProfile, current: ColumnProfile) -> float:
    """Of Pearson's test that both sides have the same shares of categories.

    :raises ProfileError: as :func:`ks_p_value`. Retry: no.
    """
    from scipy.special import chdtrc

    statistic, freedom = chi_square(reference, current)
    _check_rows(reference, current)
    return float(chdtrc(freedom, statistic)) if freedom else 1.0


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's: held against a level, they bound the share of false finds among the found.

    A window has hundreds of tests, of columns that go together. Bounding the chance of even one false find
    (Holm) would hide all but the largest shifts then; what people who look through a list need is that most
    of it is real (Benjamini and Hochberg, 1995), and that holds for tests that go together (Benjamini and
    Yekutieli, 2001).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    found = [1.0] * len(p_values)
    least = 1.0
    for above, index in enumerate(order):
        least = min(least, p_values[index] * len(p_values) / (len(p_values) - above))
        found[index] = least
    return found


def _check_rows(reference: ColumnProfile, current: ColumnProfile) -> None:
    if (fewest := min(reference.count, current.count)) < MIN_ROWS:
        raise ProfileError(f"no p-value of {fewest} values: at least {MIN_ROWS}")
