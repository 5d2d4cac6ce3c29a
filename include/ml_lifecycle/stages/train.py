"""Train: a job for a pod, and what the pod left behind.

The stage itself fits nothing. :func:`plan_training` writes the job, the operator runs a pod with it, and
:func:`collect_training` reads the manifest, without which there is no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ml_lifecycle.adapters import mlflow
from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, sha256
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    IntegrityError,
    LifecycleError,
    PodFailedError,
    SpecError,
    TrainingError,
)
from ml_lifecycle.records import Training, TrainingSet, digest_of, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder, pack_folder
from ml_lifecycle.training.job import Failure, TrainingJob, finished_training

_ERRORS: dict[str, type[LifecycleError]] = {
    "user_error": TrainingError,
    "memory": TrainingError,
    "data": FeatureError,
    "conversion": ConversionError,
    "integrity": IntegrityError,
    "interrupted": PodFailedError,
    "error": PodFailedError,
}


def plan_training(folder: ModelFolder, lake: Lake, training_set: TrainingSet) -> TrainingJob:
    """Write the packed folder and the job to the lake; doing it again changes nothing.

    :raises SpecError: the folder's files changed since it was loaded. Retry: no, load it again.
    """
    spec = folder.spec
    digest = digest_of(
        {
            "schema": TrainingJob.schema,
            "training_set": training_set.digest,
            "code": folder.code_digest,
            "task": spec.task,
            "training": spec.training.model_dump(mode="json"),
        }
    )
    job = TrainingJob(
        run=training_set.run,
        digest=digest,
        path=f"training/{spec.name}/{digest}",
        training_set_path=f"{training_set.path}/manifest.json",
        training_set_digest=training_set.digest,
        code_path=f"code/{folder.code_digest}.zip",
        code_digest=folder.code_digest,
        spec_digest=folder.spec_digest,
        task=spec.task,
        parameters=spec.training.parameters,
        seed=spec.training.seed,
    )
    if finished_training(lake, job) is not None:
        return job
    if not lake.exists(job.code_path):
        package = pack_folder(folder.path)
        if sha256(package) != folder.code_digest:
            raise SpecError(f"{folder.path} changed while the run was using it")
        lake.write_bytes(job.code_path, package)
    lake.write_json(job.job_path, to_json(job))
    return job


def collect_training(lake: Lake, job: TrainingJob) -> Training:
    """What the pod left behind, once it has ended, under the run that asked for it now.

    :raises TrainingError: ``training.py`` failed, or ran out of memory. Retry: no.
    :raises FeatureError: the training set cannot be trained on. Retry: no.
    :raises ConversionError: the estimator does not convert to ONNX. Retry: no.
    :raises IntegrityError: bytes in the lake do not have their digest. Retry: no; the next pod trains again.
    :raises PodFailedError: the pod was interrupted or killed, or met an unknown error. Retry: yes.
    """
    training = finished_training(lake, job)
    if training is None:
        raise _failure_of(lake, job)
    lake.read_bytes(training.model_path, training.model_digest)
    return replace(training, run=job.run)


def _failure_of(lake: Lake, job: TrainingJob) -> LifecycleError:
    try:
        failure = from_json(Failure, lake.read_json(job.failure_path))
    except LakeFileMissingError:
        return PodFailedError(
            f"the pod left neither a result nor a failure in {lake.uri(job.path)}: it was killed "
            "(evicted, out of memory, past its deadline) or never started"
        )
    return _ERRORS[failure.kind]("\n  ".join([failure.message, *failure.traceback]))


def log_training(
    tracking_uri: str, lake: Lake, training: Training, tags: Mapping[str, str] | None = None
) -> Training:
    """Log the training as one MLflow run, however often this is called; returns it with the run's id.

    :param tags: more tags for the run, such as links to the orchestrator
    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    files = {name: lake.read_bytes(f"{training.path}/{name}") for name in ("profile.json", "metrics.json")}
    return replace(training, mlflow_run_id=mlflow.log_training(tracking_uri, training, files, tags or {}))
