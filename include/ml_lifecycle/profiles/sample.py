"""A sample of rows that come in batches: evenly over time, and from each segment its share.

Each row is given its turn, a number from 0 to 1, and the rows with the smallest turns are the sample. Within
a stratum of a batch the turns are steps of the golden ratio from some start: those below any number are then
spread evenly, and their share is that number (Weyl). So it need not be known how many rows there will be,
samples can be put together, and the same rows give the same sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from ml_lifecycle.profiles.profile import NUMERIC, Segments
from ml_lifecycle.profiles.profiling import as_profiled, has_value
from ml_lifecycle.records import ColumnSpec

SAMPLE_ROWS = 5_000
TURN = "__turn__"
_STEP = (5**0.5 - 1) / 2
_STRATUM_STEP = 0.7548776662466927  # of the plastic number, whose multiples go with no golden ones


def strata(frame: pl.DataFrame, columns: Sequence[ColumnSpec], segments: Segments) -> pl.Series:
    """A number a row, the same for rows that are in the same segments.

    :param segments: of ``columns``
    """
    wanted = [column for column in columns if column.name in segments]
    values = as_profiled(frame, wanted)
    number = pl.repeat(0, pl.len(), dtype=pl.UInt32)
    for column in wanted:
        names = segments[column.name]
        numeric = column.type in NUMERIC
        place = pl.coalesce(
            *(
                pl.when(has_value(column.name, value, numeric=numeric)).then(pl.lit(index + 1, pl.UInt32))
                for index, value in enumerate(names)
            ),
            pl.lit(0, pl.UInt32),
        )
        number = number * (len(names) + 1) + place
    return (
        values.select(number.alias("stratum")).to_series()
        if wanted
        else pl.zeros(frame.height, pl.UInt32, eager=True).alias("stratum")
    )


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
