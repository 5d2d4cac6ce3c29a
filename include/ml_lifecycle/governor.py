"""The governor: decides whether alerts become a retraining run."""

from __future__ import annotations

from datetime import UTC, datetime

from ml_lifecycle.records import Interval


def retraining_run_id(model: str, window: Interval) -> str:
    """The run id of the one retraining that a window may cause, whatever its number of alerts.

    Airflow refuses a run id that it knows, so monitoring the window again starts nothing.
    """
    return f"drift__{model}__{_stamp(window.start)}__{_stamp(window.end)}"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
