"""Files as the examples' sources send them."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from ml_lifecycle.records import Interval


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
