"""What a challenger and its champion did, in totals: all that is kept to judge a release by.

Totals can be added up, so a watch that was killed goes on with those it wrote last, or counts its log anew.
Every number says how bad rows were: 0 is as good as can be, 1 as bad. What is missing where an answer should
be is as bad as can be.
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

ROUNDING = 1e-9  # of a total, in floating point


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
    """Base of the totals: none is negative."""

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
        share = ratio(self.bad, self.rows)
        return Gap(self.rows, self.rows, None, None, share, float(low), float(high))


@dataclass(frozen=True)
class Mean(Tally):
    """Rows with a number from 0 to 1 each: their total, and that of their squares.

    :func:`ml_lifecycle.delivery.harm.harm` makes such numbers.
    """

    rows: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        near = ROUNDING * (self.rows + 1)
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

    :param counts: one more than there are bins, so two more than edges: rows without a finite score come
        first. Bin ``i`` holds ``edges[i-1] < score <= edges[i]``, as in a profile
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        self._check(len(self.counts) > 1)

    @classmethod
    def of(cls, scores: ArrayLike, edges: Sequence[float]) -> Self:
        """Totals of scores; NaN and infinite ones are missing."""
        counts = np.bincount(places(scores, edges), minlength=len(edges) + 2)
        return cls(tuple(counts.tolist()))

    @property
    def rows(self) -> int:
        """All of them, those without a score too."""
        return sum(self.counts)


def ratio(total: float, rows: int) -> float | None:
    """The mean; None without rows."""
    return float(total / rows) if rows else None


def places(scores: ArrayLike, edges: Sequence[float]) -> NDArray[np.int64]:
    """Which of :class:`Scores`' counts each score belongs to."""
    values = np.asarray(scores, np.float64)
    return np.where(np.isfinite(values), np.searchsorted(edges, values, side="left") + 1, 0)


def _fields(tally: Tally) -> list[Any]:
    return [getattr(tally, field.name) for field in dataclasses.fields(tally)]  # type: ignore[arg-type]


def _plus(one: Any, two: Any) -> Any:
    return tuple(a + b for a, b in zip(one, two, strict=True)) if isinstance(one, tuple) else one + two
