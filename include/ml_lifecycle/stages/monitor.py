"""Monitor: one window of logged predictions against the reference profile and the labels that have arrived.

The stage measures whatever can be measured. A metric that fails, a torn part of the log, labels that cannot
be read or a report that cannot be made are findings with an ``error``; only an unreachable lake raises.

Drift and quality are about the version that served most rows of the window; others are listed. Volume,
errors and latency are the endpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.errors import NoSpaceError
from ml_lifecycle.metrics import METRICS
from ml_lifecycle.personal import told
from ml_lifecycle.records import (
    Finding,
    Interval,
    Monitoring,
    Run,
    Severity,
    Training,
    canonical_json,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.spec.metrics import ONLINE_STORE
from ml_lifecycle.spec.model import Alert, ModelSpec
from ml_lifecycle.stages import monitor_drift, monitor_quality, monitor_replay, monitor_traffic
from ml_lifecycle.stages.monitor_drift import Drift
from ml_lifecycle.stages.monitor_kept import KeptFindings
from ml_lifecycle.stages.monitor_labels import KnownLabels, room_for_labels
from ml_lifecycle.stages.monitor_online import Online
from ml_lifecycle.stages.monitor_quality import (
    Quality,
    mature_until,
    measure_quality,
    served_rows,
)
from ml_lifecycle.stages.monitor_traffic import Traffic
from ml_lifecycle.stages.replay_features import Offline

# Of the log, that one part of predictions and labels is joined for.
_PART_BYTES = 64 * 2**20
_RANK: dict[Severity | None, int] = {None: 0, "informational": 1, "warning": 2, "critical": 3}
_FEW_ROWS = {"volume", *ONLINE_STORE, *monitor_replay.METRICS}


@dataclass(frozen=True)
class _Measured:
    """What was found in a window, before it is written."""

    findings: tuple[Finding, ...]
    drift: Drift
    quality: Quality | None = None


def monitor(
    spec: ModelSpec,
    lake: Lake,
    environment_lake: Lake,
    run: Run,
    reference_for: Callable[[str], Training | None],
    labels: pl.LazyFrame | None,
    now: datetime,
    *,
    online: Online | None = None,
    offline: Offline | None = None,
) -> Monitoring:
    """Measure the window ``run.interval`` of the endpoint's traffic and write findings and reports.

    The same log, labels, reference and ``monitoring:`` section give the same result, which is returned as it
    is if it is there already.

    :param lake: where trainings are read and reports written
    :param environment_lake: where the endpoint's server logs its predictions
    :param reference_for: model digest → the training that made it, None if it is unknown
    :param labels: the table of ``spec.labels``; only labels known before ``run.as_of`` are used
    :param now: noted in the report; nothing depends on it
    :param online: what is said of the online store. How old its values were then is among what the result
        follows from; how many were right is not, as a store tells only of now: the first answer stays
    :param offline: where served requests are replayed; without it their features are not looked up
    :raises OSError: a lake cannot be reached. Retry: yes.
    :raises SparkElsewhereError: Spark, which is to profile the window, runs elsewhere. Retry: no, but there.
    """
    online = online or Online()
    log = PredictionWindow(environment_lake, spec.endpoint, run.interval)
    kept = KeptFindings(lake, spec.name, log)
    traffic = monitor_traffic.measure(log, kept)
    training = reference_for(traffic.versions[0].model_digest) if traffic.versions else None
    with room_for_labels(spec.labels, 1 + log.size // _PART_BYTES) as known:
        label_error = _read_labels(known, labels, run)
        others = (online.staleness, None if offline is None else offline.inputs)
        digest = _inputs_digest(spec, run, log, training, known.digest, label_error, *others)
        path = f"monitoring/{spec.name}/{digest}"
        if lake.exists(f"{path}/manifest.json"):
            return replace(from_json(Monitoring, lake.read_json(f"{path}/manifest.json")), run=run)
        window = _Window(spec, lake, log, kept, traffic, training, mature_until(spec.labels, run))
        apart = log.beside()
        with ThreadPoolExecutor(1) as beside:  # much of both is NumPy's work, on one core
            kept_apart = KeptFindings(lake, spec.name, apart)
            drift = beside.submit(_drift, replace(window, log=apart, kept=kept_apart))
            quality, failed = _quality(window, known)
            replayed = monitor_replay.replay(spec, lake, environment_lake, log, kept, reference_for, offline)
    found = _Measured((*_traffic(window), *failed, *drift.result().findings), drift.result(), quality)
    log.unreadable |= apart.unreadable
    pages, failures = _write_reports(spec, lake, path, training, found)
    if label_error is not None:
        failures.append(Finding("labels", None, None, 0, error=label_error))
    of_store = (*online.staleness, *online.mismatches)
    told_of = [*found.findings, *of_store, *replayed.findings, *failures, *_unreadable(log)]
    findings, alerts = judge(told_of, spec.monitoring.alerts)
    monitoring = Monitoring(
        run=run,
        digest=digest,
        path=path,
        endpoint=spec.endpoint,
        window=run.interval,
        predictions=traffic.answered.total(),
        labelled=found.quality.labelled if found.quality is not None else 0,
        versions=tuple(version.version for version in traffic.versions),
        alerts=tuple(alerts),
        metrics=_summary(findings),
        report_path=f"{path}/report.json",
        html_path=pages.get("drift"),
        retrain=any(alert.action == "retrain" for alert in alerts),
    )
    report = {
        "schema": "monitoring_report/1",
        "monitoring": to_json(monitoring),
        "made_at": now.isoformat(),
        "versions": [asdict(version) for version in traffic.versions],
        "reference": training.path if training is not None else None,
        "pages": pages,
        "findings": [asdict(finding) for finding in findings],
        "replay": replayed.report,
        "mature_until": mature_until(spec.labels, run).isoformat(),
        "cohorts": found.quality.cohorts.to_dicts() if found.quality is not None else [],
    }
    lake.write_json(monitoring.report_path, report)
    lake.write_json(f"{path}/manifest.json", to_json(monitoring))
    # Windows move on by less than their length; what is asked for again in spite of that is made again.
    kept.forget((run.interval.end - 2 * max(run.interval.length, spec.monitoring.window)).date())
    return monitoring


def window_of(interval: Interval, length: timedelta) -> Interval:
    """The window of a run that nobody gave one: the newest ``length``, and all that is new in any case."""
    return Interval(min(interval.start, interval.end - length), interval.end)


def _inputs_digest(
    spec: ModelSpec,
    run: Run,
    log: PredictionWindow,
    training: Training | None,
    known_labels: str,
    label_error: str | None,
    staleness: Sequence[Finding],
    replayed_with: Sequence[str] | None,
) -> str:
    return digest_of(
        {
            "staleness": [asdict(finding) for finding in staleness],
            "stage": "monitor/5",
            "endpoint": spec.endpoint,
            "task": spec.task,
            "threshold": spec.evaluation.threshold,
            "monitoring": spec.monitoring.model_dump(mode="json"),
            "labels": spec.labels.model_dump(mode="json"),
            "window": [run.interval.start.isoformat(), run.interval.end.isoformat()],
            "log": [[stretch.name, stretch.digest] for stretch in log.stretches],
            "mature_until": mature_until(spec.labels, run).isoformat(),
            "known_labels": known_labels,
            "label_error": label_error,
            "reference": training.digest if training is not None else None,
            "replayed_with": replayed_with,
        }
    )


def judge(findings: Sequence[Finding], alerts: Sequence[Alert]) -> tuple[list[Finding], list[Finding]]:
    """Hold findings against the alerts' thresholds.

    A finding on fewer than an alert's ``min_rows`` never alerts; ``volume`` is exempt, for it measures the
    very lack of rows, and so are the online store's, which are of none, and replays, which are of few. A
    watched metric that could not be measured notifies and never retrains.

    :returns: all findings, marked with the most severe alert each has raised; and one for every alert raised
    """
    marked: list[Finding] = []
    raised: list[Finding] = []
    for finding in findings:
        own = [hit for alert in alerts if (hit := _hold(finding, alert)) is not None]
        raised.extend(own)
        marked.append(max(own, key=lambda hit: _RANK[hit.severity], default=finding))
    return marked, raised


def _hold(finding: Finding, alert: Alert) -> Finding | None:
    if finding.metric != alert.metric:
        return None
    if alert.columns is not None and finding.column not in alert.columns:
        return None
    if (finding.segment not in alert.segments) if alert.segments else finding.segment is not None:
        return None
    if finding.n < alert.min_rows and finding.metric not in _FEW_ROWS:
        return None
    limit = alert.above if alert.above is not None else alert.below
    threshold = f"{'above' if alert.above is not None else 'below'} {limit:g}"
    if finding.value is None:
        if finding.error is None:
            return None
        return replace(finding, threshold=threshold, severity=alert.severity, action="notify")
    above = alert.above is not None and finding.value > alert.above
    below = alert.below is not None and finding.value < alert.below
    if not above and not below:
        return None
    return replace(finding, threshold=threshold, severity=alert.severity, action=alert.action)


def _read_labels(known: KnownLabels, labels: pl.LazyFrame | None, run: Run) -> str | None:
    """Read what is known; why there are no labels if that is somebody's mistake."""
    if labels is None:
        return None
    try:
        known.read(labels, run.interval, run.as_of)
    except NoSpaceError:
        raise  # a retry helps, when there is room
    except Exception as error:  # noqa: BLE001 - labels are the user's code; drift must still be measured
        return told(error)
    return None


