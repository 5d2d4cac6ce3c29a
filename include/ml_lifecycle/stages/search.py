"""Search: parameters are tried out on the training rows before the model is trained with the best of them.

A trial is an ordinary training, in pods of its own, on a training set of its own: the older training rows,
and as its holdout the newest ones. So every image that keeps the pod contract can be searched with, and a
trial survives whatever a training survives. The tasks write the study; pods know the lake alone.

**Which parameters.** Trial n is chosen by what trials 0 to n - ``parallel`` came to, so it begins once these
have ended, and the same search tries the same parameters however long each trial takes. Whichever task comes
first adds the trials up to its own, in one transaction.

**What a failure means.** ``train()`` may fail with some parameters: such a trial is told to the study as
failed, and the search goes on, unless the first ones all failed. What the infrastructure does to a trial is
told to nobody: its task fails, and once it is cleared the search goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake, json_bytes, sha256
from ml_lifecycle.adapters.optuna import SharedStudy, journal, suggest
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import (
    ConversionError,
    FeatureError,
    LifecycleError,
    PodFailedError,
    SpecError,
    TrainingError,
    TrialPrunedError,
    TrialsUnderWayError,
)
from ml_lifecycle.ledger.attempts import attempts_of
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import TRAINING, append_entry
from ml_lifecycle.records import Interval, Training, TrainingSet, digest_of, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.spec.search import Search as SearchSpec
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.stages.train_attempts import runs_of
from ml_lifecycle.training.cost import Cost, Prices, cost_of
from ml_lifecycle.training.job import TrainingJob, read_measured
from ml_lifecycle.training.outcomes import OutcomeKind
from ml_lifecycle.training.search import Search, SearchPlan, Trial, TrialTerms, Tried, best_of, bounds_of

_MOMENT = "event_timestamp"
_HOPELESS = 5  # trials that all failed: something else is wrong than their parameters


def plan_search(folder: ModelFolder, lake: Lake, training_set: TrainingSet) -> SearchPlan:
    """Split the training rows, and name the search by all that its trials depend on.

    :raises FeatureError: a part of the split has no rows. Retry: no.
    :raises SpecError: the spec has no ``training.search``. Retry: no.
    """
    spec = _spec(folder)
    split = _split(folder, lake, training_set, spec.validation)
    job = plan_training(folder, lake, split)
    digest = digest_of(
        {"job": job.digest, "search": spec.model_dump(mode="json"), "spec": folder.spec_digest}
    )
    plan = SearchPlan(
        run=training_set.run,
        digest=digest,
        path=f"searches/{folder.spec.name}/{digest}",
        training_set_digest=training_set.digest,
        split_path=f"{split.path}/manifest.json",
        code_digest=folder.code_digest,
        spec_digest=folder.spec_digest,
    )
    if not lake.exists(f"{plan.path}/manifest.json"):
        lake.write_json(f"{plan.path}/manifest.json", to_json(plan))
    return plan


def begin_trial(
    folder: ModelFolder, lake: Lake, database: Database, plan: SearchPlan, number: int
) -> tuple[TrainingJob, Tried]:
    """The job of a trial, and the trial as the study has it, which may be over already.

    :raises TrialsUnderWayError: it learns from others that have not ended. Retry: yes.
    :raises TrainingError: all trials so far have failed. Retry: no.
    :raises SpecError: the folder is not the one that the search was planned with. Retry: no.
    """
    spec = _spec(folder)
    if (folder.code_digest, folder.spec_digest) != (plan.code_digest, plan.spec_digest):
        raise SpecError(
            f"{folder.path} changed since the search was planned: clear the task that planned it, "
            "and a new search begins"
        )
    with database.read() as connection:  # most that come here wait, and need not hold up who writes
        tried = list(SharedStudy(connection, plan.digest, spec).tried())
    _check_others(tried, number, spec.parallel)
    if number >= len(tried):
        with database.write() as connection:
            study = SharedStudy(connection, plan.digest, spec)
            tried = list(study.tried())
            while len(tried) <= number:
                tried.append(suggest(spec, folder.spec.training.seed, tried, folder.spec.training.parameters))
                study.add(tried[-1])
    mine = tried[number]
    learnt_from = tried[: max(0, number - spec.parallel + 1)]
    terms = TrialTerms(plan.digest, number, spec.metric, bounds_of(spec.pruning, spec.metric, learnt_from))
    split = from_json(TrainingSet, lake.read_json(plan.split_path))
    parameters = {**folder.spec.training.parameters, **mine.parameters}
    job = plan_training(folder, lake, replace(split, run=plan.run), trial=(terms, parameters))
    if not mine.job:
        with database.write() as connection:
            SharedStudy(connection, plan.digest, spec).note_job(number, job.digest)
    return job, mine


def end_trial(
    folder: ModelFolder,
    lake: Lake,
    database: Database,
    plan: SearchPlan,
    job: TrainingJob,
    ended: Training | LifecycleError,
) -> Trial:
    """Tell the study what became of a trial; one that is over already stays as it was.

    :param ended: its training, or what it failed of: :func:`settles`
    """
    spec = _spec(folder)
    assert job.trial is not None, "a job of begin_trial()"
    measured = read_measured(lake, job)
    if isinstance(ended, Training):
        value = ended.metrics.get(spec.metric)
        message = "" if value is not None else f"{spec.metric} could not be computed on the validation rows"
        end: dict[str, Any] = {
            "state": "failed" if value is None else "finished",
            "value": value,
            "message": message,
        }
    elif isinstance(ended, TrialPrunedError):
        newest = measured[max(measured)] if measured else None
        end = {"state": "pruned", "value": newest, "message": str(ended)}
    else:
        end = {"state": "failed", "value": None, "message": str(ended)}
    with database.write() as connection:
        study = SharedStudy(connection, plan.digest, spec)
        study.tell(replace(study.tried()[job.trial.number], measured=measured, **end))
        told = study.tried()[job.trial.number]
    with suppress(Exception):  # each filesystem has its own errors; nobody goes on from these, they take room
        for path in lake.list(job.checkpoints_path):
            lake.delete(path)
    return trial_record(plan, job, told)


def settles(error: BaseException | None) -> bool:
    """Whether a trial that ended so is over: the same parameters would end the same."""
    return isinstance(error, _SETTLING)


def settles_at_last(kind: OutcomeKind) -> bool:
    """Whether a trial is over whose task has no try left, and whose pods time and again ended so.

    That its training never ends, or brings the interpreter down, may be its parameters' doing as well.
    """
    return kind in ("deadline", "crashed")


def trial_record(plan: SearchPlan, job: TrainingJob, tried: Tried) -> Trial:
    """A trial of the study as a record."""
    return Trial(
        run=plan.run,
        search=plan.digest,
        number=tried.number,
        parameters=job.parameters,
        state=tried.state,
        value=tried.value,
        message=tried.message,
    )


def finish_search(
    folder: ModelFolder,
    lake: Lake,
    database: Database,
    plan: SearchPlan,
    prices: Prices | None,
    now: datetime,
) -> Search:
    """The best trial's parameters. Trials, journal and plots go to the lake, the cost to the ledger.

    :raises PodFailedError: some trials have not ended: clear their tasks. Retry: yes, then.
    :raises TrainingError: none finished. Retry: no.
    """
    path = f"{plan.path}/result"
    if lake.exists(f"{path}/manifest.json"):
        return replace(from_json(Search, lake.read_json(f"{path}/manifest.json")), run=plan.run)
    spec = _spec(folder)
    with database.read() as connection:
        tried = SharedStudy(connection, plan.digest, spec).tried()
    open_ones = [trial.number for trial in tried if trial.state == "running"]
    open_ones += range(len(tried), spec.trials)
    if open_ones:
        raise PodFailedError(
            f"{len(open_ones)} of {spec.trials} trials have not ended ({_some(open_ones)}): clear their "
            "tasks, and the search goes on where it is"
        )
    best = best_of(spec.metric, tried)
    if best is None or best.value is None:
        raise TrainingError(_all_failed(tried))
    with database.read() as connection:
        pictures = SharedStudy(connection, plan.digest, spec).plots()
        log = journal(connection, plan.digest)
    files = {"trials.json": json_bytes([asdict(trial) for trial in tried]), "study.log": log, **pictures}
    for name, data in files.items():
        lake.write_bytes(f"{path}/{name}", data)
    cost = _cost(database, folder, tried, prices)
    search = Search(
        run=plan.run,
        digest=plan.digest,
        path=path,
        training_set_digest=plan.training_set_digest,
        metric=spec.metric,
        number=best.number,
        value=best.value,
        baseline=tried[0].value if tried[0].state == "finished" else None,
        parameters={**folder.spec.training.parameters, **best.parameters},
        trials=dict(Counter(trial.state for trial in tried)),
        files={name: sha256(data) for name, data in files.items()},
        cost=cost.figures,
    )
    with database.write() as connection:
        append_entry(
            connection,
            TRAINING,
            plan.run.model,
            to_json(cost),
            now,
            subject=plan.digest,
            key=plan.digest[:32],
        )
    lake.write_json(f"{path}/manifest.json", to_json(search))
    return search


# What the parameters may be to blame for; a torn file or an image that does not exist is nobody's trial.
_SETTLING = (TrainingError, ConversionError, TrialPrunedError)


def _spec(folder: ModelFolder) -> SearchSpec:
    if (spec := folder.spec.training.search) is None:
        raise SpecError(f"{folder.path}/model.yaml has no training.search: there is nothing to search for")
    return spec


def _split(folder: ModelFolder, lake: Lake, training_set: TrainingSet, validation: timedelta) -> TrainingSet:
    """The training rows as a training set of their own, the newest ones its holdout."""
    delay = folder.spec.labels.delay
    digest = digest_of(
        {
            "training_set": training_set.digest,
            "validation": format_duration(validation),
            "delay": format_duration(delay),
        }
    )
    path = f"training_sets/{folder.spec.name}/{digest}"
    if lake.exists(f"{path}/manifest.json"):
        return replace(from_json(TrainingSet, lake.read_json(f"{path}/manifest.json")), run=training_set.run)
    with lake.open(training_set.train_path) as file:
        rows = pl.read_parquet(file)
    span = Interval(training_set.train_end - validation, training_set.train_end)
    moment = pl.col(_MOMENT)
    parts = {
        "train": rows.filter(moment < span.start - delay),
        "holdout": rows.filter(moment >= span.start),
    }
    if empty := [name for name, part in parts.items() if part.is_empty()]:
        what = {"train": "to train on", "holdout": "to measure on"}[empty[0]]
        raise FeatureError(
            f"training.search.validation: with {format_duration(validation)} before "
            f"{span.end.isoformat()}, and labels that take {format_duration(delay)}, a trial has no rows "
            f"{what}: training rows are of {rows[_MOMENT].min()!s} to {rows[_MOMENT].max()!s}"
        )
    for name, part in parts.items():
        write_parquet(lake, f"{path}/{name}.parquet", part)
    split = replace(
        training_set,
        digest=digest,
        path=path,
        train_path=f"{path}/train.parquet",
        holdout_path=f"{path}/holdout.parquet",
        train_rows=parts["train"].height,
        holdout_rows=parts["holdout"].height,
        train_end=span.start - delay,
        holdout=span,
    )
    lake.write_json(f"{path}/manifest.json", to_json(split))
    return split


def _check_others(tried: Sequence[Tried], number: int, parallel: int) -> None:
    """Whether those are over that a trial learns from.

    :raises TrialsUnderWayError: one is not. Retry: yes.
    :raises TrainingError: all before this one have failed, and they were not few. Retry: no.
    """
    wanted = range(number - parallel + 1)
    waited_for = [one for one in wanted if one >= len(tried) or tried[one].state == "running"]
    if waited_for:
        raise TrialsUnderWayError(
            f"trial {number} learns from trial {_some(waited_for)}, which has not ended yet",
            tuple(waited_for),
        )
    before = tried[:number]
    if len(before) >= _HOPELESS and all(trial.state == "failed" for trial in before):
        raise TrainingError(_all_failed(before))


def _all_failed(tried: Sequence[Tried]) -> str:
    failed = next((trial for trial in tried if trial.state == "failed"), None)
    why = f"; trial {failed.number} with {failed.parameters}: {failed.message}" if failed else ""
    return f"of {len(tried)} trials none finished{why}"


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")


def _cost(database: Database, folder: ModelFolder, tried: Sequence[Tried], prices: Prices | None) -> Cost:
    runs = [run for trial in tried if trial.job for run in runs_of(attempts_of(database, trial.job))]
    return cost_of(runs, folder.spec.training.resources, prices)
