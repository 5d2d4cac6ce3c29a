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
within a round. Ours are given four times as many keys too, once, for their memory. Samples of what ours and
Feast's hold are read back through Feast and compared; what is read is compared with the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import table
from online_sides import FEATURES, SIZES, make_rows, peak_mib, read_side, write_side

if TYPE_CHECKING:
    import polars as pl

WRITERS = ("ours_sqlite", "by_hand_sqlite", "ours_redis", "by_hand_redis")
STOCK_WRITERS = ("feast_sqlite", "feast_redis")
READERS = ("ours", "feast", "by_hand")
SAMPLE = 1000
MANY, FLAT = 4, 1.5  # times the keys take at most so many times the memory
RESULTS = Path(__file__).parent / "results" / "online_store"


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
    if child.wait():
        raise SystemExit(f"{what} {side} failed")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {"side": side, **found}


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
        print(json.dumps({**work(side, options.folder, options.redis), "peak_mib": peak_mib()}))
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
    ours, stock, many, rows = root / "ours", root / "stock", root / "many", make_rows(keys)
    prepare(ours, rows, stock_keys)
    prepare(stock, rows.head(stock_keys), stock_keys)
    prepare(many, make_rows(MANY * keys), stock_keys)
    found: list[dict[str, Any]] = []

    def write(side: str, folder: Path) -> None:
        forget(folder, side, redis)
        done = one(side, folder, redis, "write")
        expected = json.loads((folder / "expected.json").read_text())
        assert done.pop("sample", expected) == expected, f"{side} holds something else"
        found.append({**done, "keys": {stock: stock_keys, ours: keys, many: MANY * keys}[folder]})
        print(
            f"{side}, {found[-1]['keys']} keys: {done['seconds']:.2f} s, {done['peak_mib']:.0f} MiB",
            flush=True,
        )

    for side in STOCK_WRITERS:
        write(side, stock)
    for _ in range(rounds):
        for side in WRITERS:
            write(side, ours)
    for side in (side for side in WRITERS if side.startswith("ours")):
        write(side, many)
    (RESULTS / "write.json").write_text(json.dumps(found, indent=1) + "\n")
    return report_writes(found)


def compare_reads(root: Path, rounds: int) -> bool:
    found = [
        one(side, root / ("stock" if side == "feast" else "ours"), "", "read")
        for _ in range(rounds)
        for side in READERS
    ]
    (RESULTS / "read.json").write_text(json.dumps(found, indent=1) + "\n")
    return report_reads(found)


def report_writes(every: list[dict[str, Any]]) -> bool:
    most = max(done["keys"] for done in every)
    found = [done for done in every if done["keys"] < most]

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
    lines = []
    for done in (done for done in every if done["keys"] == most):
        times = done["peak_mib"] / median(done["side"], "peak_mib")
        held &= times <= FLAT
        shown = f"{done['seconds']:.2f}", f"{done['peak_mib']:.0f}", f"{times:.2f}"
        lines.append((done["side"], most, *shown, FLAT))
    table(("materialise", "keys", "s", "peak MiB", f"of that of a {MANY}th", "limit"), lines)
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
