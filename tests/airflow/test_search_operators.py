"""A search as Airflow runs it: the shape of the DAG, trials in real pods, and what their ends mean."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowRescheduleException
from airflow.sdk.execution_time.comms import TaskStatesResult
from training_world import make_training_set

from ml_lifecycle.adapters.optuna import SharedStudy
from ml_lifecycle.errors import PodFailedError, TrialPrunedError
from ml_lifecycle.ledger.ledger import TRAINING, Ledger
from ml_lifecycle.records import Training, from_json, to_json
from ml_lifecycle.stages.search import begin_trial, end_trial, plan_search
from ml_lifecycle.training.search import Search, SearchPlan, Trial, Tried
from ml_lifecycle_airflow.dag_builder import lifecycle_dags
from ml_lifecycle_airflow.operators.base import Resources
from ml_lifecycle_airflow.operators.search import PlanSearchOperator, SearchOperator, TrialOperator
from ml_lifecycle_airflow.operators.train import TrainOperator

from .conftest import World
from .pods_kit import DEFERRABLE_QUICKLY, Pods, carry_out

Context = Callable[..., Any]
SEARCH = """parameters: {max_iter: 8}
  search:
    trials: 3
    parallel: 2
    metric: rmse
    validation: 4d
    space: {max_iter: {low: 1, high: 30}}"""


@pytest.fixture
def searching(world: World) -> World:
    return world.edit("model.yaml", "parameters: {max_iter: 8}", SEARCH)


def planned(world: World) -> dict[str, Any]:
    return to_json(plan_search(world.folder, world.lake, make_training_set(world.lake, world.folder)))


@pytest.fixture
def plan(searching: World) -> dict[str, Any]:
    return planned(searching)


def trial(world: World, plan: dict[str, Any], number: int, **arguments: Any) -> TrialOperator:
    return TrialOperator(
        task_id="trial",
        folder=world.path,
        plan=plan,
        number=number,
        training=world.folder.spec.training,
        kubernetes_conn_id=world.folder.spec.connections.pods,
        **arguments,
    )


def tried(world: World, plan: dict[str, Any]) -> tuple[Tried, ...]:
    spec = world.folder.spec.training.search
    assert spec is not None
    with world.database.read() as connection:
        return SharedStudy(connection, plan["digest"], spec).tried()


def test_a_search_stands_between_features_and_training(searching: World) -> None:
    (searching.folder.path / "dag.py").write_text("")
    dag = lifecycle_dags(str(searching.folder.path / "dag.py"))["delays__train"]
    assert dag.get_task("plan_search").upstream_task_ids == {"features"}
    assert dag.get_task("search").upstream_task_ids == {"plan_search", "trial"}
    assert dag.get_task("train").upstream_task_ids == {"features", "search"}
    mapped = dag.get_task("trial")
    assert mapped.is_mapped
    assert mapped.max_active_tis_per_dagrun == 2
    assert mapped.expand_input.value == {"number": [0, 1, 2]}


def test_without_a_search_there_is_no_such_task(world: World) -> None:
    dag = lifecycle_dags(str(world.folder.path / "dag.py"))["delays__train"]
    assert not {"plan_search", "trial", "search"} & set(dag.task_ids)
    assert dag.get_task("train").upstream_task_ids == {"features"}


@DEFERRABLE_QUICKLY
def test_a_whole_search(searching: World, pods: Pods, context: Context, way: dict[str, Any]) -> None:
    searching = searching.edit("model.yaml", "trials: 3", "trials: 2")  # each is a pod of its own
    given = to_json(make_training_set(searching.lake, searching.folder))
    plan = PlanSearchOperator(task_id="plan_search", folder=searching.path, training_set=given).execute(
        context("plan_search")
    )
    for number in range(2):
        there = context("trial")
        there["ti"].map_index = number
        carry_out(trial(searching, plan, number, **way), there)
        ended = from_json(Trial, there["ti"].pushed["return_value"])
        assert (ended.number, ended.state) == (number, "finished")
    found = SearchOperator(task_id="search", folder=searching.path, plan=plan).execute(context("search"))
    search = from_json(Search, found)
    assert search.trials == {"finished": 2}
    assert search.cost["attempts"] == 2
    assert search.cost["wall_seconds"] > 0

    there = context("train")
    task = TrainOperator(
        task_id="train",
        folder=searching.path,
        training_set=given,
        search=found,
        training=searching.folder.spec.training,
        kubernetes_conn_id=searching.folder.spec.connections.pods,
        **way,
    )
    carry_out(task, there)
    training = from_json(Training, there["ti"].pushed["return_value"])
    assert training.parameters == search.parameters
    assert training.search_path == search.path
    found_files = mlflow_files(pods, str(training.mlflow_run_id))
    assert {"search/history.png", "search/study.log", "search/trials.json"} <= found_files
    subjects = {entry.subject for entry in Ledger(searching.database).entries() if entry.kind == TRAINING}
    assert subjects == {search.digest, training.digest}


def mlflow_files(pods: Pods, run_id: str) -> set[str]:
    from mlflow import MlflowClient

    client = MlflowClient(json.loads(os.environ["AIRFLOW_CONN_ML_LIFECYCLE_MLFLOW"])["extra"]["url"])
    return {file.path for file in client.list_artifacts(run_id, "search")}


def test_a_trial_waits_without_a_worker_for_those_it_learns_from(
    searching: World, plan: dict[str, Any], context: Context, supervisor: Any
) -> None:
    supervisor.send.return_value = TaskStatesResult(task_states={"manual__1": {"trial_0": "running"}})
    with pytest.raises(AirflowRescheduleException) as caught:
        trial(searching, plan, 2).execute(context("trial"))
    assert caught.value.reschedule_date - datetime.now(UTC) < timedelta(minutes=1)
    assert tried(searching, plan) == (), "nothing was decided yet"


@pytest.mark.parametrize("state", ["failed", "upstream_failed", "skipped", "success"])
def test_a_trial_does_not_wait_for_one_whose_task_is_over(
    searching: World, plan: dict[str, Any], context: Context, supervisor: Any, state: str
) -> None:
    supervisor.send.return_value = TaskStatesResult(task_states={"manual__1": {"trial_0": state}})
    with pytest.raises(AirflowFailException, match="the tasks of 0 are over: clear them with this one"):
        trial(searching, plan, 2).execute(context("trial"))


def test_a_trial_that_ends_just_then_is_not_taken_for_one_that_was_given_up(
    searching: World,
    plan: dict[str, Any],
    context: Context,
    supervisor: Any,
) -> None:
    resources = searching.folder, searching.lake, searching.database, from_json(SearchPlan, plan)
    job, _ = begin_trial(*resources, 0)

    def ends_meanwhile(_: Any) -> TaskStatesResult:
        end_trial(*resources, job, TrialPrunedError("worse"))
        return TaskStatesResult(task_states={"manual__1": {"trial_0": "success"}})

    supervisor.send.side_effect = ends_meanwhile
    begun, _ = trial(searching, plan, 2)._begin(Resources(searching.path), context("trial"))
    assert begun.trial is not None
    assert begun.trial.number == 2


def test_what_the_spec_says_to_the_scheduler_holds_for_trials(searching: World) -> None:
    said = searching.edit("model.yaml", "  search:", "  pod: {queue: cluster, pool: gpus}\n  search:")
    dag = lifecycle_dags(str(said.folder.path / "dag.py"))["delays__train"]
    for task in (dag.get_task("trial"), dag.get_task("train")):
        assert (task.queue, task.pool) == ("cluster", "gpus")


ENDLESS = """
def train(training_set, labels, parameters, seed):
    import time
    time.sleep(600)
