"""A day of a busy server's prediction log, as the parts that it wrote and compacted.

    python benchmarks/prediction_log.py [--parts N] [--part-rows N] [--folder FOLDER] [--results FILE]

Writes a part a second, as the server does, and runs in a process of its own each:

- the public `monitor()` on the parts, the first time it sees them;
- the public `compact()`;
- `monitor()` on what came of it, with nothing that was found before;
- the same once the parts are deleted;
- Polars alone, reading one column of all parts and of all compacted files: what opening files costs at least.

All three reports must say the same in every bit. With `--folder` the log is kept there, and used again if it
is there already and nobody has compacted it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import monitor
from common import table, timed

NOW = monitor.NEXT + timedelta(hours=2)


def compacted(folder: Path, later: timedelta = timedelta()) -> dict[str, Any]:
    """One run of the public stage."""

    def work() -> dict[str, Any]:
        from dataclasses import asdict

        from ml_lifecycle.adapters.lake import Lake
        from ml_lifecycle.stages.compact import compact

        return asdict(compact(Lake(str(folder / "production")), "late", NOW + later))

    return timed(work)


def anew(folder: Path) -> dict[str, Any]:
    """The monitor, with nothing that it found before."""
    shutil.rmtree(folder / "lake/monitoring", ignore_errors=True)
    return monitor.whole(folder)


def scanned(folder: Path, below: str) -> dict[str, Any]:
    """A column of every file, by Polars."""

    def work() -> float:
        import polars as pl

        paths = [path for path in sorted((folder / below).rglob("*.parquet")) if "-parts-" not in path.name]
        return float(pl.scan_parquet(paths, glob=False).select(pl.col("latency_ms").mean()).collect().item())

    return timed(work)


WORK: dict[str, Callable[[Path], dict[str, Any]]] = {
    "monitor, of the parts": anew,
    "Polars, of the parts": lambda folder: scanned(folder, "production/predictions"),
    "compact": compacted,
    "monitor, compacted": anew,
    "Polars, compacted": lambda folder: scanned(folder, "production/predictions_compacted"),
    "delete the parts, two days later": lambda folder: compacted(folder, timedelta(days=2)),
    "monitor, parts deleted": anew,
}


def apart(kind: str, folder: Path) -> dict[str, Any]:
    """The work in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, str(folder)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"· {kind}: {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.parquet"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", type=int, default=86_400)
    parser.add_argument("--part-rows", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--write-only", action="store_true", help="into --folder")
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(WORK[asked.child[0]](Path(asked.child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = asked.folder or Path(name)
        if not (folder / "lake").exists():
            folder.mkdir(exist_ok=True)
            monitor.make(folder, asked.parts * asked.part_rows, asked.part_rows)
        if asked.write_only:
            return 0
        sizes = [bytes_below(folder / "production/predictions")]
        runs = {kind: apart(kind, folder) for kind in WORK}
        sizes.append(bytes_below(folder / "production/predictions_compacted"))
    answers = {kind: one.pop("answer") for kind, one in runs.items()}
    first, *others = (answer for kind, answer in answers.items() if kind.startswith("monitor"))
    assert all(other == first for other in others)
    assert first["predictions"] == asked.parts * asked.part_rows
    files = answers["compact"]["files"]
    told = {"parts": asked.parts, "part_rows": asked.part_rows, "files": files, "bytes": sizes}
    print(json.dumps(told))
    table(
        ("run", "s", "peak MiB"),
        [(kind, f"{one['seconds']:.1f}", f"{one['peak_mib']:.0f}") for kind, one in runs.items()],
    )
    if asked.results:
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        asked.results.write_text(json.dumps({**told, **runs}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
