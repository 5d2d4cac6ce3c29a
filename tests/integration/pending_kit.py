"""Many people asked at once: a DAG that does nothing but ask, and evidence for as many candidates as wanted.

A newer candidate supersedes the open request of its model, so each is another model's: a copy of version 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.lineage import read_evaluation, read_training, read_version
from ml_lifecycle.delivery.releases import Releases
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import to_json
from ml_lifecycle.stages.approve import make_evidence

ASKS = """
from datetime import timedelta

from airflow.sdk import DAG

from ml_lifecycle_airflow import ApprovalSensor

with DAG("asks", schedule=None, max_active_runs=1000, render_template_as_native_obj=True):
    ApprovalSensor(
        task_id="approve",
        folder={folder!r},
        evidence="{{{{ dag_run.conf['evidence'] }}}}",
        deadline=timedelta(days=1),
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
"""


def write_asking_dag(dags: Path, folder: Path) -> None:
    """Write the DAG ``asks``, whose runs take ``{"evidence": …}`` as their conf."""
    (dags / "asks.py").write_text(ASKS.format(folder=str(folder)))


def make_candidate(lake: Lake, database: Database, name: str) -> dict[str, Any]:
    """A conf for ``asks``: version 1 of ``small`` under another name, compared with what is live."""
    champion = Releases(database).champion("small")
    version = replace(read_version(lake, "small", "1"), name=name)
    lake.write_json(f"versions/{name}/1/manifest.json", to_json(version))
    live = (
        {}
        if champion is None
        else {"champion_version": champion.version, "champion_digest": champion.model_digest}
    )
    evaluation = replace(read_evaluation(lake, version.evaluation_path), **live)
    training = read_training(lake, version.training_path)
    return {"evidence": to_json(make_evidence(lake, version, evaluation, training, champion))}
