"""Segments: an interrupted loop ends as one that was not, whatever its surroundings do."""

from __future__ import annotations

import os
import random
import resource
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from toy_loop import EVERY, FOLDER, SEED, STEPS, Attempts, Interrupted, Sum, interrupt, numbered, run_loop

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import NoSpaceError, ServerUnavailableError
from ml_lifecycle.training.checkpoints import Checkpoints


def test_segments_cover_the_steps_and_have_seeds_of_their_own(attempts: Attempts) -> None:
    checkpoints = attempts.next()
    segments = [
        (segment.index, list(segment), segment.seed)
        for segment in checkpoints.segments(Sum(), steps=10, every=4)
    ]
    assert [(index, steps) for index, steps, _ in segments] == [
        (0, [0, 1, 2, 3]),
        (1, [4, 5, 6, 7]),
        (2, [8, 9]),
    ]
    assert len({seed for *_, seed in segments}) == 3
    assert all(0 <= seed < 2**31 for *_, seed in segments)
    again = [one.seed for one in checkpoints.segments(Sum(), steps=10, every=4)]
    assert not {seed for *_, seed in segments} & set(again), "a second loop has seeds of its own"


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (20, 1), (21, 2), (200, 10), (201, 11)])
def test_a_twentieth_of_the_steps_is_a_segment_unless_said_otherwise(
    attempts: Attempts, steps: int, every: int
) -> None:
    lengths = [len(segment) for segment in attempts.next().segments(Sum(), steps=steps)]
    assert set(lengths[:-1]) <= {every}
    assert lengths[-1] <= every
    assert sum(lengths) == steps


def test_the_state_is_saved_and_loaded_at_each_boundary_though_nothing_interrupts(attempts: Attempts) -> None:
    state = attempts.train()
    assert (state.saved, state.loaded) == (5, 5)
    assert attempts.checkpoints.costs.written == 5
    assert attempts.checkpoints.costs.seconds > 0


@pytest.mark.parametrize("before", range(STEPS))
def test_interrupted_anywhere_it_ends_in_the_same(attempts: Attempts, whole_sum: Sum, before: int) -> None:
    interrupt(attempts, before)
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == before // EVERY * EVERY


def test_interrupted_again_and_again_it_ends_in_the_same(attempts: Attempts, whole_sum: Sum) -> None:
    for before in (3, 6, 6, 11, 12, 19):
        interrupt(attempts, before)
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 16


def test_interrupted_after_its_last_step_nothing_is_done_again(attempts: Attempts, whole_sum: Sum) -> None:
    first = attempts.train()
    chance = random.random(), np.random.random()
    state = attempts.train()
    assert state.values == whole_sum.values == first.values
    assert attempts.resumed == STEPS
    assert (random.random(), np.random.random()) == chance, "what comes after the loop finds the same chance"


def two_loops(checkpoints: Checkpoints, stop_before: tuple[int, int]) -> list[float]:
    first, second = Sum(), Sum()
    for loop, state in enumerate((first, second)):
        for segment in checkpoints.segments(state, steps=6, every=2):
            for step in segment:
                if (loop, step) == stop_before:
                    raise Interrupted
                state.values.append(random.random())
        state.values.append(np.random.random())
    return [*first.values, *second.values]


@pytest.mark.parametrize("stop_before", [(0, 1), (0, 5), (1, 0), (1, 1), (1, 4)])
def test_loops_one_after_the_other_are_told_apart(attempts: Attempts, stop_before: tuple[int, int]) -> None:
    undisturbed = two_loops(attempts.next(), (2, 0))
    attempts.checkpoints.discard()
    with pytest.raises(Interrupted):
        two_loops(attempts.next(), stop_before)
    assert two_loops(attempts.next(), (2, 0)) == undisturbed
    assert attempts.checkpoints.costs.resumed_steps == 6 * stop_before[0] + stop_before[1] // 2 * 2


