"""The lake, on a folder and on an object store held in memory."""

import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fsspec
import polars as pl
import pyarrow.parquet
import pytest
from s3_kit import S3Store

from ml_lifecycle.adapters.lake import (
    Lake,
    LakeFileMissingError,
    file_sha256,
    outage_said,
    safe_name,
    sha256,
)
from ml_lifecycle.adapters.local_files import no_room_said
from ml_lifecycle.adapters.parquet import ROW_GROUP_ROWS, writing_parquet
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import IntegrityError, NoSpaceError, ServerUnavailableError, UnsafeNameError


@pytest.fixture(params=["folder", "object store", "S3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path / "lake"))
    if request.param == "S3":
        store: S3Store = request.getfixturevalue("s3")
        return store.new_lake()
    return Lake(f"memory://bucket-{uuid.uuid4().hex}/prefix")


def test_what_is_written_can_be_read(lake: Lake) -> None:
    assert lake.write_bytes("a/b.bin", b"\x00\x01") == "a/b.bin"
    assert lake.read_bytes("a/b.bin") == b"\x00\x01"
    with lake.open("a/b.bin") as file:
        file.seek(1)
        assert file.read() == b"\x01"
    lake.write_bytes("a/b.bin", b"other")
    assert lake.read_bytes("a/b.bin") == b"other"
    with fsspec.open(lake.uri("a/b.bin"), "rb", **lake.storage_options) as file:
        assert file.read() == b"other"


def test_json_is_written_readably_and_the_same_for_the_same_value(lake: Lake) -> None:
    lake.write_json("x.json", {"b": 1, "a": "é"})
    assert lake.read_bytes("x.json").decode() == '{\n "a": "é",\n "b": 1\n}'
    assert lake.read_json("x.json") == {"a": "é", "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        lake.write_json("x.json", {"a": float("nan")})
    assert lake.read_json("x.json") == {"a": "é", "b": 1}


def test_what_is_no_json_says_which_file(lake: Lake) -> None:
    lake.write_bytes("x.json", b'{"a": 1')
    with pytest.raises(IntegrityError, match=r"x\.json is not JSON"):
        lake.read_json("x.json")


def test_a_digest_is_checked(lake: Lake) -> None:
    lake.write_bytes("m.onnx", b"model")
    assert lake.read_bytes("m.onnx", sha256(b"model")) == b"model"
    with pytest.raises(IntegrityError, match=r"m\.onnx has digest 9372c470.*, expected 0000"):
        lake.read_bytes("m.onnx", "0000")


def test_files_are_put_whole(lake: Lake, tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "local").write_bytes(content)
    assert lake.put_file("a/copy", tmp_path / "local") == "a/copy"
    assert lake.read_bytes("a/copy", sha256(content)) == content
    with pytest.raises(FileNotFoundError):
        lake.put_file("a/copy", tmp_path / "nothing")
    assert lake.read_bytes("a/copy") == content


def test_a_file_is_written_piece_by_piece_and_is_there_whole_or_not_at_all(lake: Lake) -> None:
    lake.write_bytes("a/b.bin", b"before")
    with lake.writing("a/b.bin") as file:
        file.write(b"one, ")
        assert lake.read_bytes("a/b.bin") == b"before"
        file.write(b"two")
    assert lake.read_bytes("a/b.bin") == b"one, two"
    with suppress(ZeroDivisionError), lake.writing("a/b.bin") as file:
        file.write(b"half of it")
        _ = 1 / 0
    assert lake.read_bytes("a/b.bin") == b"one, two"
    assert list(lake.list("a")) == ["a/b.bin"]


def test_a_file_s_digest_is_that_of_its_bytes(lake: Lake) -> None:
    lake.write_bytes("a/b.bin", b"some" * 10**6)
    assert lake.digest("a/b.bin") == sha256(b"some" * 10**6)
    with pytest.raises(LakeFileMissingError, match=r"no file 'a/c\.bin'"):
        lake.digest("a/c.bin")


def test_files_are_got_whole_or_refused(lake: Lake, tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    lake.write_bytes("a/large", content)
    local = tmp_path / "local"
    local.write_bytes(b"of before" * 2**20)
    lake.get_file("a/large", local, sha256(content))
    assert local.read_bytes() == content
    assert file_sha256(local) == sha256(content)
    with pytest.raises(IntegrityError, match=r"a/large has digest .*, expected 0000"):
        lake.get_file("a/large", local, "0000")
    with pytest.raises(LakeFileMissingError):
        lake.get_file("a/nothing", local, "0000")
    with pytest.raises(NoSpaceError, match="no room for /dev/full"):
        lake.get_file("a/large", "/dev/full", sha256(content))


@pytest.mark.parametrize("write", [pl.DataFrame.write_ipc, pl.DataFrame.write_parquet])
def test_a_full_disk_is_told_whatever_writes(write: Callable[[pl.DataFrame, str], None]) -> None:
    """Polars raises errors of its own, or none with a number."""
    with pytest.raises(NoSpaceError, match="no room for it: No space left on device"), no_room_said("it"):
        write(pl.DataFrame({"number": range(10_000)}), "/dev/full")
    with pytest.raises(FileNotFoundError), no_room_said("it"):
        write(pl.DataFrame({"number": range(10)}), "/nowhere/file")


def test_only_what_is_half_written_is_swept(lake: Lake) -> None:
    for path in ("s/b/2", "s/a.tmp", "t/x"):
        lake.write_bytes(path, b"x")
    if lake.local_root:
        for folder in ("s", "s/b", "t"):
            (Path(lake.local_root) / folder / ".0123.tmp").write_bytes(b"half")
    lake.sweep("s")
    lake.sweep("nothing")
    assert [*lake.list("s"), *lake.list("t")] == ["s/a.tmp", "s/b/2", "t/x"]
    if lake.local_root:
        assert [str(path) for path in Path(lake.local_root).rglob(".*")] == [f"{lake.local_root}/t/.0123.tmp"]


@pytest.mark.parametrize("path", ["nothing", "a"])
def test_a_file_that_is_not_there(lake: Lake, path: str) -> None:
    lake.write_bytes("a/file", b"x")
    assert not lake.exists(path)
    with pytest.raises(LakeFileMissingError, match=f"no file '{path}' in "):
        lake.read_bytes(path)
    with pytest.raises(LakeFileMissingError, match=f"no file '{path}' in "):
        lake.open(path).read()
    lake.delete(path)
    assert lake.read_bytes("a/file") == b"x"


def test_a_file_below_a_file_is_not_there(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write_bytes("a", b"x")
    assert not lake.exists("a/b")
    for call in (lake.read_bytes, lake.open):
        with pytest.raises(LakeFileMissingError, match="no file 'a/b' in "):
            call("a/b")
    lake.delete("a/b")


def test_of_a_store_that_does_not_answer_nothing_is_said_to_be_missing() -> None:
    """What stages find missing they make anew."""
    nobody = {"endpoint_url": "http://127.0.0.1:9", "region_name": "eu-central-1"}
    retries = {"retries": {"max_attempts": 0}}
    away = Lake("s3://b/x", {"key": "k", "secret": "s", "client_kwargs": nobody, "config_kwargs": retries})
    with pytest.raises(ServerUnavailableError, match="a lake does not answer"), outage_said():
        away.exists("manifest.json")
    with pytest.raises(ServerUnavailableError, match="a lake does not answer"), outage_said():
        list(away.list("snapshots"))


def test_delete(lake: Lake) -> None:
    lake.write_bytes("a/file", b"x")
    lake.delete("a/file")
    assert not lake.exists("a/file")
    lake.delete("a/file")


def test_files_are_listed_below_a_prefix_without_temporary_ones(lake: Lake) -> None:
    for path in ("s/b/2", "s/a/1", "s/c", "t/x"):
        lake.write_bytes(path, b"x")
    if lake.local_root:
        (Path(lake.local_root) / "s" / ".0123.tmp").write_bytes(b"half")
    assert list(lake.list("s")) == ["s/a/1", "s/b/2", "s/c"]
    assert list(lake.list("nothing")) == []


def test_another_lake_object_sees_a_new_file_at_once(lake: Lake) -> None:
    other = Lake(lake.url, lake.storage_options)
    lake.write_bytes("s/1", b"x")
    assert list(other.list("s")) == ["s/1"]
    lake.write_bytes("s/2", b"x")
    assert list(other.list("s")) == ["s/1", "s/2"]
    assert other.exists("s/2")


HOSTILE = [
    *("", ".", "..", "../x", "a/../b", "a/..", "a..b", "/etc/passwd", "a//b", "a/", "/a", ".hidden", "a/.x"),
    *(
        "a\\b",
        "a\nb",
        "a\n",
        "a\x00",
        "a b",
        "ä",
        "-rf",
        "~",
        "$HOME",
        "{{ds}}",
        "%2e%2e",
        "a:b",
        "a*",
        "a?b#c",
    ),
    "a" * 201,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused_everywhere(lake: Lake, path: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"x")
    for call in (
        lake.exists,
        lake.read_bytes,
        lake.read_json,
        lake.open,
        lake.delete,
        lake.full_path,
        lake.uri,
        lambda path: lake.write_bytes(path, b"x"),
        lambda path: lake.write_json(path, {}),
        lambda path: lake.put_file(path, tmp_path / "local"),
        lambda path: lake.get_file(path, tmp_path / "local", "0"),
        lake.sweep,
        lambda path: list(lake.list(path)),
    ):
        with pytest.raises(UnsafeNameError, match="cannot be a path segment"):
            call(path)
    assert sorted(os.listdir(tmp_path)) == ["local"]


@pytest.mark.parametrize("name", ["a", "2013-04", "train.parquet", "date=2013-04-01", "A_b-c.1", "a" * 200])
def test_safe_names_stay_as_they_are(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("url", ["", "/", "//", "s3://", "memory://", "file:///"])
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(UnsafeNameError, match="is no lake"):
        Lake(url)


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lake = Lake("lake/")
    lake.write_bytes("x", b"1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lake.read_bytes("x") == b"1"
    assert lake.uri("x") == f"{tmp_path}/lake/x"
    assert Lake(f"file://{tmp_path}/lake").uri("x") == f"{tmp_path}/lake/x"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.write_bytes("a/x", b"old")
    (tmp_path / "lake" / "a" / "y").mkdir()
    with pytest.raises(OSError, match="directory"):
        lake.write_bytes("a/y", b"new")  # a folder cannot be replaced by a file
    with pytest.raises(TypeError):
        lake.write_bytes("a/x", "text")  # type: ignore[arg-type]
    assert lake.read_bytes("a/x") == b"old"
    assert sorted(os.listdir(tmp_path / "lake" / "a")) == ["x", "y"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"))
    contents = [bytes([number]) * (2**18 + number) for number in range(4)]
    whole = {sha256(content) for content in contents}
    lake.write_bytes("current", contents[0])
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(100):
                lake.write_bytes("current", contents[number % 4])
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(sha256(lake.read_bytes("current")))
    writer.join()
    assert seen <= whole
    assert os.listdir(tmp_path / "lake") == ["current"]


def test_files_are_written_in_groups_that_readers_can_leave_out(tmp_path: Path) -> None:
    """Snapshots, landings, training sets and references; :func:`writing_parquet` writes scores alike."""
    rows = pl.DataFrame({"at": range(2 * ROW_GROUP_ROWS + 1), "name": "x"})
    lake = Lake(str(tmp_path))
    write_parquet(lake, "whole.parquet", rows)
    table = rows.to_arrow()
    with writing_parquet(lake, "batches.parquet", table.schema) as output:
        for batch in table.combine_chunks().to_batches():
            output.write(batch)
    for name in ("whole", "batches"):
        footer = pyarrow.parquet.read_metadata(tmp_path / f"{name}.parquet")
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        assert max(group.num_rows for group in groups) <= ROW_GROUP_ROWS
        assert len(groups) == 3
        assert {group.column(0).compression for group in groups} == {"ZSTD"}
        assert all(group.column(0).statistics.has_min_max for group in groups)
