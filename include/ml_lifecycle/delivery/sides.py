"""Both sides' totals, and how far apart they show them to be: of rows that one of them answered, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml_lifecycle.delivery import sequential
from ml_lifecycle.delivery.tallies import (
    ROUNDING,
    Gap,
    JudgingError,
    Levels,
    Mean,
    Scores,
    Share,
    Tally,
    places,
    ratio,
)


@dataclass(frozen=True)
class Apart(Tally):
    """Each row was answered by one side only: canary and A/B."""

    challenger: Share | Mean | Scores
    champion: Share | Mean | Scores

    def __post_init__(self) -> None:
        alike = type(self.challenger) is type(self.champion)
        if isinstance(self.challenger, Scores) and isinstance(self.champion, Scores):
            alike = len(self.challenger.counts) == len(self.champion.counts)
        if not alike:
            raise JudgingError(f"the sides were counted differently: {self.challenger} and {self.champion}")

    def gap(self, levels: Levels) -> Gap:
        """How much worse the challenger is."""
        one, two = self.challenger, self.champion
        if isinstance(one, Share) and isinstance(two, Share):
            return _shares_apart(one, two, levels)
        if isinstance(one, Mean) and isinstance(two, Mean):
            return _means_apart(one, two, levels)
        assert isinstance(one, Scores)
        assert isinstance(two, Scores)
        return _scores_apart(one, two, levels)


@dataclass(frozen=True)
class PairedShare(Tally):
    """Both sides answered the same rows, as a shadow does.

    :param both: rows that were bad on both sides
    :param challenger: rows that were bad on the challenger's side only
    """

    rows: int = 0
    both: int = 0
    challenger: int = 0
    champion: int = 0

    def __post_init__(self) -> None:
        self._check(self.both + self.challenger + self.champion <= self.rows)

    @classmethod
    def of(cls, challenger: ArrayLike, champion: ArrayLike) -> Self:
        """Totals of truth values, row by row."""
        one, two = np.asarray(challenger, bool), np.asarray(champion, bool)
        both, ours, theirs = (int(flags.sum()) for flags in (one & two, one & ~two, two & ~one))
        return cls(one.size, both, ours, theirs)

    def gap(self, levels: Levels) -> Gap:
        """How much worse the challenger is."""
        totals = self.rows, self.challenger, self.champion
        expected = min(levels.expected, 1 / 3)  # of three kinds: bad on one side, on the other, and the rest
        bounds = levels.of(lambda alpha: sequential.paired_difference_bounds(*totals, alpha, expected))
        one, two = (ratio(self.both + only, self.rows) for only in (self.challenger, self.champion))
        return _gap(self.rows, self.rows, one, two, bounds)


@dataclass(frozen=True)
class PairedMean(Tally):
    """Both sides have a number from 0 to 1 for the same rows.

    :param challenger: total of the challenger's numbers
    :param squares: total of the squares of their differences
    """

    rows: int = 0
    challenger: float = 0.0
    champion: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        near = ROUNDING * (self.rows + 1)
        fits = max(self.challenger, self.champion, self.squares) <= self.rows + near
        apart = self.challenger - self.champion
        self._check(fits and apart**2 <= self.rows * (self.squares + near))

    @classmethod
    def of(cls, challenger: ArrayLike, champion: ArrayLike) -> Self:
        """Totals of numbers from 0 to 1, row by row."""
        one, two = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
        return cls(one.size, float(one.sum()), float(two.sum()), float(((one - two) ** 2).sum()))

    def gap(self, levels: Levels) -> Gap:
        """How much worse the challenger is."""
        # Differences from -1 to 1, as numbers from 0 to 1.
        apart = self.challenger - self.champion
        totals = self.rows, (self.rows + apart) / 2, (self.rows + 2 * apart + self.squares) / 4
        low, high = levels.of(lambda alpha: sequential.mean_bounds(*totals, alpha))
        one, two = (ratio(total, self.rows) for total in (self.challenger, self.champion))
        return _gap(self.rows, self.rows, one, two, (2 * low - 1, 2 * high - 1))


@dataclass(frozen=True)
class PairedScores(Tally):
    """Both sides scored the same rows; counted on edges that were fixed before the release.

    :param challenger: for each edge, the rows that only the challenger scored at it or below. A row without a
        finite score is below all; how many those are comes first, so there is one number more than edges
    :param champion: the same of the champion
    """

    rows: int
    challenger: tuple[int, ...]
    champion: tuple[int, ...]

    def __post_init__(self) -> None:
        alike = 0 < len(self.challenger) == len(self.champion)
        self._check(alike and max(map(sum, zip(self.challenger, self.champion, strict=True))) <= self.rows)

    @classmethod
    def of(cls, challenger: ArrayLike, champion: ArrayLike, edges: Sequence[float]) -> Self:
        """Totals of scores, row by row; NaN and infinite ones are missing."""
        one, two = places(challenger, edges), places(champion, edges)
        cuts = range(len(edges) + 1)
        return cls(
            one.size,
            tuple(int(((one <= cut) & (two > cut)).sum()) for cut in cuts),
            tuple(int(((two <= cut) & (one > cut)).sum()) for cut in cuts),
        )

    def gap(self, levels: Levels) -> Gap:
        """How far the distributions are apart, at the edge where they are furthest."""
        totals = self.rows, self.challenger, self.champion
        low = sequential.paired_difference_bounds(*totals, levels.low / len(self.challenger))
        high = sequential.paired_difference_bounds(*totals, levels.high)
        apart = np.abs(np.subtract(self.challenger, self.champion)).max()
        return _furthest(self.rows, self.rows, ratio(apart, self.rows), low, high)


def _shares_apart(one: Share, two: Share, levels: Levels) -> Gap:
    totals = one.rows, one.bad, two.rows, two.bad
    bounds = levels.of(lambda alpha: sequential.difference_bounds(*totals, alpha, levels.expected))
    return _gap(one.rows, two.rows, ratio(one.bad, one.rows), ratio(two.bad, two.rows), bounds)


def _means_apart(one: Mean, two: Mean, levels: Levels) -> Gap:
    """Half of the level is each side's, so that their bounds hold together (Bonferroni)."""

    def bounds(alpha: NDArray[np.float64]) -> sequential.Bounds:
        (low, high), (low_too, high_too) = (
            sequential.mean_bounds(mean.rows, mean.total, mean.squares, alpha / 2) for mean in (one, two)
        )
        return low - high_too, high - low_too

    averages = ratio(one.total, one.rows), ratio(two.total, two.rows)
    return _gap(one.rows, two.rows, *averages, levels.of(bounds))


