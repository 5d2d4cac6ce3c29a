"""Bulk writing into every kind of store: the newest stays, and Feast reads what was written."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from waiting import wait_until

from ml_lifecycle.adapters.feast_bulk import bulk_writer, materialise, newest_rows, rows_of
from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import registry_bytes, repo_config, without_password
from ml_lifecycle.errors import FeatureError

START = datetime(2024, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)  # Feast's SQLite store keeps no less
TIME = pl.Datetime("us", "UTC")
COLUMNS: dict[str, tuple[Any, pl.DataType, list[Any]]] = {
    "a": (Int32, pl.Int32(), [-1, 0, None]),
    "b": (Int64, pl.Int64(), [2**40, -(2**63), None]),
    "c": (Float32, pl.Float32(), [1.5, math.nan, None]),
    "d": (Float64, pl.Float64(), [0.1, -0.0, None]),
    "e": (Bool, pl.Boolean(), [True, False, None]),
    "f": (String, pl.String(), ["é" * 200, "", None]),
    "g": (Bytes, pl.Binary(), [b"\xff\0", b"", None]),
    "h": (UnixTimestamp, TIME, [START, START - timedelta(days=30_000), None]),
    "i": (Array(Float32), pl.List(pl.Float32), [[1.5, math.inf], [], None]),
    "j": (Array(String), pl.List(pl.String), [["a", ""], [], None]),
}
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
SOURCE = FileSource(
    name="rows",
    path="rows.parquet",
    timestamp_field="event_timestamp",
    created_timestamp_column="created",
    field_mapping={"first": "a"},
)
VIEW = FeatureView(
    name="view",
    entities=[USER, SHOP],
    ttl=timedelta(days=1),
    schema=[Field(name=name, dtype=dtype) for name, (dtype, _, _) in COLUMNS.items()],
    source=SOURCE,
)
ALL = FeatureView(name="all", entities=[], schema=[Field(name="b", dtype=Int64)], source=SOURCE)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of the tests' own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", f"{port}", "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with closing(socket.socket()) as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(params=["packed", "redis", "guarded"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """A repository with each kind of store; Feast's own SQLite store stands for those that we do not know."""
    if request.param == "redis":
        config = repo_config(f"p{tmp_path.name}", tmp_path, f"{request.getfixturevalue('redis')}/1")
    elif request.param == "packed":
        config = repo_config("test", tmp_path, f"sqlite:///{tmp_path}/online.db")
    else:
        config = RepoConfig(
            project="test",
            provider="local",
            repo_path=tmp_path,
            registry=str(tmp_path / "registry.pb"),
            offline_store={"type": "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"},
            online_store={"type": "sqlite", "path": str(tmp_path / "feast.db")},
            entity_key_serialization_version=3,
        )
    store = FeatureStore(config=config)
    store.apply([USER, SHOP, VIEW, ALL, FeatureService(name="service", features=[VIEW])])
    return store


def rows(*events: datetime, created: datetime | None = None, first: int = 0) -> pl.DataFrame:
    """A row each, the n-th with the n-th of each column's values."""
    columns = {name: [values[n % 3] for n in range(len(events))] for name, (_, _, values) in COLUMNS.items()}
    schema = {name: dtype for name, (_, dtype, _) in COLUMNS.items()}
    return pl.DataFrame(columns, schema=schema).with_columns(
        user_id=pl.int_range(first, first + len(events)),
        shop=pl.lit("é"),
        event_timestamp=pl.Series(events, dtype=TIME),
        created=pl.lit(created).cast(TIME),
    )


