from __future__ import annotations

import gzip
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import at, contract, events, put

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.sources import list_files, newest_event, read_file
from ml_lifecycle.errors import SourceError, SourceNotReadyError
from ml_lifecycle.spec.source import Source


def read(folder: Path, uri: str, fields: dict[str, str] | None = None, **source: Any) -> pl.DataFrame:
    declared = Source(uri=f"{folder}/{uri}", format=source.pop("format", "csv"), **source)
    (file,) = list_files("events", declared, Lake(str(folder / "lake")), {})
    types = [{"name": name, "type": kind} for name, kind in (fields or {"unused": "string"}).items()]
    return read_file("events", declared, contract("events", types)["events"], file)


def column(folder: Path, cells: list[str], kind: str) -> list[Any]:
    (folder / "a.csv").write_text(
        "\n".join(["row,x", *(f"{i},{cell}" for i, cell in enumerate(cells))]) + "\n"
    )
    return read(folder, "a.csv", {"x": kind})["x"].to_list()


@pytest.mark.parametrize(
    ("kind", "cells", "values"),
    [
        ("integer", ["1", " -2 ", "", "3.0", "1e3"], [1, -2, None, 3, 1000]),
        ("integer", ["9007199254740993"], [9007199254740993]),
        ("float", ["1", "-2.5e-3", "", "NaN", "inf"], [1.0, -0.0025, None, None, float("inf")]),
        ("boolean", ["true", "False", "1", "0", ""], [True, False, True, False, None]),
        ("string", [" x ", "", '""', "NA", "007"], [" x ", None, "", "NA", "007"]),
        (
            "timestamp",
            [
                "2013-01-01",
                "2013-01-01 10:00",
                "2013-01-01T10:00:00Z",
                "2013-01-01 10:00:00.25",
                "2013-01-01T10:00:00.123456+02:00",
                "2013-01-01T10:00:00-0500",
            ],
            [
                at("2013-01-01"),
                at("2013-01-01T10:00"),
                at("2013-01-01T10:00"),
                at("2013-01-01T10:00:00.25"),
                at("2013-01-01T08:00:00.123456"),
                at("2013-01-01T15:00"),
            ],
        ),
        ("date", ["2013-01-31"], [at("2013-01-31").date()]),
    ],
)
def test_text_is_read_as_declared(tmp_path: Path, kind: str, cells: list[str], values: list[Any]) -> None:
    assert column(tmp_path, cells, kind) == values


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("integer", "2.5"),
        ("integer", "x"),
        ("integer", "99999999999999999999"),
        ("float", "1,5"),
        ("float", "12a"),
        ("boolean", "yes"),
        ("timestamp", "01/02/2013"),
        ("timestamp", "2013-02-30"),
        ("date", "2013-1"),
    ],
)
def test_bad_text_is_named_with_its_place(tmp_path: Path, kind: str, bad: str) -> None:
    cells = ["", f'"{bad}"', ""]
    with pytest.raises(SourceError) as raised:
        column(tmp_path, cells, kind)
    message = str(raised.value)
    # The header is row 1.
    assert f"a.csv, column 'x', row 3: {bad!r} is not of type {kind} (1 such values in the file)" in message


def test_personal_values_stay_out_of_messages(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("phone\nsecret\n")
    source = Source(uri=f"{tmp_path}/a.csv", format="csv")
    (file,) = list_files("users", source, Lake(str(tmp_path)), {})
    fields = contract("users", [{"name": "phone", "type": "integer", "pii": True}])
    with pytest.raises(SourceError, match="row 2: a value is not of type integer") as raised:
        read_file("users", source, fields["users"], file)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a,b\n1,2\n3\n", r"Row #3: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n3,4,5\n", r"Row #3: Expected 2 columns, got 3"),
        (b'a,b\n1,"2\n3,4\n', "quotation mark is never closed"),
        (b"a,a\n1,2\n", "names a more than once"),
        (b"a,b\n1,\xff\n", "UTF8"),
        (b"", "Empty CSV file"),
    ],
)
def test_torn_csv(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\.csv is torn or no csv file: .*{reason}"):
        read(tmp_path, "a.csv")


def test_truncated_files(tmp_path: Path) -> None:
    frame = events("2013-01-01", 5000)
    whole = put(tmp_path, "whole.csv", frame).read_bytes()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(whole)[:-2000])
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip at all")
    parquet = put(tmp_path, "c.parquet", frame)
    parquet.write_bytes(parquet.read_bytes()[:-100])
    (tmp_path / "d.json").write_text('{"a": 1}\n{"a": nu')
    for name, format in (
        ("a.csv.gz", "csv"),
        ("b.csv.gz", "csv"),
        ("c.parquet", "parquet"),
        ("d.json", "json"),
    ):
        with pytest.raises(SourceError, match=f"{name} is torn"):
            read(tmp_path, name, format=format)


def test_typed_columns_become_canonical(tmp_path: Path) -> None:
    naive = pl.Series(["2013-01-01T10:00:00.123456789"]).str.to_datetime(time_unit="ns")
    frame = pl.DataFrame(
        {
            "small": pl.Series([1], dtype=pl.UInt8),
            "single": pl.Series([0.5], dtype=pl.Float32),
            "category": pl.Series(["x"], dtype=pl.Categorical),
            "naive": naive,
            "elsewhere": naive.dt.replace_time_zone("America/New_York"),
            "whole": [3.0],
            "text_number": ["4"],
            "nothing": pl.Series([None]),
            "count": [1],
        }
    )
    put(tmp_path, "a.parquet", frame)
    declared = {"whole": "integer", "text_number": "integer", "nothing": "float", "count": "boolean"}
    row = read(tmp_path, "a.parquet", declared, format="parquet")
    assert row.to_dicts() == [
        {
            "small": 1,
            "single": 0.5,
            "category": "x",
            "naive": at("2013-01-01T10:00:00.123456"),
            "elsewhere": at("2013-01-01T15:00:00.123456"),
            "whole": 3,
            "text_number": 4,
            "nothing": None,
            "count": 1,  # no truth, which is for the validation to say
        }
    ]
    assert row.schema["nothing"] == pl.Float64
    assert row.schema["whole"] == pl.Int64


