"""Exactly once a cause, whatever process dies in between; and people who think it over hold nothing.

The stack's processes are killed with SIGKILL, and supervisord starts them again. What must hold then: one
retraining a window, one promotion a candidate, one release an approval, a ledger that verifies, a champion
that answers throughout, and no run that hangs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pending_kit import Candidates, write_asking_dag
from scheduling_kit import (
    AIRFLOW,
    DEFERRED,
    FIRST_END,
    HELD,
    MONITOR,
    PATIENCE,
    PROMOTE,
    TRAIN,
    Operator,
    World,
    answering,
    kill,
    kill_with_tasks,
    supervisorctl,
)
from small_model import land, write_model
from stack_kit import approve, log_in, running_stack, wait_for_request
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.airflow import DONE
from ml_lifecycle.governor import retraining_run_id
from ml_lifecycle.ledger.ledger import DECISION, Ledger
from ml_lifecycle.ledger.requests import open_requests
from ml_lifecycle_airflow.stack import supervise

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack whose model is live; its monitor asks for a retraining of every window."""
    root = tmp_path_factory.mktemp("scheduling")
    dags, hold = root / "dags", root / "hold"
    alert = {"metric": "volume", "below": 1e9, "action": "retrain"}
    folder = write_model(
        dags,
        monitoring={"window": "1d", "alerts": [alert]},
        training={"recovery": {"interruptions": 0}},  # each try of the task is one pod
    )
    code = folder / "training.py"
    training = code.read_text().replace("def train(", "def fit(")
    code.write_text(HELD.format(hold=str(hold), training=training))
    (dags / "deferred.py").write_text(DEFERRED.format(folder=str(folder)))
    write_asking_dag(dags)
    with running_stack(root / "stack", dags) as stack:
        land(Lake(str(stack.lake)), days=40)
        admin = Operator(stack.airflow_url, "admin", stack.password("admin"))
        admin.wait_for_dags({TRAIN, PROMOTE, MONITOR, "deferred", "asks"}, PATIENCE)
        admin.trigger(TRAIN, "first", {"as_of": FIRST_END.isoformat()})
        admin.wait(TRAIN, "first", print, timeout=PATIENCE)
        alice = log_in(stack, "alice")
        approve(stack, alice, PROMOTE, "candidate__v1")
        yield World(stack, admin, alice, hold, Candidates(stack, folder, root / "copies"))


def retrain(world: World, windows: int, again: int) -> str:
    """Monitor windows, one of them again and again, and kill what runs it; returns the newest version.

    Asserts what must hold for any number of causes at once.
    """
    admin, stack = world.admin, world.stack
    before, promoted = set(admin.runs(TRAIN)), set(admin.runs(PROMOTE))
    causes = [world.next_window() for _ in range(windows)]
    name = f"{causes[0].start:%m%d}"
    for number, window in enumerate(causes):
        world.monitor(window, f"{name}-{number}")
    for number in range(again):
        world.monitor(causes[0], f"{name}-again-{number}")
    expected = {retraining_run_id("small", window) for window in causes}

    with answering(stack):
        first = retraining_run_id("small", causes[0])
        wait_until(
            lambda: admin.is_in(MONITOR, f"{name}-0", "monitor", "running", "success"),
            "it monitors",
            PATIENCE,
        )
        kill(stack, "dag-processor", "triggerer", "api-server")
        wait_until(
            lambda: admin.is_in(TRAIN, first, "wait_for_data", "running", "success"),
            "one cause was heard",
            PATIENCE,
        )
        kill(stack, "scheduler")
        wait_until(lambda: admin.is_in(TRAIN, first, "train", "running", "success"), "it trains", PATIENCE)
        kill(stack, "api-server")
        wait_until(lambda: admin.has_ended(MONITOR), "every window is looked at", PATIENCE)
        wait_until(lambda: admin.has_ended(TRAIN), "every cause is trained for", PATIENCE)

    assert set(admin.runs(TRAIN)) - before == expected
    assert {admin.runs(TRAIN)[run] for run in expected} == {"success"}
    monitored = {run: state for run, state in admin.runs(MONITOR).items() if run.startswith(f"{name}-")}
    assert list(monitored.values()) == ["success"] * (windows + again)
    versions = sorted(int(world.version_of(run)) for run in expected)
    assert len(set(versions)) == windows
    wait_until(
        lambda: set(admin.runs(PROMOTE)) - promoted == {f"candidate__v{version}" for version in versions},
        "each candidate asks",
        PATIENCE,
    )
    return str(versions[-1])


