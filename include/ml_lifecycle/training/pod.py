"""The pod's entry point: ``python -m ml_lifecycle.training.pod``. The package's docstring is its contract."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from ml_lifecycle.adapters.code_package import unpack
from ml_lifecycle.adapters.lake import Lake, json_bytes, sha256
from ml_lifecycle.adapters.onnx import as_served, convert
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    IntegrityError,
    StaleAttemptError,
    TrainingError,
    TrialPrunedError,
)
from ml_lifecycle.metrics import Answers, class_indices, measure_all
from ml_lifecycle.personal import told, without_values
from ml_lifecycle.profiles.profile import SCORE_COLUMN, ColumnProfile, Part, Profile, Segments, read_profile
from ml_lifecycle.profiles.profiling import make_profile
from ml_lifecycle.records import ColumnSpec, TrainingSet, from_json, to_json
from ml_lifecycle.training.checkpoints import Checkpoints
from ml_lifecycle.training.fit import classes_of, fit, labels_of, load_train, user_frames
from ml_lifecycle.training.gauge import TrialGauge
from ml_lifecycle.training.interruption import end_when_told
from ml_lifecycle.training.job import (
    LAKE_OPTIONS_VARIABLE,
    LAKE_VARIABLE,
    Attempt,
    Failure,
    PodResult,
    TrainingJob,
)
from ml_lifecycle.training.reference import Reference, make_reference, reference_bytes
from ml_lifecycle.training.usage import Usage, reported

log = logging.getLogger("ml_lifecycle.training")

_KINDS: dict[type[BaseException], str] = {
    TrainingError: "user_error",
    MemoryError: "memory",
    FeatureError: "data",
    ConversionError: "conversion",
    IntegrityError: "integrity",
    StaleAttemptError: "superseded",
    TrialPrunedError: "pruned",
}


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Do the attempt named in the environment; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    options = json.loads(environment.get(LAKE_OPTIONS_VARIABLE) or "{}")
    # They are credentials: the user's code has no use for them, and may print its environment.
    os.environ.pop(LAKE_OPTIONS_VARIABLE, None)
    lake = Lake(environment[LAKE_VARIABLE], options)
    attempt = Attempt.given(lake, environment)
    if lake.exists(attempt.result_path):
        log.info("attempt %d of training %s is done already", attempt.number, attempt.job.digest)
        return 0
    lake.delete(attempt.failure_path)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model").resolve()
        checkpoints = make_checkpoints(lake, attempt, Path(scratch, "checkpoints"))
        _end_on_sigterm(lake, attempt, checkpoints)
        try:
            run_attempt(lake, attempt, folder, checkpoints)
        except Exception as error:  # noqa: BLE001 - whatever it is, the operator reads of it in failure.json
            failure = _failure(error, folder)
            lake.write_json(attempt.failure_path, to_json(failure))
            log.error("%s: %s", failure.kind, failure.text)
            return 0 if failure.kind == "pruned" else 1  # a trial that was given up did all it should
    return 0


def make_checkpoints(lake: Lake, attempt: Attempt, scratch: Path) -> Checkpoints:
    """The job's checkpoints, for this attempt at it.

    :param scratch: a local folder with room for one
    """
    return Checkpoints(
        lake,
        attempt.job.checkpoints_path,
        attempt.number,
        attempt.job.seed,
        scratch=scratch,
        stale=lambda: attempt.is_superseded(lake),
    )


def run_attempt(
    lake: Lake, attempt: Attempt, folder: Path, checkpoints: Checkpoints | None = None
) -> PodResult:
    """Train, and write the result with its manifest last.

    :param folder: where to unpack the model folder
    :param checkpoints: :func:`make_checkpoints`'s, with scratch beside the folder, if not given
    :raises StaleAttemptError: a newer attempt has begun meanwhile. Retry: no.
    """
    scratch = folder.with_name(f"{folder.name}-checkpoints")
    checkpoints = checkpoints or make_checkpoints(lake, attempt, scratch)
    with reported(lake, attempt.usage_path) as usage:
        return _run(lake, attempt, folder, usage, checkpoints)


def _run(lake: Lake, attempt: Attempt, folder: Path, usage: Usage, checkpoints: Checkpoints) -> PodResult:
    job = attempt.job
    training_set = from_json(TrainingSet, lake.read_json(job.training_set_path))
    if training_set.digest != job.training_set_digest:
        raise IntegrityError(
            f"{lake.uri(job.training_set_path)} is {training_set.digest}, not {job.training_set_digest}"
        )
    unpack(lake, job.code_path, job.code_digest, folder)
    rows, holdout = _read(lake, training_set.train_path), _read(lake, training_set.holdout_path)
    if not rows.height or not holdout.height:
        raise FeatureError(f"there are {rows.height} training rows and {holdout.height} holdout rows")
    served = as_served(rows, training_set.columns)
    labels = labels_of(rows, training_set.label_column, job.task)
    asked = as_served(holdout, training_set.columns)
    if job.trial is not None:
        checkpoints.gauge = TrialGauge(lake, job, asked, holdout[training_set.label_column])
    estimator, model = _fit_and_convert(job, folder, training_set.columns, served, labels, checkpoints)
    reference = make_reference(estimator, asked, training_set.columns, job.task)
    classes = classes_of(estimator, job.task)
    outputs = reference.outputs[: reference.holdout_rows]
    features = _feature_profile(lake, training_set, served, job.segments)
    profile = _profile(features, asked, training_set.columns, reference, job.segments)
    truth = _truth(holdout[training_set.label_column], classes)
    metrics, reasons = measure_all(Answers(job.task, truth, outputs))
    files = {
        "model.onnx": model,
        "reference.parquet": reference_bytes(reference),
        "profile.json": json_bytes(to_json(profile)),
        "metrics.json": json_bytes({"metrics": metrics, "not_computed": reasons}),
    }
    if attempt.is_superseded(lake):
        raise StaleAttemptError(f"a newer attempt has begun: attempt {attempt.number} publishes nothing")
    for name, data in files.items():
        lake.write_bytes(f"{attempt.path}/{name}", data)
    usage.sample()
    figures = usage.figures() | checkpoints.costs.figures()
    lake.write_json(attempt.usage_path, figures)
    result = PodResult(
        job=job.digest,
        attempt=attempt.number,
        files={name: sha256(data) for name, data in files.items()},
        classes=classes,
        metrics=metrics,
        packages=_packages(),
        usage=figures,
        not_reproducible_because=checkpoints.reasons,
    )
    lake.write_json(attempt.result_path, to_json(result))
    checkpoints.discard()
    log.info("done in %.1f s: %s", figures["wall_seconds"], metrics)
    return result


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


def _end_on_sigterm(lake: Lake, attempt: Attempt, checkpoints: Checkpoints) -> None:
    """Told to end, go on to the next checkpoint if there is time for it, say in the lake why, and exit."""

    def say(signal_name: str) -> None:
        message = f"the pod was asked to end ({signal_name}) before the model was trained"
        lake.write_json(attempt.failure_path, to_json(Failure("interrupted", message)))

    end_when_told(checkpoints, attempt.grace_seconds, say)


def _failure(error: Exception, folder: Path) -> Failure:
    kind: Any = next((kind for cls, kind in _KINDS.items() if isinstance(error, cls)), "error")
    if kind == "error":
        return Failure(kind, told(error), tuple(map(without_values, traceback.format_exception(error))))
    if kind == "memory":
        message = (
            "out of memory while training: ask for more under training.resources.memory, or for fewer rows"
        )
        return Failure(kind, message, user_frames(error, folder))
    return Failure(kind, str(error), user_frames(error.__cause__ or error, folder))


def _read(lake: Lake, path: str) -> pl.DataFrame:
    with lake.open(path) as file:
        return pl.read_parquet(file)


def _truth(labels: pl.Series, classes: tuple[str, ...]) -> Any:
    return class_indices(labels, classes) if classes else labels.cast(pl.Float64).to_numpy()


def _columns_without_values(served: pl.DataFrame) -> list[str]:
    return [series.name for series in served if series.dtype == pl.Float32 and bool(series.is_nan().all())]


def _feature_profile(
    lake: Lake, training_set: TrainingSet, served: pl.DataFrame, segments: Segments
) -> Profile:
    """The training features' profile, of the training set's making if it tells these segments apart."""
    if lake.exists(training_set.profile_path):
        made = read_profile(lake.read_json(training_set.profile_path))
        if made.segments.keys() == {f"{name}={value}" for name in segments for value in segments[name]}:
            return made
    return make_profile(served, training_set.columns, segments)


def _profile(
    features: Profile,
    holdout: pl.DataFrame,
    columns: tuple[ColumnSpec, ...],
    reference: Reference,
    segments: Segments,
) -> Profile:
    """The training features' profile and, as one more column, that of the holdout's scores."""
    outputs = reference.outputs[: reference.holdout_rows]
    if outputs.ndim == 2:
        outputs = outputs[:, -1] if outputs.shape[1] == 2 else outputs.max(axis=1)
    cut = [column for column in columns if column.name in segments]
    scored = holdout.with_columns(pl.Series(SCORE_COLUMN, outputs))
    scores = make_profile(scored, [*cut, ColumnSpec(SCORE_COLUMN, "float")], segments)
    parts = {
        name: replace(part, columns=part.columns | _only_score(scores.segments[name]))
        for name, part in features.segments.items()
    }
    return replace(features, columns=features.columns | _only_score(scores), segments=parts)


def _only_score(of: Profile | Part) -> dict[str, ColumnProfile]:
    return {SCORE_COLUMN: of.columns[SCORE_COLUMN]}


def _packages() -> dict[str, str]:
    """Versions of Python and of every distribution whose code was imported."""
    imported = {name.partition(".")[0] for name in sys.modules}
    found = importlib.metadata.packages_distributions()
    names = {distribution for module in imported for distribution in found.get(module, ())}
    versions = {name.lower(): importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **dict(sorted(versions.items()))}


if __name__ == "__main__":
    sys.exit(main())
