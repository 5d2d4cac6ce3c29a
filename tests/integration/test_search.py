"""A search on a running stack finds the same whether or not anything dies while it looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scheduling_kit import FIRST_END, HELD, PATIENCE, Operator, evict, kill_with_tasks, running_pods
from small_model import land, write_model
from stack_kit import running_stack
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.optuna import SharedStudy
from ml_lifecycle.ledger.attempts import attempts_of
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.training.outcomes import Outcome
from ml_lifecycle.training.search import Tried
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.config import Stack

SEARCH = {
    "trials": 5,
    "parallel": 2,
    "metric": "log_loss",
    "validation": "1d",
    "space": {"max_iter": {"low": 2, "high": 40}, "learning_rate": {"low": 0.01, "high": 1.0, "log": True}},
    "pruning": None,
}


def pods_of(stack: Stack, model: str) -> list[str]:
    """Names of the running pods of the model's trials."""
    return [name for name in running_pods(stack) if name.startswith(f"trial-{model}")]


@pytest.mark.full
def test_what_dies_in_between_changes_nothing(tmp_path: Path) -> None:
    dags, hold = tmp_path / "dags", tmp_path / "hold"
    folders = {name: write_model(dags, name, training={"search": SEARCH}) for name in ("calm", "rough")}
    code = folders["rough"] / "training.py"
    fit = code.read_text().replace("def train(", "def fit(")
    code.write_text(HELD.format(hold=str(hold), training=fit))
    with running_stack(tmp_path / "stack", dags) as stack:
        land(Lake(str(stack.lake)), days=10)
        admin = Operator(stack.airflow_url, "admin", stack.password("admin"))
        admin.wait_for_dags({"calm__train", "rough__train"}, PATIENCE)

        admin.trigger("calm__train", "searched", {"as_of": FIRST_END.isoformat()})
        admin.wait("calm__train", "searched", print, timeout=PATIENCE)

        hold.touch()
        admin.trigger("rough__train", "searched", {"as_of": FIRST_END.isoformat()})
        wait_until(lambda: len(pods_of(stack, "rough")) == 2, "two trials are at work", PATIENCE)
        (first, second) = pods_of(stack, "rough")
        evict(stack, first).raise_for_status()
        wait_until(
            lambda: len(pods_of(stack, "rough")) == 2 and first not in pods_of(stack, "rough"),
            "the evicted one has a successor",
            PATIENCE,
        )
        kill_with_tasks(stack, "scheduler")
        supervise.wait_healthy(stack, print, PATIENCE)
        assert second in pods_of(stack, "rough"), "pods outlive their workers"
        hold.unlink()
        admin.wait("rough__train", "searched", print, timeout=PATIENCE)

        database = Database(stack.database_url)
        studies = {name: tried(admin, database, folder, f"{name}__train") for name, folder in folders.items()}
        assert [replace(trial, job="") for trial in studies["calm"]] == [
            replace(trial, job="") for trial in studies["rough"]
        ]
        # A busy machine may lose a request for a pod, too: what is redone must have been the machine's fault.
        redone = []
        for trial in studies["rough"]:
            *before, last = attempts_of(database, trial.job)
            assert last.outcome == Outcome("finished"), "the newest alone leaves a result"
            redone += [row.outcome for row in before]
        evicted = f"pod {first} was ended by the infrastructure"
        assert [one for one in redone if one and one.message.startswith(evicted)], redone
        assert {one and one.kind for one in redone} <= {"interrupted", "never_started"}, redone
        for name in folders:
            found = admin.result(f"{name}__train", "searched", "search")
            trained = admin.result(f"{name}__train", "searched", "train")
            assert found["trials"] == {"finished": SEARCH["trials"]}
            assert trained["parameters"] == found["parameters"]
            assert found["value"] == min(trial.value for trial in studies[name] if trial.value is not None)


def tried(admin: Operator, database: Database, folder: Path, dag_id: str) -> tuple[Tried, ...]:
    spec = load_folder(folder).spec.training.search
    assert spec is not None
    with database.read() as connection:
        digest = admin.result(dag_id, "searched", "plan_search")["digest"]
        return SharedStudy(connection, digest, spec).tried()
