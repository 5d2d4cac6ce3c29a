"""Rows of a database, fetched into the lake: all of them, once, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from data_cases import contract, run, spec
from faults import Death, FaultKit
from pydantic import ValidationError
from sqlalchemy import (
    Column,
    DateTime,
    Double,
    Engine,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Uuid,
    insert,
    text,
    update,
)

from ml_lifecycle.adapters.databases import engine_of
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.records import Snapshot
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.fetch import fetch
from ml_lifecycle.stages.ingest import ingest, not_arrived, read_table

ORDERS = Table(
    "orders",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", DateTime(timezone=True)),
    Column("value", Double),
    Column("changed", DateTime(timezone=True)),
)
# SQLite has no type for times, and keeps them as text.
CONTRACTS = contract("orders", [{"name": name, "type": "timestamp"} for name in ("at", "changed")])
MARCH = run("2013-01-01", "2013-03-01")
NEW_YEAR = datetime(2013, 1, 1, tzinfo=UTC)


def order(number: int, hours: float, value: float = 1.0, changed: float | None = None) -> dict[str, Any]:
    moment = NEW_YEAR + timedelta(hours=hours)
    return {
        "id": number,
        "at": moment,
        "value": value,
        "changed": moment if changed is None else NEW_YEAR + timedelta(hours=changed),
    }


def orders_spec(**sql: Any) -> ModelSpec:
    query = {"query": "SELECT id, at, value, changed FROM orders;", "cursor": "changed", **sql}
    source = {"sql": query, "connection": "shop", "event_time": "at", "known_at": "changed", "keys": ["id"]}
    return spec(orders={**source, "contract": "orders"})


class Shop:
    """A database with orders, and a lake that they are fetched into."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.lake = Lake(str(folder / "lake"))
        self.engine = engine_of(url)
        ORDERS.metadata.create_all(self.engine)

    def put(self, *orders: Mapping[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(ORDERS), list(orders))

    def change(self, number: int, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(ORDERS).where(ORDERS.c.id == number).values(**values))

    @property
    def databases(self) -> Mapping[str, Callable[[], Engine]]:
        return {"shop": partial(engine_of, self.url)}

    def fetch(self, **sql: Any) -> int:
        return fetch(orders_spec(**sql), self.lake, self.databases)["orders"]

    def snapshot(self, **sql: Any) -> Snapshot:
        return ingest(orders_spec(**sql), self.lake, MARCH, contracts=CONTRACTS, origins=self.databases)

    def values(self, **sql: Any) -> dict[int, float]:
        rows = read_table(self.lake, self.snapshot(**sql), "orders").collect()
        assert rows["id"].n_unique() == rows.height
        return dict(sorted(zip(rows["id"], rows["value"], strict=True)))

    @property
    def landings(self) -> int:
        return sum(path.endswith(".json") for path in self.lake.list("landed"))


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(database_url, tmp_path)
    yield made
    made.engine.dispose()


def test_only_what_is_new_is_fetched_and_nothing_where_nothing_is(shop: Shop) -> None:
    shop.put(*(order(n, n) for n in range(10)))
    first = shop.snapshot()
    assert (shop.landings, shop.fetch()) == (1, 0)
    assert (shop.snapshot(), shop.landings) == (first, 1)
    shop.put(order(10, 10), order(11, 11))
    shop.change(3, value=7.0, changed=NEW_YEAR + timedelta(hours=12))
    assert shop.values() == {**dict.fromkeys(range(12), 1.0), 3: 7.0}
    assert shop.landings == 2
    (newest,) = [path for path in shop.lake.list("landed") if "/00000002-" in path and path.endswith("et")]
    assert pl.read_parquet(shop.lake.read_bytes(newest))["id"].sort().to_list() == [3, 10, 11]


def test_what_commits_late_is_seen_within_the_overlap(shop: Shop) -> None:
    shop.put(order(1, 10), order(2, 20))
    assert shop.fetch(overlap="2h") == 2
    shop.put(order(3, 18.5), order(4, 17.5), order(5, 20))
    assert shop.fetch(overlap="2h") == 2
    assert shop.values(overlap="2h").keys() == {1, 2, 3, 5}  # 4 came later than was said to be possible
    assert shop.fetch(overlap="3h") == 1


def test_a_whole_number_is_a_cursor_too(shop: Shop) -> None:
    shop.put(*(order(n, 1) for n in range(1, 5)))
    numbers = {"cursor": "id", "overlap_numbers": 2}
    assert shop.fetch(**numbers) == 4
    shop.put(order(5, 1), order(0, 1))
    assert shop.fetch(**numbers) == 1
    assert shop.values(**numbers).keys() == {1, 2, 3, 4, 5}


def test_a_query_may_end_in_a_comment(shop: Shop) -> None:
    shop.put(order(1, 1))
    query = "SELECT id, at, value, changed FROM orders -- all of them"
    assert [shop.fetch(query=query) for _ in "ab"] == [1, 0]


def test_a_chunk_is_held_and_kept_at_a_time(shop: Shop) -> None:
    shop.put(*(order(n, n / 10) for n in range(95)))
    assert shop.fetch(chunk_rows=10) == 95
    assert shop.landings == 10
    assert shop.values(chunk_rows=10).keys() == set(range(95))


def test_without_a_cursor_all_rows_replace_the_former(shop: Shop) -> None:
    shop.put(order(1, 1), order(2, 2))
    assert shop.values(cursor=None) == {1: 1.0, 2: 1.0}
    shop.values(cursor=None, chunk_rows=1)
    assert shop.landings == 1
    with shop.engine.begin() as connection:
        connection.execute(text("DELETE FROM orders WHERE id = 1"))
    shop.change(2, value=3.0)
    assert shop.values(cursor=None) == {2: 3.0}
    assert shop.landings == 2


def test_another_query_starts_anew(shop: Shop) -> None:
    shop.put(order(1, 1), order(2, 2))
    shop.fetch()
    doubled = "SELECT id, at, 2 * value AS value, changed FROM orders"
    assert shop.values(query=doubled) == {1: 2.0, 2: 2.0}
    assert shop.values() == {1: 1.0, 2: 1.0}


def test_a_column_may_come_later(shop: Shop) -> None:
    everything = {"query": "SELECT * FROM orders"}
    shop.put(order(1, 1))
    shop.fetch(**everything)
    with shop.engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders ADD COLUMN note VARCHAR(9)"))
        connection.execute(text("UPDATE orders SET note = 'first'"))
    shop.put(order(2, 2))
    rows = read_table(shop.lake, shop.snapshot(**everything), "orders").collect()
    # Both states of the first row are known by the same moment: which one counts is for the contract to say.
    assert set(rows.select("id", "note").rows()) == {(1, None), (1, "first"), (2, None)}


def test_two_at_once_lose_and_double_nothing(shop: Shop) -> None:
    shop.put(*(order(n, n) for n in range(200)))
    barrier = threading.Barrier(2)

    def work() -> None:
        barrier.wait()
        shop.fetch(chunk_rows=20)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shop.values(chunk_rows=20).keys() == set(range(200))


def fetch_in(folder: Path) -> int:
    return Shop(f"sqlite:///{folder}/shop.db", folder).fetch(chunk_rows=3)


def prepared(folder: Path) -> Shop:
    folder.mkdir()
    made = Shop(f"sqlite:///{folder}/shop.db", folder)
    made.put(*(order(n, n) for n in range(8)))
    return made


@pytest.mark.full
def test_killed_anywhere_it_goes_on_and_loses_and_doubles_nothing(tmp_path: Path, faults: FaultKit) -> None:
    prepared(tmp_path / "played")
    played = faults.run(tmp_path, fetch_in, tmp_path / "played")
    assert played.value == 8
    for gap in range(len(played.effects)):
        shop = prepared(tmp_path / f"killed_{gap}")
        folder = tmp_path / f"killed_{gap}"
        assert faults.run(tmp_path, fetch_in, folder, death=Death(gap)).died
        assert shop.values(chunk_rows=3).keys() == set(range(8))
        shop.put(order(8, 8))
        assert shop.values(chunk_rows=3).keys() == set(range(9))


def test_types_that_databases_have(database_url: str, tmp_path: Path) -> None:
    table = Table(
        "kinds",
        MetaData(),
        Column("id", Uuid, primary_key=True),
        Column("price", Numeric(10, 2)),
        Column("name", String(20)),
    )
    engine = engine_of(database_url)
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [
            {"id": UUID(int=1), "price": Decimal("12.50"), "name": None},
            {"id": UUID(int=2), "price": None, "name": "b"},
        ]
        connection.execute(insert(table), rows)
    engine.dispose()
    kinds = spec(kinds={"sql": {"query": "SELECT * FROM kinds"}, "connection": "shop"})
    lake = Lake(str(tmp_path / "lake"))
    snapshot = ingest(kinds, lake, MARCH, origins={"shop": partial(engine_of, database_url)})
    found = read_table(lake, snapshot, "kinds").collect().sort("id")
    assert found["price"].to_list() == [12.5, None]
    assert found["name"].to_list() == [None, "b"]
    assert [UUID(one) for one in found["id"]] == [UUID(int=1), UUID(int=2)]


def test_values_that_a_column_of_one_type_has_no_place_for(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))

    def found(query: str) -> list[Any]:
        kinds = spec(kinds={"sql": {"query": query}, "connection": "shop"})
        snapshot = ingest(kinds, lake, MARCH, origins={"shop": partial(engine_of, "sqlite://")})
        return read_table(lake, snapshot, "kinds").collect()["x"].to_list()

    assert found("SELECT 1 AS x UNION ALL SELECT 2.5 UNION ALL SELECT NULL") == [None, 1.0, 2.5]
    with pytest.raises(SourceError, match="'x' holds bytes and int, and not one type"):
        found("SELECT 1 AS x UNION ALL SELECT x'00'")


