"""``dags/`` as the dag-processor sees it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ["mlflow", "feast", "great_expectations", "evidently", "sklearn", "onnxruntime", "pandas"]

PARSE = f"""
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
print("PARSED " + json.dumps({{
    "dags": {{dag_id: sorted(dag.task_ids) for dag_id, dag in bag.dags.items()}},
    "errors": bag.import_errors,
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
}}))
"""


def parse(folder: Path, home: Path) -> dict[str, Any]:
    environment = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / root) for root in ("include", "operators", "plugins")),
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("PARSED "))
    return dict(json.loads(line.removeprefix("PARSED ")))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return parse(REPOSITORY / "dags", tmp_path_factory.mktemp("airflow"))


def test_every_dag_parses(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    kinds = ("train", "promote", "monitor", "score", "rollback")
    built = {f"{model}__{kind}" for model in ("flight_delay", "digits") for kind in kinds}
    assert built | {"lifecycle_by_hand"} == set(parsed["dags"])


def test_of_a_model_folder_only_dag_py_is_parsed(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    shutil.copytree(REPOSITORY / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("network.py", "parts/layers.py"):
        path = dags / "models" / "digits" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("import airflow  # a dag, to who only looks for these two words\nraise RuntimeError")
    found = parse(dags, tmp_path)
    assert found["errors"] == {}
    assert "digits__train" in found["dags"]


def test_parsing_imports_no_heavy_library(parsed: dict[str, Any]) -> None:
    assert parsed["heavy"] == []


def test_the_stages_are_tasks_of_the_design_s_names(parsed: dict[str, Any]) -> None:
    assert {"ingest", "validate", "features", "train", "evaluate", "register"} <= set(
        parsed["dags"]["flight_delay__train"]
    )
    assert {"evidence", "deploy_staging", "approve", "deploy_production"} <= set(
        parsed["dags"]["flight_delay__promote"]
    )
