"""Search: the trials of a hyperparameter search as mapped tasks, each with pods of its own."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException

from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    StageOperator,
    final_errors_fail_at_once,
)
from ml_lifecycle_airflow.operators.training_pods import TrainingPodsOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow.sdk import Context

    from ml_lifecycle.errors import TrialsUnderWayError
    from ml_lifecycle.records import Training, TrainingSet
    from ml_lifecycle.stages.train_attempts import TrainingAttempts
    from ml_lifecycle.training.job import TrainingJob
    from ml_lifecycle.training.search import Search, SearchPlan, Trial, Tried

_LOOKING_AGAIN, _AT_MOST = timedelta(seconds=5), timedelta(minutes=1)
# A trial that has not ended, and whose task is in one of these, ends only once somebody clears it.
_OVER = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})


class PlanSearchOperator(StageOperator):
    """Split the training rows for the trials of a search, and name it.

    :param training_set: the training set's record
    """

    template_fields = ("training_set",)

    def __init__(self, *, training_set: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training_set = training_set

    def stage(self, resources: Resources, context: Context) -> SearchPlan:
        """Return the search's plan."""
        from ml_lifecycle.records import TrainingSet
        from ml_lifecycle.stages.search import plan_search

        training_set: TrainingSet = resources.received(TrainingSet, self.training_set, context)
        return plan_search(resources.model, resources.lake(), training_set)


class TrialOperator(TrainingPodsOperator):
    """One trial of a search, in pods as the training itself; to be mapped over ``number``.

    It waits, without a worker, for the trials that it learns from. A trial that ``train()`` fails with, or
    that is given up for being worse than others, has ended well: the study and the return value say so. The
    task fails for what no parameters are to blame for; once it is cleared the search goes on where it was.

    :param plan: the search's plan
    :param number: of the trial, from 0
    """

    template_fields = (*TrainingPodsOperator.template_fields, "plan")
    _prefix = "trial"
    _job: TrainingJob | None = None  # once begun

    def __init__(self, *, plan: RecordArg, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.number = number

    def execute(self, context: Context) -> None:
        """Train the trial, unless the study knows already what became of it.

        :raises AirflowRescheduleException: trials that it learns from are under way.
        :raises AirflowFailException: the tasks of some have failed, or all of them did. Retry: no.
        :raises PodFailedError: the budgets of ``training.recovery`` are spent. Retry: yes.
        """
        from ml_lifecycle.stages.search import trial_record

        resources = Resources(self.folder)
        self._job, tried = self._begin(resources, context)
        if tried.state == "running":
            super().execute(context)
        else:
            self._return(trial_record(self._received(resources, context), self._job, tried), context)

    def _begin(self, resources: Resources, context: Context) -> tuple[TrainingJob, Tried]:
        from ml_lifecycle.errors import SpecError, TrialsUnderWayError
        from ml_lifecycle.stages.search import begin_trial

        with final_errors_fail_at_once():
            plan = self._received(resources, context)
            begin = partial(
                begin_trial, resources.model, resources.lake(), resources.database(), plan, self.number
            )
            try:
                return begin()
            except TrialsUnderWayError as error:
                over = self._tasks_over(error.waited_for, context)
            except SpecError:
                with suppress(Exception):  # whatever the cluster says, the folder's change is the news
                    self._remove_pods_of_others(self._namespace(context), context)
                raise
            try:
                return begin()  # once more: what ended between the two looks has ended well
            except TrialsUnderWayError as error:
                self._raise_if_given_up(over.intersection(error.waited_for), error)
                self.log.info("%s", error)
                wait = min(_LOOKING_AGAIN * len(error.waited_for), _AT_MOST)
                raise AirflowRescheduleException(datetime.now(UTC) + wait) from error

    def _plan(self, resources: Resources, context: Context) -> TrainingJob:
        return self._job or self._begin(resources, context)[0]  # none after a deferral

    def _supervise(
        self, resources: Resources, attempts: TrainingAttempts, context: Context, run: Callable[[], object]
    ) -> None:
        from ml_lifecycle.errors import PodFailedError
        from ml_lifecycle.stages.search import settles, settles_at_last

        try:
            super()._supervise(resources, attempts, context, run)
        except AirflowFailException as error:
            if not settles(error.__cause__):
                raise
            self._tell(resources, attempts, error.__cause__, context)
        except PodFailedError as error:
            one: Any = context["ti"]
            newest = attempts.rows()[-1].outcome
            if one.try_number <= one.max_tries or newest is None or not settles_at_last(newest.kind):
                raise
            self._tell(resources, attempts, error, context)

    def _finish(
        self, resources: Resources, attempts: TrainingAttempts, training: Training, context: Context
    ) -> None:
        self._tell(resources, attempts, training, context)

    def _tell(self, resources: Resources, attempts: TrainingAttempts, ended: Any, context: Context) -> None:
        """Say what became of it, to the study and as the return value."""
        from ml_lifecycle.stages.search import end_trial

        lake, database, plan = resources.lake(), resources.database(), self._received(resources, context)
        self._return(end_trial(resources.model, lake, database, plan, attempts.job, ended), context)

    def _return(self, trial: Trial, context: Context) -> None:
        from ml_lifecycle.records import to_json

        value = "" if trial.value is None else f" with {trial.value:g}"
        self.log.info("trial %d %s%s, of %s", trial.number, trial.state, value, trial.parameters)
        if trial.message:
            self.log.info("%s", trial.message)
        context["ti"].xcom_push(key="return_value", value=to_json(trial))

    def _received(self, resources: Resources, context: Context) -> SearchPlan:
        from ml_lifecycle.training.search import SearchPlan

        return resources.received(SearchPlan, self.plan, context)

    def _tasks_over(self, numbers: Iterable[int], context: Context) -> set[int]:
        """Those of the trials whose tasks are over."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        one: Any = context["ti"]
        states = RuntimeTaskInstance.get_task_states(one.dag_id, task_ids=[one.task_id], run_ids=[one.run_id])
        of_run = states.get(one.run_id, {})
        return {number for number in numbers if of_run.get(f"{one.task_id}_{number}") in _OVER}

    def _raise_if_given_up(self, given_up: set[int], error: TrialsUnderWayError) -> None:
        if given_up:
            numbers = ", ".join(map(str, sorted(given_up)))
            raise AirflowFailException(
                f"{error}; the tasks of {numbers} are over: clear them with this one, and the search goes on "
                "where it is"
            ) from error


class SearchOperator(StageOperator):
    """The best of all trials, once they have ended.

    :param plan: the search's plan
    """

    template_fields = ("plan",)

    def __init__(self, *, plan: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan

    def stage(self, resources: Resources, context: Context) -> Search:
        """Return what the search came to."""
        from ml_lifecycle.stages.search import finish_search
        from ml_lifecycle.training.search import SearchPlan
        from ml_lifecycle_airflow.operators.train import price_table

        search = finish_search(
            resources.model,
            resources.lake(),
            resources.database(),
            resources.received(SearchPlan, self.plan, context),
            price_table(),
            datetime.now(UTC),
        )
        self.log.info(
            "%s %g by trial %d of %s: %s",
            search.metric,
            search.value,
            search.number,
            search.trials,
            search.parameters,
        )
        return search
