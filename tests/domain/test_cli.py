"""The command line: what it prints, where, and its exit codes."""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from ml_lifecycle.cli import Command, build_parser, main


def test_new_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "returns", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'returns'}: written.")
    assert main(["check", str(tmp_path / "returns")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{tmp_path / 'returns'}: fine"
    assert out[1] == "  model         returns, binary: Will the next order of this customer be returned?"
    assert out[2] == "  sources       orders (orders)"
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