def test_what_is_not_reproducible_is_known_to_every_later_attempt(attempts: Attempts) -> None:
    checkpoints = attempts.next()
    assert checkpoints.reasons == ()
    for segment in checkpoints.segments(Sum(), steps=4, every=1):
        if segment.index == 1:
            checkpoints.not_reproducible("atomic additions")
            checkpoints.not_reproducible("atomic additions")
        if segment.index == 2:
            break
    assert attempts.next().reasons == ("atomic additions",)
    run_loop(attempts.checkpoints, attempts, 99, 4, 1)
    attempts.checkpoints.not_reproducible("a clock")
    assert attempts.checkpoints.reasons == ("atomic additions", "a clock")


class Away(Lake):
    """Answers while it is told to."""

    away = False

    def _answer(self) -> None:
        if self.away:
            raise ConnectionResetError("the bucket is gone")

    def put_file(self, path: str, local: str | os.PathLike[str]) -> str:
        self._answer()
        return super().put_file(path, local)

    def list(self, prefix: str) -> Iterator[str]:
        self._answer()
        return super().list(prefix)


def test_a_lake_that_is_away_ends_no_training(
    tmp_path: Path, whole_sum: Sum, caplog: pytest.LogCaptureFixture
) -> None:
    lake = Away(str(tmp_path / "lake"))
    attempts = Attempts(lake, tmp_path / "scratch")
    checkpoints, state = attempts.next(), Sum()
    for segment in checkpoints.segments(state, steps=STEPS, every=EVERY):
        lake.away = segment.index in (1, 2)
        own = random.Random(segment.seed)
        for step in segment:
            state.values.append(step + random.random() + np.random.random() + own.random())
    assert state.values == whole_sum.values
    assert (checkpoints.costs.written, checkpoints.costs.failed) == (3, 2)
    assert (
        "no checkpoint at step 8, going on without: ConnectionResetError: the bucket is gone" in caplog.text
    )
    assert checkpoints.reasons == ()


def test_resuming_needs_the_lake_and_may_be_tried_again(tmp_path: Path) -> None:
    lake = Away(str(tmp_path / "lake"))
    attempts = Attempts(lake, tmp_path / "scratch")
    interrupt(attempts, 6)
    lake.away = True
    with pytest.raises(ServerUnavailableError, match="cannot be read: ConnectionResetError") as caught:
        attempts.train()
    assert caught.value.retryable
    with pytest.raises(ServerUnavailableError):
        attempts.checkpoints.raise_if_ended()


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow beyond half a megabyte: to its writer the same as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Large(Sum):
    """A state of a megabyte.

    :ivar full: the saves at which there is room for it no more, or not for its copy in the lake
    """

    full: tuple[int, ...] = ()
    where = "lake"

    def save(self, path: Path) -> None:
        if self.saved + 1 in self.full and self.where == "scratch":
            with no_room():
                self.write(path)
        else:
            self.write(path)

    def write(self, path: Path) -> None:
        super().save(path)
        with path.open("ab") as file:
            file.write(b" " * 2**20)


class FullLake(Lake):
    """Has no room while its state says so."""

    state: Large

    def put_file(self, path: str, local: str | os.PathLike[str]) -> str:
        if self.state.saved in self.state.full and self.state.where == "lake":
            with no_room():
                return super().put_file(path, local)
        return super().put_file(path, local)


def train_with(checkpoints: Checkpoints, state: Large) -> list[float]:
    for step, own in numbered(checkpoints, state, STEPS, EVERY):
        state.values.append(step + random.random() + np.random.random() + own.random())
    return state.values


def test_a_full_lake_ends_no_training(
    tmp_path: Path, whole_sum: Sum, caplog: pytest.LogCaptureFixture
) -> None:
    lake = FullLake(str(tmp_path / "lake"))
    attempts = Attempts(lake, tmp_path / "scratch")
    lake.state = Large()
    lake.state.full = (2, 4)
    assert train_with(attempts.next(), lake.state) == whole_sum.values
    assert attempts.steps == [12, 20]
    assert (attempts.checkpoints.costs.written, attempts.checkpoints.costs.failed) == (3, 2)
    assert "no checkpoint at step 8, going on without: NoSpaceError: no room for " in caplog.text
    assert attempts.checkpoints.reasons == ()
    assert len(os.listdir(tmp_path / "lake" / FOLDER)) == 2


