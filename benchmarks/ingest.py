"""Ingesting the example's year: the first time, again unchanged, and after one more day.

    python benchmarks/ingest.py [--rounds 5]

All but the last day's raw files, 335,000 flights with arrivals, weather and planes as CSV, become a
snapshot in a fresh lake. Then the same run is repeated, as a retry or a clear does; then a run of a later
moment finds the same files; then one more day of flights has come. Median seconds of each, and its share of
the first; what is unchanged must give the same tables. The hand-written limit reads the same files with
Polars, once, and writes them as Parquet: no types checked, no partitions, no digests.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from common import MODEL, YEAR_END, YEAR_START, land_year, table

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.flights import land
from ml_lifecycle.records import Interval, Run, Snapshot
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.ingest import ingest

T = TypeVar("T")
GOAL = 0.1
DAY = timedelta(days=1)
LAST = YEAR_END - DAY
UNCHANGED = "the same run again"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        seconds[name].append(time.perf_counter() - began)
        return result

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
            _round(Path(folder), timed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians["the first time"]
    rows = [(name, f"{value:.2f}", f"{value / first:.1%}") for name, value in medians.items()]
    table(("ingest of a year", "seconds", "of the first"), rows)
    share = medians[UNCHANGED] / first
    print(f"unchanged: {share:.1%} of the first; goal {GOAL:.0%}: {'met' if share <= GOAL else 'MISSED'}")
    return share > GOAL


def _round(folder: Path, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    lake, spec = Lake(str(folder)), load_folder(MODEL)
    land_year(folder, LAST)

    def run(end: datetime) -> Snapshot:
        made = Run(spec.spec.name, f"run_{end:%d}", end, Interval(YEAR_START, end))
        return ingest(spec.spec, lake, made, contracts=spec.contracts)

    timed("reading CSV and writing Parquet by hand", lambda: _by_hand(folder))
    first = timed("the first time", lambda: run(LAST))
    again = timed(UNCHANGED, lambda: run(LAST))
    later = timed("a later moment, the same files", lambda: run(LAST + DAY / 2))
    land(folder / "landing", LAST, YEAR_END)
    more = timed("one more day has come", lambda: run(YEAR_END))
    if again != first or later.tables["flights"] != first.tables["flights"]:
        raise SystemExit("unchanged files gave another snapshot")
    if more.tables["arrivals"].rows <= first.tables["arrivals"].rows:
        raise SystemExit("the last day's arrivals are missing")


def _by_hand(folder: Path) -> None:
    for path in (folder / "landing").rglob("*.csv"):
        pl.read_csv(path, infer_schema=False).write_parquet(folder / f"{path.stem}.by-hand")


if __name__ == "__main__":
    sys.exit(main())
