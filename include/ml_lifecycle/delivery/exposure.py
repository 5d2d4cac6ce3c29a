"""What a release's traffic showed so far: totals for the judge, counted from the prediction log.

A request counts once, by its first row: the rows of a request are of one client and one moment, they fail and
are late together, and to count them as if they were many observations would make bounds of chance.

What is kept between two looks is a number a server and the totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import UNREADABLE, Part, alike, cut, scan_parts
from ml_lifecycle.delivery.judging import Observed, add_up
from ml_lifecycle.delivery.sides import Apart, PairedScores, PairedShare
from ml_lifecycle.delivery.step_log import (
    BATCH_BYTES,
    StepLog,
    field_as_text,
    first_rows,
    segment_columns,
    segment_schema,
    segments,
)
from ml_lifecycle.delivery.tallies import Scores, Share
from ml_lifecycle.records import Record
from ml_lifecycle.spec.watch import Watch

# A copy is scored within a second of its answer, so both rows are in the same part or in neighbours.
_NEIGHBOURS = 20
_BASELINE_PARTS = 200
_BASELINE_ROWS = 200
_BINS = 20
_NARROW = {
    "prediction_id": pl.String,
    "model_version": pl.String,
    "latency_ms": pl.Float64,
    "score": pl.Float64,
    "status": pl.Int64,
    "decision": pl.String,
}


@dataclass(frozen=True)
class Baseline(Record):
    """The champion before the release: what a challenger's answers are held against.

    :param latency_ms: p99 of its answers
    :param edges: of the bins that scores are counted in: its own quantiles, a twentieth of its rows a bin
    :param rows: of the champion's that it was made of
    """

    schema: ClassVar[str] = "watch_baseline/1"
    latency_ms: float
    edges: tuple[float, ...]
    rows: int


@dataclass(frozen=True)
class Exposure(Record):
    """What was counted of one step.

    :param counted: server → number of the newest of its parts that is counted
    :param observed: totals of each metric, and of each segment that has rows
    :param unreadable: parts that cannot be read: one torn file must not blind the watch
    """

    schema: ClassVar[str] = "watch_exposure/1"
    revision: int
    counted: Mapping[str, int] = field(default_factory=dict)
    observed: tuple[Observed, ...] = ()
    unreadable: tuple[str, ...] = ()


def champion_before(log: StepLog, champion: str) -> Baseline | None:
    """Make the baseline of the newest requests that the champion answered; None while they are too few.

    What it answers beside the challenger counts too: that is its own, and cannot follow the challenger.

    :param log: of the first step that has traffic
    :param champion: its version
    """
    parts = sorted(log.parts, key=lambda part: part.first)
    mine = first_rows() & (pl.col("model_version") == champion) & pl.col("returned")
    mine &= pl.col("status") == 200
    rows = _collect(log.lake, [], mine, ())[0]
    while parts and rows.height < _BASELINE_ROWS:
        parts, newest = parts[:-_BASELINE_PARTS], parts[-_BASELINE_PARTS:]
        rows = pl.concat([rows, _collect(log.lake, newest, mine, ())[0]])
    if rows.height < _BASELINE_ROWS:
        return None
    scores = rows["score"].drop_nulls().drop_nans().to_numpy()
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    edges = tuple(np.unique(np.quantile(scores, inner)).tolist()) if len(scores) else ()
    return Baseline(float(np.quantile(rows["latency_ms"].to_numpy(), 0.99)), edges, rows.height)


def latency_limit(watch: Watch, baseline: Baseline) -> float | None:
    """What an answer must take longer than, in milliseconds, to count as slow; None if none is counted so."""
    return None if watch.latency is None else watch.latency.limit_ms or baseline.latency_ms


def count(log: StepLog, paired: bool, watch: Watch, baseline: Baseline, before: Exposure) -> Exposure:
    """Count the parts that came since ``before``; the same whoever counts, and however often.

    :param paired: whether the challenger is a shadow: rows that both sides answered are then compared
    :param watch: what can be measured at this step
    """
    exposure, version = before, log.release.version
    for server in log.servers:
        for fresh, near in _batches(log, server, before.counted.get(server, 0)):
            rows, unreadable = _rows_of(log, watch, fresh, near if paired else ())
            sides = _pair(rows, version) if paired else _split(rows, version)
            found = _observe(watch, baseline, sides)
            exposure = replace(
                exposure,
                counted={**exposure.counted, server: fresh[-1].number},
                observed=add_up((*exposure.observed, *found)),
                unreadable=(*exposure.unreadable, *unreadable),
            )
    return exposure


@dataclass(frozen=True)
class _Sides:
    """Rows of both sides.

    :param paired: whether they are the same requests, row by row
    """

    challenger: pl.DataFrame
    champion: pl.DataFrame
    paired: bool

    def where(self, condition: pl.Expr) -> _Sides:
        """The rows of a segment; of pairs those of which either row says so: one that failed says nothing."""
        one, two = (
            side.select(condition.fill_null(False)).to_series() for side in (self.challenger, self.champion)
        )
        if self.paired:
            one = two = one | two
        return _Sides(self.challenger.filter(one), self.champion.filter(two), self.paired)

    def answered(self) -> _Sides:
        """The rows that were answered; of pairs those that both answered."""
        one, two = (side["status"] == 200 for side in (self.challenger, self.champion))
        if self.paired:
            one = two = one & two
        return _Sides(self.challenger.filter(one), self.champion.filter(two), self.paired)

    def share(self, bad: pl.Expr) -> Apart | PairedShare:
        """How many rows of each side are bad."""
        one, two = (side.select(bad).to_series().to_numpy() for side in (self.challenger, self.champion))
        return PairedShare.of(one, two) if self.paired else Apart(Share.of(one), Share.of(two))

    def scores(self, edges: Sequence[float]) -> Apart | PairedScores:
        """The scores of each side, counted."""
        one, two = (side["score"].fill_null(float("nan")) for side in (self.challenger, self.champion))
        if self.paired:
            return PairedScores.of(one, two, edges)
        return Apart(Scores.of(one, edges), Scores.of(two, edges))


def _batches(log: StepLog, server: str, mark: int) -> Iterator[tuple[list[Part], list[Part]]]:
    """A server's parts that are to be counted, in order; and those before and behind, counted or not.

    :param mark: number of the newest part that is counted
    """
    own, settled = log.servers[server], log.settled(server)
    at = sum(part.number <= mark for part in settled)
    for batch in cut(settled[at:], lambda part: part.size, BATCH_BYTES):
        end = at + len(batch)
        yield batch, [*own[max(0, at - _NEIGHBOURS) : at], *own[end : end + _NEIGHBOURS]]
        at = end


def _rows_of(
    log: StepLog, watch: Watch, fresh: Sequence[Part], near: Sequence[Part]
) -> tuple[pl.DataFrame, list[str]]:
    """The step's rows, ``fresh`` telling which lie in parts that are counted now; and what cannot be read."""
    counted, unreadable = _collect(log.lake, fresh, log.requests(), tuple(watch.segments))
    beside, _ = _collect(log.lake, near, log.requests(), tuple(watch.segments))
    both = [counted.with_columns(fresh=pl.lit(True)), beside.with_columns(fresh=pl.lit(False))]
    return pl.concat(both), unreadable


