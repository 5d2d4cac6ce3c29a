"""The part of the monitor that holds answers against the labels that have arrived.

**Which rows.** Those that are mature: older than ``labels.delay`` at the run's ``as_of``. What is known of
younger ones by then is what became known early, which is not a fair sample: late flights land late. They are
counted by day beside the others, and of classifiers it is estimated how good the answers to them are, from
the answers' own probabilities (:mod:`ml_lifecycle.evaluation.estimation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import polars as pl

from ml_lifecycle.adapters import evidently
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import SCHEMA, PredictionWindow
from ml_lifecycle.errors import NoSpaceError
from ml_lifecycle.evaluation.bands import ROWS, bounds
from ml_lifecycle.evaluation.estimation import MIN_KNOWN, estimate, misses
from ml_lifecycle.evaluation.totals import Totals
from ml_lifecycle.metrics import METRICS, UNKNOWN_CLASS, Answers, Array, class_indices, label_texts, measure
from ml_lifecycle.personal import told
from ml_lifecycle.profiles.drift import measured
from ml_lifecycle.profiles.sample import TURN, smallest, turns
from ml_lifecycle.records import Finding, Interval, Run, TaskType, Training, TrainingSet, digest_of, from_json
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.monitor_kept import Found, KeptFindings
from ml_lifecycle.stages.monitor_labels import TIME, TRUTH, KnownLabels, known_rows
from ml_lifecycle.stages.monitor_traffic import RETURNED, first_and_last, span
from ml_lifecycle.training.reference import read_reference

_UTC = pl.Datetime("us", "UTC")
_BATCH_ROWS = 131_072
# Of what is known as many rows as two times those that are drawn: for a calibration, and for its check.
_SAMPLE = 2 * ROWS


def served_rows(
    log: PredictionWindow, digest: str, task: TaskType, kept: KeptFindings, stretches: Sequence[Stretch]
) -> Iterator[pl.DataFrame]:
    """The returned rows of a model in batches, with what is held against labels.

    They are kept, narrow as they are: labels come for weeks, and the log has a file for every second.

    :param stretches: where the rows are
    """
    columns = _held_against_labels(task)
    mine = RETURNED & (pl.col("model_digest") == digest)

    def read(stretch: Stretch, beyond: bool) -> Found:
        empty = pl.DataFrame(schema={name: SCHEMA[name] for name in columns})
        rows = pl.concat([empty, *log.batches(columns, mine, stretch, beyond=beyond)])
        moments = rows.select(pl.coalesce(TIME, "received_at")).to_series()
        return Found(*first_and_last(span(moments)), {}, rows)

    kind = f"answers-{digest_of([digest, columns])[:16]}"
    for stretch in stretches:
        found = kept.find(stretch, kind, lambda beyond, stretch=stretch: read(stretch, beyond))  # type: ignore[misc]
        if found is not None:
            yield from found.rows.iter_slices(_BATCH_ROWS)


def _held_against_labels(task: TaskType) -> tuple[str, ...]:
    """Columns of the log. Outputs are JSON there: to make it of other tasks' would take most of the time."""
    return ("received_at", TIME, "entity_keys", "score", *(("outputs",) if task == "multiclass" else ()))


def known_labels(labels: Labels, table: pl.LazyFrame, window: Interval, as_of: datetime) -> pl.DataFrame:
    """The window's labels that were known before ``as_of``: keys as text, ``event_time`` and ``truth``.

    Of several for one key and time, the one known last holds; if that is null, none does. All in memory:
    :class:`.monitor_labels.KnownLabels` has them in parts.

    :raises polars.exceptions.PolarsError: a column of ``labels:`` in the spec is not in the table. Retry: no.
    """
    rows = known_rows(labels, table, window, as_of).collect()
    texts = rows.with_columns(label_texts(rows[f"key:{key}"]).alias(key) for key in labels.keys)
    names = [*labels.keys, TIME]
    ordered = texts.sort(*names, "known_at", TRUTH)
    newest = ordered.unique(names, keep="last", maintain_order=True).drop_nulls(TRUTH)
    return newest.select(*names, label_texts(newest[TRUTH]).alias(TRUTH))