def test_whole_numbers_stay_exact_whatever_they_are_written_as(tmp_path: Path) -> None:
    near = [2**53 + 1, 2**53 + 2]
    put(tmp_path, "a.parquet", pl.DataFrame({"id": pl.Series(near).cast(pl.Decimal(38, 0))}))
    put(tmp_path, "b.parquet", pl.DataFrame({"id": pl.Series([10**20]).cast(pl.Decimal(38, 0))}))
    (tmp_path / "c.json").write_text(f'{{"id": {10**20}}}\n')
    assert read(tmp_path, "a.parquet", format="parquet")["id"].to_list() == near
    for name in ("b.parquet", "c.json"):
        with pytest.raises(SourceError, match="'id' holds integers of more than 64 bits; write them as text"):
            read(tmp_path, name, format=name.split(".")[1])


def test_times_that_python_cannot_hold_are_said(tmp_path: Path) -> None:
    edges = pl.Series([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
    put(tmp_path, "edges.parquet", pl.DataFrame({"at": edges, "on": edges.dt.date()}))
    row = read(tmp_path, "edges.parquet", {"on": "date"}, format="parquet", event_time="at").row(1)
    assert row == (edges[1], edges[1].date())
    milliseconds = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1000)
    for number, dtype in ((milliseconds * 10**6, pl.Datetime("us")), (2**62, pl.Datetime("ms"))):
        put(tmp_path, "a.parquet", pl.DataFrame({"at": pl.Series([number]).cast(dtype)}))
        source = Source(uri="a.parquet", event_time="at")
        (file,) = list_files("events", source, Lake(str(tmp_path)), {})
        with pytest.raises(SourceError, match="'at' holds times outside of the years 1 to 9999"):
            newest_event("events", source, file)
    (tmp_path / "a.csv").write_text("at\n+12013-01-01\n")
    with pytest.raises(SourceError, match="is not of type timestamp"):
        read(tmp_path, "a.csv", {"at": "timestamp"})


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'"a\nb",c\n1,007\n', [("1", "007")]),
        (b"a,c\r1,007\r", [("1", "007")]),
        (b"\xef\xbb\xbfa,c\n1,007\n", [("1", "007")]),
        (b'a,c\n1,"' + b"x" * 2_000_000 + b'"\n', [("1", "x" * 2_000_000)]),
    ],
    ids=["a line break in a name", "carriage returns", "a byte order mark", "a long cell"],
)
def test_csv_as_others_write_it(tmp_path: Path, data: bytes, rows: list[tuple[str, ...]]) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    assert read(tmp_path, "a.csv").rows() == rows


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read(tmp_path, "a.json", format="json").rows() == [(1,)]


def test_nested_values_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", pl.DataFrame({"list": [[1, 2]]}))
    with pytest.raises(SourceError, match=r"column 'list' has type List\(Int64\)"):
        read(tmp_path, "a.parquet", format="parquet")


def test_missing_declared_columns_and_times_that_are_none(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", pl.DataFrame({"id": [1], "at": [5]}))
    with pytest.raises(SourceError, match="has no column 'when'; it has id, at"):
        read(tmp_path, "a.parquet", format="parquet", event_time="when")
    with pytest.raises(SourceError, match="'at' holds Int64, but must hold timestamps or dates"):
        read(tmp_path, "a.parquet", format="parquet", event_time="at")


def test_listing(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for name in ("raw/b/2.csv", "raw/a/1.csv", "raw/_SUCCESS.csv", "raw/.hidden.csv"):
        put(tmp_path, name, pl.DataFrame({"a": [1]}))
    found = list_files("events", Source(uri="raw/**/*.csv", format="csv"), lake, {})
    assert [file.name for file in found] == ["raw/a/1.csv", "raw/b/2.csv"]
    again = list_files("events", Source(uri="raw/**/*.csv", format="csv"), lake, {})
    assert again == found
    put(tmp_path, "raw/b/2.csv", pl.DataFrame({"a": [1, 2]}))
    changed = list_files("events", Source(uri="raw/**/*.csv", format="csv"), lake, {})
    assert [old == new for old, new in zip(found, changed, strict=True)] == [True, False]
    for uri in ("nosuch://x/*.csv", "gs://bucket/*.csv"):
        with pytest.raises(SourceError, match=f"source 'events': '{re.escape(uri)}' cannot be read: "):
            list_files("events", Source(uri=uri, format="csv"), lake, {})
    (tmp_path / "raw/a/1.csv").unlink()
    with pytest.raises(SourceNotReadyError, match="deleted while"):
        read_file("events", Source(uri="raw/**/*.csv", format="csv"), None, found[0])


@pytest.mark.parametrize("statistics", [True, False])
def test_newest_event_of_parquet(tmp_path: Path, statistics: bool) -> None:
    events("2013-01-01", 9).write_parquet(tmp_path / "a.parquet", statistics=statistics, row_group_size=4)
    source = Source(uri="a.parquet", event_time="at")
    (file,) = list_files("events", source, Lake(str(tmp_path)), {})
    assert newest_event("events", source, file) == at("2013-01-03")
