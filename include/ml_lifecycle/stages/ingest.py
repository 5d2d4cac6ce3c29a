"""Ingest: source files → a snapshot, one immutable version of a model's data.

**Which rows.** A snapshot holds, of every source, all rows visible to the run: those whose event time lies
before the end of its interval (and before its ``as_of``); where the source declares ``known_at``, those
known before ``as_of`` instead, whatever their event time, for a schedule is known ahead. A static source
(no event time) is read whole, as it is now. Rows without an event time go to a partition of their own,
``undated``, for the validation to find.

**Which version of a row.** Where ``keys`` are declared, equal rows count once, and of rows with the same
keys and event time the one with the newest ``known_at`` stays. Where nothing says which is newer, all stay:
the validation's ``keys`` rule then halts and shows them, rather than one being dropped by chance.

**What is read.** A *reading* remembers every source file's fingerprint and, by partition, the digest of
the rows it gave. A run starts from the newest reading that is no later than itself (a backfill never sees
a later one), reads the files that are new, changed or then held rows not yet visible, and rewrites the
partitions whose rows changed from all files that contribute to them. The result is a function of the
source files and the run's cut alone; the reading only saves work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.adapters.sources import (
    SourceFile,
    StorageOptions,
    declared_types,
    list_files,
    newest_event,
    read_file,
)
from ml_lifecycle.adapters.tables import (
    TIMESTAMP,
    canonical_order,
    column_types,
    merge_column_types,
    read_rows,
    read_table,
    rows_digest,
    write_rows,
)
from ml_lifecycle.errors import SourceError, SourceNotReadyError, SpecError
from ml_lifecycle.records import (
    Record,
    Run,
    Snapshot,
    SnapshotFile,
    SnapshotTable,
    digest_of,
    from_json,
    sortable,
    to_json,
)
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Source
from ml_lifecycle.stages.fetch import Origins, fetch

__all__ = ["ingest", "not_arrived", "read_table"]

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


@dataclass(frozen=True)
class Reading(Record):
    """What one run read: where a later run starts from."""

    schema: ClassVar[str] = "reading/1"
    as_of: AwareDatetime
    interval_end: AwareDatetime
    snapshot_path: str
    sources: dict[str, SourceReading]


def ingest(
    spec: ModelSpec,
    lake: Lake,
    run: Run,
    *,
    contracts: Mapping[str, Contract] | None = None,
    storage_options: StorageOptions | None = None,
    origins: Origins | None = None,
) -> Snapshot:
    """Make the snapshot of ``run``; the same rows give the same digest, and a rerun writes nothing.

    :param contracts: by name; CSV columns are read as the types they declare
    :param storage_options: fsspec's, by the connection id that a source names
    :param origins: of sources with ``sql``, ``http`` or ``kafka``, by the connection id that a source names
    :raises SourceNotReadyError: a source has no files, or does not answer. Retry: yes.
    :raises SourceError: a file is torn, or a value is not of its column's type. Retry: no.
    """
    fetch(spec, lake, origins or {})
    base = _Base.find(lake, run)
    tables: dict[str, SnapshotTable] = {}
    readings: dict[str, SourceReading] = {}
    for name, source in spec.sources.items():
        files = list_files(name, source, lake, storage_options or {})
        reader = _SourceReader(name, source, contract_of(name, source, contracts), lake, run)
        tables[name], readings[name] = reader.read(files, *base.of(name, reader.definition))
    digest = digest_of(
        {
            name: {"columns": table.columns, "files": {file.partition: file.digest for file in table.files}}
            for name, table in tables.items()
        }
    )
    path = f"snapshots/{run.model}/{digest}/manifest.json"
    _write_reading(lake, run.model, Reading(run.as_of, run.interval.end, path, readings))
    if lake.exists(path):
        return replace(from_json(Snapshot, lake.read_json(path)), run=run)
    snapshot = Snapshot(run=run, digest=digest, path=path, tables=tables)
    lake.write_json(path, to_json(snapshot))
    return snapshot


def not_arrived(
    spec: ModelSpec, lake: Lake, run: Run, *, storage_options: StorageOptions | None = None
) -> tuple[str, ...]:
    """The sources that have nothing for the run's interval yet, sorted.

    A source has arrived when one of its files has an event at or after the interval's start; a static one
    when it has a file, what is fetched always. A run whose interval is empty, because its moment was run
    before, waits for no more than a file. Files that the last reading knows are not opened, of a new Parquet
    file only the footer is read. A torn file counts as not arrived (it may still be written): ingest will
    name it.
    """
    base = _Base.find(lake, run)
    missing = []
    for name, source in spec.sources.items():
        if source.fetched is not None:
            continue  # asked when it is fetched
        try:
            files = list_files(name, source, lake, storage_options or {})
        except SourceNotReadyError:
            missing.append(name)
            continue
        known = base.readings.get(name, SourceReading("", {})).files
        if source.event_time is None or run.interval.start == run.interval.end:
            continue
        if not any(
            newest is not None and newest >= run.interval.start
            for newest in _newest_events(name, source, files, known)
        ):
            missing.append(name)
    return tuple(sorted(missing))


def _newest_events(
    name: str, source: Source, files: Sequence[SourceFile], known: Mapping[str, FileReading]
) -> Iterator[datetime | None]:
    """Each file's newest event: remembered ones first, then from the last name, likely the newest, back."""
    unknown = []
    for file in files:
        if file.name in known and known[file.name].fingerprint == file.fingerprint:
            yield known[file.name].newest
        else:
            unknown.append(file)
    for file in reversed(unknown):
        try:
            yield newest_event(name, source, file)
        except (SourceError, SourceNotReadyError):
            continue


