"""Scoring on Spark: the files that the engine without it writes, however often it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from s3_kit import S3Store
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from small_model import DAY, START, land, write_model
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import convert
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnSpec, Interval, Run, Scoring, Snapshot, Training, to_json
from ml_lifecycle.spark import scoring as on_spark
from ml_lifecycle.spark.application import STAGES
from ml_lifecycle.spark.job import SparkElsewhereError
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.score import score, score_plan
from ml_lifecycle.stages.score_partitions import (
    FilePartition,
    lake_partitions,
    plan_scoring,
    planned_partitions,
)
from ml_lifecycle.stages.scoring_rows import build_scoring_rows

pytestmark = pytest.mark.usefixtures("spark")

DAYS = 3
RUN = Run("small", "run", START + DAYS * DAY, Interval(START, START + DAYS * DAY))


ON_DEMAND = """
from feast.on_demand_feature_view import on_demand_feature_view


@on_demand_feature_view(sources=[machine_state], schema=[Field(name="heat", dtype=Float64)])
def heated(rows):
    import pandas

    return pandas.DataFrame({"heat": rows["temperature"] * rows["load"]})


service ="""


@dataclass(frozen=True)
class World:
    lake: Lake
    folder: ModelFolder
    snapshot: Snapshot
    training: Training

    def score(self, engine: str, **options: Any) -> Scoring:
        """The slices of three days."""
        plan = plan_scoring(self.folder, self.lake, self.snapshot, self.training.path, "1")
        with planned_partitions(self.folder, self.lake, plan) as partitions:
            *whole, last = partitions  # the last half day in two
            cut = [replace(last.part, rows=100), replace(last.part, first=100, rows=last.part.of - 100)]
            partitions = [*whole, *(replace(last, part=part) for part in cut)]
            return self.score_partitions(engine, partitions, **options)

    def score_partitions(self, engine: str, partitions: Any, **options: Any) -> Scoring:
        spec = self.folder.spec.model_copy(update={"engine": engine})
        return score(spec, self.lake, RUN, self.training, "1", partitions, **options)

    def files(self) -> dict[str, bytes]:
        return {
            path: self.lake.read_bytes(path)
            for folder in ("scores", "scored_partitions", "spark_rows")
            for path in self.lake.list(folder)
        }

    def forget(self) -> dict[str, bytes]:
        files = self.files()
        for path in files:
            self.lake.delete(path)
        return files


def train(lake: Lake, rows: pl.DataFrame, columns: tuple[ColumnSpec, ...]) -> Training:
    data = rows.select(column.name for column in columns).to_pandas()
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    gather = make_column_transformer((encoder, ["mode"]), remainder="passthrough")
    model = make_pipeline(gather, HistGradientBoostingClassifier(max_iter=5, random_state=0))
    onnx = convert(model.fit(data, (data["load"] * 3).astype(int).astype(str)), columns, "multiclass")
    lake.write_bytes("training/small/t/model.onnx", onnx)
    return Training(
        run=RUN, digest="t", path="training/small/t", attempt=1, training_set_path="", snapshot_digest="",
        code_digest="", spec_digest="", train_end=START, metrics_path="",
        model_path="training/small/t/model.onnx", model_digest=sha256(onnx),
        columns=columns, classes=("0", "1", "2"), reference_path="",
        profile_path="", parameters={}, metrics={}, packages={}, resources={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("small")
    lake = Lake(str(root / "lake"))
    land(lake, days=DAYS)
    path = write_model(root / "dags", task="multiclass", scoring={"partition_rows": 250}, engine="spark")
    code = path / "features.py"
    text = code.read_text().replace("service =", ON_DEMAND, 1)
    code.write_text(text.replace("features=[machine_state]", "features=[machine_state, heated]"))
    folder = load_folder(path)
    snapshot = ingest(folder.spec, lake, RUN, contracts=folder.contracts)
    rows, columns = build_scoring_rows(folder, lake, snapshot, RUN.interval)
    assert rows["temperature"].is_nan().any()
    assert (rows["mode"] == "").any()
    assert rows["heat"].is_finite().any()
    training = train(lake, rows, columns)
    lake.write_json(f"{training.path}/manifest.json", to_json(training))
    return World(lake, folder, snapshot, training)


def test_slices_have_the_same_files_byte_for_byte(world: World) -> None:
    expected = world.score("polars")
    files = world.forget()
    assert len(expected.files) == 7
    assert world.score("spark") == expected
    assert world.forget() == files


def test_an_application_leaves_the_manifest_that_the_task_then_finds(
    world: World,
) -> None:
    plan = plan_scoring(world.folder, world.lake, world.snapshot, world.training.path, "1")
    elsewhere = world.folder.spec.spark.model_copy(update={"on": "emr"})
    spec = world.folder.spec.model_copy(update={"spark": elsewhere})
    task = replace(world.folder, spec=spec)
    with pytest.raises(SparkElsewhereError) as asked:
        score_plan(task, world.lake, plan, world.training)
    assert world.files() == {}
    job = asked.value.job
    STAGES[job.stage](world.folder, world.lake, json.loads(json.dumps(job.arguments)))
    found = score_plan(task, world.lake, plan, world.training)
    assert found.rows == sum(part.rows for part in plan.slices)
    files = world.forget()
    local = replace(world.folder, spec=spec.model_copy(update={"engine": "polars"}))
    assert score_plan(local, world.lake, plan, world.training) == found
    assert world.forget() == files


def test_what_is_finished_is_not_computed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = world.score("polars")
    files = world.files()
    notes = [path for path in files if path.startswith("scored_partitions")]
    for path in (notes[0], notes[4], f"{expected.path}/manifest.json"):
        world.lake.delete(path)
    asked: list[Any] = []
    finish = on_spark.finish_on_spark

    def watched(*arguments: Any) -> None:
        asked.append([arguments[5][number].digest for number in arguments[6]])
        finish(*arguments)

    monkeypatch.setattr(on_spark, "finish_on_spark", watched)
    assert world.score("spark") == expected
    assert [len(digests) for digests in asked] == [2]
    assert world.score("spark") == expected
    assert len(asked) == 1
    assert world.forget() == files


def test_files_have_the_same_answers_whatever_they_hold(world: World) -> None:
    odd = ["idle", None, "", "NUL\0L", "ÅÄ ✈", "turbo"]
    data = pl.DataFrame(
        {
            "id": range(70_000),  # more than a batch
            "load": pl.Series([None, float("nan"), float("inf"), 0.5, -0.0] * 14_000, dtype=pl.Float64),
            "mode": pl.Series([odd[place % len(odd)] for place in range(70_000)]),
            "temperature": pl.Series([None, 3.0] * 35_000, dtype=pl.Float32),
            "serviced": pl.Series([1.0, None] * 35_000, dtype=pl.Float32),
            "hour": pl.Series([7] * 70_000, dtype=pl.Int64),
            "weekend": [True, False] * 35_000,
            "heat": pl.Series([0.5, None] * 35_000, dtype=pl.Float32),
            "tags": pl.Series([["a", None], []] * 35_000),
        }
    )
    for number, rows in enumerate((data, data.clear(), data[:5], data[:5])):
        write_parquet(world.lake, f"due/day=4/{number}.parquet", rows)
    partitions = lake_partitions(world.lake, "due")
    expected = world.score_partitions("polars", partitions)
    files = world.forget()
    assert world.score_partitions("spark", partitions) == expected
    assert [file.rows for file in expected.files] == [70_000, 0, 5, 5]
    assert world.forget() == files


def test_what_is_wrong_with_rows_is_said_and_the_others_are_finished(world: World) -> None:
    rows = pl.DataFrame({"load": [0.1], "mode": ["idle"], "temperature": [1.0], "serviced": [1.0]})
    rows = rows.with_columns(heat=pl.lit(1.0))
    whole = rows.with_columns(hour=pl.lit(1, pl.Int64), weekend=True)
    for number, part in enumerate((whole, rows, whole.with_columns(hour=pl.lit(2, pl.Int64)))):
        write_parquet(world.lake, f"bad/{number}.parquet", part)
    with pytest.raises(FeatureError, match=r"bad/1.parquet: the rows to score lack hour, weekend; they have"):
        world.score_partitions("spark", lake_partitions(world.lake, "bad"))
    notes = [world.lake.read_json(path) for path in world.lake.list("scored_partitions")]
    assert sorted(note["file"]["partition"] for note in notes) == ["bad/0.parquet", "bad/2.parquet"]
    assert not list(world.lake.list("scores/small/manifest.json"))
    world.forget()


@pytest.mark.full
def test_killed_in_the_middle_it_goes_on_where_it_ended(world: World) -> None:
    lake = world.lake
    rows, _ = build_scoring_rows(world.folder, lake, world.snapshot, RUN.interval)
    paths = []
    for part in (rows[:100], rows[100:200], rows[200:300]):
        digest = sha256(part.write_csv().encode())
        # The lake names what is below objects/ by its content, and nobody reads it to know its digest.
        paths.append(write_parquet(lake, f"objects/{digest[:2]}/{digest}.parquet", part))
    partitions = [FilePartition(lake, path) for path in paths]
    expected = world.score_partitions("polars", partitions)
    files = world.forget()

    # One file never begins, so that Spark is certainly at work when all is killed.
    path = lake.full_path(paths[1])
    os.rename(path, f"{path}.later")
    os.mkfifo(path)
    lake.write_json("training.json", to_json(world.training))
    script = Path(__file__).with_name("scoring_process.py")
    sources = Path(__file__).parents[2] / "include"
    process = subprocess.Popen(
        [sys.executable, script, lake.url, world.folder.path, "training.json", *paths],
        env=os.environ | {"PYTHONPATH": str(sources)},
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(lake.list("scored_partitions"))) == 2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Python and its JVM, whose workers then end by themselves
        process.wait()
    assert len(list(lake.list("scored_partitions"))) == 2
    assert not lake.exists(f"{expected.path}/manifest.json")
    os.replace(f"{path}.later", path)

    assert world.score_partitions("spark", partitions) == expected
    assert world.forget() == files


@pytest.mark.full
def test_workers_read_and_write_a_lake_on_s3_themselves(world: World, s3: S3Store) -> None:
    rows, _ = build_scoring_rows(world.folder, world.lake, world.snapshot, RUN.interval)
    written = []
    for lake, engine in ((world.lake, "polars"), (s3.new_lake(), "spark")):
        there = replace(world, lake=lake)
        lake.write_bytes(world.training.model_path, world.lake.read_bytes(world.training.model_path))
        for number in range(3):
            write_parquet(lake, f"stored/{number}.parquet", rows[100 * number :][:100])
        scoring = there.score_partitions(engine, lake_partitions(lake, "stored"))
        written.append((scoring, there.forget()))
    assert written[0] == written[1]


def test_without_partitions_there_is_a_manifest(world: World) -> None:
    assert world.score_partitions("spark", []) == world.score_partitions("polars", [])
    world.forget()


@pytest.mark.parametrize("heights", [[1], [3, 0, 4, 1], [10, 10], [7], [4, 4, 4], [0, 5]])
def test_rows_are_cut_anew_each_once_and_in_order(heights: list[int]) -> None:
    starts = [sum(heights[:place]) for place in range(len(heights))]
    frames = (
        pl.DataFrame({"at": pl.int_range(start, start + height, eager=True)})
        for start, height in zip(starts, heights, strict=True)
    )
    cut = list(on_spark._cut(frames, 4))
    assert pl.concat(cut)["at"].to_list() == list(range(sum(heights)))
    assert [frame.height for frame in cut[:-1]] == [4] * (len(cut) - 1)
