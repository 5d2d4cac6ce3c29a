"""Airflow operators, sensors, triggers, hooks and the DAG builder.

The names below are imported when first used: a DAG file that needs one operator pays for that one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_lifecycle_airflow.dag_builder import lifecycle_dags
    from ml_lifecycle_airflow.operators.approve import EvidenceOperator
    from ml_lifecycle_airflow.operators.deploy import (
        DeployOperator,
        MarkChampionOperator,
        RollbackOperator,
    )
    from ml_lifecycle_airflow.operators.evaluate import EvaluateOperator
    from ml_lifecycle_airflow.operators.features import (
        MaterialiseOperator,
        PrepareFeaturesOperator,
        TrainingSetOperator,
    )
    from ml_lifecycle_airflow.operators.ingest import IngestOperator
    from ml_lifecycle_airflow.operators.monitor import MonitorOperator, NotifyOperator, RetrainOperator
    from ml_lifecycle_airflow.operators.register import RegisterOperator, RequestPromotionOperator
    from ml_lifecycle_airflow.operators.score import PlanScoreOperator, ScoreOperator, ScoreShareOperator
    from ml_lifecycle_airflow.operators.search import PlanSearchOperator, SearchOperator, TrialOperator
    from ml_lifecycle_airflow.operators.spark import on_spark
    from ml_lifecycle_airflow.operators.train import TrainOperator
    from ml_lifecycle_airflow.operators.validate import ValidateOperator
    from ml_lifecycle_airflow.operators.watch import WatchOperator
    from ml_lifecycle_airflow.sensors.approve import ApprovalSensor
    from ml_lifecycle_airflow.sensors.ingest import DataArrivalSensor

_HOMES = {
    "ApprovalSensor": "sensors.approve",
    "DataArrivalSensor": "sensors.ingest",
    "DeployOperator": "operators.deploy",
    "EvaluateOperator": "operators.evaluate",
    "EvidenceOperator": "operators.approve",
    "IngestOperator": "operators.ingest",
    "MarkChampionOperator": "operators.deploy",
    "MaterialiseOperator": "operators.features",
    "MonitorOperator": "operators.monitor",
    "NotifyOperator": "operators.monitor",
    "PlanScoreOperator": "operators.score",
    "PlanSearchOperator": "operators.search",
    "PrepareFeaturesOperator": "operators.features",
    "RegisterOperator": "operators.register",
    "RequestPromotionOperator": "operators.register",
    "RetrainOperator": "operators.monitor",
    "RollbackOperator": "operators.deploy",
    "ScoreOperator": "operators.score",
    "ScoreShareOperator": "operators.score",
    "SearchOperator": "operators.search",
    "TrainOperator": "operators.train",
    "TrainingSetOperator": "operators.features",
    "TrialOperator": "operators.search",
    "ValidateOperator": "operators.validate",
    "WatchOperator": "operators.watch",
    "lifecycle_dags": "dag_builder",
    "on_spark": "operators.spark",
}

__all__ = [
    "ApprovalSensor",
    "DataArrivalSensor",
    "DeployOperator",
    "EvaluateOperator",
    "EvidenceOperator",
    "IngestOperator",
    "MarkChampionOperator",
    "MaterialiseOperator",
    "MonitorOperator",
    "NotifyOperator",
    "PlanScoreOperator",
    "PlanSearchOperator",
    "PrepareFeaturesOperator",
    "RegisterOperator",
    "RequestPromotionOperator",
    "RetrainOperator",
    "RollbackOperator",
    "ScoreOperator",
    "ScoreShareOperator",
    "SearchOperator",
    "TrainOperator",
    "TrainingSetOperator",
    "TrialOperator",
    "ValidateOperator",
    "WatchOperator",
    "lifecycle_dags",
    "on_spark",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
