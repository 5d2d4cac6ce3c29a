"""How a trial of a search is measured while it trains, and when it is given up."""

from __future__ import annotations

import logging
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import ServerUnavailableError, TrainingError, TrialPrunedError
from ml_lifecycle.metrics import Answers, MetricError, class_indices, measure
from ml_lifecycle.training.fit import classes_of, described
from ml_lifecycle.training.job import TrainingJob, read_measured
from ml_lifecycle.training.reference import estimator_answers

log = logging.getLogger("ml_lifecycle.training")


class TrialGauge:
    """Measures an unfinished estimator on the trial's validation rows.

    Each value is a file of its own in the lake, by its step: whichever attempt measures a step, it measures
    the same.

    :param served: the validation rows as the model is served them
    :param labels: their labels
    """

    def __init__(self, lake: Lake, job: TrainingJob, served: pl.DataFrame, labels: pl.Series) -> None:
        assert job.trial is not None, "only a trial is measured"
        self._lake = lake
        self._job = job
        self._terms = job.trial
        self._served = served
        self._labels = labels
        self._measured = read_measured(lake, job)

    def measure(self, step: int, estimator: Any) -> None:
        """Measure, and write it down.

        :raises TrialPrunedError: it is worse than the trials before it. Retry: no.
        :raises ServerUnavailableError: the lake does not take it. Retry: yes.
        :raises TrainingError: the estimator cannot answer the rows that training rows look like. Retry: no.
        """
        job, terms = self._job, self._terms
        try:
            outputs = estimator_answers(estimator, self._served, job.task).outputs
            classes = classes_of(estimator, job.task)
        except Exception as error:  # whatever the user's estimator raises
            raise TrainingError(
                "checkpoints.measure(): the estimator does not answer rows as train() was given them: "
                f"{described(error)}. What they went through must be part of it, as in a pipeline"
            ) from error
        truth = class_indices(self._labels, classes) if classes else self._labels.cast(pl.Float64).to_numpy()
        try:
            value = measure(terms.metric, Answers(job.task, truth, outputs))
        except MetricError as error:
            log.info("not measured at step %d: %s", step, error)
            return
        try:
            self._lake.write_json(job.measured_file(step), {"value": value})
        except Exception as error:  # each filesystem has its own errors
            raise ServerUnavailableError(
                f"what was measured at step {step} cannot be written: {type(error).__name__}: {error}"
            ) from error
        self._measured = {**{at: known for at, known in self._measured.items() if at < step}, step: value}
        log.info("%s at step %d: %g", terms.metric, step, value)
        if terms.is_hopeless(self._measured):
            raise TrialPrunedError(
                f"given up at step {step}: {terms.metric} is {value:g}, and at best was "
                f"{terms.best(self._measured):g}; the trials before it were at {terms.bounds[str(step)]:g}"
            )
