"""The sides of ``online_store.py``: how each writes and reads; imported in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from feast import FeatureStore

START, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)
FEATURES = ("spent", "visits", "share", "age", "orders", "country", "member")
SIZES, READS = (1, 10, 100), 500
ROW = struct.Struct("<qffffq2s?")


def peak_mib() -> float:
    """This process's own; what a parent asks of it may be the parent's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def make_rows(keys: int) -> pl.DataFrame:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(7)
    numbers = {name: rng.normal(0, 10, keys).astype(np.float32) for name in FEATURES[:4]}
    events = pl.Series(rng.integers(0, 86_400, keys)).cast(pl.Int64) * 1_000_000
    return pl.DataFrame(
        {
            "user_id": [f"user-{number:08d}" for number in rng.permutation(keys)],
            **numbers,
            "orders": rng.integers(0, 5_000, keys),
            "country": pl.Series(["GB", "US", "DE", "FR", "JP"]).gather(rng.integers(0, 5, keys)),
            "member": rng.random(keys) < 0.3,
            "event_timestamp": (events + int(START.timestamp()) * 1_000_000).cast(pl.Datetime("us", "UTC")),
        }
    )


def open_repository(folder: Path, online: dict[str, Any]) -> FeatureStore:
    import feast
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Bool, Float32, Int64, String

    config = feast.RepoConfig(
        project="bench",
        provider="local",
        repo_path=folder,
        registry=str(folder / f"{online['type']}.pb"),
        offline_store={"type": "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"},
        online_store=online,
        entity_key_serialization_version=3,
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    types = (*(Float32,) * 4, Int64, String, Bool)
    users = FeatureView(
        name="users",
        entities=[user],
        ttl=7 * DAY,
        schema=[Field(name=name, dtype=dtype) for name, dtype in zip(FEATURES, types, strict=True)],
        source=FileSource(name="users", path="users.parquet", timestamp_field="event_timestamp"),
    )
    store = feast.FeatureStore(config=config)
    store.apply([user, users, FeatureService(name="users", features=[users])])
    return store


def online_store(side: str, folder: Path, redis: str) -> dict[str, Any]:
    name, where = side.rsplit("_", 1)
    if where == "redis":
        database = {"ours": 0, "feast": 1, "by_hand": 2}[name]
        return {"type": "redis", "connection_string": f"{redis},db={database}"}
    kind = "ml_lifecycle.adapters.feast_online.PackedSqliteOnlineStore" if name == "ours" else "sqlite"
    return {"type": kind, "path": str(folder / f"{side}.db")}


def write_side(side: str, folder: Path, redis: str) -> dict[str, Any]:
    """Materialise; returns the seconds and what was read back of a sample."""
    if side.startswith("by_hand"):
        from redis import Redis

        host, port = redis.split(":")
        began = time.perf_counter()
        if side == "by_hand_sqlite":
            write_by_hand(folder)
        else:
            with contextlib.closing(Redis(host, int(port), db=2)) as client:
                pipe_by_hand(folder, client)
        return {"seconds": time.perf_counter() - began}
    from ml_lifecycle.adapters.feast_bulk import materialise

    store = open_repository(folder, online_store(side, folder, redis))
    began = time.perf_counter()
    if side.startswith("ours"):
        materialise(store, START, START + DAY)
    else:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            store.materialize(start_date=START, end_date=START + DAY)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "sample": read_back(store, folder)}


def read_back(store: FeatureStore, folder: Path) -> list[list[object]]:
    keys = json.loads((folder / "sample.json").read_text())
    found = store.get_online_features(
        features=store.get_feature_service("users"), entity_rows={"user_id": keys}
    ).to_dict()
    return [found[name] for name in FEATURES]


def packed(folder: Path) -> Iterator[tuple[bytes, bytes]]:
    import polars as pl

    rows = pl.read_parquet(folder / "users.parquet").sort("user_id")
    events = rows["event_timestamp"].to_physical().to_list()
    columns = [rows[name].to_list() for name in FEATURES]
    columns[5] = [country.encode() for country in columns[5]]
    pack = ROW.pack
    values = (pack(*row) for row in zip(events, *columns, strict=True))
    return zip((key.encode() for key in rows["user_id"].to_list()), values, strict=True)