def _scores_apart(one: Scores, two: Scores, levels: Levels) -> Gap:
    below, below_too = (np.cumsum(side.counts)[:-1] for side in (one, two))
    totals = one.rows, below, two.rows, below_too
    low = sequential.difference_bounds(*totals, levels.low / len(below))
    high = sequential.difference_bounds(*totals, levels.high)
    apart = None
    if one.rows and two.rows:
        apart = float(np.abs(below / one.rows - below_too / two.rows).max())
    return _furthest(one.rows, two.rows, apart, low, high)


def _furthest(
    rows: int, others: int, apart: float | None, low: sequential.Bounds, high: sequential.Bounds
) -> Gap:
    """The largest distance of two distribution functions at the edges.

    That it is large somewhere may be wrong at any edge, so the edges share the level of ``low``. That it is
    small everywhere must hold at each, so ``high`` needs no sharing (Berger, *Multiparameter hypothesis
    testing and acceptance sampling*, Technometrics 24, 1982).
    """
    least = max(0.0, float(np.maximum(low[0], -low[1]).max()))
    most = float(np.maximum(-high[0], high[1]).max())
    return Gap(rows, others, None, None, apart, least, most)


def _gap(rows: int, others: int, one: float | None, two: float | None, bounds: tuple[Any, Any]) -> Gap:
    difference = None if one is None or two is None else one - two
    return Gap(rows, others, one, two, difference, float(bounds[0]), float(bounds[1]))
