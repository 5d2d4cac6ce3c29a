"""A job's checkpoints in the lake: their names, which one counts, and what an attempt may write and remove.

One file a checkpoint. Its name holds everything needed to choose it and to find out that it is torn::

    loop=0_step=000000000200_of=4000_every=200_attempt=3_sha256=9f86d0…

An attempt's number rises with every pod of the job and is the fencing token: checkpoints of a higher attempt
come before those of a lower one, whatever their steps, so what a pod that should be gone still writes is not
gone on with. Two runs may work on the same job at a time, each in attempts of its own; they compute the same,
so one may go on from what the other wrote.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError, file_sha256
from ml_lifecycle.errors import IntegrityError, StaleAttemptError

log = logging.getLogger("ml_lifecycle.training")

_KEPT = 2
_REASONS = "not_reproducible.json"
_NAME = re.compile(
    r"loop=(?P<loop>\d+)_step=(?P<step>\d+)_of=(?P<steps>\d+)_every=(?P<every>\d+)"
    r"_attempt=(?P<attempt>\d+)_sha256=(?P<digest>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Plan:
    """One loop of a training, cut into segments.

    :param loop: which of the training's loops, from 0
    :param steps: how many steps it has
    :param every: how many steps a segment has; the last one may have fewer
    """

    loop: int
    steps: int
    every: int


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's name says.

    :param step: steps done when it was made
    :param attempt: the attempt that made it
    :param digest: SHA-256 of the content
    """

    plan: Plan
    step: int
    attempt: int
    digest: str

    @property
    def name(self) -> str:
        """The file's name, without a folder."""
        return (
            f"loop={self.plan.loop}_step={self.step:012}_of={self.plan.steps}_every={self.plan.every}"
            f"_attempt={self.attempt}_sha256={self.digest}"
        )

    @classmethod
    def of(cls, name: str) -> Checkpoint | None:
        """Read :attr:`name` back; None if it is no checkpoint's."""
        if (found := _NAME.fullmatch(name)) is None:
            return None
        number = {key: int(text) for key, text in found.groupdict().items() if key != "digest"}
        plan = Plan(number["loop"], number["steps"], number["every"])
        return cls(plan, number["step"], number["attempt"], found["digest"])


class CheckpointFiles:
    """The checkpoints of one job, as one attempt at it sees them.

    :param folder: the folder in the lake that they lie in
    :param attempt: this attempt's number
    :param stale: whether a newer attempt has begun
    """

    def __init__(self, lake: Lake, folder: str, attempt: int, stale: Callable[[], bool]) -> None:
        self._lake = lake
        self._folder = folder
        self._attempt = attempt
        self._stale = stale
        self._known: dict[int, list[Checkpoint]] = {}

    def check_not_stale(self) -> None:
        """:raises StaleAttemptError: a newer attempt has begun. Retry: no."""
        if self._stale():
            raise StaleAttemptError(
                f"attempt {self._attempt} at {self._folder} is not the newest any more: it stops"
            )

    def fetch_newest(self, plan: Plan, local: Path) -> Checkpoint | None:
        """Copy the newest whole checkpoint of ``plan`` to a local file; None if there is none.

        One that is torn is passed over, and the one before it taken.

        :raises StaleAttemptError: a newer attempt has begun. Retry: no.
        """
        self.check_not_stale()
        self._lake.sweep(self._folder)  # should another run be writing just now, its next one will do
        self._known[plan.loop] = [one for one in self._found() if one.plan.loop == plan.loop]
        others = {one.plan for one in self._known[plan.loop]} - {plan}
        for other in sorted(others, key=str):
            log.warning(
                "checkpoints made with steps=%d, every=%d are no use to steps=%d, every=%d",
                *(other.steps, other.every, plan.steps, plan.every),
            )
        wanted = [one for one in self._known[plan.loop] if one.plan == plan]
        for one in sorted(wanted, key=lambda one: (one.attempt, one.step), reverse=True):
            try:
                self._lake.get_file(self._path(one), local, one.digest)
            except (LakeFileMissingError, IntegrityError) as error:
                log.warning("the checkpoint at step %d is not whole, going back: %s", one.step, error)
            else:
                # What it was chosen over is of no more use, and goes before it.
                self._known[plan.loop].remove(one)
                self._known[plan.loop].append(one)
                return one
        return None

    def publish(self, local: Path, plan: Plan, step: int) -> Checkpoint:
        """Put a local file into the lake as the newest checkpoint, and remove all but the newest two.

        :raises StaleAttemptError: a newer attempt has begun; nothing was written. Retry: no.
        """
        self.check_not_stale()
        made = Checkpoint(plan, step, self._attempt, file_sha256(local))
        self._lake.put_file(self._path(made), local)
        known = self._known.setdefault(plan.loop, [])
        if made in known:  # this attempt was here before, and what it left was torn
            known.remove(made)
        known.append(made)
        while len(known) > _KEPT:
            self._remove(self._path(known[0]))
            known.pop(0)
        return made

    def read_reasons(self) -> tuple[str, ...]:
        """Why the training is not reproducible, as earlier attempts found."""
        try:
            return tuple(self._lake.read_json(f"{self._folder}/{_REASONS}"))
        except LakeFileMissingError:
            return ()

    def write_reasons(self, reasons: tuple[str, ...]) -> None:
        """:raises StaleAttemptError: a newer attempt has begun; nothing was written. Retry: no."""
        self.check_not_stale()
        self._lake.write_json(f"{self._folder}/{_REASONS}", list(reasons))

    def discard(self) -> None:
        """Remove them all: the result is there, and nobody will resume."""
        self.check_not_stale()
        for path in self._lake.list(self._folder):
            self._remove(path)
        self._lake.sweep(self._folder)

    def _found(self) -> list[Checkpoint]:
        """Those there are, oldest first. One of a higher attempt may be another run's at the same job."""
        names = (os.path.basename(path) for path in self._lake.list(self._folder))
        found = [one for name in names if (one := Checkpoint.of(name)) is not None]
        return sorted(found, key=lambda one: (one.attempt, one.step))

    def _path(self, checkpoint: Checkpoint) -> str:
        return f"{self._folder}/{checkpoint.name}"

    def _remove(self, path: str) -> None:
        try:
            self._lake.delete(path)
        except Exception as error:  # noqa: BLE001 - each filesystem has its own errors; it only takes room
            log.warning("%s could not be removed: %s", path, error)