"""


def test_a_trial_that_never_ends_is_over_with_its_last_try(
    searching: World,
    pods: Pods,
    context: Context,
) -> None:
    (searching.folder.path / "training.py").write_text(ENDLESS)
    searching = searching.edit("model.yaml", "  search:", "  timeout: 3s\n  search:")
    plan = planned(searching)
    there = context("trial")
    with pytest.raises(PodFailedError, match="ran past its deadline"):
        trial(searching, plan, 0).execute(there)
    assert [one.state for one in tried(searching, plan)] == ["running"]
    there["ti"].try_number = there["ti"].max_tries + 1
    trial(searching, plan, 0).execute(there)
    (ended,) = tried(searching, plan)
    assert ended.state == "failed"
    assert "ran past its deadline" in ended.message


FAILING = """
def train(training_set, labels, parameters, seed):
    raise ValueError(f"{parameters['max_iter']} is not to my liking")
"""


def test_a_trial_that_fails_by_its_parameters_is_a_result(
    searching: World,
    pods: Pods,
    context: Context,
) -> None:
    (searching.folder.path / "training.py").write_text(FAILING)
    searching = searching.edit("model.yaml", "parallel: 2", "parallel: 3")
    plan = planned(searching)
    for number in range(3):
        there = context("trial")
        there["ti"].map_index = number
        carry_out(trial(searching, plan, number), there)
        ended = from_json(Trial, there["ti"].pushed["return_value"])
        assert ended.state == "failed"
        assert "is not to my liking" in ended.message

    launched = pods.uids()
    there = context("trial")
    there["ti"].try_number = 2
    trial(searching, plan, 0).execute(there)
    assert from_json(Trial, there["ti"].pushed["return_value"]).state == "failed"
    assert pods.uids() == launched, "what is known is not tried again"

    with pytest.raises(AirflowFailException, match=r"of 3 trials none finished; trial 0 with .* 8 is not to"):
        SearchOperator(task_id="search", folder=searching.path, plan=plan).execute(context("search"))


def test_a_trial_that_the_cluster_ends_is_none(
    searching: World,
    plan: dict[str, Any],
    pods: Pods,
    context: Context,
) -> None:
    """It has not ended, whatever its task says: a later try goes on with it."""
    broken = trial(searching, plan, 0, image_pull_secrets=None, cmds=None)
    broken._prepare = lambda *_: (_ for _ in ()).throw(PodFailedError("no cluster"))  # type: ignore[method-assign]
    with pytest.raises(PodFailedError, match="no cluster"):
        broken.execute(context("trial"))
    assert [one.state for one in tried(searching, plan)] == ["running"]
    there = context("trial")
    there["ti"].try_number = 2
    carry_out(trial(searching, plan, 0), there)
    assert [one.state for one in tried(searching, plan)] == ["finished"]
