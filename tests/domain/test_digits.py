"""The second example: its raw files, and its folder from them to an evaluated model."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from training_world import train_here

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo import digits
from ml_lifecycle.records import Interval, Run
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.evaluate import evaluate
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.validate import validate

FOLDER = Path(__file__).parents[2] / "dags" / "models" / "digits"
DAY = timedelta(days=1)
AS_OF = datetime(2024, 3, 8, 12, tzinfo=UTC)


def test_days_landed_one_by_one_are_the_span_landed_at_once(tmp_path: Path) -> None:
    whole, daily, start = tmp_path / "whole", tmp_path / "daily", digits.FIRST_SCAN
    digits.land(whole, start, start + 3 * DAY)
    for day in range(3):
        digits.land(daily, start + day * DAY, start + (day + 1) * DAY)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.csv"))
    assert len(files) == 6
    assert files == sorted(path.relative_to(daily) for path in daily.rglob("*.csv"))
    assert all((whole / file).read_bytes() == (daily / file).read_bytes() for file in files)


def test_every_image_arrives_once_and_is_read_eight_hours_later(tmp_path: Path) -> None:
    digits.land(tmp_path, digits.FIRST_SCAN, digits.FIRST_SCAN + 14 * DAY)
    scans = pl.read_csv(tmp_path / "scans/*.csv", try_parse_dates=True)
    readings = pl.read_csv(tmp_path / "readings/*.csv", try_parse_dates=True)
    assert scans.height == scans["image_id"].n_unique() == 1797
    both = scans.join(readings, on="image_id")
    assert both.height == 1797
    assert (both["read_at"] - both["scanned_at"]).unique().to_list() == [timedelta(hours=8)]
    assert sorted(both["digit"].unique()) == list(range(10))


def test_the_folder_makes_a_model_that_passes_its_gates(tmp_path: Path) -> None:
    lake, folder = Lake(str(tmp_path / "lake")), load_folder(FOLDER)
    digits.land(tmp_path / "lake" / "landing" / "digits", digits.FIRST_SCAN, AS_OF)
    run = Run("digits", "test", AS_OF, Interval(folder.spec.training.data.start, AS_OF))
    snapshot = ingest(folder.spec, lake, run, contracts=folder.contracts)
    assert validate(folder.spec, folder.contracts, lake, snapshot, None).failed == ()
    training_set = build_training_set(folder, lake, snapshot)
    assert (training_set.train_rows, training_set.holdout_rows) == (684, 288)
    holdout = lake.scan([training_set.holdout_path]).collect()
    first = digits.scans().filter(pl.col("image_id") == holdout["image_id"][0])
    pixels = [int(pixel) for pixel in first["pixels"].item().split(" ")]
    assert list(holdout.select(column.name for column in training_set.columns).row(0)) == pixels
    trained = train_here(lake, folder, tmp_path / "scratch", training_set)
    assert trained.training.classes == tuple(str(digit) for digit in range(10))
    evaluation = evaluate(folder.spec, lake, trained.training, None, None, AS_OF)
    assert [gate for gate in evaluation.gates if not gate.passed] == []
    golden = json.loads(lake.read_bytes(evaluation.golden_path))
    assert all(type(label) is int for label in golden["expected"]["label"]), "answered as they were given"
