"""What the benchmarks share: medians, tables, and the example's year."""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_lifecycle.demo.world import Access
    from ml_lifecycle_airflow.stack.config import Stack

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "dags" / "models" / "flight_delay"
# The whole year: every flight has landed, and the training's holdout is the two weeks before Christmas.
YEAR_START = datetime(2013, 1, 1, tzinfo=UTC)
YEAR_END = datetime(2014, 1, 1, 8, tzinfo=UTC)


def cpu_ms(work: Callable[[], object], runs: int, warm_up: int = 2) -> float:
    """Median CPU milliseconds of a call, the garbage of the one before not counted."""
    for _ in range(warm_up):
        work()
    spent = []
    for _ in range(runs):
        gc.collect()
        began = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - began))
    return statistics.median(spent)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table, as ``README.md`` keeps it."""
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def land_year(lake: Path, end: datetime = YEAR_END) -> None:
    """Write the example's raw files up to ``end``."""
    from ml_lifecycle.demo.flights import land

    land(lake / "landing", YEAR_START - timedelta(days=1), end, every=timedelta(days=30))


@contextmanager
def running_stack(root: Path) -> Iterator[tuple[Stack, Access]]:
    """The whole stack on a fresh ``root``; its ports are those of ``make up`` (``ML_LIFECYCLE_PORT_*``)."""
    from ml_lifecycle.demo.world import Access
    from ml_lifecycle_airflow.stack import supervise
    from ml_lifecycle_airflow.stack.config import USERS, Ports, Stack

    def say(text: str) -> None:
        print(f"· {text}", file=sys.stderr, flush=True)

    # Without it every process would compile what it imports anew, as no installation does.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    stack = Stack(root=root, ports=Ports.from_environment())
    try:
        supervise.start(stack, say)
        access = Access(
            airflow_url=stack.airflow_url,
            mlflow_url=stack.mlflow_url,
            passwords={user: stack.password(user) for user in USERS},
            model_folder=MODEL,
            lake=str(stack.lake),
            production_lake=str(stack.environment_lake("production")),
            production_url=stack.server_url("production"),
            production_token=stack.secrets["production"],
            production_online_store=stack.online_store("production"),
        )
        kinds = ("train", "promote", "monitor", "score", "rollback")
        access.user(next(iter(USERS))).wait_for_dags({f"flight_delay__{kind}" for kind in kinds})
        yield stack, access
    finally:
        supervise.stop(stack, say)


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """The answer of some work, its seconds, and the peak memory of the process."""
    began = time.perf_counter()
    answer = work()
    seconds = time.perf_counter() - began
    # Not getrusage's: that of a child begins with what its parent had.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    return {"seconds": seconds, "peak_mib": peak, "answer": answer}


def asked_of(
    parser: argparse.ArgumentParser, works: Mapping[str, Callable[[Path], dict[str, Any]]]
) -> argparse.Namespace:
    """The command line, with ``--results FILE``; a process that :func:`apart` began does its work and ends.

    :param works: kind → work on a folder, which :func:`timed` measures
    """
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        kind, folder = asked.child
        print(json.dumps(works[kind](Path(folder))))
        sys.exit()
    return asked


def apart(kind: str, folder: Path) -> dict[str, Any]:
    """A script's work of this kind, in a process of its own."""
    command = [sys.executable, sys.argv[0], "--child", kind, str(folder)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"· {kind}: {found['seconds']:.2f} s, {found['peak_mib']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def keep(results: Path | None, told: Mapping[str, Any]) -> None:
    """Write raw results, if they are asked for."""
    if results is not None:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(told, indent=1))
