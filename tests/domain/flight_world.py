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
KNOWN_AT = {"flights": "published_at", "arrivals": "landed_at", "weather": "observed_at"}
KEYS = ("flight_id", "origin", "route", "tailnum")
Tables = dict[str, pl.DataFrame]


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
    """All of 2013, as an airline would have sent it in files of forty days; a model that trains fast."""
    flights.land(base / "lake" / "landing", STORY_STARTS, YEAR_ENDS, every=timedelta(days=40))
    brief = {"model.yaml": lambda text: text.replace("max_iter: 100", "max_iter: 5")}
    return World(Lake(str(base / "lake")), folder_with(base / "flight_delay", brief))


def raw(world: World) -> Tables:
    """All rows of the landed files, every cell as text."""
    return {table: pl.read_csv(world.landing / table / "*.csv", infer_schema=False) for table in KNOWN_AT}


def land(tables: Tables, like: World, base: Path) -> World:
    """A world with these rows, and the same registry of planes."""
    changed = World(Lake(str(base / "lake")), like.folder)
    for table, rows in tables.items():
        (changed.landing / table).mkdir(parents=True)
        rows.write_csv(changed.landing / table / "all.csv")
    (changed.landing / "planes.csv").write_bytes((like.landing / "planes.csv").read_bytes())
    return changed


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
