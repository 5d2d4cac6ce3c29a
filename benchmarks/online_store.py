"""Materialising a million keys of seven features, and reading 1, 10 and 100, beside Feast and by hand.

    python benchmarks/online_store.py [--keys N] [--stock-keys N] [--rounds 5] [--part write|read --folder F]

Materialising reads one Parquet file. Ours: `materialise` into our SQLite store, and into Redis in Feast's own
format. Feast's: `FeatureStore.materialize` into its SQLite store and Redis, once, since a million keys take
it minutes, or on the first `--stock-keys` keys; it is given our offline store, which is quicker than its own.
By hand: rows packed with `struct` and written in the keys' order in one transaction; in Redis one packed
value a key, by pipelines.

Reading: ours through the model server's Resolver, as of a moment; Feast's `get_online_features` on its SQLite
store; by hand a SELECT and `struct` on the rows that were packed by hand.

Every side is a process of its own; its peak memory holds what it imports, its seconds do not. Sides alternate
within a round. Samples of what ours and Feast's hold are read back through Feast and compared; what is read
is compared with the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import table

if TYPE_CHECKING:
    import polars as pl
    from feast import FeatureStore

START, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)
FEATURES = ("spent", "visits", "share", "age", "orders", "country", "member")
WRITERS = ("ours_sqlite", "by_hand_sqlite", "ours_redis", "by_hand_redis")
STOCK_WRITERS = ("feast_sqlite", "feast_redis")
READERS = ("ours", "feast", "by_hand")
SIZES, READS, SAMPLE = (1, 10, 100), 500, 1000
RESULTS = Path(__file__).parent / "results"
ROW = struct.Struct("<qffffq2s?")


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


def one(side: str, folder: Path, redis: str, what: str) -> dict[str, Any]:
    """A side in a process of its own, with its peak memory."""
    command = [
        sys.executable,
        __file__,
        "--side",
        f"{what}:{side}",
        "--folder",
        str(folder),
        "--redis",
        redis,
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{what} {side} failed")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {"side": side, "peak_mib": usage.ru_maxrss / 1024, **found}


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", f"{port}", "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.closing(socket.socket()) as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def prepare(folder: Path, rows: pl.DataFrame, stock_keys: int) -> None:
    """Files of all keys and of the stock sides' keys, a sample of these, and what it must be read as."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(folder / "users.parquet")
    (folder / "keys.json").write_text(json.dumps(rows["user_id"].to_list()))
    sample = rows.head(stock_keys).gather_every(max(1, stock_keys // SAMPLE)).head(SAMPLE)
    (folder / "sample.json").write_text(json.dumps(sample["user_id"].to_list()))
    (folder / "expected.json").write_text(json.dumps([sample[name].to_list() for name in FEATURES]))


def forget(folder: Path, side: str, redis: str) -> None:
    from redis import Redis

    if side.endswith("redis"):
        host, port = redis.split(":")
        Redis(host, int(port)).flushall()
    for old in folder.glob(f"{side}.db*"):
        old.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--stock-keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=["write", "read"], help="one at a time, over the same --folder")
    parser.add_argument("--side", help="what this process does: write:… or read:…")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--redis", default="")
    options = parser.parse_args()
    if options.side:
        what, side = options.side.split(":")
        work = write_side if what == "write" else read_side
        print(json.dumps(work(side, options.folder, options.redis)))
        return 0
    RESULTS.mkdir(exist_ok=True)
    held = True
    with tempfile.TemporaryDirectory(prefix="online-") as name:
        root = options.folder or Path(name)
        if options.part != "read":
            with redis_server(Path(name)) as redis:
                held &= compare_writes(root, redis, options.keys, options.stock_keys, options.rounds)
        if options.part != "write":
            held &= compare_reads(root, options.rounds)
    return 0 if held else 1


def compare_writes(root: Path, redis: str, keys: int, stock_keys: int, rounds: int) -> bool:
    ours, stock, rows = root / "ours", root / "stock", make_rows(keys)
    prepare(ours, rows, stock_keys)
    prepare(stock, rows.head(stock_keys), stock_keys)
    expected = json.loads((ours / "expected.json").read_text())
    found: list[dict[str, Any]] = []

    def write(side: str, folder: Path) -> None:
        forget(folder, side, redis)
        done = one(side, folder, redis, "write")
        assert done.pop("sample", expected) == expected, f"{side} holds something else"
        found.append({**done, "keys": stock_keys if folder == stock else keys})
        print(f"{side}: {done['seconds']:.2f} s, {done['peak_mib']:.0f} MiB", flush=True)

    for side in STOCK_WRITERS:
        write(side, stock)
    for _ in range(rounds):
        for side in WRITERS:
            write(side, ours)
    (RESULTS / "online_store-write.json").write_text(json.dumps(found, indent=1) + "\n")
    return report_writes(found)


def compare_reads(root: Path, rounds: int) -> bool:
    found = [
        one(side, root / ("stock" if side == "feast" else "ours"), "", "read")
        for _ in range(rounds)
        for side in READERS
    ]
    (RESULTS / "online_store-read.json").write_text(json.dumps(found, indent=1) + "\n")
    return report_reads(found)


def report_writes(found: list[dict[str, Any]]) -> bool:
    def median(side: str, name: str) -> float:
        return float(statistics.median(done[name] for done in found if done["side"] == side))

    keys = {done["side"]: done["keys"] for done in found}
    rate = {side: 1e6 * median(side, "seconds") / keys[side] for side in keys}
    goals = {"ours_sqlite": ("feast_sqlite", 20), "ours_redis": ("feast_redis", 10)}
    held = True
    lines: list[tuple[object, ...]] = []
    for side in sorted(keys, key=lambda side: side.split("_")[-1]):
        stock, goal = goals.get(side, ("", 0))
        times = rate[stock] / rate[side] if stock else 0
        held &= times >= goal
        cells = (f"{times:.1f} ×", f"{goal} ×") if stock else ("", "")
        peak = median(side, "peak_mib")
        lines.append((side, keys[side], f"{median(side, 'seconds'):.2f}", f"{peak:.0f}", *cells))
    table(("materialise", "keys", "s", "peak MiB", "of Feast's, a key", "goal"), lines)
    return held


def report_reads(found: list[dict[str, Any]]) -> bool:
    held = True
    lines: list[tuple[object, ...]] = []
    for size in SIZES:
        medians = {
            (side, name): statistics.median(done[f"{size}"][name] for done in found if done["side"] == side)
            for side in READERS
            for name in ("median_ms", "p99_ms")
        }
        ratio = medians["ours", "median_ms"] / medians["by_hand", "median_ms"]
        held &= ratio <= 4
        shown = [f"{medians[side, name]:.3f}" for side in READERS for name in ("median_ms", "p99_ms")]
        lines.append((size, *shown, f"{ratio:.1f}", 4))
    header = ("keys", "ours ms", "p99", "Feast's ms", "p99", "by hand ms", "p99", "ours / by hand", "limit")
    table(header, lines)
    return held


if __name__ == "__main__":
    assert shutil.which("redis-server"), "this compares with Redis too: install redis-server"
    sys.exit(main())
