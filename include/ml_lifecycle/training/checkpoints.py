"""Checkpoints: what ``train()`` is given so that an interrupted training ends in the same model.

A training that uses them always runs in segments. Between two, the state is saved, dropped and loaded again
and every source of chance is seeded anew, also when nothing interrupts it: an interrupted training and an
uninterrupted one are the same computation.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.local_files import no_room_said
from ml_lifecycle.errors import LifecycleError, NoSpaceError, ServerUnavailableError, StaleAttemptError
from ml_lifecycle.training.chance import seed_chance, seed_of
from ml_lifecycle.training.checkpoint_files import CheckpointFiles, Plan
from ml_lifecycle.training.pace import Pace

log = logging.getLogger("ml_lifecycle.training")

_SEGMENTS = 20


class State(Protocol):
    """What a loop changes, as one object that fits into one file."""

    def save(self, path: Path) -> None:
        """Write all of it to a local file."""

    def load(self, path: Path) -> None:
        """Take all of it from such a file; nothing of what was there before may count any more."""


@dataclass(frozen=True)
class Segment:
    """The steps from ``start`` to before ``stop``, between two checkpoints; iterate over it, once.

    :param index: its number in the loop, from 0
    :param seed: for libraries that take a seed, or a ``random_state``: below 2**31, the same at every attempt
    """

    index: int
    start: int
    stop: int
    seed: int
    _stepped: Callable[[], None] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        for step in range(self.start, self.stop):
            yield step
            self._stepped()


@dataclass
class Costs:
    """What the checkpoints of one attempt came to.

    :param resumed_steps: steps that were not done again, over all loops
    :param failed: how many could not be written
    :param seconds: spent saving and loading them
    :param cpu_seconds: of those, what was computed; the rest was waited for
    """

    written: int = 0
    failed: int = 0
    resumed_steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """For the pod's usage; nothing if there were none."""
        if not (self.written or self.failed or self.resumed_steps):
            return {}
        return {
            "checkpoints_written": float(self.written),
            "checkpoints_failed": float(self.failed),
            "checkpoint_seconds": round(self.seconds, 3),
            "resumed_steps": float(self.resumed_steps),
        }


class Gauge(Protocol):
    """Measures an estimator that is not finished yet."""

    def measure(self, step: int, estimator: Any) -> None:
        """Errors as in :meth:`Checkpoints.measure`."""


