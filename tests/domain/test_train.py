"""Planning a training, and its one MLflow run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.domain.training_world import (
    COLUMNS,
    Trained,
    attempt_at,
    make_folder,
    make_training_set,
    tracking_database,
    train_here,
    training_py,
)

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.errors import ServerUnavailableError, SpecError
from ml_lifecycle.records import from_json
from ml_lifecycle.stages.train import log_training, plan_training
from ml_lifecycle.training.job import TrainingJob


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("train")
    lake = Lake(str(root / "lake"))
    parameters = "{max_iter: 8, nested: {unused: 1}}"
    code = "\n".join(["def train(a, b, c, d):", "    c.pop('nested')", "    return fit(a, b, c, d)"])
    training = f"{_pipeline()}\n{code}\n"
    return train_here(
        lake,
        make_folder(root, "binary", training, parameters=parameters, name="toy_logged"),
        root / "scratch",
    )


def _pipeline() -> str:

    return training_py("binary").replace("def train(", "def fit(")


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking_database(tmp_path_factory)


def runs_of(tracking_uri: str, model: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(model)
    return list(client.search_runs([experiment.experiment_id]))


def test_a_plan_is_idempotent_and_names_everything_by_digest(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models")
    training_set = make_training_set(lake, folder)
    job = plan_training(folder, lake, training_set)
    assert plan_training(folder, lake, training_set) == job
    assert from_json(TrainingJob, lake.read_json(job.job_path)) == job
    assert job.path == f"training/toy_binary/{job.digest}"
    assert sha256(lake.read_bytes(job.code_path)) == folder.code_digest == job.code_digest
    assert job.command == ("python", "-m", "ml_lifecycle.training.pod")
    assert attempt_at(job).environment("s3://bucket/lake")["ML_LIFECYCLE_LAKE"] == "s3://bucket/lake"
    assert attempt_at(job).environment("s3://bucket/lake")["ML_LIFECYCLE_JOB"] == job.job_path


def test_other_parameters_other_data_and_other_code_are_other_trainings(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "one")
    jobs = [plan_training(folder, lake, make_training_set(lake, folder))]
    jobs.append(plan_training(folder, lake, make_training_set(lake, folder, columns=COLUMNS[:2])))
    other = make_folder(tmp_path / "two", parameters="{max_iter: 9}")
    jobs.append(plan_training(other, lake, make_training_set(lake, other)))
    code = make_folder(tmp_path / "three", training="def train(a, b, c, d): ...")
    jobs.append(plan_training(code, lake, make_training_set(lake, code)))
    assert len({job.digest for job in jobs}) == 4


def test_segments_are_of_features_and_part_of_the_training(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models")
    training_set = make_training_set(lake, folder)
    plain = plan_training(folder, lake, training_set)

    def cut(column: str) -> TrainingJob:
        monitoring = folder.spec.monitoring.model_copy(update={"segments": {column: ("AA",)}})
        spec = folder.spec.model_copy(update={"monitoring": monitoring})
        return plan_training(replace(folder, spec=spec), lake, training_set)

    assert cut("carrier").segments == {"carrier": ("AA",)}
    assert cut("carrier").digest != plain.digest
    with pytest.raises(SpecError, match="origin is no feature of the model"):
        cut("origin")


def test_a_folder_that_changed_since_it_was_loaded_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    folder = make_folder(tmp_path / "models")
    training_set = make_training_set(lake, folder)
    (folder.path / "training.py").write_text("def train(a, b, c, d): ...")
    with pytest.raises(SpecError, match="changed while the run was using it"):
        plan_training(folder, lake, training_set)


def test_a_training_is_one_run_with_all_that_it_takes_to_build_it_again(
    trained: Trained, tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    training = trained.training
    logged = log_training(tracking_uri, trained.lake, training, {"link": "somewhere"})
    assert log_training(tracking_uri, trained.lake, training).mlflow_run_id == logged.mlflow_run_id
    (run,) = runs_of(tracking_uri, "toy_logged")
    assert run.info.run_id == logged.mlflow_run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"max_iter": "8", "nested.unused": "1"}
    assert run.data.metrics["roc_auc"] == training.metrics["roc_auc"]
    assert run.data.metrics["resources.wall_seconds"] == training.resources["wall_seconds"]
    expected = {
        "ml_lifecycle.training_digest": training.digest,
        "ml_lifecycle.snapshot_digest": training.snapshot_digest,
        "ml_lifecycle.code_digest": training.code_digest,
        "ml_lifecycle.spec_digest": training.spec_digest,
        "ml_lifecycle.run_id": "run_1",
        "link": "somewhere",
    }
    assert expected.items() <= run.data.tags.items()
    assert "scikit-learn" in run.data.tags["ml_lifecycle.packages"]
    artifacts = MlflowClient(tracking_uri).list_artifacts(run.info.run_id)
    assert {file.path for file in artifacts} == {"metrics.json", "packages.json", "profile.json"}
    assert run.info.artifact_uri.startswith(Path(tracking_uri.removeprefix("sqlite:///")).parent.as_uri())


@pytest.fixture
def unlogged(trained: Trained, tracking_uri: str) -> Iterator[Trained]:
    """The same training with its runs deleted, as if it had never been logged."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    log_training(tracking_uri, trained.lake, trained.training)  # there is an experiment
    for run in runs_of(tracking_uri, "toy_logged"):
        client.delete_run(run.info.run_id)
    yield trained
    for run in runs_of(tracking_uri, "toy_logged"):
        client.delete_run(run.info.run_id)


