"""A training set of any length in the same memory: ours, and the way in which frames are held whole.

The example's year is asked about ten times and a hundred times, each time a minute later, and joined with
its five feature views: 3.2 and 32 million rows, with the profile of those that are trained on. The feature
tables are there, so ``tables()`` is not in the figures. A process of its own for each measurement; both ways
write the same bytes, or the benchmark fails.

    python benchmarks/training_set.py                     # about five minutes, 8 GB of disk
    python benchmarks/training_set.py --times 1 --times 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
from common import YEAR_END, YEAR_START, land_year, table
from stages import Plain

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import COMPRESSION, COMPRESSION_LEVEL, ROW_GROUP_ROWS, parquet_bytes
from ml_lifecycle.records import Interval, Snapshot, to_json
from ml_lifecycle.stages.feature_tables import FeatureTables, build_tables

OURS, WHOLE = "a slice at a time", "frames held whole"
PEAK_GOAL_MIB, GROWTH_GOAL = 2048, 1.3
WHOLE_BYTES = 17 * 2**30  # beyond this it would take the machine's other programs with it
FILES = ("train.parquet", "holdout.parquet", "registry.pb", "profile.json")


def land(root: Path, times: int) -> None:
    """The year's feature tables, and its labels so many times."""
    year = Plain(root / "year", Interval(YEAR_START, YEAR_END))
    if not year.root.exists():
        land_year(year.root / "lake")
        build_tables(year.folder, year.lake, year.call("ingest"))
    tables = build_tables(year.folder, year.lake, year.load("ingest"))
    lake = Lake(str(root / f"{times}"))
    for name, path in tables.tables.items():
        target = Path(lake.full_path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if name != "labels":
            target.symlink_to(year.lake.full_path(path))
            continue
        labels = year.lake.scan([path])
        moments = pl.col("event_timestamp", "known_at")
        copies = [labels.with_columns(moments + timedelta(minutes=number)) for number in range(times)]
        pl.concat(copies).sink_parquet(
            target,
            compression=COMPRESSION,
            compression_level=COMPRESSION_LEVEL,
            row_group_size=ROW_GROUP_ROWS,
            engine="streaming",
        )
    lake.write_json(f"{tables.path}/manifest.json", to_json(tables))


def sliced(year: Plain, lake: Lake, snapshot: Snapshot) -> tuple[str, int]:
    """Ours; returns where the files are, and how many rows they have."""
    from ml_lifecycle.stages.features import build_training_set

    made = build_training_set(year.folder, lake, snapshot)
    return made.path, made.train_rows + made.holdout_rows


def held(year: Plain, lake: Lake, snapshot: Snapshot) -> tuple[str, int]:
    """As the stage did before it was written a slice at a time; the profile was each training's to make."""
    from ml_lifecycle.adapters.feast_repo import historical_features, open_store, registry_bytes
    from ml_lifecycle.profiles.profiling import make_profile
    from ml_lifecycle.stages.feature_tables import INSTANT, features_of, local_tables
    from ml_lifecycle.stages.served_features import as_served, served_specs
    from ml_lifecycle.stages.training_rows import Spans

    spec, features = year.folder.spec, features_of(year.folder)
    labels, columns = spec.labels, features.columns()
    tables: FeatureTables = build_tables(year.folder, lake, snapshot)
    spans, as_of = Spans.of(spec, snapshot.run.as_of), snapshot.run.as_of
    known = (
        pl.read_parquet(lake.full_path(tables.tables[labels.table]))
        .select(labels.event_time, labels.known_at, labels.column, *labels.keys)
        .filter(pl.col(labels.known_at) < as_of, pl.col(labels.column).is_not_null())
        .sort(labels.event_time, *labels.keys)
    )
    training, holdout = (part.collect() for part in spans.split(known.lazy()))
    rows = pl.concat([training, holdout])
    moments = pl.col(labels.event_time).alias("event_timestamp")
    with local_tables(lake, tables) as path:
        store = open_store(features, path)
        found = historical_features(store, features.service, rows.select(*labels.keys, moments - INSTANT))
        registry = registry_bytes(store)
    joined = found.select(*columns).hstack(rows.select(labels.column, moments, *labels.keys))
    served = as_served(joined, columns)
    train = served.head(training.height)
    lake.write_bytes("whole/train.parquet", parquet_bytes(train))
    lake.write_bytes("whole/holdout.parquet", parquet_bytes(served.tail(holdout.height)))
    lake.write_bytes("whole/registry.pb", registry)
    profile = make_profile(train, served_specs(columns), spec.monitoring.segments)
    lake.write_json("whole/profile.json", to_json(profile))
    return "whole", rows.height


def answer(root: Path, times: int, contender: str) -> None:
    """In a process of its own: prints seconds, peak memory, rows and the files' digests."""
    if contender == WHOLE:
        resource.setrlimit(resource.RLIMIT_AS, (WHOLE_BYTES, WHOLE_BYTES))
    year = Plain(root / "year", Interval(YEAR_START, YEAR_END))
    snapshot, lake = year.load("ingest"), Lake(str(root / f"{times}"))
    import feast  # noqa: F401  # some seconds, which are nobody's here

    before = peak_mib()
    began = time.perf_counter()
    path, rows = (sliced if contender == OURS else held)(year, lake, snapshot)
    seconds = time.perf_counter() - began
    found = {"rows": rows, "seconds": seconds, "peak_mib": peak_mib(), "imports_mib": before}
    print(json.dumps({**found, "digests": {name: lake.digest(f"{path}/{name}") for name in FILES}}))


def peak_mib() -> float:
    """This program's own; ``getrusage`` also counts the process that it was forked from."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def in_a_process(root: Path, times: int, contender: str) -> dict[str, Any]:
    """What it printed; ``error`` if it died."""
    command = [sys.executable, __file__, "--root", str(root), "--times", str(times), "--answer", contender]
    environment = {**os.environ, "ML_LIFECYCLE_LAKE": str(root / "year" / "lake")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(root: Path, times: int, whole: bool) -> list[dict[str, Any]]:
    """Both; other bytes than the other's end it."""
    land(root, times)
    measured = []
    for contender in (OURS, WHOLE) if whole else (OURS,):
        found = in_a_process(root, times, contender)
        print(f"· {times} {contender}: {found}", file=sys.stderr, flush=True)
        measured.append({"times": times, "contender": contender, **found})
    digests = [one["digests"] for one in measured if "digests" in one]
    if "error" in measured[0] or any(one != digests[0] for one in digests):
        raise SystemExit(f"{OURS} makes something else")
    return measured


def report(measured: list[dict[str, Any]]) -> bool:
    """Print what was found, and whether the goals are met."""
    lines = [
        [one["contender"], f"{one['rows']:,}", f"{one['seconds']:.1f}", f"{one['peak_mib']:,.0f}"]
        if "error" not in one
        else [one["contender"], f"{one['times']} years", one["error"], ""]
        for one in measured
    ]
    table(["training set", "rows", "s", "peak MiB"], lines)
    peaks = [one["peak_mib"] for one in measured if one["contender"] == OURS]
    growth = peaks[-1] / peaks[0]
    print(
        f"ours: at most {max(peaks):,.0f} MiB (goal {PEAK_GOAL_MIB:,}), of the shortest's {growth:.2f} times "
        f"(goal {GROWTH_GOAL})"
    )
    return bool(max(peaks) <= PEAK_GOAL_MIB and growth <= GROWTH_GOAL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", action="append", type=int, help="years, 10 and 100 if not given")
    parser.add_argument("--whole-times", type=int, default=10, help="how many of them the other way gets")
    parser.add_argument("--results", type=Path, help="a file for the raw results")
    parser.add_argument("--root", type=Path, help="keeps what is made")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.times or [10, 100]
    if options.answer:
        answer(options.root, cases[0], options.answer)
        return 0
    with tempfile.TemporaryDirectory(prefix="training-set-") as name:
        root = options.root or Path(name)
        measured = [one for times in cases for one in compare(root, times, times <= options.whole_times)]
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(measured, indent=1) + "\n")
    return 0 if report(measured) else 1


if __name__ == "__main__":
    raise SystemExit(main())