def table(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({"a": "first"})


def read(store: FeatureStore, *users: int) -> list[tuple[datetime | None, dict[str, Value] | None]]:
    """By the store's own reading of Feast's messages."""
    keys = [
        EntityKey(join_keys=["user_id", "shop"], entity_values=[Value(int64_val=user), Value(string_val="é")])
        for user in users
    ]
    online = get_online_store_from_config(store.config.online_store)
    found = online.online_read(store.config, store.get_feature_view("view"), keys, [*COLUMNS])
    return [(event and event.replace(tzinfo=UTC), values) for event, values in found]


def write(store: FeatureStore, frame: pl.DataFrame) -> None:
    view = store.get_feature_view("view")
    with closing(bulk_writer(store.config)) as writer:
        writer.write(view, newest_rows(view, rows_of(view, table(frame).lazy())))


def test_feast_reads_every_type_that_was_written(store: FeatureStore) -> None:
    write(store, rows(START, START - timedelta(days=40_000), START + SECOND))
    (one, full), (two, edge), (three, nothing), (_, missing) = read(store, 0, 1, 2, 3)
    assert [one, two, three] == [
        START,
        START - timedelta(days=40_000),
        START + SECOND,
    ]
    assert not any(value.WhichOneof("val") for value in (missing or {}).values())
    assert full is not None
    assert edge is not None
    assert nothing is not None
    texts = {name: value.WhichOneof("val") for name, value in full.items()}
    assert texts == {
        "a": "int32_val", "b": "int64_val", "c": "float_val", "d": "double_val", "e": "bool_val",
        "f": "string_val", "g": "bytes_val", "h": "unix_timestamp_val", "i": "float_list_val",
        "j": "string_list_val",
    }  # fmt: skip
    assert full["f"].string_val == "é" * 200
    assert full["i"].float_list_val.val == [1.5, math.inf]
    assert full["h"].unix_timestamp_val == int(START.timestamp())
    assert edge["b"].int64_val == -(2**63)
    assert math.isnan(edge["c"].float_val)
    assert edge["f"] == Value(string_val="")
    assert edge["h"].unix_timestamp_val == int((START - timedelta(days=30_000)).timestamp())
    assert {value.WhichOneof("val") for value in nothing.values()} == {None}


def test_a_url_says_all_that_feast_needs(tmp_path: Path) -> None:
    url = "rediss://me:a%2Cb%3D1@host:7000/3"
    config = repo_config("test", tmp_path, url)
    nodes, options = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
    assert nodes == [{"host": "host", "port": "7000"}]
    assert options == {"db": 3, "ssl": True, "username": "me", "password": "a,b=1"}
    assert without_password(url) == "rediss://host:7000/3"


@pytest.mark.parametrize("store", ["packed", "redis"], indirect=True)
def test_a_server_reads_what_was_written(store: FeatureStore) -> None:
    write(store, rows(START, START, START))
    online = store.config.online_store
    url = f"redis://{online.connection_string.split(',')[0]}/1" if online.type == "redis" else None
    reader = OnlineReader(registry_bytes(store), "service", url or f"sqlite:///{online.path}")
    asked = {"user_id": [2, 0, 9], "shop": ["é", "é", "é"]}
    found, stale, unknown, ages = reader.look_up(asked, START + timedelta(hours=1))
    assert unknown == [2], "the first is there, without values"
    assert ages == {"view": pytest.approx(3600)}
    assert found["a"] == [None, -1, None]
    assert found["f"] == [None, "é" * 200, None]
    assert found["j"] == [None, ["a", ""], None]
    assert stale == {}
    late, stale, *_ = reader.look_up(asked, START + timedelta(days=2))
    assert late["a"] == [None, None, None]
    assert stale["a"] == 1
    reader.close()


def test_the_newest_stays_in_every_store(store: FeatureStore) -> None:
    write(store, rows(START, START))
    write(store, rows(START - timedelta(days=40_000), START + SECOND).reverse())
    (one, values), (two, newer) = read(store, 0, 1)
    assert (one, two) == (START, START + SECOND)
    assert values is not None
    assert newer is not None
    assert values["a"] == Value(int32_val=-1)
    # What is written in one go may have several rows of a key.
    write(store, pl.concat([rows(START + 3 * SECOND), rows(START + 2 * SECOND)]))
    assert read(store, 0)[0][0] == START + 3 * SECOND


def test_of_one_event_the_newer_creation_stays(store: FeatureStore) -> None:
    def number() -> Value | None:
        (_, values), *_ = read(store, 0)
        return values and values["b"]

    frame = rows(START, created=START)
    write(store, frame)
    write(store, frame.with_columns(b=pl.lit(2), created=pl.col("created") + SECOND))
    assert number() == Value(int64_val=2)
    write(store, frame)
    if store.config.online_store.type != "sqlite":  # which keeps no creation that can be read
        assert number() == Value(int64_val=2)
    write(store, frame.with_columns(b=pl.lit(3), created=pl.col("created") + 2 * SECOND))
    assert number() == Value(int64_val=3)


@pytest.mark.parametrize("store", ["packed", "redis"], indirect=True)
def test_writers_at_once_leave_the_newest(store: FeatureStore) -> None:
    frames = [rows(*[START + n * SECOND] * 500) for n in range(6)]
    writers = [threading.Thread(target=write, args=(store, frame)) for frame in frames]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {event for event, _ in read(store, *range(500))} == {START + 5 * SECOND}


def test_windows_are_materialised_whatever_their_order(store: FeatureStore) -> None:
    days = [START + timedelta(days=n) for n in range(3)]
    frame = pl.concat([rows(day, created=day).with_columns(b=pl.lit(n)) for n, day in enumerate(days)])
    table(frame).write_parquet(store.config.repo_path / "rows.parquet")
    for n in (1, 2, 0):
        written = materialise(store, days[n], days[n] + timedelta(hours=23))
        assert written == {"view": 1, "all": 1}
    assert read(store, 0)[0][0] == days[2]
    online = store.get_online_features(features=["all:b"], entity_rows=[{"any": 1}]).to_dict()
    assert online["b"] == [2]


def test_future_and_reversed_windows_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(config=repo_config("test", tmp_path, f"sqlite:///{tmp_path}/online.db"))
    now = START.timestamp()
    with pytest.raises(FeatureError, match="reversed: from 2024-01-01 00:00:00"):
        materialise(store, START, START - SECOND, lambda: now)
    with pytest.raises(FeatureError, match="ends in the future: 2024-01-01 00:02:00"):
        materialise(store, START, START + timedelta(minutes=2), lambda: now)
    assert materialise(store, START, START, lambda: now) == {}
