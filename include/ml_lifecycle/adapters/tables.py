"""Snapshot tables: canonical rows, the digest over them, and the Parquet files that hold them.

A table has six column types only (text, integer, float, boolean, UTC timestamp in microseconds, date). A
missing value is null: NaN counts as missing, and a column that a file lacks is null in all its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import numpy as np
import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.errors import SourceError
from ml_lifecycle.records import Snapshot, SnapshotFile, SnapshotTable, digest_of
from ml_lifecycle.spec.contract_rules import FieldType

TIMESTAMP = pl.Datetime("us", "UTC")

POLARS_TYPES: Mapping[FieldType, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "boolean": pl.Boolean(),
    "timestamp": TIMESTAMP,
    "date": pl.Date(),
}
ARROW_NAMES: Mapping[FieldType, str] = {
    "string": "string",
    "integer": "int64",
    "float": "double",
    "boolean": "bool",
    "timestamp": "timestamp[us, tz=UTC]",
    "date": "date32[day]",
}
_NULL = "null"
_ARROW_BY_POLARS: Mapping[pl.DataType, str] = {
    pl.Null(): _NULL,
    **{POLARS_TYPES[kind]: ARROW_NAMES[kind] for kind in POLARS_TYPES},
}
_POLARS_BY_ARROW = {name: dtype for dtype, name in _ARROW_BY_POLARS.items()}
_DIGEST_FORMAT = 1


def column_types(frame: pl.DataFrame) -> dict[str, str]:
    """``name → Arrow type`` of a canonical frame; ``null`` for a column without a type of its own."""
    return {name: _ARROW_BY_POLARS[dtype] for name, dtype in frame.schema.items()}


def merge_column_types(
    files: Iterable[tuple[str, Mapping[str, str]]],
    declared: Mapping[str, FieldType] | None = None,
    *,
    widen: bool = True,
) -> dict[str, str]:
    """The columns of a table whose files hold ``(file, columns)``: all of them, each with one type.

    Integers beside floats make floats; a column that is null everywhere is text.

    :param declared: columns' types: where files differ, the one that is not of its declared type is named
    :param widen: False refuses integers beside floats
    :raises SourceError: two files have types that do not go together. Retry: no.
    """
    merged: dict[str, tuple[str, str]] = {}
    for file, columns in files:
        for name, found in columns.items():
            known, known_file = merged.get(name, (found, file))
            wanted = (declared or {}).get(name)
            if known == _NULL:
                known, known_file = found, file
            elif {known, found} == {"int64", "double"} and wanted is None and widen:
                known = "double"
            elif found not in (known, _NULL):
                advice = "declare its type in the source's contract, or make the files agree"
                if wanted is not None:
                    wrong = file if found != ARROW_NAMES[wanted] else known_file
                    advice = f"the contract says {wanted}, and {wrong} has a value that is none"
                raise SourceError(
                    f"column {name!r} is {known} in {known_file} but {found} in {file}; {advice}"
                )
            merged[name] = (known, known_file)
    return {name: "string" if kind == _NULL else kind for name, (kind, _) in sorted(merged.items())}


def types_of(values: Iterable[object]) -> str:
    """The types of some values in words, missing ones left out."""
    return " and ".join(sorted({type(value).__name__ for value in values if value is not None})) or "nothing"


def canonical_order(frame: pl.DataFrame, first: Sequence[str]) -> pl.DataFrame:
    """Columns and rows in an order that depends on the rows alone: ``first``, then all others by name."""
    order = [*first, *sorted(set(frame.columns) - set(first))]
    return frame.select(order).sort(order, nulls_last=False)


def rows_digest(frame: pl.DataFrame) -> str:
    """Digest over the values of a frame in :func:`canonical_order`, whatever wrote or will write them.

    A column without any value does not count: a null and an absent cell are the same.
    """
    columns = {
        name: [kind, _column_digest(frame[name])]
        for name, kind in column_types(frame).items()
        if frame[name].null_count() < frame.height
    }
    return digest_of({"format": _DIGEST_FORMAT, "rows": frame.height, "columns": columns})


def _column_digest(column: pl.Series) -> str:
    digest = hashlib.sha256(np.packbits(column.is_null().to_numpy()).tobytes())
    if column.dtype == pl.String:
        filled = column.fill_null("")
        digest.update(filled.str.len_bytes().to_numpy().astype("<u4").tobytes())
        digest.update(str(filled.str.join("").item()).encode())
    elif column.dtype == pl.Float64:
        digest.update(column.fill_null(0.0).to_numpy().astype("<f8").tobytes())
    else:
        digest.update(column.to_physical().cast(pl.Int64).fill_null(0).to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def write_parquet(lake: Lake, path: str, frame: pl.DataFrame) -> str:
    """Write a frame to the lake atomically; returns ``path``."""
    return lake.write_bytes(path, parquet_bytes(frame))


def write_rows(lake: Lake, partition: str, frame: pl.DataFrame, event_time: str | None) -> SnapshotFile:
    """Store a partition's canonical rows under their digest; rows already there are not written again."""
    digest = rows_digest(frame)
    path = f"objects/{digest[:2]}/{digest}.parquet"
    if not lake.exists(path):
        write_parquet(lake, path, frame)
    times = frame[event_time] if event_time is not None and event_time in frame.columns else None
    return SnapshotFile(
        partition=partition,
        path=path,
        digest=digest,
        rows=frame.height,
        min_time=_moment(times.min()) if times is not None else None,
        max_time=_moment(times.max()) if times is not None else None,
    )