def contract_of(name: str, source: Source, contracts: Mapping[str, Contract] | None) -> Contract | None:
    """The contract that a source names; None without one.

    :raises SpecError: it names one that does not exist. Retry: no.
    """
    if source.contract is None or contracts is None:
        return None
    if source.contract not in contracts:
        raise SpecError(
            f"source {name!r} names the contract {source.contract!r}; "
            f"contract.yaml has {', '.join(sorted(contracts)) or 'none'}"
        )
    return contracts[source.contract]


@dataclass(frozen=True)
class _Base:
    """The earlier reading a run starts from, with its snapshot's tables; empty on the first run."""

    cut: tuple[datetime, datetime] | None
    readings: Mapping[str, SourceReading]
    tables: Mapping[str, SnapshotTable]

    @classmethod
    def find(cls, lake: Lake, run: Run) -> _Base:
        """The newest reading no later than ``run`` whose snapshot was finished."""
        for path in sorted(lake.list(f"readings/{safe_name(run.model)}"), reverse=True):
            as_of, end = path.rsplit("/", 1)[-1].split("_")[:2]
            if as_of > sortable(run.as_of) or end > sortable(run.interval.end):
                continue
            reading = from_json(Reading, lake.read_json(path))
            if lake.exists(reading.snapshot_path):
                snapshot = from_json(Snapshot, lake.read_json(reading.snapshot_path))
                return cls((reading.as_of, reading.interval_end), reading.sources, snapshot.tables)
        return cls(None, {}, {})

    def of(
        self, name: str, definition: str
    ) -> tuple[tuple[datetime, datetime] | None, SourceReading, Mapping[str, SnapshotFile]]:
        """Cut, reading and files of one source; nothing if it was read by other declarations."""
        reading = self.readings.get(name)
        if reading is None or reading.definition != definition:
            return None, SourceReading(definition, {}), {}
        return self.cut, reading, {file.partition: file for file in self.tables[name].files}


def _write_reading(lake: Lake, model: str, reading: Reading) -> None:
    name = "_".join(
        (sortable(reading.as_of), sortable(reading.interval_end), digest_of(to_json(reading))[:16] + ".json")
    )
    path = f"readings/{safe_name(model)}/{name}"
    if not lake.exists(path):
        lake.write_json(path, to_json(reading))


class _SourceReader:
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
