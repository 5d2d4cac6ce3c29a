"""What a challenger and its champion did, in totals: all that is kept to judge a release by.

Totals can be added up, so a watch that was killed goes on with those it wrote last, or counts its log anew.
Every number says how bad rows were: 0 is as good as can be, 1 as bad. What is missing where an answer should be
is as bad as can be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ml_lifecycle.delivery import sequential
from ml_lifecycle.errors import LifecycleError

_ROUNDING = 1e-9  # of a total, in floating point


class JudgingError(LifecycleError):
    """Totals contradict each other, earlier ones or what is watched. Retry: no, they were counted wrongly."""


@dataclass(frozen=True)
class Gap:
    """How much worse the challenger is, with bounds; negative where it is better.

    :param challenger: its own share or mean; None where there is no such number, or no rows
    :param low: it is at least so much worse
    :param high: it is at most so much worse
    """

    challenger_rows: int
    champion_rows: int
    challenger: float | None
    champion: float | None
    difference: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Levels:
    """How probable it may be that a bound ever errs, and what is expected before there are rows.

    :param low: of the lower bound, by which a challenger is rolled back
    :param high: of the upper bound, by which it is promoted
    :param expected: share of bad rows; a wrong expectation costs rows, and makes no bound err
    """

    low: float
    high: float
    expected: float = 0.5

    def of(self, bounds: Callable[[NDArray[np.float64]], sequential.Bounds]) -> tuple[Any, Any]:
        """The lower bound at the one level, and the upper bound at the other."""
        low, high = bounds(np.array([self.low, self.high]))
        return low[0], high[1]


class Tally:
    """Base of the totals: none is negative, none ever shrinks."""

    def __add__(self, other: Self) -> Self:
        alike = type(self) is type(other) and len(list(self.numbers())) == len(list(other.numbers()))
        if not alike:
            raise JudgingError(f"cannot be added up: {self} and {other}")
        return type(self)(*(_plus(one, two) for one, two in zip(_fields(self), _fields(other), strict=True)))

    def numbers(self) -> Iterator[float]:
        """Every total in it."""
        for value in _fields(self):
            if isinstance(value, Tally):
                yield from value.numbers()
            else:
                yield from value if isinstance(value, tuple) else (value,)

    def follows(self, before: Tally) -> bool:
        """Whether no total has shrunk since."""
        if type(self) is not type(before):
            return False
        old, new = list(before.numbers()), list(self.numbers())
        return len(old) == len(new) and all(a <= b for a, b in zip(old, new, strict=True))

    def _check(self, holds: bool) -> None:
        if not all(math.isfinite(number) and number >= 0 for number in self.numbers()) or not holds:
            raise JudgingError(f"these totals cannot be: {self}")


@dataclass(frozen=True)
class Share(Tally):
    """Rows, and how many of them were bad: failed, slow, decided otherwise."""

    rows: int = 0
    bad: int = 0

    def __post_init__(self) -> None:
        self._check(self.bad <= self.rows)

    @classmethod
    def of(cls, bad: ArrayLike) -> Self:
        """Totals of truth values."""
        flags = np.asarray(bad, bool)
        return cls(flags.size, int(flags.sum()))

    def gap(self, levels: Levels) -> Gap:
        """The share itself, which has no other side: of rows that the two decided otherwise."""
        low, high = levels.of(
            lambda alpha: sequential.share_bounds(self.rows, self.bad, alpha, levels.expected)
        )
        share = _ratio(self.bad, self.rows)
        return Gap(self.rows, self.rows, None, None, share, float(low), float(high))


@dataclass(frozen=True)
class Mean(Tally):
    """Rows with a number from 0 to 1 each, see :func:`harm`: their total, and that of their squares."""

    rows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        near = _ROUNDING * (self.rows + 1)
        fits = self.squares <= self.total + near and self.total <= self.rows + near
        self._check(fits and self.total**2 <= self.rows * (self.squares + near))

    @classmethod
    def of(cls, harms: ArrayLike) -> Self:
        """Totals of numbers from 0 to 1."""
        values = np.asarray(harms, np.float64)
        return cls(values.size, float(values.sum()), float((values**2).sum()))


@dataclass(frozen=True)
class Scores(Tally):
    """A histogram of scores on edges that were fixed before the release.

    :param counts: one more than there are bins, so two more than edges: rows without a finite score come first.
        Bin ``i`` holds ``edges[i-1] < score <= edges[i]``, as in a profile
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        self._check(len(self.counts) > 1)

    @classmethod
    def of(cls, scores: ArrayLike, edges: Sequence[float]) -> Self:
        """Totals of scores; NaN and infinite ones are missing."""
        places = np.bincount(_places(scores, edges), minlength=len(edges) + 2)
        return cls(tuple(places.tolist()))

    @property
    def rows(self) -> int:
        """All of them, those without a score too."""
        return sum(self.counts)


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
        expected = min(
            levels.expected, 1 / 3
        )  # three kinds of rows: bad on one side, on the other, and the rest
        bounds = levels.of(lambda alpha: sequential.paired_difference_bounds(*totals, alpha, expected))
        one, two = (_ratio(self.both + only, self.rows) for only in (self.challenger, self.champion))
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
        near = _ROUNDING * (self.rows + 1)
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
        one, two = (_ratio(total, self.rows) for total in (self.challenger, self.champion))
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
        one, two = _places(challenger, edges), _places(champion, edges)
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
        return _furthest(self.rows, self.rows, _ratio(apart, self.rows), low, high)


