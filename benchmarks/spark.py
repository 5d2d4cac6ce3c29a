"""What `engine: spark` costs on one machine, and whether it answers alike: the stages of one model folder.

    python benchmarks/spark.py [--copies 10] [--stage validate …] [--results FILE]

A year of flights in as many years as there are copies; a contract of 25 rules, two feature views (a row a
flight, and each day's delays by route), a model of 100 trees. Every stage runs with `engine: polars` and with
Spark in the stage's own process, two threads each, in a process of its own, imports and the JVM's start
included. Memory is the proportional set size of the whole tree of processes, Spark's JVM and its Python
workers too, looked at ten times a second. The answers of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import table
from contracts import FIELDS, read_year

if TYPE_CHECKING:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.records import Interval, Record, Run, Snapshot
    from ml_lifecycle.spec.folder import ModelFolder

ENGINES = ("polars", "spark")
START = datetime(2013, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)

MODEL = """\
spec: 1
name: flights
description: For the benchmark.
task: binary
owner: data
{engine}sources:
  flights: {{uri: raw/*.parquet, event_time: time_hour, keys: [flight_id], contract: flights}}
labels: {{column: late, keys: [flight_id, route], delay: 24h}}
features: {{service: flights, lookback: 14d}}
training:
  parameters: {{}}
  data: {{start: 2013-01-01T00:00:00Z, holdout: 14d}}
evaluation: {{gates: [{{metric: skill, min: 0}}]}}
approvers: {{users: [alice]}}
environments:
  staging: {{server: s, lake: l, online_store: o}}
  production: {{server: s2, lake: l2, online_store: o2}}
"""
SPARK = "engine: spark\nspark: {threads: 2, driver: {memory: 4Gi}}\n"
FEATURES = """\
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64, String

flight = Entity(name="flight", join_keys=["flight_id"], value_type=ValueType.STRING)
route = Entity(name="route", join_keys=["route"], value_type=ValueType.STRING)


def source(name):
    return FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")


schedule = FeatureView(
    name="schedule", entities=[flight], ttl=timedelta(days=365), source=source("schedule"),
    schema=[
        Field(name="carrier", dtype=String), Field(name="hour", dtype=Int64),
        Field(name="distance", dtype=Float32),
    ],
)
delays = FeatureView(
    name="delays", entities=[route], ttl=timedelta(days=3), source=source("delays"),
    schema=[Field(name="mean_delay", dtype=Float32), Field(name="mean_air_time", dtype=Float32)],
)
service = FeatureService(name="flights", features=[schedule, delays])


def tables(sources):
    flights = sources["flights"].with_columns(route=pl.format("{}-{}", "origin", "dest"))
    asked = flights.select("flight_id", "route", event_timestamp="time_hour")
    landed = flights.drop_nulls("arr_delay")
    day = (pl.col("time_hour").dt.truncate("1d") + timedelta(days=1)).alias("event_timestamp")
    return {
        "schedule": flights.select(
            "flight_id", "carrier", "hour", "distance",
            event_timestamp=pl.col("time_hour") - timedelta(hours=1),
        ),
        "delays": landed.group_by("route", day).agg(
            mean_delay=pl.col("arr_delay").mean(), mean_air_time=pl.col("air_time").mean()
        ).sort("event_timestamp", "route"),
        "labels": landed.select(
            "flight_id", "route", event_timestamp="time_hour",
            known_at=pl.col("time_hour") + timedelta(hours=12),
            late=(pl.col("arr_delay") > 15).cast(pl.Int64),
        ),
        "entities": asked,
    }
"""


class Place:
    """The lake with its snapshot, and the model folder of an engine."""

    def __init__(self, root: Path, engine: str) -> None:
        self.root, self.engine = root, engine
        self.copies = int((root / "copies").read_text())

    @property
    def lake(self) -> Lake:
        from ml_lifecycle.adapters.lake import Lake

        return Lake(str(self.root / "lake"))

    @property
    def folder(self) -> ModelFolder:
        from ml_lifecycle.spec.folder import load_folder

        return load_folder(self.root / self.engine / "flights")

    @property
    def span(self) -> Interval:
        from ml_lifecycle.records import Interval

        return Interval(START, START + self.copies * YEAR + timedelta(hours=6))

    @property
    def run(self) -> Run:
        from ml_lifecycle.records import Run

        return Run("flights", "benchmark", self.span.end, self.span)

    @property
    def snapshot(self) -> Snapshot:
        from ml_lifecycle.records import Snapshot, from_json

        return from_json(Snapshot, self.lake.read_json("snapshot.json"))

    def record(self, stage: str) -> Any:
        """What a stage of this engine returned before."""
        return json.loads((self.root / f"{self.engine}-{stage}.json").read_text())


def validate(place: Place) -> Record:
    from ml_lifecycle.stages.validate import validate

    return validate(place.folder.spec, place.folder.contracts, place.lake, place.snapshot, None)


def features(place: Place) -> Record:
    from ml_lifecycle.stages.features import build_training_set

    return build_training_set(place.folder, place.lake, place.snapshot)


def profile(place: Place) -> Record:
    """Of the training rows, as of any rows that a rule, a training or a window is about."""
    from ml_lifecycle.records import TrainingSet, from_json

    rows = from_json(TrainingSet, place.record("features"))
    if place.engine == "spark":
        from ml_lifecycle.spark.profiling import profile_rows
        from ml_lifecycle.spark.session import spark_path, spark_session

        session = spark_session(place.folder.spec.spark, place.lake)
        on_spark = session.read.parquet(spark_path(place.lake, rows.train_path))
        return profile_rows(on_spark.select(*(column.name for column in rows.columns)), rows.columns)
    from ml_lifecycle.profiles.profiling import profile_batches

    read = place.lake.scan([rows.train_path]).select(column.name for column in rows.columns)
    return profile_batches(read.collect_batches(chunk_size=65_536), rows.columns)


def materialise(place: Place) -> Record:
    from ml_lifecycle.stages.online_features import materialise

    return materialise(place.folder, place.lake, place.snapshot, f"sqlite:///{place.root}/{place.engine}.db")


def score(place: Place) -> Record:
    from ml_lifecycle.records import Training, from_json
    from ml_lifecycle.stages.score import score_plan
    from ml_lifecycle.stages.score_partitions import plan_scoring

    training = from_json(Training, place.lake.read_json("training.json"))
    plan = plan_scoring(place.folder, place.lake, place.snapshot, "training", "1")
    return score_plan(place.folder, place.lake, plan, training)


STAGES: dict[str, Callable[[Place], Record]] = {
    "validate": validate,
    "features": features,
    "profile": profile,
    "materialise": materialise,
    "score": score,
}


def prepare(root: Path, copies: int) -> None:
    """The folders, the flights and their snapshot."""
    import polars as pl
    import yaml

    from ml_lifecycle.adapters.tables import column_types, write_rows
    from ml_lifecycle.records import Snapshot, SnapshotTable, to_json

    (root / "copies").write_text(str(copies))
    contract = {"name": "flights", "version": 1, "fields": FIELDS}
    for engine in ENGINES:
        folder = root / engine / "flights"
        folder.mkdir(parents=True)
        (folder / "model.yaml").write_text(MODEL.format(engine=SPARK if engine == "spark" else ""))
        (folder / "contract.yaml").write_text(yaml.safe_dump({"contract": contract}))
        (folder / "features.py").write_text(FEATURES)
        (folder / "training.py").write_text("def train(rows, context):\n    raise NotImplementedError\n")
        (folder / "dag.py").write_text("")
    place, year, files = Place(root, "polars"), read_year(), []
    for copy in range(copies):
        number = pl.int_range(copy * year.height, (copy + 1) * year.height)
        named = year.with_columns(
            pl.col("time_hour") + copy * YEAR, flight_id=pl.format("{}_{}_{}", "carrier", "flight", number)
        )
        files.append(write_rows(place.lake, f"{copy:03}", named, "time_hour"))
    tables = {"flights": SnapshotTable(tuple(files), column_types(named))}
    snapshot = Snapshot(place.run, "0" * 64, "snapshot.json", tables)
    place.lake.write_json("snapshot.json", to_json(snapshot))


def fit(root: Path) -> None:
    """A model of the training rows, for both engines."""
    import polars as pl
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    from ml_lifecycle.adapters.lake import sha256
    from ml_lifecycle.adapters.onnx import as_served, convert
    from ml_lifecycle.records import Training, TrainingSet, from_json, to_json

    place = Place(root, "polars")
    rows = from_json(TrainingSet, place.record("features"))
    sample = place.lake.scan([rows.train_path]).head(100_000).collect()
    encode = ColumnTransformer(
        [("texts", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["carrier"])],
        remainder="passthrough",
    )
    model = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0)
    known = as_served(sample, rows.columns).to_pandas()
    fitted = make_pipeline(encode, model).fit(known, sample["late"].to_numpy())
    made = convert(fitted, rows.columns, "binary")
    assert isinstance(sample, pl.DataFrame)
    place.lake.write_bytes("model.onnx", made)
    training = Training(
        run=place.run, digest="t", path="training", attempt=1, training_set_path=rows.path,
        snapshot_digest="", code_digest="", spec_digest="", train_end=rows.train_end, metrics_path="",
        model_path="model.onnx", model_digest=sha256(made), columns=rows.columns, classes=("0", "1"),
        reference_path="", profile_path="", parameters={}, metrics={}, packages={}, resources={},
    )  # fmt: skip
    place.lake.write_json("training.json", to_json(training))


def child(root: Path, engine: str, stage: str) -> None:
    """One measurement, as JSON."""
    from ml_lifecycle.records import to_json

    began = time.perf_counter()
    made = STAGES[stage](Place(root, engine))
    seconds = time.perf_counter() - began
    (root / f"{engine}-{stage}.json").write_text(json.dumps(to_json(made)))
    print(json.dumps({"seconds": seconds}))
    if engine == "spark":
        from ml_lifecycle.spark.session import stop_spark

        stop_spark()


class Tree:
    """A process with all below it, watched until the block ends."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid, self._ended = pid, threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> Tree:
        self._watching.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._watching.join()

    def _watch(self) -> None:
        import psutil

        while not self._ended.wait(0.1):
            try:
                first = psutil.Process(self._pid)
                pids = [self._pid, *(one.pid for one in first.children(recursive=True))]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(proportional_set_size, pids)))


def proportional_set_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measured(root: Path, engine: str, stage: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", engine, "--stage", stage, "--root", str(root)]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "POLARS_MAX_THREADS": "2"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with Tree(process.pid) as tree:
        said = process.stdout.read()
        code = process.wait()
    if code:
        raise SystemExit(f"{stage} on {engine} failed with {code}")
    found = {
        "engine": engine,
        "stage": stage,
        "seconds": json.loads(said.splitlines()[-1])["seconds"],
        "with_start": time.perf_counter() - began,
        "peak_mib": tree.peak / 2**20,
    }
    print(f"· {found}", file=sys.stderr, flush=True)
    return found


def same_answers(root: Path, stage: str) -> None:
    """Hold both engines' results against each other.

    :raises SystemExit: they differ.
    """
    ours, theirs = (Place(root, engine).record(stage) for engine in ENGINES)
    lake = Place(root, "polars").lake
    if stage == "validate":
        alike = _counts(lake.read_json(ours["report_path"])) == _counts(lake.read_json(theirs["report_path"]))
    elif stage == "features":
        files = ("train_path", "holdout_path")
        alike = all(lake.digest(ours[file]) == lake.digest(theirs[file]) for file in files)
    elif stage == "profile":
        alike = _exact(ours) == _exact(theirs)
    elif stage == "materialise":
        alike = ours["rows"] == theirs["rows"] and _stored(root, "polars") == _stored(root, "spark")
    else:
        alike = [one["digest"] for one in ours["files"]] == [one["digest"] for one in theirs["files"]]
    if not alike:
        raise SystemExit(f"{stage} answers differently on Spark")


def _exact(profile: dict[str, Any]) -> dict[str, Any]:
    """What does not differ by rounding, or by the sketches' own error."""
    exact = ("rows", "count", "missing", "nulls", "min", "max")
    return {
        name: {key: value for key, value in column.items() if key in exact}
        for name, column in profile["columns"].items()
    }


def _counts(report: dict[str, Any]) -> list[Any]:
    judged = report["great_expectations"].values()
    return [one["result"].get("unexpected_count") for part in judged for one in part["results"]]


def _stored(root: Path, engine: str) -> set[tuple[Any, ...]]:
    import sqlite3

    with sqlite3.connect(root / f"{engine}.db") as store:
        names = [
            name
            for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if name.startswith("flights_") and "__state" not in name
        ]
        return {(name, *row) for name in names for row in store.execute(f"SELECT * FROM '{name}'")}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--stage", choices=STAGES, action="append", help="those alone are measured")
    parser.add_argument("--results", type=Path, help="add every measurement to this file")
    parser.add_argument("--root", type=Path, help="where all is kept; default: a temporary folder")
    parser.add_argument("--child", choices=ENGINES)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.root, arguments.child, arguments.stage[0])
        return 0
    with tempfile.TemporaryDirectory(prefix="spark-") as temporary:
        root = arguments.root or Path(temporary)
        if not (root / "copies").exists():
            prepare(root, arguments.copies)
        found = measure(root, arguments.stage or list(STAGES))
    if arguments.results is not None:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
        arguments.results.write_text(json.dumps([*before, *found], indent=1) + "\n")
    report(found)
    return 0


def measure(root: Path, stages: Sequence[str]) -> list[dict[str, Any]]:
    found, copies = [], Place(root, "polars").copies
    for stage in stages:
        if stage == "score":
            fit(root)
        found += [{"copies": copies, **measured(root, engine, stage)} for engine in ENGINES]
        same_answers(root, stage)
    return found


def report(found: Sequence[dict[str, Any]]) -> None:
    rows = [
        [one["stage"], one["engine"], f"{one['with_start']:.1f}", f"{one['peak_mib']:.0f}"] for one in found
    ]
    table(("stage", "engine", "s, start included", "peak MiB"), rows)


if __name__ == "__main__":
    sys.exit(main())
