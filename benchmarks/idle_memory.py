"""Memory of the whole stack at rest: PSS, which counts a page that n processes share as 1/n in each.

    python benchmarks/idle_memory.py [SECONDS]

Starts the stack on a fresh state, waits until it has parsed the DAGs and its CPU use has settled (SECONDS
quiet ones, 10 by default), and adds up ``/proc/*/smaps_rollup`` of everything that carries its mark.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from common import running_stack, table

if TYPE_CHECKING:
    from ml_lifecycle_airflow.stack.config import Stack

LIMIT = 1.8 * 2**30
QUIET = 0.35  # CPU seconds a second: the scheduler's loop, heartbeats and reparsing never stop
ROLES = (
    ("mlflow", "mlflow"),
    ("localpods", "localpods"),
    ("ml_lifecycle.serving", "model server"),
    ("supervisord", "supervisord"),
    ("api-server", "api-server"),
    ("api_server", "api-server"),
    ("dag-processor", "dag-processor"),
    ("dag processor", "dag-processor"),
    ("triggerer", "triggerer"),
    ("scheduler", "scheduler"),
    ("LocalExecutor", "scheduler"),
)


def role(process: psutil.Process) -> str:
    """Which of the stack's programs a process belongs to, by its own command line or an ancestor's."""
    for one in (process, *process.parents()):
        line = " ".join(one.cmdline())
        for word, name in ROLES:
            if word in line and "idle_memory" not in line:
                return name
    return "other"


def members(stack: Stack) -> list[int]:
    """By the stack's mark, and the supervisor's descendants: whoever sets its title may hide the mark."""
    from ml_lifecycle_airflow.stack import supervise

    supervisor = psutil.Process(int((stack.root / "supervisord.pid").read_text()))
    below = {process.pid for process in supervisor.children(recursive=True)}
    return sorted({supervisor.pid, *below, *supervise.processes(stack)})


def pss(process: psutil.Process) -> int:
    """Bytes, each shared page divided by its sharers."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def settled(pids: list[int], seconds: float) -> float:
    """Wait until all of them together were quiet for ``seconds``; returns their last CPU use a second."""

    def cpu() -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids if psutil.pid_exists(pid))

    deadline = time.monotonic() + 180
    while True:
        before = cpu()
        time.sleep(seconds)
        rate = (cpu() - before) / seconds
        if rate < QUIET or time.monotonic() > deadline:
            return rate


def main() -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    with (
        tempfile.TemporaryDirectory(prefix="idle-") as temporary,
        running_stack(Path(temporary)) as (stack, _),
    ):
        rate = settled(members(stack), seconds)
        found: dict[str, list[int]] = defaultdict(list)
        for pid in members(stack):
            try:
                process = psutil.Process(pid)
                found[role(process)].append(pss(process))
            except (psutil.Error, OSError):
                continue  # it ended meanwhile
    total = sum(sum(sizes) for sizes in found.values())
    rows = [
        (name, len(sizes), f"{sum(sizes) / 2**20:.0f}", "")
        for name, sizes in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    count = sum(len(sizes) for sizes in found.values())
    rows.append(("all", count, f"{total / 2**20:.0f}", f"{LIMIT / 2**20:.0f}"))
    print(f"CPU at rest: {rate:.2f} cores")
    table(("program", "processes", "PSS MiB", "limit"), rows)
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
