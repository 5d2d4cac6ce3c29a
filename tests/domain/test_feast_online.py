"""The online store and its reader, with real files and Feast's own calls."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import types
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import pandas as pd
import polars as pl
import psutil
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String, UnixTimestamp

from ml_lifecycle.adapters.feast_audit import compare
from ml_lifecycle.adapters.feast_bulk import materialise
from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import Features, open_store, registry_bytes
from ml_lifecycle.errors import FeatureError

START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)


def hours(value: float) -> datetime:
    return START + timedelta(hours=value)


def objects(on_demand: Sequence[str] = ()) -> Features:
    """Two views; with ``on_demand``, those the service has beside one that is computed from users."""
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)

    def source(name: str) -> FileSource:
        return FileSource(
            name=name,
            path=f"{name}.parquet",
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )

    users = FeatureView(
        name="users",
        entities=[user],
        ttl=timedelta(hours=6),
        schema=[
            Field(name="spent", dtype=Float32),
            Field(name="orders", dtype=Int64),
            Field(name="country", dtype=String),
            Field(name="member", dtype=Bool),
        ],
        source=source("users"),
    )
    shops = FeatureView(
        name="shops", entities=[shop], schema=[Field(name="open", dtype=Bool)], source=source("shops")
    )
    module = types.ModuleType("features")
    vars(module).update(user=user, shop=shop, users=users, shops=shops)
    made = {"users": users, "shops": shops}

    @on_demand_feature_view(sources=[users], schema=[Field(name="double", dtype=Float64)], mode="pandas")
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": inputs["spent"].astype("float64") * 2})

    behind = (
        [users, shops] if not on_demand else [*(made[name] for name in on_demand if name in made), doubled]
    )
    vars(module).update({"doubled": doubled} if on_demand else {})
    module.service = FeatureService(name="service", features=behind)  # type: ignore[attr-defined]
    return Features.of(module, "test", "service")


def user_rows(*rows: tuple[str, datetime, float | None]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "user_id": user,
                "event_timestamp": event,
                "created": event,
                "spent": spent,
                "orders": None if spent is None else int(spent),
                "country": "GB",
                "member": True,
            }
            for user, event, spent in rows
        ],
        schema_overrides={
            "event_timestamp": TIME,
            "created": TIME,
            "spent": pl.Float32,
            "orders": pl.Int64,
        },
    )


class Place:
    """A repository and an online store below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "online" / "store.db"
        self.url = f"sqlite:///{self.database}"
        shops = {"shop_id": [1], "event_timestamp": [START], "created": [START], "open": [False]}
        pl.DataFrame(shops, schema_overrides={"event_timestamp": TIME, "created": TIME}).write_parquet(
            folder / "shops.parquet"
        )

    def open(self, rows: pl.DataFrame, on_demand: Sequence[str] = ()) -> FeatureStore:
        rows.write_parquet(self.folder / "users.parquet")
        return open_store(objects(on_demand), self.folder, self.url)

    def write(self, rows: pl.DataFrame, start: float = 0, end: float = 1000) -> bytes:
        store = self.open(rows)
        materialise(store, hours(start), hours(end))
        return registry_bytes(store)

    def spent(self, registry: bytes, *users: str) -> list[object]:
        reader = OnlineReader(registry, "service", self.url)
        return reader.read({"user_id": users, "shop_id": [1] * len(users)})["spent"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_rows_come_back_in_order_with_none_where_nothing_is_known(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.5), ("b", hours(1), None)))
    reader = OnlineReader(registry, "service", place.url)
    found = reader.read({"shop_id": [1, 9, 1, 1], "user_id": ["b", "a", "nobody", "a"]})
    assert found == {
        "spent": [None, 1.5, None, 1.5],
        "orders": [None, 1, None, 1],
        "country": ["GB", "GB", None, "GB"],
        "member": [True, True, None, True],
        "open": [False, None, False, False],
    }
    assert list(found) == ["spent", "orders", "country", "member", "open"]
    assert reader.read({"user_id": [], "shop_id": []}) == {name: [] for name in found}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_newest_event_stays_whatever_the_order_of_windows(place: Place, order: tuple[int, ...]) -> None:
    rows = user_rows(("a", hours(1), 1.0), ("a", hours(25), 2.0), ("a", hours(49), 3.0))
    for day in order:
        registry = place.write(rows, 24 * day, 24 * day + 23)
    assert place.spent(registry, "a") == [3.0]