def test_numerics_are_exact_and_what_no_column_holds_is_said(postgres_url: str, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))

    def found(values: str) -> list[Any]:
        query = f"SELECT x FROM (VALUES {values}) given (x)"
        kinds = spec(kinds={"sql": {"query": query}, "connection": "shop"})
        snapshot = ingest(kinds, lake, MARCH, origins={"shop": partial(engine_of, postgres_url)})
        return read_table(lake, snapshot, "kinds").collect()["x"].to_list()

    near = 2**53 + 1
    assert found(f"({near}::numeric), ({near + 1}::numeric), (NULL)") == [None, near, near + 1]
    assert found("('NaN'::numeric), (1.5), (1e-40)") == [None, 1e-40, 1.5]
    for value, said in (
        (f"{10**25}::numeric", "holds integers of more than 64 bits; write them as text"),
        (f"{10**45}::numeric", "holds Decimal, more digits than a column can hold"),
        ("'20000-01-01'::date", "such as a time outside of the years 1 to 9999: cast it in the query"),
        (r"'\x00'::bytea", "holds memoryview, which no column can: cast it in the query"),
    ):
        with pytest.raises(SourceError, match=said):
            found(f"({value})")


def test_a_column_may_become_another_kind_of_time(postgres_url: str, tmp_path: Path) -> None:
    shop = Shop(postgres_url, tmp_path)
    shop.put(order(1, 1), order(2, 2))
    assert shop.values() == {1: 1.0, 2: 1.0}
    without_zone = "ALTER TABLE orders ALTER COLUMN at TYPE timestamp USING at AT TIME ZONE 'UTC'"
    with shop.engine.begin() as connection:
        connection.execute(text(without_zone))
    shop.put(order(3, 3))
    for _ in "ab":  # the second time both kinds were fetched before
        assert shop.values().keys() == {1, 2, 3}
    shop.engine.dispose()


