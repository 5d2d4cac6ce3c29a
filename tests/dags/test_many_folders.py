"""Many model folders through the real dag-processor: a broken one breaks itself and no other."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from small_model import write_model

KINDS = 5


class Processor:
    """An Airflow of database and dag-processor only."""

    def __init__(self, home: Path, dags: Path) -> None:
        self._database = home / "airflow.db"
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._database}",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "2",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        config = home / "config"
        config.mkdir(parents=True)
        settings = "from ml_lifecycle_airflow.preload import preload\n\npreload()\n"
        (config / "airflow_local_settings.py").write_text(settings)
        self._airflow("db", "migrate")

    def parse(self) -> None:
        """Parse every file once."""
        self._airflow("dag-processor", "--num-runs", "1")

    def _airflow(self, *arguments: str) -> None:
        done = subprocess.run(
            ["airflow", *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def rows(self, query: str) -> list[tuple[str, ...]]:
        """What the metadata database holds."""
        with closing(sqlite3.connect(self._database)) as connection:
            return connection.execute(query).fetchall()

    def schedulable(self) -> set[str]:
        """DAGs that are serialised, not stale, and whose file has no import error."""
        return {
            dag_id
            for (dag_id,) in self.rows(
                "SELECT dag.dag_id FROM dag JOIN serialized_dag USING (dag_id) "
                "WHERE NOT dag.is_stale AND NOT dag.has_import_errors"
            )
        }

    def errors(self) -> dict[str, str]:
        """Import errors by file."""
        return dict(self.rows("SELECT filename, stacktrace FROM import_error"))  # type: ignore[arg-type]


@pytest.mark.parametrize("models", [6, pytest.param(100, marks=pytest.mark.full)])
def test_broken_folders_break_themselves_only(tmp_path: Path, models: int) -> None:
    dags = tmp_path / "dags"
    folders = [
        write_model(dags, f"model_{number:03}", schedules={"train": "0 3 * * 1"}) for number in range(models)
    ]
    misspelt, unfinished = folders[1], folders[models // 2]
    mend_misspelt = _break(misspelt / "model.yaml", lambda text: text.replace("owner:", "ownr:"))
    mend_unfinished = _break(unfinished / "dag.py", lambda text: text + "\nif True:\n")

    processor = Processor(tmp_path / "airflow", dags)
    processor.parse()
    whole = [folder.name for folder in folders if folder not in (misspelt, unfinished)]
    assert len(processor.schedulable()) == KINDS * (models - 2)
    assert {dag_id.split("__")[0] for dag_id in processor.schedulable()} == set(whole)
    errors = processor.errors()
    assert set(errors) == {f"models/{folder.name}/dag.py" for folder in (misspelt, unfinished)}
    assert "model.yaml:" in errors[f"models/{misspelt.name}/dag.py"]
    assert "owner" in errors[f"models/{misspelt.name}/dag.py"]
    assert "IndentationError" in errors[f"models/{unfinished.name}/dag.py"]

    mend_misspelt()
    mend_unfinished()
    processor.parse()
    assert processor.errors() == {}
    assert len(processor.schedulable()) == KINDS * models


def _break(path: Path, how: Callable[[str], str]) -> Callable[[], object]:
    whole = path.read_text()
    path.write_text(how(whole))
    return lambda: path.write_text(whole)