def _collect(
    lake: Lake, parts: Sequence[Part], where: pl.Expr, columns: Sequence[str]
) -> tuple[pl.DataFrame, list[str]]:
    """Narrow columns of requests, and what segments are made of; with the parts that cannot be read."""
    frames = [pl.DataFrame(schema={**_NARROW, **segment_schema(columns)})]
    unreadable: list[str] = []
    named = {part.path: part for part in parts}
    for paths in alike({part.path: part.size for part in parts}, BATCH_BYTES):
        batch = [named[path] for path in paths]
        try:
            frames.append(_read(lake, batch, where, columns))
        except UNREADABLE:
            for part in batch:
                try:
                    frames.append(_read(lake, [part], where, columns))
                except UNREADABLE:
                    unreadable.append(part.path)
    return pl.concat(frames), unreadable


def _read(lake: Lake, parts: Sequence[Part], where: pl.Expr, columns: Sequence[str]) -> pl.DataFrame:
    rows = scan_parts(lake, parts).filter(where)
    types = rows.collect_schema()
    decided = rows.with_columns(field_as_text(types, "outputs", "label").alias("decision"))
    narrow = (pl.col(name).cast(dtype) for name, dtype in _NARROW.items())
    return decided.select(*narrow, *segment_columns(types, columns)).collect()


def _split(rows: pl.DataFrame, challenger: str) -> _Sides:
    """Each side's own requests: what the challenger refused, the champion answered in its place."""
    mine = pl.col("model_version") == challenger
    refused = rows.filter(mine & pl.col("status").is_between(400, 499)).select("prediction_id")
    return _Sides(
        rows.filter(mine), rows.filter(~mine).join(refused, on="prediction_id", how="anti"), paired=False
    )


def _pair(rows: pl.DataFrame, challenger: str) -> _Sides:
    """Requests that both sides answered, whose copy was logged in a part that is counted now.

    Of an id that a client gave to several requests nobody knows which belong together.
    """
    mine = pl.col("model_version") == challenger
    copies = rows.filter(mine & pl.col("fresh")).unique("prediction_id", keep="none", maintain_order=True)
    answers = rows.filter(~mine).unique("prediction_id", keep="none", maintain_order=True)
    known = copies.select("prediction_id").join(answers.select("prediction_id"), on="prediction_id")
    one, two = (known.join(side, on="prediction_id", maintain_order="left") for side in (copies, answers))
    return _Sides(one, two, paired=True)


def _observe(watch: Watch, baseline: Baseline, sides: _Sides) -> Iterator[Observed]:
    yield from _metrics(watch, baseline, sides, None)
    for name, condition in segments(watch):
        inside = sides.where(condition)
        if inside.challenger.height or inside.champion.height:
            yield from _metrics(watch, baseline, inside, name)


def _metrics(watch: Watch, baseline: Baseline, sides: _Sides, segment: str | None) -> Iterator[Observed]:
    answered = sides.answered()
    if watch.errors is not None:
        # A client's own mistakes are not in the log; what a challenger alone refused (400) is.
        yield Observed("errors", sides.share(pl.col("status") != 200), segment)
    if (limit := latency_limit(watch, baseline)) is not None:
        yield Observed("latency", answered.share(pl.col("latency_ms") > limit), segment)
    if watch.score_distribution is not None:
        yield Observed("score_distribution", answered.scores(baseline.edges), segment)
    if watch.disagreement is not None:
        different = answered.challenger["decision"].ne_missing(answered.champion["decision"])
        yield Observed("disagreement", Share.of(different), segment)
