"""The command line: what it prints, where, and its exit codes."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from delivery_kit import make_candidate, make_model
from small_disk import small_disk
from training_world import make_folder

from ml_lifecycle import cli
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.cli import Command, build_parser, main
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import to_json


def test_new_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "returns", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'returns'}: written.")
    assert main(["check", str(tmp_path / "returns")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'returns'}: fine"
    assert out[1] == "  model         returns, binary: Will the next order of this customer be returned?"
    assert out[2] == "  sources       orders (orders)"
    assert "  delivery      blue_green: all traffic at once, nothing is watched" in out
    assert len(out[-1].split()[-1]) == 64


def test_check_shows_every_mistake_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", "returns", "--into", str(tmp_path)])
    spec = tmp_path / "returns" / "model.yaml"
    spec.write_text(
        spec.read_text().replace("task: binary", "task: binry").replace("metric: psi", "metrc: psi")
    )
    capsys.readouterr()
    assert main(["check", str(tmp_path / "returns")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{spec}:9:7: task: must be one of binary, multiclass, regression, not 'binry'" in printed.err
    assert "did you mean 'metric'?" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "nowhere"], "nowhere: no such folder"),
        (["new", "../x"], "'../x' cannot name a model"),
        (["new", "x"], "dags/models: no such folder: make it, or say where with --into"),
        (["schema", "--output", "nowhere/model.json"], "nowhere/model.json"),
    ],
)
def test_wrong_input_exits_with_1(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [[], ["chek", "x"], ["check"], ["check", "a", "b"], ["schema", "dag"]])
def test_a_wrong_command_line_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: ml-lifecycle" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "contract"])
def test_schema_prints_or_writes_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", name]) == 0
    printed = capsys.readouterr().out
    assert main(["schema", name, "--output", str(tmp_path / "schema.json")]) == 0
    assert (tmp_path / "schema.json").read_text() == printed
    assert json.loads(printed)["$id"] == f"urn:airflow-ml-lifecycle:{name}:1"


def test_a_schema_that_finds_no_room_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        path, link = disk.folder / "schema.json", disk.folder / "link.json"
        path.write_text("former")
        link.symlink_to(path)
        disk.fill()
        assert main(["schema", "--output", str(link)]) == 1
        assert f"no room for {path}: No space left on device" in capsys.readouterr().err
        assert path.read_text() == "former"
        disk.free()
        assert main(["schema", "--output", str(link)]) == 0
        assert json.loads(path.read_text())["$id"] == "urn:airflow-ml-lifecycle:model:1"
        assert {one.name for one in disk.folder.iterdir()} == {path.name, link.name}


def test_a_schema_may_be_written_to_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        text = reader.submit(pipe.read_text)
        assert main(["schema", "--output", str(pipe)]) == 0
        assert json.loads(text.result(60))["$id"] == "urn:airflow-ml-lifecycle:model:1"
    assert pipe.is_fifo()


def test_a_name_of_two_words_is_a_group_with_a_subcommand() -> None:
    def arguments(parser: ArgumentParser) -> None:
        parser.add_argument("--deep", action="store_true")

    def run(found: Namespace) -> int:
        return 7 if found.deep else 0

    parser = build_parser(
        [
            Command("ledger verify", "verify it", arguments, run),
            Command("ledger head", "its head", arguments, run),
        ]
    )
    found = parser.parse_args(["ledger", "verify", "--deep"])
    assert found.run(found) == 7
    with pytest.raises(SystemExit):
        parser.parse_args(["ledger"])


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(found: Namespace) -> int:
        raise KeyboardInterrupt

    wait = Command("wait", "wait for it", lambda parser: None, interrupted)
    monkeypatch.setattr(cli, "build_parser", partial(build_parser, [wait]))
    assert main(["wait"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_check_runs_the_code_and_tells_all_in_one_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["new", "returns", "--into", str(tmp_path)])
    folder = tmp_path / "returns"
    for file, old, new in [
        ("model.yaml", "metric: skill, min", "metric: skil, min"),
        ("model.yaml", "users: [admin, alice]", "users: [admin]"),
        ("features.py", "import polars as pl", "import polar as pl"),
    ]:
        (folder / file).write_text((folder / file).read_text().replace(old, new))
    capsys.readouterr()
    assert main(["check", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "note: admin is the only one of approvers.users" in printed.err
    assert "'skil' is not a metric of binary models" in printed.err
    assert "ModuleNotFoundError: No module named 'polar'" in printed.err
    assert "Traceback" not in printed.err


@pytest.fixture
def scored(tmp_path: Path) -> list[str]:
    """The arguments that score one file with a model whose version 3 is registered."""
    lake, database = Lake(str(tmp_path / "lake")), Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    database.migrate()
    candidate = make_candidate(lake, 3, make_model(2.0))
    lake.write_json("versions/delays/3/manifest.json", to_json(candidate.version))
    due = pl.DataFrame({"id": ["a", "b"], "distance": [1.5, 2.5], "hour": [7, 8]})
    write_parquet(lake, "due/today.parquet", due)
    folder = str(make_folder(tmp_path / "models", "regression", name="delays").path)
    return ["score", folder, "due/", "--lake", lake.url, "--database", f"sqlite:///{tmp_path}/lifecycle.db"]


def test_score_writes_the_answers_and_says_where(
    scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*scored, "--version", "3"]) == 0
    said, where = capsys.readouterr().out.strip().rsplit(": ", 1)
    assert said == "2 rows in 1 files scored by version 3"
    answers = pl.read_parquet(f"{where}/*.parquet")
    assert answers.select("id", "prediction").rows() == [("a", 10.0), ("b", 13.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "delays has no champion to score with: promote one, or give --version"),
        ({"--version": "9"}, "delays has no version 9"),
        ({"--version": "3", "due/": "nowhere"}, "no Parquet file 'nowhere', and none below it"),
        ({"--database": "sqlite:////nowhere/x.db"}, "/nowhere/x.db: no such file"),
    ],
)
def test_score_says_what_is_missing(
    scored: list[str], change: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [change.get(word, word) if word == "due/" else word for word in scored]
    for option in sorted(change.keys() - {"due/"}):  # the last one given counts
        given += [option, change[option]]
    assert main(given) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_reading_a_folder_runs_none_of_its_code(tmp_path: Path) -> None:
    """Parsing a DAG file reads the folder: at each parse, so none of the big libraries may come with it."""
    main(["new", "returns", "--into", str(tmp_path)])
    code = (
        "import sys; from ml_lifecycle.spec.folder import load_folder; load_folder(sys.argv[1]);"
        "heavy = {'airflow', 'mlflow', 'feast', 'great_expectations', 'evidently', 'sklearn', 'onnxruntime', "
        "'pandas', 'polars', 'numpy', 'pyarrow', 'sqlalchemy'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "returns")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "include")},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
