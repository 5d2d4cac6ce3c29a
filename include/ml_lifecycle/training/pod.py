"""The pod's entry point: ``python -m ml_lifecycle.training.pod``. The package's docstring is its contract."""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import os
import platform
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served, convert
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    IntegrityError,
    LifecycleError,
    StaleAttemptError,
    TrainingError,
)
from ml_lifecycle.metrics import Answers, class_indices, measure_all
from ml_lifecycle.profiles.profile import SCORE_COLUMN, Profile, make_profile
from ml_lifecycle.records import ColumnSpec, Training, TrainingSet, from_json, to_json
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.fit import classes_of, fit, labels_of, load_train, user_frames
from ml_lifecycle.training.interruption import GRACE_SECONDS, GRACE_VARIABLE, end_when_told
from ml_lifecycle.training.job import (
    JOB_VARIABLE,
    LAKE_OPTIONS_VARIABLE,
    LAKE_VARIABLE,
    Failure,
    TrainingJob,
    finished_training,
)
from ml_lifecycle.training.reference import Reference, make_reference, write_reference

log = logging.getLogger("ml_lifecycle.training")

_KINDS: dict[type[BaseException], str] = {
    TrainingError: "user_error",
    MemoryError: "memory",
    FeatureError: "data",
    ConversionError: "conversion",
    IntegrityError: "integrity",
}


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run the job named in the environment; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    options = json.loads(environment.get(LAKE_OPTIONS_VARIABLE) or "{}")
    # They are credentials: the user's code has no use for them, and may print its environment.
    os.environ.pop(LAKE_OPTIONS_VARIABLE, None)
    lake = Lake(environment[LAKE_VARIABLE], options)
    job = from_json(TrainingJob, lake.read_json(environment[JOB_VARIABLE]))
    if _is_done(lake, job):
        log.info("training %s is done already", job.digest)
        return 0
    lake.delete(job.failure_path)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model").resolve()
        checkpoints = make_checkpoints(lake, job, Path(scratch, "checkpoints"))
        _end_on_sigterm(lake, job, checkpoints, float(environment.get(GRACE_VARIABLE) or GRACE_SECONDS))
        try:
            run_job(lake, job, folder, checkpoints)
        except StaleAttemptError as error:
            log.error("%s", error)  # what lies in the lake is the newer attempt's
            return 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the operator reads of it in failure.json
            failure = _failure(error, folder)
            lake.write_json(job.failure_path, to_json(failure))
            log.error("%s: %s", failure.kind, "\n  ".join([failure.message, *failure.traceback]))
            return 1
    return 0


def make_checkpoints(lake: Lake, job: TrainingJob, scratch: Path) -> Checkpoints:
    """The job's checkpoints, for this attempt at it.

    :param scratch: a local folder with room for one
    """
    return Checkpoints(lake, job.checkpoints_path, attempt=1, seed=job.seed, scratch=scratch)


def run_job(lake: Lake, job: TrainingJob, folder: Path, checkpoints: Checkpoints | None = None) -> Training:
    """Train, and write the result with its manifest last.

    :param folder: where to unpack the model folder
    :param checkpoints: :func:`make_checkpoints`'s, with scratch beside the folder, if not given
    """
    started = time.monotonic()
    checkpoints = checkpoints or make_checkpoints(lake, job, folder.with_name(f"{folder.name}-checkpoints"))
    training_set = from_json(TrainingSet, lake.read_json(job.training_set_path))
    if training_set.digest != job.training_set_digest:
        raise IntegrityError(
            f"{lake.uri(job.training_set_path)} is {training_set.digest}, not {job.training_set_digest}"
        )
    _unpack(lake, job, folder)
    rows, holdout = _read(lake, training_set.train_path), _read(lake, training_set.holdout_path)
    if not rows.height or not holdout.height:
        raise FeatureError(f"there are {rows.height} training rows and {holdout.height} holdout rows")
    served = as_served(rows, training_set.columns)
    labels = labels_of(rows, training_set.label_column, job.task)
    estimator, model = _fit_and_convert(job, folder, training_set.columns, served, labels, checkpoints)
    reference = make_reference(
        estimator, as_served(holdout, training_set.columns), training_set.columns, job.task
    )
    classes = classes_of(estimator, job.task)
    outputs = reference.outputs[: reference.holdout_rows]
    truth = _truth(holdout[training_set.label_column], classes)
    metrics, reasons = measure_all(Answers(job.task, truth, outputs))
    training = Training(
        run=job.run,
        digest=job.digest,
        path=job.path,
        training_set_path=job.training_set_path,
        snapshot_digest=training_set.snapshot_digest,
        code_digest=job.code_digest,
        spec_digest=job.spec_digest,
        train_end=training_set.train_end,
        model_path=f"{job.path}/model.onnx",
        model_digest=sha256(model),
        columns=training_set.columns,
        classes=classes,
        reference_path=f"{job.path}/reference.parquet",
        profile_path=f"{job.path}/profile.json",
        parameters=job.parameters,
        metrics=metrics,
        packages=_packages(),
        resources=_resources(started),
        reproducible=not checkpoints.reasons,
        not_reproducible_because=checkpoints.reasons,
    )
    lake.write_bytes(training.model_path, model)
    write_reference(lake, training.reference_path, reference)
    lake.write_json(training.profile_path, to_json(_profile(served, training_set.columns, reference)))
    lake.write_json(f"{job.path}/metrics.json", {"metrics": metrics, "not_computed": reasons})
    lake.write_json(job.manifest_path, to_json(training))
    checkpoints.discard()
    log.info("done in %.1f s: %s", training.resources["wall_seconds"], metrics)
    return training


