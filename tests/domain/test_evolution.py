"""Columns that change as time goes by: what is allowed, what halts, and the same table in any order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import contract, events, put, run, spec
from kafka_kit import running_brokers
from pydantic import ValidationError
from sqlalchemy import text

from ml_lifecycle.adapters.databases import engine_of
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SourceError
from ml_lifecycle.records import Snapshot
from ml_lifecycle.spec.contract_rules import FieldType
from ml_lifecycle.stages.ingest import ingest, read_table

JANUARY = run("2013-01-01", "2013-02-01")
OLD = events("2013-01-05", 4)
NEW = events("2013-01-05", 4).with_columns(id=pl.col("id") + 10)
DATES = pl.date_range(pl.date(2013, 1, 1), pl.date(2013, 1, 4), eager=True)


def made(
    folder: Path, order: Mapping[str, pl.DataFrame], declared: Mapping[str, FieldType], **source: Any
) -> Any:
    """The snapshot of files that come one by one, with a run after each."""
    lake = Lake(str(folder))
    known: dict[str, FieldType] = {"id": "integer", "at": "timestamp", **declared}
    contracts = contract("events", [{"name": name, "type": kind} for name, kind in known.items()])
    named = {"contract": "events"} if declared else {}
    declaration = spec(events={"uri": "raw/*", "event_time": "at", "keys": ["id"], **named, **source})
    snapshot: Snapshot | None = None
    for name, frame in order.items():
        put(folder / "raw", name, frame)
        snapshot = ingest(declaration, lake, JANUARY, contracts=contracts)
    assert snapshot is not None
    return snapshot, read_table(lake, snapshot, "events").collect().sort("id")


def value(new: pl.Series) -> pl.DataFrame:
    return NEW.with_columns(value=new)


WHOLE = OLD.with_columns(value=pl.Series([1, 2, 3, 4]))
Changed = tuple[pl.DataFrame, pl.DataFrame, dict[str, FieldType], dict[str, Any], list[Any]]
# old file, new file, what the contract says, what the source says, and what `value` then is
ALLOWED: dict[str, Changed] = {
    "added": (OLD.drop("value"), NEW, {}, {}, [None] * 4 + [0, 0.25, 0.5, 0.75]),
    "removed": (OLD, NEW.drop("value"), {}, {}, [0, 0.25, 0.5, 0.75] + [None] * 4),
    "renamed": (
        OLD.rename({"value": "cost"}),
        NEW,
        {},
        {"renamed": {"value": ["cost"]}},
        [0, 0.25, 0.5, 0.75] * 2,
    ),
    "renamed twice": (
        OLD.rename({"value": "cost"}),
        NEW.rename({"value": "amount"}),
        {"value": "float"},
        {"renamed": {"value": ["cost", "amount"]}, "evolution": {"added": "halt", "removed": "halt"}},
        [0, 0.25, 0.5, 0.75] * 2,
    ),
    "another width": (
        WHOLE.cast({"value": pl.Int32}),
        value(pl.Series([1, 2, 3, 2**40])),
        {},
        {"evolution": {"widened": "halt"}},
        [1, 2, 3, 4, 1, 2, 3, 2**40],
    ),
    "widened": (WHOLE, NEW, {}, {}, [1.0, 2.0, 3.0, 4.0, 0, 0.25, 0.5, 0.75]),
    "widened as the contract says": (
        WHOLE,
        NEW,
        {"value": "float"},
        {"evolution": {"widened": "halt"}},
        [1.0, 2.0, 3.0, 4.0, 0, 0.25, 0.5, 0.75],
    ),
    "narrowed without loss": (
        OLD.with_columns(value=pl.lit(3.0)),
        value(pl.Series([1, 2, 3, 4])),
        {"value": "integer"},
        {},
        [3, 3, 3, 3, 1, 2, 3, 4],
    ),
    "numbers become text": (
        WHOLE,
        value(pl.Series(["a", "b", "7", None])),
        {"value": "string"},
        {},
        ["1", "2", "3", "4", "a", "b", "7", None],
    ),
    "text becomes numbers": (
        OLD.with_columns(value=pl.Series(["1", "2", "", "4"])),
        NEW,
        {"value": "float"},
        {},
        [1, 2, None, 4, 0, 0.25, 0.5, 0.75],
    ),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_allowed_gives_one_table_in_any_order(tmp_path: Path, case: str) -> None:
    old, new, declared, source, expected = ALLOWED[case]
    files = {"a.parquet": old, "b.parquet": new, "c.parquet": new.head(1), "d.parquet": old.head(1)}
    digests = set()
    for number, order in enumerate(itertools.islice(itertools.permutations(files), 0, 24, 5)):
        snapshot, rows = made(
            tmp_path / str(number), {name: files[name] for name in order}, declared, **source
        )
        digests.add(snapshot.digest)
        assert rows["value"].to_list() == expected
    assert len(digests) == 1


HALTING: dict[str, tuple[pl.DataFrame, pl.DataFrame, dict[str, FieldType], dict[str, Any], str]] = {
    "added": (
        OLD,
        NEW.with_columns(extra=1),
        {"value": "float"},
        {"evolution": {"added": "halt"}},
        r"raw/b.parquet has extra, and evolution.added is halt: change the contract 'events'",
    ),
    "removed": (
        OLD,
        NEW.drop("value"),
        {"value": "float"},
        {"evolution": {"removed": "halt"}},
        "raw/b.parquet lacks value, and evolution.removed is halt",
    ),
    "removed though the source names it": (OLD, NEW.drop("id"), {}, {}, "raw/b.parquet has no column 'id'"),
    "both names": (
        OLD,
        NEW.with_columns(cost=1.0),
        {},
        {"renamed": {"value": ["cost"]}},
        "raw/b.parquet has value and cost, which are one column",
    ),
    "widened": (
        WHOLE,
        NEW,
        {},
        {"evolution": {"widened": "halt"}},
        "'value' is int64 in raw/a.parquet but double in raw/b.parquet",
    ),
    "widened beyond what is exact": (
        OLD,
        value(pl.Series([1, 2, 3, 2**53 + 1])),
        {"value": "float"},
        {},
        "double in raw/a.parquet but int64 in raw/b.parquet; the contract says float, and raw/b.parquet",
    ),
    "narrowed with a loss": (
        WHOLE,
        NEW,
        {"value": "integer"},
        {},
        "int64 in raw/a.parquet but double in raw/b.parquet; the contract says integer, and raw/b.parquet",
    ),
    "numbers become text without a contract": (
        WHOLE,
        value(pl.Series(["a", "b", "c", "d"])),
        {},
        {},
        "int64 in raw/a.parquet but string in raw/b.parquet; declare its type",
    ),
    "text that is no number": (
        OLD,
        value(pl.Series(["1", "two", "3", "4"])),
        {"value": "float"},
        {},
        "raw/b.parquet, column 'value', row 2: 'two' is not of type float",
    ),
    "numbers become dates": (
        OLD,
        value(DATES),
        {"value": "float"},
        {},
        "the contract says float, and raw/b.parq",
    ),
}


@pytest.mark.parametrize("case", HALTING)
def test_what_halts_names_the_file_and_leaves_the_last_snapshot(tmp_path: Path, case: str) -> None:
    old, new, declared, source, said = HALTING[case]
    made(tmp_path, {"a.parquet": old}, declared, **source)
    before = sorted((tmp_path / "snapshots").rglob("*"))
    with pytest.raises(SourceError, match=said):
        made(tmp_path, {"b.parquet": new}, declared, **source)
    assert sorted((tmp_path / "snapshots").rglob("*")) == before


def test_a_query_whose_columns_change_keeps_what_was_fetched(tmp_path: Path) -> None:
    """Renamed, widened and added, after the old rows were landed with their old names and types."""
    engine = engine_of(f"sqlite:///{tmp_path}/shop.db")
    lake = Lake(str(tmp_path / "lake"))
    source = {
        "sql": {"query": "SELECT * FROM orders", "cursor": "id", "overlap_numbers": 0},
        "connection": "shop",
        "keys": ["id"],
        "renamed": {"price": ["cost"]},
    }

    def rows() -> list[tuple[Any, ...]]:
        snapshot = ingest(spec(orders=source), lake, JANUARY, origins={"shop": lambda: engine})
        columns = [name for name in ("id", "price", "note") if name in snapshot.tables["orders"].columns]
        return read_table(lake, snapshot, "orders").select(columns).collect().sort("id").rows()

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER, cost)"))
        connection.execute(text("INSERT INTO orders VALUES (1, 10)"))
    assert rows() == [(1, 10)]
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders RENAME COLUMN cost TO price"))
        connection.execute(text("ALTER TABLE orders ADD COLUMN note TEXT"))
        connection.execute(text("INSERT INTO orders VALUES (2, 2.5, 'new')"))
    assert rows() == [(1, 10.0, None), (2, 2.5, "new")]


def test_a_topic_whose_fields_change_keeps_what_was_fetched(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    source = {
        "kafka": {"topic": "orders", "timestamp": "at"},
        "connection": "events",
        "event_time": "at",
        "renamed": {"price": ["cost"]},
    }
    with running_brokers() as brokers:
        brokers.create("orders", 1)
        for fields in ({"id": 1, "cost": 10}, {"id": 2, "price": 2.5, "note": "new"}):
            brokers.put("orders", fields)
            snapshot = ingest(spec(orders=source), lake, JANUARY, origins={"events": brokers.config})
    found = read_table(lake, snapshot, "orders").select("id", "price", "note").collect().sort("id")
    assert found.rows() == [(1, 10.0, None), (2, 2.5, "new")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"renamed": {"a": ["b"], "c": ["b"]}}, "'b' can be the former name of one column only"),
        ({"renamed": {"a": ["b"], "b": ["c"]}}, "'b' can be the former name of one column only"),
        ({"evolution": {"added": "halt"}}, "added: halt needs a contract"),
        ({"evolution": {"narrowed": "allow"}}, "narrowed"),
    ],
)
def test_a_policy_that_says_nothing_is_refused(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(events={"uri": "raw/*", **source})
