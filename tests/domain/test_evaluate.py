"""Evaluation on the ONNX file: parity, gates, the champion, segments, golden rows."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from tests.domain.training_world import (
    COLUMNS,
    HOLDOUT_ROWS,
    PIPELINE,
    Trained,
    make_folder,
    make_rows,
    make_training_set,
    train_here,
)

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.errors import ConversionError, GateError, TrainingError
from ml_lifecycle.evaluation.gates import measure_segments
from ml_lifecycle.evaluation.parity import kind_of_rows
from ml_lifecycle.metrics import Answers
from ml_lifecycle.records import Evaluation, GateResult, TaskType, Training, digest_of, from_json
from ml_lifecycle.serving.columns import make_table
from ml_lifecycle.serving.decoding import parse_request, read_json
from ml_lifecycle.serving.model import OnnxModel
from ml_lifecycle.serving.signature import Signature
from ml_lifecycle.spec.model import Gate
from ml_lifecycle.stages.evaluate import evaluate, raise_if_failed

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """A trained model of every task type."""
    root = tmp_path_factory.mktemp("evaluate")
    lake = Lake(str(root / "lake"))
    tasks: tuple[TaskType, ...] = ("binary", "multiclass", "regression")
    return {task: train_here(lake, make_folder(root, task), root / "scratch") for task in tasks}


def judge(
    trained: Trained,
    champion: Training | None = None,
    gates: list[dict[str, object]] | None = None,
    **evaluation: object,
) -> Evaluation:
    """Evaluate, with other gates or limits than the folder's."""
    spec = trained.folder.spec
    changed = spec.evaluation.model_dump() | evaluation | ({"gates": gates} if gates else {})
    spec = spec.model_validate(spec.model_dump() | {"evaluation": changed})
    return evaluate(spec, trained.lake, trained.training, champion, "3" if champion else None, NOW)


def gate(evaluation: Evaluation, name: str) -> GateResult:
    return next(result for result in evaluation.gates if result.gate == name)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_good_model_passes_every_gate(world: dict[str, Trained], task: str) -> None:
    trained = world[task]
    evaluation = judge(trained)
    assert [result for result in evaluation.gates if not result.passed] == []
    assert evaluation.passed
    raise_if_failed(evaluation)
    assert evaluation.metrics["skill"] == pytest.approx(trained.training.metrics["skill"], abs=1e-3)
    assert {"finite", "parity.absolute", "parity.relative"} <= {result.gate for result in evaluation.gates}
    assert evaluation.holdout_rows == HOLDOUT_ROWS
    assert (evaluation.champion_version, evaluation.champion_metrics) == (None, {})


def test_it_is_named_by_its_inputs_and_made_once(world: dict[str, Trained]) -> None:
    trained = world["binary"]
    first = judge(trained)
    lake = trained.lake
    written = lake.read_bytes(first.report_path)
    again = evaluate(trained.folder.spec, lake, trained.training, None, None, NOW + timedelta(days=1))
    assert again == first
    assert lake.read_bytes(first.report_path) == written
    assert from_json(Evaluation, lake.read_json(f"{first.path}/manifest.json")) == first
    assert judge(trained, threshold=0.4).digest != first.digest
    assert judge(trained, champion=trained.training).digest != first.digest


@pytest.mark.parametrize(
    ("task", "threshold"), [("binary", 0.5), ("binary", 0.2), ("multiclass", 0.5), ("regression", 0.5)]
)
def test_a_server_with_the_file_gives_the_golden_answers(
    world: dict[str, Trained], task: TaskType, threshold: float
) -> None:
    trained = world[task]
    training = trained.training
    golden = trained.lake.read_json(judge(trained, threshold=threshold).golden_path)
    variant = Variant(
        role="champion",
        version="1",
        model_path=training.model_path,
        model_digest=golden["model_digest"],
        task=task,
        columns=training.columns,
        classes=training.classes,
        threshold=threshold,
    )
    body = json.dumps(golden["request"]).encode()
    features = Signature(variant).features(parse_request(*read_json(body)).inputs)
    table = make_table(variant.columns, [features])
    assert table.rows == 54
    assert "(unseen category)" in table.given["carrier"]
    assert np.isnan(np.asarray(table.given["wind"])).any()
    model = OnnxModel(trained.lake.read_bytes(training.model_path, golden["model_digest"]), variant)
    answers = model.run(table)
    assert answers.keys() == golden["expected"].keys()
    for name, expected in golden["expected"].items():
        got = answers[name].ravel().tolist()
        assert got == (expected if name == "label" else pytest.approx(expected, abs=golden["absolute"]))


