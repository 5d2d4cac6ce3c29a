"""Seconds and peak memory of each stage on the whole of 2013, each in a fresh process.

    python benchmarks/stages_memory.py [FOLDER]

The processes import what they need themselves, so the seconds hold the imports. Training runs as its pod
does. FOLDER keeps the state (a temporary folder is removed).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 2 * 2**30
HERE = Path(__file__).parent
# ``write_log`` makes the monitor's input and is not measured.
BEFORE, AFTER = (
    ("ingest", "validate", "features"),
    ("train", "evaluate", "register", "score", "write_log", "monitor"),
)


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, peak bytes of the process and its output; this process stays small, or it would count."""
    began = time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}:\n{output[-3000:]}")
    return time.monotonic() - began, usage.ru_maxrss * 1024, output


def measure(root: Path) -> dict[str, tuple[float, float]]:
    """Stage → seconds and peak bytes."""
    python, environment = sys.executable, {**os.environ, "ML_LIFECYCLE_LAKE": str(root / "lake")}
    found: dict[str, tuple[float, float]] = {}

    def stage(name: str) -> None:
        seconds, peak, _ = run([python, str(HERE / "stages.py"), str(root), name], environment)
        found[name] = seconds, peak
        print(f"{name}: {seconds:.1f} s, {peak / 2**20:.0f} MiB", file=sys.stderr, flush=True)

    run(
        [
            python,
            "-c",
            f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; "
            f"from common import land_year; land_year(Path({str(root / 'lake')!r}))",
        ],
        environment,
    )
    for name in BEFORE:
        stage(name)
    stage("plan")
    environment |= json.loads((root / "pod.json").read_text())
    seconds, peak, _ = run([python, "-m", "ml_lifecycle.training.pod"], environment)
    found["train (the pod)"] = seconds, peak
    for name in AFTER:
        stage(name)
    return found


def check(root: Path, found: dict[str, tuple[float, float]]) -> None:
    """The stages did the whole year: their records say so."""
    rows = {
        name: table["files"]
        for name, table in json.loads((root / "ingest.json").read_text())["tables"].items()
    }
    flights = sum(file["rows"] for file in rows["flights"])
    scored = json.loads((root / "score.json").read_text())["rows"]
    monitored = json.loads((root / "monitor.json").read_text())["predictions"]
    assert flights > 330_000, flights
    assert scored == monitored > 330_000, (scored, monitored)
    print(f"{flights:,} flights ingested, {scored:,} scored, {monitored:,} monitored")


def main() -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    with tempfile.TemporaryDirectory(prefix="stages-") as temporary:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        root.mkdir(parents=True, exist_ok=True)
        found = measure(root)
        check(root, found)
    print("\n| stage, full year 2013 | seconds | peak MiB | limit MiB |\n|---|---|---|---|")
    for name, (seconds, peak) in found.items():
        if name not in {"plan", "write_log"}:
            shown = {"train": "train (the operator: log to MLflow)"}.get(name, name)
            print(f"| {shown} | {seconds:.1f} | {peak / 2**20:.0f} | {LIMIT / 2**20:.0f} |")
    return int(any(peak > LIMIT for name, (_, peak) in found.items() if name != "write_log"))


if __name__ == "__main__":
    sys.exit(main())
