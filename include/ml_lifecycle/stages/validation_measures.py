"""What a contract asks of a source as a whole: rows, freshness, volume and distributions, as numbers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import polars as pl

from ml_lifecycle.profiles.distance import missing_share, psi
from ml_lifecycle.profiles.profile import ProfileError
from ml_lifecycle.records import ColumnSpec, Interval, Run
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.source import Source
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.validation_facts import FactError, Facts, Span
from ml_lifecycle.stages.validation_rules import Measure

_PROFILED_TYPES: dict[pl.DataType, Literal["int", "float", "string", "bool"]] = {
    pl.Int64(): "int",
    pl.Float64(): "float",
    pl.String(): "string",
    pl.Boolean(): "bool",
}


def measures(
    source: Source, contract: Contract, run: Run, rows: Facts, previous: Facts | None
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
        span = None if source.event_time is None else Span(source.event_time, run.interval)
        found += _distributions(contract, rows, span, previous)
    return found


def rows_by_day(rows: Facts, event_time: str, interval: Interval) -> pl.LazyFrame | None:
    """Columns ``day`` (ISO text) and ``rows`` for every whole UTC day of the interval; None without any."""
    first = _midnight(interval.start)
    first = first if first == interval.start else first + timedelta(days=1)
    end = _midnight(interval.end)
    if first >= end:
        return None
    days = pl.datetime_range(first, end, "1d", closed="left", time_unit="us", time_zone="UTC", eager=True)
    counts = rows.by_day(Span(event_time, Interval(first, end))).lazy()
    joined = days.alias("day").to_frame().lazy().join(counts, on="day", how="left")
    return joined.sort("day").select(pl.col("day").dt.strftime("%Y-%m-%d"), pl.col("rows").fill_null(0))


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _row_count(source: Source, contract: Contract, run: Run, rows: Facts) -> list[Measure]:
    """At least one row in the interval, unless the contract says how many a day must hold."""
    volume = contract.volume
    if volume is not None and volume.min_rows_per_day is not None and source.event_time is not None:
        return []
    span, where = None, "in the table"
    if source.event_time is not None and run.interval.length:
        span, where = Span(source.event_time, run.interval), "in the interval"
    count = float(rows.count(span))
    halts = volume is None or volume.severity == "halt"
    return [Measure("rows", None, halts, f"at least 1 {where}", count, min=1)]


def _freshness(source: Source, contract: Contract, run: Run, rows: Facts) -> list[Measure]:
    """Hours from the newest row to ``as_of``."""
    if contract.freshness is None:
        return []
    limit = contract.freshness.max_staleness
    column, value, error = source.known_at or source.event_time, None, None
    if column is None:
        error = "the source declares no event_time"
    else:
        newest = rows.newest(column)
        if newest is None:
            error = "there are no rows with a time"
        else:
            value = (run.as_of - newest) / timedelta(hours=1)
    expected = f"newest {column} at most {format_duration(limit)} before as_of (in hours)"
    halts = contract.freshness.severity == "halt"
    return [Measure("freshness", column, halts, expected, value, max=limit / timedelta(hours=1), error=error)]


def _shares(item: ContractField, rows: Facts) -> list[Measure]:
    """The share of each value that must be represented."""
    if item.min_share is None:
        return []
    values, counted, error = item.shared_by, None, "the column is missing"
    if item.name in rows.schema:
        try:
            counts = rows.shares(item.name, values)
        except FactError as raised:
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


def _distributions(contract: Contract, current: Facts, span: Span | None, previous: Facts) -> list[Measure]:
    """Shift and rise of the missing share since the last validated snapshot, of every field that asks."""
    asked = {item.name: item.distribution for item in contract.fields if item.distribution is not None}
    before, now = previous.schema, current.schema
    errors = {name: _not_comparable(name, before, now) for name in asked}
    columns = [
        ColumnSpec(name, _PROFILED_TYPES[now[name]], nullable=True) for name in asked if errors[name] is None
    ]
    then = previous.profiles(columns, None) if columns else {}
    since = current.profiles(columns, span) if columns else {}
    found = []
    for name, rules in asked.items():
        shift, rise, error, halts = None, None, errors[name], rules.severity == "halt"
        if error is None:
            try:
                rise = missing_share(since[name]) - missing_share(then[name])
                shift = psi(then[name], since[name]) if rules.max_psi is not None else None
            except ProfileError as raised:
                error = str(raised)
        if rules.max_psi is not None:
            text = f"a PSI of at most {rules.max_psi:g}"
            found.append(Measure("psi", name, halts, text, shift, max=rules.max_psi, error=error))
        if (limit := rules.max_missing_increase) is not None:
            text = f"a missing share risen by at most {limit:g}"
            found.append(Measure("missing_increase", name, halts, text, rise, max=limit, error=error))
    return found


def _not_comparable(name: str, before: pl.Schema, now: pl.Schema) -> str | None:
    """Why a column cannot be compared; None if it can."""
    if name not in before or name not in now:
        return f"the column is missing in {'this' if name not in now else 'the last validated'} snapshot"
    if before[name] != now[name] or now[name] not in _PROFILED_TYPES:
        return (
            f"a distribution needs numbers, text or booleans of one type on both sides, "
            f"not {before[name]} and {now[name]}"
        )
    return None
