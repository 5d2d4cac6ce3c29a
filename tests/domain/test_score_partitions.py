"""What is scored: slices that are all the rows there are, each once, and files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from small_model import DAY, HOUR, MACHINES, START, land, write_model

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import FeatureError, SpecError
from ml_lifecycle.records import Interval, Run, Snapshot
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.score_partitions import lake_partitions, plan_scoring, planned_partitions
from ml_lifecycle.stages.scoring_rows import ScoringRows, build_scoring_rows, entity_rows, slice_rows

DAYS = 3
ENDS = START + DAYS * DAY
ALL = Interval(START, ENDS)
# A reading is asked about a minute later, and only what was asked before the end counts.
ASKED = MACHINES * 24 * DAYS

World = tuple[ModelFolder, Lake, Snapshot]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("small")
    lake = Lake(str(root / "lake"))
    land(lake, days=DAYS)
    folder = load_folder(write_model(root / "dags", scoring={"partition_rows": 500}))
    run = Run("small", "run", ENDS, ALL)
    return folder, lake, ingest(folder.spec, lake, run, contracts=folder.contracts)


@pytest.mark.parametrize("rows", [1, 7, MACHINES, 500, 10**6])
def test_slices_are_all_rows_each_once_and_none_has_too_many(world: World, rows: int) -> None:
    slices = slice_rows(*world, ALL, rows)
    assert sum(part.rows for part in slices) == ASKED
    assert all(0 < part.rows <= rows for part in slices)
    windows = list(dict.fromkeys(part.window for part in slices))
    assert (windows[0].start, windows[-1].end) == (START, ENDS)
    assert all(one.end == other.start for one, other in pairwise(windows))
    for window in windows:
        inside = [part for part in slices if part.window == window]
        assert [part.first for part in inside] == list(range(0, inside[0].of, rows))
        assert sum(part.rows for part in inside) == inside[0].of


@pytest.mark.parametrize("rows", [MACHINES // 2 + 1, 333])
def test_slices_read_one_by_one_are_the_rows_joined_at_once(world: World, rows: int) -> None:
    window = Interval(START + 90 * timedelta(minutes=1), START + 9 * HOUR)
    whole, _ = build_scoring_rows(*world, window)
    for reach in (None, window):
        with ScoringRows(*world, reach) as reading:
            parts = [reading.read(part) for part in slice_rows(*world, window, rows)]
        assert len(parts) > 1 or rows > whole.height
        assert pl.concat(parts).equals(whole, null_equal=True)


@pytest.mark.parametrize("there", ['convert_time_zone("Asia/Kolkata")', "replace_time_zone(None)"])
def test_moments_may_be_told_in_any_zone_or_none(tmp_path: Path, world: World, there: str) -> None:
    """As those of labels may; without a zone they are UTC."""
    shutil.copytree(world[0].path, tmp_path / "small")
    file = tmp_path / "small" / "features.py"
    told = f'"entities": readings.select("machine_id", asked.dt.{there})'
    file.write_text(file.read_text().replace('"entities": readings.select("machine_id", asked)', told))
    elsewhere = (load_folder(tmp_path / "small"), *world[1:])
    window = Interval(START + 5 * HOUR, START + 9 * HOUR)
    assert slice_rows(*elsewhere, window, 30) == slice_rows(*world, window, 30)
    assert entity_rows(*elsewhere, window).equals(entity_rows(*world, window))


def test_a_window_without_rows_has_no_slices(world: World) -> None:
    assert slice_rows(*world, Interval(ENDS, ENDS + DAY), 10) == ()
    assert slice_rows(*world, Interval(START, START), 10) == ()


def test_a_window_that_has_other_rows_than_were_counted_is_not_scored(world: World) -> None:
    first = slice_rows(*world, ALL, 500)[0]
    with ScoringRows(*world) as reading, pytest.raises(FeatureError, match="there were 1 rows to score"):
        reading.read(replace(first, of=1))


def test_a_plan_is_made_once_and_stands_for_the_run_that_asks(world: World, tmp_path: Path) -> None:
    folder, lake, snapshot = world
    plan = plan_scoring(folder, lake, snapshot, "training/small/t", "1")
    later = replace(snapshot, run=replace(snapshot.run, run_id="another"))
    assert plan_scoring(folder, lake, later, "training/small/t", "1") == replace(plan, run=later.run)
    assert plan_scoring(folder, lake, snapshot, "training/small/t", "2").digest != plan.digest
    with planned_partitions(folder, lake, plan) as partitions:
        assert [one.part for one in partitions] == list(plan.slices)
        assert len({one.digest for one in partitions}) == len({one.name for one in partitions}) == 3
    other = load_folder(write_model(tmp_path))
    with (
        pytest.raises(SpecError, match="changed since the scoring was planned: clear the task"),
        planned_partitions(other, lake, plan),
    ):
        pass


def test_files_are_those_below_a_folder_or_the_one_named(world: World) -> None:
    _, lake, _ = world
    names = [f"landing/readings/{START + day * DAY:%Y-%m-%d}.parquet" for day in range(DAYS)]
    assert [one.name for one in lake_partitions(lake, "landing/readings")] == names
    assert [one.name for one in lake_partitions(lake, names[1])] == names[1:2]
    with pytest.raises(LakeFileMissingError, match="no Parquet file 'nowhere', and none below it"):
        lake_partitions(lake, "nowhere")