@dataclass(frozen=True)
class _Window:
    """A window that is measured.

    :param training: of the version that served most rows; None without one, or if nobody knows it
    """

    spec: ModelSpec
    lake: Lake
    log: PredictionWindow
    kept: KeptFindings
    traffic: Traffic
    training: Training | None
    mature: datetime


def _traffic(window: _Window) -> Iterator[Finding]:
    yield from window.traffic.findings()
    if window.traffic.versions and window.training is None:
        main = window.traffic.versions[0]
        error = f"no training is known for model digest {main.model_digest} (version {main.version})"
        yield Finding("reference", None, None, main.rows, error=error)


def _drift(window: _Window) -> Drift:
    """What the rows say that the training's model answered."""
    spec, training = window.spec, window.training
    if training is None:
        return Drift(())
    stretches = window.traffic.of(training.model_digest)
    if spec.engine == "spark":
        from ml_lifecycle.spark.windows import keep_profiles

        keep_profiles(spec, window.lake, window.log, training, window.kept, stretches)
    return monitor_drift.measure(
        window.lake, window.log, training, spec.monitoring.segments, window.kept, stretches
    )


def _quality(window: _Window, known: KnownLabels) -> tuple[Quality | None, tuple[Finding, ...]]:
    """What labels say, or why they cannot say it."""
    spec, training = window.spec, window.training
    if training is None:
        return None, ()
    stretches = window.traffic.of(training.model_digest)
    served = served_rows(window.log, training.model_digest, spec.task, window.kept, stretches)
    try:
        quality = measure_quality(spec, window.lake, training, served, known, window.mature)
    except (OSError, NoSpaceError):
        raise  # the lake is unreachable or full: a retry helps
    except Exception as error:  # noqa: BLE001 - a label that fits no class or key must not hide the drift
        rows, text = window.traffic.versions[0].rows, told(error)
        return None, tuple(Finding(metric, None, None, rows, error=text) for metric in METRICS[spec.task])
    return quality, quality.findings


