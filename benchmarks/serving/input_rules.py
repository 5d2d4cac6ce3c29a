"""What a contract's rules on a model's inputs cost a request: the same model with rules, and without.

    python benchmarks/serving/input_rules.py [--rounds 4] [--seconds 3] [--results FOLDER]

Two of our servers, the same model: with the one every column has a rule or two, which no request breaks.
Rounds in turn, each request with rows of its own, every answer compared with what ONNX Runtime says. Exits
with 1 if an answer was wrong, or a log lacks a row.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Case
from compare import RESULTS, Contender, started
from servers import Server, cores

from ml_lifecycle.records import ColumnSpec, InputRules
from models import Model, packed, strings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import table

CASES = (("strings", 1, 32), ("strings", 1, 1), ("strings", 100, 32), ("packed", 1, 32), ("packed", 100, 32))


def ruled(model: Model) -> Model:
    """The model with rules on all of its columns."""
    return dataclasses.replace(model, columns=tuple(map(_with_rules, model.columns)))


def _with_rules(column: ColumnSpec) -> ColumnSpec:
    rules = InputRules(f"rows.{column.name}", "float", nullable=False, min=-1000, max=1000)
    if column.type == "string":
        rules = InputRules(f"rows.{column.name}", "string", nullable=False, pattern="[A-Z]{2,3}")
    if column.name == "carrier":
        values = tuple(f"{first}{second}" for first in "ABCD" for second in "WXYZ")
        rules = dataclasses.replace(rules, allowed_values=values)
    return dataclasses.replace(column, rules=rules)


def main() -> int:
    """Measure, print, and say by the exit code whether all answers were right."""
    parser = argparse.ArgumentParser(description="What rules on a model's inputs cost.")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the raw rounds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    server_core, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    models = {"strings": strings(), "packed": packed()}
    seen, well = [], True
    for name, size, connections in CASES:
        case = Case(f"{name}, {size} rows, {connections} connections", name, size, connections)
        one, right = _measure(case, models[name], server_core, options.rounds, options.seconds)
        seen.append(one)
        well = well and right
    _show(seen)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "input_rules.json").write_text(json.dumps(seen, indent=1) + "\n")
    return int(not well)


def _measure(case: Case, model: Model, core: int, rounds: int, seconds: float) -> tuple[dict[str, Any], bool]:
    found: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="rules-") as temporary:
        with (
            started(Server(model, core, Path(temporary) / "without", None, sys.executable)) as plain,
            started(Server(ruled(model), core, Path(temporary) / "with", None, sys.executable)) as checked,
        ):
            servers = {"without": plain, "with": checked}
            contenders = {name: Contender(server, case, 2) for name, server in servers.items()}
            for number in range(rounds):
                for name in list(servers)[:: 1 if number % 2 else -1]:
                    found[name].append(contenders[name].run(seconds))
        logged = all(server.answered_rows == server.log_rows() for server in servers.values())
    right = not any(one.problems for one in contenders.values())
    return {
        "case": case.name,
        "rounds": found,
        "answers_right": right,
        "logs_whole": logged,
    }, right and logged


def _show(seen: Sequence[dict[str, Any]]) -> None:
    rows = []
    for one in seen:
        cpu = {name: _cpu_us(runs) for name, runs in one["rounds"].items()}
        rows.append(
            (
                one["case"],
                f"{_median(one['rounds']['without'], 'per_second'):,.0f}",
                f"{_median(one['rounds']['with'], 'per_second'):,.0f}",
                f"{cpu['without']:.0f}",
                f"{cpu['with']:.0f}",
                f"{cpu['with'] - cpu['without']:+.1f}",
                f"{_median(one['rounds']['without'], 'p99_ms'):.2f}",
                f"{_median(one['rounds']['with'], 'p99_ms'):.2f}",
                "yes" if one["answers_right"] and one["logs_whole"] else "NO",
            )
        )
    heads = (
        "requests/s without",
        "with",
        "CPU µs a request without",
        "with",
        "more",
        "p99 ms without",
        "with",
    )
    table(("model and traffic", *heads, "all right"), rows)


def _median(runs: Sequence[dict[str, Any]], figure: str) -> float:
    return statistics.median(float(run[figure]) for run in runs)


def _cpu_us(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.median(1e6 * float(run["server_share"] / run["per_second"]) for run in runs)


if __name__ == "__main__":
    sys.exit(main())
