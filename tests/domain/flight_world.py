"""The example's model folder over a lake of its own, in which real flights land."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo import flights
from ml_lifecycle.records import Interval, Run, Snapshot, TrainingSet
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest

EXAMPLE = Path(__file__).parents[2] / "dags" / "models" / "flight_delay"
DAY = timedelta(days=1)
STORY_STARTS = datetime(2012, 12, 31, 8, tzinfo=UTC)
YEAR_ENDS = datetime(2014, 1, 2, 8, tzinfo=UTC)
KEYS = ("flight_id", "origin", "route", "tailnum")


def january(day: int) -> datetime:
    return datetime(2013, 1, day, 8, tzinfo=UTC)


@dataclass
class World:
    lake: Lake
    folder: ModelFolder

    @property
    def landing(self) -> Path:
        return Path(self.lake.full_path("landing"))

    def snapshot(self, as_of: datetime) -> Snapshot:
        run = Run("flight_delay", "test", as_of, Interval(STORY_STARTS, as_of))
        return ingest(self.folder.spec, self.lake, run, contracts=self.folder.contracts)

    def training_set(self, as_of: datetime) -> TrainingSet:
        return build_training_set(self.folder, self.lake, self.snapshot(as_of))

    def rows(self, training_set: TrainingSet) -> pl.DataFrame:
        paths = (training_set.train_path, training_set.holdout_path)
        return pl.concat(pl.read_parquet(self.lake.full_path(path)) for path in paths)


def folder_with(path: Path, edits: dict[str, Callable[[str], str]]) -> ModelFolder:
    """The example's folder, its files edited."""
    shutil.copytree(EXAMPLE, path, ignore=shutil.ignore_patterns("__pycache__"))
    for name, edit in edits.items():
        before = (path / name).read_text()
        assert edit(before) != before
        (path / name).write_text(edit(before))
    return load_folder(path)


def short_holdout(text: str) -> str:
    return text.replace("holdout: 14d", "holdout: 4d")


def three_weeks(base: Path) -> World:
    """January's first three, with a holdout short enough for them."""
    flights.land(base / "lake" / "landing", STORY_STARTS, january(21), every=timedelta(days=7))
    folder = folder_with(base / "flight_delay", {"model.yaml": short_holdout})
    return World(Lake(str(base / "lake")), folder)


def whole_year(base: Path) -> World:
    """All of 2013, as an airline would have sent it in files of forty days."""
    flights.land(base / "lake" / "landing", STORY_STARTS, YEAR_ENDS, every=timedelta(days=40))
    return World(Lake(str(base / "lake")), load_folder(EXAMPLE))