def test_of_one_event_the_newer_creation_stays_to_the_microsecond(place: Place) -> None:
    base = user_rows(("a", hours(1), 1.0))
    newer = base.with_columns(pl.col("created") + timedelta(microseconds=2), spent=pl.lit(2.0, pl.Float32))
    older = base.with_columns(pl.col("created") + timedelta(microseconds=1), spent=pl.lit(3.0, pl.Float32))
    for rows in (base, newer, older):
        registry = place.write(rows)
    assert place.spent(registry, "a") == [2.0]
    event = user_rows(("a", hours(1) + timedelta(microseconds=1), 4.0))
    place.write(event.with_columns(created=pl.lit(START).cast(TIME)))
    place.write(newer)
    assert place.spent(registry, "a") == [4.0]


def test_a_value_past_its_time_to_live_is_none_as_of_a_moment(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(0), 1.0), ("b", hours(4), 2.0)))
    reader = OnlineReader(registry, "service", place.url)
    keys = {"user_id": ["a", "b"], "shop_id": [1, 1]}
    assert reader.read(keys)["spent"] == [1.0, 2.0]
    assert reader.read(keys, as_of=hours(6))["spent"] == [1.0, 2.0]
    # What counts at a moment was known before it: as in training, an instant more belongs to the lifetime.
    assert reader.read(keys, as_of=hours(6) + MICROSECOND)["spent"] == [1.0, 2.0]
    assert reader.read(keys, as_of=hours(6) + 2 * MICROSECOND)["spent"] == [None, 2.0]
    late = reader.read(keys, as_of=[hours(6), hours(11)])
    assert late["spent"] == [1.0, None]
    assert late["open"] == [False, False]  # a view without a time to live


def test_the_time_zone_of_the_process_does_not_matter(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    registry = place.write(user_rows(("a", hours(0), 1.0)))
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        reader = OnlineReader(registry, "service", place.url)
        keys = {"user_id": ["a"], "shop_id": [1]}
        assert reader.read(keys, as_of=hours(6))["spent"] == [1.0]
        assert reader.read(keys, as_of=hours(6) + SECOND)["spent"] == [None]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_reading_before_anything_was_materialised_finds_nothing(place: Place) -> None:
    registry = registry_bytes(open_store(objects(), place.folder))
    assert place.spent(registry, "a") == [None]


def test_a_closed_reader_holds_no_file(place: Place) -> None:
    def held() -> int:
        paths = [file.path for file in psutil.Process().open_files()]
        return sum(path.startswith(str(place.database)) for path in paths)

    registry = place.write(user_rows(("a", hours(1), 1.5)))
    gc.collect()  # the writer: SQLite keeps a closed file for as long as the process has it open elsewhere
    assert held() == 0
    reader = OnlineReader(registry, "service", place.url)
    reader.read({"user_id": ["a"], "shop_id": [1]})
    assert held() > 0
    reader.close()
    assert held() == 0


def test_more_keys_than_sqlite_takes_variables(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0)))
    users = [f"u{number}" for number in range(33_000)] + ["a"]
    found = place.spent(registry, *users)
    assert (found[0], found[-1], len(found)) == (None, 1.0, 33_001)


