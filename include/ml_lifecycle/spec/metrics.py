"""The metrics a spec may name: in gates by task type, in alerts with those of the serving side."""

from __future__ import annotations

from ml_lifecycle.records import TaskType

TASK_METRICS: dict[TaskType, tuple[str, ...]] = {
    "binary": ("log_loss", "skill", "roc_auc", "pr_auc", "accuracy", "f1", "brier", "calibration_error"),
    "multiclass": ("log_loss", "skill", "accuracy", "f1_macro", "calibration_error"),
    "regression": ("rmse", "mae", "r2", "median_ae", "bias"),
}

# Of each feature view, and of the last materialisation: how old at the run's moment, by the online store.
ONLINE_STORE = ("feature_staleness_seconds", "materialisation_staleness_seconds", "online_mismatch_share")

# Measured on every window; the task's own metrics on the labels that have arrived.
_WINDOW_ALERTS = (
    "psi",
    "jensen_shannon",
    "wasserstein",
    "wasserstein_absolute",
    "ks_statistic",
    "cramers_v",
    "correlation_change",
    "missing_share",
    "missing_increase",
    "schema",
    "new_categories",
    "score_psi",
    "score_jensen_shannon",
    "score_wasserstein",
    "score_ks_statistic",
    "score_mean_shift",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "error_share",
    "volume",
    "label_coverage",
    *ONLINE_STORE,
    "unknown_keys_share",
    "replay_mismatch_share",
    "replay_code_share",
    "replay_stale_share",
    "replay_ahead_share",
)


def alert_metrics(task: TaskType) -> tuple[str, ...]:
    """What an alert of a model of this task type may watch."""
    known = TASK_METRICS[task]
    # Of rows whose labels are not known yet; a regression has no probabilities to estimate from.
    estimated = () if task == "regression" else tuple(f"estimated_{metric}" for metric in known)
    return (*_WINDOW_ALERTS, *known, *estimated)