def test_a_cause_is_one_retraining_and_one_release_whatever_dies(world: World) -> None:
    newest = retrain(world, windows=2, again=1)
    released = world.released()
    with answering(world.stack):
        approve(world.stack, world.alice, PROMOTE, f"candidate__v{newest}")
    assert world.released() == [(newest, "confirmed"), *released]
    world.check()


def test_ten_causes_at_once(world: World) -> None:
    before = set(world.admin.runs(PROMOTE))
    newest = retrain(world, windows=10, again=9)
    promotions = set(world.admin.runs(PROMOTE)) - before
    promotion = f"candidate__v{newest}"
    wait_for_request(world.stack, world.admin, PROMOTE, promotion)
    # Ten candidates at once: all are gathered, staged and asked about anew, and only the newest may go on.
    for run_id in promotions:
        world.admin.clear(PROMOTE, run_id, "evidence")
    others = promotions - {promotion}
    wait_until(lambda: world.admin.has_ended(PROMOTE, *others), "the others end", PATIENCE)
    wait_for_request(world.stack, world.admin, PROMOTE, promotion)
    world.alice.answer(PROMOTE, promotion, "approve", "Approve", "by a test")
    assert world.ended(PROMOTE, promotion) == "success"
    states = world.admin.runs(PROMOTE)
    assert {states[run_id] for run_id in others} == {"failed"}
    assert [version for version, _ in world.released()].count(newest) == 1
    world.check()


def test_a_promotion_goes_on_whatever_dies(world: World) -> None:
    run_id, released = world.candidate("whatever-dies"), world.released()
    with answering(world.stack):
        kill(world.stack, *AIRFLOW)
        supervise.wait_healthy(world.stack, print, PATIENCE)
        assert world.admin.is_in(PROMOTE, run_id, "approve", "awaiting_input")
        world.alice.answer(PROMOTE, run_id, "approve", "Approve", "by a test")
        wait_until(
            lambda: world.admin.is_in(PROMOTE, run_id, "deploy_production", "running", "success"),
            "it deploys",
            PATIENCE,
        )
        kill_with_tasks(world.stack, "scheduler")
        assert world.ended(PROMOTE, run_id) == "success"
    assert world.released() == [(run_id.removeprefix("candidate__v"), "confirmed"), *released]
    world.check()


def test_a_failed_promotion_is_resumed_by_clearing_it(world: World) -> None:
    run_id, released = world.candidate("server-down"), world.released()
    supervisorctl(world.stack, "stop", "server-production")
    world.alice.answer(PROMOTE, run_id, "approve", "Approve", "by a test")
    assert world.ended(PROMOTE, run_id) == "failed"
    assert world.released() == released
    supervisorctl(world.stack, "start", "server-production")
    supervise.wait_healthy(world.stack, print, PATIENCE)
    world.admin.clear(PROMOTE, run_id, "deploy_production")
    assert world.ended(PROMOTE, run_id) == "success"
    assert world.released() == [(run_id.removeprefix("candidate__v"), "confirmed"), *released]
    world.check()