def write_by_hand(folder: Path) -> None:
    for old in folder.glob("by_hand_sqlite.db*"):
        old.unlink()
    with contextlib.closing(sqlite3.connect(folder / "by_hand_sqlite.db")) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE users (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
        connection.executemany("INSERT INTO users VALUES (?, ?)", packed(folder))


def pipe_by_hand(folder: Path, client: Any) -> None:
    pipe = client.pipeline(transaction=False)
    for number, (key, row) in enumerate(packed(folder), 1):
        pipe.set(key, row)
        if number % 10_000 == 0:
            pipe.execute()
    pipe.execute()


def reader(side: str, folder: Path, redis: str) -> Callable[[list[str]], Any]:
    """Reads rows by keys."""
    if side == "by_hand":
        connection = sqlite3.connect(folder / "by_hand_sqlite.db")

        def by_hand(keys: list[str]) -> list[tuple[Any, ...]]:
            query = f"SELECT key, row FROM users WHERE key IN ({','.join('?' * len(keys))})"
            return [ROW.unpack(row) for _, row in connection.execute(query, [key.encode() for key in keys])]

        return by_hand
    if side == "feast":
        store = open_repository(folder, online_store("feast_sqlite", folder, redis))
        service = store.get_feature_service("users")
        return lambda keys: store.get_online_features(
            features=service, entity_rows={"user_id": keys}
        ).to_dict()
    return through_resolver(folder, redis)


def through_resolver(folder: Path, redis: str) -> Callable[[list[str]], Any]:
    from ml_lifecycle.adapters.feast_repo import registry_bytes
    from ml_lifecycle.adapters.lake import Lake, sha256
    from ml_lifecycle.delivery.route import Variant
    from ml_lifecycle.records import ColumnSpec
    from ml_lifecycle.serving.resolver import Resolver, feast_reader

    store = open_repository(folder, online_store("ours_sqlite", folder, redis))
    registry, lake = registry_bytes(store), Lake(str(folder / "lake"))
    lake.write_bytes("registry.pb", registry)
    types = dict.fromkeys(FEATURES, "float") | {"orders": "int", "country": "string", "member": "bool"}
    variant = Variant(
        "champion",
        "1",
        "none",
        "0" * 64,
        task="binary",
        classes=("0", "1"),
        columns=tuple(ColumnSpec(name, kind) for name, kind in types.items()),  # type: ignore[arg-type]
        registry_path="registry.pb",
        registry_digest=sha256(registry),
        feature_service="users",
        entity_keys=("user_id",),
    )
    resolver = Resolver(variant, lake, f"sqlite:///{folder}/ours_sqlite.db", feast_reader)
    moment = START + DAY

    def resolve(keys: list[str]) -> dict[str, Sequence[Any]]:
        found = resolver.resolve({"user_id": keys}, [moment] * len(keys))
        return dict(zip(FEATURES, found.values, strict=True))

    return resolve


def read_side(side: str, folder: Path, redis: str) -> dict[str, Any]:
    """Times of reads by size, after each side has answered the sample as the file has it."""
    known = json.loads((folder / "sample.json").read_text())
    every = json.loads((folder / "keys.json").read_text())
    read = reader(side, folder, redis)
    sample = read(known[:100])
    if side != "by_hand":
        expected = json.loads((folder / "expected.json").read_text())
        got = [list(sample[name]) for name in FEATURES]
        assert got == [column[:100] for column in expected], f"{side} answers otherwise"
    else:
        assert len(sample) == 100
    draw, found = random.Random(11), {}
    for size in SIZES:
        asked = [draw.sample(every, size) for _ in range(READS)]
        for keys in asked[:20]:
            read(keys)
        spent = []
        for keys in asked:
            began = time.perf_counter()
            read(keys)
            spent.append(1000 * (time.perf_counter() - began))
        spent.sort()
        found[f"{size}"] = {"median_ms": statistics.median(spent), "p99_ms": spent[int(READS * 0.99)]}
    return found
