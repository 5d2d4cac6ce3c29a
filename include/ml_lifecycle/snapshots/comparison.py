"""How two snapshots differ: columns, and rows added, removed and changed, a partition at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import scan_files
from ml_lifecycle.records import Snapshot, SnapshotFile, SnapshotTable
from ml_lifecycle.spec.source import Source

_SIDE, _ROWS = "__side__", "__rows__"


@dataclass(frozen=True)
class TableDifference:
    """What one table has become.

    :param columns: ``name`` → its type before and after, None where it is not there; only those that differ
    :param changed: rows with the same identity and other values; 0 where the source declares no keys: there
        a changed row is one removed and one added
    :param partitions: label → rows added, removed and changed, of those with other rows
    """

    added: int
    removed: int
    changed: int
    columns: Mapping[str, tuple[str | None, str | None]]
    partitions: Mapping[str, tuple[int, int, int]]


def compare(
    lake: Lake, before: Snapshot, after: Snapshot, sources: Mapping[str, Source]
) -> dict[str, TableDifference]:
    """Every table that is in one of them. Partitions with the same digest are not read."""
    nothing = SnapshotTable((), {})
    found = {}
    for name in sorted(before.tables.keys() | after.tables.keys()):
        old, new = before.tables.get(name, nothing), after.tables.get(name, nothing)
        found[name] = _compare(lake, old, new, _identity(sources.get(name)))
    return found


def _identity(source: Source | None) -> tuple[str, ...]:
    if source is None or not source.keys:
        return ()
    return tuple(dict.fromkeys([*source.keys, *([source.event_time] if source.event_time else [])]))


def _compare(
    lake: Lake, before: SnapshotTable, after: SnapshotTable, identity: Sequence[str]
) -> TableDifference:
    names = sorted(before.columns.keys() | after.columns.keys())
    columns = {name: (before.columns.get(name), after.columns.get(name)) for name in names}
    old, new = _by_partition(before), _by_partition(after)
    partitions = {}
    for label in sorted(old.keys() | new.keys()):
        if _digest(old.get(label)) != _digest(new.get(label)):
            rows = [
                scan_files(lake, table, [files[label]] if label in files else []).collect()
                for table, files in ((before, old), (after, new))
            ]
            partitions[label] = _count(rows[0], rows[1], identity)
    added, removed, changed = (sum(counts[at] for counts in partitions.values()) for at in range(3))
    differing = {name: types for name, types in columns.items() if types[0] != types[1]}
    return TableDifference(added, removed, changed, differing, partitions)


def _by_partition(table: SnapshotTable) -> dict[str, SnapshotFile]:
    return {file.partition: file for file in table.files}


def _digest(file: SnapshotFile | None) -> str | None:
    return None if file is None else file.digest


def _count(before: pl.DataFrame, after: pl.DataFrame, identity: Sequence[str]) -> tuple[int, int, int]:
    """Rows added, removed and changed; of rows that are there several times each counts."""
    sides = [side.with_columns(pl.lit(sign).alias(_SIDE)) for side, sign in ((before, -1), (after, 1))]
    try:
        rows = pl.concat(sides, how="diagonal_relaxed")
    except pl.exceptions.SchemaError:  # types that have nothing in common, as of flags that became times
        other = [
            name
            for name in before.columns
            if after.schema.get(name, before.schema[name]) != before.schema[name]
        ]
        rows = pl.concat([side.cast(dict.fromkeys(other, pl.String)) for side in sides], how="diagonal")
    values = [name for name in rows.columns if name != _SIDE]
    net = rows.group_by(values).agg(pl.col(_SIDE).sum().alias(_ROWS)).filter(pl.col(_ROWS) != 0)
    added = int(net.filter(pl.col(_ROWS) > 0)[_ROWS].sum())
    removed = -int(net.filter(pl.col(_ROWS) < 0)[_ROWS].sum())
    if not identity or not set(identity) <= set(values):
        return added, removed, 0
    net = net.with_columns(plus=pl.col(_ROWS).clip(lower_bound=0), minus=-pl.col(_ROWS).clip(upper_bound=0))
    by_key = net.group_by(identity).agg(pl.col("plus", "minus").sum())
    changed = int(by_key.select(pl.min_horizontal("plus", "minus").sum()).item())
    return added - changed, removed - changed, changed
