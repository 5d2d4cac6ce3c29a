"""What was found in stretches of the log, kept for the next window that they are in.

A window of two weeks that moves on by a day has thirteen days in common with the one before. Of those nothing
is read again but what is kept here: it can be added up, and says which files and moments it is about. What
cannot be read, or is about other files, is made anew: it may be deleted at any time, and two may make it at
once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.records import canonical_json

_ENTRY = "ml_lifecycle"


@dataclass(frozen=True)
class Found:
    """What was found in some rows of the log.

    :param first: the earliest moment of a row; None without rows
    :param told: JSON
    :param rows: some of them
    """

    first: datetime | None
    last: datetime | None
    told: Mapping[str, Any]
    rows: pl.DataFrame


class KeptFindings:
    """One model's, in the lake where its reports are."""

    def __init__(self, lake: Lake, model: str, log: PredictionWindow) -> None:
        self._lake = lake
        self._folder = f"monitoring/{model}/stretches"
        self._log = log

    def find(self, stretch: Stretch, kind: str, make: Callable[[bool], Found]) -> Found | None:
        """What is kept of the stretch, or is made and kept now; None if none of its rows is in the window.

        :param kind: what is found, and all that it depends on beside the files
        :param make: finds it in all rows of the stretch, if given True, or in those of the window alone
        """
        path = f"{self._folder}/{stretch.name}-{kind}.parquet"
        found = self._load(path, stretch.digest)
        if found is None:
            found = make(True)
            if not self._log.unreadable.keys() & stretch.files.keys():
                self._lake.write_bytes(path, _written(found, stretch.digest))
        window = self._log.window
        if (
            found.first is None
            or found.last is None
            or found.last < window.start
            or found.first >= window.end
        ):
            return None
        if found.first in window and found.last in window:
            return found
        return make(False)

    def forget(self, before: date) -> None:
        """Delete what is kept of earlier days."""
        for day in self._lake.folders(self._folder):
            if day < before.isoformat():
                for path in list(self._lake.list(f"{self._folder}/{day}")):
                    self._lake.delete(path)

    def _load(self, path: str, digest: str) -> Found | None:
        try:
            data = self._lake.read_bytes(path)
        except LakeFileMissingError:
            return None
        try:
            entry = json.loads(pl.read_parquet_metadata(io.BytesIO(data))[_ENTRY])
            if entry["files"] != digest:
                return None
            first, last = (one and datetime.fromisoformat(one) for one in (entry["first"], entry["last"]))
            return Found(first, last, entry["told"], pl.read_parquet(io.BytesIO(data)))
        except (pl.exceptions.PolarsError, ValueError, KeyError, TypeError):
            return None


def _written(found: Found, digest: str) -> bytes:
    entry = {
        "files": digest,
        "first": found.first and found.first.isoformat(),
        "last": found.last and found.last.isoformat(),
        "told": found.told,
    }
    buffer = io.BytesIO()
    found.rows.write_parquet(buffer, metadata={_ENTRY: canonical_json(entry).decode()})
    return buffer.getvalue()
