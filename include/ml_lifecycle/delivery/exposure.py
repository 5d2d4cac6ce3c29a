"""What a release's traffic showed so far: totals for the judge, counted from the prediction log.

Every row tells which revision answered it, and a step has a revision of its own, so a step's rows are known
exactly. Parts of the log are immutable, and each server numbers its own: they are counted once, as they come,
and what is kept between two looks is a number a server and the totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import ClassVar

import numpy as np
import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import CHECK_ID_PREFIX, Part, find_parts
from ml_lifecycle.delivery.judging import Observed, add_up
from ml_lifecycle.delivery.sides import Apart, PairedScores, PairedShare
from ml_lifecycle.delivery.tallies import Scores, Share
from ml_lifecycle.records import Record, Release
from ml_lifecycle.spec.watch import Watch

# The log is flushed every second. What is younger may have its other half (a champion's row beside its
# shadow's) in a part that is not written yet.
_SETTLED = timedelta(seconds=3)
# A copy is scored within milliseconds of its answer, so both rows are in the same part or in neighbours.
_NEIGHBOURS = 20
_BATCH_BYTES = 64 * 2**20
_BASELINE_PARTS = 200
_BASELINE_ROWS = 200
_BINS = 20
# Between the clocks of a server and of whoever counts.
_SKEW = timedelta(minutes=10)
_NARROW = {
    "prediction_id": pl.String,
    "row": pl.Int64,
    "model_version": pl.String,
    "latency_ms": pl.Float64,
    "score": pl.Float64,
    "status": pl.Int64,
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
    """

    schema: ClassVar[str] = "watch_exposure/1"
    revision: int
    counted: Mapping[str, int] = field(default_factory=dict)
    observed: tuple[Observed, ...] = ()


def champion_before(lake: Lake, release: Release, champion: str) -> Baseline | None:
    """Make the baseline of the newest rows that the champion answered; None while they are too few.

    Rows that it answers beside the challenger count too: they are its own, and cannot follow the challenger.

    :param release: the first of its steps that has traffic
    :param champion: its version
    """
    day = (release.created_at - timedelta(days=1)).date()
    parts = sorted(find_parts(lake, release.endpoint, day), key=lambda part: part.first)
    mine = (pl.col("model_version") == champion) & pl.col("returned") & (pl.col("status") == 200)
    rows = _collect(lake, parts[-_BASELINE_PARTS:], mine, ())
    if rows.height < _BASELINE_ROWS:
        return None
    scores = rows["score"].drop_nulls().drop_nans().to_numpy()
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    edges = tuple(np.unique(np.quantile(scores, inner)).tolist()) if len(scores) else ()
    return Baseline(float(np.quantile(rows["latency_ms"].to_numpy(), 0.99)), edges, rows.height)


def step_parts(lake: Lake, release: Release, now: datetime) -> list[Part]:
    """The parts that rows of a step may lie in, but for the newest, beside which others are to come."""
    begun = release.created_at - _SKEW
    parts = find_parts(lake, release.endpoint, begun.date())
    return [part for part in parts if begun <= part.first < now - _SETTLED]


def count(
    lake: Lake,
    release: Release,
    paired: bool,
    watch: Watch,
    baseline: Baseline,
    before: Exposure,
    now: datetime,
) -> Exposure:
    """Count the parts that came since ``before``; the same whoever counts, and however often.

    :param paired: whether the challenger is a shadow: rows that both sides answered are then compared
    :param watch: what can be measured at this step
    """
    exposure = before
    for fresh, near in _batches(step_parts(lake, release, now), before.counted):
        rows = _rows_of(lake, release, watch, fresh, near if paired else ())
        sides = _pair(rows, release.version) if paired else _split(rows, release.version)
        counted = {**exposure.counted, fresh[-1].server: fresh[-1].number}
        found = _observe(watch, baseline, sides)
        exposure = replace(exposure, counted=counted, observed=add_up((*exposure.observed, *found)))
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
        """The rows of a segment; of pairs those that the challenger's row belongs to."""
        one = self.challenger.select(condition.fill_null(False)).to_series()
        two = one if self.paired else self.champion.select(condition.fill_null(False)).to_series()
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


def _batches(parts: Sequence[Part], counted: Mapping[str, int]) -> Iterator[tuple[list[Part], list[Part]]]:
    """Parts that are to be counted, and counted ones that lie beside them; server by server, in order."""
    servers: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part.number):
        servers.setdefault(part.server, []).append(part)
    for server, own in sorted(servers.items()):
        mark = counted.get(server, 0)
        near = [part for part in own if part.number <= mark][-_NEIGHBOURS:]
        fresh: list[Part] = []
        size = 0
        for part in own:
            if part.number <= mark:
                continue
            if fresh and size + part.size > _BATCH_BYTES:
                yield fresh, near
                near, fresh, size = fresh[-_NEIGHBOURS:], [], 0
            fresh.append(part)
            size += part.size
        if fresh:
            yield fresh, near


