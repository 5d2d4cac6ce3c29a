"""The example's raw files."""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ml_lifecycle.demo import flights
from ml_lifecycle.records import Interval

START = datetime(2013, 3, 8, 8, tzinfo=UTC)  # clocks go forward on the 10th
DAY = timedelta(days=1)


def read(folder: Path, table: str) -> pl.DataFrame:
    times = ["published_at", "scheduled_departure", "landed_at", "observed_at"]
    frame = pl.read_csv(folder / table / "*.csv", infer_schema_length=None)
    return frame.with_columns(
        pl.col(name).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
        for name in times
        if name in frame.columns
    )


def test_days_landed_one_by_one_are_the_span_landed_at_once(tmp_path: Path) -> None:
    whole, daily = tmp_path / "whole", tmp_path / "daily"
    flights.land(whole, START, START + 4 * DAY)
    for day in range(4):
        flights.land(daily, START + day * DAY, START + (day + 1) * DAY)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.csv"))
    assert files == sorted(path.relative_to(daily) for path in daily.rglob("*.csv"))
    assert len(files) == 4 * 3 + 1
    assert all((whole / file).read_bytes() == (daily / file).read_bytes() for file in files)


@pytest.mark.parametrize(
    ("table", "known_at"),
    [("flights", "published_at"), ("arrivals", "landed_at"), ("weather", "observed_at")],
)
def test_a_file_holds_what_became_known_in_its_span(tmp_path: Path, table: str, known_at: str) -> None:
    flights.land(tmp_path, START, START + 4 * DAY, every=3 * DAY)
    assert len(list((tmp_path / table).iterdir())) == 2
    known = read(tmp_path, table)[known_at]
    assert known.min() >= START
    assert known.max() < START + 4 * DAY


def test_the_schedule_is_published_before_the_day_it_is_for(tmp_path: Path) -> None:
    flights.land(tmp_path, START, START + DAY)
    asked = flights.schedule(Interval(START + DAY, START + 2 * DAY))
    published = read(tmp_path, "flights")
    assert (
        asked["flight_id"].to_list()
        == published.sort("scheduled_departure", "flight_id")["flight_id"].to_list()
    )
    assert asked["route"].str.starts_with("EWR-").any()
    assert asked["tailnum"].null_count() == 0


def test_a_landing_is_the_scheduled_arrival_plus_the_delay_across_time_zones(tmp_path: Path) -> None:
    """HA51 of 8 March 2013 was due in Honolulu at 15:40, ten hours behind UTC, and came 35 minutes late."""
    flights.land(tmp_path, START, START + 2 * DAY)
    arrivals = read(tmp_path, "arrivals")
    landed = dict(zip(arrivals["flight_id"], arrivals["landed_at"], strict=True))
    assert landed["2013-03-08-HA51-JFK"] == datetime(2013, 3, 9, 2, 15, tzinfo=UTC)
    assert arrivals["landed_at"].is_sorted()


def test_missing_data_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(flights.FlightDataMissingError, match=r"airflow-ml-lifecycle\[demo\]"):
        flights._read("flights.csv.zip")
