"""Alerts to Airflow notifiers."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from ml_lifecycle.records import Finding, Monitoring, Severity

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context

    from ml_lifecycle.spec.model import ModelSpec, Notify

log = logging.getLogger(__name__)
_RANK: dict[Severity, int] = {"informational": 0, "warning": 1, "critical": 2}


def notify(spec: ModelSpec, monitoring: Monitoring, context: Context) -> int:
    """Call each notifier with the alerts at or above its severity; returns how many were called.

    The context a notifier's templates see has ``alerts`` (a list of findings) and ``monitoring`` besides
    Airflow's own.
    """
    called = 0
    for wanted in spec.notify:
        alerts = [alert for alert in monitoring.alerts if _reaches(alert, wanted.min_severity)]
        if not alerts:
            continue
        try:
            load_notifier(wanted)({**context, "alerts": alerts, "monitoring": monitoring})
        except Exception:  # a broken notifier must not keep the others, or a retraining, from happening
            log.exception("notifier %s failed", wanted.notifier)
            continue
        called += 1
    return called


def load_notifier(wanted: Notify) -> BaseNotifier:
    """The notifier that ``wanted`` names, made with its arguments."""
    module, _, name = wanted.notifier.rpartition(".")
    made: BaseNotifier = getattr(import_module(module), name)(**wanted.arguments)
    return made


def _reaches(alert: Finding, least: Severity) -> bool:
    return alert.severity is not None and _RANK[alert.severity] >= _RANK[least]