@pytest.mark.parametrize("hours", [3, 30])
@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ("timestamptz", "timestamp", "a time without an offset now, and was a time with an offset when"),
        ("timestamp", "timestamptz", "a time with an offset now, and was a time without an offset when"),
    ],
)
def test_a_cursor_of_another_kind_misses_nothing_in_silence(
    postgres_url: str, tmp_path: Path, first: str, then: str, said: str, hours: float
) -> None:
    shop = Shop(postgres_url, tmp_path)

    def make(kind: str) -> None:
        change = f"ALTER TABLE orders ALTER COLUMN changed TYPE {kind} USING changed AT TIME ZONE 'UTC'"
        with shop.engine.begin() as connection:
            connection.execute(text(change))

    if first == "timestamp":
        make(first)
    shop.put(order(1, 1), order(2, 2))
    assert shop.fetch() == 2
    make(then)
    # The server's clock is 5:45 ahead: what is an hour newer may seem older than all that was fetched.
    shop.put(order(3, hours))
    with pytest.raises(SourceError, match=f"source 'orders': changed is {said}.* fetched last"):
        shop.fetch()
    assert shop.landings == 1
    cast = "SELECT id, at, value, changed AT TIME ZONE 'UTC' AS changed FROM orders"
    assert shop.fetch(query=cast) == 3
    shop.engine.dispose()


