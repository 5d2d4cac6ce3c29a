"""Trainings killed at random, by SIGKILL and SIGTERM, at any moment, end in the same weights, bit for bit.

Three ways to die: at the n-th effect, a step or a change of the file system (:mod:`faults`); by a signal at a
moment of the loop; and by a signal at a random time, measured against the training's own length.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Death, FaultKit
from interrupted import EVERY, FOLDER, STEPS, TRAININGS, Progress, attempt, attempt_as_a_pod

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.training.checkpoint_files import Checkpoint

KILLS_EACH, QUICK_KILLS_EACH = 34, 2  # of six trainings
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLED = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
MOMENTS = STEPS + 3 * -(-STEPS // EVERY)


@dataclass
class Undisturbed:
    """What a training comes to when nothing happens.

    :param effects: how many it has
    :param seconds: its wall time, its process's start included
    """

    digest: str
    effects: int
    seconds: float


@dataclass
class Life:
    """A training that is interrupted a few times, and then not any more."""

    root: Path
    training: str
    faults: FaultKit
    undisturbed: Undisturbed
    number: int = 0
    reached: int = 0

    def die(self, chance: random.Random) -> bool:
        """One attempt, interrupted; whether it was before it came to its end."""
        self.number += 1
        kind = chance.choice(("effect", "moment", "time"))
        if kind == "effect":
            gap = chance.randint(0, self.undisturbed.effects)
            outcome = self.faults.run(
                self.root, attempt, self.root, self.training, self.number, death=Death(gap)
            )
            killed = outcome.stopped_at is not None
        else:
            sends = (chance.randrange(MOMENTS), chance.choice(SIGNALS)) if kind == "moment" else None
            killed = self._run_until_signalled(chance, sends)
        self.check()
        return killed

    def _run_until_signalled(self, chance: random.Random, sends: tuple[int, int] | None) -> bool:
        process = multiprocessing.get_context("forkserver").Process(
            target=attempt_as_a_pod, args=(self.root, self.training, self.number, sends)
        )
        process.start()
        try:
            if sends is None:
                process.join(chance.uniform(0, self.undisturbed.seconds))
                process.kill() if chance.random() < 0.5 else process.terminate()
            process.join(60)
        finally:
            process.kill()
        assert process.exitcode in {0, *KILLED}
        return process.exitcode != 0

    def check(self) -> None:
        """All checkpoints to be seen are whole, and no more than one interval was lost at any time."""
        for path in self.lake.list(FOLDER):
            named = Checkpoint.of(path.rpartition("/")[2])
            assert named is not None
            assert sha256(self.lake.read_bytes(path)) == named.digest
        progress = Progress(self.root.with_name("progress"))
        if progress.resumed >= 0:
            assert self.reached - progress.resumed <= EVERY
        self.reached = max(self.reached, progress.reached)
        progress.put(0, -1)

    @property
    def lake(self) -> Lake:
        return Lake(str(self.root / "lake"))

    @property
    def has_checkpoint(self) -> bool:
        return any(True for _ in self.lake.list(FOLDER))

    def finish(self) -> None:
        outcome = self.faults.run(self.root, attempt, self.root, self.training, self.number + 1)
        assert outcome.error is None, outcome.error
        assert outcome.value == self.undisturbed.digest
        self.check()


def lives(folder: Path, training: str, faults: FaultKit) -> Iterator[Life]:
    """Fresh ones, without end."""
    root = folder / "root"

    def anew() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        root.mkdir(parents=True)
        return root

    outcome = faults.run(anew(), attempt, root, training, 1)
    assert outcome.error is None, outcome.error
    began = time.monotonic()
    process = multiprocessing.get_context("forkserver").Process(
        target=attempt_as_a_pod, args=(anew(), training, 1, None)
    )
    process.start()
    process.join(60)
    seconds = time.monotonic() - began
    assert (folder / "digest").read_text() == outcome.value, "the same in another process"
    undisturbed = Undisturbed(outcome.value, len(outcome.effects), seconds)
    while True:
        yield Life(anew(), training, faults, undisturbed)


def interrupt(folder: Path, training: str, faults: FaultKit, kills: int) -> int:
    """Kill so many attempts, a few a life; returns how many of them after a first checkpoint."""
    chance = random.Random(training)
    killed = with_checkpoint = 0
    for life in lives(folder, training, faults):
        for _ in range(chance.randint(1, 4)):
            if life.die(chance):
                killed += 1
                with_checkpoint += life.has_checkpoint
        life.finish()
        if killed >= kills:
            return with_checkpoint
    raise AssertionError("there is no end of lives")


# One that is fitted in segments, and one that steps; the full test kills all six, and far more often.
@pytest.mark.parametrize("training", ["xgboost", "torch"])
def test_killed_a_few_times_it_ends_in_the_same_weights(
    tmp_path: Path, faults: FaultKit, training: str
) -> None:
    interrupt(tmp_path / training, training, faults, QUICK_KILLS_EACH)


@pytest.mark.full
@pytest.mark.parametrize("training", TRAININGS)
def test_killed_many_times_it_ends_in_the_same_weights(
    tmp_path: Path, faults: FaultKit, training: str
) -> None:
    assert interrupt(tmp_path / training, training, faults, KILLS_EACH) >= KILLS_EACH / 2
