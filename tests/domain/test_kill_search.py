"""A search killed at every one of its external effects, and run again: no trial is added or told twice."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from faults import Death, FaultKit
from standing import Standing
from tests.domain.training_world import attempt_at, make_folder, make_training_set

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.optuna import SharedStudy
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import TrainingSet, to_json
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.search import begin_trial, end_trial, finish_search, plan_search
from ml_lifecycle.stages.train import collect_training
from ml_lifecycle.training.pod import run_attempt

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TRIALS = 2
PARAMETERS = f"""{{max_iter: 4}}
  search: {{trials: {TRIALS}, metric: log_loss, validation: 4d, space: {{max_iter: {{low: 2, high: 8}}}}}}"""
# By the journal, in which Optuna notes when something was told.
VOLATILE = ("/result/study.log", "/result/manifest.json")


def search_in(place: Path, training_set: TrainingSet, train: bool = False) -> dict[str, Any]:
    """What the tasks of a search do; their pods have trained already, unless they shall now."""
    folder, lake, database = _opened(place)
    plan = plan_search(folder, lake, training_set)
    for number in range(TRIALS):
        job, tried = begin_trial(folder, lake, database, plan, number)
        if train:
            run_attempt(lake, attempt_at(job), place / "scratch" / job.digest)
        if tried.state == "running":
            end_trial(folder, lake, database, plan, job, collect_training(lake, attempt_at(job)))
    found = to_json(finish_search(folder, lake, database, plan, None, NOW))
    return {name: value for name, value in found.items() if name != "files"}


def left_by(place: Path) -> dict[str, Any]:
    """The lake's files with their digests, the study and the ledger."""
    folder, lake, database = _opened(place)
    Ledger(database).verify([])
    search = folder.spec.training.search
    assert search is not None
    (digest,) = lake.folders(f"searches/{folder.spec.name}")
    with database.read() as connection:
        tried = SharedStudy(connection, digest, search).tried()
    files = Standing.of(lake).files
    return {
        "files": {path: None if path.endswith(VOLATILE) else one for path, one in files.items()},
        "tried": tried,
        "ledger": [(entry.kind, entry.payload) for entry in Ledger(database).entries()],
    }


def _opened(place: Path) -> tuple[Any, Lake, Database]:
    return (
        load_folder(place / "toy_binary"),
        Lake(str(place / "lake")),
        Database(f"sqlite:///{place}/lifecycle.db"),
    )


def begin(place: Path) -> TrainingSet:
    """A training set, and a search whose pods have trained; nothing else is left of it."""
    folder = make_folder(place, parameters=PARAMETERS)
    _, lake, database = _opened(place)
    database.migrate()
    shutil.copy(place / "lifecycle.db", place / "empty.db")
    training_set = make_training_set(lake, folder)
    search_in(place, training_set, train=True)
    shutil.rmtree(lake.full_path("searches"))
    for path in Path(lake.full_path("training_sets"), folder.spec.name).iterdir():
        if path.name != training_set.digest:
            shutil.rmtree(path)
    for path in Path(lake.full_path("training")).glob("*/*/manifest.json"):
        path.unlink()
    for path in place.glob("lifecycle.db*"):
        path.unlink()
    (place / "empty.db").rename(place / "lifecycle.db")
    return training_set


@pytest.mark.proof
def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path, faults: FaultKit) -> None:
    training_set = begin(tmp_path / "begun")
    root = shutil.copytree(tmp_path / "begun", tmp_path / "place")
    played = faults.run(root, search_in, root, training_set)
    assert played.error is None
    expected = left_by(root)
    assert [one.state for one in expected["tried"]] == ["finished"] * TRIALS
    opened = [gap for gap, effect in enumerate(played.effects, 1) if effect.startswith("open ")]
    deaths = [Death(gap) for gap in range(len(played.effects) + 1)] + [Death(gap, True) for gap in opened]
    for death in deaths:
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "begun", root)
        killed = faults.run(root, search_in, root, training_set, death=death)
        assert (killed.died, killed.effects) == (True, played.effects[: death.gap])
        assert faults.run(root, search_in, root, training_set).value == played.value, killed.stopped_at
        assert left_by(root) == expected, killed.stopped_at
