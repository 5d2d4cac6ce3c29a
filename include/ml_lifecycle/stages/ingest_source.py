"""Reading one source for a snapshot: its new files, and then the partitions whose rows changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.sources import SourceFile, declared_types, read_file
from ml_lifecycle.adapters.tables import (
    TIMESTAMP,
    canonical_order,
    column_types,
    merge_column_types,
    read_rows,
    rows_digest,
    write_rows,
)
from ml_lifecycle.records import Run, SnapshotFile, SnapshotTable, digest_of
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.source import Source

UNDATED = "undated"
_PARTITION_FORMATS = {"day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
_PARTITION = "__partition__"
# Of a source what says where its rows are, and not how they are read.
_PLACES = {"uri", "connection", "contract", "sql", "http", "kafka"}


@dataclass(frozen=True)
class FileReading:
    """One source file as it was read.

    :param parts: partition → digest of the rows it gave to it
    :param withheld: rows that were not visible yet
    :param newest: the newest event time in the file, withheld rows included
    """

    fingerprint: str
    parts: dict[str, str]
    withheld: int
    columns: dict[str, str]
    newest: AwareDatetime | None = None


@dataclass(frozen=True)
class SourceReading:
    """A source's files, and the digest of the declarations they were read by."""

    definition: str
    files: dict[str, FileReading]