def _fit_and_convert(
    job: TrainingJob,
    folder: Path,
    columns: tuple[ColumnSpec, ...],
    served: pl.DataFrame,
    labels: pl.Series,
    checkpoints: Checkpoints,
) -> tuple[Any, bytes]:
    """The fitted estimator and its ONNX file; a failure also names columns without any value."""
    log.info("fitting on %d rows of %d columns", served.height, served.width)
    try:
        estimator = fit(load_train(folder), served, labels, job.parameters, job.seed, job.task, checkpoints)
        log.info("fitted; converting to ONNX")
        return estimator, convert(estimator, columns, job.task)
    except (TrainingError, ConversionError) as error:
        if not (empty := _columns_without_values(served)):
            raise
        raise type(error)(f"{error} (no training row has a value in {', '.join(empty)})") from error.__cause__


def _is_done(lake: Lake, job: TrainingJob) -> bool:
    """Whether there is a manifest and the model it names; a torn result is made again."""
    finished = finished_training(lake, job)
    if finished is None:
        return False
    try:
        lake.read_bytes(finished.model_path, finished.model_digest)
    except LifecycleError as error:
        log.warning("the finished result is not whole, training again: %s", error)
        return False
    return True


def _end_on_sigterm(lake: Lake, job: TrainingJob, checkpoints: Checkpoints, grace: float) -> None:
    """Told to end, go on to the next checkpoint if there is time for it, say in the lake why, and exit."""

    def say(signal_name: str) -> None:
        message = f"the pod was asked to end ({signal_name}) before the model was trained"
        lake.write_json(job.failure_path, to_json(Failure("interrupted", message)))

    end_when_told(checkpoints, grace, say)


def _failure(error: Exception, folder: Path) -> Failure:
    kind: Any = next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "error")
    if kind == "error":
        return Failure(kind, f"{type(error).__name__}: {error}", tuple(traceback.format_exception(error)))
    if kind == "memory":
        message = (
            "out of memory while training: ask for more under training.resources.memory, or for fewer rows"
        )
        return Failure(kind, message, user_frames(error, folder))
    return Failure(kind, str(error), user_frames(error.__cause__ or error, folder))


def _unpack(lake: Lake, job: TrainingJob, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(lake.read_bytes(job.code_path, job.code_digest))) as archive:
        archive.extractall(folder)


def _read(lake: Lake, path: str) -> pl.DataFrame:
    with lake.open(path) as file:
        return pl.read_parquet(file)


def _truth(labels: pl.Series, classes: tuple[str, ...]) -> Any:
    return class_indices(labels, classes) if classes else labels.cast(pl.Float64).to_numpy()


def _columns_without_values(served: pl.DataFrame) -> list[str]:
    return [series.name for series in served if series.dtype == pl.Float32 and bool(series.is_nan().all())]


def _profile(served: pl.DataFrame, columns: tuple[ColumnSpec, ...], reference: Reference) -> Profile:
    """The training features' profile and, as one more column, that of the holdout's scores."""
    outputs = reference.outputs[: reference.holdout_rows]
    if outputs.ndim == 2:
        outputs = outputs[:, -1] if outputs.shape[1] == 2 else outputs.max(axis=1)
    features = make_profile(served, columns)
    scores = make_profile(pl.DataFrame({SCORE_COLUMN: outputs}), [ColumnSpec(SCORE_COLUMN, "float")])
    return Profile(features.rows, features.columns | scores.columns)


def _packages() -> dict[str, str]:
    """Versions of Python and of every distribution whose code was imported."""
    imported = {name.partition(".")[0] for name in sys.modules}
    found = importlib.metadata.packages_distributions()
    names = {distribution for module in imported for distribution in found.get(module, ())}
    versions = {name.lower(): importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **dict(sorted(versions.items()))}


def _resources(started: float) -> dict[str, float]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
        "peak_memory_bytes": float(max(own.ru_maxrss, children.ru_maxrss) * 1024),
    }


if __name__ == "__main__":
    sys.exit(main())