def _rows_of(
    lake: Lake, release: Release, watch: Watch, fresh: Sequence[Part], near: Sequence[Part]
) -> pl.DataFrame:
    """The step's rows; ``fresh`` tells which lie in parts that are counted now."""
    mine = pl.col("route_revision") == release.revision
    frames = [
        _collect(lake, parts, mine, tuple(watch.segments)).with_columns(fresh=pl.lit(new))
        for parts, new in ((fresh, True), (near, False))
    ]
    return pl.concat(frames)


def _collect(lake: Lake, parts: Sequence[Part], where: pl.Expr, segments: Sequence[str]) -> pl.DataFrame:
    """Narrow columns of the rows of parts, their decisions, and what segments are made of, as text."""
    texts = ("decision", *map(_segment_name, segments))
    kinds: dict[str, list[str]] = {}
    for part in parts:
        kinds.setdefault(part.kind, []).append(part.path)
    frames = [pl.DataFrame(schema=_NARROW | dict.fromkeys(texts, pl.String))]
    no_check = ~pl.col("prediction_id").str.starts_with(CHECK_ID_PREFIX)
    for _, paths in sorted(kinds.items()):
        rows = lake.scan(paths).filter(no_check & where)
        types = rows.collect_schema()
        columns = [
            *(pl.col(name).cast(dtype) for name, dtype in _NARROW.items()),
            _field(types, "outputs", "label").alias("decision"),
            *(_segment(types, column).alias(_segment_name(column)) for column in segments),
        ]
        frames.append(rows.select(columns).collect())
    return pl.concat(frames)


def _segment_name(column: str) -> str:
    return f"segment:{column}"


def _segment(types: Mapping[str, pl.DataType], column: str) -> pl.Expr:
    """A feature, or an entity key, as text; null where a row has neither."""
    key = pl.col("entity_keys").cast(pl.String).str.json_path_match(f"$['{column}']")
    return pl.coalesce(_field(types, "features", column), key)


def _field(types: Mapping[str, pl.DataType], column: str, name: str) -> pl.Expr:
    """A field of a struct, as text; null where there is none, as of a request that failed."""
    dtype = types[column]
    if isinstance(dtype, pl.Struct) and name in {one.name for one in dtype.fields}:
        return pl.col(column).struct.field(name).cast(pl.String)
    return pl.lit(None, pl.String)


def _split(rows: pl.DataFrame, challenger: str) -> _Sides:
    mine = pl.col("model_version") == challenger
    return _Sides(rows.filter(mine), rows.filter(~mine), paired=False)


def _pair(rows: pl.DataFrame, challenger: str) -> _Sides:
    """Rows that both sides answered, whose copy was logged in a part that is counted now."""
    key = ["prediction_id", "row"]
    mine = pl.col("model_version") == challenger
    copies = rows.filter(mine & pl.col("fresh")).unique(key, keep="first", maintain_order=True)
    answers = rows.filter(~mine).unique(key, keep="first", maintain_order=True)
    both = copies.select(key).join(answers.select(key), on=key, how="inner", maintain_order="left")
    one, two = (both.join(side, on=key, how="left", maintain_order="left") for side in (copies, answers))
    return _Sides(one, two, paired=True)


def _observe(watch: Watch, baseline: Baseline, sides: _Sides) -> Iterator[Observed]:
    yield from _metrics(watch, baseline, sides, None)
    for column, values in watch.segments.items():
        for value in values:
            inside = sides.where(pl.col(_segment_name(column)) == value)
            if inside.challenger.height or inside.champion.height:
                yield from _metrics(watch, baseline, inside, f"{column}={value}")


def _metrics(watch: Watch, baseline: Baseline, sides: _Sides, segment: str | None) -> Iterator[Observed]:
    answered = sides.answered()
    # The rows of a request fail, and are late, together: they are one observation, not many.
    first = pl.col("row") == 0
    if watch.errors is not None:
        # What is below 500 is the client's own doing.
        yield Observed("errors", sides.where(first).share(pl.col("status") >= 500), segment)
    if watch.latency is not None:
        limit = watch.latency.limit_ms or baseline.latency_ms
        yield Observed("latency", answered.where(first).share(pl.col("latency_ms") > limit), segment)
    if watch.score_distribution is not None:
        yield Observed("score_distribution", answered.scores(baseline.edges), segment)
    if watch.disagreement is not None:
        different = answered.challenger["decision"].ne_missing(answered.champion["decision"])
        yield Observed("disagreement", Share.of(different), segment)
