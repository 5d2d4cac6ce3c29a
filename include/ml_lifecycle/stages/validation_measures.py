"""What a contract asks of a source as a whole: rows, freshness, volume and distributions, as numbers."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.profiles.distance import missing_share, psi
from ml_lifecycle.profiles.profile import ProfileError, make_profile
from ml_lifecycle.records import ColumnSpec, Interval, Run
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.source import Source
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.validation_rules import Measure

_PROFILED_TYPES = {
    pl.Int64(): "int",
    pl.Float64(): "float",
    pl.String(): "string",
    pl.Boolean(): "bool",
}


def measures(
    source: Source, contract: Contract, run: Run, rows: pl.LazyFrame, previous: pl.LazyFrame | None
) -> list[Measure]:
    """Everything measured on a source that has a contract.

    :param previous: the source in the last validated snapshot; without it there are no distribution rules,
        for there is nothing to compare with
    """
    found = [*_row_count(source, contract, run, rows), *_freshness(source, contract, run, rows)]
    if contract.volume is not None and source.event_time is None:
        halts = contract.volume.severity == "halt"
        found.append(Measure("volume", None, halts, "rows a day", None, error="no event_time is declared"))
    for item in contract.fields:
        found += _shares(item, rows)
    if previous is not None:
        current = rows if source.event_time is None else rows.filter(_within(source.event_time, run.interval))
        for item in contract.fields:
            found += _distribution(item, current, previous)
    return found


def rows_by_day(rows: pl.LazyFrame, event_time: str, interval: Interval) -> pl.LazyFrame | None:
    """Columns ``day`` (ISO text) and ``rows`` for every whole UTC day of the interval; None without any."""
    first = _midnight(interval.start)
    first = first if first == interval.start else first + timedelta(days=1)
    end = _midnight(interval.end)
    if first >= end:
        return None
    days = pl.datetime_range(first, end, "1d", closed="left", time_unit="us", time_zone="UTC", eager=True)
    counts = (
        rows.filter(_within(event_time, Interval(first, end)))
        .group_by(pl.col(event_time).cast(TIMESTAMP).dt.truncate("1d").alias("day"))
        .agg(pl.len().cast(pl.Int64).alias("rows"))
    )
    joined = days.alias("day").to_frame().lazy().join(counts, on="day", how="left")
    return joined.sort("day").select(pl.col("day").dt.strftime("%Y-%m-%d"), pl.col("rows").fill_null(0))


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _within(event_time: str, interval: Interval) -> pl.Expr:
    return pl.col(event_time).cast(TIMESTAMP).is_between(interval.start, interval.end, closed="left")


def _row_count(source: Source, contract: Contract, run: Run, rows: pl.LazyFrame) -> list[Measure]:
    """At least one row in the interval, unless the contract says how many a day must hold."""
    volume = contract.volume
    if volume is not None and volume.min_rows_per_day is not None and source.event_time is not None:
        return []
    where = "in the table"
    if source.event_time is not None and run.interval.length:
        rows, where = rows.filter(_within(source.event_time, run.interval)), "in the interval"
    count = float(rows.select(pl.len()).collect(engine="streaming").item())
    halts = volume is None or volume.severity == "halt"
    return [Measure("rows", None, halts, f"at least 1 {where}", count, min=1)]


def _freshness(source: Source, contract: Contract, run: Run, rows: pl.LazyFrame) -> list[Measure]:
    """Hours from the newest row to ``as_of``."""
    if contract.freshness is None:
        return []
    limit = contract.freshness.max_staleness
    column, value, error = source.known_at or source.event_time, None, None
    if column is None:
        error = "the source declares no event_time"
    else:
        newest = rows.select(pl.col(column).cast(TIMESTAMP).max()).collect(engine="streaming").item()
        if newest is None:
            error = "there are no rows with a time"
        else:
            value = (run.as_of - newest) / timedelta(hours=1)
    expected = f"newest {column} at most {format_duration(limit)} before as_of (in hours)"
    halts = contract.freshness.severity == "halt"
    return [Measure("freshness", column, halts, expected, value, max=limit / timedelta(hours=1), error=error)]


def _shares(item: ContractField, rows: pl.LazyFrame) -> list[Measure]:
    """The share of each value that must be represented."""
    if item.min_share is None:
        return []
    column, values = pl.col(item.name), item.shared_by
    counted, error = None, "the column is missing"
    if item.name in rows.collect_schema():
        asked = [column.eq(value).sum().alias(str(n)) for n, value in enumerate(values)]
        try:
            counts = rows.select(*asked, column.count().alias("all")).collect(engine="streaming").row(0)
        except pl.exceptions.PolarsError as raised:  # another type than the values'
            error = str(raised)
        else:
            counted, error = (counts if counts[-1] else None), "there are no values"
    halts, least = item.severity == "halt", item.min_share
    return [
        Measure(
            *("min_share", item.name, halts, f"{value} in at least {least:.2%} of the rows with a value"),
            None if counted is None else counted[n] / counted[-1],
            min=least,
            error=error,
        )
        for n, value in enumerate(values)
    ]


def _distribution(item: ContractField, current: pl.LazyFrame, previous: pl.LazyFrame) -> list[Measure]:
    """Shift and rise of the missing share since the last validated snapshot."""
    asked = item.distribution
    if asked is None:
        return []
    shift, rise, error = None, None, None
    try:
        shift, rise = _shift(item.name, current, previous, with_psi=asked.max_psi is not None)
    except (ProfileError, pl.exceptions.ColumnNotFoundError) as raised:
        error = str(raised)
    halts = asked.severity == "halt"
    found = []
    if asked.max_psi is not None:
        text = f"a PSI of at most {asked.max_psi:g}"
        found.append(Measure("psi", item.name, halts, text, shift, max=asked.max_psi, error=error))
    if (limit := asked.max_missing_increase) is not None:
        text = f"a missing share risen by at most {limit:g}"
        found.append(Measure("missing_increase", item.name, halts, text, rise, max=limit, error=error))
    return found


def _shift(
    name: str, current: pl.LazyFrame, previous: pl.LazyFrame, *, with_psi: bool
) -> tuple[float | None, float]:
    before, now = (frame.select(name).collect(engine="streaming") for frame in (previous, current))
    kinds = {_PROFILED_TYPES.get(frame.schema[name]) for frame in (before, now)}
    if len(kinds) > 1 or None in kinds:
        raise ProfileError(
            f"a distribution needs numbers, text or booleans of one type on both sides, "
            f"not {before.schema[name]} and {now.schema[name]}"
        )
    columns = [ColumnSpec(name, kinds.pop(), nullable=True)]  # type: ignore[arg-type]
    reference = make_profile(before, columns)
    profile = make_profile(now, columns)
    rise = missing_share(profile.columns[name]) - missing_share(reference.columns[name])
    return (psi(reference.columns[name], profile.columns[name]) if with_psi else None), rise