class Checkpoints:
    """The checkpoints of one job, for one attempt at it; ``train()`` uses :meth:`segments`.

    :ivar gauge: given to a trial of a search, which :meth:`measure` measures by; None otherwise

    :param folder: the folder in the lake that they lie in
    :param attempt: this attempt's number, higher than that of every attempt before it
    :param seed: the job's
    :param scratch: a local folder with room for one checkpoint
    :param stale: whether a newer attempt has begun; asked before each one is written
    """

    def __init__(
        self,
        lake: Lake,
        folder: str,
        attempt: int,
        seed: int,
        *,
        scratch: Path,
        stale: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pace = Pace()
        self.costs = Costs()
        self.when_saved: Callable[[], None] = lambda: None
        self.gauge: Gauge | None = None
        self._files = CheckpointFiles(lake, folder, attempt, stale)
        self._seed = seed
        self._scratch = scratch
        self._local = scratch / "state"
        self._loops = 0
        self._steps_before = 0  # of the loops before this one
        self._step = 0  # that the running segment ends with, all loops counted
        self._reasons: tuple[str, ...] | None = None
        self._unwritten_reasons = False
        self._ended_by: LifecycleError | None = None

    def segments(self, state: State, *, steps: int, every: int | None = None) -> Iterator[Segment]:
        """The loop over ``steps``, a segment at a time; begins after the newest whole checkpoint::

            for segment in checkpoints.segments(state, steps=200, every=20):
                for step in segment:
                    ...

        Between two segments the state is saved, dropped and loaded again, and ``random``, numpy and PyTorch
        are seeded from the job's seed and the segment's index. Whatever else the body leaves behind, other
        than in ``state``, an interrupted training does not have: an iterator over batches, say, must begin
        with its segment. So must a generator of your own: seed it with ``segment.seed``.

        A training may have several such loops, one after the other.

        :param every: steps a segment; a twentieth of ``steps``, rounded up, if not given. Larger ones cost
            less and lose more when the pod is interrupted
        :raises ValueError: ``steps`` or ``every`` is less than 1. Retry: no.
        :raises TypeError: one is no whole number, or ``state`` lacks ``save`` or ``load``. Retry: no.
        :raises StaleAttemptError: a newer attempt has begun. Retry: no.
        :raises ServerUnavailableError: the lake does not answer when a loop begins. Retry: yes.
        """
        steps = operator.index(steps)
        every = -(-steps // _SEGMENTS) if every is None else operator.index(every)
        if steps < 1 or every < 1:
            raise ValueError(f"steps={steps}, every={every}: both must be at least 1")
        if missing := [name for name in ("save", "load") if not callable(getattr(state, name, None))]:
            raise TypeError(
                f"{type(state).__name__} has no {' and no '.join(missing)}(path): a state needs both"
            )
        plan = Plan(self._loops, steps, every)
        before = self._steps_before
        self._loops += 1
        self._steps_before += steps
        return self._run(state, plan, before)

    def measure(self, estimator: Any) -> None:
        """In a trial of a search, measure the estimator as it is, and end a trial that is worse than others.

        Call it last in a segment, with an estimator that answers rows as ``train()`` was given them: what
        they went through is part of it, as in a pipeline. In any other training this does nothing, see
        :attr:`measures`. Whatever is measured, the model stays the same.

        :raises TrialPrunedError: the trial is given up. Retry: no.
        :raises TrainingError: the estimator does not answer such rows. Retry: no.
        """
        if self.gauge is None:
            return
        try:
            self.gauge.measure(self._step, estimator)
        except LifecycleError as error:
            self._ended_by = error
            raise

    @property
    def measures(self) -> bool:
        """Whether :meth:`measure` does anything, where making the estimator takes time."""
        return self.gauge is not None

    def not_reproducible(self, reason: str) -> None:
        """Say that the same job may end in another model, and why; it stands on the training's record."""
        if reason not in self.reasons:
            log.warning("not reproducible: %s", reason)
            self._reasons = (*self.reasons, reason)
            self._unwritten_reasons = True

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the training is not reproducible, as this attempt and those before it found; empty if it is.

        :raises ServerUnavailableError: the lake does not answer. Retry: yes.
        """
        if self._reasons is None:
            with self._remembered():
                self._reasons = self._files.read_reasons()
        return self._reasons

    def raise_if_ended(self) -> None:
        """Raise again what ended :meth:`segments`: the code around the loop may have caught it.

        :raises StaleAttemptError: a newer attempt has begun. Retry: no.
        :raises ServerUnavailableError: the lake did not answer. Retry: yes.
        :raises NoSpaceError: there was no room to resume. Retry: yes.
        """
        if self._ended_by is not None:
            raise self._ended_by

    def discard(self) -> None:
        """Remove all of them, once the result is there; what cannot be removed is left."""
        try:
            self._files.discard()
        except Exception as error:  # noqa: BLE001 - each filesystem has its own errors; it only takes room
            log.warning("the checkpoints were not removed: %s", error)

    def _run(self, state: State, plan: Plan, before: int) -> Iterator[Segment]:
        step = self._resume(state, plan)
        try:
            while step < plan.steps:
                index, stop = step // plan.every, min(step + plan.every, plan.steps)
                segment = Segment(index, step, stop, seed_of(self._seed, plan.loop, index), self._stepped)
                seed_chance(segment.seed)
                self.pace.begin(len(segment), time.monotonic())
                self._step = before + stop
                yield segment
                step = stop
                self._save_and_reload(state, plan, step)
        finally:
            self.pace.leave()
        # What comes after the loop finds the same chance, whether this attempt ran the last segment or not.
        seed_chance(seed_of(self._seed, plan.loop, -1))

    def _stepped(self) -> None:
        self.pace.step(time.monotonic())

    def _resume(self, state: State, plan: Plan) -> int:
        """The step to go on from. The reasons are read here, too: nothing is lost yet if they cannot be."""
        began, computed = time.monotonic(), time.thread_time()
        with self._remembered(), no_room_said(self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
            found = self._files.fetch_newest(plan, self._local)
        if self.reasons:
            log.info("not reproducible, as found before: %s", "; ".join(self.reasons))
        if found is None:
            return 0
        state.load(self._local)
        self._local.unlink()
        self.costs.resumed_steps += found.step
        self.costs.seconds += time.monotonic() - began
        self.costs.cpu_seconds += time.thread_time() - computed
        log.info("resumed at step %d of %d", found.step, plan.steps)
        return found.step

    def _save_and_reload(self, state: State, plan: Plan, step: int) -> None:
        began, computed = time.monotonic(), time.thread_time()
        self.pace.begin_save(began)
        if saved := self._save(state, step):
            self._publish(plan, step)
        self.pace.end_save(time.monotonic())
        self.when_saved()
        if saved:
            state.load(self._local)
        self._local.unlink(missing_ok=True)
        self.costs.seconds += time.monotonic() - began
        self.costs.cpu_seconds += time.thread_time() - computed

    def _save(self, state: State, step: int) -> bool:
        """Whether there was room for it; without, training goes on, and its record says what that means."""
        try:
            with no_room_said(self._local):
                state.save(self._local)
        except NoSpaceError as error:
            self.costs.failed += 1
            log.warning("no checkpoint at step %d, going on without: %s", step, error)
            self.not_reproducible(f"the state at step {step} could not be saved and loaded again: {error}")
            return False
        return True

    def _publish(self, plan: Plan, step: int) -> None:
        """Write it to the lake; a training that could go on is not ended by a lake that is full or away."""
        try:
            if self._unwritten_reasons:  # first: who resumes after this segment does not find them again
                self._files.write_reasons(self.reasons)
                self._unwritten_reasons = False
            made = self._files.publish(self._local, plan, step)
        except StaleAttemptError as error:
            self._ended_by = error
            raise
        except Exception as error:  # noqa: BLE001 - each filesystem has its own errors
            self.costs.failed += 1
            log.warning(
                "no checkpoint at step %d, going on without: %s: %s", step, type(error).__name__, error
            )
        else:
            self.costs.written += 1
            log.info("checkpoint at step %d of %d: %s", step, plan.steps, made.digest[:12])

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """Errors of the lake become ours, and are kept for :meth:`raise_if_ended`."""
        try:
            yield
        except LifecycleError as error:
            self._ended_by = error
            raise
        except Exception as error:  # each filesystem has its own errors
            self._ended_by = ServerUnavailableError(
                f"the checkpoints cannot be read: {type(error).__name__}: {error}"
            )
            raise self._ended_by from error
