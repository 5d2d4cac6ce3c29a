"""The part of the monitor that holds answers against the labels that have arrived.

**Which rows.** Those that are mature: older than ``labels.delay`` at the run's ``as_of``. What is known of
younger ones by then is what became known early, which is not a fair sample: late flights land late. They are
counted by day beside the others, and of classifiers it is estimated how good the answers to them are, from
the answers' own probabilities (:mod:`ml_lifecycle.evaluation.estimation`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import polars as pl

from ml_lifecycle.adapters import evidently
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.evaluation.bands import bounds
from ml_lifecycle.evaluation.estimation import MIN_KNOWN, estimate, misses
from ml_lifecycle.metrics import METRICS, UNKNOWN_CLASS, Answers, Array, class_indices, label_texts, measure
from ml_lifecycle.personal import told
from ml_lifecycle.profiles.drift import measured
from ml_lifecycle.records import Finding, Interval, Run, TaskType, Training, TrainingSet, from_json
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.training.reference import read_reference

_UTC = pl.Datetime("us", "UTC")
_TIME = "event_time"
_TRUTH = "truth"


def no_labels(labels: Labels) -> pl.DataFrame:
    """What :func:`known_labels` returns where there are none."""
    return pl.DataFrame(schema={**dict.fromkeys(labels.keys, pl.String), _TIME: _UTC, _TRUTH: pl.String})


def known_labels(labels: Labels, table: pl.LazyFrame, window: Interval, as_of: datetime) -> pl.DataFrame:
    """The window's labels that were known before ``as_of``: keys as text, ``event_time`` and ``truth``.

    Of several labels for one key and time, the one known last holds. Sorted, so that equal labels are equal
    bytes.

    :raises polars.exceptions.PolarsError: a column of ``labels:`` in the spec is not in the table. Retry: no.
    """
    keys = [pl.col(key).alias(f"key:{key}") for key in labels.keys]
    rows = (
        table.select(
            *keys,
            pl.col(labels.event_time).cast(_UTC).alias(_TIME),
            pl.col(labels.column).alias(_TRUTH),
            pl.col(labels.known_at).cast(_UTC).alias("known_at"),
        )
        .filter(
            pl.col(_TIME).is_between(window.start, window.end, closed="left"),
            pl.col("known_at") < as_of,
            pl.col(_TRUTH).is_not_null(),
        )
        .collect()
    )
    texts = rows.with_columns(label_texts(rows[f"key:{key}"]).alias(key) for key in labels.keys)
    names = [*labels.keys, _TIME]
    newest = texts.sort(*names, "known_at").unique(names, keep="last", maintain_order=True)
    return newest.select(*names, label_texts(newest[_TRUTH]).alias(_TRUTH))


def join_labels(
    labels: Labels, served: pl.DataFrame, truth: pl.DataFrame, keep: Sequence[str] = ()
) -> pl.DataFrame:
    """The answers whose label is known, joined on entity keys and event time, with ``truth`` as text.

    A prediction that was logged without an event time has no label.

    :param keep: further columns of ``served``
    """
    keys = pl.Struct(dict.fromkeys(labels.keys, pl.String))
    unpacked = served.select(pl.col("entity_keys").str.json_decode(keys)).unnest("entity_keys")
    rows = pl.concat([served.select(_TIME, "outputs", "score", *keep), unpacked], how="horizontal")
    return rows.join(truth, on=[*labels.keys, _TIME], how="inner", maintain_order="left")


@dataclass(frozen=True)
class Quality:
    """What labels say of a window.

    :param answers: the mature ones with their truth
    :param cohorts: a row a UTC day: ``day``, ``predictions``, ``labelled``, and how many are ``mature``
    """

    answers: pl.DataFrame
    findings: tuple[Finding, ...]
    cohorts: pl.DataFrame


def mature_until(labels: Labels, run: Run) -> datetime:
    """Of what came before, every label is known that will ever be."""
    return min(run.interval.end, run.as_of - labels.delay)


def measure_quality(
    spec: ModelSpec,
    lake: Lake,
    training: Training,
    served: pl.DataFrame,
    truth: pl.DataFrame,
    until: datetime,
) -> Quality:
    """Hold the answers to mature rows against their labels, and estimate how good the others are.

    :param served: the version's returned rows
    :param until: see :func:`mature_until`
    """
    moment = pl.coalesce(_TIME, "received_at")
    served = served.with_columns(_day=moment.dt.date(), _mature=moment < until)
    served = served.sort(moment, maintain_order=True)
    joined = join_labels(spec.labels, served, truth, keep=("_day", "_mature"))
    answers = joined.filter("_mature")
    young = served.filter(~pl.col("_mature"))
    known = truth.filter(pl.col(_TIME) < until).height
    found = [*findings(spec, training.classes, answers, served.height - young.height, known)]
    if young.height and spec.task != "regression":
        found += _estimates(spec, lake, training, answers, young)
    return Quality(answers, tuple(found), _cohorts(served, joined))


def _cohorts(served: pl.DataFrame, joined: pl.DataFrame) -> pl.DataFrame:
    days = served.group_by("_day").agg(predictions=pl.len(), mature=pl.col("_mature").sum())
    labelled = joined.group_by("_day").agg(labelled=pl.len())
    counted = days.join(labelled, on="_day", how="left").with_columns(pl.col("labelled").fill_null(0))
    days_first = counted.with_columns(day=pl.col("_day").dt.to_string()).sort("day")
    return days_first.select("day", "predictions", "labelled", "mature")


def findings(
    spec: ModelSpec, classes: Sequence[str], answers: pl.DataFrame, served: int, known: int
) -> Iterator[Finding]:
    """Label coverage, and every metric of the task on the mature rows that have a label.

    :param served: how many mature predictions there were
    :param known: how many labels of that time are known
    """
    n = answers.height
    if served:
        yield Finding("label_coverage", None, n / served, served)
    if not n:
        error = _why_none(spec, served, known)
        for metric in METRICS[spec.task]:
            yield Finding(metric, None, None, 0, error=error)
        return
    judged = as_answers(spec.task, classes, answers, spec.evaluation.threshold)
    sure = bounds(judged, list(METRICS[spec.task]), seed=0)
    for metric in METRICS[spec.task]:
        found = measured(metric, None, n, lambda metric=metric: measure(metric, judged))  # type: ignore[misc]
        low, high = sure.get(metric, (None, None))
        yield replace(found, low=low, high=high)
    if spec.task == "multiclass":
        return
    truths = judged.positive if spec.task == "binary" else judged.truth
    scores = judged.score if spec.task == "binary" else judged.outputs
    yield measured("label_mean", None, n, lambda: float(np.mean(truths)))
    # The direction, which bias and calibration_error do not tell; of probabilities: predicted less observed.
    yield measured("mean_error", None, n, lambda: float(np.mean(scores) - np.mean(truths)))


def _why_none(spec: ModelSpec, served: int, known: int) -> str:
    if not served:
        delay = format_duration(spec.labels.delay)
        return f"no row of this window is older than labels.delay ({delay}): give monitoring a longer window"
    if not known:
        return "no label of this window is known yet"
    return (
        f"{known} labels of this window are known, but none has the {', '.join(spec.labels.keys)} "
        f"and event_time of a prediction: ask with the {spec.labels.event_time} of the label"
    )


def _estimates(
    spec: ModelSpec, lake: Lake, training: Training, answers: pl.DataFrame, young: pl.DataFrame
) -> Iterator[Finding]:
    """How good the answers to young rows probably are; no figure where estimates have just been wrong."""
    names = list(METRICS[spec.task])
    try:
        known = as_answers(spec.task, training.classes, answers, spec.evaluation.threshold)
        if len(known) < 2 * MIN_KNOWN:  # for the calibration and for its check
            known = _holdout_answers(spec, lake, training)
        outputs = _outputs(spec.task, young, len(training.classes))
        estimates, wrong = estimate(outputs, known, names, seed=0), misses(known, names, seed=0)
    except OSError:
        raise  # the lake is unreachable: a retry helps
    except Exception as error:  # noqa: BLE001 - what cannot be estimated must not cost what is measured
        text = told(error)
        yield from (Finding(f"estimated_{name}", None, None, young.height, error=text) for name in names)
        return
    for name in names:
        found = Finding(f"estimated_{name}", None, None, young.height)
        if name in wrong:
            text = f"estimates of it were wrong on rows whose labels are known: {wrong[name]}"
            yield replace(found, error=text)
        elif name in estimates:
            one = estimates[name]
            yield replace(found, value=one.value, low=one.low, high=one.high)


def _holdout_answers(spec: ModelSpec, lake: Lake, training: Training) -> Answers:
    """The estimator's answers to the training's holdout, which no label is awaited for."""
    training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
    reference = read_reference(lake, training.reference_path, training.columns, spec.task)
    labels = lake.scan([training_set.holdout_path]).select(training_set.label_column).collect().to_series()
    truth = class_indices(labels, training.classes)
    return Answers(spec.task, truth, reference.outputs[: len(truth)], spec.evaluation.threshold)


def as_answers(task: TaskType, classes: Sequence[str], answers: pl.DataFrame, threshold: float) -> Answers:
    """Logged answers with their truth in the form that the metrics take."""
    outputs = _outputs(task, answers, len(classes))
    if task == "regression":
        return Answers(task, answers[_TRUTH].cast(pl.Float64).to_numpy(), outputs)
    return Answers(task, class_indices(answers[_TRUTH], classes), outputs, threshold)


def _outputs(task: TaskType, rows: pl.DataFrame, classes: int) -> Array:
    """What was answered: ``(n,)`` predictions or ``(n, classes)`` probabilities."""
    if task == "regression":
        return rows["score"].to_numpy()
    if task == "binary":
        positive = rows["score"].to_numpy()
        return np.column_stack([1 - positive, positive])
    decoded = rows["outputs"].str.json_decode(pl.Struct({"probabilities": pl.List(pl.Float64)}))
    return decoded.struct.field("probabilities").list.to_array(classes).to_numpy()


def write_report(
    lake: Lake, path: str, task: TaskType, classes: Sequence[str], answers: pl.DataFrame
) -> tuple[str | None, list[Finding]]:
    """Write Evidently's ``quality.html`` and ``quality.json``.

    :returns: the page's path, None if it could not be made; and why
    """
    try:
        report = evidently.quality_report(_reported(task, classes, answers), task)
    except Exception as error:  # noqa: BLE001 - the page is to look at; its absence must not cost the findings
        text = f"no quality page: {told(error)}"
        return None, [Finding("evidently", None, None, answers.height, error=text)]
    lake.write_bytes(f"{path}/quality.json", report.snapshot.encode())
    return lake.write_bytes(f"{path}/quality.html", report.html.encode()), []


def _reported(task: TaskType, classes: Sequence[str], answers: pl.DataFrame) -> pl.DataFrame:
    judged = as_answers(task, classes, evidently.thin(answers.lazy(), answers.height), 0.5)
    if task == "regression":
        return pl.DataFrame({"truth": judged.truth, "score": judged.outputs})
    if task == "binary":
        return pl.DataFrame({"truth": judged.truth, "score": judged.score})
    names = {UNKNOWN_CLASS: "(unknown)", **dict(enumerate(classes))}
    truths = [names[int(index)] for index in judged.truth]
    return pl.DataFrame({"truth": truths, "label": [names[int(index)] for index in judged.decisions]})