def join_labels(
    labels: Labels, served: pl.DataFrame, truth: pl.DataFrame, keep: Sequence[str] = ()
) -> pl.DataFrame:
    """The answers whose label is known, joined on entity keys and event time, with ``truth`` as text.

    A prediction that was logged without an event time has no label.

    :param keep: further columns of ``served``
    """
    keys = pl.Struct(dict.fromkeys(labels.keys, pl.String))
    unpacked = served.select(pl.col("entity_keys").str.json_decode(keys)).unnest("entity_keys")
    rows = pl.concat([served.select(TIME, "outputs", "score", *keep), unpacked], how="horizontal")
    return rows.join(truth, on=[*labels.keys, TIME], how="inner", maintain_order="left")


@dataclass(frozen=True)
class Quality:
    """What labels say of a window.

    :param labelled: how many mature rows have a label
    :param answers: some of these, spread over their time evenly, with their truth
    :param cohorts: a row a UTC day: ``day``, ``predictions``, ``labelled``, and how many are ``mature``
    """

    labelled: int
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
    served: Iterable[pl.DataFrame],
    known: KnownLabels,
    until: datetime,
) -> Quality:
    """Hold the answers to mature rows against their labels, and estimate how good the others are.

    :param served: the version's returned rows in batches, of :func:`served_rows`
    :param until: see :func:`mature_until`
    """
    window = _Answered(spec, training, until)
    for rows in known.join(window.seen(served)):
        window.judge(rows)
    answers = window.answers.sort("_moment", TURN)
    found = [*findings(spec, training.classes, window, answers, known.before(until))]
    if window.young and spec.task != "regression":
        found += _estimates(spec, lake, training, answers, window)
    return Quality(window.totals.rows, answers, tuple(found), window.cohorts())


