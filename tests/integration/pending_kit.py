"""Many people asked at once: a DAG that does nothing but ask, and as many candidates as wanted.

A newer candidate supersedes the open request of its model, so each is of a model of its own: a copy of the
small one's folder under another name, and of its version 1.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from delivery_kit import confirm_staging

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.lineage import read_evaluation, read_training, read_version
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import to_json
from ml_lifecycle.stages.approve import make_evidence
from ml_lifecycle_airflow.stack.config import Stack

ASKS = """
from datetime import timedelta

from airflow.sdk import DAG

from ml_lifecycle_airflow import ApprovalSensor


class AskAbout(ApprovalSensor):
    template_fields = (*ApprovalSensor.template_fields, "folder")


with DAG("asks", schedule=None, max_active_runs=1000, render_template_as_native_obj=True):
    AskAbout(
        task_id="approve",
        folder="{{ dag_run.conf['folder'] }}",
        evidence="{{ dag_run.conf['evidence'] }}",
        deadline=timedelta(days=1),
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
"""


def write_asking_dag(dags: Path) -> None:
    """Write the DAG ``asks``."""
    (dags / "asks.py").write_text(ASKS)


@dataclass(frozen=True)
class Candidates:
    """Makes what the DAG ``asks`` is asked with.

    :param stack: where version 1 of the small model is
    :param small: its folder
    :param copies: where the other models' folders are written, outside of the DAGs
    """

    stack: Stack
    small: Path
    copies: Path

    def make(self, name: str) -> dict[str, Any]:
        """The conf of a run of ``asks``: may version 1 of ``name`` go to production?"""
        folder = Path(shutil.copytree(self.small, self.copies / name))
        spec = yaml.safe_load((folder / "model.yaml").read_text())
        (folder / "model.yaml").write_text(yaml.safe_dump(spec | {"name": name}, sort_keys=False))
        lake = Lake(str(self.stack.lake))
        version = replace(read_version(lake, "small", "1"), name=name)
        lake.write_json(f"versions/{name}/1/manifest.json", to_json(version))
        evaluation = read_evaluation(lake, version.evaluation_path)
        training = read_training(lake, version.training_path)
        evidence = make_evidence(lake, version, evaluation, training, None)
        confirm_staging(Database(self.stack.database_url), evidence)  # or nobody may be asked
        return {"folder": str(folder), "evidence": to_json(evidence)}
