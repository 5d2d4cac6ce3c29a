"""What a contract asks of a source as a whole: rows, freshness, volume and distributions, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

import polars as pl

from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.profiles.distance import missing_share, psi
from ml_lifecycle.profiles.profile import Columns, ProfileError, profile_batches
from ml_lifecycle.records import ColumnSpec, Interval, Run
from ml_lifecycle.spec.contract import Contract, ContractField
from ml_lifecycle.spec.source import Source
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.validation_rules import Measure

# Rows that a profile is made of at a time.
PIECE_ROWS = 131_072
_PROFILED_TYPES: dict[pl.DataType, Literal["int", "float", "string", "bool"]] = {
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
        found += _distributions(contract, current, previous)
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


def _distributions(contract: Contract, current: pl.LazyFrame, previous: pl.LazyFrame) -> list[Measure]:
    """Shift and rise of the missing share since the last validated snapshot, of every field that asks."""
    asked = {item.name: item.distribution for item in contract.fields if item.distribution is not None}
    before, now = previous.collect_schema(), current.collect_schema()
    errors = {name: _not_comparable(name, before, now) for name in asked}
    columns = [
        ColumnSpec(name, _PROFILED_TYPES[now[name]], nullable=True) for name in asked if errors[name] is None
    ]
    then, since = _profiled(previous, columns), _profiled(current, columns)
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


def _profiled(rows: pl.LazyFrame, columns: Sequence[ColumnSpec]) -> Columns:
    """Profiles of some columns, made piece by piece: memory does not grow with the rows."""
    if not columns:
        return {}
    chosen = rows.select(column.name for column in columns)
    batches = chosen.collect_batches(maintain_order=True, engine="streaming")
    return profile_batches(in_pieces(batches), columns).columns


def in_pieces(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in pieces of one size: what a sketch tells would else depend on the machine's threads."""
    held: list[pl.DataFrame] = []
    for batch in batches:
        held.append(batch)
        while sum(frame.height for frame in held) >= PIECE_ROWS:
            joined = pl.concat(held)
            yield joined.head(PIECE_ROWS)
            held = [joined.tail(-PIECE_ROWS)]
    if held:
        yield pl.concat(held)
