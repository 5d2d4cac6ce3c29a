"""How pairs of numeric columns move together: exact moments, which can be added up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Matrix = tuple[tuple[float, ...], ...]

MOST_COLUMNS = 30
"""Numeric columns of which pairs are followed, the first ones: time and place grow with their square."""

_CACHED = 8192  # rows that are looked at together: of thirty columns, what a core's own cache holds
_LARGEST = 1e150  # whose square is still a number; beyond, a value counts as missing


@dataclass(frozen=True)
class PairMoments:
    """Moments of every two columns, over the rows that have a value in both.

    :param count: rows of each pair
    :param mean: of the row's column
    :param squares: sum of squared distances of the row's column from that mean
    :param cross: sum of the products of both columns' distances
    """

    columns: tuple[str, ...]
    count: Matrix
    mean: Matrix
    squares: Matrix
    cross: Matrix

    def __add__(self, other: PairMoments) -> PairMoments:
        """Pairwise update (Chan, Golub and LeVeque, 1979)."""
        n_1, mean_1, squares_1, cross_1 = self._arrays()
        n_2, mean_2, squares_2, cross_2 = other._arrays()
        n = n_1 + n_2
        some = np.maximum(n, 1)
        delta = np.where((n_1 > 0) & (n_2 > 0), mean_2 - mean_1, 0.0)
        both = n_1 * n_2 / some
        mean = np.where(n_1 > 0, mean_1 + delta * n_2 / some, mean_2)
        squares = squares_1 + squares_2 + delta * delta * both
        return _pairs(self.columns, n, mean, squares, cross_1 + cross_2 + delta * delta.T * both)

    def _arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        count, mean, squares, cross = (
            np.array(matrix, np.float64) for matrix in (self.count, self.mean, self.squares, self.cross)
        )
        return count, mean, squares, cross

    def correlations(self) -> Floats:
        """Pearson's, NaN where one of the two columns does not vary, or in fewer than three rows."""
        count, mean, squares, cross = self._arrays()
        # What is left of rounding is no variation.
        varies = squares > 1e-12 * mean * mean * count
        with np.errstate(divide="ignore", invalid="ignore"):
            found = cross / np.sqrt(squares * squares.T)
        return np.where(varies & varies.T & (count > 2), found.clip(-1, 1), np.nan)


def pair_moments(columns: tuple[str, ...], rows: Floats) -> PairMoments:
    """Of rows with a column each; NaN is missing."""
    there = np.abs(rows) < _LARGEST
    origin = np.where(there, rows, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    count, total, cross, squares = np.zeros((4, len(columns), len(columns)))
    for start in range(0, len(rows), _CACHED):
        here = there[start : start + _CACHED]
        known = here.astype(np.float64)
        near = np.where(here, rows[start : start + _CACHED] - origin, 0.0)
        count += known.T @ known
        total += near.T @ known
        cross += near.T @ near
        near *= near
        squares += near.T @ known
    some = np.maximum(count, 1)
    cross -= total * total.T / some
    squares = np.maximum(squares - total * total / some, 0.0)
    return _pairs(columns, count, np.where(count > 0, origin[:, None] + total / some, 0.0), squares, cross)


def _pairs(columns: tuple[str, ...], *matrices: Floats) -> PairMoments:
    return PairMoments(columns, *(tuple(map(tuple, matrix.tolist())) for matrix in matrices))