def test_the_report_is_one_page_that_shows_every_gate(world: dict[str, Trained]) -> None:
    trained = world["binary"]
    evaluation = judge(trained, gates=[{"metric": "roc_auc", "min": 0.999}])
    page = trained.lake.read_bytes(evaluation.report_path).decode()
    assert all(result.gate in page for result in evaluation.gates)
    assert "<span class=failed>failed</span>" in page
    assert "http" not in page
    assert trained.lake.read_json(f"{evaluation.path}/report.json")["evaluated_at"] == NOW.isoformat()


def test_a_missed_gate_stops_the_run_with_number_and_threshold(world: dict[str, Trained]) -> None:
    evaluation = judge(world["binary"], gates=[{"metric": "roc_auc", "min": 0.999}])
    assert not evaluation.passed
    with pytest.raises(GateError, match=r"roc_auc.min is 0.\d+, must be at least 0.999"):
        raise_if_failed(evaluation)


def trained_on(tmp_path: Path, task: TaskType, estimator: str) -> Trained:
    """A folder whose ``train`` fits this expression; ``encode`` codes the carrier and passes numbers."""
    fit = "    return make_pipeline(ESTIMATOR).fit(training_set, labels)\n"
    body = PIPELINE.partition("    columns =")[0] + fit.replace("ESTIMATOR", estimator)
    imports = "from sklearn.neighbors import RadiusNeighborsRegressor\n"
    imports += "from sklearn.preprocessing import StandardScaler\n"
    folder = make_folder(tmp_path / "models", task, imports + body)
    return train_here(Lake(str(tmp_path / "lake")), folder, tmp_path / "scratch")


CATEGORICAL = "encode(*training_set.columns.drop('carrier')), {}(categorical_features=[0], random_state=0)"


@pytest.mark.parametrize(
    ("task", "estimator", "apart"),
    [
        ("binary", "HistGradientBoostingClassifier", 0.1),
        ("multiclass", "HistGradientBoostingClassifier", 0.1),
        ("regression", "HistGradientBoostingRegressor", 50),
    ],
)
def test_native_categories_convert_to_other_answers_and_are_refused(
    tmp_path: Path, task: TaskType, estimator: str, apart: float
) -> None:
    evaluation = judge(trained_on(tmp_path, task, CATEGORICAL.format(estimator)))
    parity = gate(evaluation, "parity.absolute")
    assert not parity.passed
    assert parity.measured is not None
    assert parity.measured > apart
    reason = str(parity.reason)
    assert re.search(r"\d+ of 20\d rows differ, most of all (holdout row|the probe with)", reason), "which"
    expected, got = map(float, re.findall(r"the estimator answers (\S+), the ONNX file (\S+);", reason)[0])
    assert abs(expected - got) == pytest.approx(parity.measured, rel=1e-3), "by how much"
    assert re.search(r"large in \d+ of the \d+ rows where carrier is (AA|BB|CC|missing) and", reason), "kind"
    assert "encode the categories and leave that argument out" in reason, "what to do"
    with pytest.raises(GateError, match=r"parity.absolute is .* rows differ"):
        raise_if_failed(evaluation)
    assert evaluation.golden_path, "the refusal is told before anything is registered"


def test_a_threshold_that_float32_misses_is_refused_and_said_so(tmp_path: Path) -> None:
    # A scaler computes in float64, its converted form in float32: a tree's threshold lies between the two.
    scaled = (
        "encode('distance', 'hour').set_params(text='drop'), StandardScaler(), RandomForestClassifier(30)"
    )
    parity = gate(judge(trained_on(tmp_path, "multiclass", scaled)), "parity.absolute")
    assert not parity.passed
    assert re.match(r"\d of 20\d rows differ", str(parity.reason))
    assert "leave out scalers before trees" in str(parity.reason)
    assert "categorical_features" not in str(parity.reason)


@pytest.mark.filterwarnings("ignore:One or more samples have no neighbors")
def test_an_estimator_without_an_answer_for_rows_of_the_holdout_is_refused(tmp_path: Path) -> None:
    # Far from every training row there is no neighbour to ask.
    lonely = "encode('distance').set_params(text='drop'), RadiusNeighborsRegressor(0.5)"
    with pytest.raises(TrainingError, match=r"predict\(\) gives NaN or infinity for \d+ of 200 rows"):
        judge(trained_on(tmp_path, "regression", lonely))


