"""The newest row a key, whatever the parts are cut into: the same as all at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_lifecycle.adapters.newest import changed, newest

START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
SCHEMA = {"a": pl.String, "b": pl.Int64, "event": TIME, "created": TIME, "row": pl.Int64}
MOMENT = st.integers(0, 3).map(lambda hours: START + timedelta(hours=hours))
ROW = st.tuples(
    st.sampled_from(["", "x", "é" * 100, None]), st.integers(-1, 2), MOMENT, st.one_of(st.none(), MOMENT)
)


def table(rows: list[tuple[Any, ...]]) -> pl.LazyFrame:
    return pl.LazyFrame([(*row, n) for n, row in enumerate(rows)], schema=SCHEMA, orient="row")


def by_hand(rows: pl.LazyFrame, keys: list[str]) -> dict[tuple[Any, ...], int]:
    """key → the number of its row that counts."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in rows.collect().to_dicts():
        key = tuple(row[name] for name in keys)
        rank = (row["event"], row["created"] is not None, row["created"], row["row"])
        if None not in key and (key not in found or rank >= found[key]):
            found[key] = rank
    return {key: rank[-1] for key, rank in found.items()}


def numbers(parts: list[pl.DataFrame], keys: list[str]) -> dict[tuple[Any, ...], int]:
    rows = pl.concat(parts).to_dicts()
    found = {tuple(row[name] for name in keys): row["row"] for row in rows}
    assert len(found) == len(rows), "one row a key"
    return found


@given(st.lists(ROW, max_size=40), st.sampled_from([["a"], ["b"], ["a", "b"], []]), st.integers(1, 50))
def test_parts_of_any_size_give_each_key_its_newest_row(
    rows: list[tuple[Any, ...]], keys: list[str], size: int
) -> None:
    parts = list(newest(table(rows), keys, ["event", "created"], part_rows=size))
    assert parts[0].schema == pl.Schema(SCHEMA)
    assert numbers(parts, keys) == by_hand(table(rows), keys)
    assert len(rows) <= size or not keys or len(parts) > 1 or len(by_hand(table(rows), keys)) < 2


@given(st.lists(ROW, max_size=20), st.lists(ROW, max_size=20), st.integers(1, 50))
def test_only_what_is_not_known_has_changed(
    rows: list[tuple[Any, ...]], known: list[tuple[Any, ...]], size: int
) -> None:
    def values(frame: pl.LazyFrame) -> set[tuple[Any, ...]]:
        counting = by_hand(frame, ["a"]).values()
        return {row[:-1] for row in frame.collect().rows() if row[-1] in counting}

    now, before = table(rows), table(known)
    columns = ["a", "b", "event", "created"]
    parts = changed(now.select(columns), before.select(columns), ["a"], ["event", "created"], part_rows=size)
    assert set(pl.concat(parts).rows()) == values(now) - values(before)


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        ([3, 1, 2**31 - 1], pl.Int32),
        ([3, 1, 2**64 - 1], pl.UInt64),
        ([START, START - timedelta(1), START + timedelta(1)], TIME),
        ([b"\xff", b"", b"a"], pl.Binary),
        ([1.5, -0.25, 0.0], pl.Float64),
        (["x", "y", "z"], pl.Categorical),
        ([START.date(), START.date() + timedelta(1), START.date() - timedelta(1)], pl.Date),
    ],
)
def test_keys_may_be_of_any_type(key: list[Any], dtype: Any) -> None:
    rows = pl.LazyFrame({"key": pl.Series(key * 2, dtype=dtype), "event": range(6)})
    parts = list(newest(rows, ["key"], ["event"], part_rows=2))
    assert len(parts) == 3
    assert sorted(pl.concat(parts)["event"]) == [3, 4, 5]
    assert pl.concat(parts).schema == rows.collect_schema()


def test_a_batch_with_many_rows_of_one_key_is_cut_down_before_it_is_kept() -> None:
    rows = pl.LazyFrame({"key": [7] * 200, "event": range(200)})
    parts = list(newest(rows, ["key"], ["event"], part_rows=10))
    assert pl.concat(parts).rows() == [(7, 199)]


def test_rows_come_in_the_order_of_the_keys_bytes() -> None:
    keys = [f"user-{n}" for n in range(200)]
    parts = list(newest(pl.LazyFrame({"key": keys, "event": range(200)}), ["key"], ["event"], part_rows=30))
    assert len(parts) == 7
    assert pl.concat(parts)["key"].to_list() == sorted(keys, key=lambda key: (len(key), key))
