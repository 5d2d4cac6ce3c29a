"""Registering: one version a model and evaluation, whoever asks and however often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.domain.training_world import (
    COLUMNS,
    HOLDOUT_ROWS,
    Trained,
    make_folder,
    make_rows,
    make_training_set,
    tracking_database,
    train_here,
)

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served
from ml_lifecycle.records import Evaluation, ModelVersion, TaskType, from_json
from ml_lifecycle.stages.evaluate import evaluate
from ml_lifecycle.stages.register import register, set_alias
from ml_lifecycle.stages.train import log_training
from ml_lifecycle.training.reference import read_reference

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking_database(tmp_path_factory)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Trained:
    return trained_and_logged(tmp_path_factory.mktemp("register"), "binary", tracking_uri)


def trained_and_logged(
    root: Path, task: TaskType, tracking_uri: str, name: str | None = None, shift: timedelta = timedelta(0)
) -> Trained:
    lake = Lake(str(root / "lake"))
    folder = make_folder(root, task, name=name)
    training_set = make_training_set(lake, folder, requested_by="alice", shift=shift)
    trained = train_here(lake, folder, root / "scratch", training_set)
    return replace(trained, training=log_training(tracking_uri, lake, trained.training))


def judged(trained: Trained, threshold: float = 0.5) -> Evaluation:
    """Its evaluation; another threshold makes it another one."""
    spec = trained.folder.spec
    changed = spec.evaluation.model_copy(update={"threshold": threshold})
    spec = spec.model_copy(update={"evaluation": changed})
    return evaluate(spec, trained.lake, trained.training, None, None, NOW)


def versions(tracking_uri: str, name: str) -> list[Any]:
    from mlflow import MlflowClient

    return list(MlflowClient(tracking_uri).search_model_versions(f"name = '{name}'"))


def aliases(tracking_uri: str, name: str) -> dict[str, str]:
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri).get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_model_is_registered_once_with_all_that_built_it(
    binary: Trained, tracking_uri: str, tmp_path: Path, task: TaskType
) -> None:
    import mlflow

    trained = binary if task == "binary" else trained_and_logged(tmp_path, task, tracking_uri)
    spec, lake, training = trained.folder.spec, trained.lake, trained.training
    evaluation = judged(trained)
    first = register(tracking_uri, spec, lake, training, evaluation, None)
    assert register(tracking_uri, spec, lake, training, evaluation, None) == first
    (version,) = versions(tracking_uri, spec.name)
    assert (first.version, first.role, first.requested_by) == (str(version.version), "candidate", "alice")
    assert aliases(tracking_uri, spec.name) == {"candidate": first.version}
    written = lake.read_json(f"versions/{spec.name}/{first.version}/manifest.json")
    assert from_json(ModelVersion, written) == first
    expected = {
        "ml_lifecycle.model_digest": training.model_digest,
        "ml_lifecycle.evaluation_digest": evaluation.digest,
        "ml_lifecycle.snapshot_digest": training.snapshot_digest,
        "ml_lifecycle.code_digest": training.code_digest,
        "ml_lifecycle.requested_by": "alice",
        "ml_lifecycle.as_of": training.run.as_of.isoformat(),
        "ml_lifecycle.interval": "/".join(
            edge.isoformat() for edge in (training.run.interval.start, training.run.interval.end)
        ),
    }
    assert expected.items() <= version.tags.items()

    # MLflow's own tools load and run it, and it is the very file.
    source = f"runs:/{first.mlflow_run_id}/model"
    assert version.source == source
    local = mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path), tracking_uri=tracking_uri)
    assert sha256(Path(local, "model.onnx").read_bytes()) == training.model_digest
    loaded = mlflow.pyfunc.load_model(local)
    assert [column.name for column in loaded.metadata.signature.inputs] == [one.name for one in COLUMNS]
    rows = as_served(make_rows(HOLDOUT_ROWS, task, seed=2), COLUMNS).to_pandas()
    answer = loaded.predict({name: rows[[name]].to_numpy() for name in rows})
    outputs = np.asarray(answer["probabilities" if training.classes else "prediction"])
    reference = read_reference(lake, training.reference_path, COLUMNS, task)
    assert outputs == pytest.approx(reference.outputs[:HOLDOUT_ROWS], rel=1e-4, abs=1e-5)


def test_two_registrations_at_once_leave_one_version(binary: Trained, tracking_uri: str) -> None:
    spec, evaluation = binary.folder.spec, judged(binary, 0.41)
    before = {version.version for version in versions(tracking_uri, spec.name)}

    def go(_: int) -> ModelVersion:
        return register(tracking_uri, spec, binary.lake, binary.training, evaluation, None)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(go, range(2)))
    (made,) = {version.version for version in versions(tracking_uri, spec.name)} - before
    assert {one.version for one in both} == {str(made)}


def test_a_registration_that_died_before_its_manifest_is_finished(binary: Trained, tracking_uri: str) -> None:
    spec, evaluation = binary.folder.spec, judged(binary, 0.42)
    first = register(tracking_uri, spec, binary.lake, binary.training, evaluation, None)
    binary.lake.delete(f"versions/{spec.name}/{first.version}/manifest.json")
    count = len(versions(tracking_uri, spec.name))
    assert register(tracking_uri, spec, binary.lake, binary.training, evaluation, None) == first
    assert len(versions(tracking_uri, spec.name)) == count


def test_older_data_than_the_champions_are_for_the_record(binary: Trained, tracking_uri: str) -> None:
    spec, evaluation, train_end = binary.folder.spec, judged(binary, 0.43), binary.training.train_end
    before = aliases(tracking_uri, spec.name)
    champion_end = train_end + timedelta(hours=1)
    version = register(tracking_uri, spec, binary.lake, binary.training, evaluation, champion_end)
    assert version.role == "record"
    assert aliases(tracking_uri, spec.name) == before
    same = register(tracking_uri, spec, binary.lake, binary.training, judged(binary, 0.44), train_end)
    assert same.role == "candidate"


@pytest.mark.parametrize(
    "order", [("newer", "older"), pytest.param(("older", "newer"), marks=pytest.mark.full)]
)
def test_of_trainings_that_end_in_any_order_the_newest_data_become_the_candidate(
    tracking_uri: str, tmp_path: Path, order: tuple[str, str]
) -> None:
    shifts = {"newer": timedelta(0), "older": timedelta(days=-1)}
    name = f"ends_{order[0]}_first"
    trained = {
        age: trained_and_logged(tmp_path / age, "regression", tracking_uri, name, shifts[age])
        for age in order
    }

    def go(age: str, decided: tuple[str, ...] = ()) -> ModelVersion:
        one = trained[age]
        return register(
            tracking_uri, one.folder.spec, one.lake, one.training, judged(one), None, decided=decided
        )

    made = {age: go(age) for age in order}
    assert made["newer"].role == "candidate"
    assert aliases(tracking_uri, name)["candidate"] == made["newer"].version
    assert made["older"].role == ("record" if order[0] == "newer" else "candidate")

    # Rejected, approved or rolled back: what was decided is in nobody's way.
    trained["older"].lake.delete(f"versions/{name}/{made['older'].version}/manifest.json")
    assert go("older").role == "record"
    trained["older"].lake.delete(f"versions/{name}/{made['older'].version}/manifest.json")
    assert go("older", decided=(made["newer"].version,)).role == "candidate"


def test_what_is_found_again_carries_the_run_that_asked(binary: Trained, tracking_uri: str) -> None:
    spec, evaluation = binary.folder.spec, judged(binary, 0.48)
    first = register(tracking_uri, spec, binary.lake, binary.training, evaluation, None)
    run = replace(binary.training.run, run_id="later", requested_by="ben")
    again = register(tracking_uri, spec, binary.lake, replace(binary.training, run=run), evaluation, None)
    assert again == replace(first, run=run)
    assert again.requested_by == "alice", "whoever made it may not approve it"


def test_a_model_that_missed_a_gate_is_never_a_candidate(binary: Trained, tracking_uri: str) -> None:
    failed = replace(judged(binary, 0.45), passed=False)
    version = register(tracking_uri, binary.folder.spec, binary.lake, binary.training, failed, None)
    assert version.role == "record"
    assert aliases(tracking_uri, version.name).get("candidate") != version.version


def test_a_late_retry_does_not_take_the_alias_from_a_newer_candidate(
    binary: Trained, tracking_uri: str
) -> None:
    spec, lake = binary.folder.spec, binary.lake
    older, newer = judged(binary, 0.46), judged(binary, 0.47)
    first = register(tracking_uri, spec, lake, binary.training, older, None)
    second = register(tracking_uri, spec, lake, binary.training, newer, None)
    lake.delete(f"versions/{spec.name}/{first.version}/manifest.json")
    register(tracking_uri, spec, lake, binary.training, older, None)
    assert aliases(tracking_uri, spec.name)["candidate"] == second.version


def test_the_champion_alias_moves_when_told(binary: Trained, tracking_uri: str) -> None:
    version = register(tracking_uri, binary.folder.spec, binary.lake, binary.training, judged(binary), None)
    set_alias(tracking_uri, version.name, "champion", version.version)
    assert aliases(tracking_uri, version.name)["champion"] == version.version


def test_an_evaluation_of_another_model_is_refused(binary: Trained, tracking_uri: str) -> None:
    other = replace(judged(binary), model_digest="0" * 64)
    with pytest.raises(ValueError, match="the evaluation of just that model"):
        register(tracking_uri, binary.folder.spec, binary.lake, binary.training, other, None)
