"""The fault hook sees what it should, and a death leaves what a death leaves."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from faults import Death, FaultKit


def effects_of_every_kind(root: Path) -> str:
    (root / "folder").mkdir()
    (root / "folder").mkdir(exist_ok=True)
    (root / "a").write_text("half of it")
    (root / "a").read_text()
    os.replace(root / "a", root / "b")
    descriptor = os.open(root / "c", os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)
    (root / "b").unlink()
    (root / "b").unlink(missing_ok=True)
    (root.parent / "elsewhere").write_text("")
    connection = sqlite3.connect(root / "d.db")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    connection.execute("SELECT * FROM t").fetchall()
    connection.commit()
    connection.execute("INSERT INTO t VALUES (2)")
    connection.rollback()
    connection.close()
    return "done"


EFFECTS = (
    "mkdir folder",
    "open a",
    "rename a to b",
    "open c",
    "remove b",
    "commit d.db CREATE TABLE t",
    "commit d.db",
)


def raise_an_error(root: Path) -> None:
    raise ValueError("so it is")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.full
def test_every_effect_is_seen_once_and_nothing_else(faults: FaultKit, root: Path) -> None:
    outcome = faults.run(root, effects_of_every_kind, root)
    assert (outcome.effects, outcome.value, outcome.died) == (EFFECTS, "done", False)


def test_an_error_is_told(faults: FaultKit, root: Path) -> None:
    assert faults.run(root, raise_an_error, root).error == "ValueError: so it is"


@pytest.mark.parametrize(
    ("death", "stopped_at", "left"),
    [
        (Death(0), "mkdir folder", {}),
        (Death(2), "rename a to b", {"a": "half of it"}),
        (Death(2, torn=True), "rename a to b", {"a": "half "}),
        (Death(3), "open c", {"b": "half of it"}),
        (Death(5), "commit d.db CREATE TABLE t", {"c": "", "d.db": ""}),
    ],
)
def test_a_death_leaves_what_happened_before(
    faults: FaultKit, root: Path, death: Death, stopped_at: str, left: dict[str, str]
) -> None:
    outcome = faults.run(root, effects_of_every_kind, root, death=death)
    assert (outcome.died, outcome.stopped_at, outcome.effects) == (True, stopped_at, EFFECTS[: death.gap])
    assert {path.name: path.read_text() for path in root.iterdir() if path.is_file()} == left


def test_a_commit_it_died_before_did_not_happen(faults: FaultKit, root: Path) -> None:
    assert faults.run(root, effects_of_every_kind, root, death=Death(6)).stopped_at == "commit d.db"
    connection = sqlite3.connect(root / "d.db")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()


def test_after_the_last_effect_the_answer_is_lost(faults: FaultKit, root: Path) -> None:
    outcome = faults.run(root, effects_of_every_kind, root, death=Death(len(EFFECTS)))
    assert (outcome.died, outcome.stopped_at, outcome.effects, outcome.value) == (True, None, EFFECTS, None)
