"""What the benchmarks share: medians, tables, and the example's year."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = REPOSITORY / "dags" / "models" / "flight_delay"
# The whole year: every flight has landed, and the training's holdout is the two weeks before Christmas.
YEAR_START = datetime(2013, 1, 1, tzinfo=UTC)
YEAR_END = datetime(2014, 1, 1, 8, tzinfo=UTC)


def cpu_ms(work: Callable[[], object], runs: int, warm_up: int = 2) -> float:
    """Median CPU milliseconds of a call."""
    for _ in range(warm_up):
        work()
    spent = []
    for _ in range(runs):
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
