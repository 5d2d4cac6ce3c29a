"""Training in a real pod of a real Pods API: what the pod is given, and what its ending means."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from airflow.sdk.execution_time.comms import TaskStatesResult
from training_world import make_training_set
from waiting import wait_until

from ml_lifecycle.errors import PodFailedError, ServerUnavailableError, UnschedulableError
from ml_lifecycle.ledger.attempts import attempts_of
from ml_lifecycle.ledger.ledger import TRAINING, Ledger
from ml_lifecycle.localpods.connection import connection_json
from ml_lifecycle.records import Training, from_json, to_json
from ml_lifecycle.training.cost import Cost
from ml_lifecycle_airflow.operators.train import TrainOperator

from .conftest import World
from .pods_kit import BLOCKING_QUICKLY, DEFERRABLE_QUICKLY, Pods, carry_out

Context = Callable[..., Any]


def operator(world: World, **arguments: Any) -> TrainOperator:
    return TrainOperator(
        task_id="train",
        folder=world.path,
        training_set=to_json(make_training_set(world.lake, world.folder)),
        training=world.folder.spec.training,
        kubernetes_conn_id=world.folder.spec.connections.pods,
        **arguments,
    )


@DEFERRABLE_QUICKLY
def test_both_ways_end_in_the_same_record(
    world: World, pods: Pods, context: Context, way: dict[str, Any]
) -> None:
    now = context("train")
    carry_out(operator(world, **way), now)
    training = from_json(Training, now["ti"].pushed["return_value"])
    assert training.metrics["r2"] > 0.5
    assert training.mlflow_run_id


def test_a_pod_gets_uris_and_digests_trains_and_is_not_started_twice(
    world: World, pods: Pods, context: Context
) -> None:
    limited = world.edit(
        "model.yaml",
        "  seed: 5\n",
        "  seed: 5\n  resources: {cpu: 500m, memory: 1Gi}\n  timeout: 5m\n"
        "  pod: {termination_grace_period: 10}\n",
    )
    before, now = pods.uids(), context("train")
    operator(limited).execute(now)
    training = from_json(Training, now["ti"].pushed["return_value"])
    assert training.metrics["r2"] > 0.5
    assert training.mlflow_run_id

    (record,) = (record for record in pods.records() if record["uid"] not in before)
    spec = record["manifest"]["spec"]
    (container,) = spec["containers"]
    amounts = {"cpu": "500m", "memory": "1Gi"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert spec["activeDeadlineSeconds"] == 300
    assert container["command"] == ["python", "-m", "ml_lifecycle.training.pod"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert set(values) == {
        *(f"ML_LIFECYCLE_{name}" for name in ("LAKE", "LAKE_OPTIONS", "JOB", "OUTPUT", "ATTEMPT", "FENCE")),
        *("ML_LIFECYCLE_DEADLINE", "ML_LIFECYCLE_GRACE_SECONDS", "PYTHONHASHSEED"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    }
    assert values["OMP_NUM_THREADS"] == "1", "half a core is one thread, whatever the node has"
    assert values["ML_LIFECYCLE_GRACE_SECONDS"] == str(spec["terminationGracePeriodSeconds"]) == "10"
    assert values["ML_LIFECYCLE_LAKE"] == world.lake.url
    (secret,) = [entry for entry in container["env"] if entry["name"] == "ML_LIFECYCLE_LAKE_OPTIONS"]
    assert secret["valueFrom"]["secretKeyRef"] == {"name": "lake-options", "key": "json"}
    assert "value" not in secret
    assert record["manifest"]["metadata"]["name"].startswith("train-delays")

    again = context("train")
    operator(limited).execute(again)
    assert len(pods.uids() - before) == 1
    assert again["ti"].pushed["return_value"] == now["ti"].pushed["return_value"]


@BLOCKING_QUICKLY
def test_an_error_in_training_py_fails_at_once_with_its_traceback(
    world: World, pods: Pods, context: Context, way: dict[str, Any]
) -> None:
    source = world.folder.path / "training.py"
    source.write_text(
        "def train(training_set, labels, parameters, seed):\n    return labels['no_such_day']\n"
    )
    broken = world.edit("training.py", "no_such_day", "no_such_column")
    with pytest.raises(AirflowFailException) as raised:
        carry_out(operator(broken, **way), context("train"))
    message = str(raised.value)
    assert message.startswith("TrainingError")
    assert "training.py" in message
    assert "no_such_column" in message


def test_a_pod_that_dies_without_a_word_is_retried(world: World, pods: Pods, context: Context) -> None:
    (world.folder.path / "training.py").write_text(
        "import os\n\ndef train(training_set, labels, parameters, seed):\n    os._exit(137)\n"
    )
    dying = world.edit("training.py", "137", "9")
    with pytest.raises(PodFailedError, match="exit code 9 and left neither a result nor a failure"):
        operator(dying).execute(context("train"))


def test_a_pod_that_no_node_could_ever_run_is_not_launched(
    world: World, pods: Pods, context: Context
) -> None:
    huge = world.edit("model.yaml", "  seed: 5\n", "  seed: 5\n  resources: {cpu: '1000'}\n")
    before = pods.uids()
    with pytest.raises(AirflowFailException, match=r"it asks for cpu 1000 \(at most "):
        operator(huge).execute(context("train"))
    assert pods.uids() == before


@BLOCKING_QUICKLY
def test_a_pod_for_which_there_is_no_room_in_time_says_what_it_waits_for(
    world: World, pods: Pods, context: Context, way: dict[str, Any]
) -> None:
    cores = os.cpu_count()
    greedy = world.edit(
        "model.yaml",
        "  seed: 5\n",
        f"  seed: 5\n  resources: {{cpu: '{cores}'}}\n  recovery: {{wait_for_room: 2s}}\n"
        "  pools: [{name: first}, {name: second}]\n",
    )
    go = world.root / "go"
    holding, now = operator(waiting_for(go, greedy)), context("train")
    with executing(holding, now, go) as held:
        wait_for(lambda: holding.remote_pod is not None, held)
        with pytest.raises(UnschedulableError) as raised:
            carry_out(operator(greedy, **way), context("train", run_id="another"))
    held.result(0)
    assert raised.value.retryable
    said = str(raised.value)
    assert "no node had room" in said
    assert "Insufficient cpu" in said
    assert said.endswith(f"(it asks for cpu {cores}, memory 2Gi in pool second)")


def end_first_pods(pods: Pods, count: int, how: Callable[[str], None]) -> Callable[[], None]:
    """Ends the first pods that come to run, one after another."""
    before, ended = pods.uids(), set[str]()

    def look() -> None:
        for record in pods.records():
            fresh = record["uid"] not in before | ended
            if fresh and record["started_at"] and not record["finished_at"] and len(ended) < count:
                ended.add(record["uid"])
                how(record["manifest"]["metadata"]["name"])

    return look


@DEFERRABLE_QUICKLY
@pytest.mark.parametrize("how", ["evict", pytest.param("delete", marks=pytest.mark.full)])
def test_a_pod_that_the_infrastructure_ends_is_followed_by_another(
    world: World, pods: Pods, context: Context, how: str, way: dict[str, Any]
) -> None:
    pools = "  pools: [{name: spot, interruptions: 2}, {name: bought}]\n"
    go, spot = world.root / "go", world.edit("model.yaml", "  seed: 5\n", f"  seed: 5\n{pools}")
    task, now, before = operator(waiting_for(go, spot), **way), context("train"), pods.uids()
    look = end_first_pods(pods, 2, lambda name: pods.end(name, how))

    def third_runs() -> bool:
        look()
        return len(pods.uids() - before) == 3

    with executing(task, now, go) as attempt:
        wait_for(third_runs, attempt)
    attempt.result(0)
    rows = attempts_of(world.database, task_job(world, spot))
    assert [row.outcome.kind for row in rows if row.outcome] == ["interrupted", "interrupted", "finished"]
    assert [row.pool for row in rows] == ["spot", "spot", "bought"]
    training = from_json(Training, now["ti"].pushed["return_value"])
    assert training.attempt == 3
    (entry,) = [entry for entry in Ledger(world.database).entries() if entry.kind == TRAINING]
    assert entry.subject == training.digest
    cost = from_json(Cost, entry.payload)
    assert (cost.attempts, cost.interruptions, cost.price) == (3, 2, None)


def task_job(world: World, edited: World) -> str:
    """Digest of the only job in the lake."""
    (digest,) = {path.split("/")[2] for path in edited.lake.list("training/delays")}
    return digest


@BLOCKING_QUICKLY
def test_too_many_interruptions_end_the_task_and_a_retry_goes_on(
    world: World, pods: Pods, context: Context, way: dict[str, Any]
) -> None:
    go = world.root / "go"
    edited = world.edit("model.yaml", "  seed: 5\n", "  seed: 5\n  recovery: {interruptions: 0}\n")
    waiting = waiting_for(go, edited)
    task, now = operator(waiting, **way), context("train")
    look = end_first_pods(pods, 1, lambda name: pods.end(name, "evict"))

    def gives_up() -> bool:
        look()
        return attempt.done()

    with executing(task, now, go) as attempt:
        wait_until(gives_up, "the task gives up", 120)
    with pytest.raises(PodFailedError, match=r"Evicted.*\n.*that was interruption 1: .* allows 0"):
        attempt.result(0)
    again = context("train")
    again["ti"].try_number = 2
    carry_out(operator(waiting, **way), again)
    assert from_json(Training, again["ti"].pushed["return_value"]).attempt == 2


@BLOCKING_QUICKLY
def test_a_pod_that_is_lost_with_its_node_is_given_up_and_publishes_nothing(
    world: World, pods: Pods, context: Context, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    """The pod's keeper is stopped: it is deleted, and never said to have ended, until the node comes back."""
    monkeypatch.setattr("ml_lifecycle_airflow.pod_watch.LOST_AFTER", timedelta(0))
    go = world.root / "go"
    task, now, before = operator(waiting_for(go, world), get_logs=False, **way), context("train"), pods.uids()
    with executing(task, now, go) as attempt:
        wait_for(lambda: len(running(pods, before)) == 1, attempt)
        (lost,) = running(pods, before)
        lock = pods.folder / "state" / "pods" / lost["uid"] / "lock"
        # Its ids: the keeper's and the pod's.
        wait_for(lambda: lock.exists() and len(lock.read_text().split()) == 2, attempt)
        keeper = psutil.Process(int(lock.read_text().split()[0]))
        keeper.suspend()
        try:
            pods.end(lost["manifest"]["metadata"]["name"], "delete at once")
            wait_for(lambda: len(pods.uids() - before) == 2, attempt)
            go.touch()  # both train now, and the lost one writes its result
            wait_until(attempt.done, "the task ends", 120)
        finally:
            keeper.resume()
    attempt.result(0)
    rows = attempts_of(world.database, task_job(world, world))
    assert [row.outcome.kind for row in rows if row.outcome] == ["interrupted", "finished"]
    assert "NodeLost" in str(rows[0].outcome)
    assert from_json(Training, now["ti"].pushed["return_value"]).attempt == 2


