"""MLflow: one run a training, one registered version a model and its evaluation.

Everything goes through a client with an explicit URI; nothing global is set. Runs and versions are found
again by their tags, so a retry finishes what an earlier attempt began and never makes a second one. What
nobody came back to finish is marked ``KILLED``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import sha256
from ml_lifecycle.errors import IntegrityError, ServerUnavailableError
from ml_lifecycle.records import Evaluation, Training

TAG = "ml_lifecycle"
_MODEL_FOLDER = "model"
_ATTEMPTS = 3
_MAX_PARAM = 6000  # MLflow refuses longer values
_UNAVAILABLE = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextlib.contextmanager
def _answering(tracking_uri: str) -> Iterator[None]:
    """Turn "MLflow does not answer" into the error that says a retry helps; leave all others alone."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except requests.RequestException as error:
        raise ServerUnavailableError(f"MLflow does not answer: {type(error).__name__}: {error}") from error
    except MlflowException as error:
        if error.error_code not in _UNAVAILABLE:
            raise
        reason = str(error).partition("\n")[0]  # its database's statement follows, with all parameters
        raise ServerUnavailableError(f"MLflow cannot answer now: {reason}") from error


def log_training(
    tracking_uri: str,
    training: Training,
    files: Mapping[str, bytes],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> str:
    """The id of the training's MLflow run, which is made, or finished, if need be.

    :param files: artifacts, by name or by folder and name
    :param metrics: more than the training's own
    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    with _answering(tracking_uri):
        client = _client(tracking_uri)
        experiment = _experiment(client, tracking_uri, training.run.model)
        for _ in range(_ATTEMPTS):
            run = _only_run(client, experiment, training)
            run_id: str = run.info.run_id
            if run.info.status == "FINISHED":
                return run_id
            _end_orphans(client, experiment, training)
            if _finish_run(client, run_id, training, files, tags, metrics):
                return run_id
    raise ServerUnavailableError(
        f"the MLflow runs of training {training.digest} are deleted while being logged"
    )


def _finish_run(
    client: Any,
    run_id: str,
    training: Training,
    files: Mapping[str, bytes],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> bool:
    """Log everything and end the run; False if it was given up meanwhile for one made at the same time."""
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    at = int(training.run.as_of.timestamp() * 1000)  # a fixed time: the same metric again is the same row
    resources = {f"resources.{key}": value for key, value in training.resources.items()}
    numbers = {**training.metrics, **resources, **metrics}
    try:
        _log_batch(
            client,
            run_id,
            metrics=[Metric(key, value, at, 0) for key, value in numbers.items()],
            params=[Param(key, value) for key, value in _flat(training.parameters)],
            tags=[RunTag(key, value) for key, value in {**_lineage(training), **tags}.items()],
        )
        with tempfile.TemporaryDirectory() as folder:
            for name, data in {**files, "packages.json": _json(training.packages)}.items():
                Path(folder, name).parent.mkdir(exist_ok=True)
                Path(folder, name).write_bytes(data)
            client.log_artifacts(run_id, folder)
        client.set_terminated(run_id, "FINISHED")
    except MlflowException:
        if client.get_run(run_id).info.lifecycle_stage != "deleted":
            raise
        return False
    return True


def _log_batch(client: Any, run_id: str | None, **content: Any) -> None:
    """Log; once more if somebody logged the same rows in between, which MLflow then finds there."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(run_id, **content)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        client.log_batch(run_id, **content)


def _experiment(client: Any, tracking_uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(
                client.create_experiment(name, artifact_location=_artifact_location(tracking_uri, name))
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # somebody else made it in between
    return str(found.experiment_id)


def _artifact_location(tracking_uri: str, name: str) -> str | None:
    """A server decides itself; for a bare SQLite file MLflow would use the current directory."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    database = Path(tracking_uri.removeprefix("sqlite:///")).resolve()
    return (database.parent / f"{database.stem}_artifacts" / name).as_uri()


def _only_run(client: Any, experiment: str, training: Training) -> Any:
    """The training's run; of several that were made at once, everybody keeps the oldest."""
    query = f"tags.`{TAG}.training_digest` = '{training.digest}'"
    if not client.search_runs([experiment], query):
        client.create_run(
            experiment,
            run_name=f"{training.run.model}-{training.digest[:12]}",
            tags={f"{TAG}.training_digest": training.digest},
        )
    kept, *others = sorted(
        client.search_runs([experiment], query), key=lambda run: (run.info.start_time, run.info.run_id)
    )
    for other in others:
        with _gone_already():
            client.set_terminated(other.info.run_id, "KILLED")
            client.delete_run(other.info.run_id)
    return kept


def _end_orphans(client: Any, experiment: str, training: Training) -> None:
    """Mark the runs of other trainings that were left running; one being logged now still ends finished."""
    query = f"attributes.status = 'RUNNING' and tags.`{TAG}.training_digest` != '{training.digest}'"
    for orphan in client.search_runs([experiment], query):
        with _gone_already():
            client.set_terminated(orphan.info.run_id, "KILLED")


@contextlib.contextmanager
def _gone_already() -> Iterator[None]:
    """Somebody else cleans up the same thing at the same time."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise


def _lineage(training: Training) -> dict[str, str]:
    return {
        f"{TAG}.training_digest": training.digest,
        f"{TAG}.snapshot_digest": training.snapshot_digest,
        f"{TAG}.code_digest": training.code_digest,
        f"{TAG}.spec_digest": training.spec_digest,
        f"{TAG}.model_digest": training.model_digest,
        f"{TAG}.train_end": training.train_end.isoformat(),
        f"{TAG}.as_of": training.run.as_of.isoformat(),
        f"{TAG}.interval": "/".join(
            moment.isoformat() for moment in (training.run.interval.start, training.run.interval.end)
        ),
        f"{TAG}.run_id": training.run.run_id,
        f"{TAG}.requested_by": training.run.requested_by or "",
        f"{TAG}.packages": _json(training.packages).decode(),
        f"{TAG}.image": training.image,
        f"{TAG}.reproducible": "; ".join(training.not_reproducible_because) or "true",
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_MAX_PARAM]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def register_version(
    tracking_uri: str, training: Training, evaluation: Evaluation, model: bytes, report: bytes
) -> str:
    """The registered version of this model and evaluation, which is made if there is none.

    Metrics of the evaluation go onto the training's run; its report beside the ONNX file.

    :param model: the ONNX file
    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    assert training.mlflow_run_id is not None, "log_training() comes first"
    name = training.run.model
    with _answering(tracking_uri):
        client = _client(tracking_uri)
        if found := _versions(client, name, training, evaluation):
            return found[0]
        _ensure_registered_model(client, name)
        _log_model(client, training, evaluation, model, report)
        client.create_model_version(
            name,
            source=f"runs:/{training.mlflow_run_id}/{_MODEL_FOLDER}",
            run_id=training.mlflow_run_id,
            tags={
                **_lineage(training),
                f"{TAG}.evaluation_digest": evaluation.digest,
                f"{TAG}.passed": str(evaluation.passed).lower(),
            },
        )
        # Two registrations at once each made one: both keep the lowest.
        kept, *others = _versions(client, name, training, evaluation)
        for version in others:
            with _gone_already():
                client.delete_model_version(name, version)
        return kept


def _versions(client: Any, name: str, training: Training, evaluation: Evaluation) -> list[str]:
    found = client.search_model_versions(
        f"name = '{name}' and tags.`{TAG}.model_digest` = '{training.model_digest}'"
        f" and tags.`{TAG}.evaluation_digest` = '{evaluation.digest}'"
    )
    return sorted((str(version.version) for version in found), key=int)


def passed_later(tracking_uri: str, name: str, train_end: datetime) -> list[str]:
    """The versions that passed their gates with training rows that end after ``train_end``.

    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    with _answering(tracking_uri):
        found = _client(tracking_uri).search_model_versions(
            f"name = '{name}' and tags.`{TAG}.passed` = 'true'"
        )
    return [
        str(version.version)
        for version in found
        if datetime.fromisoformat(version.tags[f"{TAG}.train_end"]) > train_end
    ]


def _ensure_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(client: Any, training: Training, evaluation: Evaluation, model: bytes, report: bytes) -> None:
    """Log the ONNX file as an MLflow model with its signature, and the evaluation beside it."""
    import mlflow.onnx
    import onnx
    from mlflow.entities import Metric
    from mlflow.models import Model

    at = int(evaluation.run.as_of.timestamp() * 1000)
    metrics = [Metric(f"evaluation.{key}", value, at, 0) for key, value in evaluation.metrics.items()]
    _log_batch(client, training.mlflow_run_id, metrics=metrics)
    graph = onnx.load_from_string(model)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, _MODEL_FOLDER)
        mlflow.onnx.save_model(
            graph,
            target,
            signature=_signature(training, graph),
            # Left out, MLflow loads the model in another process to guess them.
            pip_requirements=[f"{name}=={training.packages[name]}" for name in ("onnx", "onnxruntime")],
            save_as_external_data=False,
            mlflow_model=Model(artifact_path=_MODEL_FOLDER, run_id=training.mlflow_run_id),
        )
        saved = sha256(Path(target, "model.onnx").read_bytes())
        if saved != training.model_digest:
            raise IntegrityError(f"MLflow would store {saved} for the model {training.model_digest}")
        Path(folder, f"evaluation-{evaluation.digest[:12]}.html").write_bytes(report)
        client.log_artifacts(training.mlflow_run_id, folder)


def _signature(training: Training, graph: Any) -> Any:
    """Named tensors, as the graph has them; of a DataFrame MLflow would feed vectors, not ``[n, 1]``."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    def spec(tensor: Any, *shape: int) -> Any:
        kind = np.dtype(tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type))
        return TensorSpec(kind, (-1, *shape), tensor.name)

    first, *rest = graph.graph.output
    outputs = [spec(first), *(spec(tensor, len(training.classes)) for tensor in rest)]
    return ModelSignature(Schema([spec(tensor, 1) for tensor in graph.graph.input]), Schema(outputs))


def set_candidate(tracking_uri: str, model: str, version: str) -> None:
    """Point the alias ``candidate`` to the version, unless it points to a newer one already.

    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    with _answering(tracking_uri):
        client = _client(tracking_uri)
        aliases = client.get_registered_model(model).aliases
        if int(aliases.get("candidate", 0)) < int(version):
            client.set_registered_model_alias(model, "candidate", version)


def set_alias(tracking_uri: str, model: str, alias: str, version: str) -> None:
    """Point an alias, such as ``champion``, to a version; the ledger decides who may ask for that.

    :raises ServerUnavailableError: MLflow does not answer. Retry: yes.
    """
    with _answering(tracking_uri):
        _client(tracking_uri).set_registered_model_alias(model, alias, version)
