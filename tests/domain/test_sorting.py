"""Rows in order, however they are cut."""

from __future__ import annotations

import resource
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_lifecycle.adapters.sorting import sorted_batches
from ml_lifecycle.errors import NoSpaceError

START = datetime(2024, 1, 1, tzinfo=UTC)
moments = st.sampled_from([None, *(START + timedelta(hours=hour) for hour in range(3))])
keys = st.sampled_from([None, "", "a", "b", "é", "z"])
numbers = st.sampled_from([None, -1, 0, 300])


@given(st.lists(st.tuples(moments, keys, numbers), max_size=30), st.integers(1, 12))
@example([(START, "a", 1)] * 20, 3)
@example([(None, None, None)] * 9, 1)
def test_rows_are_in_order_and_those_alike_in_the_tables(rows: list[tuple[object, ...]], size: int) -> None:
    schema = {"moment": pl.Datetime("us", "UTC"), "key": pl.String(), "number": pl.Int64()}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_row_index("place")
    by = ["moment", "key", "number"]
    found = pl.concat(sorted_batches(frame.lazy(), by, part_rows=size))
    assert found.equals(frame.sort(by, maintain_order=True))


@pytest.mark.parametrize("dtype", [pl.Categorical(), pl.Enum(["b", "a"]), pl.Binary(), pl.Date(), pl.UInt8()])
def test_columns_keep_their_types(dtype: pl.DataType) -> None:
    texts = pl.Series("key", ["b", "a", None, "a", "b"])
    values = pl.Series("key", range(5), pl.Int64) if dtype in (pl.Date, pl.UInt8) else texts
    frame = pl.DataFrame({"key": values.cast(dtype), "place": range(5)})
    found = pl.concat(sorted_batches(frame.lazy(), ["key"], part_rows=2))
    assert found.equals(frame.sort("key", maintain_order=True))
    assert found.schema == frame.schema


def test_what_lies_on_disk_meanwhile_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batches = sorted_batches(pl.LazyFrame({"key": range(100, 0, -1)}), ["key"], part_rows=10)
    assert next(batches)["key"].to_list()[0] == 1
    assert list(tmp_path.iterdir())
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file may grow beyond some bytes: to its writer the same."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = pl.LazyFrame({"key": range(10_000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, limits[1]))
    try:
        with pytest.raises(NoSpaceError, match=f"no room for {tmp_path}"):
            list(sorted_batches(rows, ["key"], part_rows=5_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