def test_without_room_for_the_state_itself_it_says_that_it_is_not_reproducible(
    tmp_path: Path, whole_sum: Sum
) -> None:
    attempts = Attempts(Lake(str(tmp_path / "lake")), tmp_path / "scratch")
    state = Large()
    state.full, state.where = (2,), "scratch"
    assert train_with(attempts.next(), state) == whole_sum.values
    assert attempts.steps == [16, 20]
    assert attempts.checkpoints.costs.failed == 1
    (reason,) = attempts.next().reasons
    assert reason.startswith("the state at step 8 could not be saved and loaded again: no room for ")


def test_without_room_to_resume_it_says_so_and_may_be_tried_again(tmp_path: Path) -> None:
    attempts = Attempts(Lake(str(tmp_path / "lake")), tmp_path / "scratch")
    train_with(attempts.next(), Large())
    with no_room(), pytest.raises(NoSpaceError) as caught:
        train_with(attempts.next(), Large())
    assert caught.value.retryable
    with pytest.raises(NoSpaceError):
        attempts.checkpoints.raise_if_ended()
    train_with(attempts.next(), Large())
    assert attempts.checkpoints.costs.resumed_steps == STEPS


@pytest.mark.parametrize("where", ["save", "load"])
def test_ctrl_c_in_the_middle_of_a_checkpoint_tears_nothing(
    attempts: Attempts, whole_sum: Sum, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self: Sum, path: Path) -> None:
        path.write_text("[1, ")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        interrupt(attempts, 6)
        patch.setattr(Sum, where, pressed)
        with pytest.raises(KeyboardInterrupt):
            attempts.train()
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 4


def test_a_state_larger_than_memory_may_be(tmp_path: Path) -> None:
    size = 48 * 2**20
    attempts = Attempts(Lake(str(tmp_path / "lake")), tmp_path / "scratch")

    class Huge(Sum):
        def save(self, path: Path) -> None:
            super().save(path)
            os.truncate(path, size)

        def load(self, path: Path) -> None:
            assert path.stat().st_size == size

    tracemalloc.start()
    for steps_before in (0, 2):
        for segment in attempts.next().segments(Huge(), steps=4, every=2):
            if segment.start > steps_before:
                break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert attempts.checkpoints.costs.resumed_steps == 2
    assert peak < size / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0, every=0: both must be at least 1"),
        ({"steps": 5, "every": 0}, "steps=5, every=0"),
        ({"steps": 1e3}, "'float' object cannot be interpreted as an integer"),
    ],
)
def test_steps_that_are_none_are_refused_at_once(
    attempts: Attempts, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        attempts.next().segments(Sum(), **arguments)


def test_a_state_that_cannot_be_saved_is_refused_at_once(attempts: Attempts) -> None:
    with pytest.raises(TypeError, match=r"dict has no save and no load\(path\): a state needs both"):
        attempts.next().segments({}, steps=3)  # type: ignore[arg-type]


def test_an_error_of_the_states_own_is_not_hidden(attempts: Attempts) -> None:
    class Broken(Sum):
        def save(self, path: Path) -> None:
            raise PermissionError("not here")

    with pytest.raises(PermissionError):
        list(attempts.next().segments(Broken(), steps=3))
    attempts.checkpoints.raise_if_ended()


def test_the_seed_is_the_jobs(tmp_path: Path) -> None:
    def seeds(seed: int) -> list[int]:
        lake = Lake(str(tmp_path / uuid.uuid4().hex))
        checkpoints = Checkpoints(lake, FOLDER, 1, seed, scratch=tmp_path / "scratch")
        return [segment.seed for segment in checkpoints.segments(Sum(), steps=3)]

    assert seeds(SEED) == seeds(SEED)
    assert not set(seeds(SEED)) & set(seeds(SEED + 1))
