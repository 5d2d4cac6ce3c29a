"""Records of monitor: findings, and what a window came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ml_lifecycle.records.record import Interval, Record, Run

Severity = Literal["informational", "warning", "critical"]


@dataclass(frozen=True)
class Finding:
    """One monitored condition, measured. ``error`` says why it could not be; that is a finding too.

    :param metric: e.g. ``psi``, ``missing_share``, ``skill``, ``calibration_error``, ``latency_p99_ms``
    :param column: the feature or output it is about; None for the window as a whole
    :param severity: None while below every threshold
    :param low: with ``high``, between which values the metric is in 95 of 100 cases; None where nobody knows
    :param segment: ``column=value`` of the rows it is about; None for all
    :param p_value: of the test that belongs to the metric; it decides nothing
    :param p_adjusted: the same, corrected for the number of tests of the window
    """

    metric: str
    column: str | None
    value: float | None
    n: int
    threshold: str | None = None
    severity: Severity | None = None
    action: Literal["notify", "retrain"] | None = None
    error: str | None = None
    low: float | None = None
    high: float | None = None
    segment: str | None = None
    p_value: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Monitoring(Record):
    """One window's findings. ``alerts`` are those that crossed a threshold."""

    schema: ClassVar[str] = "monitoring/1"
    run: Run
    digest: str
    path: str
    endpoint: str
    window: Interval
    predictions: int
    labelled: int
    versions: tuple[str, ...]
    alerts: tuple[Finding, ...]
    metrics: dict[str, float]
    report_path: str
    html_path: str | None
    retrain: bool
