"""Rows in files of a lake, as a snapshot has them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import StoredRows, column_types, write_parquet
from ml_lifecycle.records import SnapshotFile


def stored(lake: Lake, folder: str, frame: pl.DataFrame, sizes: Sequence[int]) -> StoredRows:
    """The frame in files of so many rows each, none of them empty of files."""
    files, start = [], 0
    for number, size in enumerate([*sizes, max(frame.height - sum(sizes), 0)]):
        part = frame.slice(start, size)
        path = write_parquet(lake, f"{folder}/{number}.parquet", part)
        files.append(SnapshotFile(str(number), path, f"{number:064x}", part.height))
        start += size
    return StoredRows(lake, column_types(frame), tuple(files))
