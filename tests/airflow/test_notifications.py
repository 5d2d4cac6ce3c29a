"""Alerts reach the notifiers that asked for their severity, and a broken notifier breaks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowSkipException

from ml_lifecycle.records import Finding, Interval, Monitoring, Run
from ml_lifecycle.spec.model import Notify
from ml_lifecycle_airflow.notifications import alerts
from ml_lifecycle_airflow.operators.monitor import NotifyOperator

from .conftest import NOW, World

WINDOW = Interval(NOW - timedelta(days=7), NOW)
HERE = __name__
CALLS: list[tuple[str, list[str]]] = []


class Recorder(BaseNotifier):
    """A notifier as a user would write one: its message is a template over the alerts."""

    template_fields = ("message",)

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__()
        self.name, self.message = name, message

    def notify(self, context: Any) -> None:
        CALLS.append((self.name, [alert.metric for alert in context["alerts"]]))
        if self.message:
            CALLS.append((self.message, []))


class Broken(Recorder):
    """One whose service is down."""

    def notify(self, context: Any) -> None:
        raise ConnectionError("no route to the pager")


@pytest.fixture(autouse=True)
def _no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    # The module under the name that a spec can import it by.
    import sys

    monkeypatch.setitem(sys.modules, "notifiers_of_the_tests", sys.modules[HERE])


def wanted(kind: str, name: str, severity: Any = "warning", **arguments: Any) -> Notify:
    return Notify(
        notifier=f"notifiers_of_the_tests.{kind}",
        arguments={"name": name, **arguments},
        min_severity=severity,
    )


def monitoring(*severities: Any) -> Monitoring:
    found = tuple(
        Finding(metric=f"{severity}_metric", column=None, value=1.0, n=100, severity=severity)
        for severity in severities
    )
    return Monitoring(
        run=Run("delays", "m/1", NOW, WINDOW),
        digest="d",
        path="monitoring/delays/d",
        endpoint="delays",
        window=WINDOW,
        predictions=100,
        labelled=0,
        versions=("1",),
        alerts=found,
        metrics={},
        report_path="r.json",
        html_path=None,
        retrain=False,
    )


def spec(world: World, *notifiers: Notify) -> Any:
    return world.folder.spec.model_copy(update={"notify": notifiers})


def test_each_notifier_gets_the_alerts_at_or_above_its_severity(world: World, context: Any) -> None:
    model = spec(
        world,
        wanted("Recorder", "all", "informational"),
        wanted("Recorder", "most"),
        wanted("Recorder", "worst", "critical"),
    )
    found = monitoring("informational", "warning", "critical")
    assert alerts.notify(model, found, context()) == 3
    assert CALLS == [
        ("all", ["informational_metric", "warning_metric", "critical_metric"]),
        ("most", ["warning_metric", "critical_metric"]),
        ("worst", ["critical_metric"]),
    ]


def test_a_notifier_without_an_alert_is_not_called(world: World, context: Any) -> None:
    model = spec(world, wanted("Recorder", "worst", "critical"))
    assert alerts.notify(model, monitoring("warning"), context()) == 0
    assert CALLS == []


def test_a_broken_notifier_keeps_no_other_from_being_called(world: World, context: Any) -> None:
    missing = Notify(notifier="no_such_package.Pager")
    model = spec(world, wanted("Broken", "pager"), missing, wanted("Recorder", "mail"))
    assert alerts.notify(model, monitoring("critical"), context()) == 1
    assert CALLS == [("mail", ["critical_metric"])]


def test_a_notifier_s_templates_see_alerts_and_window(world: World, context: Any) -> None:
    message = "{{ alerts[0].metric }} of {{ monitoring.endpoint }} in {{ run_id }}"
    model = spec(world, wanted("Recorder", "mail", message=message))
    alerts.notify(model, monitoring("critical"), context())
    assert CALLS[1] == ("critical_metric of delays in manual__1", [])


def operator(world: World, found: Monitoring) -> NotifyOperator:
    return NotifyOperator(task_id="notify", folder=world.path, monitoring=world.file(found))


def with_notifier(world: World) -> World:
    listed = "notify: [{notifier: notifiers_of_the_tests.%s, arguments: {name: mail}}]\ntask:"
    return world.edit("model.yaml", "task:", listed % "Recorder")


def test_the_operator_says_how_many_were_called(world: World, context: Callable[..., Any]) -> None:
    told = operator(with_notifier(world), monitoring("critical")).execute(context())
    assert told == {"notified": 1}
    assert CALLS == [("mail", ["critical_metric"])]


def test_the_operator_is_skipped_when_there_is_nothing_to_tell(world: World, context: Any) -> None:
    quiet = replace(monitoring(), alerts=())
    with pytest.raises(AirflowSkipException):
        operator(with_notifier(world), quiet).execute(context())
    assert CALLS == []
