"""A Spark application: reads a job from the lake, computes it, and leaves the stage's own result there.

``spark-submit __main__.py --lake URL --job PATH``. The lake's options, which are credentials, come in
``ML_LIFECYCLE_LAKE_OPTIONS``; without it the lake is reached as the application's surroundings allow. What
goes wrong is said in ``failure.json`` beside the job, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.code_package import keep_package, package_path, unpack
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.personal import without_values
from ml_lifecycle.records import Interval, ScoringPlan, Snapshot, Training, from_json, to_json
from ml_lifecycle.spark.job import (
    ENVIRONMENT_OPTIONS_VARIABLE,
    LAKE_OPTIONS_VARIABLE,
    Job,
    SparkFailure,
    SparkJob,
)
from ml_lifecycle.spec.folder import ModelFolder, load_folder

log = logging.getLogger("ml_lifecycle.spark")

Arguments = Mapping[str, Any]


def plan_application(folder: ModelFolder, lake: Lake, job: Job) -> SparkJob:
    """Write what an application needs to the lake; the same job is the same file.

    :raises SpecError: the folder changed while the run was using it. Retry: no.
    """
    code = (package_path(folder), folder.code_digest)
    planned = SparkJob.make(folder.spec.name, job, *code, folder.spec_digest)
    keep_package(folder, lake)
    lake.write_json(planned.path, to_json(planned))
    return planned


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Do the job that is named; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.spark")
    parser.add_argument("--lake", required=True, help="the lake's URL")
    parser.add_argument("--job", required=True, help="the job's path in it")
    given = parser.parse_args(arguments)
    options = json.loads(environment.get(LAKE_OPTIONS_VARIABLE) or "{}")
    # They are credentials: the user's code has no use for them, and may print its environment.
    os.environ.pop(LAKE_OPTIONS_VARIABLE, None)
    lake = Lake(given.lake, options)
    job = from_json(SparkJob, lake.read_json(given.job))
    lake.delete(job.failure_path)
    try:
        run_job(lake, job)
    except Exception as error:  # noqa: BLE001 - whatever it is, the operator reads of it in failure.json
        failure = _failure(error)
        lake.write_json(job.failure_path, to_json(failure))
        log.error("%s: %s\n%s", failure.kind, failure.text, "".join(failure.traceback))
        return 1
    return 0


def run_job(lake: Lake, job: SparkJob) -> None:
    """Compute the job's stage, with the model folder it was planned with.

    :raises LifecycleError: the stage's own. Retry: as it says.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, job.model).resolve()
        unpack(lake, job.code_path, job.code_digest, folder)
        STAGES[job.stage](load_folder(folder), lake, job.arguments)


def _failure(error: Exception) -> SparkFailure:
    kind = type(error).__name__
    if isinstance(error, LifecycleError):
        return SparkFailure(kind, str(error), error.retryable)
    lines = (without_values(line) for line in traceback.format_exception(error))
    return SparkFailure(kind, without_values(str(error)), True, tuple(lines))


def _validate(folder: ModelFolder, lake: Lake, given: Arguments) -> None:
    from ml_lifecycle.stages.validate import validate

    previous = given["previous"]
    validate(
        folder.spec,
        folder.contracts,
        lake,
        from_json(Snapshot, given["snapshot"]),
        None if previous is None else from_json(Snapshot, previous),
    )


def _profile_window(folder: ModelFolder, lake: Lake, given: Arguments) -> None:
    from ml_lifecycle.adapters.predictions import PredictionWindow
    from ml_lifecycle.spark.windows import keep_profiles
    from ml_lifecycle.stages.monitor_kept import KeptFindings

    options = json.loads(os.environ.pop(ENVIRONMENT_OPTIONS_VARIABLE, "") or "null")
    logged = Lake(given["environment_lake"], lake.storage_options if options is None else options)
    start, end = (datetime.fromisoformat(given[name]) for name in ("start", "end"))
    log = PredictionWindow(logged, folder.spec.endpoint, Interval(start, end))
    training = from_json(Training, given["training"])
    kept = KeptFindings(lake, folder.spec.name, log)
    stretches = [stretch for stretch in log.stretches if stretch.name in given["stretches"]]
    keep_profiles(folder.spec, lake, log, training, kept, stretches)


def _features(folder: ModelFolder, lake: Lake, given: Arguments) -> None:
    from ml_lifecycle.stages.features import build_training_set

    build_training_set(folder, lake, from_json(Snapshot, given["snapshot"]))


def _newest_rows(folder: ModelFolder, lake: Lake, given: Arguments) -> None:
    from ml_lifecycle.spark.newest import find_newest

    find_newest(folder, lake, from_json(Snapshot, given["snapshot"]))


def _score(folder: ModelFolder, lake: Lake, given: Arguments) -> None:
    from ml_lifecycle.delivery.lineage import read_training
    from ml_lifecycle.stages.score import score_plan

    plan = from_json(ScoringPlan, given["plan"])
    score_plan(folder, lake, plan, read_training(lake, plan.training_path))


STAGES: Mapping[str, Callable[[ModelFolder, Lake, Arguments], None]] = {
    "features": _features,
    "newest_rows": _newest_rows,
    "score": _score,
    "validate": _validate,
    "profile_window": _profile_window,
}
"""What applications can compute, by the name a :class:`~ml_lifecycle.spark.job.Job` calls it."""
