"""Bad source files: each is named, no snapshot is made, and what was there is untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from bad_input import Raised
from data_cases import contract, events, put, run, spec
from standing import Standing

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import (
    SourceError,
)
from ml_lifecycle.stages.ingest import ingest

FIELDS = [
    {"name": "id", "type": "integer"},
    {"name": "at", "type": "timestamp"},
    {"name": "value", "type": "float"},
]


def torn(keep: float) -> Callable[[Path], None]:
    """Cut a file's end off, as a copy that was interrupted leaves it."""

    def tear(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return tear


def rewritten(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        put(path.parent, path.name, change(events("2013-01-05", 40)))

    return rewrite


def replaced(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


TORN = "raw/2."
# name: the file's suffix, what happens to it, what it ends in
SOURCES: dict[str, tuple[str, Callable[[Path], Any], Raised]] = {
    "Parquet without its end": ("parquet", torn(0.99), Raised(SourceError, False, "2.parquet is torn")),
    "half a Parquet file": ("parquet", torn(0.5), Raised(SourceError, False, "2.parquet is torn")),
    "an empty Parquet file": ("parquet", replaced(b""), Raised(SourceError, False, "2.parquet is torn")),
    "zeros for Parquet": ("parquet", replaced(b"\0" * 4096), Raised(SourceError, False, "2.parquet is torn")),
    "a Parquet file of text": (
        "parquet",
        replaced(b"id,at\n1,2\n"),
        Raised(SourceError, False, "or no parquet"),
    ),
    "half a line of CSV": ("csv", torn(0.97), Raised(SourceError, False, "raw/2.csv")),
    "half a CSV quotation": (
        "csv",
        replaced(b'id,at,value\n1,"2013-01-05T00:00:00Z,1.0\n'),
        Raised(SourceError, False, "a quotation mark is never closed"),
    ),
    "CSV that is no UTF-8": (
        "csv",
        replaced("id,at,value\n1,2013-01-05T00:00:00Z,zwölf\n".encode("latin-1")),
        Raised(SourceError, False, "2.csv is torn"),
    ),
    "half a JSON object": ("json", torn(0.97), Raised(SourceError, False, "2.json is torn")),
    "JSON of another kind": ("json", replaced(b"[1, 2"), Raised(SourceError, False, "2.json is torn")),
    "a column gone": (
        "parquet",
        rewritten(lambda rows: rows.drop("at")),
        Raised(SourceError, False, "2.parquet has no column 'at'; it has id, value"),
    ),
    "a column renamed": (
        "csv",
        rewritten(lambda rows: rows.rename({"id": "ident"})),
        Raised(SourceError, False, "2.csv has no column 'id'; it has ident, at, value"),
    ),
    "text for numbers": (
        "csv",
        rewritten(lambda rows: rows.with_columns(value=pl.lit("many"))),
        Raised(SourceError, False, "column 'value', row 2: 'many' is not of type float (40 such values"),
    ),
    "numbers for times": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(at=pl.lit(5.5))),
        Raised(SourceError, False, "'at' holds Float64, but must hold timestamps or dates"),
    ),
    "another type than before": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(value=pl.lit("many"))),
        Raised(SourceError, False, "raw/2.parquet"),
    ),
    "lists in a column": (
        "parquet",
        rewritten(lambda rows: rows.with_columns(value=pl.concat_list("value"))),
        Raised(SourceError, False, "2.parquet, column 'value'"),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_source_file_is_named_and_no_snapshot_made(tmp_path: Path, name: str) -> None:
    suffix, spoil, raised = SOURCES[name]
    lake = Lake(str(tmp_path / "lake"))
    declared = {
        "uri": f"raw/*.{suffix}",
        "format": suffix,
        "event_time": "at",
        "keys": ["id"],
        "contract": "events",
    }
    model, contracts = spec(events=declared), contract("events", FIELDS)
    put(tmp_path / "lake" / "raw", f"1.{suffix}", events("2013-01-02", 12))
    first = ingest(model, lake, run("2013-01-01", "2013-01-05"), contracts=contracts)
    spoilt = put(tmp_path / "lake" / "raw", f"2.{suffix}", events("2013-01-05", 40))
    spoil(spoilt)
    before = Standing.of(lake)

    second = run("2013-01-05", "2013-01-16", run_id="run_2")
    raised.check(lambda: ingest(model, lake, second, contracts=contracts))
    before.check(Standing.of(lake))
    put(tmp_path / "lake" / "raw", spoilt.name, events("2013-01-05", 40))
    assert ingest(model, lake, second, contracts=contracts).digest != first.digest, "mended, it is taken"
