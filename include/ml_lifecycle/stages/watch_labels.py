"""The part of the watch that holds both sides' answers against labels and business metrics, as they arrive.

Unlike what the log tells by itself, these become known later for rows that were counted before: each look
counts all of a step anew. As everywhere in the watch a request counts once, by its first row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import LakeFileMissingError
from ml_lifecycle.delivery.answered import answered
from ml_lifecycle.delivery.harm import harm, losses
from ml_lifecycle.delivery.judging import Observed
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.sides import Apart, PairedMean, PairedShare
from ml_lifecycle.delivery.step_log import StepLog, segment_schema, segments
from ml_lifecycle.delivery.tallies import Mean, Share
from ml_lifecycle.records import Interval
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.watch import Business, LabelLoss, Watch
from ml_lifecycle.stages.monitor_quality import as_answers, join_labels, known_labels

Tables = Callable[[str], pl.LazyFrame]
"""A frame of ``features.py``'s ``tables()`` by name; KeyError where there is none."""


@dataclass(frozen=True)
class WatchedStep:
    """One step of a release, and its log.

    :param watch: what can be measured at the step
    :param unreadable: parts that are left out
    """

    spec: ModelSpec
    watch: Watch
    log: StepLog
    unreadable: Collection[str]
    challenger: Variant
    champion: Variant


def uncountable(spec: ModelSpec, watch: Watch, tables: Tables) -> dict[str, str]:
    """Why a metric can never be counted, by its name: its table, or a column in it, does not exist.

    :param watch: what can be measured at a step
    """
    lacking = {
        name: _lacks(_labels_of(spec.labels, name, one), tables) for name, one in _metrics(watch).items()
    }
    return {name: why for name, why in lacking.items() if why is not None}


def observe_labels(
    step: WatchedStep, tables: Tables, as_of: datetime, without: Collection[str] = ()
) -> tuple[Observed, ...]:
    """Totals of ``labels`` and each business metric, of all rows of a step whose outcome is known.

    :param as_of: only what was known before counts
    :param without: metrics that are :func:`uncountable`
    """
    paired = step.challenger.role == "shadow"
    metrics = {name: metric for name, metric in _metrics(step.watch).items() if name not in without}
    known = partial(_known_rows, step, metrics, tables, as_of)
    try:
        rows = known(answered(step.log, step.watch.segments, step.unreadable))
    # Another look, of a task that was taken for dead, has merged its files; or one of them is torn.
    except (LakeFileMissingError, pl.exceptions.PolarsError):
        rows = known(answered(step.log, step.watch.segments, step.unreadable, anew=True))
    observed: list[Observed] = []
    for name, metric in metrics.items():
        shares = isinstance(metric, LabelLoss) and metric.loss == "zero_one"
        for segment, inside in _segments(step.watch, rows[name]):
            counted = _count(inside, step.log.release.version, paired, shares)
            observed.append(Observed(name, counted, segment))
    return tuple(observed)


def _metrics(watch: Watch) -> dict[str, LabelLoss | Business]:
    labels = {} if watch.labels is None else {"labels": watch.labels}
    return {**watch.business, **labels}


def _lacks(labels: Labels, tables: Tables) -> str | None:
    try:
        present = tables(labels.table).collect_schema()
    except KeyError:
        return f"tables() of features.py returns no {labels.table!r}"
    wanted = (labels.column, *labels.keys, labels.event_time, labels.known_at)
    missing = ", ".join(repr(column) for column in wanted if column not in present)
    return f"table {labels.table!r} of features.py has no column {missing}" if missing else None


def _known_rows(
    step: WatchedStep,
    metrics: Mapping[str, LabelLoss | Business],
    tables: Tables,
    as_of: datetime,
    batches: Iterable[pl.DataFrame],
) -> dict[str, pl.DataFrame]:
    """By metric the rows whose outcome is known, with ``harm``."""
    found = {name: [pl.DataFrame(schema=_schema(step.watch))] for name in metrics}
    for rows in batches:
        for name, metric in metrics.items():
            found[name].extend(_joined(step, name, metric, tables, as_of, rows))
    return {name: pl.concat(frames) for name, frames in found.items()}


def _joined(
    step: WatchedStep,
    name: str,
    metric: LabelLoss | Business,
    tables: Tables,
    as_of: datetime,
    rows: pl.DataFrame,
) -> Iterator[pl.DataFrame]:
    schema = _schema(step.watch)
    labels, times = _labels_of(step.spec.labels, name, metric), rows["event_time"].sort()
    about = Interval(times[0], times[-1] + timedelta(microseconds=1))
    truth = known_labels(labels, tables(labels.table), about, as_of)
    for variant in (step.challenger, step.champion):
        mine = rows.filter(pl.col("model_version") == variant.version)
        joined = join_labels(labels, mine, truth, keep=[name for name in schema if name != "harm"])
        if joined.height:
            harms = harm(_values(step.spec, variant, metric, joined), metric.scale)
            yield joined.with_columns(harm=pl.Series(harms)).select(*schema)


def _labels_of(labels: Labels, name: str, metric: LabelLoss | Business) -> Labels:
    if isinstance(metric, LabelLoss):
        return labels
    return labels.model_copy(update={"table": metric.table or labels.table, "column": metric.column or name})


def _values(
    spec: ModelSpec, variant: Variant, metric: LabelLoss | Business, joined: pl.DataFrame
) -> NDArray[np.float64]:
    if isinstance(metric, LabelLoss):
        answers = as_answers(spec.task, variant.classes, joined, variant.threshold)
        return losses(answers, metric.loss)
    return joined["truth"].cast(pl.Float64).to_numpy()


def _schema(watch: Watch) -> dict[str, pl.DataType]:
    texts = {"prediction_id": pl.String(), "model_version": pl.String()}
    return {**texts, **segment_schema(watch.segments), "harm": pl.Float64()}


def _segments(watch: Watch, rows: pl.DataFrame) -> Iterator[tuple[str | None, pl.DataFrame]]:
    yield None, rows
    for name, condition in segments(watch):
        inside = rows.filter(condition)
        if inside.height:
            yield name, inside


def _count(
    rows: pl.DataFrame, challenger: str, paired: bool, shares: bool
) -> Apart | PairedShare | PairedMean:
    mine = pl.col("model_version") == challenger
    sides = [rows.filter(mine), rows.filter(~mine)]
    if paired:
        key = "prediction_id"
        one_each = [side.unique(key, keep="none") for side in sides]
        both = one_each[0].join(one_each[1], on=key, how="inner", suffix=":champion")
        one, two = both["harm"].to_numpy(), both["harm:champion"].to_numpy()
        return PairedShare.of(one > 0, two > 0) if shares else PairedMean.of(one, two)
    one, two = (side["harm"].to_numpy() for side in sides)
    return Apart(Share.of(one > 0), Share.of(two > 0)) if shares else Apart(Mean.of(one), Mean.of(two))