def test_what_was_fetched_may_be_deleted(shop: Shop) -> None:
    shop.put(order(1, 1), order(2, 20))
    assert shop.fetch() == 2
    for number in (2, 1):  # the newest, and all
        with shop.engine.begin() as connection:
            connection.execute(text(f"DELETE FROM orders WHERE id = {number}"))
        assert shop.fetch() == 0


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            {"cursor": "updated_at"},
            "gives id, at, value, changed, and not its cursor 'updated_at'|updated_at",
        ),
        ({"cursor": "value"}, "source 'orders': value is Float64; a cursor is a time or a whole number"),
        ({"query": "SELECT id, id FROM orders", "cursor": None}, "gives id more than once"),
        ({"query": "SELEC id FROM orders"}, "source 'orders': the database does not take the query"),
        ({"query": "SELECT id FROM order_lines"}, "the database does not take the query: .*order_lines"),
        (
            {"query": "DELETE FROM orders", "cursor": None},
            "(gives no table: write a SELECT|does not take the query)",
        ),
        ({"query": "SELECT id, at, value, NULL AS changed FROM orders"}, "1 rows have no changed"),
        ({"query": "SELECT id, at, value, 'soon' AS changed FROM orders"}, "changed is text that is no time"),
    ],
)
def test_a_query_that_cannot_be_fetched_is_said(shop: Shop, sql: dict[str, Any], said: str) -> None:
    shop.put(order(1, 1))

    def twice() -> None:  # a text is looked at when something is to be fetched after it
        shop.fetch(**sql)
        shop.fetch(**sql)

    with pytest.raises((SourceError, SourceNotReadyError), match=said):
        twice()


def test_a_query_may_have_several_lines_and_comments(shop: Shop) -> None:
    query = "SELECT id, at, value, changed\n\tFROM orders -- all of them"
    shop.put(order(1, 1))
    assert shop.fetch(query=query) == 1
    shop.put(order(2, 2))
    assert shop.fetch(query=query) == 1


def test_an_empty_table_has_not_arrived_and_a_dead_database_neither(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(SourceNotReadyError, match="source 'orders': nothing was fetched that has a row"):
        shop.snapshot()
    assert not_arrived(orders_spec(), shop.lake, MARCH) == ()  # it is asked when it is fetched
    away = {"shop": partial(engine_of, "postgresql+psycopg2://nobody@127.0.0.1:9/none")}
    with pytest.raises(SourceNotReadyError, match="the database cannot be read now"):
        fetch(orders_spec(), shop.lake, away)
    with pytest.raises(SourceError, match="its connection 'shop' is not given"):
        fetch(orders_spec(), shop.lake, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"uri": "raw/*.parquet"}, "exactly one of uri, sql, http and kafka"),
        ({"sql": None}, "it has none"),
        ({"connection": None}, "needs connection"),
        ({"keys": ()}, "a row fetched twice is known"),
        ({"format": "csv"}, "goes with uri"),
    ],
)
def test_a_source_is_declared_in_one_way(change: dict[str, Any], said: str) -> None:
    declared = orders_spec().sources["orders"].model_dump(mode="json")
    with pytest.raises(ValidationError, match=said):
        spec(orders={**declared, **change})