def read_rows(lake: Lake, file: SnapshotFile) -> pl.DataFrame:
    """A partition's rows as they were stored."""
    with lake.open(file.path) as stored:
        return pl.read_parquet(stored)


def _moment(value: object) -> datetime | None:
    """A timestamp as it is, a date as its midnight UTC."""
    if isinstance(value, datetime):
        return value
    return datetime.combine(value, time(), UTC) if isinstance(value, date) else None


def scan_files(lake: Lake, table: SnapshotTable, files: Sequence[SnapshotFile]) -> pl.LazyFrame:
    """Rows of some of a table's files, with all columns of the table in its types."""
    schema = {name: _POLARS_BY_ARROW[kind] for name, kind in table.columns.items()}
    if not files:
        return pl.LazyFrame(schema=schema)
    if lake.local_root is not None:
        return pl.scan_parquet(
            [lake.full_path(file.path) for file in files],
            schema=schema,
            missing_columns="insert",
            cast_options=pl.ScanCastOptions(integer_cast="allow-float"),
            glob=False,
            hive_partitioning=False,
        )
    # PyArrow reads through any fsspec filesystem; Polars' own object-store client takes other options.
    import pyarrow.dataset
    import pyarrow.fs

    dataset = pyarrow.dataset.dataset(
        [lake.full_path(file.path) for file in files],
        filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(lake.filesystem)),
        schema=pl.DataFrame(schema=schema).to_arrow().schema,
        format="parquet",
    )
    return pl.scan_pyarrow_dataset(dataset)


@dataclass(frozen=True)
class StoredRows:
    """Some files of a snapshot's table, whoever reads them.

    :param columns: the table's, as ``name → Arrow type``
    """

    lake: Lake
    columns: Mapping[str, str]
    files: tuple[SnapshotFile, ...]

    def scan(self) -> pl.LazyFrame:
        """For Polars."""
        return scan_files(self.lake, SnapshotTable(self.files, dict(self.columns)), self.files)


def read_table(lake: Lake, snapshot: Snapshot, name: str) -> pl.LazyFrame:
    """One source of a snapshot, whole: filters and projections reach down to the Parquet files.

    :raises SourceError: the snapshot has no such table. Retry: no.
    """
    if name not in snapshot.tables:
        raise SourceError(
            f"snapshot {snapshot.digest[:12]} of {snapshot.run.model} has no table {name!r}; "
            f"it has {', '.join(sorted(snapshot.tables))}"
        )
    table = snapshot.tables[name]
    return scan_files(lake, table, table.files)
