"""What open approvals cost: CPU and memory of the stack with none and with many people asked.

    python benchmarks/pending_approvals.py [APPROVALS] [SECONDS]

Starts the stack on a fresh state, trains the tests' small model once, measures for SECONDS (60 by default),
asks for APPROVALS (500 by default) by as many runs that do nothing else, and measures again. Each request is
a real one: evidence in the lake, a row in the lifecycle database, a task that waits for its person. A run of
the monitor is timed before and after: it must not queue behind them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from common import REPOSITORY, table
from idle_memory import members, pss, role

sys.path.insert(0, str(REPOSITORY / "tests" / "domain"))
sys.path.insert(0, str(REPOSITORY / "tests" / "integration"))
from pending_kit import Candidates, write_asking_dag
from scheduling_kit import Operator
from small_model import DAY, START, land, write_model
from stack_kit import running_stack
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle_airflow.stack.config import Stack

LIMIT_CPU, LIMIT_MIB, LIMIT_SECONDS = 30.0, 256.0, 30.0
"""What all of them together may add: CPU seconds a minute, MiB, and seconds to a run of another DAG.

The scheduler looks at every open run in turn, at 4 ms of CPU each. So 500 runs that wait cost either CPU or
the time until it is another run's turn: ``max_dagruns_per_loop_to_schedule`` says which. Half a core is the
limit.
"""
PATIENCE = 3600
END = START + 10 * DAY


def measure(stack: Stack, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds a minute and PSS in MiB, by program."""

    def cpu() -> dict[int, tuple[str, float]]:
        found = {}
        for pid in members(stack):
            try:
                process = psutil.Process(pid)
                found[pid] = role(process), sum(process.cpu_times())
            except psutil.Error:
                continue  # it ended meanwhile
        return found

    before = cpu()
    time.sleep(seconds)
    rate: dict[str, float] = defaultdict(float)
    memory: dict[str, float] = defaultdict(float)
    for pid, (name, used) in cpu().items():
        # The children that a process has waited for are in its own times.
        rate[name] += (used - before.get(pid, (name, 0.0))[1]) * 60 / seconds
        memory[name] += pss(psutil.Process(pid)) / 2**20
    return rate, memory


def monitored(user: AirflowUser, run_id: str) -> float:
    """Seconds that one run of the monitor takes, from the request to its end."""
    window = {"start": END.isoformat(), "end": (END + DAY).isoformat()}
    began = time.monotonic()
    user.trigger("small__monitor", run_id, {"as_of": window["end"], "interval": window})
    user.wait("small__monitor", run_id, lambda text: None, timeout=PATIENCE)
    return time.monotonic() - began


def main() -> int:
    """Measure, print, and say by the exit code whether the limits hold."""
    approvals = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60
    with tempfile.TemporaryDirectory(prefix="pending-") as temporary:
        dags = Path(temporary, "dags")
        small = write_model(dags)
        write_asking_dag(dags)
        with running_stack(Path(temporary, "stack"), dags) as stack:
            lake = Lake(str(stack.lake))
            user = Operator(stack.airflow_url, "admin", stack.password("admin"))
            candidates = Candidates(stack, small, Path(temporary, "copies"))
            land(lake, days=11)
            user.wait_for_dags({"small__train", "small__monitor", "asks"}, PATIENCE)
            user.trigger("small__train", "first", {"as_of": END.isoformat()})
            user.wait("small__train", "first", print, timeout=PATIENCE)
            monitored(user, "warm-up")
            alone, none = monitored(user, "alone"), measure(stack, seconds)
            began = time.monotonic()
            for number in range(approvals):
                user.trigger("asks", f"{number:04d}", candidates.make(f"pending_{number:04d}"))
            wait_until(lambda: user.waiting("asks") == approvals, "all are asked", PATIENCE)
            asking = time.monotonic() - began
            many, beside = measure(stack, seconds), monitored(user, "beside")
    columns = [none[0], many[0], none[1], many[1]]
    totals = [sum(column.values()) for column in columns]
    rows = [(name, *(f"{column.get(name, 0):.1f}" for column in columns)) for name in sorted(many[1])]
    rows.append(("all", *(f"{total:.1f}" for total in totals)))
    asked = f"{approvals} open"
    table(("program", "CPU s a minute, none open", asked, "PSS MiB, none open", asked), rows)
    more_cpu, more_memory = totals[1] - totals[0], totals[3] - totals[2]
    print(
        f"more: {more_cpu:.1f} CPU s a minute (limit {LIMIT_CPU}), {more_memory:.0f} MiB (limit {LIMIT_MIB})"
    )
    print(
        f"asking took {asking:.0f} s; a run of the monitor {alone:.1f} s alone, {beside:.1f} s beside them "
        f"(limit {LIMIT_SECONDS:.0f} s more)"
    )
    return int(more_cpu > LIMIT_CPU or more_memory > LIMIT_MIB or beside - alone > LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