def running(pods: Pods, before: set[str]) -> list[dict[str, Any]]:
    fresh = [record for record in pods.records() if record["uid"] not in before]
    return [record for record in fresh if record["started_at"] and not record["finished_at"]]


def test_a_worker_that_died_after_the_pod_s_end_loses_nothing(
    world: World, pods: Pods, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of a pod that ended unseen, and was removed, is taken by the next attempt of the task."""
    task = operator(world)

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    before = pods.uids()
    with monkeypatch.context() as broken:
        broken.setattr("ml_lifecycle.stages.train_attempts.TrainingAttempts.settle", dies)
        with pytest.raises(KeyboardInterrupt):
            task.execute(context("train"))
    again = context("train")
    operator(world).execute(again)
    assert len(pods.uids() - before) == 1
    (row,) = attempts_of(world.database, task_job(world, world))
    assert row.outcome is not None
    assert row.outcome.kind == "finished"
    assert from_json(Training, again["ti"].pushed["return_value"]).attempt == 1


@pytest.mark.parametrize(("state", "ended"), [("failed", True), ("restarting", True), ("running", False)])
def test_only_somebody_who_ends_the_task_ends_its_pod(
    world: World, pods: Pods, context: Context, supervisor: Any, state: str, ended: bool
) -> None:
    go = world.root / "go"
    task, now = operator(waiting_for(go, world)), context("train")
    supervisor.send.return_value = TaskStatesResult(task_states={now["run_id"]: {"train": state}})
    with ThreadPoolExecutor() as thread:
        attempt = thread.submit(task.execute, now)
        wait_for(lambda: task.remote_pod is not None, attempt)
        name = task.pod.metadata.name
        if ended:
            task.on_kill()
        else:
            with pytest.raises(AirflowException, match=f"pod {name} goes on for the next attempt"):
                task.on_kill()
        go.touch()
        raised = attempt.exception(60)
    (record,) = [record for record in pods.records() if record["manifest"]["metadata"]["name"] == name]
    assert (raised is not None) == ended
    assert (record["exit"]["code"] != 0) == ended


def test_an_attempt_that_breaks_leaves_its_pod_to_the_next(
    world: World, pods: Pods, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = world.root / "go"
    waiting = waiting_for(go, world)
    before, breaking = pods.uids(), operator(waiting)
    with monkeypatch.context() as broken:
        broken.setattr(TrainOperator, "await_pod_completion", lambda self, pod: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            breaking.execute(context("train"))
    go.touch()
    again = context("train")
    operator(waiting).execute(again)
    assert from_json(Training, again["ti"].pushed["return_value"]).metrics["r2"] > 0.5
    assert len(pods.uids() - before) == 1


def test_a_timeout_ends_the_pod(world: World, pods: Pods, context: Context) -> None:
    from airflow.sdk.execution_time.timeout import timeout

    task = operator(waiting_for(world.root / "never", world))
    with pytest.raises(AirflowTaskTimeout), timeout(3):
        task.execute(context("train"))
    task.on_kill()  # as Airflow does then
    (record,) = [
        record
        for record in pods.records()
        if record["manifest"]["metadata"]["name"] == task.pod.metadata.name
    ]
    assert record["deleted_at"] is not None


@contextmanager
def executing(task: TrainOperator, context: Any, go: Path) -> Iterator[Future[None]]:
    """The task in a thread, until it has ended; whatever waits for ``go`` goes on at the end of the block."""
    with ThreadPoolExecutor() as thread:
        attempt = thread.submit(carry_out, task, context)
        try:
            yield attempt
        finally:
            go.touch()


def waiting_for(go: Path, world: World) -> World:
    """A training that does not go on before there is such a file."""
    head = "def train(training_set, labels, parameters, seed):\n"
    loop = f"    while not pathlib.Path({str(go)!r}).exists():\n        time.sleep(0.05)\n"
    return world.edit("training.py", head, f"{head}    import pathlib, time\n{loop}")


def wait_for(holds: Callable[[], bool], attempt: Future[None]) -> None:
    def holds_while_it_goes_on() -> bool:
        assert not attempt.done(), attempt.exception()
        return holds()

    wait_until(holds_while_it_goes_on, seconds=300)


def test_pods_behind_a_closed_port_are_said_to_be_away(
    world: World, pods: Pods, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_PODS", connection_json(f"http://127.0.0.1:{port}", "token"))
    with pytest.raises(ServerUnavailableError) as raised:
        operator(world).execute(context("train"))
    assert str(raised.value).startswith(
        f"the Pods API at 127.0.0.1:{port} (connection 'ml_lifecycle_pods') does not answer: "
    )
    assert raised.value.retryable


def test_gpus_and_the_image_are_the_spec_s(world: World) -> None:
    made = world.edit(
        "model.yaml", "  seed: 5\n", "  seed: 5\n  image: registry/training:1\n  resources: {gpu: 2}\n"
    )
    task = operator(made)
    assert task.image == "registry/training:1"
    assert task.container_resources.limits["nvidia.com/gpu"] == "2"
    assert operator(made, image="mine").image == "mine"
    assert task.do_xcom_push is False


def test_a_training_set_that_is_none_fails_at_once(world: World, context: Context) -> None:
    task = TrainOperator(
        task_id="train",
        folder=world.path,
        training_set={"schema": "snapshot/1"},
        training=world.folder.spec.training,
    )
    with pytest.raises(AirflowFailException, match="expected a record of schema 'training_set/1'"):
        task.execute(context("train"))


def test_a_cluster_that_does_not_name_its_nodes_now_is_asked_again_by_a_retry(
    world: World, pods: Pods, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an attempt that was interrupted: it is not taken for that one's end, again and again."""
    from kubernetes.client import ApiException

    go = world.root / "go"
    task, before = operator(waiting_for(go, world)), pods.uids()
    looks, look = itertools.count(), task._fitting_pools

    def away_at_second(training: Any) -> Any:
        if next(looks) == 1:
            raise ApiException(status=500, reason="etcd is away")
        return look(training)

    monkeypatch.setattr(task, "_fitting_pools", away_at_second)
    end = end_first_pods(pods, 1, lambda name: pods.end(name, "evict"))

    def failed() -> bool:
        end()
        return attempt.done()

    with executing(task, context("train"), go) as attempt:
        wait_until(failed, "the task fails", 60)
    with pytest.raises(ApiException, match="etcd is away"):
        attempt.result(0)
    assert next(looks) == 2
    assert len(pods.uids() - before) == 1
