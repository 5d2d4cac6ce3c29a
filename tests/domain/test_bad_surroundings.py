"""Closed ports, full disks and wrong commands: one clear error each, and what was there is untouched."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import Raised
from small_disk import small_disk
from small_model import START
from standing import Standing

import ml_lifecycle
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.errors import (
    NoSpaceError,
)
from ml_lifecycle.ledger.database import Database, DatabaseUnavailableError
from ml_lifecycle.ledger.ledger import Ledger


def test_a_database_behind_a_closed_port_is_said_to_be_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    database = Database(f"postgresql://ann:canary@127.0.0.1:{port}/lifecycle")
    words = f"://ann:***@127.0.0.1:{port}/lifecycle cannot be used now: "

    def read() -> None:
        with database.read():
            raise AssertionError("nobody listens there")

    def write() -> None:
        with database.write():
            raise AssertionError("nobody listens there")

    for call in (read, write):
        Raised(DatabaseUnavailableError, True, words).check(call)
        Raised(DatabaseUnavailableError, True, "Connection refused").check(call)


def test_a_database_whose_disk_is_full_says_so_and_keeps_its_rows(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        lake = Lake(str(tmp_path / "disk" / "lake"))
        lake.write_bytes("a/x", b"old")
        database = Database(f"sqlite:///{tmp_path}/disk/lifecycle.db")
        database.migrate()
        ledger = Ledger(database)
        ledger.append("note", "small", {"number": 1}, START)
        before = Standing.of(lake, database)
        disk.fill()
        words = "is there room on its disk?"
        Raised(DatabaseUnavailableError, True, words).check(
            lambda: ledger.append("note", "small", {"number": 2}, START)
        )
        disk.free()
        before.check(Standing.of(lake, database))
        assert ledger.append("note", "small", {"number": 2}, START).seq == 2


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        lake = Lake(str(tmp_path / "disk" / "lake"))
        lake.write_bytes("a/x", b"old")
        before, large = Standing.of(lake), tmp_path / "large"
        large.write_bytes(b"n" * 200_000)
        for room in (0, 4096, 64 * 1024):
            disk.fill(leave=room)
            for write in (
                lambda: lake.write_bytes("a/x", b"n" * 200_000),
                lambda: lake.write_json("b/c/d/manifest.json", ["n"] * 50_000),
                lambda: lake.put_file("a/y", large),
            ):
                Raised(NoSpaceError, True, "make room, then try again").check(write)
            before.check(Standing.of(lake))
            assert not list((tmp_path / "disk" / "lake").rglob("*.tmp"))
        disk.free()
        lake.write_bytes("a/x", b"new")
        assert lake.read_bytes("a/x") == b"new"


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    """``ulimit -f``, and quotas like it: where no small disk can be mounted it stands in for one."""
    lake = Lake(str(tmp_path / "lake"))
    lake.write_bytes("a/x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        Raised(NoSpaceError, True, "File too large").check(lambda: lake.write_bytes("a/x", b"n" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lake.read_bytes("a/x") == b"old"
    assert os.listdir(tmp_path / "lake" / "a") == ["x"]


# name: what stands in the folder beforehand, the arguments, words on stderr
COMMANDS: dict[str, tuple[str | None, list[str], str]] = {
    "no folder": (None, ["check", "nowhere"], "nowhere: no such folder"),
    "a file for a folder": ("a file", ["check", "a file"], "a file: no such folder"),
    "an empty folder": ("empty/.keep", ["check", "empty"], "model.yaml: missing file: it holds the spec"),
    "a folder whose name is no text": (None, ["check", "b\udcff"], "no such folder"),
    "a name that climbs": (None, ["new", "../x", "--into", "."], "cannot name a model"),
    "a name with a line end": (None, ["new", "x\n", "--into", "."], "cannot name a model"),
    "a name with a look-alike": (None, ["new", "сhurn", "--into", "."], "cannot name a model"),
    "a template for a name": (None, ["new", "{{ ds }}", "--into", "."], "cannot name a model"),
    "a long name": (None, ["new", "x" * 64, "--into", "."], "cannot name a model"),
    "a taken name": ("churn/.keep", ["new", "churn", "--into", "."], "churn"),
    "nowhere to write to": (None, ["schema", "--output", "nowhere/model.json"], "nowhere/model.json"),
    "a folder to write to": ("out/.keep", ["schema", "--output", "out"], "out"),
    "a full disk": (None, ["schema", "--output", "/dev/full"], "No space left on device"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_exits_with_1_and_writes_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, arguments, words = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    if there is not None:
        Path(there).parent.mkdir(exist_ok=True)
        Path(there).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_folder_is_there_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        disk.fill(leave=8192)
        assert main(["new", "churn", "--into", str(disk.folder)]) == 1
        assert f"no room for {disk.folder / 'churn'}: No space left on device" in capsys.readouterr().err
        disk.free()
        assert main(["new", "churn", "--into", str(disk.folder)]) == 0


def test_a_lake_without_credentials_is_no_traceback(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": str(Path(ml_lifecycle.__file__).parents[1]),
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
    }
    command = ["validation", "docs", "churn", "--lake", "s3://nowhere/lake"]
    done = subprocess.run(
        [sys.executable, "-m", "ml_lifecycle.cli", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "Unable to locate credentials\n")


@pytest.mark.full  # a process of its own, that imports everything
def test_a_folder_below_one_whose_name_is_no_text_is_told_about(tmp_path: Path) -> None:
    parent = tmp_path / "b\udcff"
    parent.mkdir()
    assert main(["new", "churn", "--into", str(parent)]) == 0
    command = [sys.executable, "-m", "ml_lifecycle.cli", "check", str(parent / "churn")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(ml_lifecycle.__file__).parents[1]),
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    # Feast does not import what lies there; whatever it says is shown in a terminal's letters.
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"b\\udcff/churn/features.py" in done.stderr
    assert b"Traceback" not in done.stderr
