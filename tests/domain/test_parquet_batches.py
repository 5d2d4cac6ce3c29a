"""Parquet that is written a batch at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from small_disk import small_disk

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import ROW_GROUP_ROWS, parquet_bytes, write_batches
from ml_lifecycle.errors import FeatureError, NoSpaceError


def rows(n: int) -> pl.DataFrame:
    number = pl.int_range(n, eager=True).alias("number")
    return pl.DataFrame(number).with_columns(
        half=(pl.col("number") / 2).cast(pl.Float32),
        text=pl.when(pl.col("number") % 7 > 0).then(pl.col("number").hash(1).cast(pl.String)),
        moment=(pl.col("number") * 10**9).cast(pl.Datetime("us", "UTC")),
    )


@pytest.mark.parametrize("n", [1, 1000, ROW_GROUP_ROWS, 2 * ROW_GROUP_ROWS + 5])
def test_the_bytes_are_those_of_the_whole_however_it_is_cut(tmp_path: Path, n: int) -> None:
    lake, frame = Lake(str(tmp_path)), rows(n)
    for size in (n // 3 + 1, ROW_GROUP_ROWS - 1, n):
        write_batches(lake, "rows.parquet", frame.schema, frame.iter_slices(size))
        assert lake.read_bytes("rows.parquet") == parquet_bytes(frame)


def test_what_the_batches_raise_comes_out_and_nothing_is_there(tmp_path: Path) -> None:
    def batches() -> Iterator[pl.DataFrame]:
        yield rows(10)
        raise FeatureError("no such rows")

    with pytest.raises(FeatureError, match="no such rows"):
        write_batches(Lake(str(tmp_path)), "rows.parquet", rows(10).schema, batches())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20):
        with pytest.raises(NoSpaceError, match="no room for") as said:
            write_batches(Lake(f"{tmp_path}/disk"), "rows.parquet", rows(1).schema, iter([rows(500_000)]))
        assert isinstance(said.value.__cause__, OSError)
        assert said.value.__cause__.errno == errno.ENOSPC
        assert not list((tmp_path / "disk").glob("**/.*.tmp"))
