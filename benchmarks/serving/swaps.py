"""Hot swaps under load: no request fails, every answer is the right one of the version that gave it.

    python benchmarks/serving/swaps.py [--swaps 200] [--connections 32] [--results FOLDER]

Two models of the same columns take turns, each as a route revision of its own; the next is published when the
one before is live. Memory is the server's resident set, before the first swap and after the last, both under
load. Exits with 1 if a request failed, an answer was wrong, or memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from answers import Pool, Verdict, verify
from load import Run, closed_loop
from servers import OURS, Server, cores

from models import Model, packed, release

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import table

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.05
LIVE_SECONDS = 30.0
BURST_SECONDS = 1.0
WARM_BURSTS = 10
_POOL = 20_000


class Swaps(threading.Thread):
    """Publishes one revision after the other, each when the one before is live.

    :ivar failure: why it stopped early; None if it did not
    """

    def __init__(self, server: Server, models: tuple[Model, Model], swaps: int) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._models = models
        self._swaps = swaps
        self.seconds: list[float] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for number in range(1, self._swaps + 1):
                began = time.monotonic()
                release(self._server.lake, self._models[number % 2], number + 1)
                while self._live() != number + 1:
                    if time.monotonic() - began > LIVE_SECONDS:
                        raise TimeoutError(f"revision {number + 1} is not live after {LIVE_SECONDS} s")
                    time.sleep(0.01)
                self.seconds.append(time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  the main thread says it, whatever it is
            self.failure = error

    def _live(self) -> int:
        host, port = self._server.address
        path = f"http://{host}:{port}/v2/models/{self._models[0].name}"
        asked = urllib.request.Request(path, headers=dict(self._server.headers))
        with urllib.request.urlopen(asked, timeout=LIVE_SECONDS) as answer:
            revision: int = json.load(answer)["parameters"]["route_revision"]
            return revision


def resident_mib(pid: int) -> float:
    """What a process holds in memory, its children included."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # it has just ended
            continue
        if pid in (int(fields["Pid"]), int(fields["PPid"])):
            total += int(fields.get("VmRSS", "0 kB").split()[0])
    return total / 1024


def main() -> int:
    """Swap, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(description="Hot swaps under load.")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what was seen")
    options = parser.parse_args()
    first = packed()
    models = first, dataclasses.replace(packed(seed=1), name=first.name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    server_core, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    with tempfile.TemporaryDirectory(prefix="swaps-") as temporary:
        server = Server(first, server_core, Path(temporary), None, sys.executable)
        try:
            server.wait()
            seen = _swap(server, models, options.swaps, options.connections)
        finally:
            server.process.stop()
        logged = server.log_rows()
    print(f"rows answered {server.answered_rows}, in the prediction log {logged}")
    seen |= {"answered_rows": server.answered_rows, "log_rows": logged}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "swaps.json").write_text(json.dumps(seen, indent=1) + "\n")
    held = not seen["bad"] and seen["growth"] <= LIMIT and logged == server.answered_rows
    return int(not held)


def _swap(server: Server, models: tuple[Model, Model], count: int, connections: int) -> dict[str, Any]:
    # The same rows for both; odd revisions are the first model's.
    one = server.pool(server.protocol, 1, _POOL, 1)
    labels, probabilities = models[1].answers(models[1].draw(_POOL, 1))
    other = dataclasses.replace(one, labels=labels, probabilities=probabilities)
    pools: dict[str, Pool] = {str(number + 1): (one, other)[number % 2] for number in range(count + 1)}
    runs = [_burst(server, one, connections) for _ in range(WARM_BURSTS)]
    before = resident_mib(server.process.pid)
    swaps = Swaps(server, models, count)
    swaps.start()
    while swaps.is_alive():
        runs.append(_burst(server, one, connections))
    after = resident_mib(server.process.pid)
    if swaps.failure is not None:
        raise swaps.failure
    verdicts = [verify(run, pools, server.protocol) for run in runs]
    growth = after / before - 1
    answered, bad = sum(len(run.answers) for run in runs), _bad(verdicts)
    server.answered_rows += answered - sum(sum(verdict.refused.values()) for verdict in verdicts)
    table(
        ("swaps under load", OURS, "limit"),
        (
            ("swaps", len(swaps.seconds), ""),
            ("s from published to live, median and most", _spread(swaps.seconds), ""),
            ("requests answered", answered, ""),
            ("failed, refused or wrong", bad, 0),
            ("p99 ms, median of seconds", f"{_median([run.milliseconds['p99'] for run in runs]):.2f}", ""),
            ("MiB before", f"{before:.1f}", ""),
            ("MiB after", f"{after:.1f}", ""),
            ("growth", f"{growth:.1%}", f"{LIMIT:.0%}"),
        ),
    )
    for verdict in verdicts:
        if not verdict.ok:
            print(verdict)
            break
    return {
        "connections": connections,
        "seconds_to_live": [round(one, 3) for one in swaps.seconds],
        "per_second": [round(run.per_second, 1) for run in runs],
        "p99_ms": [round(run.milliseconds["p99"], 3) for run in runs],
        "bad": bad,
        "mib": [round(before, 1), round(after, 1)],
        "growth": round(growth, 4),
    }


def _burst(server: Server, pool: Pool, connections: int) -> Run:
    return closed_loop(server.address, pool.requests, connections, BURST_SECONDS)


def _bad(verdicts: list[Verdict]) -> int:
    return sum(one.wrong + one.failed + sum(one.refused.values()) for one in verdicts)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _spread(values: list[float]) -> str:
    return f"{_median(values):.2f}, {max(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