def test_readers_go_on_while_a_writer_writes(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0)))
    with sqlite3.connect(place.database, isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")  # which only a write-ahead log lets readers pass
        writer.execute("DELETE FROM test_users")
        assert place.spent(registry, "a") == [1.0]
        writer.execute("ROLLBACK")


@pytest.mark.full  # what test_online_features kills quickly is written by the same code
def test_a_materialisation_that_is_killed_leaves_readers_and_the_next_one_whole(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0)))
    user_rows(*((f"u{n}", hours(2), 2.0) for n in range(20)), ("a", hours(2), 2.0)).write_parquet(
        place.folder / "users.parquet"
    )
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_feast_online as here
        from ml_lifecycle.adapters.online_file import OnlineFile
        write = OnlineFile.write
        def dying(rows):
            for number, row in enumerate(rows):
                if number == 10:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield row
        OnlineFile.write = lambda file, table, rows: write(file, table, dying(rows))
        folder = Path({str(place.folder)!r})
        store = here.open_store(here.objects(), folder, {place.url!r})
        here.materialise(store, here.hours(0), here.hours(9))
    """
    path = os.pathsep.join(sys.path)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert place.spent(registry, "a", "u3") == [1.0, None]
    place.write(pl.read_parquet(place.folder / "users.parquet"))
    assert place.spent(registry, "a", "u3") == [2.0, 2.0]


def test_the_same_objects_make_the_same_registry(tmp_path: Path) -> None:
    exports = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        place = Place(tmp_path / name)
        exports.add(registry_bytes(place.open(user_rows(("a", hours(1), 1.0)))))
        exports.add(place.write(user_rows(("a", hours(1), 1.0))))
    assert len(exports) == 1
    assert str(tmp_path).encode() not in exports.pop()


def test_what_cannot_be_read_is_said(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0)))
    with pytest.raises(FeatureError, match=r"no feature service 'other'; it has \['service'\]"):
        OnlineReader(registry, "other", place.url)
    for url in ("sqlite:///relative.db", "/plain/path.db", "redis:host:6379"):
        with pytest.raises(FeatureError, match="four slashes"):
            OnlineReader(registry, "service", url)
    reader = OnlineReader(registry, "service", place.url)
    with pytest.raises(FeatureError, match=r"\['shop_id'\] are missing"):
        reader.read({"user_id": ["a"]})
    with pytest.raises(FeatureError, match="differ in length"):
        reader.read({"user_id": ["a"], "shop_id": [1, 2]})


def test_a_key_that_no_view_has_a_row_of_is_unknown(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0), ("b", hours(1), None)))
    reader = OnlineReader(registry, "service", place.url)
    keys = {"user_id": ["a", "b", "nobody", None, "a"], "shop_id": [1, 9, 9, 9, 9]}
    assert reader.look_up(keys).unknown == [2, 3]
    late = reader.look_up(keys, hours(1000))
    assert late.unknown == [2, 3], "what is too old is known all the same"


def test_the_age_of_what_was_read_is_that_of_each_views_oldest_row(place: Place) -> None:
    written = user_rows(("a", hours(1), 1.0), ("b", hours(3), 2.0), ("later", hours(5), 3.0))
    reader = OnlineReader(place.write(written), "service", place.url)

    def ages(users: list[object], *moments: datetime) -> dict[str, float]:
        found = reader.look_up({"user_id": users, "shop_id": [9] * len(users)}, list(moments)).ages
        return {view: seconds / 3600 for view, seconds in found.items()}

    assert ages(["b"], hours(4)) == {"users": pytest.approx(1)}
    assert ages(["a", "b", "nobody"], *[hours(4)] * 3) == {"users": pytest.approx(3)}
    assert ages(["a", "b"], hours(2), hours(20)) == {"users": pytest.approx(17)}, (
        "each row has its own moment"
    )
    assert ages(["later"], hours(4)) == {"users": 0}
    assert ages(["nobody", None], hours(4), hours(4)) == {}
    assert ages([]) == {}


def test_rows_are_given_again_for_a_while(place: Place) -> None:
    """From memory, as many as fit; a value given again is as old as it is."""
    registry = place.write(user_rows(*((user, hours(1), 1.0) for user in "abc")))
    now = 100.0
    reader = OnlineReader(registry, "service", place.url, 5.0, 2, lambda: now)

    def spent(*users: str, at: float = 2) -> list[object]:
        found, stale, *_ = reader.look_up({"user_id": users, "shop_id": [1] * len(users)}, hours(at))
        assert stale.get("spent", 0) == found["spent"].count(None)
        return found["spent"]

    assert spent("a", "b", "a") == [1.0, 1.0, 1.0]
    place.write(user_rows(*((user, hours(2), 2.0) for user in "abc")))
    now += 4.9
    assert spent("b", "a") == [1.0, 1.0]
    assert spent("a", at=7.5) == [None], "too old at that moment, read however lately"
    assert spent("c", "a") == [2.0, 1.0], "who was not asked yet is read"
    now += 0.2
    assert spent("a") == [2.0]
    place.write(user_rows(*((user, hours(3), 3.0) for user in "abc")))
    assert spent("b", at=4) == [3.0], "put out by the other two"


def test_without_a_cache_every_read_is_one(place: Place) -> None:
    registry = place.write(user_rows(("a", hours(1), 1.0)))
    reader = OnlineReader(registry, "service", place.url)
    for value in (2.0, 3.0):
        place.write(user_rows(("a", hours(value), value)))
        assert reader.read({"user_id": ["a"], "shop_id": [1]})["spent"] == [value]


def test_on_demand_features_are_made_online_and_are_as_old_as_what_they_are_made_from(place: Place) -> None:
    store = place.open(user_rows(("a", hours(1), 1.5), ("b", hours(1), None)), ["users", "shops"])
    materialise(store, hours(0), hours(1000))
    reader = OnlineReader(registry_bytes(store), "service", place.url)
    keys = {"user_id": ["a", "b", "nobody"], "shop_id": [1, 1, 1]}
    found, stale, *_ = reader.look_up(keys, hours(2))
    assert found["spent"] == [1.5, None, None]
    assert found["double"][0] == 3.0
    assert all(value is None or value != value for value in found["double"][1:])
    assert stale == {}
    found, stale, *_ = reader.look_up(keys, hours(8))
    assert found["spent"] == [None, None, None]
    assert found["double"][0] is None, "made from a value that was too old"
    assert stale["spent"] == stale["double"] == 1


def test_an_on_demand_view_without_its_source_is_refused(place: Place) -> None:
    store = place.open(user_rows(("a", hours(1), 1.5)), ["shops"])
    with pytest.raises(FeatureError, match="'double' is made from users: add features of it to the service"):
        OnlineReader(registry_bytes(store), "service", place.url)


def test_what_only_on_demand_features_are_made_from_is_kept_and_the_same_online(tmp_path: Path) -> None:
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    fields = {"seen": UnixTimestamp, "embedding": Array(Float32), "photo": Bytes, "spent": Float32}
    users = FeatureView(
        name="users",
        entities=[user],
        schema=[Field(name=name, dtype=dtype) for name, dtype in fields.items()],
        source=FileSource(name="users", path="users.parquet", timestamp_field="event_timestamp"),
    )
    module = types.ModuleType("features")
    service = FeatureService(name="service", features=[users[["spent"]]])
    vars(module).update(user=user, users=users, service=service)
    features = Features.of(module, "test", "service")
    columns = features.source_tables()["users"]
    assert columns == {
        "user_id": pl.String(),
        "seen": TIME,
        "embedding": pl.List(pl.Float32),
        "photo": pl.Binary(),
        "spent": pl.Float32(),
        "event_timestamp": TIME,
    }
    row = {
        "user_id": "a",
        "seen": hours(1) + MICROSECOND,
        "embedding": [0.1, float("nan")],
        "photo": b"x",
        "spent": 1.0,
        "event_timestamp": hours(2),
    }
    pl.DataFrame([row], schema=columns).write_parquet(tmp_path / "users.parquet")
    store = open_store(features, tmp_path, f"sqlite:///{tmp_path}/online.db")
    materialise(store, hours(0), hours(3))
    assert compare(store, features, hours(3), sample=9, seed=0) == (4, [])
