"""The other floor: ONNX Runtime in a loop, nothing around it.

    python loop.py MODEL.onnx ROWS SECONDS

Prints runs a second, and how much of its core it got. The rows are random and made before the clock starts;
many sets take turns, or the processor would learn one by heart.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from session import Session

_SETS = 64


def main(file: str, rows: int, seconds: float) -> None:
    """Run the session for so long."""
    session, rng = Session(file), np.random.default_rng(0)
    sets = [
        {name: rng.normal(size=(rows, 1)).astype(np.float32) for name in session.names} for _ in range(_SETS)
    ]
    for columns in sets:
        session.columns(columns)
    runs, cpu, started = 0, time.process_time(), time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        for columns in sets:
            session.columns(columns)
        runs += _SETS
    print(runs / spent, (time.process_time() - cpu) / spent)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