def _unreadable(log: PredictionWindow) -> Iterator[Finding]:
    if log.unreadable:
        listed = "; ".join(f"{path}: {error}" for path, error in sorted(log.unreadable.items())[:3])
        text = f"{len(log.unreadable)} of {log.parts} parts of the log cannot be read: {listed}"
        yield Finding("unreadable_parts", None, float(len(log.unreadable)), log.parts, error=text)


def _write_reports(
    spec: ModelSpec, lake: Lake, path: str, training: Training | None, found: _Measured
) -> tuple[dict[str, str], list[Finding]]:
    """The window's profile and Evidently's pages: which were written, by subject, and what failed."""
    pages: dict[str, str] = {}
    failures: list[Finding] = []
    profile, sample = found.drift.profile, found.drift.sample
    if profile is not None:
        lake.write_bytes(f"{path}/profile.json", canonical_json(to_json(profile)))
    if training is not None and sample is not None:
        page, failed = monitor_drift.write_report(
            lake, path, training, spec.monitoring.segments, sample, found.findings
        )
        failures.extend(failed)
        pages |= {"drift": page} if page is not None else {}
    if training is not None and found.quality is not None and found.quality.answers.height:
        answers = found.quality.answers
        page, failed = monitor_quality.write_report(lake, path, spec.task, training.classes, answers)
        failures.extend(failed)
        pages |= {"quality": page} if page is not None else {}
    return pages, failures


def _summary(findings: Sequence[Finding]) -> dict[str, float]:
    """Metrics of the whole window by name; of those of columns the largest, as ``<metric>_max``."""
    summary: dict[str, float] = {}
    for finding in findings:
        if finding.value is None or finding.segment is not None:
            continue
        if finding.column is None:
            summary[finding.metric] = finding.value
        else:
            name = f"{finding.metric}_max"
            summary[name] = max(finding.value, summary.get(name, finding.value))
    return summary
