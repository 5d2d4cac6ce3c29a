"""Samples of rows that come in batches."""

from __future__ import annotations

import numpy as np
import polars as pl

from ml_lifecycle.profiles.sample import SAMPLE_ROWS, TURN, smallest, strata, turns
from ml_lifecycle.records import ColumnSpec

COLUMNS = (ColumnSpec("carrier", "string"), ColumnSpec("hour", "int"), ColumnSpec("x", "float"))
SEGMENTS = {"carrier": ("UA", "AA"), "hour": ("7",)}


def sampled(frame: pl.DataFrame, size: int) -> pl.DataFrame:
    """Taken batch by batch."""
    found: pl.DataFrame | None = None
    for number, batch in enumerate(frame.iter_slices(size)):
        drawn = batch.with_columns(turns(strata(batch, COLUMNS, SEGMENTS), str(number)))
        found = smallest(drawn if found is None else pl.concat([found, smallest(drawn)]))
    assert found is not None
    return found


def rows(n: int) -> pl.DataFrame:
    rng = np.random.default_rng(n)
    return pl.DataFrame(
        {
            "carrier": rng.choice(["UA", "AA", "B6"], n, p=[0.7, 0.02, 0.28]),
            "hour": rng.integers(5, 9, n),
            "x": np.arange(n),
        }
    )


def test_every_segment_and_every_time_has_its_share() -> None:
    whole = rows(200_000)
    found = sampled(whole, 30_000)  # the last batch is a smaller one
    assert found.height == SAMPLE_ROWS
    for condition in (
        pl.col("carrier") == "UA",
        pl.col("carrier") == "AA",
        pl.col("hour") == 7,
        (pl.col("carrier") == "AA") & (pl.col("hour") == 7),
        pl.col("x") < 20_000,
        pl.col("x") >= 180_000,
        (pl.col("carrier") == "UA") & (pl.col("x") >= 180_000),
    ):
        share = whole.filter(condition).height / whole.height
        # At random it would be off by 3.5 of a hundred-row stratum's rows in one of 3 samples.
        assert abs(found.filter(condition).height - share * SAMPLE_ROWS) < 12


def test_a_sample_is_that_of_its_rows_and_few_rows_are_all_taken() -> None:
    whole = rows(40_000)
    assert sampled(whole, 9000).equals(sampled(whole, 9000))
    assert sampled(rows(300), 70).drop(TURN).equals(rows(300))


def test_rows_are_told_apart_by_the_segments_they_are_in() -> None:
    frame = pl.DataFrame({"carrier": ["UA", "AA", "B6", None, "UA"], "hour": [7, 7, 8, None, 7]})
    found = strata(frame, COLUMNS, SEGMENTS)
    assert found.n_unique() == 3
    assert found[0] == found[4]
    assert found[2] == found[3]
    assert strata(frame, COLUMNS, {}).to_list() == [0] * 5