def test_a_file_that_loads_but_cannot_answer_is_refused(world: dict[str, Trained]) -> None:
    trained = world["regression"]
    lake, path = trained.lake, "trainings/mute/model.onnx"
    lake.write_bytes(path, answers_one_row_only(lake.read_bytes(trained.training.model_path)))
    mute = replace(trained.training, model_path=path, model_digest=sha256(lake.read_bytes(path)))
    before = sorted(lake.list("evaluations"))
    with pytest.raises(ConversionError, match=r"loads, but cannot answer these rows: .*Reshape"):
        judge(replace(trained, training=mute))
    assert sorted(lake.list("evaluations")) == before


def answers_one_row_only(model: bytes) -> bytes:
    """The file with a shape in it that fits one row only."""
    loaded = onnx.load_from_string(model)
    (shape,) = (constant for constant in loaded.graph.initializer if constant.name == "prediction_shape")
    shape.CopyFrom(onnx.helper.make_tensor("prediction_shape", onnx.TensorProto.INT64, [1], [1]))
    return bytes(loaded.SerializeToString())


def test_the_kind_of_rows_that_differ() -> None:
    rows = pl.DataFrame(
        {
            "wind": [1.0, float("nan"), 2.0, float("nan"), 3.0, 4.0],
            "carrier": ["AA", "AA", "BB", "", "", "BB"],
            "weekend": [True, False, True, False, True, False],
        },
        schema_overrides={"wind": pl.Float32},
    )

    def kind(*differing: int) -> str:
        mask = np.isin(np.arange(6), differing)
        return kind_of_rows(mask, [rows[:2], rows[2:]])

    assert (
        kind(1, 3)
        == "the difference is large in 2 of the 2 rows where wind is missing and in 0 of the other 4"
    )
    assert "2 of the 2 rows where carrier is missing" in kind(3, 4)
    assert "3 of the 3 rows where weekend is true" in kind(0, 2, 4)
    assert kind(0, 1, 2, 3, 4, 5) == "no kind of rows stands out"


def test_parity_budgets_bind(world: dict[str, Trained]) -> None:
    evaluation = judge(world["binary"], parity={"absolute": 0.0})
    assert not gate(evaluation, "parity.absolute").passed
    assert gate(evaluation, "parity.relative").passed
    assert gate(evaluation, "parity.flips").measured == 0


