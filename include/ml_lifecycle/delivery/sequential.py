"""Statistics that may be looked at any number of times: totals in, bounds out.

Each is a bet against a hypothesis at fair odds. If the hypothesis is true, the bettor's wealth, 1 at first,
is a nonnegative (super)martingale, and the chance that it *ever* reaches ``1 / alpha`` is at most ``alpha``
(Ville, *Étude critique de la notion de collectif*, 1939; Shafer, *Testing by betting*, J. R. Stat. Soc. A
184, 2021), however often and whenever one looks, and whatever made one stop. The values that no wealth has
excluded are a confidence sequence (Howard, Ramdas, McAuliffe and Sekhon, *Time-uniform, nonparametric,
nonasymptotic confidence sequences*, Ann. Stat. 49, 2021). Nothing is asymptotic: a bound holds from the first
row on.

All bets depend on totals alone, not on the order of rows: whoever was killed and comes back with the same
totals comes to the same bounds. Every function takes numbers or arrays, which are broadcast.

What is assumed: rows are independent, and a side's rate stays what it is. Where both sides' rates move
together, as they do by day and night, the sides stay comparable while each keeps its share of the traffic:
totals of times with other shares must not be added up (Simpson, J. R. Stat. Soc. B 13, 1951). Where a user
stays on one side, the sides differ by who is on them: the margin has to be wider than that.
``benchmarks/release_judging.py`` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Bounds = tuple[Array, Array]

_HALVINGS = 20  # what they leave of an interval is a millionth, and is given away
_ROUNDS, _POINTS = 5, 32  # to find a bound: they leave 5e-8 of an interval of 2, and give that away as well
# Stakes on a mean. The best is about sqrt(2 ln(1 / alpha) / rows / variance): they reach from 24 rows times
# variance to 2e10. One that is off by a factor of 1.41, as far as it can be between two, costs a tenth of the
# growth. Up to 0.5 a mean that is further off is excluded all the more: there is one bound, and no more.
_STAKES = 0.5 ** np.arange(1, 17)


def share_bounds(rows: ArrayLike, bad: ArrayLike, alpha: ArrayLike, expected: float = 0.5) -> Bounds:
    """Lower and upper bound of the probability of a bad row; each alone, and both together, err by ``alpha``.

    :param expected: the share expected before there were rows; a wrong one costs rows, but no false verdict
    """
    return (
        _share_bound(rows, bad, alpha, expected),
        1 - _share_bound(rows, np.subtract(rows, bad), alpha, 1 - expected),
    )


def difference_bounds(
    rows: ArrayLike,
    bad: ArrayLike,
    other_rows: ArrayLike,
    other_bad: ArrayLike,
    alpha: ArrayLike,
    expected: float = 0.5,
) -> Bounds:
    """Bounds of one side's probability of a bad row less the other's; as :func:`share_bounds`.

    :param other_rows: of the side with more rows, if there is one
    """
    return (
        _difference_bound(rows, bad, other_rows, other_bad, alpha, expected),
        -_difference_bound(
            rows,
            np.subtract(rows, bad),
            other_rows,
            np.subtract(other_rows, other_bad),
            alpha,
            1 - expected,
        ),
    )


def paired_difference_bounds(
    rows: ArrayLike, worse: ArrayLike, better: ArrayLike, alpha: ArrayLike, expected: float = 1 / 3
) -> Bounds:
    """The same where both sides had the same rows.

    :param worse: rows that are bad on the one side only
    :param better: rows that are bad on the other side only
    :param expected: the share expected of either
    """
    return (
        _paired_bound(rows, worse, better, alpha, expected),
        -_paired_bound(rows, better, worse, alpha, expected),
    )


def mean_bounds(rows: ArrayLike, total: ArrayLike, squares: ArrayLike, alpha: ArrayLike) -> Bounds:
    """Bounds of the mean of values from 0 to 1; each alone errs by ``alpha``, both together by twice that.

    They follow the values' own variance.

    :param squares: total of the values' squares
    """
    n, s, v = (np.asarray(value, np.float64) for value in (rows, total, squares))
    return _mean_bound(n, s, v, alpha), 1 - _mean_bound(n, n - s, n - 2 * s + v, alpha)


def log_wealth_of_share(rows: ArrayLike, bad: ArrayLike, share: ArrayLike, expected: float = 0.5) -> Array:
    """Log wealth of a bet that the probability of a bad row is not ``share``.

    The likelihood ratio against ``share``, averaged over a distribution of the probability (Robbins, Ann.
    Math. Stat. 41, 1970; with an expected share of a half it is Krichevsky and Trofimov's estimator, IEEE
    Trans. Inf. Theory 27, 1981). For values between 0 and 1 whose mean is ``share`` it is a supermartingale
    as well, with ``bad`` their total: a row's ratio is convex in the value, so no value is worth more than 0
    and 1 are.
    """
    n, s = np.asarray(rows, np.float64), np.asarray(bad, np.float64)
    return _log_marginal(n, s, expected) - _log_likelihood(n, s, np.asarray(share, np.float64))


def log_wealth_of_difference(
    rows: ArrayLike,
    bad: ArrayLike,
    other_rows: ArrayLike,
    other_bad: ArrayLike,
    difference: ArrayLike,
    expected: float = 0.5,
) -> Array:
    """Log wealth of a bet that one side's probability is not the other's plus ``difference``.

    For each pair of probabilities the two sides' wealths multiply; what has been won against every pair with
    that difference is the least of them (Wasserman, Ramdas and Balakrishnan, *Universal inference*, PNAS 117,
    2020). Half of the stake on the other side is kept back. A canary knows its champion far better than
    itself: the bet on the champion's rate would only lose, and so it loses a factor of 2 at most.

    The logarithm of a wealth is convex in the probability, and so is that of 1 plus a wealth: the least is
    found by bisecting the slope, between the shares that each side alone would have it at. No convex function
    falls further than its slope, so what the bisecting has left is taken off.
    """
    n, s, m, t, d = (
        np.asarray(value, np.float64) for value in (rows, bad, other_rows, other_bad, difference)
    )
    lowest, highest = np.maximum(0.0, -d), np.minimum(1.0, 1 - d)
    theirs = np.clip(t / np.maximum(m, 1), lowest, highest)
    ours = np.clip(s / np.maximum(n, 1) - d, lowest, highest)
    staked = _log_marginal(m, t, expected)

    def slope(share: Array) -> Array:
        weight = 1 / (1 + np.exp(t * np.log(share) + (m - t) * np.log1p(-share) - staked))
        return _slope(n, s, share + d) + weight * _slope(m, t, share)

    share, slack = _least(slope, np.minimum(ours, theirs), np.maximum(ours, theirs))
    won = _log_marginal(n, s, expected) - _log_likelihood(n, s, share + d)
    return won + np.logaddexp(0, staked - _log_likelihood(m, t, share)) - math.log(2) - slack


def log_wealth_of_paired_difference(
    rows: ArrayLike, worse: ArrayLike, better: ArrayLike, difference: ArrayLike, expected: float = 1 / 3
) -> Array:
    """Log wealth of a bet that ``worse`` is not as probable as ``better`` plus ``difference``.

    As :func:`log_wealth_of_difference`, with three kinds of rows instead of two sides.
    """
    n, b, c, d = (np.asarray(value, np.float64) for value in (rows, worse, better, difference))
    same = n - b - c

    def slope(share: Array) -> Array:
        return 2 * same / (1 - 2 * share - d) - b / (share + d) - c / share

    share, slack = _least(slope, np.maximum(0.0, -d), (1 - d) / 2)
    averaged = _log_averaged((b, c, same), (0.5, 0.5, (1 - 2 * expected) / expected / 2))
    likely = _times_log(b, share + d) + _times_log(c, share) + _times_log(same, 1 - 2 * share - d)
    return np.asarray(averaged - likely - slack)


def log_wealth_of_mean(rows: ArrayLike, total: ArrayLike, squares: ArrayLike, mean: ArrayLike) -> Array:
    """Log wealth of a bet that values from 0 to 1 have a mean above ``mean``.

    Half of it stakes several parts of the wealth at once. With y a value less the mean and a stake l below 1,
    a row multiplies it by exp(l y + (l + ln(1 - l)) y²), which is at most 1 + l y (Fan, Grama and Liu,
    *Exponential inequalities for martingales*, Electron. J. Probab. 20, 2015; in the empirical Bernstein
    bound of Howard et al. y² has another centre, which depends on the order of rows). The other half is
    :func:`log_wealth_of_share`'s, which is the better where values are rarely anything but 0 or 1.
    """
    n, s, v, m = (np.asarray(value, np.float64) for value in (rows, total, squares, mean))
    above, spread = s - n * m, np.maximum(v - 2 * m * s + n * m * m, 0)
    won = _STAKES * above[..., None] + (_STAKES + np.log1p(-_STAKES)) * spread[..., None]
    staked = np.logaddexp.reduce(won, axis=-1) - math.log(len(_STAKES))
    return np.asarray(np.logaddexp(staked, log_wealth_of_share(n, s, m)) - math.log(2))


def _share_bound(rows: ArrayLike, bad: ArrayLike, alpha: ArrayLike, expected: float) -> Array:
    n, s = _with_points(rows, bad)
    return _bound(lambda share: log_wealth_of_share(n, s, share, expected), 0.0, s / np.maximum(n, 1), alpha)


def _difference_bound(
    rows: ArrayLike,
    bad: ArrayLike,
    other_rows: ArrayLike,
    other_bad: ArrayLike,
    alpha: ArrayLike,
    expected: float,
) -> Array:
    n, s, m, t = _with_points(rows, bad, other_rows, other_bad)
    estimate = s / np.maximum(n, 1) - t / np.maximum(m, 1)
    return _bound(lambda by: log_wealth_of_difference(n, s, m, t, by, expected), -1.0, estimate, alpha)


def _paired_bound(
    rows: ArrayLike, worse: ArrayLike, better: ArrayLike, alpha: ArrayLike, expected: float
) -> Array:
    n, b, c = _with_points(rows, worse, better)
    estimate = (b - c) / np.maximum(n, 1)
    return _bound(lambda by: log_wealth_of_paired_difference(n, b, c, by, expected), -1.0, estimate, alpha)


def _mean_bound(rows: Array, total: Array, squares: Array, alpha: ArrayLike) -> Array:
    n, s, v = _with_points(rows, total, squares)
    return _bound(lambda mean: log_wealth_of_mean(n, s, v, mean), 0.0, s / np.maximum(n, 1), alpha)


def _with_points(*totals: ArrayLike) -> list[Array]:
    """Totals with an axis more, along which :func:`_bound` tries several values at once."""
    return [np.asarray(total, np.float64)[..., None] for total in totals]


def _bound(wealth: Callable[[Array], Array], lowest: float, estimate: Array, alpha: ArrayLike) -> Array:
    """The largest value that is excluded with all below it; ``lowest`` where none is.

    :param estimate: a value that cannot be excluded; its last axis is that of the values tried at once
    """
    bar = -np.log(np.asarray(alpha, np.float64))[..., None]
    shape = np.broadcast_shapes(estimate.shape, bar.shape)
    excluded, possible = np.full(shape, lowest), np.broadcast_to(estimate, shape)
    steps = np.linspace(0, 1, _POINTS + 2)
    for _ in range(_ROUNDS):
        tried = excluded + (possible - excluded) * steps
        out = np.logical_and.accumulate(wealth(tried[..., 1:-1]) >= bar, axis=-1)
        last = out.sum(axis=-1, keepdims=True)
        excluded, possible = (np.take_along_axis(tried, last + one, axis=-1) for one in (0, 1))
    return np.asarray(excluded[..., 0])


def _least(slope: Callable[[Array], Array], left: Array, right: Array) -> tuple[Array, Array]:
    """About where a convex function is least, and how much less it may be at most than there."""
    with np.errstate(all="ignore"):  # at the ends, where a share is 0 or 1
        for _ in range(_HALVINGS):
            share = (left + right) / 2
            falls = slope(share) < 0
            left, right = np.where(falls, share, left), np.where(falls, right, share)
        share = (left + right) / 2
        slack = np.abs(slope(share)) * (right - left) / 2
    return share, np.where(right > left, slack, 0.0)


def _log_marginal(rows: Array, bad: Array, expected: float) -> Array:
    """Log probability of such rows in an order, averaged over shares whose mean is ``expected``."""
    rest = max(expected, 1 - expected) / min(expected, 1 - expected) / 2
    return _log_averaged((bad, rows - bad), (0.5, rest) if expected <= 0.5 else (rest, 0.5))


def _log_averaged(kinds: Sequence[Array], weights: Sequence[float]) -> Array:
    """The same for any number of kinds: three quarters go by a Dirichlet distribution of such weights.

    It weighs as much as half a row of the rarest kind. Where few bad rows are expected, it would take it long
    to believe in many, as when nothing works any more: a quarter goes by the one that expects anything
    (Jeffreys').
    """
    anything = _log_dirichlet(kinds, [0.5] * len(kinds))
    if all(weight == 0.5 for weight in weights):
        return anything
    return np.logaddexp(math.log(0.75) + _log_dirichlet(kinds, weights), math.log(0.25) + anything)


def _lgamma(values: Array) -> Array:
    return np.fromiter(map(math.lgamma, values.flat), np.float64, values.size).reshape(values.shape)


def _log_dirichlet(kinds: Sequence[Array], weights: Sequence[float]) -> Array:
    """Log probability of so many rows of each kind in an order, averaged over a Dirichlet distribution."""
    made = math.lgamma(sum(weights)) - _lgamma(np.asarray(sum(kinds) + sum(weights)))
    for rows, weight in zip(kinds, weights, strict=True):
        made = made + _lgamma(np.asarray(rows + weight)) - math.lgamma(weight)
    return made


def _log_likelihood(rows: Array, bad: Array, share: Array) -> Array:
    return _times_log(bad, share) + _times_log(rows - bad, 1 - share)


def _slope(rows: Array, bad: Array, share: Array) -> Array:
    """Of the negative log likelihood."""
    return np.asarray((rows - bad) / (1 - share) - bad / share)


def _times_log(count: Array, share: Array) -> Array:
    """0 where the count is, whatever the share."""
    with np.errstate(all="ignore"):
        return np.where(count > 0, count * np.log(np.maximum(share, 0)), 0.0)