def test_a_half_finished_run_is_found_and_finished(unlogged: Trained, tracking_uri: str) -> None:
    from mlflow import MlflowClient

    training = unlogged.training
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("toy_logged")
    half = client.create_run(
        experiment.experiment_id, tags={"ml_lifecycle.training_digest": training.digest}
    ).info.run_id
    client.log_metric(half, "roc_auc", training.metrics["roc_auc"])
    assert log_training(tracking_uri, unlogged.lake, training).mlflow_run_id == half
    (run,) = runs_of(tracking_uri, "toy_logged")
    assert run.info.status == "FINISHED"
    assert run.data.params["max_iter"] == "8"


def test_a_run_that_nobody_came_back_to_is_marked_killed_until_somebody_does(
    unlogged: Trained, tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    def status() -> dict[str, str]:
        runs = runs_of(tracking_uri, "toy_logged")
        return {run.data.tags.get("ml_lifecycle.training_digest", "theirs"): run.info.status for run in runs}

    client, training = MlflowClient(tracking_uri), unlogged.training
    lost = replace(training, digest="0" * 64)
    experiment = client.get_experiment_by_name("toy_logged").experiment_id
    client.create_run(experiment, tags={"ml_lifecycle.training_digest": lost.digest})
    client.create_run(experiment)  # somebody's own, which is none of ours
    log_training(tracking_uri, unlogged.lake, training)
    assert status() == {training.digest: "FINISHED", lost.digest: "KILLED", "theirs": "RUNNING"}
    log_training(tracking_uri, unlogged.lake, lost)
    assert status()[lost.digest] == "FINISHED"


def test_of_two_runs_made_at_once_the_given_up_one_is_killed_and_deleted(
    unlogged: Trained, tracking_uri: str
) -> None:
    from mlflow import MlflowClient

    client, training = MlflowClient(tracking_uri), unlogged.training
    experiment = client.get_experiment_by_name("toy_logged").experiment_id
    tags = {"ml_lifecycle.training_digest": training.digest}
    both = {client.create_run(experiment, tags=tags).info.run_id for _ in range(2)}
    kept = log_training(tracking_uri, unlogged.lake, training).mlflow_run_id
    (given_up,) = (client.get_run(run_id).info for run_id in both - {kept})
    assert (given_up.status, given_up.lifecycle_stage) == ("KILLED", "deleted")


def test_two_at_once_agree_on_one_run(unlogged: Trained, tracking_uri: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(
            pool.map(lambda _: log_training(tracking_uri, unlogged.lake, unlogged.training), range(2))
        )
    kept = log_training(tracking_uri, unlogged.lake, unlogged.training).mlflow_run_id
    assert [run.info.run_id for run in runs_of(tracking_uri, "toy_logged")] == [kept]
    assert kept in {one.mlflow_run_id for one in both}


def test_an_unreachable_mlflow_says_that_a_retry_helps(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServerUnavailableError, match="MLflow") as caught:
        log_training("http://127.0.0.1:9", trained.lake, trained.training)
    assert caught.value.retryable
