"""Parquet: how files of the lake are written, and reading and writing them a batch at a time.

All are written alike. Of a million rows of mixed columns zstd at level 3 makes a fifth less than lz4 and a
sixth less than snappy, and level 9 takes twice as long for no less. A row group is what a reader that streams
holds of each column, and what statistics let it leave out: larger ones are read whole for the newest rows of
a table in order of time, and a quarter of the rows a group takes a twelfth more room.

Two are written otherwise, and say why: the prediction log, and what is put aside on a local disk for moments.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import SourceError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


ROW_GROUP_ROWS = 131_072
COMPRESSION: Literal["zstd"] = "zstd"
COMPRESSION_LEVEL = 3

# As much of a column as is read ahead of its decoding, where a further read costs next to nothing. From an
# object store each column of a row group is one read.
_READ_BYTES = 2**20


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as a Parquet file; the same rows give the same bytes."""
    buffer = io.BytesIO()
    frame.write_parquet(
        buffer,
        compression=COMPRESSION,
        compression_level=COMPRESSION_LEVEL,
        statistics=True,
        row_group_size=ROW_GROUP_ROWS,
    )
    return buffer.getvalue()


def write_batches(lake: Lake, path: str, schema: pl.Schema, batches: Iterable[pl.DataFrame]) -> None:
    """Write rows that come in batches: the bytes that :func:`parquet_bytes` makes of them all at once.

    However they are cut, a row group or two is held. What ``batches`` raises comes out, and nothing is there.

    :raises NoSpaceError: the disk is full; what was there still is. Retry: yes, when there is room.
    """
    write_queries(lake, {path: register_io_source(lambda *_: iter(batches), schema=schema)})


def write_queries(lake: Lake, queries: Mapping[str, pl.LazyFrame]) -> None:
    """Compute some queries together, streaming, each into the file of its path.

    :raises NoSpaceError: the disk is full; what was there still is. Retry: yes, when there is room.
    """
    with ExitStack() as opened:
        files = {path: _Passed(opened.enter_context(lake.writing(path))) for path in queries}
        sinks = [
            rows.sink_parquet(
                cast("IO[bytes]", files[path]),
                compression=COMPRESSION,
                compression_level=COMPRESSION_LEVEL,
                statistics=True,
                row_group_size=ROW_GROUP_ROWS,
                lazy=True,
            )
            for path, rows in queries.items()
        ]
        try:
            pl.collect_all(sinks, engine="streaming")
        except pl.exceptions.ComputeError:
            for file in files.values():
                if file.failed is not None:  # of which Polars keeps the text only
                    raise file.failed from None
            raise


def parquet_rows(lake: Lake, path: str) -> int:
    """How many rows a file has."""
    with lake.open(path) as file:
        return int(pq.read_metadata(file).num_rows)


class _Passed(io.RawIOBase):
    """Passes on what is written, and remembers why it could not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failed: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failed = error
            raise


class ParquetInput:
    """A file of the lake that is being read."""

    def __init__(self, file: pq.ParquetFile, uri: str) -> None:
        self._file = file
        self._uri = uri
        self.schema: pa.Schema = file.schema_arrow.remove_metadata()

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns, in their order, at most ``rows`` rows at a time; the same batches each time.

        :raises SourceError: a page cannot be decoded. Retry: no.
        """
        try:
            for batch in self._file.iter_batches(rows, columns=list(columns), use_threads=False):
                yield batch.select(list(columns))
        except pa.ArrowInvalid as error:
            raise SourceError(f"{self._uri} is damaged: {error}") from error


@contextmanager
def reading_parquet(lake: Lake, path: str) -> Iterator[ParquetInput]:
    """Open a Parquet file of the lake.

    :raises LakeFileMissingError: there is no such file. Retry: no.
    :raises SourceError: it is no Parquet file. Retry: no.
    """
    local = lake.local_root is not None
    with nullcontext(lake.full_path(path)) if local else lake.open(path) as source:
        try:
            file = pq.ParquetFile(source, buffer_size=_READ_BYTES if local else 0, pre_buffer=False)
        except FileNotFoundError as error:
            raise LakeFileMissingError(f"no file {path!r} in {lake.url}") from error
        except pa.ArrowInvalid as error:
            raise SourceError(f"{lake.uri(path)} is no Parquet file: {error}") from error
        with file:
            yield ParquetInput(file, lake.uri(path))


class ParquetOutput:
    """A file of the lake that is being written; one row group a batch, or more where one is large."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self.rows = 0
        self.digest = ""
        """SHA-256 of the bytes, once the file is written."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        self._writer.write_batch(batch, ROW_GROUP_ROWS)
        self.rows += batch.num_rows


@contextmanager
def writing_parquet(lake: Lake, path: str, schema: pa.Schema) -> Iterator[ParquetOutput]:
    """A Parquet file that is there, whole, when the block has ended. The same batches give the same bytes.

    :raises NoSpaceError: the disk is full; what was there still is. Retry: yes, when there is room.
    """
    # Numbers hardly repeat, and trying whether they do costs more than writing them.
    repeating = [field.name for field in schema if _is_text(field.type)]
    with lake.writing(path) as file:
        hashed = _Hashed(file)
        with pq.ParquetWriter(
            hashed,
            schema,
            compression=COMPRESSION,
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=repeating,
        ) as writer:
            written = ParquetOutput(writer)
            yield written
        written.digest = hashed.digest.hexdigest()


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


class _Hashed(io.RawIOBase):
    """Passes on what is written, and takes its digest on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        self.digest.update(data)
        return self._file.write(data)
