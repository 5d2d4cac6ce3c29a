"""What a shadow costs those who are answered, at a fixed rate of arrivals; and what is dropped above it.

    python benchmarks/serving/shadow.py [--rounds 7] [--seconds 5] [--results FOLDER]

The capacity of the server is measured without a shadow. Then rounds at 40 % of it, with a shadow and without
in turn: requests are due at fixed moments, and latency counts from then. At last a run above capacity, where
copies are to be dropped first, and counted. Exits with 1 if p99 grew by more than 10 % and more than 0.5 ms,
if less than 99 % of the copies were scored and logged at 40 %, if anything failed, or if the log lacks a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from answers import verify
from load import Run, closed_loop, open_loop
from servers import Server, cores

from ml_lifecycle.delivery.route import Route, publish
from models import Model, packed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import table

RESULTS = Path(__file__).parent / "results"
SHARE, ABOVE = 0.4, 1.3
CONNECTIONS = 32
_POOL = 100_000
_LIVE_SECONDS = 30.0


class Shadowed:
    """A server whose champion has a shadow, or none."""

    def __init__(self, server: Server, champion: Model, shadow: Model) -> None:
        self._server = server
        self._variants = (
            champion.variant("1"),
            dataclasses.replace(shadow.variant("2"), role="shadow", weight=0.0),
        )
        server.lake.write_bytes(self._variants[1].model_path, shadow.data)
        self._revision = 1
        self._pool = server.pool(server.protocol, 1, _POOL, 1)

    def publish(self, shadow: bool) -> None:
        """Return once the server serves the route."""
        self._revision += 1
        name = self._server.model.name
        variants = self._variants if shadow else self._variants[:1]
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        publish(self._server.lake, Route(name, name, self._revision, variants, "0" * 64, moment))
        deadline = time.monotonic() + _LIVE_SECONDS
        while self._get(f"/v2/models/{name}")["parameters"]["route_revision"] != self._revision:
            if time.monotonic() > deadline:
                raise TimeoutError(f"revision {self._revision} is not live after {_LIVE_SECONDS} s")
            time.sleep(0.02)

    def capacity(self, seconds: float) -> float:
        """Requests a second that it answers at most."""
        return self._verified(
            closed_loop(self._server.address, self._pool.requests, CONNECTIONS, seconds)
        ).per_second

    def at(self, rate: float, seconds: float) -> Run:
        """A run at a fixed rate."""
        return self._verified(
            open_loop(self._server.address, self._pool.requests, CONNECTIONS, seconds, rate)
        )

    def copies(self) -> dict[str, float]:
        """Rows of copies by what became of them, since the server began."""
        found: dict[str, float] = {}
        for line in self._text("/metrics").splitlines():
            if line.startswith("ml_lifecycle_shadow_rows_total{"):
                labels, value = line.rsplit(" ", 1)
                outcome = labels.split('outcome="')[1].split('"')[0]
                found[outcome] = found.get(outcome, 0.0) + float(value)
        return found

    def _verified(self, run: Run) -> Run:
        verdict = verify(run, {"": self._pool}, self._server.protocol)
        if not verdict.ok:
            raise SystemExit(f"an answer was wrong or missing: {verdict}")
        self._server.answered_rows += len(run.answers)
        return run

    def _get(self, path: str) -> Any:
        return json.loads(self._text(path))

    def _text(self, path: str) -> str:
        host, port = self._server.address
        asked = urllib.request.Request(f"http://{host}:{port}{path}", headers=dict(self._server.headers))
        with urllib.request.urlopen(asked, timeout=_LIVE_SECONDS) as answer:
            text: str = answer.read().decode()
            return text


def main() -> int:
    """Measure, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(description="What a shadow costs.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what was seen")
    options = parser.parse_args()
    model = packed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server ends with it
    server_core, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    with tempfile.TemporaryDirectory(prefix="shadow-") as temporary:
        server = Server(model, server_core, Path(temporary), None, sys.executable)
        try:
            server.wait()
            shadowed = Shadowed(server, model, dataclasses.replace(packed(seed=1), name=model.name))
            seen = _measure(shadowed, options.rounds, options.seconds)
        finally:
            server.process.stop()
        logged = server.log_rows()
    wanted = server.answered_rows + int(seen["copies"].get("scored", 0))
    print(f"rows answered and copies scored {wanted}, in the prediction log {logged}")
    seen |= {"answered_and_scored": wanted, "log_rows": logged}
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "shadow.json").write_text(json.dumps(seen, indent=1) + "\n")
    return int(not (seen["held"] and logged == wanted))


def _measure(shadowed: Shadowed, rounds: int, seconds: float) -> dict[str, Any]:
    capacity = statistics.median(shadowed.capacity(seconds) for _ in range(3))
    rate = SHARE * capacity
    p99: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for shadow in (False, True) if number % 2 else (True, False):
            shadowed.publish(shadow)
            shadowed.at(rate, 0.5)
            p99[shadow].append(shadowed.at(rate, seconds).milliseconds["p99"])
    below = shadowed.copies()
    shadowed.publish(shadow=True)
    above = shadowed.at(ABOVE * capacity, seconds)
    after = shadowed.copies()
    dropped = after.get("dropped", 0.0) - below.get("dropped", 0.0)
    without, beside = statistics.median(p99[False]), statistics.median(p99[True])
    scored = below.get("scored", 0.0) / max(sum(below.values()), 1.0)
    growth = beside - without
    held = (growth <= max(0.1 * without, 0.5)) and scored >= 0.99
    table(
        ("a shadow at a fixed rate of arrivals", "seen", "limit"),
        (
            ("requests a second at most, without", f"{capacity:,.0f}", ""),
            (f"requests a second that arrive, {SHARE:.0%}", f"{rate:,.0f}", ""),
            ("p99 ms without a shadow, by round", _rounds(p99[False]), ""),
            ("p99 ms with one, by round", _rounds(p99[True]), ""),
            (
                "p99 ms, medians",
                f"{without:.2f}, {beside:.2f}",
                "+10 % or +0.5 ms",
            ),
            ("copies scored and logged", f"{scored:.2%}", "99 %"),
            (f"at {ABOVE:.0%}: p99 ms", f"{above.milliseconds['p99']:.0f}", ""),
            (f"at {ABOVE:.0%}: copies dropped", f"{dropped:,.0f} of {len(above.answers):,}", "counted"),
        ),
    )
    return {
        "capacity": round(capacity, 1),
        "rate": round(rate, 1),
        "p99_ms_without": [round(one, 3) for one in p99[False]],
        "p99_ms_with": [round(one, 3) for one in p99[True]],
        "copies": after,
        "copies_at_rate": below,
        "dropped_above": dropped,
        "held": held,
    }


def _rounds(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