class SourceReader:
    """Reads one source, a file at a time and then a partition at a time."""

    def __init__(self, name: str, source: Source, contract: Contract | None, lake: Lake, run: Run) -> None:
        self.name = name
        self.source = source
        self.contract = contract
        self.lake = lake
        self.run = run
        self.types = declared_types(source, contract)
        self.definition = digest_of(
            {
                "source": source.model_dump(mode="json", exclude=_PLACES),
                "types": self.types,
                "columns": _listed(source, contract),
            }
        )

    def read(
        self,
        files: Sequence[SourceFile],
        base_cut: tuple[datetime, datetime] | None,
        base: SourceReading,
        base_files: Mapping[str, SnapshotFile],
    ) -> tuple[SnapshotTable, SourceReading]:
        """The source's table and what was read for it, reusing what ``base`` already knows."""
        same_cut = base_cut == (self.run.as_of, self.run.interval.end)
        kept = {
            file.name: known
            for file in files
            if (known := base.files.get(file.name)) is not None
            and known.fingerprint == file.fingerprint
            and (same_cut or not known.withheld)
        }
        with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
            spill = _Spill(Path(folder))
            read = {file.name: self._read_file(file, spill) for file in files if file.name not in kept}
            now = {**kept, **read}
            columns = merge_column_types(
                ((name, now[name].columns) for name in sorted(now)),
                self.types,
                widen=self.source.evolution.widened == "allow",
            )
            touched = _changed_parts(base.files, now)
            grown = {label for label in touched & base_files.keys() if _only_grew(label, base.files, now)}
            for label in grown:
                spill.add(label, read_rows(self.lake, base_files[label]))
            for file in files:
                if file.name in kept and not (touched - grown).isdisjoint(kept[file.name].parts):
                    self._read_file(file, spill, touched - grown)
            written = {label: self._write(label, spill) for label in touched if spill.holds(label)}
        partitions = {label for reading in now.values() for label in reading.parts}
        table = SnapshotTable(
            tuple(written.get(label) or base_files[label] for label in sorted(partitions)), columns
        )
        return table, SourceReading(self.definition, {name: now[name] for name in sorted(now)})

    def _read_file(self, file: SourceFile, spill: _Spill, only: set[str] | None = None) -> FileReading:
        """Read a file once and lay its visible rows aside, by partition."""
        frame = read_file(self.name, self.source, self.contract, file)
        columns = column_types(frame)
        visible = frame.filter(self._visible()).with_columns(self._partition().alias(_PARTITION))
        parts = {}
        for part in visible.partition_by(_PARTITION):
            label = str(part[_PARTITION][0])
            if only is None or label in only:
                rows = self._ordered(part.drop(_PARTITION))
                parts[label] = rows_digest(rows)
                spill.add(label, rows)
        event_time = self.source.event_time
        newest = frame[event_time].cast(TIMESTAMP).max() if event_time is not None else None
        return FileReading(
            fingerprint=file.fingerprint,
            parts=parts,
            withheld=frame.height - visible.height,
            columns=columns,
            newest=newest if isinstance(newest, datetime) else None,
        )

    def _write(self, label: str, spill: _Spill) -> SnapshotFile:
        """Store one partition, made of all its files' rows."""
        rows = self._ordered(self._latest(spill.take(label)))
        return write_rows(self.lake, label, rows, self.source.event_time)

    def _visible(self) -> pl.Expr:
        if self.source.event_time is None:
            return pl.lit(True)
        moment, cut = pl.col(self.source.event_time).cast(TIMESTAMP), self.run.interval.end
        if self.source.known_at is not None:
            moment, cut = pl.coalesce(pl.col(self.source.known_at).cast(TIMESTAMP), moment), self.run.as_of
        return (moment < min(cut, self.run.as_of)).fill_null(True)

    def _partition(self) -> pl.Expr:
        if self.source.event_time is None:
            return pl.lit("all")
        label = pl.col(self.source.event_time).dt.strftime(_PARTITION_FORMATS[self.source.partition])
        return label.fill_null(UNDATED)

    def _latest(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Of rows with the same identity the newest known, see the module's text."""
        if not self.source.keys:
            return rows
        rows = rows.unique()
        known_at = self.source.known_at
        if known_at is None:
            return rows
        identity = [
            column for column in (*self.source.keys, self.source.event_time) if column in rows.columns
        ]
        return rows.filter(pl.col(known_at).eq_missing(pl.col(known_at).max().over(identity)))

    def _ordered(self, rows: pl.DataFrame) -> pl.DataFrame:
        # A key that is null in all of a partition's rows has no column there.
        first = dict.fromkeys((self.source.event_time, self.source.known_at, *self.source.keys))
        return canonical_order(rows, [column for column in first if column in rows.columns])


def _listed(source: Source, contract: Contract | None) -> list[str]:
    """The columns that files are held against one by one."""
    held = "halt" in (source.evolution.added, source.evolution.removed)
    return sorted(field.name for field in contract.fields) if contract is not None and held else []


def _changed_parts(before: Mapping[str, FileReading], now: Mapping[str, FileReading]) -> set[str]:
    """Partitions to which some file gives other rows than before."""
    changed = set()
    for name in before.keys() | now.keys():
        old = before[name].parts if name in before else {}
        new = now[name].parts if name in now else {}
        changed |= {label for label in old.keys() | new.keys() if old.get(label) != new.get(label)}
    return changed


def _only_grew(label: str, before: Mapping[str, FileReading], now: Mapping[str, FileReading]) -> bool:
    """Whether all that made a partition is still there, so that new rows can be added to what is stored.

    What is stored is the newest of those rows, and the newest of it and of new rows is the newest of all.
    """
    return all(
        name in now and now[name].parts.get(label) == reading.parts[label]
        for name, reading in before.items()
        if label in reading.parts
    )


class _Spill:
    """Rows laid aside on local disk by partition, so that only one file is in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[Path]] = {}

    def add(self, label: str, rows: pl.DataFrame) -> None:
        files = self._files.setdefault(label, [])
        path = self._folder / f"{label}.{len(files)}.parquet"
        typed = [name for name, dtype in rows.schema.items() if dtype != pl.Null]
        rows.select(typed).write_parquet(path, compression="lz4")
        files.append(path)

    def holds(self, label: str) -> bool:
        return label in self._files

    def take(self, label: str) -> pl.DataFrame:
        frames = [pl.read_parquet(path, glob=False, hive_partitioning=False) for path in self._files[label]]
        return pl.concat(frames, how="diagonal_relaxed")
