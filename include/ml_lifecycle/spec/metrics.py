"""The metrics a spec may name: in gates by task type, in alerts with those of the serving side."""

from __future__ import annotations

from ml_lifecycle.records import TaskType

TASK_METRICS: dict[TaskType, tuple[str, ...]] = {
    "binary": ("log_loss", "skill", "roc_auc", "pr_auc", "accuracy", "f1", "brier", "calibration_error"),
    "multiclass": ("log_loss", "skill", "accuracy", "f1_macro", "calibration_error"),
    "regression": ("rmse", "mae", "r2", "median_ae", "bias"),
}

# Measured on labels that have arrived; only those of the model's task type make sense.
_QUALITY_ALERTS = ("skill", "log_loss", "calibration_error", "accuracy", "roc_auc", "rmse", "mae")
# Measured on predictions alone.
_PREDICTION_ALERTS = (
    "psi",
    "jensen_shannon",
    "missing_share",
    "schema",
    "new_categories",
    "score_psi",
    "score_mean_shift",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "error_share",
    "volume",
)


def alert_metrics(task: TaskType) -> tuple[str, ...]:
    """What an alert of a model of this task type may watch."""
    return (*_PREDICTION_ALERTS, *(name for name in _QUALITY_ALERTS if name in TASK_METRICS[task]))
