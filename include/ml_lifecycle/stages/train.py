"""Train: a job for pods, and what they left behind.

The stage itself fits nothing. :func:`plan_training` writes the job, the operator runs a pod for each attempt
at it, and :func:`collect_training` publishes the result of the attempt that counts. Pods write to a folder of
their attempt only, so one that was given up and still runs somewhere publishes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_lifecycle.adapters import mlflow
from ml_lifecycle.adapters.code_package import keep_package, package_path
from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import (
    IntegrityError,
    LifecycleError,
    PodFailedError,
    SpecError,
    StaleAttemptError,
)
from ml_lifecycle.records import Training, TrainingSet, digest_of, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.training.cost import Cost
from ml_lifecycle.training.job import (
    RESULT_FILES,
    Attempt,
    Failure,
    PodResult,
    TrainingJob,
    published_training,
    threads_of,
)
from ml_lifecycle.training.outcomes import ERRORS
from ml_lifecycle.training.search import Search, TrialTerms

log = logging.getLogger(__name__)


def plan_training(
    folder: ModelFolder,
    lake: Lake,
    training_set: TrainingSet,
    *,
    search: Search | None = None,
    trial: tuple[TrialTerms, dict[str, Any]] | None = None,
) -> TrainingJob:
    """Write the packed folder and the job to the lake; doing it again changes nothing.

    :param search: train with the parameters it found, not with the spec's
    :param trial: the job is this trial of a search, with these parameters
    :raises SpecError: the folder's files changed since it was loaded: load it again. Or a column of
        ``monitoring.segments`` is no feature. Retry: no.
    """
    spec = folder.spec
    names = {column.name for column in training_set.columns}
    if unknown := sorted(spec.monitoring.segments.keys() - names):
        raise SpecError(
            f"monitoring.segments: {unknown[0]} is no feature of the model ({', '.join(sorted(names))})"
        )
    threads = threads_of(spec.training.resources.cpu)
    parameters = search.parameters if search is not None else spec.training.parameters
    terms, parameters = trial if trial is not None else (None, parameters)
    digest = digest_of(
        {
            "schema": TrainingJob.schema,
            "training_set": training_set.digest,
            "code": folder.code_digest,
            "task": spec.task,
            "parameters": parameters,
            **({"trial": [terms.search, terms.number]} if terms is not None else {}),
            **({"segments": spec.monitoring.segments} if spec.monitoring.segments else {}),
            "seed": spec.training.seed,
            "image": spec.training.image,
            "lock": spec.training.lock,
            "threads": threads,
            "gpu": spec.training.resources.gpu > 0,
        }
    )
    job = TrainingJob(
        run=training_set.run,
        digest=digest,
        path=f"training/{spec.name}/{digest}",
        training_set_path=f"{training_set.path}/manifest.json",
        training_set_digest=training_set.digest,
        code_path=package_path(folder),
        code_digest=folder.code_digest,
        spec_digest=folder.spec_digest,
        task=spec.task,
        parameters=parameters,
        seed=spec.training.seed,
        threads=threads,
        search_path=search.path if search is not None else "",
        trial=terms,
        segments=spec.monitoring.segments,
    )
    if lake.exists(job.manifest_path):
        return job
    keep_package(folder, lake)
    lake.write_json(job.job_path, to_json(job))
    return job


def finished_training(lake: Lake, job: TrainingJob) -> Training | None:
    """The job's published result, if it is whole, under the run that asks for it now.

    None if there is none, or the model it names is torn: then it is trained again.
    """
    training = published_training(lake, job)
    if training is None:
        return None
    try:
        lake.read_bytes(training.model_path, training.model_digest)
    except (IntegrityError, LakeFileMissingError) as error:
        log.warning("the finished result is not whole, training again: %s", error)
        return None
    return replace(training, run=job.run)


def collect_training(lake: Lake, attempt: Attempt, image: str = "") -> Training:
    """Publish what the attempt's pod left behind, once it has ended; what is published already stays.

    :param image: what the pod ran in, by digest, where the cluster says it
    :raises TrainingError: ``training.py`` failed, or ran out of memory. Retry: no.
    :raises FeatureError: the training set cannot be trained on. Retry: no.
    :raises ConversionError: the estimator does not convert to ONNX. Retry: no.
    :raises IntegrityError: a file does not have the digest that the pod gave it, or the result is of another
        job or attempt. Retry: no.
    :raises StaleAttemptError: a newer attempt has begun. Retry: no.
    :raises PodFailedError: the pod was interrupted or killed, or met an unknown error. Retry: yes.
    """
    job = attempt.job
    if (finished := finished_training(lake, job)) is not None:
        return finished
    result = _result_of(lake, attempt)
    if attempt.is_superseded(lake):
        raise StaleAttemptError(f"attempt {attempt.number} has ended, but a newer one has begun")
    training = _training(lake, attempt, result, image)
    lake.write_json(job.manifest_path, to_json(training))
    return training


def failure_of(lake: Lake, attempt: Attempt) -> Failure | None:
    """What the pod itself says of its failure; None if it says nothing."""
    try:
        return from_json(Failure, lake.read_json(attempt.failure_path))
    except LakeFileMissingError:
        return None


def raised_by(failure: Failure) -> LifecycleError:
    """The error that stands for a pod's failure."""
    return ERRORS.get(failure.kind, PodFailedError)(failure.text)


