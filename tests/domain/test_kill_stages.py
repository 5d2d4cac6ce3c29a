"""Every stage killed at every one of its external effects, and run again: nothing is lost, doubled or torn.

The stages run as in the second run of a small model that is in production already; those that find something
else before the first champion also as in the first.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from faults import Death, FaultKit, Outcome
from small_life import FIRST_RUN, STAGES, Place, begin, go_live, registry, run_stage

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.tables import rows_digest
from ml_lifecycle.delivery.route import published_heads
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.stages.online_features import Materialisation

LAKES = ("lake", "production")
DATABASES = ("lifecycle", "online_staging", "online_production")
# How long a training took; ids that Great Expectations and Evidently make up.
VOLATILE = re.compile(
    r"lake/(training/.*/(manifest|usage)\.json|validations/.*/report\.json|monitoring/.*\.html)"
)
ERRORS = {"quarantine": "DataHaltedError"}
SAMPLE = 1  # kills a task in the quick tests

Files = dict[str, str]


@dataclass
class Played:
    """A stage that ran undisturbed, and what it found and left."""

    before: Files
    outcome: Outcome
    after: Files
    databases: dict[str, Any]
    registry: dict[str, Any]

    @property
    def effects(self) -> tuple[str, ...]:
        return self.outcome.effects

    def deaths(self) -> list[Death]:
        """Every gap between effects; and again with half of the file that was being written."""
        opened = [gap for gap, effect in enumerate(self.effects, 1) if effect.startswith("open ")]
        return [Death(gap) for gap in range(len(self.effects) + 1)] + [Death(gap, True) for gap in opened]


@dataclass(frozen=True)
class Task:
    """A stage in a run."""

    run: int
    stage: str

    def __str__(self) -> str:
        return f"{self.stage}_{self.run}"


TASKS = [Task(1, "train"), Task(1, "register"), *(Task(2, stage) for stage in STAGES)]


@dataclass
class Life:
    """Two runs of the model, played once undisturbed; each task can be played again from its start."""

    root: Path
    saved: Path
    faults: FaultKit
    played: dict[Task, Played] = field(default_factory=dict)

    def play(self) -> None:
        """Up to the first champion, then the second run."""
        self.call(begin)
        for stage in FIRST_RUN:
            self.play_task(Task(1, stage))
        self.call(go_live)
        for stage in STAGES:
            self.play_task(Task(2, stage))

    def play_task(self, task: Task) -> None:
        shutil.copytree(self.root, self.saved / str(task), symlinks=True)
        before, outcome = files(self.root), self.run(task)
        self.played[task] = Played(
            before, outcome, files(self.root), databases(self.root), self.registry(outcome)
        )
        if outcome.value is not None:
            Place(self.root, task.run).keep(task.stage, outcome.value)

    def call(self, function: Callable[[Path], Any]) -> Any:
        outcome = self.faults.run(self.root, function, self.root)
        assert outcome.error is None, outcome.error
        return outcome.value

    def run(self, task: Task) -> Outcome:
        outcome = self.faults.run(self.root, run_stage, self.root, task.run, task.stage)
        assert (outcome.error or "").split(":")[0] == ERRORS.get(task.stage, ""), outcome.error
        return outcome

    def registry(self, outcome: Outcome) -> dict[str, Any]:
        """What MLflow shows, if the task has to do with it."""
        found: dict[str, Any] = {}
        if any("mlflow" in effect for effect in outcome.effects):
            found = self.call(registry)
        return found

    def restore(self, task: Task) -> None:
        """The folder as it was before the task."""
        shutil.rmtree(self.root)
        shutil.copytree(self.saved / str(task), self.root, symlinks=True)

    def kill(self, task: Task, death: Death) -> Outcome:
        """Run it to a death, and see that what is left is whole."""
        outcome = self.faults.run(self.root, run_stage, self.root, task.run, task.stage, death=death)
        assert outcome.died
        self.check_whole(task)
        return outcome

    def check_whole(self, task: Task) -> None:
        """Of what the task makes, a reader sees files that are finished, and manifests of what is there."""
        played, found = self.played[task], files(self.root)
        assert played.before.keys() <= found.keys()
        for path, digest in found.items():
            assert path in played.after, f"{path} should not be there"
            known = {played.before.get(path), played.after[path]}
            assert digest in known or VOLATILE.fullmatch(path), f"{path} is not as it should be"
            check_readable(self.root / path)
            if path.endswith("/manifest.json"):
                beside = {one for one in played.after if one.startswith(path.removesuffix("manifest.json"))}
                named = set(_texts(json.loads((self.root / path).read_text())))
                named = {f"lake/{one}" for one in named} & played.after.keys()
                assert beside | named <= found.keys(), f"{path} is there before its files"
        place = Place(self.root, task.run)
        Ledger(place.database).verify(published_heads(place.production, "small"))

    def check_same(self, task: Task) -> None:
        """Run again, it ends as if nothing had happened."""
        played, outcome = self.played[task], self.run(task)
        assert outcome.error == played.outcome.error
        assert _steady(outcome.value) == _steady(played.outcome.value)
        self.check_whole(task)
        assert files(self.root).keys() == played.after.keys()
        assert databases(self.root) == played.databases
        assert self.registry(played.outcome) == played.registry


def files(root: Path) -> Files:
    """Digests of all files that readers of the lakes see; others may have hidden temporary names only."""
    found = {}
    lakes = [name for name in LAKES if (root / name).exists()]
    for name in lakes:
        lake = Lake(str(root / name))
        for folder in sorted(os.listdir(root / name)):
            for path in lake.list(folder):
                found[f"{name}/{path}"] = sha256((root / name / path).read_bytes())
                assert path in lake.sizes(path.rsplit("/", 1)[0])
    everything = {
        str(path.relative_to(root)) for name in LAKES for path in (root / name).rglob("*") if path.is_file()
    }
    for hidden in everything - found.keys():
        assert re.fullmatch(r".*/\.[0-9a-f]{32}\.tmp", hidden), hidden
    return found


def check_readable(path: Path) -> None:
    """JSON is JSON, Parquet is Parquet, and a file named by its digest has it."""
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".parquet":
        rows = pl.read_parquet(path)
        assert path.parts[-3] != "objects" or rows_digest(rows) == path.stem
    elif re.fullmatch(r"[0-9a-f]{64}", path.stem):
        assert sha256(path.read_bytes()) == path.stem


def databases(root: Path) -> dict[str, Any]:
    """All rows of all tables but MLflow's."""
    found: dict[str, Any] = {}
    for name in DATABASES:
        if not (root / f"{name}.db").exists():
            continue
        with closing(sqlite3.connect(root / f"{name}.db")) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            for (table,) in tables.fetchall():
                found[f"{name}.{table}"] = sorted(connection.execute(f'SELECT * FROM "{table}"'), key=repr)
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _steady(record: dict[str, Any] | None) -> dict[str, Any]:
    """Without how long a training took, MLflow's random id, and what a materialisation found left to do."""
    unsteady = {"resources", "mlflow_run_id"}
    if record is not None and record["schema"] == Materialisation.schema:
        unsteady |= {"rows", "since", "healed"}
    return {name: value for name, value in (record or {}).items() if name not in unsteady}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, faults: FaultKit) -> Life:
    folder = tmp_path_factory.mktemp("life")
    (folder / "root").mkdir()
    life = Life(folder / "root", folder / "saved", faults)
    life.play()
    return life


