"""The attempts at one training: numbers, budgets and what is published, whoever dies in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.domain.training_world import make_folder, make_training_set

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import PodFailedError, TrainingError
from ml_lifecycle.ledger.attempts import attempts_of, open_attempt
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Training, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.stages.train_attempts import TrainingAttempts
from ml_lifecycle.training.job import Attempt, Failure, TrainingJob
from ml_lifecycle.training.outcomes import Launch, Outcome, PodFacts
from ml_lifecycle.training.pod import run_attempt

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVICTED = PodFacts("train", "Failed", reason="Evicted", started=True)


@dataclass(frozen=True)
class World:
    database: Database
    lake: Lake
    folder: ModelFolder
    job: TrainingJob
    scratch: Path

    def attempts(self, owner: str = "one", try_number: int = 1) -> TrainingAttempts:
        """As a worker makes them that knows nothing of the ones before it."""
        spec = self.folder.spec.training
        return TrainingAttempts(
            self.database,
            self.lake,
            self.job,
            spec,
            owner=owner,
            try_number=try_number,
            now=lambda: NOW,
        )

    def run(self, attempt: Attempt) -> None:
        """What the attempt's pod does."""
        run_attempt(self.lake, attempt, self.scratch / str(attempt.number))


@pytest.fixture
def world(tmp_path: Path) -> World:
    database = Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    database.migrate()
    lake, folder = Lake(str(tmp_path / "lake")), make_folder(tmp_path / "models", parameters="{max_iter: 2}")
    job = plan_training(folder, lake, make_training_set(lake, folder))
    return World(database, lake, folder, job, tmp_path / "scratch")


def test_numbers_rise_and_each_raises_the_fence(world: World) -> None:
    first, launch = world.attempts().begin([])
    assert (first.number, launch) == (1, Launch(None))
    assert first.deadline == NOW + world.folder.spec.training.timeout
    assert world.attempts().open_attempt() == first, "the next worker knows it"
    assert isinstance(world.attempts().settle(first, EVICTED, ""), Outcome)
    assert world.attempts().open_attempt() is None

    second, _ = world.attempts().begin([])
    assert second.number == 2
    assert first.is_superseded(world.lake)
    assert not second.is_superseded(world.lake)


def test_what_is_settled_stays_settled(world: World) -> None:
    attempt, _ = world.attempts().begin([])
    world.attempts().settle(attempt, EVICTED, "")
    world.attempts().settle(attempt, None, "a worker that comes late")
    (row,) = attempts_of(world.database, world.job.digest)
    assert row.outcome == Outcome("interrupted", "pod train was ended by the infrastructure: Evicted")
    assert row.closed_at == NOW


def test_a_result_is_published_with_its_usage(world: World) -> None:
    attempt, _ = world.attempts().begin([])
    world.run(attempt)
    image = "registry/training@sha256:0f"
    training = world.attempts().settle(attempt, PodFacts("train", gone=True, image=image), "")
    assert isinstance(training, Training)
    assert (training.attempt, training.image) == (1, image)
    (row,) = world.attempts().rows()
    assert row.outcome == Outcome("finished")
    assert row.usage == training.resources
    assert row.usage["wall_seconds"] > 0


def test_runs_of_two_tasks_at_one_training_do_not_disturb_each_other(world: World) -> None:
    mine, _ = world.attempts("one").begin([])
    theirs, _ = world.attempts("two").begin([])
    assert (mine.number, theirs.number) == (1, 2)
    world.run(mine)
    world.run(theirs)
    published = world.attempts("two").settle(theirs, None, "")
    assert world.attempts("one").settle(mine, None, "") == published, "what is published stays"
    assert isinstance(published, Training)
    assert published.attempt == 2
    assert [row.number for row in world.attempts("one").rows()] == [1]


def test_a_stale_attempt_s_result_is_not_published(world: World) -> None:
    stale, _ = world.attempts().begin([])
    world.run(stale)  # on a node that was thought to be lost
    open_attempt(world.database, world.job.digest, "toy_binary", "one", 1, Launch(None), NOW)
    Attempt(world.job, 2, "one").raise_fence(world.lake)
    outcome = world.attempts().settle(stale, None, "")
    assert isinstance(outcome, Outcome)
    assert not world.lake.exists(world.job.manifest_path)


def test_a_failure_of_the_code_ends_it_at_once(world: World) -> None:
    attempt, _ = world.attempts().begin([])
    world.lake.write_json(attempt.failure_path, to_json(Failure("user_error", "train() raised")))
    world.attempts().settle(attempt, PodFacts("train", "Failed", started=True, exit_code=1), "")
    with pytest.raises(TrainingError, match=r"train\(\) raised"):
        world.attempts().begin([])


def test_a_cleared_task_has_budgets_anew(world: World) -> None:
    allowed = world.folder.spec.training.recovery.interruptions
    for _ in range(allowed + 1):
        attempt, _ = world.attempts().begin([])
        world.attempts().settle(attempt, EVICTED, "")
    with pytest.raises(PodFailedError, match=f"interruption {allowed + 1}"):
        world.attempts().begin([])
    cleared, _ = world.attempts(try_number=2).begin([])
    assert cleared.number == allowed + 2


def test_fifty_at_once_have_fifty_numbers(world: World) -> None:
    def take(owner: int) -> int:
        attempt, _ = world.attempts(f"task{owner}").begin([])
        return attempt.number

    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(take, range(50)))
    assert sorted(numbers) == list(range(1, 51))