def _result_of(lake: Lake, attempt: Attempt) -> PodResult:
    try:
        return from_json(PodResult, lake.read_json(attempt.result_path))
    except LakeFileMissingError:
        if (failure := failure_of(lake, attempt)) is not None:
            raise raised_by(failure) from None
        raise PodFailedError(
            f"the pod left neither a result nor a failure in {lake.uri(attempt.path)}: it was killed "
            "(evicted, out of memory, past its deadline) or never started"
        ) from None


def _training(lake: Lake, attempt: Attempt, result: PodResult, image: str) -> Training:
    job = attempt.job
    if (result.job, result.attempt) != (job.digest, attempt.number):
        raise IntegrityError(
            f"{lake.uri(attempt.result_path)} is the result of attempt {result.attempt} at {result.job}, not "
            f"of attempt {attempt.number} at {job.digest}"
        )
    if missing := [name for name in RESULT_FILES if name not in result.files]:
        raise IntegrityError(f"{lake.uri(attempt.result_path)} gives no digest of {', '.join(missing)}")
    paths = {name: f"{attempt.path}/{name}" for name in RESULT_FILES}
    for name, path in paths.items():
        lake.read_bytes(path, result.files[name])
    training_set = from_json(TrainingSet, lake.read_json(job.training_set_path))
    return Training(
        run=job.run,
        digest=job.digest,
        path=job.path,
        attempt=attempt.number,
        training_set_path=job.training_set_path,
        snapshot_digest=training_set.snapshot_digest,
        code_digest=job.code_digest,
        spec_digest=job.spec_digest,
        train_end=training_set.train_end,
        model_path=paths["model.onnx"],
        model_digest=result.files["model.onnx"],
        columns=training_set.columns,
        classes=result.classes,
        reference_path=paths["reference.parquet"],
        profile_path=paths["profile.json"],
        metrics_path=paths["metrics.json"],
        parameters=job.parameters,
        search_path=job.search_path,
        metrics=result.metrics,
        packages=result.packages,
        resources=result.usage,
        image=image,
        reproducible=not result.not_reproducible_because,
        not_reproducible_because=result.not_reproducible_because,
    )


def log_training(
    tracking_uri: str,
    lake: Lake,
    training: Training,
    tags: Mapping[str, str] | None = None,
    cost: Cost | None = None,
) -> Training:
    """Log the training as one MLflow run, however often this is called; returns it with the run's id.

    :param tags: more tags for the run, such as links to the orchestrator
    :param cost: what all its attempts came to
    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    files = {
        "profile.json": lake.read_bytes(training.profile_path),
        "metrics.json": lake.read_bytes(training.metrics_path),
    }
    tags, metrics = dict(tags or {}), dict[str, float]()
    if training.search_path:
        found = from_json(Search, lake.read_json(f"{training.search_path}/manifest.json"))
        for name, digest in found.files.items():
            files[f"search/{name}"] = lake.read_bytes(f"{found.path}/{name}", digest)
        tags["search.digest"] = found.digest
        metrics |= {"search.value": found.value, "search.trials": float(sum(found.trials.values()))}
        metrics |= {f"search.cost.{name}": value for name, value in found.cost.items()}
        metrics |= {"search.baseline": found.baseline} if found.baseline is not None else {}
    if cost is not None:
        metrics |= {f"cost.{name}": value for name, value in cost.figures.items()}
        tags |= {"cost.currency": cost.currency} if cost.currency else {}
        tags |= {"cost.advice": "; ".join(cost.advice)} if cost.advice else {}
    run_id = mlflow.log_training(tracking_uri, training, files, tags, metrics)
    return replace(training, mlflow_run_id=run_id)
