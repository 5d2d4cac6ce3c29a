"""Monitor: one window of production traffic, and what follows from its alerts."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSkipException

from ml_lifecycle_airflow.links import ModelPageLink, ReportLink, TriggeredRunLink
from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    StageOperator,
    final_errors_fail_at_once,
    required_folder,
)
from ml_lifecycle_airflow.run_time import read_conf

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.sdk import Context

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.records import Monitoring, Run
    from ml_lifecycle.stages.monitor_online import Online

# Of one very busy server a day's, in a minute or two; a backlog is worked off by several runs.
_PARTS_A_RUN = 150_000


class MonitorOperator(StageOperator):
    """Measure one window of logged predictions against the reference profile and the labels that arrived.

    The window is the interval of the run's conf, else the newest ``monitoring.window``. The prediction log is
    compacted before it is read, and what is older than ``monitoring.keep_predictions`` goes.

    :param snapshot: the snapshot's record
    :param environment: the environment's name in the spec
    """

    template_fields = ("snapshot",)
    operator_extra_links = (ReportLink(), ModelPageLink())
    report_path: str | None = None

    def __init__(self, *, snapshot: RecordArg, environment: str = "production", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot
        self.environment = environment

    def stage(self, resources: Resources, context: Context) -> Monitoring:
        """Return the findings."""
        from ml_lifecycle.delivery.lineage import trained_as
        from ml_lifecycle.ledger.windows import record_window
        from ml_lifecycle.records import Snapshot, to_json
        from ml_lifecycle.stages.features import read_labels
        from ml_lifecycle.stages.monitor import monitor, window_of
        from ml_lifecycle.stages.replay_features import Offline

        spec, lake = resources.spec, resources.lake()
        snapshot = resources.received(Snapshot, self.snapshot, context)
        database, now, run = resources.database(), resources.clock().now(), snapshot.run
        if read_conf(context["dag_run"].conf or {})[1] is None:
            run = replace(run, interval=window_of(run.interval, spec.monitoring.window))
        environment_lake = resources.environment_lake(self.environment)
        self._tidy(resources, environment_lake, run, now)
        findings = monitor(
            spec,
            lake,
            environment_lake,
            run,
            lambda digest: trained_as(digest, spec, lake, database, self.environment),
            read_labels(resources.model, lake, snapshot),
            now,
            online=self._online(resources, run.as_of),
            offline=Offline(resources.model, snapshot),
        )
        record_window(database, spec.name, spec.endpoint, findings.window, to_json(findings), now)
        self.report_path = findings.html_path or findings.report_path
        self.log.info(
            "%s to %s: %d predictions, %d with labels, %d alerts",
            *(findings.window.start, findings.window.end),
            *(findings.predictions, findings.labelled, len(findings.alerts)),
        )
        for alert in findings.alerts:
            self.log.warning(
                "%s: %s %s%s = %s (%s)",
                *(alert.severity, alert.metric, alert.column or ""),
                f" where {alert.segment}" if alert.segment else "",
                *(alert.value, alert.threshold),
            )
        return findings

    def _tidy(self, resources: Resources, lake: Lake, run: Run, now: datetime) -> None:
        """Compact the log before it is read, and let go of days that are too old."""
        from ml_lifecycle.delivery.release_history import ReleaseHistory
        from ml_lifecycle.personal import told
        from ml_lifecycle.stages.compact import compact, expire, kept_from

        endpoint = resources.spec.endpoint
        try:
            release = ReleaseHistory(resources.database()).under_way(self.environment, endpoint)
            first = kept_from(resources.spec, run.as_of, run.interval.start, release)
            if first is not None and (gone := expire(lake, endpoint, first)):
                self.log.info("prediction log: %d days before %s deleted", len(gone), first)
            done = compact(lake, endpoint, now, at_most=_PARTS_A_RUN)
        except Exception as error:  # noqa: BLE001 - whatever it is, the log can be read as it is
            self.log.warning("the prediction log could not be compacted: %s", told(error))
        else:
            self.log.info(
                "prediction log: %d parts became %d files, %d replaced parts deleted", *astuple(done)
            )

    def _online(self, resources: Resources, as_of: datetime) -> Online:
        from ml_lifecycle.stages.monitor_online import Online, look_at

        try:
            store = resources.online_store(self.environment)
        except AirflowNotFoundException:  # whoever never connected one serves no features from it
            return Online()
        online = look_at(resources.model, resources.lake(), store, as_of)
        for example in online.examples:
            self.log.warning("online is not offline: %s", example)
        return online


class NotifyOperator(StageOperator):
    """Hand a window's alerts to the notifiers the spec names; none of them can fail the window.

    :param monitoring: the monitoring's record
    """

    template_fields = ("monitoring",)

    def __init__(self, *, monitoring: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.monitoring = monitoring

    def execute(self, context: Context) -> dict[str, Any]:
        """Notify, and return how many notifiers were called.

        :raises AirflowSkipException: no alert reaches any notifier's severity.
        """
        from ml_lifecycle.records import Monitoring
        from ml_lifecycle_airflow.notifications.alerts import notify

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
            findings = resources.received(Monitoring, self.monitoring)
        sent = notify(resources.spec, findings, context)
        if not sent:
            raise AirflowSkipException("no alert for any notifier")
        return {"notified": sent}


class RetrainOperator(TriggerDagRunOperator):
    """Start exactly one retraining for a window whose alerts ask for it.

    :param folder: the model folder
    :param monitoring: the monitoring's record
    """

    template_fields = (*TriggerDagRunOperator.template_fields, "monitoring")
    operator_extra_links = [TriggeredRunLink(), ModelPageLink()]

    def __init__(self, *, folder: str | None = None, monitoring: RecordArg, **kwargs: Any) -> None:
        super().__init__(logical_date=None, skip_when_already_exists=True, **kwargs)
        self.folder = required_folder(folder, self.task_id)
        self.monitoring = monitoring

    def execute(self, context: Context) -> None:
        """Trigger the run, whose id is the window's end.

        :raises AirflowSkipException: no alert asks for a retraining.
        """
        from ml_lifecycle.governor import retraining_run_id
        from ml_lifecycle.records import Monitoring

        with final_errors_fail_at_once():
            findings = Resources(self.folder).received(Monitoring, self.monitoring)
        if not findings.retrain:
            raise AirflowSkipException("no alert asks for a retraining")
        self.trigger_run_id = retraining_run_id(findings.run.model, findings.window)
        self.conf = {"as_of": findings.run.as_of.isoformat()}
        super().execute(context)
