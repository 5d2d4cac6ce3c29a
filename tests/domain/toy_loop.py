"""A training loop small enough to see through, and attempts at it; every step adds what chance says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.training.checkpoint_files import Checkpoint
from ml_lifecycle.training.checkpoints import Checkpoints

FOLDER = "training/toy/checkpoints"
STEPS, EVERY, SEED = 20, 4, 11


@dataclass
class Sum:
    """What the steps came to; each adds from both global generators and from one seeded by the segment."""

    values: list[float] = field(default_factory=list)
    saved: int = 0
    loaded: int = 0

    def save(self, path: Path) -> None:
        self.saved += 1
        path.write_text(json.dumps(self.values))

    def load(self, path: Path) -> None:
        self.loaded += 1
        self.values = json.loads(path.read_text())


class Interrupted(BaseException):
    """Ends a loop as a kill would, for a process that goes on."""


@dataclass
class Attempts:
    """Attempts at one toy job, each numbered above the last.

    :ivar resumed: where the last one began
    """

    lake: Lake
    scratch: Path
    number: int = 0
    resumed: int = 0
    stale: Callable[[], bool] = lambda: False
    checkpoints: Checkpoints = field(init=False)

    def next(self) -> Checkpoints:
        self.number += 1
        self.checkpoints = Checkpoints(
            self.lake, FOLDER, self.number, SEED, scratch=self.scratch, stale=lambda: self.stale()
        )
        return self.checkpoints

    def train(self, *, stop_before: int = STEPS + 1, steps: int = STEPS, every: int | None = EVERY) -> Sum:
        """One attempt; :class:`Interrupted` before step ``stop_before``."""
        return run_loop(self.next(), self, stop_before, steps, every)

    @property
    def files(self) -> list[Checkpoint]:
        """The checkpoints that are there, by loop and step."""
        names = (path.rpartition("/")[2] for path in self.lake.list(FOLDER))
        found = [one for name in names if (one := Checkpoint.of(name)) is not None]
        return sorted(found, key=lambda one: (one.plan.loop, one.step, one.attempt))

    @property
    def steps(self) -> list[int]:
        return [one.step for one in self.files]

    def path(self, checkpoint: Checkpoint) -> str:
        return f"{FOLDER}/{checkpoint.name}"


def run_loop(
    checkpoints: Checkpoints, attempts: Attempts, stop_before: int, steps: int, every: int | None
) -> Sum:
    state = Sum()
    for step, own in numbered(checkpoints, state, steps, every):
        attempts.resumed = checkpoints.costs.resumed_steps
        if step == stop_before:
            raise Interrupted
        state.values.append(step + random.random() + np.random.random() + own.random())
    attempts.resumed = checkpoints.costs.resumed_steps
    return state


def numbered(
    checkpoints: Checkpoints, state: Sum, steps: int, every: int | None
) -> Iterator[tuple[int, random.Random]]:
    for segment in checkpoints.segments(state, steps=steps, every=every):
        own = random.Random(segment.seed)
        for step in segment:
            yield step, own


def interrupt(attempts: Attempts, before: int) -> None:
    """An attempt that ends before the given step."""
    with pytest.raises(Interrupted):
        attempts.train(stop_before=before)
