"""Register: an evaluated model becomes a version in the registry, once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Literal

from ml_lifecycle.adapters import mlflow
from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.records import Evaluation, ModelVersion, Training, from_json, to_json
from ml_lifecycle.spec.model import ModelSpec


def register(
    tracking_uri: str,
    spec: ModelSpec,
    lake: Lake,
    training: Training,
    evaluation: Evaluation,
    champion_train_end: datetime | None,
    decided: Collection[str] = (),
) -> ModelVersion:
    """The version of this model and evaluation; made if there is none, by whoever comes first.

    It becomes the ``candidate`` if it passed every gate and its data end neither before the champion's nor
    before those of a version that still waits for a decision; else it is registered for the record, without
    an alias.

    :param training: as :func:`ml_lifecycle.stages.train.log_training` returned it
    :param champion_train_end: where the champion's training rows end; None without a champion
    :param decided: the versions that were approved or rejected already
    :raises IntegrityError: the ONNX file does not have its digest. Retry: no.
    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    if evaluation.model_digest != training.model_digest or training.mlflow_run_id is None:
        raise ValueError(
            "register() takes the training that was logged and the evaluation of just that model"
        )
    version = mlflow.register_version(
        tracking_uri,
        training,
        evaluation,
        lake.read_bytes(training.model_path, training.model_digest),
        lake.read_bytes(evaluation.report_path),
    )
    path = f"versions/{spec.name}/{version}/manifest.json"
    try:
        return replace(from_json(ModelVersion, lake.read_json(path)), run=training.run)
    except LakeFileMissingError:
        pass
    older = champion_train_end is not None and training.train_end < champion_train_end
    # Asked after this version is there: of two trainings that end at once, one at least sees the other.
    waiting = set(mlflow.passed_later(tracking_uri, spec.name, training.train_end)) - set(decided)
    candidate = evaluation.passed and not older and not waiting
    role: Literal["candidate", "record"] = "candidate" if candidate else "record"
    if candidate:
        mlflow.set_candidate(tracking_uri, spec.name, version)
    registered = ModelVersion(
        run=training.run,
        name=spec.name,
        version=version,
        role=role,
        model_digest=training.model_digest,
        training_path=training.path,
        evaluation_path=evaluation.path,
        mlflow_run_id=training.mlflow_run_id,
        requested_by=training.run.requested_by,
    )
    lake.write_json(path, to_json(registered))
    return registered


def set_alias(tracking_uri: str, model: str, alias: str, version: str) -> None:
    """Point an alias of the registry, such as ``champion``, to a version. The ledger decides who may ask.

    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    mlflow.set_alias(tracking_uri, model, alias, version)
