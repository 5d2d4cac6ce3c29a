"""Checkpoints in the lake: torn, missing, old, of another attempt; the newest whole one is gone on from."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import pytest
from toy_loop import FOLDER, Attempts, Interrupted, Sum, interrupt

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.errors import StaleAttemptError
from ml_lifecycle.training.checkpoint_files import Checkpoint, Plan


def test_a_name_says_what_the_checkpoint_is() -> None:
    made = Checkpoint(Plan(1, 400, 20), 40, 3, "ab" * 32)
    assert made.name == f"loop=1_step=000000000040_of=400_every=20_attempt=3_sha256={'ab' * 32}"
    assert Checkpoint.of(made.name) == made
    assert Checkpoint.of(made.name[:-1]) is None
    assert Checkpoint.of("not_reproducible.json") is None


def test_the_newest_two_are_kept_until_there_is_a_result(attempts: Attempts) -> None:
    interrupt(attempts, 18)
    assert attempts.steps == [12, 16]
    interrupt(attempts, 17)
    assert attempts.steps == [12, 16]
    attempts.train()
    assert attempts.steps == [16, 20]
    attempts.checkpoints.discard()
    assert list(attempts.lake.list(FOLDER)) == []


TEARS = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[: len(data) // 2],
    "all but one byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"]",
    "another first byte": lambda data: b"{" + data[1:],
    "another byte within": lambda data: data[: len(data) // 2] + b"7777" + data[len(data) // 2 + 4 :],
    "another last byte": lambda data: data[:-1] + b"}",
    "zeros, as after a power cut": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_one_is_stepped_over(
    attempts: Attempts, whole_sum: Sum, tear: str, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(attempts, 14)
    newest = attempts.files[-1]
    data = attempts.lake.read_bytes(attempts.path(newest))
    attempts.lake.write_bytes(attempts.path(newest), TEARS[tear](data))
    with caplog.at_level(logging.INFO):
        interrupt(attempts, 9)
    assert attempts.resumed == 8
    assert "the checkpoint at step 12 is not whole, going back: " in caplog.text
    assert "has digest" in caplog.text
    assert "resumed at step 8 of 20" in caplog.text
    assert attempts.train().values == whole_sum.values
    assert attempts.steps == [16, 20]


def test_a_torn_one_is_the_first_to_go(attempts: Attempts) -> None:
    interrupt(attempts, 14)
    torn = attempts.files[-1]
    attempts.lake.write_bytes(attempts.path(torn), b"")
    interrupt(attempts, 13)
    made = attempts.files
    assert [(one.step, one.attempt) for one in made] == [(8, 1), (12, 2)]


def test_with_all_of_them_torn_it_begins_anew(attempts: Attempts, whole_sum: Sum) -> None:
    interrupt(attempts, 14)
    for one in attempts.files:
        attempts.lake.write_bytes(attempts.path(one), b"torn")
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 0


def test_without_the_newest_it_takes_the_one_before(attempts: Attempts, whole_sum: Sum) -> None:
    interrupt(attempts, 14)
    attempts.lake.delete(attempts.path(attempts.files[-1]))
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 8


class Vanishing(Lake):
    """Its newest checkpoint is removed after it was listed."""

    def get_file(self, path: str, local: str | os.PathLike[str], digest: str) -> None:
        if "_step=000000000012_" in path:
            self.delete(path)
        super().get_file(path, local, digest)


def test_one_that_vanishes_is_stepped_over(
    tmp_path: Path, whole_sum: Sum, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Attempts(Vanishing(str(tmp_path / "lake")), tmp_path / "scratch")
    interrupt(attempts, 14)
    with caplog.at_level(logging.INFO):
        assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 8
    assert "step 12 is not whole, going back: no file" in caplog.text


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path, whole_sum: Sum) -> None:
    attempts = Attempts(Lake(str(tmp_path / "lake")), tmp_path / "scratch")
    interrupt(attempts, 10)
    (tmp_path / "lake" / FOLDER / f".{uuid.uuid4().hex}.tmp").write_bytes(b"half")
    assert attempts.train().values == whole_sum.values
    assert len(os.listdir(tmp_path / "lake" / FOLDER)) == 2


def test_a_stale_attempt_stops_and_publishes_nothing(attempts: Attempts) -> None:
    interrupt(attempts, 6)
    before = attempts.files
    asked = iter([False, False, True])
    attempts.stale = lambda: next(asked)
    with pytest.raises(StaleAttemptError, match="attempt 2 at training/toy/checkpoints is not the newest"):
        attempts.train()
    assert [one.step for one in before] == [4]
    assert attempts.steps == [4, 8], "it was not stale yet at step 8, at 12 it was"
    with pytest.raises(StaleAttemptError) as caught:
        attempts.checkpoints.raise_if_ended()
    assert not caught.value.retryable


def test_a_stale_attempt_does_not_even_begin_nor_remove(attempts: Attempts) -> None:
    interrupt(attempts, 14)
    attempts.stale = lambda: True
    with pytest.raises(StaleAttemptError):
        attempts.train()
    attempts.checkpoints.discard()
    assert attempts.steps == [8, 12]


def test_checkpoints_of_another_run_at_the_same_job_are_gone_on_with(
    attempts: Attempts, whole_sum: Sum
) -> None:
    """Its attempts may have higher numbers: that alone makes none of this run's stale."""
    attempts.number = 4
    interrupt(attempts, 6)
    attempts.number = 2
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 4


def test_what_an_old_attempt_still_writes_is_not_gone_on_with(attempts: Attempts, whole_sum: Sum) -> None:
    interrupt(attempts, 6)
    interrupt(attempts, 10)
    content = b"[1.0, 2.0]"
    stray = Checkpoint(Plan(0, 20, 4), 16, 1, sha256(content))
    attempts.lake.write_bytes(attempts.path(stray), content)
    assert stray in attempts.files
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 8
    assert stray not in attempts.files


def test_other_steps_are_not_mixed(
    attempts: Attempts, whole_sum: Sum, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Interrupted):
        attempts.train(stop_before=9, every=2)
    with pytest.raises(Interrupted):
        attempts.train(stop_before=9, steps=24)
    assert attempts.resumed == 0
    assert attempts.train().values == whole_sum.values
    assert attempts.resumed == 0
    assert "checkpoints made with steps=24, every=4 are no use to steps=20, every=4" in caplog.text
