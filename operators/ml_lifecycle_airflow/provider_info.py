"""What Airflow's provider manager asks for."""

from __future__ import annotations

from typing import Any

from ml_lifecycle import __version__

_HOOKS = {
    "ml_lifecycle_lake": "lake.LakeHook",
    "ml_lifecycle_database": "database.LifecycleDatabaseHook",
    "ml_lifecycle_mlflow": "mlflow.MlflowHook",
    "ml_lifecycle_server": "model_server.ModelServerHook",
    "ml_lifecycle_online_store": "model_server.OnlineStoreHook",
}


def get_provider_info() -> dict[str, Any]:
    """Provider metadata: connection types, their form fields, and operators' extra links."""
    return {
        "package-name": "airflow-ml-lifecycle",
        "name": "ML Lifecycle",
        "description": "Operators and sensors for the whole life of a machine-learning model.",
        "versions": [__version__],
        "connection-types": [
            {"connection-type": conn_type, "hook-class-name": f"ml_lifecycle_airflow.hooks.{name}"}
            for conn_type, name in _HOOKS.items()
        ],
        "config": {
            "ml_lifecycle": {
                "description": "Options of airflow-ml-lifecycle.",
                "options": {
                    "prices": {
                        "description": (
                            "What an hour of a training pod costs, as JSON: currency, default and pools, "
                            "each with cpu (of a core), memory (of a GiB) and gpu (of a device)."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"currency": "EUR", "default": {"cpu": 0.04, "memory": 0.005, "gpu": 2}}',
                        "default": "",
                    }
                },
            }
        },
        "extra-links": [
            f"ml_lifecycle_airflow.links.{name}" for name in ("MlflowRunLink", "ReportLink", "ModelPageLink")
        ],
    }
