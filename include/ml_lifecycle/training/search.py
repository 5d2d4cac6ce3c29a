"""Trying parameters out: what a trial is given, what became of it, and what a whole search came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ml_lifecycle.metrics import LOWER_IS_BETTER, worse_by
from ml_lifecycle.records import Record, Run
from ml_lifecycle.spec.search import Pruning

TrialState = Literal["running", "finished", "pruned", "failed"]


@dataclass(frozen=True)
class TrialTerms:
    """What a pod is told of the trial that it is; beside a job's parameters.

    :param search: the search's digest
    :param metric: what ``checkpoints.measure()`` measures
    :param bounds: by step, the value that the trial's best one so far must not be worse than; a pod that
        does not measure itself need not look
    """

    search: str
    number: int
    metric: str
    bounds: dict[str, float] = field(default_factory=dict)

    def is_hopeless(self, measured: Mapping[int, float]) -> bool:
        """Whether a trial with these values, by step, should be given up at the newest of them."""
        if not measured or (bound := self.bounds.get(str(max(measured)))) is None:
            return False
        return worse_by(self.metric, self.best(measured), bound) > 0

    def best(self, measured: Mapping[int, float]) -> float:
        """The best of these values."""
        return (min if self.metric in LOWER_IS_BETTER else max)(measured.values())


@dataclass(frozen=True)
class Tried:
    """A trial, as the study has it.

    :param job: digest of the job that its pods do; empty until it was written
    :param value: of a finished one on the validation rows, of a pruned one the newest of ``measured``
    :param measured: by step, while it trained
    :param notes: the sampler's own
    """

    number: int
    parameters: dict[str, Any]
    state: TrialState = "running"
    value: float | None = None
    measured: dict[int, float] = field(default_factory=dict)
    message: str = ""
    job: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchPlan(Record):
    """A search: the rows that its trials train on and are measured on.

    :param digest: of all that the trials depend on: names the study
    :param training_set_digest: of the training set that was split
    :param split_path: manifest of the training set that the trials get, whose holdout is the validation rows
    """

    schema: ClassVar[str] = "search_plan/1"
    run: Run
    digest: str
    path: str
    training_set_digest: str
    split_path: str
    code_digest: str
    spec_digest: str


@dataclass(frozen=True)
class Trial(Record):
    """What became of a trial.

    :param message: why it was pruned or failed
    """

    schema: ClassVar[str] = "trial/1"
    run: Run
    search: str
    number: int
    parameters: dict[str, Any]
    state: TrialState
    value: float | None
    message: str


@dataclass(frozen=True)
class Search(Record):
    """What a search came to.

    :param parameters: all that the model is to be trained with: the spec's, those of the best trial over them
    :param baseline: what the first trial measured, which has the spec's own parameters where the space allows
        them; None if it did not finish
    :param trials: how many there were, by what became of them
    :param files: SHA-256 by name of what lies in ``path``: the trials, Optuna's journal, plots
    :param cost: of all trials' pods together, as the ledger has it
    """

    schema: ClassVar[str] = "search/1"
    run: Run
    digest: str
    path: str
    training_set_digest: str
    metric: str
    number: int
    value: float
    baseline: float | None
    parameters: dict[str, Any]
    trials: dict[str, int]
    files: dict[str, str]
    cost: dict[str, float]


def best_of(metric: str, trials: Sequence[Tried]) -> Tried | None:
    """The best of those that finished; the first of equals. None if none did."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def bounds_of(pruning: Pruning | None, metric: str, trials: Sequence[Tried]) -> dict[str, float]:
    """By step, what a trial's best value must not be worse than, by what these measured.

    Optuna's PercentilePruner decides the same, step by step: only finished trials count, each with what it
    measured at exactly this step.
    """
    if pruning is None:
        return {}
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < pruning.startup_trials:
        return {}
    at: dict[int, list[float]] = {}
    for trial in finished:
        for step, value in trial.measured.items():
            at.setdefault(step, []).append(value)
    percentile = pruning.percentile if metric in LOWER_IS_BETTER else 100 - pruning.percentile
    return {
        str(step): float(np.percentile(values, percentile))
        for step, values in sorted(at.items())
        if step >= pruning.warmup_steps and len(values) >= pruning.startup_trials
    }
