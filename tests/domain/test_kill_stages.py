"""Every stage killed at every one of its external effects, and run again: nothing is lost, doubled or torn.

The stages run as in the second run of a small model that is in production already.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from faults import Death, FaultKit, Outcome
from small_life import STAGES, Place, begin, first_run, registry, run_stage

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.tables import rows_digest
from ml_lifecycle.delivery.releases import published_heads
from ml_lifecycle.ledger.ledger import Ledger

RUN = 2
LAKES = ("lake", "production")
DATABASES = ("lifecycle", "online_staging", "online_production")
# How long a training took, and ids that Evidently makes up.
VOLATILE = re.compile(r"lake/(training/.*/manifest\.json|monitoring/.*\.html)")
SAMPLE = 2  # kills a stage in the quick tests

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


@dataclass
class Life:
    """The second run of the model, played once undisturbed; each stage can be played again from its start."""

    root: Path
    saved: Path
    faults: FaultKit
    played: dict[str, Played] = field(default_factory=dict)

    def play(self) -> None:
        """Up to the first champion, then the second run."""
        for call in (begin, first_run):
            outcome = self.faults.run(self.root, call, self.root)
            assert outcome.error is None, outcome.error
        for stage in STAGES:
            shutil.copytree(self.root, self.saved / stage, symlinks=True)
            before = files(self.root)
            outcome = self.faults.run(self.root, run_stage, self.root, RUN, stage)
            assert outcome.error is None, outcome.error
            self.played[stage] = Played(
                before, outcome, files(self.root), databases(self.root), self.registry(stage, outcome)
            )
            Place(self.root, RUN).keep(stage, outcome.value)

    def registry(self, stage: str, outcome: Outcome) -> dict[str, Any]:
        """What MLflow shows, if the stage has to do with it."""
        if not any("mlflow" in effect for effect in outcome.effects):
            return {}
        value: dict[str, Any] = self.faults.run(self.root, registry, self.root).value
        return value

    def restore(self, stage: str) -> None:
        """The folder as it was before the stage."""
        shutil.rmtree(self.root)
        shutil.copytree(self.saved / stage, self.root, symlinks=True)

    def kill(self, stage: str, death: Death) -> Outcome:
        """Play the stage to a death, and see that what is left is whole."""
        outcome = self.faults.run(self.root, run_stage, self.root, RUN, stage, death=death)
        assert outcome.died
        self.check_whole(stage)
        return outcome

    def check_whole(self, stage: str) -> None:
        """Of what the stage makes, a reader sees files that are finished, and manifests of what is there."""
        played, found = self.played[stage], files(self.root)
        assert played.before.keys() <= found.keys()
        for path, digest in found.items():
            known = {played.before.get(path), played.after.get(path)}
            assert digest in known or VOLATILE.fullmatch(path), f"{path} is not as it should be"
            assert path in played.after, f"{path} should not be there"
            check_readable(self.root / path)
            if path.endswith("/manifest.json"):
                beside = {one for one in played.after if one.startswith(path.removesuffix("manifest.json"))}
                named = set(_paths(json.loads((self.root / path).read_text())))
                named = {f"lake/{one}" for one in named} & played.after.keys()
                assert beside | named <= found.keys(), f"{path} is there before its files"
        place = Place(self.root, RUN)
        Ledger(place.database).verify(published_heads(place.production, "small"))

    def check_same(self, stage: str) -> None:
        """Run again, it ends as if nothing had happened."""
        played = self.played[stage]
        outcome = self.faults.run(self.root, run_stage, self.root, RUN, stage)
        assert outcome.error is None, outcome.error
        assert _steady(outcome.value) == _steady(played.outcome.value)
        self.check_whole(stage)
        assert files(self.root).keys() == played.after.keys()
        assert databases(self.root) == played.databases
        assert self.registry(stage, played.outcome) == played.registry


def files(root: Path) -> Files:
    """Digests of all files that readers of the lakes see; others may have hidden temporary names only."""
    found = {}
    for name in LAKES:
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


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)
    elif isinstance(value, str):
        yield value


def _steady(record: dict[str, Any]) -> dict[str, Any]:
    """Without what a training took, and MLflow's random id."""
    return {name: value for name, value in record.items() if name not in ("resources", "mlflow_run_id")}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, faults: FaultKit) -> Life:
    folder = tmp_path_factory.mktemp("life")
    (folder / "root").mkdir()
    life = Life(folder / "root", folder / "saved", faults)
    life.play()
    return life


def kill_and_run_again(life: Life, stage: str, death: Death) -> str:
    """Returns the effect it died before, by number and name."""
    effects = life.played[stage].effects
    life.restore(stage)
    outcome = life.kill(stage, death)
    assert outcome.effects == effects[: death.gap]
    assert outcome.stopped_at == (effects[death.gap] if death.gap < len(effects) else None)
    life.check_same(stage)
    return f"{len(outcome.effects)} {outcome.stopped_at}"


@pytest.mark.parametrize("stage", STAGES)
def test_no_change_escapes_the_hook(life: Life, stage: str) -> None:
    played = life.played[stage]
    changed = {path for path, digest in played.after.items() if played.before.get(path) != digest}
    named = {effect.rsplit(" ", 1)[-1] for effect in played.effects}
    assert changed <= named
    assert changed or any("commit" in effect for effect in played.effects)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_somewhere_a_stage_ends_as_if_it_had_not_been(life: Life, stage: str) -> None:
    for death in random.Random(stage).sample(life.played[stage].deaths(), SAMPLE):
        kill_and_run_again(life, stage, death)


@pytest.mark.full
@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere_a_stage_ends_as_if_it_had_not_been(life: Life, stage: str) -> None:
    played = life.played[stage]
    visited = {kill_and_run_again(life, stage, death) for death in played.deaths()}
    assert visited == {f"{gap} {effect}" for gap, effect in enumerate([*played.effects, None])}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_killed_twice_a_stage_ends_as_if_it_had_not_been(life: Life, seed: int) -> None:
    chance = random.Random(seed)
    stage = chance.choice(list(STAGES))
    first = chance.choice(life.played[stage].deaths())
    life.restore(stage)
    life.kill(stage, first)
    life.kill(stage, Death(chance.randint(0, len(life.played[stage].effects) - first.gap)))
    life.check_same(stage)
