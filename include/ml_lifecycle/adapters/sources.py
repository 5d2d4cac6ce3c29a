"""Source files: finding them through fsspec, telling whether one changed, reading one whole.

What is read is canonical (see :mod:`ml_lifecycle.adapters.tables`): text is parsed by the source's
contract, integers and floats are 64 bits wide, timestamps are UTC in microseconds (those without a zone
are taken as UTC), NaN is null. Text of a CSV column that no contract declares stays text.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ml_lifecycle.adapters.canonical import BadText, canonical, utc
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.landed import Landings
from ml_lifecycle.adapters.landed_topic import TopicLandings
from ml_lifecycle.adapters.tables import TIMESTAMP
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.personal import personal_columns, without_values
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.contract_rules import FieldType
from ml_lifecycle.spec.source import Source

StorageOptions = Mapping[str, Mapping[str, Any]]
"""fsspec's storage options by connection id."""

# What filesystems call the thing that changes with a file's content, surest first.
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated")
_BLOCK_BYTES = 64 * 2**20
_TORN = (
    EOFError,
    csv.Error,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    pa.ArrowInvalid,
    pl.exceptions.PolarsError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class SourceFile:
    """One file as it was when listed.

    :param name: relative to the lake if it lies there, else its full path
    :param fingerprint: changes when the file does
    """

    name: str
    fingerprint: str
    path: str
    filesystem: Any

    def open(self, compression: Literal["infer"] | None = None) -> Any:
        """Open for reading bytes.

        :raises SourceNotReadyError: it has gone since it was listed. Retry: yes.
        """
        try:
            return self.filesystem.open(self.path, "rb", compression=compression)
        except FileNotFoundError as error:
            raise SourceNotReadyError(f"{self.name} was deleted while it was being read") from error


def list_files(name: str, source: Source, lake: Lake, storage_options: StorageOptions) -> list[SourceFile]:
    """The files of source ``name``, sorted; hidden ones (``.part``, ``_SUCCESS``) are left out.

    :raises SourceNotReadyError: there is none. Retry: yes, when it has arrived.
    :raises SourceError: its connection or its URL's protocol is unknown. Retry: no.
    """
    if source.fetched is not None:
        return _landed_files(name, source, lake)
    assert source.uri is not None  # the spec says so
    filesystem, pattern, base = _locate(name, source, source.uri, lake, storage_options)
    found: dict[str, dict[str, Any]] = filesystem.glob(pattern, detail=True)
    files = []
    for path, info in sorted(found.items()):
        if info["type"] != "file" or path.rsplit("/", 1)[-1].startswith((".", "_")):
            continue
        files.append(
            SourceFile(path.removeprefix(base), _fingerprint(filesystem, path, info), path, filesystem)
        )
    if not files:
        raise SourceNotReadyError(f"source {name!r}: no file matches {filesystem.unstrip_protocol(pattern)}")
    return files


def _landed_files(name: str, source: Source, lake: Lake) -> list[SourceFile]:
    landed: list[tuple[str, str]]
    if source.kafka is not None:
        topic = TopicLandings(lake, name, source).current()
        landed = [(one.path, one.digest) for one in topic if one.path is not None and one.digest is not None]
    else:
        landed = [(one.path, one.digest) for one in Landings(lake, name, source).current()]
    files = [SourceFile(path, digest, lake.full_path(path), lake.filesystem) for path, digest in landed]
    if not files:
        raise SourceNotReadyError(f"source {name!r}: nothing was fetched that has a row")
    return files


def _locate(
    name: str, source: Source, uri: str, lake: Lake, storage_options: StorageOptions
) -> tuple[Any, str, str]:
    """Filesystem, glob pattern, and the prefix to leave out of file names."""
    options: Mapping[str, Any] = {}
    if source.connection is not None:
        if source.connection not in storage_options:
            raise SourceError(
                f"source {name!r} names the connection {source.connection!r}, but no storage options were "
                f"given for it; given are: {', '.join(sorted(storage_options)) or 'none'}"
            )
        options = storage_options[source.connection]
    if "://" in uri or uri.startswith("/"):
        try:
            filesystem, pattern = fsspec.core.url_to_fs(uri, **options)
        except (ValueError, ImportError) as error:  # no such protocol; its package is not installed
            raise SourceError(f"source {name!r}: {uri!r} cannot be read: {error}") from error
        return filesystem, pattern, ""
    root = lake.root
    return lake.filesystem, f"{glob.escape(root)}/{uri}", f"{root}/"


def _fingerprint(filesystem: Any, path: str, info: Mapping[str, Any]) -> str:
    stamps = [f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None]
    if not stamps:
        return f"sha256={sha256(filesystem.cat_file(path))}"
    # A file replaced within one tick of the clock has the same time, but another inode.
    inode = [f"ino={info['ino']}"] if info.get("ino") else []
    return ";".join([f"size={info.get('size')}", *stamps, *inode])


def declared_types(source: Source, contract: Contract | None) -> dict[str, FieldType]:
    """The types that a source's columns are read as: the contract's, and times for the time columns."""
    types: dict[str, FieldType] = {}
    if contract is not None:
        types = {field.name: field.type for field in contract.fields}
    for column in (source.event_time, source.known_at):
        if column is not None and types.get(column) != "date":
            types[column] = "timestamp"
    return types


def read_file(name: str, source: Source, contract: Contract | None, file: SourceFile) -> pl.DataFrame:
    """The file's rows in canonical types, in no particular order.

    Columns have the names they have now, of ``source.renamed``. A typed column of another kind than declared,
    which cannot be that without losing a value, is left as it is: for :func:`merge_column_types` where other
    files have it as declared, and else for the validation to report.

    :raises SourceError: the file is torn, lacks a column the source names, holds text that is not of its
        column's type, or changes columns in a way that halts. Retry: no, the file must be replaced.
    :raises SourceNotReadyError: the file has gone. Retry: yes.
    """
    try:
        raw = _READERS[source.format](source, file)
    except _TORN as error:
        raise SourceError(
            f"source {name!r}: {file.name} is torn or no {source.format} file: {without_values(str(error))}"
        ) from error
    raw = _present_names(raw, source, f"source {name!r}: {file.name}")
    if source.kafka is not None:
        # No record of a chunk need have a field, and what was kept once cannot be replaced.
        raw = raw.with_columns(
            pl.lit(None).alias(name) for name in _needed(source) if name not in raw.columns
        )
    if lacking := [column for column in _needed(source) if column not in raw.columns]:
        raise SourceError(
            f"source {name!r}: {file.name} has no column {', '.join(map(repr, lacking))}; "
            f"it has {', '.join(raw.columns) or 'none'}"
        )
    _check_evolution(raw.columns, source, contract, f"source {name!r}: {file.name}")
    types = declared_types(source, contract)
    hidden = personal_columns([contract] if contract is not None else [])
    first_row = 2 if source.format == "csv" else 1
    columns = []
    for column in raw.iter_columns():
        where = f"source {name!r}: {file.name}, column {column.name!r}"
        found = canonical(column, types.get(column.name), where)
        if isinstance(found, BadText):
            shown = "a value" if column.name in hidden else repr(column[found.index])
            raise SourceError(
                f"{where}, row {found.index + first_row}: {shown} is not of type "
                f"{types[column.name]} ({found.count} such values in the file)"
            )
        columns.append(found)
    frame = pl.DataFrame(columns)
    for column_name in (source.event_time, source.known_at):
        if column_name is not None and frame.schema[column_name] not in (TIMESTAMP, pl.Date):
            raise SourceError(
                f"source {name!r}: {file.name}, column {column_name!r} holds {frame.schema[column_name]}, "
                "but must hold timestamps or dates"
            )
    return frame


def _present_names(raw: pl.DataFrame, source: Source, where: str) -> pl.DataFrame:
    """The columns by the names they have now."""
    now = {
        former: name for name, names in source.renamed.items() for former in names if former in raw.columns
    }
    for name in now.values():
        if len(both := [column for column in raw.columns if now.get(column, column) == name]) > 1:
            raise SourceError(
                f"{where} has {' and '.join(both)}, which are one column by the source's `renamed`"
            )
    return raw.rename(now)


def _check_evolution(columns: Sequence[str], source: Source, contract: Contract | None, where: str) -> None:
    if contract is None:
        return
    listed = [field.name for field in contract.fields]
    added = [column for column in columns if column not in listed and column not in _needed(source)]
    removed = [column for column in listed if column not in columns]
    for change, found in (("added", added), ("removed", removed)):
        if found and getattr(source.evolution, change) == "halt":
            verb = "has" if change == "added" else "lacks"
            raise SourceError(
                f"{where} {verb} {', '.join(found)}, and evolution.{change} is halt: change the contract "
                f"{contract.name!r}, say renamed, or allow it"
            )


def _needed(source: Source) -> list[str]:
    """The columns that the source itself names, each once: an event may be known when it happens."""
    named = dict.fromkeys((source.event_time, source.known_at, *source.keys))
    return [column for column in named if column is not None]


def newest_event(name: str, source: Source, file: SourceFile) -> datetime | None:
    """The newest event time in a file; of Parquet only the footer is read where it has statistics.

    :raises SourceError: as :func:`read_file`. Retry: no.
    """
    assert source.event_time is not None
    if source.format == "parquet" and (newest := _newest_in_footer(source.event_time, file)) is not None:
        return newest
    times = read_file(name, source, None, file)[source.event_time]
    return cast("datetime | None", times.cast(TIMESTAMP).max())


def _newest_in_footer(column: str, file: SourceFile) -> datetime | None:
    try:
        with file.open() as handle:
            footer = pa.parquet.read_metadata(handle)
        newest: list[datetime] = []
        for group in (footer.row_group(index) for index in range(footer.num_row_groups)):
            chunks = [group.column(index) for index in range(group.num_columns)]
            statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
            if statistics is None or not statistics.has_min_max or not isinstance(statistics.max, datetime):
                return None
            newest.append(statistics.max)
    except (pa.ArrowInvalid, OSError, OverflowError):
        return None  # reading the whole file then gives the one clear error
    found = pl.Series(newest).max() if newest else None
    return utc(pl.Series([found]))[0] if found is not None else None


def _read_parquet(_source: Source, file: SourceFile) -> pl.DataFrame:
    with file.open() as handle:
        return pl.read_parquet(io.BytesIO(handle.read()))


def _read_json(source: Source, file: SourceFile) -> pl.DataFrame:
    with file.open("infer") as handle:
        data = handle.read()
    if not data.strip():  # no rows are no lines, and then nothing names the columns
        return pl.DataFrame(schema=dict.fromkeys(_needed(source), pl.Null))
    return pl.read_ndjson(io.BytesIO(data.removeprefix(codecs.BOM_UTF8)), infer_schema_length=None)


def _read_csv(source: Source, file: SourceFile) -> pl.DataFrame:
    """Every cell as text. PyArrow's reader, because Polars' fills up a line that has too few fields."""
    with file.open("infer") as handle:
        data = handle.read().removeprefix(codecs.BOM_UTF8)
    # A name may hold a line break. What separates names is the same in Latin 1, which takes any rows.
    lines = io.TextIOWrapper(io.BytesIO(data), "latin-1", newline="")
    header = [name.encode("latin-1").decode() for name in next(csv.reader(lines), [])]
    if doubled := sorted({column for column in header if header.count(column) > 1}):
        raise pa.ArrowInvalid(f"the header names {', '.join(doubled)} more than once")
    if data.count(b'"') % 2:
        raise pa.ArrowInvalid("a quotation mark is never closed")
    table = pa.csv.read_csv(
        io.BytesIO(data),
        # With threads errors carry no row number. A row must fit into a block.
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.large_string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=list(source.null_values),
        ),
    )
    return cast("pl.DataFrame", pl.from_arrow(table))


_READERS: Mapping[str, Callable[[Source, SourceFile], pl.DataFrame]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
}