def test_a_failed_training_is_resumed_by_clearing_it(world: World) -> None:
    with world.training(TRAIN, "evicted") as started:
        for _ in range(2):
            world.evict()
            wait_until(started.exists, "the next attempt's pod is at work", PATIENCE)
            started.unlink()
        world.evict()
        assert world.ended(TRAIN, "evicted") == "failed"
    promoted = set(world.admin.runs(PROMOTE))
    world.admin.clear(TRAIN, "evicted", "train")
    assert world.ended(TRAIN, "evicted") == "success"
    promotion = f"candidate__v{world.version_of('evicted')}"
    wait_until(
        lambda: set(world.admin.runs(PROMOTE)) - promoted == {promotion}, "its candidate asks", PATIENCE
    )
    released = world.released()
    approve(world.stack, world.alice, PROMOTE, promotion)
    assert world.released() == [(promotion.removeprefix("candidate__v"), "confirmed"), *released]
    world.check()


@pytest.mark.parametrize(("dag_id", "program"), [(TRAIN, "scheduler"), ("deferred", "triggerer")])
def test_a_pod_outlives_the_worker_and_ends_with_its_task(world: World, dag_id: str, program: str) -> None:
    with world.training(dag_id, "outlives"):
        pods = world.running_pods()
        supervisorctl(world.stack, "restart", program)
        kill(world.stack, program)
        supervise.wait_healthy(world.stack, print, PATIENCE)
        assert world.running_pods() == pods
    assert world.ended(dag_id, "outlives") == "success"
    assert world.running_pods() == set()

    with world.training(dag_id, "ended") as started:
        pods = world.running_pods()
        world.admin.clear(dag_id, "ended", "train")
        wait_until(started.exists, "a pod of the next attempt is at work", PATIENCE)
        wait_until(lambda: len(world.running_pods()) == 1, "the first pod has ended", PATIENCE)
        assert world.running_pods() != pods
        world.admin.mark_failed(dag_id, "ended", "train")
        wait_until(lambda: not world.running_pods(), "no pod is at work", PATIENCE)
    assert world.ended(dag_id, "ended") == "failed"


def test_an_answer_that_comes_too_soon_is_asked_for_again_and_counts_once(world: World) -> None:
    confs = {f"soon-{number}": world.candidates.make(f"soon_{number}") for number in range(6)}
    for run_id, conf in confs.items():
        world.admin.trigger("asks", run_id, conf)
        answered: set[int] = set()

        def answer_or_end(run_id: str = run_id, answered: set[int] = answered) -> bool:
            task = world.admin.task("asks", run_id, "approve")
            if task["state"] == "awaiting_input" and task["try_number"] not in answered:
                if task["try_number"] > 1:
                    wait_for_request(world.stack, world.admin, "asks", run_id)
                answered.add(task["try_number"])
                world.alice.answer("asks", run_id, "approve", "Approve", "at once")
            return world.admin.runs("asks")[run_id] in DONE

        wait_until(answer_or_end, "an answer counts", PATIENCE)
        assert world.admin.runs("asks")[run_id] == "success"
    decisions = [one.subject for one in Ledger(world.database).entries() if one.kind == DECISION]
    for conf in confs.values():
        assert decisions.count(conf["evidence"]["digest"]) == 1


def test_pending_approvals_hold_no_slot(world: World) -> None:
    asked = 60  # fifteen times what runs at once
    for number in range(asked):
        world.admin.trigger("asks", f"pending-{number:03d}", world.candidates.make(f"pending_{number:03d}"))
    wait_until(lambda: world.admin.waiting("asks") == asked, "all are asked", PATIENCE)
    slots = world.admin.pool("default_pool")
    assert slots == dict.fromkeys(slots, 0)
    world.monitor(world.next_window(), "meanwhile")
    world.admin.wait(MONITOR, "meanwhile", print, timeout=PATIENCE)
    assert world.admin.waiting("asks") == asked
    assert sum(one.model.startswith("pending_") for one in open_requests(world.database)) == asked
    for number in range(3):
        world.alice.answer("asks", f"pending-{number:03d}", "approve", "Approve", "by a test")
    wait_until(lambda: world.admin.waiting("asks") == asked - 3, "the others go on waiting", PATIENCE)
