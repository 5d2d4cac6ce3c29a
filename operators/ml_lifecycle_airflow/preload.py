"""Import once, in the process that tasks are forked from, what every task would import anew.

Importing the libraries of all stages costs about 20 seconds in each fresh process and nothing in a forked
one. Call :func:`preload` from ``airflow_local_settings.py`` in Airflow's config folder; it looks at
``sys.argv`` and does nothing in other processes. Imports only: a thread or a connection opened before the
fork would be broken after it. ``ML_LIFECYCLE_PRELOAD=off`` turns it off.
"""

from __future__ import annotations

import importlib
import os
import sys

BUILDER = ("ml_lifecycle_airflow.dag_builder", "airflow.providers.cncf.kubernetes.operators.pod")
STAGES = (
    *BUILDER,
    "pandas",
    "polars",
    "pyarrow.parquet",
    "onnxruntime",
    "mlflow",
    "mlflow.onnx",
    "feast",
    "evidently",
    "httpx",
    "ml_lifecycle.ledger.database",
    "ml_lifecycle.stages.ingest",
    "ml_lifecycle.stages.validate",
    "ml_lifecycle.stages.features",
    "optuna",
    "ml_lifecycle.stages.search",
    "ml_lifecycle.stages.train",
    "ml_lifecycle.stages.train_attempts",
    "ml_lifecycle.stages.evaluate",
    "ml_lifecycle.stages.register",
    "ml_lifecycle.stages.approve",
    "ml_lifecycle.stages.deploy",
    "ml_lifecycle.stages.monitor",
    "ml_lifecycle.stages.score",
)
BY_COMMAND = {
    "scheduler": STAGES,
    "worker": STAGES,
    "dag-processor": BUILDER,
    "triggerer": tuple(f"ml_lifecycle_airflow.triggers.{name}" for name in ("train", "ingest", "watch")),
}


def preload(arguments: list[str] | None = None) -> tuple[str, ...]:
    """Import what the process that ``arguments`` (``sys.argv``) names will need; returns the modules.

    A library that is not installed is left out: the task that needs it says so more clearly.
    """
    command = next((word for word in (arguments or sys.argv)[1:] if word in BY_COMMAND), None)
    if command is None or os.environ.get("ML_LIFECYCLE_PRELOAD", "on").lower() == "off":
        return ()
    if command == "scheduler" and not _forks_tasks():
        return ()
    loaded = []
    for name in BY_COMMAND[command]:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        loaded.append(name)
    return tuple(loaded)


def _forks_tasks() -> bool:
    """Whether the scheduler's tasks are its own children, and not those of workers elsewhere."""
    from airflow.configuration import conf

    return "LocalExecutor" in conf.get("core", "executor")
