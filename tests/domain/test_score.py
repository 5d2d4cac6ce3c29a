"""Batch scoring with real ONNX files: the same answers as row by row, in parts that survive a crash."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served, convert, feeds, open_session, predict
from ml_lifecycle.adapters.tables import rows_digest, write_parquet
from ml_lifecycle.errors import FeatureError, IntegrityError, SourceError
from ml_lifecycle.records import (
    ColumnSpec,
    Interval,
    Run,
    Scoring,
    ScoringPlan,
    TaskType,
    Training,
    from_json,
)
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages import score as stage
from ml_lifecycle.stages.score import score, score_share
from ml_lifecycle.stages.score_partitions import FilePartition, OpenRows, lake_partitions

DAY = datetime(2013, 9, 4, tzinfo=UTC)
RUN = Run("late", "score__1", DAY, Interval(DAY, DAY))
COLUMNS = (
    ColumnSpec("delay", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("carrier", "string"),
    ColumnSpec("weekend", "bool"),
)
ENVIRONMENT = {"server": "s", "lake": "l", "online_store": "o"}


def rows(n: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    delay = rng.normal(0, 1, n)
    return pl.DataFrame(
        {
            "flight": np.arange(n),
            "delay": np.where(rng.random(n) < 0.1, np.nan, delay),
            "hour": rng.integers(5, 23, n),
            "carrier": rng.choice(["AA", "B6", "UA"], n),
            "weekend": rng.random(n) < 0.3,
            "late": (delay + rng.normal(0, 1, n) > 0.5).astype(int),
        }
    )


def make_spec(task: TaskType) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "spec": 1, "name": "late", "description": "", "task": task, "owner": "flights",
            "sources": {"flights": {"uri": "flights/*.parquet"}},
            "labels": {"column": "late", "keys": ["flight"]}, "features": {"service": "late"},
            "training": {"data": {"start": "2013-01-01T00:00:00Z", "holdout": "14d"}},
            "evaluation": {"gates": [{"metric": "skill", "min": 0}]}, "approvers": {"users": ["alice"]},
            "environments": {"staging": ENVIRONMENT, "production": ENVIRONMENT},
        }
    )  # fmt: skip


def train(lake: Lake, task: TaskType) -> Training:
    data = rows(500, seed=9)
    labels = data["late"].to_numpy()
    classes: tuple[str, ...] = () if task == "regression" else ("0", "1")
    if task == "multiclass":
        classes = ("early", "late", "on time")
        labels = np.array(classes)[np.digitize(data["delay"].fill_nan(0).to_numpy(), [-0.5, 0.5])]
    head = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encode = ColumnTransformer([("c", one_hot, ["carrier"])], remainder="passthrough")
    model = make_pipeline(encode, head(max_iter=10, random_state=0))
    model.fit(as_served(data, COLUMNS).to_pandas(), labels)
    onnx = convert(model, COLUMNS, task)
    lake.write_bytes("training/late/t/model.onnx", onnx)
    return Training(
        run=RUN, digest="t", path="training/late/t", attempt=1, training_set_path="", snapshot_digest="",
        code_digest="", spec_digest="", train_end=DAY, metrics_path="",
        model_path="training/late/t/model.onnx", model_digest=sha256(onnx),
        columns=COLUMNS, classes=classes, reference_path="",
        profile_path="", parameters={}, metrics={}, packages={}, resources={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return {task: (folder, train(Lake(str(folder / task)), task)) for task in ("binary", "regression")}


@pytest.fixture
def lake(tmp_path, trained):
    return Lake(str(tmp_path / "lake"))


def champion(lake: Lake, trained: dict[str, Any], task: TaskType = "binary") -> Training:
    folder, training = trained[task]
    lake.write_bytes(training.model_path, Lake(str(folder / task)).read_bytes(training.model_path))
    return training


def answers(lake: Lake, scoring: Scoring) -> pl.DataFrame:
    return lake.scan([file.path for file in scoring.files]).collect()


def land(lake: Lake, *frames: pl.DataFrame, below: str = "due") -> list[FilePartition]:
    """A partition of the lake for each frame."""
    for number, frame in enumerate(frames):
        write_parquet(lake, f"{below}/{number}.parquet", frame)
    return lake_partitions(lake, below)


def land_days(lake: Lake, days: int = 4) -> list[FilePartition]:
    return land(lake, *(rows(100 + day, seed=day) for day in range(days)))


@dataclass(frozen=True)
class Watched:
    """A partition that says when it is read."""

    partition: FilePartition
    seen: Callable[[str], Any]

    @property
    def name(self) -> str:
        return self.partition.name

    @property
    def digest(self) -> str:
        return self.partition.digest

    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        self.seen(self.name)
        with self.partition.open() as opened:
            yield opened


class Batch:
    """A scoring that can be run again, and which partitions that reads."""

    def __init__(self, lake: Lake, training: Training, task: TaskType = "binary") -> None:
        self.lake, self.training, self.spec = lake, training, make_spec(task)

    def run(self, partitions: list[FilePartition], version: str = "7", **options: Any) -> Scoring:
        return score(self.spec, self.lake, RUN, self.training, version, partitions, **options)

    def read_by(self, partitions: list[FilePartition], **options: Any) -> tuple[Scoring, list[str]]:
        read: list[str] = []
        watched: Any = [Watched(one, read.append) for one in partitions]
        return self.run(watched, **options), [name.rsplit("/", 1)[-1] for name in read]

    def files(self) -> dict[str, bytes]:
        return {
            path: self.lake.read_bytes(path)
            for folder in ("scores", "scored_partitions")
            for path in self.lake.list(folder)
        }


@pytest.fixture
def batch(lake, trained) -> Batch:
    return Batch(lake, champion(lake, trained))


def test_parts_hold_the_answers_a_row_by_row_server_gives(batch, lake, monkeypatch):
    monkeypatch.setattr(stage, "BATCH_ROWS", 400)
    data = rows(1550)
    scoring = batch.run(land(lake, data[:1050], data[1050:]))
    assert [Path(path).name for path in lake.list(scoring.output_path)] == [
        "manifest.json", "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip
    scored = answers(lake, scoring)
    assert scoring.rows == scored.height == 1550
    assert scored.schema == {
        "flight": pl.Int64, "label": pl.Int64, "probabilities": pl.List(pl.Float32), "score": pl.Float64,
        "model_version": pl.String, "model_digest": pl.String,
    }  # fmt: skip
    assert scored["flight"].to_list() == data["flight"].to_list()
    session = open_session(lake.read_bytes(batch.training.model_path))
    for k in range(0, 1550, 50):
        alone = predict(session, feeds(as_served(data[k : k + 1], COLUMNS)))
        assert scored["probabilities"][k].to_list() == alone.outputs[0].tolist()
        assert scored["score"][k] == float(alone.outputs[0, -1])
        assert scored["label"][k] == int(alone.labels[0])
    assert scored["model_version"].unique().to_list() == ["7"]
    assert scored["model_digest"].unique().to_list() == [batch.training.model_digest]


def test_the_manifest_lists_partitions_with_digests_and_rows(batch, lake):
    scoring = batch.run(land_days(lake))
    assert from_json(Scoring, lake.read_json(f"{scoring.path}/manifest.json")) == scoring
    assert [(file.partition, file.rows) for file in scoring.files] == [
        (f"due/{day}.parquet", 100 + day) for day in range(4)
    ]
    for file in scoring.files:
        assert sha256(lake.read_bytes(file.path)) == file.digest
    assert scoring.columns == {
        "flight": "int64", "label": "int64", "probabilities": "list<item: float>", "score": "double",
        "model_version": "string", "model_digest": "string",
    }  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_rows_give_the_same_bytes(batch, lake, threads):
    partitions = land(lake, rows(3000))
    first = batch.run(partitions, threads=threads)
    files = batch.files()
    for path in files:
        lake.delete(path)
    assert batch.run(partitions, threads=threads) == first
    assert batch.files() == files


def test_with_more_threads_the_last_bit_may_differ_so_it_is_another_result(batch, lake):
    partitions = land(lake, rows(3000))
    one, two = (batch.run(partitions, threads=threads) for threads in (1, 2))
    assert one.digest != two.digest
    scores = [answers(lake, scoring)["score"].to_numpy() for scoring in (one, two)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_the_label_is_decided_at_the_specs_threshold(batch, lake):
    partitions, spec = land(lake, rows(300)), batch.spec
    plain = batch.run(partitions)
    batch.spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"threshold": 0.8})})
    strict = batch.run(partitions)
    scored = answers(lake, strict)
    assert scored["label"].to_list() == (scored["score"] >= 0.8).cast(int).to_list()
    assert scored.filter(pl.col("score").is_between(0.5, 0.8)).height, "or there is nothing to see"
    assert answers(lake, plain)["label"].to_list() != scored["label"].to_list()


def test_regression_has_predictions(lake, trained):
    scoring = Batch(lake, champion(lake, trained, "regression"), "regression").run(land(lake, rows(100)))
    scored = answers(lake, scoring)
    assert scored.columns == ["flight", "prediction", "score", "model_version", "model_digest"]
    assert scored["prediction"].dtype == pl.Float32
    assert scored["prediction"].cast(pl.Float64).to_list() == scored["score"].to_list()


def test_text_labels_are_text(lake, tmp_path):
    training = train(lake, "multiclass")
    scoring = Batch(lake, training, "multiclass").run(land(lake, rows(50), rows(0)))
    scored = answers(lake, scoring)
    assert scored["label"].dtype == pl.String
    likeliest = scored["probabilities"].list.arg_max().to_list()
    assert scored["label"].to_list() == [("early", "late", "on time")[place] for place in likeliest]
    assert scored["score"].to_list() == scored["probabilities"].list.max().cast(pl.Float64).to_list()


def test_another_version_another_result_the_same_rows_the_same(batch, lake):
    partitions = land_days(lake)
    first = batch.run(partitions)
    later = replace(RUN, run_id="score__2", as_of=DAY + timedelta(days=1))
    again = score(batch.spec, lake, later, batch.training, "7", partitions)
    assert again == replace(first, run=later)
    assert batch.run(partitions, "8").digest != first.digest
    assert batch.run(partitions[::-1]).digest != first.digest


def write_order(batch: Batch, scoring: Scoring) -> list[str]:
    """The files of a scoring in the order in which they came to be there."""
    notes = {
        batch.lake.read_json(path)["file"]["path"]: path for path in batch.lake.list("scored_partitions")
    }
    parts = [path for file in scoring.files for path in (file.path, notes[file.path])]
    return [*parts, f"{scoring.path}/manifest.json"]


def test_killed_between_any_two_files_it_goes_on_where_it_ended(batch, lake):
    partitions = land_days(lake)
    whole, read = batch.read_by(partitions)
    assert read == ["0.parquet", "1.parquet", "2.parquet", "3.parquet"]
    undisturbed, order = batch.files(), write_order(batch, whole)
    for there in range(len(order) + 1):
        for path in order[there:]:
            lake.delete(path)
        again, read = batch.read_by(partitions)
        assert again == whole
        assert batch.files() == undisturbed
        unfinished = [number for number in range(4) if 2 * number + 1 >= there]
        assert read == [f"{number}.parquet" for number in unfinished]


def test_two_runs_at_once_come_to_the_same(batch, lake):
    partitions = land_days(lake)
    meeting = threading.Barrier(2, timeout=60)
    watched: Any = [Watched(one, lambda name: meeting.wait()) for one in partitions]
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(batch.run, watched) for _ in range(2))
        assert one.result() == other.result()
    files = batch.files()
    shutil.rmtree(lake.full_path("scores"))
    shutil.rmtree(lake.full_path("scored_partitions"))
    assert batch.run(partitions) == one.result()
    assert batch.files() == files


def test_tasks_that_share_the_partitions_leave_the_last_one_nothing_to_compute(batch, lake):
    partitions = land_days(lake, 5)
    alone = batch.run(partitions)
    undisturbed = batch.files()
    for path in undisturbed:
        lake.delete(path)
    plan = ScoringPlan(RUN, "p", "scoring_plans/late/p", "", "", "", "7", "", ())
    shares = [score_share(batch.spec, lake, plan, batch.training, partitions, k, 3) for k in range(3)]
    assert [(share.share, share.partitions) for share in shares] == [(0, 2), (1, 2), (2, 1)]
    assert sum(share.rows for share in shares) == alone.rows
    assert batch.read_by(partitions) == (alone, [])
    assert batch.files() == undisturbed


def test_partitions_of_an_earlier_result_are_not_computed_again(batch, lake):
    earlier = batch.run(land_days(lake, 3))
    write_parquet(lake, "due/1.parquet", rows(50, seed=77))
    write_parquet(lake, "due/9.parquet", rows(60, seed=78))
    later, read = batch.read_by(lake_partitions(lake, "due"))
    assert read == ["1.parquet", "9.parquet"]
    assert later.path != earlier.path
    assert [file.digest for file in later.files[::2]] == [file.digest for file in earlier.files[::2]]
    assert answers(lake, later)["flight"].len() == 100 + 50 + 102 + 60
    for file in later.files:
        assert sha256(lake.read_bytes(file.path)) == file.digest
    assert answers(lake, earlier).height == 303


@pytest.mark.parametrize("lost", ["gone", "torn"])
def test_what_an_earlier_result_has_lost_is_computed_again(batch, lake, lost):
    earlier = batch.run(land_days(lake, 2))
    path = earlier.files[0].path
    lake.delete(path) if lost == "gone" else lake.write_bytes(path, lake.read_bytes(path)[:-9])
    later, read = batch.read_by(land_days(lake, 3))
    assert read == ["0.parquet", "2.parquet"]
    assert [file.digest for file in later.files[:2]] == [file.digest for file in earlier.files]


def test_the_same_rows_twice_are_scored_once_and_answered_twice(batch, lake):
    scoring, read = batch.read_by(land(lake, rows(30), rows(30)))
    assert read == ["0.parquet"]
    assert answers(lake, scoring)["flight"].to_list() == [*range(30), *range(30)]


def test_a_file_that_the_lake_names_by_its_content_is_not_read_for_its_digest(lake):
    digest = rows_digest(rows(10))
    path = write_parquet(lake, f"objects/{digest[:2]}/{digest}.parquet", rows(10))
    assert FilePartition(lake, path).digest == digest
    elsewhere = write_parquet(lake, f"due/{digest}.parquet", rows(10))
    assert FilePartition(lake, elsewhere).digest == sha256(lake.read_bytes(elsewhere))


def test_folders_named_as_columns_are_columns(batch, lake):
    data = rows(40).drop("hour")
    write_parquet(lake, "due/day=2013-09-04/hour=7/0.parquet", data)
    write_parquet(lake, "due/day=__HIVE_DEFAULT_PARTITION__/hour=8/0.parquet", data)
    scoring = batch.run(lake_partitions(lake, "due"))
    scored = answers(lake, scoring)
    assert scored["day"].to_list() == ["2013-09-04"] * 40 + [None] * 40
    session = open_session(lake.read_bytes(batch.training.model_path))
    for hour, part in ((7, scored[:40]), (8, scored[40:])):
        expected = predict(session, feeds(as_served(data.with_columns(hour=hour), COLUMNS))).outputs
        np.testing.assert_array_equal(np.array(part["probabilities"].to_list(), np.float32), expected)


def test_no_partitions_have_a_manifest_and_an_empty_one_has_a_file(batch, lake):
    nothing = batch.run([])
    assert (nothing.rows, nothing.files) == (0, ())
    assert lake.exists(f"{nothing.path}/manifest.json")
    empty = batch.run(land(lake, rows(0), rows(3)))
    assert [file.rows for file in empty.files] == [0, 3]
    assert answers(lake, empty).height == 3


def test_every_kind_of_missing_text_and_number_is_what_the_server_makes_of_it(batch, lake):
    odd = ["UA", None, "", "NUL\0L", "ÅÄ ✈", "x" * 300, *(f"c{number}" for number in range(500))]
    data = rows(len(odd)).with_columns(
        carrier=pl.Series(odd), delay=pl.Series([None, float("nan"), float("inf"), -0.0, *range(502)])
    )
    scored = answers(lake, batch.run(land(lake, data)))
    session = open_session(lake.read_bytes(batch.training.model_path))
    served = as_served(data, COLUMNS)
    plain = {
        column.name: np.array(
            served[column.name].to_list(), dtype=object if column.type == "string" else None
        )
        for column in COLUMNS
    }
    plain["delay"] = plain["delay"].astype(np.float32)
    expected = session.run(["probabilities"], {name: values.reshape(-1, 1) for name, values in plain.items()})
    np.testing.assert_array_equal(np.array(scored["probabilities"].to_list(), np.float32), expected[0])


def test_rows_of_nothing_but_features_have_nothing_but_answers(batch, lake):
    data = rows(20)
    scored = answers(lake, batch.run(land(lake, data.select(column.name for column in COLUMNS))))
    assert scored.columns == ["label", "probabilities", "score", "model_version", "model_digest"]
    assert scored.height == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "hour"}, "due/0.parquet: the rows to score lack hour; they have flight, delay"),
        ({"hour": None}, "due/0.parquet: column 'hour' is int and has 5 nulls"),
        ({"weekend": None}, "'weekend' is bool and has 5 nulls"),
        ({"delay": pl.lit("soon")}, "not of the type that the model takes: .*'delay'"),
        ({"score": 1.0, "label": 1}, "named like the answers, label, score: rename them"),
    ],
)
def test_rows_that_do_not_fit_say_what_is_wrong_with_them(batch, lake, change, message):
    data = rows(5)
    data = data.drop(change["drop"]) if "drop" in change else data.with_columns(**change)
    with pytest.raises(FeatureError, match=message):
        batch.run(land(lake, data))
    assert batch.files() == {}


def test_partitions_must_have_the_same_columns(batch, lake):
    with pytest.raises(FeatureError, match=r"due/1.parquet has the columns .*; due/0.parquet has flight"):
        batch.run(land(lake, rows(5), rows(5).rename({"flight": "id"})))
    assert not [path for path in batch.files() if path.endswith("manifest.json")]


def test_texts_are_the_same_column_however_arrow_lays_them_out(batch, lake):
    with_text = rows(5).with_columns(tail=pl.lit("N1"))
    land(lake, with_text)
    with_text.to_pandas().to_parquet(Path(lake.full_path("due/1.parquet")))
    assert answers(lake, batch.run(lake_partitions(lake, "due")))["tail"].to_list() == ["N1"] * 10


def test_a_file_that_is_no_parquet_and_a_model_that_is_another(batch, lake):
    lake.write_bytes("due/0.parquet", b"flight,delay")
    with pytest.raises(SourceError, match=r"due/0.parquet is no Parquet file"):
        batch.run(lake_partitions(lake, "due"))
    batch.training = replace(batch.training, model_digest="0" * 64)
    with pytest.raises(IntegrityError):
        batch.run(land_days(lake))


def test_nested_columns_pass_through(batch, lake):
    data = rows(20).with_columns(tags=pl.Series([["a", None], []] * 10), at=pl.lit(DAY))
    scored = answers(lake, batch.run(land(lake, data)))
    assert scored["tags"].to_list() == data["tags"].to_list()
    assert scored["at"].to_list() == data["at"].to_list()
