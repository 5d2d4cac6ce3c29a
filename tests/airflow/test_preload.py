"""Preloading imports for the processes that fork tasks, and for no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_lifecycle_airflow import preload

ROOTS = [str(Path(__file__).parents[2] / root) for root in ("include", "operators")]


def loaded_by(command: str, **environment: str) -> str:
    """What a fresh process has imported after preloading, of the libraries that count."""
    code = (
        "import sys, threading; from ml_lifecycle_airflow.preload import preload; preload(); "
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}), "
        "*(name for name in sys.modules if name.startswith('ml_lifecycle_airflow.')), "
        "'THREADS', threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))


@pytest.mark.parametrize("command", ["airflow api-server", "airflow dags list", "airflow", ""])
def test_other_commands_import_nothing(command: str) -> None:
    assert preload.preload(command.split() or ["python"]) == ()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_LIFECYCLE_PRELOAD", "OFF")
    assert preload.preload(["airflow", "scheduler"]) == ()


def test_a_scheduler_whose_tasks_run_elsewhere_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    assert preload.preload(["airflow", "scheduler"]) == ()


def test_the_triggerer_gets_its_triggers_and_not_the_libraries() -> None:
    assert preload.preload(["airflow", "triggerer"]) == preload.BY_COMMAND["triggerer"]


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(preload.BY_COMMAND, "triggerer", ("no_such_library", "json"))
    assert preload.preload(["airflow", "triggerer", "--skip-serve-logs"]) == ("json",)


def test_every_module_of_the_stages_exists() -> None:
    from importlib.util import find_spec

    assert [name for name in preload.STAGES if find_spec(name) is None] == []


def test_a_fresh_dag_processor_gets_the_builder_and_no_library() -> None:
    words = loaded_by("dag-processor").split()
    assert "ml_lifecycle_airflow.dag_builder" in words
    assert {"mlflow", "feast", "great_expectations", "evidently", "pandas"}.isdisjoint(words)


@pytest.fixture(scope="module", params=["scheduler --skip-serve-logs", "celery worker"])
def forking(request: pytest.FixtureRequest) -> list[str]:
    """What a process that tasks are forked from has imported."""
    command: str = request.param
    executor = "CeleryExecutor" if command.startswith("celery") else "LocalExecutor"
    return loaded_by(command, AIRFLOW__CORE__EXECUTOR=executor).split()


@pytest.mark.full
def test_what_tasks_are_forked_from_has_every_library(forking: list[str]) -> None:
    assert {"mlflow", "feast", "evidently", "pandas", "onnxruntime"} <= set(forking)
    assert "great_expectations" not in forking  # only contracts that ask for it need it


@pytest.mark.full
def test_preloading_starts_no_thread(forking: list[str]) -> None:
    """A thread does not survive a fork: whatever waits for it would wait for ever."""
    assert forking[-2:] == ["THREADS", "1"]
