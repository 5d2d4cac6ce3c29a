"""A sample of rows that come in batches: evenly over time, and from each segment its share.

Each row is given its turn, a number from 0 to 1, and the rows with the smallest turns are the sample. Within
a stratum of a batch the turns are steps of the golden ratio from some start: those below any number are then
spread evenly, and their share is that number (Weyl). So it need not be known how many rows there will be,
samples can be put together, and the same rows give the same sample.
"""

from __future__ import annotations

import hashlib

import polars as pl

SAMPLE_ROWS = 5_000
TURN = "__turn__"
_STEP = (5**0.5 - 1) / 2
_STRATUM_STEP = 0.7548776662466927  # of the plastic number, whose multiples go with no golden ones


def turns(strata: pl.Series, seed: str) -> pl.Series:
    """Each row's turn.

    :param strata: a number a row, in the order of time
    :param seed: another one a batch
    """
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4]) / 2**32
    rows = pl.DataFrame(strata.alias("stratum"))
    place = pl.int_range(pl.len()).over("stratum")
    turn = (place * _STEP + pl.col("stratum") * _STRATUM_STEP + start) % 1.0
    return rows.select(turn.alias(TURN)).to_series()


def smallest(rows: pl.DataFrame, n: int = SAMPLE_ROWS) -> pl.DataFrame:
    """The rows whose turn it is first."""
    return rows if rows.height <= n else rows.bottom_k(n, by=TURN)
