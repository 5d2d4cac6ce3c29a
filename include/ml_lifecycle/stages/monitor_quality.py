"""The part of the monitor that holds answers against the labels that have arrived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import polars as pl

from ml_lifecycle.adapters import evidently
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.metrics import METRICS, UNKNOWN_CLASS, Answers, class_indices, label_texts, measure
from ml_lifecycle.profiles.drift import measured
from ml_lifecycle.records import Finding, Interval, TaskType
from ml_lifecycle.spec.model import Labels, ModelSpec

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


def findings(
    spec: ModelSpec, classes: Sequence[str], answers: pl.DataFrame, served: int, known: int
) -> Iterator[Finding]:
    """Label coverage, and every metric of the task on the labelled rows.

    :param served: how many predictions there were
    :param known: how many labels were
    """
    n = answers.height
    yield Finding("label_coverage", None, n / served, served)
    if not n:
        error = "no label of this window is known yet"
        if known:
            error = (
                f"{known} labels of this window are known, but none has the {', '.join(spec.labels.keys)} "
                f"and event_time of a prediction: ask with the {spec.labels.event_time} of the label"
            )
        for metric in METRICS[spec.task]:
            yield Finding(metric, None, None, 0, error=error)
        return
    judged = as_answers(spec.task, classes, answers, spec.evaluation.threshold)
    for metric in METRICS[spec.task]:
        yield measured(metric, None, n, lambda metric=metric: measure(metric, judged))  # type: ignore[misc]
    if spec.task == "multiclass":
        return
    truths = judged.positive if spec.task == "binary" else judged.truth
    scores = judged.score if spec.task == "binary" else judged.outputs
    yield measured("label_mean", None, n, lambda: float(np.mean(truths)))
    # The direction, which bias and calibration_error do not tell; of probabilities: predicted less observed.
    yield measured("mean_error", None, n, lambda: float(np.mean(scores) - np.mean(truths)))


def as_answers(task: TaskType, classes: Sequence[str], answers: pl.DataFrame, threshold: float) -> Answers:
    """Logged answers with their truth in the form that the metrics take."""
    if task == "regression":
        return Answers(task, answers[_TRUTH].cast(pl.Float64).to_numpy(), answers["score"].to_numpy())
    truth = class_indices(answers[_TRUTH], classes)
    if task == "binary":
        positive = answers["score"].to_numpy()
        return Answers(task, truth, np.column_stack([1 - positive, positive]), threshold)
    return Answers(task, truth, _probabilities(answers, len(classes)))


def _probabilities(answers: pl.DataFrame, classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    decoded = answers["outputs"].str.json_decode(pl.Struct({"probabilities": pl.List(pl.Float64)}))
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
        text = f"no quality page: {type(error).__name__}: {error}"
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
