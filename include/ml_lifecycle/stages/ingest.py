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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar

from pydantic import AwareDatetime

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.adapters.sources import SourceFile, StorageOptions, list_files, newest_event
from ml_lifecycle.adapters.tables import read_table
from ml_lifecycle.errors import SourceError, SourceNotReadyError
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
from ml_lifecycle.spec.contract import Contract, contract_of
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Source
from ml_lifecycle.stages.fetch import Origins, fetch
from ml_lifecycle.stages.ingest_source import FileReading, SourceReader, SourceReading

__all__ = ["ingest", "not_arrived", "read_table"]


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
        reader = SourceReader(name, source, contract_of(name, source, contracts), lake, run)
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
