"""Our model server beside its peers: one core for the server, the load generator on the other.

    python benchmarks/serving/compare.py [--rounds 5] [--seconds 5] [--peers …] [--cases …] [--cache FOLDER]

All servers of a model are started, held still, and let go one at a time, in rounds whose order turns. Each
request has random rows of its own; every answer is compared with what ONNX Runtime says for them. Ours runs
as always: token, routes, prediction log and metrics; at each case's end it is told to stop, and its log must
hold as many rows as it answered. The raw rounds go to ``results/<case>.json``. Exits with 1 if a goal is
missed, could not be measured, or an answer was wrong. A server at 32 connections that got much less than all
of its core was not alone there: then the ratios by CPU time say more, and it is to be measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from answers import Pool, verify
from cases import CASES, LOOP, Case, Goal, goals, median, title
from environments import EnvironmentMissingError, cache, python_of, version_of
from load import Run, closed_loop
from servers import KINDS, OURS, PEERS, Server, StartError, cores
from wire import V2, Protocol

from models import MODELS, Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import table

RESULTS = Path(__file__).parent / "results"
WARM_SECONDS = 0.5
# More than any server here answers while it warms up; fewer where requests are large.
_WARM_REQUESTS, _WARM_ROWS = 10_000, 250_000

Rounds = dict[str, list[dict[str, Any]]]


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


class Contender:
    """A server in a case: its requests, and what came of them."""

    def __init__(self, server: Server, case: Case, seed: int) -> None:
        self.server = server
        self._case = case
        self._protocol: Protocol = V2(binary=True) if case.binary else server.protocol
        self._seed = seed
        self._warm = self._pool(min(_WARM_REQUESTS, _WARM_ROWS // case.rows), seed)
        self._main: Pool | None = None
        self.problems: list[str] = []

    def run(self, seconds: float) -> dict[str, Any]:
        """Warm it up, measure, and look at every answer."""
        self.server.process.resume()
        warm = self._ask(self._warm, WARM_SECONDS)
        if self._main is None:
            # Enough for half as many again; were it more, the run would end sooner.
            self._main = self._pool(math.ceil(warm.per_second * seconds * 1.5) + 100, self._seed + 1)
        spent = self.server.process.cpu_seconds()
        run = self._ask(self._main, seconds)
        spent = self.server.process.cpu_seconds() - spent
        self.server.process.pause()
        self._check(warm, self._warm)
        self._check(run, self._main)
        latency = {f"{name}_ms": round(value, 3) for name, value in run.milliseconds.items()}
        return {
            "per_second": round(run.per_second, 1),
            **latency,
            "answers": len(run.answers),
            "server_share": round(spent / run.seconds, 2),
            "generator_share": round(run.generator_share, 2),
        }

    def _ask(self, pool: Pool, seconds: float) -> Run:
        return closed_loop(self.server.address, pool.requests, self._case.connections, seconds)

    def _check(self, run: Run, pool: Pool) -> None:
        verdict = verify(run, {"": pool}, self._protocol)
        if not verdict.ok:
            self.problems.append(str(verdict))
        self.server.answered_rows += self._case.rows * (len(run.answers) - sum(verdict.refused.values()))

    def _pool(self, count: int, seed: int) -> Pool:
        return self.server.pool(self._protocol, self._case.rows, count, seed)


def loop(model: Model, case: Case, core: int, folder: Path, seconds: float) -> dict[str, Any]:
    """ONNX Runtime alone, on the servers' core."""
    file = folder / f"{model.name}.onnx"
    file.write_bytes(model.data)
    command = [sys.executable, str(PEERS / "loop.py"), str(file), str(case.rows), str(seconds)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    rate, share = map(float, done.stdout.split())
    return {"per_second": round(rate, 1), "server_share": round(share, 2)}


@contextmanager
def started(server: Server) -> Iterator[Server]:
    """A server that answers, held still; ended afterwards."""
    try:
        server.wait()
        server.process.pause()
        yield server
    finally:
        server.process.stop()


def start_peers(
    model: Model, names: Sequence[str], core: int, root: Path, environments: Path
) -> dict[str, Server]:
    """The peers that can be started; of the others, why not."""
    up = {}
    for name in names:
        try:
            python = python_of(name, environments)
            server = Server(model, core, root / f"{name}-{model.name}", KINDS[name], python)
        except EnvironmentMissingError as error:
            say(f"{name} is left out: {error}")
            continue
        try:
            server.wait()
        except StartError as error:
            server.process.stop()
            say(f"{name} is left out: {error}")
            continue
        server.process.pause()
        up[name] = server
        say(f"{model.name}: {version_of(name)} is up")
    return up


def measure(
    case: Case, model: Model, peers: Mapping[str, Server], core: int, root: Path, options: argparse.Namespace
) -> tuple[Rounds, dict[str, Any]]:
    """All rounds of a case, and what else was seen."""
    rounds: Rounds = {}
    seen: dict[str, Any] = {"problems": {}, "load_average": []}
    with started(Server(model, core, root / case.name, None, sys.executable)) as ours:
        servers = {OURS: ours} if case.binary else {OURS: ours, **peers}
        contenders = {
            name: Contender(server, case, 2 * at) for at, (name, server) in enumerate(servers.items())
        }
        names = [*contenders, *([LOOP] if case.binary else [])]
        for number in range(options.rounds):
            seen["load_average"].append(round(os.getloadavg()[0], 1))
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name == LOOP:
                    one = loop(model, case, core, root, options.seconds)
                else:
                    one = contenders[name].run(options.seconds)
                rounds.setdefault(name, []).append(one)
                say(f"{case.name}, round {number + 1}, {name}: {one['per_second']:,.0f} a second")
    seen["problems"] = {name: one.problems for name, one in contenders.items() if one.problems}
    seen["answered_rows"], seen["log_rows"] = ours.answered_rows, ours.log_rows()
    return rounds, seen


def report(case: Case, rounds: Rounds, seen: Mapping[str, Any], reached: Sequence[Goal]) -> bool:
    """Print a case; whether all is well."""
    print(f"\n## {case.name}: {case.rows} rows a request, {case.connections} connections")
    figures = ("per_second", "p50_ms", "p99_ms", "max_ms", "server_share")
    table(
        ("server", "requests/s", "p50 ms", "p99 ms", "max ms", "of its core", "requests/s by round"),
        (
            (
                title(name),
                *(_shown(median(rounds, name, one) if one in rounds[name][0] else None) for one in figures),
                " ".join(f"{one['per_second']:.0f}" for one in rounds[name]),
            )
            for name in rounds
        ),
    )
    table(
        ("goal", "ours", "limit", "", "by CPU time"),
        (
            (
                one.text,
                _shown(one.measured),
                _shown(one.limit),
                "met" if one.met else "MISSED",
                _shown(one.by_cpu) if one.by_cpu else "",
            )
            for one in reached
        ),
    )
    for name, problems in seen["problems"].items():
        print(f"{name}: {len(problems)} runs with wrong answers; the first: {problems[0]}")
    same = seen["answered_rows"] == seen["log_rows"]
    print(f"rows answered {seen['answered_rows']}, in the prediction log {seen['log_rows']}", flush=True)
    return same and not seen["problems"] and all(one.met for one in reached)


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "not measured"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def keep(
    folder: Path, case: Case, rounds: Rounds, seen: Mapping[str, Any], reached: Sequence[Goal], seconds: float
) -> None:
    """Write the raw rounds, with nothing of the machine's own names in them."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = ("numpy", "onnxruntime", "orjson", "uvloop")
    content = {
        "case": asdict(case),
        "seconds": seconds,
        "python": platform.python_version(),
        "versions": {
            **{name: version_of(name) for name in rounds if name in KINDS},
            OURS: ", ".join(f"{name}=={version(name)}" for name in packages),
        },
        "rounds": rounds,
        "goals": [asdict(one) for one in reached],
        **seen,
    }
    (folder / f"{case.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our model server beside its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each server in each round")
    parser.add_argument("--peers", nargs="*", choices=KINDS, default=list(KINDS), metavar="PEER")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--cache", help="folder of the peers' environments, see environments.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw rounds")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and say by the exit code whether the goals hold."""
    options = parse()
    environments = cache(options.cache) if options.peers else Path()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    server_core, own_core = cores()
    well = []
    for name, make in MODELS.items():
        cases = [CASES[one] for one in options.cases if CASES[one].model == name]
        if not cases:
            continue
        model = make()
        os.sched_setaffinity(0, {own_core})
        with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
            root = Path(temporary)
            wanted = options.peers if any(not case.binary for case in cases) else []
            peers = start_peers(model, wanted, server_core, root, environments)
            try:
                for case in cases:
                    rounds, seen = measure(case, model, peers, server_core, root, options)
                    reached = goals(case, rounds, options.peers)
                    keep(options.results, case, rounds, seen, reached, options.seconds)
                    well.append(report(case, rounds, seen, reached))
            finally:
                for peer in peers.values():
                    peer.process.stop()
        os.sched_setaffinity(0, {server_core, own_core})
    print(f"{sum(well)} of {len(well)} cases reach all their goals")
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
