"""Batch scoring with real ONNX files: the same answers as row by row, in parts that survive a crash."""

from __future__ import annotations

from dataclasses import replace
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
from ml_lifecycle.errors import FeatureError, IntegrityError
from ml_lifecycle.records import ColumnSpec, Interval, Run, Scoring, TaskType, Training, from_json
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.score import score

DAY = datetime(2013, 9, 4, tzinfo=UTC)
RUN = Run("late", "score__1", DAY, Interval(DAY, DAY))
COLUMNS = (
    ColumnSpec("delay", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("carrier", "string"),
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
    head = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encode = ColumnTransformer([("c", one_hot, ["carrier"])], remainder="passthrough")
    model = make_pipeline(encode, head(max_iter=10, random_state=0))
    model.fit(as_served(data, COLUMNS).to_pandas(), data["late"].to_numpy())
    onnx = convert(model, COLUMNS, task)
    lake.write_bytes("training/late/t/model.onnx", onnx)
    return Training(
        run=RUN, digest="t", path="training/late/t", attempt=1, training_set_path="", snapshot_digest="",
        code_digest="", spec_digest="", train_end=DAY, metrics_path="",
        model_path="training/late/t/model.onnx", model_digest=sha256(onnx),
        columns=COLUMNS, classes=() if task == "regression" else ("0", "1"), reference_path="",
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
    return lake.scan([path for path in lake.list(scoring.output_path) if path.endswith(".parquet")]).collect()


def test_parts_hold_the_answers_a_row_by_row_server_gives(lake, trained):
    training, data = champion(lake, trained), rows(1050)
    scoring = score(make_spec("binary"), lake, RUN, training, "7", data.lazy(), part_rows=400)
    assert [Path(path).name for path in lake.list(scoring.output_path)] == [
        "manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    scored = answers(lake, scoring)
    assert scoring.rows == scored.height == 1050
    assert scored.columns == ["flight", "label", "probabilities", "score", "model_version", "model_digest"]
    assert scored["flight"].to_list() == data["flight"].to_list()
    session = open_session(lake.read_bytes(training.model_path))
    for k in range(0, 1050, 50):
        alone = predict(session, feeds(as_served(data[k : k + 1], COLUMNS)))
        assert scored["score"][k] == pytest.approx(float(alone.outputs[0, -1]), abs=1e-6)
        assert scored["label"][k] == int(alone.labels[0])
    assert scored["model_version"].unique().to_list() == ["7"]
    assert from_json(Scoring, lake.read_json(f"{scoring.path}/manifest.json")) == scoring


def test_the_label_is_decided_at_the_specs_threshold(lake, trained):
    training, spec, data = champion(lake, trained), make_spec("binary"), rows(300)
    strict = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"threshold": 0.8})})
    scoring = score(strict, lake, RUN, training, "7", data.lazy())
    scored = answers(lake, scoring)
    assert scored["label"].to_list() == (scored["score"] >= 0.8).cast(int).to_list()
    assert scored.filter(pl.col("score").is_between(0.5, 0.8)).height, "or there is nothing to see"
    assert score(spec, lake, RUN, training, "7", data.lazy()).digest != scoring.digest


def test_regression_has_predictions(lake, trained):
    training = champion(lake, trained, "regression")
    scored = answers(lake, score(make_spec("regression"), lake, RUN, training, "1", rows(100).lazy()))
    assert scored.columns == ["flight", "prediction", "score", "model_version", "model_digest"]
    assert scored["prediction"].cast(pl.Float64).to_list() == scored["score"].to_list()


def test_a_file_and_a_frame_of_the_same_rows_are_one_result(lake, trained):
    training, data = champion(lake, trained), rows(300)
    path = Path(lake.full_path("training_sets/late/x/holdout.parquet"))
    path.parent.mkdir(parents=True)
    data.write_parquet(path, row_group_size=77)
    spec = make_spec("binary")
    from_file = score(spec, lake, RUN, training, "1", "training_sets/late/x/holdout.parquet")
    later = replace(RUN, run_id="score__2", as_of=DAY + timedelta(days=1))
    assert score(spec, lake, later, training, "1", data.lazy()) == replace(from_file, run=later)
    assert score(spec, lake, RUN, training, "1", data.reverse().lazy()).digest != from_file.digest
    assert score(spec, lake, RUN, training, "2", data.lazy()).digest != from_file.digest


def test_an_interrupted_run_goes_on_where_it_ended(lake, trained):
    training, spec, data = champion(lake, trained), make_spec("binary"), rows(500)
    whole = score(spec, lake, RUN, training, "1", data.lazy(), part_rows=100)
    before = {path: lake.read_bytes(path) for path in lake.list("scores")}
    # As a kill after the third part leaves it: the other parts and the manifest are not there.
    for name in ("manifest.json", "part-00003.parquet", "part-00004.parquet"):
        lake.delete(f"{whole.path}/{name}")
    kept = {path: Path(lake.full_path(path)).stat().st_ino for path in lake.list("scores")}
    assert score(spec, lake, RUN, training, "1", data.lazy(), part_rows=100) == whole
    assert {path: Path(lake.full_path(path)).stat().st_ino for path in kept} == kept
    assert {path: lake.read_bytes(path) for path in lake.list("scores")} == before
    assert answers(lake, whole)["flight"].to_list() == list(range(500))


def test_no_rows_have_a_manifest_too(lake, trained):
    scoring = score(make_spec("binary"), lake, RUN, champion(lake, trained), "1", rows(0).lazy())
    assert scoring.rows == 0
    assert lake.exists(f"{scoring.path}/manifest.json")


def test_bad_inputs_say_what_is_wrong(lake, trained):
    training, spec = champion(lake, trained), make_spec("binary")
    with pytest.raises(FeatureError, match="lack hour; they have"):
        score(spec, lake, RUN, training, "1", rows(5).drop("hour").lazy())
    with pytest.raises(FeatureError, match="'hour' is int and has 5 nulls"):
        score(spec, lake, RUN, training, "1", rows(5).with_columns(hour=None).lazy())
    with pytest.raises(IntegrityError):
        score(spec, lake, RUN, replace(training, model_digest="0" * 64), "1", rows(5).lazy())


def test_nested_columns_pass_through(lake, trained):
    data = rows(20).with_columns(tags=pl.Series([["a", None], []] * 10))
    scored = answers(lake, score(make_spec("binary"), lake, RUN, champion(lake, trained), "1", data.lazy()))
    assert scored["tags"].to_list() == data["tags"].to_list()
