"""The as-of join against one written out in Python, however rows and tables are cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ml_lifecycle.adapters.as_of import TIMESTAMP, Table, join_as_of
from ml_lifecycle.errors import FeatureError

START = datetime(2024, 1, 1, tzinfo=UTC)
Row = tuple[object, ...]

# Few keys, few hours, small sizes: many rows share both, and lie in different parts.
hours = st.sampled_from([None, 0, 1, 2, 3])
keys = st.sampled_from(["a", "a", "b", None])
numbers = st.sampled_from([1, 1, 2, None])
values = st.none() | st.integers(0, 999)
events = st.lists(st.tuples(keys, numbers, hours, hours, values), max_size=12)
entities = st.lists(st.tuples(keys, numbers, hours), min_size=1, max_size=8)
lifetimes = st.sampled_from([None, 1, 2])
sizes = st.integers(1, 5)
TIES = [("a", 1, 3, None, 1), ("a", 1, 3, 2, 2), ("a", 1, 3, 2, 3), ("a", 1, 3, 1, 4), ("a", 1, 3, None, 5)]


def moment(hour: object) -> datetime | None:
    return START + timedelta(hours=hour) if isinstance(hour, int) else None


def frame(rows: list[Row], names: list[str], times: list[str]) -> pl.LazyFrame:
    types = {"key": pl.String(), "number": pl.Int64(), "value": pl.Int64()}
    made = pl.DataFrame(rows, schema={name: types.get(name, pl.Int64()) for name in names}, orient="row")
    return made.with_columns(
        (pl.lit(START) + pl.duration(hours=pl.col(name))).cast(TIMESTAMP).alias(name) for name in times
    ).lazy()


def looked_up(rows: list[Row], by: list[int], asked: Row, lifetime: int | None, created: bool) -> object:
    """The value of the row that counts, by looking at every row; ``by`` are the places of the keys."""
    best: tuple[tuple[object, ...], object] | None = None
    for place, row in enumerate(rows):
        event, made = row[2], row[3] if created else None
        if asked[2] is None or event is None or event > asked[2]:
            continue
        if any(row[key] is None or row[key] != asked[key] for key in by):
            continue
        rank = (event, made is not None, made or 0, place)
        if best is None or rank > best[0]:
            best = (rank, row[4])
    if best is None or (lifetime is not None and best[0][0] < asked[2] - lifetime):
        return None
    return best[1]


@given(events, events, entities, lifetimes, st.booleans(), sizes, sizes)
@example(TIES, TIES[:2], [("a", 1, 3)], None, True, 1, 1)
@example(TIES, TIES, [("a", 1, 3), ("a", 1, 4)], 1, False, 1, 1)
@example([], [], [], None, False, 1, 1)
def test_the_answer_is_that_of_looking_at_every_row_however_it_is_cut(
    first: list[Row],
    second: list[Row],
    asked: list[Row],
    lifetime: int | None,
    created: bool,
    slice_rows: int,
    part_rows: int,
) -> None:
    names = ["key", "number", "event", "created", "value"]
    views = {"one": (first, [0]), "two": (second, [0, 1]), "all": (first, [])}
    tables = [
        Table(
            view,
            frame(rows, names, ["event", "created"]),
            {names[place]: names[place] for place in by},
            {view: "value"},
            "event",
            "created" if created else None,
            lifetime and timedelta(hours=lifetime),
        )
        for view, (rows, by) in views.items()
    ]
    rows = frame(asked, ["key", "number", "at"], ["at"])
    expected = rows.collect().with_columns(
        pl.Series(view, [looked_up(table, by, row, lifetime, created) for row in asked], pl.Int64())
        for view, (table, by) in views.items()
    )
    for cut in ({"slice_rows": slice_rows, "part_rows": part_rows}, {}):
        assert_frame_equal(pl.concat(join_as_of(rows, "at", tables, **cut)), expected)


@pytest.mark.parametrize("dtype", [pl.Datetime("us", "UTC"), pl.Datetime("ns", "UTC"), pl.Datetime("ms")])
def test_times_of_other_units_are_compared_in_microseconds(dtype: pl.DataType) -> None:
    times = pl.Series("event", [START, START + timedelta(hours=1)]).cast(pl.Datetime("us"))
    table = pl.LazyFrame({"key": ["a", "a"], "value": [1, 2], "event": times}).with_columns(
        pl.col("event").dt.replace_time_zone("UTC").cast(dtype)
        if dtype.time_zone
        else pl.col("event").cast(dtype)
    )
    rows = pl.LazyFrame({"key": ["a", "a"], "at": [START, START + timedelta(minutes=59)]})
    tables = [Table("t", table, {"key": "key"}, {"value": "value"}, "event")]
    for part_rows in (1, 2):
        found = pl.concat(join_as_of(rows, "at", tables, part_rows=part_rows))
        assert found["value"].to_list() == [1, 1]


@pytest.mark.parametrize(
    ("asked", "held", "found"),
    [
        (pl.Series([1, 2], dtype=pl.Int32), pl.Series([2**40, 2]), [None, 1]),
        (pl.Series([2**40, 2]), pl.Series([1, 2], dtype=pl.Int32), [None, 1]),
        (pl.Series([1, 2], dtype=pl.UInt64), pl.Series([-1, 2]), [None, 1]),
        (pl.Series([1, 2]), pl.Series([1.5, 2.0]), [None, 1]),
        (pl.Series([1, 2]), pl.Series([float("inf"), 2.0]), [None, 1]),
        (pl.Series([1, 2]), pl.Series(["abc", "2"]), [None, 1]),
        (pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), pl.Series(["c", "b"]), [None, 1]),
        (pl.Series(["1", "2"], dtype=pl.Enum(["1", "2"])), pl.Series([0, 2]), [None, 1]),
        (pl.Series([None, None]), pl.Series([1, 2]), [None, None]),
    ],
    ids=["32 bits", "64 bits", "unsigned", "fractions", "infinity", "text", "enum", "digits", "none at all"],
)
def test_a_key_that_no_entity_row_can_have_is_in_nobodys_way(
    asked: pl.Series, held: pl.Series, found: list[int | None]
) -> None:
    rows = pl.LazyFrame({"key": asked, "at": [START, START]})
    table = pl.LazyFrame({"key": held, "event": [START, START], "value": [0, 1]})
    tables = [Table("t", table, {"key": "key"}, {"value": "value"}, "event", None, timedelta(days=10**6))]
    for part_rows in (1, 2):
        joined = pl.concat(join_as_of(rows, "at", tables, part_rows=part_rows))
        assert joined["value"].to_list() == found


@pytest.mark.parametrize("dtype", [pl.Date(), pl.Datetime("ms"), pl.Boolean(), pl.Int8()])
def test_keys_that_a_table_holds_as_text_are_found(dtype: pl.DataType) -> None:
    """As a view's table does whose entity is declared STRING."""
    keys = pl.Series("key", [0, 1, None], pl.Int8).cast(pl.Int64).cast(dtype)
    rows = pl.DataFrame({"key": keys.cast(pl.String), "event": [START] * 3, "value": [1, 2, 3]})
    table = Table("view", rows.lazy(), {"key": "key"}, {"found": "value"}, "event")
    asked = pl.DataFrame({"key": keys, "moment": [START] * 3})
    found = pl.concat(join_as_of(asked.lazy(), "moment", [table]))
    assert found["found"].to_list() == [1, 2, None]
    assert found.schema["key"] == dtype


def test_columns_that_are_missing_or_there_twice_are_named() -> None:
    table = pl.LazyFrame({"key": ["a"], "value": [1], "event": [START]})
    rows = pl.LazyFrame({"key": ["a"], "at": [START]})
    lacking = Table("the view", table, {"id": "key"}, {"value": "value"}, "event")
    with pytest.raises(FeatureError, match=r"the view needs the entity columns \['id'\]"):
        next(join_as_of(rows, "at", [lacking]))
    known = Table("the view", table, {"key": "key"}, {"value": "value"}, "event")
    for moment, kind in ((1704067200, "Int32"), ("2024-01-01", "String")):
        with pytest.raises(FeatureError, match=f"column 'at' of the entity rows holds {kind}, and no times"):
            next(join_as_of(rows.with_columns(at=pl.lit(moment)), "at", [known]))
    with pytest.raises(FeatureError, match="of another view too"):
        next(join_as_of(rows, "at", [known, known]))
