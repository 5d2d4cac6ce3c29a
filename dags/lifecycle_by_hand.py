"""The same operators, composed by hand: one DAG from raw files to production.

`dags/models/<model>/dag.py` gets five DAGs from the builder in three lines. Copy this file instead when you
want your own shape: leave stages out, put your own tasks between them, join several models.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle_airflow import (
    ApprovalSensor,
    DeployOperator,
    EvaluateOperator,
    EvidenceOperator,
    IngestOperator,
    MarkChampionOperator,
    PrepareFeaturesOperator,
    RegisterOperator,
    TrainingSetOperator,
    TrainOperator,
    ValidateOperator,
    WatchOperator,
)

FOLDER = Path(__file__).parent / "models" / "flight_delay"
SPEC = load_folder(FOLDER).spec

with DAG(
    dag_id="lifecycle_by_hand",
    description="The whole life of one model in one DAG, composed by hand",
    schedule=None,
    catchup=False,
    tags=["ml-lifecycle"],
    default_args={"folder": str(FOLDER), "retries": 2, "retry_delay": timedelta(seconds=15)},
):
    # Records travel between tasks as small JSON; data stays in the lake.
    snapshot = IngestOperator(task_id="ingest")
    validation = ValidateOperator(task_id="validate", snapshot=snapshot.output)
    training_set = TrainingSetOperator(task_id="features", snapshot=snapshot.output)
    training = TrainOperator(
        task_id="train",
        training_set=training_set.output,
        training=SPEC.training,
        kubernetes_conn_id=SPEC.connections.pods,
    )
    evaluation = EvaluateOperator(task_id="evaluate", training=training.output)
    version = RegisterOperator(task_id="register", training=training.output, evaluation=evaluation.output)

    # Delivery: what was judged travels as one evidence record, bound by its digest.
    registered = "{{ ti.xcom_pull('register')['version'] }}"
    evidence = EvidenceOperator(task_id="evidence", version=registered)
    staging_features = PrepareFeaturesOperator(
        task_id="prepare_staging", evidence=evidence.output, environment="staging"
    )
    staging = DeployOperator(task_id="deploy_staging", evidence=evidence.output, environment="staging")
    approval = ApprovalSensor(task_id="approve", evidence=evidence.output, deadline=SPEC.approvers.deadline)
    production_features = PrepareFeaturesOperator(
        task_id="prepare_production", evidence=evidence.output, environment="production"
    )
    production = DeployOperator(
        task_id="deploy_production", evidence=evidence.output, environment="production"
    )
    # Where the strategy gives the version a part of the traffic, this gives it more, or takes it back.
    watched = WatchOperator(task_id="watch_production", evidence=evidence.output)
    champion = MarkChampionOperator(task_id="mark_champion", version=registered)

    snapshot >> validation >> training_set >> training >> evaluation >> version >> evidence
    evidence >> staging_features >> staging >> approval
    approval >> production_features >> production >> watched >> champion