def test_a_holdout_of_one_class_fails_what_it_cannot_compute(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models")
    holdout = make_rows(HOLDOUT_ROWS, "binary", 2).with_columns(label=pl.lit(0, dtype=pl.Int64))
    trained = train_here(lake, folder, tmp_path / "s", make_training_set(lake, folder, holdout=holdout))
    evaluation = judge(trained)
    result = gate(evaluation, "roc_auc.min")
    assert (result.passed, result.measured) == (False, None)
    assert result.reason == "needs both classes among the rows: 0 positive, 200 negative"
    with pytest.raises(
        GateError, match=r"roc_auc.min could not be computed, must be at least 0.6 .needs both"
    ):
        raise_if_failed(evaluation)


# The champion, trained earlier on other rows, is compared on the new model's holdout.


@pytest.fixture(scope="module")
def earlier(world: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    lake, folder = world["binary"].lake, world["binary"].folder
    train = make_rows(300, "binary", seed=9)
    training_set = make_training_set(lake, folder, train=train, shift=timedelta(days=-30))
    return train_here(lake, folder, tmp_path_factory.mktemp("earlier"), training_set)


def changed(champion: Training, **changes: object) -> Training:
    """The champion had it been trained otherwise: its digest says so."""
    return replace(champion, digest=digest_of(repr(changes)), **changes)  # type: ignore[arg-type]


def test_a_champion_is_measured_on_the_same_rows(world: dict[str, Trained], earlier: Trained) -> None:
    evaluation = judge(world["binary"], earlier.training)
    result = gate(evaluation, "roc_auc.regression")
    assert result.champion == evaluation.champion_metrics["roc_auc"]
    assert result.measured == pytest.approx(result.champion - evaluation.metrics["roc_auc"])
    assert (evaluation.champion_version, evaluation.champion_digest) == ("3", earlier.training.model_digest)
    assert not evaluation.for_record


def test_a_regression_fails_the_gate(world: dict[str, Trained], earlier: Trained, tmp_path: Path) -> None:
    world_lake = world["binary"].lake
    folder = make_folder(tmp_path / "models", parameters="{max_iter: 1}", name="toy_worse")
    worse = train_here(world_lake, folder, tmp_path / "scratch")
    gates: list[dict[str, object]] = [{"metric": "roc_auc", "max_regression": 0.001}]
    result = gate(judge(worse, earlier.training, gates), "roc_auc.regression")
    assert not result.passed
    assert result.measured is not None
    assert result.measured > 0.001


def test_without_a_champion_nothing_can_get_worse(world: dict[str, Trained]) -> None:
    result = gate(judge(world["binary"]), "roc_auc.regression")
    assert (result.passed, result.reason) == (True, "there is no champion yet")


def test_a_champion_that_knew_the_holdout_is_not_compared(
    world: dict[str, Trained], earlier: Trained
) -> None:
    trained = world["binary"]
    same_rows = judge(trained, changed(earlier.training, train_end=trained.training.train_end))
    assert gate(same_rows, "roc_auc.regression").measured is not None
    later = changed(earlier.training, train_end=trained.training.train_end + timedelta(hours=1))
    evaluation = judge(trained, later)
    result = gate(evaluation, "roc_auc.regression")
    assert (result.passed, result.measured) == (False, None)
    assert "into the holdout that starts at 2026-01-18T16:00:00+00:00" in str(result.reason)
    assert evaluation.champion_metrics == {}
    # Such a run goes on to be registered, for the record.
    assert evaluation.for_record
    assert not evaluation.passed
    raise_if_failed(evaluation)


def test_a_champion_that_needs_other_columns_is_not_compared(
    world: dict[str, Trained], earlier: Trained
) -> None:
    columns = (*COLUMNS, replace(COLUMNS[0], name="removed_since"))
    result = gate(judge(world["binary"], changed(earlier.training, columns=columns)), "roc_auc.regression")
    assert not result.passed
    assert "lacks or types otherwise: removed_since" in str(result.reason)


def segment_gate(
    gap: float, rows: int, column: str = "carrier", metric: str = "accuracy"
) -> dict[str, object]:
    return {"metric": metric, "max_segment_gap": gap, "segment": column, "min_segment_rows": rows}


def test_the_worst_segment_is_measured_and_named(world: dict[str, Trained]) -> None:
    evaluation = judge(world["binary"], gates=[segment_gate(0.0, 30)])
    result = gate(evaluation, "accuracy.segment.carrier")
    assert not result.passed
    report = world["binary"].lake.read_json(f"{evaluation.path}/report.json")
    measured = {one["value"]: one["measured"] for one in report["segments"]}
    assert set(measured) == {"AA", "BB", "CC", "(missing)"}
    worst = min(measured, key=lambda value: measured[value])
    assert result.reason == f"worst segment: {worst!r}"
    assert result.measured == pytest.approx(evaluation.metrics["accuracy"] - measured[worst])


@pytest.mark.parametrize(
    ("gate_of", "reason"),
    [
        (segment_gate(0.5, 150), "no segment has 150 rows"),
        (segment_gate(0.5, 30, "no_such"), "the holdout has no column 'no_such'"),
        (segment_gate(0.5, 2, "label", "roc_auc"), "segment '0' of .* needs both classes"),
    ],
    ids=["too_small", "no_column", "one_class_segment"],
)
def test_a_segment_gate_that_cannot_be_computed_fails(
    world: dict[str, Trained], gate_of: dict[str, object], reason: str
) -> None:
    result = next(one for one in judge(world["binary"], gates=[gate_of]).gates if ".segment." in one.gate)
    assert (result.passed, result.measured) == (False, None)
    assert re.search(reason, str(result.reason))


@pytest.mark.parametrize(
    "values", [["a", None, "", "a"], [1.5, None, float("nan"), 1.5]], ids=["text", "number"]
)
def test_rows_without_a_value_are_one_segment(values: list[object]) -> None:
    answers = Answers("regression", np.zeros(4), np.array([0.0, 3.0, 5.0, 0.0]))
    gate = Gate(metric="mae", max_segment_gap=1, segment="column", min_segment_rows=1)
    measured = {one.value: one.measured for one in measure_segments(gate, answers, pl.Series(values))}
    assert measured == {str(values[0]): 0, "(missing)": 4}


def test_small_segments_are_measured_together(world: dict[str, Trained]) -> None:
    evaluation = judge(world["binary"], gates=[segment_gate(0.9, 60)])
    report = world["binary"].lake.read_json(f"{evaluation.path}/report.json")
    rows = {one["value"]: one["rows"] for one in report["segments"]}
    assert sum(rows.values()) <= HOLDOUT_ROWS
    assert all(count >= 60 for count in rows.values())


def test_scoring_in_batches_changes_nothing(
    world: dict[str, Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judge(world["multiclass"])
    monkeypatch.setattr("ml_lifecycle.training.reference.BATCH_ROWS", 7)
    parts = judge(world["multiclass"], parity={"absolute": 2e-4})  # other inputs, so that it is made anew
    assert parts.digest != whole.digest
    assert parts.metrics == whole.metrics
    golden = [world["multiclass"].lake.read_json(one.golden_path) for one in (whole, parts)]
    assert golden[0] == golden[1]