def kill_and_run_again(life: Life, task: Task, death: Death) -> str:
    """Returns the effect it died before, by number and name."""
    effects = life.played[task].effects
    life.restore(task)
    outcome = life.kill(task, death)
    assert outcome.effects == effects[: death.gap]
    assert outcome.stopped_at == (effects[death.gap] if death.gap < len(effects) else None)
    life.check_same(task)
    return f"{len(outcome.effects)} {outcome.stopped_at}"


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_no_change_escapes_the_hook(life: Life, task: Task) -> None:
    played = life.played[task]
    changed = {path for path, digest in played.after.items() if played.before.get(path) != digest}
    named = {effect.rsplit(" ", 1)[-1] for effect in played.effects}
    assert changed <= named
    assert changed or any(effect.startswith("commit") for effect in played.effects)


@pytest.mark.parametrize("task", [task for task in TASKS if task.run == 2], ids=str)
def test_killed_somewhere_it_ends_as_if_it_had_not_been(life: Life, task: Task) -> None:
    for death in random.Random(str(task)).sample(life.played[task].deaths(), SAMPLE):
        kill_and_run_again(life, task, death)


@pytest.mark.proof
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(life: Life, task: Task) -> None:
    played = life.played[task]
    visited = {kill_and_run_again(life, task, death) for death in played.deaths()}
    assert visited == {f"{gap} {effect}" for gap, effect in enumerate([*played.effects, None])}


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(20))
def test_killed_twice_it_ends_as_if_it_had_not_been(life: Life, seed: int) -> None:
    chance = random.Random(seed)
    task = chance.choice(TASKS)
    first = chance.choice(life.played[task].deaths())
    life.restore(task)
    life.kill(task, first)
    life.kill(task, Death(chance.randint(0, len(life.played[task].effects) - first.gap)))
    life.check_same(task)