class _Answered:
    """The window's answers as they pass by: counted, and some of them kept."""

    def __init__(self, spec: ModelSpec, training: Training, until: datetime) -> None:
        self._spec = spec
        self._training = training
        self._until = until
        self._days: list[pl.DataFrame] = []
        self._labelled: list[pl.DataFrame] = []
        self.totals = Totals(spec.task)
        self.mature = 0
        self.young = 0
        self.young_rows: pl.DataFrame | None = None
        self._judged: pl.DataFrame | None = None

    def seen(self, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The batches, counted by day."""
        for number, batch in enumerate(batches):
            moment = pl.coalesce(TIME, "received_at")
            rows = batch.select(
                *(name for name in _held_against_labels(self._spec.task) if name != "received_at"),
                moment.alias("_moment"),
                moment.dt.date().alias("_day"),
                (moment < self._until).alias("_mature"),
                turns(pl.zeros(batch.height, pl.UInt32, eager=True), str(number)),
            )
            self._days.append(rows.group_by("_day").agg(predictions=pl.len(), mature=pl.col("_mature").sum()))
            young = rows.filter(~pl.col("_mature"))
            self.young += young.height
            self.mature += rows.height - young.height
            if young.height:
                self.young_rows = _some(self.young_rows, young, ROWS)
            yield rows

    def judge(self, rows: pl.DataFrame) -> None:
        """Take in rows with their truth."""
        self._labelled.append(rows.group_by("_day").agg(labelled=pl.len()))
        mature = rows.filter("_mature")
        spec = self._spec
        for some in mature.iter_slices(_BATCH_ROWS):
            self.totals.add(as_answers(spec.task, self._training.classes, some, spec.evaluation.threshold))
        self._judged = _some(self._judged, mature, _SAMPLE)

    @property
    def answers(self) -> pl.DataFrame:
        """Some of the mature rows with their truth."""
        if self._judged is not None:
            return self._judged
        floats, text = pl.Float64(), pl.String()
        return pl.DataFrame(schema={"score": floats, TRUTH: text, "_moment": _UTC, TURN: floats})

    def cohorts(self) -> pl.DataFrame:
        """By day, how many there are."""
        counts = ("predictions", "labelled", "mature")
        empty = pl.DataFrame(schema={"_day": pl.Date, **dict.fromkeys(counts, pl.UInt32)})
        found = pl.concat([empty, *self._days, *self._labelled], how="diagonal_relaxed")
        summed = found.group_by("_day").agg(pl.sum(*counts)).sort("_day")
        return summed.select(pl.col("_day").dt.to_string().alias("day"), *counts)


def _some(before: pl.DataFrame | None, rows: pl.DataFrame, most: int) -> pl.DataFrame:
    chosen = smallest(rows, most)
    return chosen if before is None else smallest(pl.concat([before, chosen]), most)


def findings(
    spec: ModelSpec, classes: Sequence[str], window: _Answered, answers: pl.DataFrame, known: int
) -> Iterator[Finding]:
    """Label coverage, and every metric of the task on the mature rows that have a label.

    :param answers: some of them
    :param known: how many labels of that time are known
    """
    totals, n = window.totals, window.totals.rows
    if window.mature:
        yield Finding("label_coverage", None, n / window.mature, window.mature)
    if not n:
        error = _why_none(spec, window.mature, known)
        for metric in METRICS[spec.task]:
            yield Finding(metric, None, None, 0, error=error)
        return
    some = as_answers(spec.task, classes, answers, spec.evaluation.threshold)

    def value(metric: str) -> float:
        found = totals.metrics()
        return found[metric] if metric in found else measure(metric, some)  # which says why not

    told = [measured(metric, None, n, lambda metric=metric: value(metric)) for metric in METRICS[spec.task]]  # type: ignore[misc]
    values = {one.metric: one.value for one in told if one.value is not None}
    sure = bounds(some, list(values), 0, values, n)
    for one in told:
        low, high = sure.get(one.metric, (None, None))
        yield replace(one, low=low, high=high)
    if spec.task == "multiclass":
        return
    yield measured("label_mean", None, n, lambda: totals.means()[0])
    # The direction, which bias and calibration_error do not tell; of probabilities: predicted less observed.
    yield measured("mean_error", None, n, lambda: totals.means()[1])


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
    spec: ModelSpec, lake: Lake, training: Training, answers: pl.DataFrame, window: _Answered
) -> Iterator[Finding]:
    """How good the answers to young rows probably are; no figure where estimates have just been wrong."""
    assert window.young_rows is not None  # who has none, estimates nothing
    n, young = window.young, window.young_rows.sort("_moment", TURN)
    names = list(METRICS[spec.task])
    try:
        known = as_answers(spec.task, training.classes, answers, spec.evaluation.threshold)
        if len(known) < 2 * MIN_KNOWN:  # for the calibration and for its check
            known = _holdout_answers(spec, lake, training)
        outputs = _outputs(spec.task, young, len(training.classes))
        estimates, wrong = estimate(outputs, known, names, seed=0), misses(known, names, seed=0)
    except (OSError, NoSpaceError):
        raise  # the lake is unreachable or full: a retry helps
    except Exception as error:  # noqa: BLE001 - what cannot be estimated must not cost what is measured
        text = told(error)
        yield from (Finding(f"estimated_{name}", None, None, n, error=text) for name in names)
        return
    for name in names:
        found = Finding(f"estimated_{name}", None, None, n)
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
        return Answers(task, answers[TRUTH].cast(pl.Float64).to_numpy(), outputs)
    index = {name: position for position, name in enumerate(classes)}
    truth = answers[TRUTH].replace_strict(index, default=UNKNOWN_CLASS, return_dtype=pl.Int64)
    return Answers(task, truth.to_numpy(), outputs, threshold)


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
