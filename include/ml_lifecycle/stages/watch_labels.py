"""The part of the watch that holds both sides' answers against labels and business metrics, as they arrive.

Unlike what the log tells by itself, these become known later for rows that were counted before: each look
counts all of a step anew. As everywhere in the watch a request counts once, by its first row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import CHECK_ID_PREFIX, Part, read_parts
from ml_lifecycle.delivery.harm import harm, losses
from ml_lifecycle.delivery.judging import Observed
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.sides import Apart, PairedMean, PairedShare
from ml_lifecycle.delivery.tallies import Mean, Share
from ml_lifecycle.records import Interval, Release
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.watch import Business, LabelLoss, Watch
from ml_lifecycle.stages.monitor_quality import as_answers, join_labels, known_labels

Tables = Callable[[str], pl.LazyFrame]
"""A frame of ``features.py``'s ``tables()`` by name."""

_BATCH_BYTES = 64 * 2**20
_ROWS = ("prediction_id", "model_version", "entity_keys", "event_time", "outputs", "score")


@dataclass(frozen=True)
class WatchedStep:
    """One step of a release, and the log's parts that its rows may lie in.

    :param watch: what can be measured at the step
    :param unreadable: parts that are left out
    """

    spec: ModelSpec
    watch: Watch
    lake: Lake
    release: Release
    parts: Sequence[Part]
    unreadable: Collection[str]
    challenger: Variant
    champion: Variant


def observe_labels(step: WatchedStep, tables: Tables, as_of: datetime) -> tuple[Observed, ...]:
    """Totals of ``labels`` and each business metric, of all rows of a step whose outcome is known.

    :param as_of: only what was known before counts
    """
    paired = step.challenger.role == "shadow"
    metrics: dict[str, LabelLoss | Business] = {**step.watch.business}
    if step.watch.labels is not None:
        metrics["labels"] = step.watch.labels
    observed: list[Observed] = []
    for name, metric in metrics.items():
        labels = _labels_of(step.spec.labels, name, metric)
        rows = _known_rows(step, metric, labels, tables(labels.table), as_of)
        shares = isinstance(metric, LabelLoss) and metric.loss == "zero_one"
        for segment, inside in _segments(step.watch, rows):
            counted = _count(inside, step.release.version, paired, shares)
            observed.append(Observed(name, counted, segment))
    return tuple(observed)


def _known_rows(
    step: WatchedStep, metric: LabelLoss | Business, labels: Labels, table: pl.LazyFrame, as_of: datetime
) -> pl.DataFrame:
    """The rows whose outcome is known, with ``harm``."""
    schema = _schema(step.watch)
    found = [pl.DataFrame(schema=schema)]
    for rows in _answered(step):
        times = rows["event_time"].drop_nulls().sort()
        if times.is_empty():
            continue
        truth = known_labels(labels, table, Interval(times[0], times[-1] + timedelta(microseconds=1)), as_of)
        for variant in (step.challenger, step.champion):
            mine = rows.filter(pl.col("model_version") == variant.version)
            joined = join_labels(labels, mine, truth, keep=[name for name in schema if name != "harm"])
            if joined.height:
                harms = harm(_values(step.spec, variant, metric, joined), metric.scale)
                found.append(joined.with_columns(harm=pl.Series(harms)).select(*schema))
    return pl.concat(found)


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
    segments = {f"segment:{column}": pl.String() for column in watch.segments}
    texts = {"prediction_id": pl.String(), "model_version": pl.String()}
    return {**texts, **segments, "harm": pl.Float64()}


def _answered(step: WatchedStep) -> Iterator[pl.DataFrame]:
    """The step's answered rows that say what they are about, in batches of bounded size."""
    no_check = (pl.col("row") == 0) & ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)
    mine = (pl.col("route_revision") == step.release.revision) & (pl.col("status") == 200)
    segments = [
        pl.coalesce(
            *(pl.col(where).str.json_path_match(f"$['{column}']") for where in ("features", "entity_keys"))
        ).alias(f"segment:{column}")
        for column in step.watch.segments
    ]
    kinds: dict[str, list[Part]] = {}
    for part in step.parts:
        kinds.setdefault(part.kind, []).append(part)
    for alike in kinds.values():
        for batch in _in_batches(alike):
            paths = [part.path for part in batch if part.path not in step.unreadable]
            if paths:
                rows = read_parts(step.lake, paths).filter(no_check & mine)
                yield rows.select(*_ROWS, *segments).collect()


def _in_batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        if batch and size + part.size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.size
    if batch:
        yield batch


def _segments(watch: Watch, rows: pl.DataFrame) -> Iterator[tuple[str | None, pl.DataFrame]]:
    yield None, rows
    for column, values in watch.segments.items():
        for value in values:
            inside = rows.filter(pl.col(f"segment:{column}") == value)
            if inside.height:
                yield f"{column}={value}", inside


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