def _shares_apart(one: Share, two: Share, levels: Levels) -> Gap:
    totals = one.rows, one.bad, two.rows, two.bad
    bounds = levels.of(lambda alpha: sequential.difference_bounds(*totals, alpha, levels.expected))
    return _gap(one.rows, two.rows, _ratio(one.bad, one.rows), _ratio(two.bad, two.rows), bounds)


def _means_apart(one: Mean, two: Mean, levels: Levels) -> Gap:
    """Half of the level is each side's, so that their bounds hold together (Bonferroni)."""

    def bounds(alpha: NDArray[np.float64]) -> sequential.Bounds:
        (low, high), (low_too, high_too) = (
            sequential.mean_bounds(mean.rows, mean.total, mean.squares, alpha / 2) for mean in (one, two)
        )
        return low - high_too, high - low_too

    averages = _ratio(one.total, one.rows), _ratio(two.total, two.rows)
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

    That it is large somewhere may be wrong at any edge, so the edges share the level of ``low``. That it is small
    everywhere must hold at each, so ``high`` needs no sharing (Berger, *Multiparameter hypothesis testing and
    acceptance sampling*, Technometrics 24, 1982).
    """
    least = max(0.0, float(np.maximum(low[0], -low[1]).max()))
    most = float(np.maximum(-high[0], high[1]).max())
    return Gap(rows, others, None, None, apart, least, most)


def _gap(rows: int, others: int, one: float | None, two: float | None, bounds: tuple[Any, Any]) -> Gap:
    difference = None if one is None or two is None else one - two
    return Gap(rows, others, one, two, difference, float(bounds[0]), float(bounds[1]))


def _ratio(total: float, rows: int) -> float | None:
    return float(total / rows) if rows else None


def _places(scores: ArrayLike, edges: Sequence[float]) -> NDArray[np.int64]:
    values = np.asarray(scores, np.float64)
    return np.where(np.isfinite(values), np.searchsorted(edges, values, side="left") + 1, 0)


def _fields(tally: Tally) -> list[Any]:
    return [getattr(tally, field.name) for field in dataclasses.fields(tally)]  # type: ignore[arg-type]


def _plus(one: Any, two: Any) -> Any:
    return tuple(a + b for a, b in zip(one, two, strict=True)) if isinstance(one, tuple) else one + two
