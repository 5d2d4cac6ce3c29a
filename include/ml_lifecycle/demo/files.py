"""Files as the examples' sources send them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Interval


@contextmanager
def landing_folder(lake: Lake) -> Iterator[Path]:
    """A folder whose files lie below ``landing`` in the lake in the end: the lake's own, or one that is put.

    What is in an object store already stays: another upload of the same bytes would look like a new file.
    """
    if lake.local_root is not None:
        yield Path(lake.local_root) / "landing"
        return
    with tempfile.TemporaryDirectory(prefix="landing-") as name:
        yield Path(name)
        for file in sorted(path for path in Path(name).rglob("*") if path.is_file()):
            path = f"landing/{file.relative_to(name).as_posix()}"
            if not lake.exists(path):
                lake.put_file(path, file)


def rows_between(frame: pl.DataFrame, moment: str, window: Interval) -> pl.DataFrame:
    """Rows of ``window``; ``frame`` is sorted by ``moment``, so that a day costs no pass over all of it."""
    times = frame[moment]
    bounds = pl.Series([window.start, window.end], dtype=times.dtype)
    first, last = times.search_sorted(bounds, side="left")
    return frame.slice(first, last - first)


def write_csv(path: Path, rows: pl.DataFrame) -> Path:
    """Write the rows; the file appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    rows.write_csv(temporary, datetime_format="%Y-%m-%dT%H:%M:%SZ")
    os.replace(temporary, path)
    return path
