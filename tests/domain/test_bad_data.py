"""Data that no model can be made of: the run stops with one clear error, and what was there is untouched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from bad_input import Raised
from small_model import DAY, HOUR, START, land, readings, write_model
from standing import Standing
from test_pod import main_here
from training_world import collect

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import (
    DataHaltedError,
    FeatureError,
    SourceError,
    SourceNotReadyError,
)
from ml_lifecycle.records import Interval, Run
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.stages.validate import latest_validated, raise_if_halted, validate

DAYS = 7


@dataclass(frozen=True)
class World:
    """The small model with a week of data behind it, all of which went well."""

    folder: ModelFolder
    lake: Lake

    def take(self, name: str, end_day: int) -> None:
        """From the files to a training set."""
        interval = Interval(START, START + end_day * DAY)
        snapshot = ingest(
            self.folder.spec,
            self.lake,
            Run("small", name, interval.end + HOUR, interval),
            contracts=self.folder.contracts,
        )
        previous = latest_validated(self.lake, "small", interval.end + HOUR)
        raise_if_halted(validate(self.folder.spec, self.folder.contracts, self.lake, snapshot, previous))
        made = build_training_set(self.folder, self.lake, snapshot)
        job = plan_training(self.folder, self.lake, made)
        main_here(self.lake, job, 1)  # what reaches it here cannot be trained on
        collect(self.lake, job)


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("week")
    folder = load_folder(write_model(root))
    lake = Lake(str(root / "lake"))
    land(lake, days=DAYS)
    interval = Interval(START, START + DAYS * DAY)
    snapshot = ingest(
        folder.spec, lake, Run("small", "run_1", interval.end, interval), contracts=folder.contracts
    )
    raise_if_halted(validate(folder.spec, folder.contracts, lake, snapshot, None))
    return root


def every_file(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def apply(raw: Path) -> None:
        for path in raw.glob("*.parquet"):
            change(pl.read_parquet(path)).write_parquet(path)

    return apply


def next_day(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def apply(raw: Path) -> None:
        day = START + DAYS * DAY
        change(readings(day, day + DAY)).write_parquet(raw / "next.parquet")

    return apply


def nothing(_raw: Path) -> None:
    return None


def gone(raw: Path) -> None:
    shutil.rmtree(raw)


NULL = pl.lit(None)
# name: what happens to the landing folder, the day the run ends at, what it ends in
DATA: dict[str, tuple[Callable[[Path], None], int, Raised]] = {
    "no file at all": (gone, DAYS + 1, Raised(SourceNotReadyError, True, "no file matches")),
    "a column gone": (
        next_day(lambda rows: rows.drop("load")),
        DAYS + 1,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "a column renamed": (
        next_day(lambda rows: rows.rename({"load": "charge"})),
        DAYS + 1,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "a column of another type": (
        every_file(lambda rows: rows.with_columns(load=pl.lit("much"))),
        DAYS,
        Raised(SourceError, False, "column 'load', row 1: 'much' is not of type float"),
    ),
    "an empty day": (nothing, DAYS + 3, Raised(FeatureError, False, "no labelled row in the holdout span")),
    "a month without a row": (
        nothing,
        DAYS + 30,
        Raised(FeatureError, False, "the labels known by then are for 2026-01-01 00:01:00+00:00 to"),
    ),
    "a feature without a value": (
        every_file(lambda rows: rows.with_columns(load=NULL.cast(pl.Float64))),
        DAYS,
        Raised(DataHaltedError, False, "readings.load"),
    ),
    "labels without a value": (
        every_file(lambda rows: rows.with_columns(failed=NULL.cast(pl.Boolean))),
        DAYS,
        Raised(DataHaltedError, False, "readings.failed"),
    ),
    "one class": (
        every_file(lambda rows: rows.with_columns(failed=False)),
        DAYS,
        Raised(
            FeatureError,
            False,
            "binary needs exactly two classes among the training rows, 'failed' holds [0]",
        ),
    ),
    "too little": (nothing, 1, Raised(FeatureError, False, "nothing to train on: rows count from")),
}


@pytest.mark.parametrize("name", DATA)
def test_data_no_model_can_be_made_of_stop_the_run(tmp_path: Path, week: Path, name: str) -> None:
    change, end_day, raised = DATA[name]
    shutil.copytree(week, tmp_path, dirs_exist_ok=True)
    world = World(load_folder(tmp_path / "models" / "small"), Lake(str(tmp_path / "lake")))
    change(tmp_path / "lake" / "landing" / "readings")
    before = Standing.of(world.lake)
    raised.check(lambda: world.take("run_2", end_day))
    before.check(
        Standing.of(world.lake), "snapshots", "validations", "quarantine", "features", "training_sets"
    )
