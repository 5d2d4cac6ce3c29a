"""The spec's gates, measured. A gate that cannot be computed has not passed, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from ml_lifecycle.metrics import Answers, MetricError, measure, worse_by
from ml_lifecycle.personal import pseudonym
from ml_lifecycle.records import GateResult
from ml_lifecycle.spec.model import Gate

SMALL_SEGMENTS = "(small segments together)"
MISSING = "(missing)"


@dataclass(frozen=True)
class Champion:
    """The champion's answers to the same rows.

    :param answers: None if the champion cannot be compared
    :param reason: why not
    """

    answers: Answers | None
    reason: str = ""


@dataclass(frozen=True)
class Segment:
    """A metric on the rows that share one value of a column."""

    column: str
    value: str
    rows: int
    metric: str
    measured: float | None
    reason: str | None = None


def gate_results(
    gate: Gate, candidate: Answers, champion: Champion | None, segments: list[Segment]
) -> Iterator[GateResult]:
    """A result for each condition of a gate: ``<metric>.min``, ``.max``, ``.regression``, ``.segment.…``.

    :param champion: None if there is none yet; then nothing can have got worse
    :param segments: :func:`measure_segments`' result; empty if the gate names no segment
    """
    metric = gate.metric
    value, reason = _try_measure(metric, candidate)
    before, before_reason = None, None
    if champion is not None:
        before, before_reason = (
            (None, champion.reason) if champion.answers is None else _try_measure(metric, champion.answers)
        )
    if gate.min is not None:
        passed = value is not None and value >= gate.min
        yield GateResult(f"{metric}.min", passed, f"at least {gate.min:g}", value, before, reason)
    if gate.max is not None:
        passed = value is not None and value <= gate.max
        yield GateResult(f"{metric}.max", passed, f"at most {gate.max:g}", value, before, reason)
    if gate.max_regression is not None:
        threshold = f"at most {gate.max_regression:g} worse than the champion on the same rows"
        name = f"{metric}.regression"
        if champion is None:
            yield GateResult(name, True, threshold, reason="there is no champion yet")
        elif value is None or before is None:
            yield GateResult(name, False, threshold, reason=reason or f"the champion: {before_reason}")
        else:
            worse = worse_by(metric, value, before)
            yield GateResult(name, worse <= gate.max_regression, threshold, worse, before)
    if gate.max_segment_gap is not None:
        yield _segment_gate(gate, gate.max_segment_gap, value, reason, segments)


def _segment_gate(
    gate: Gate, limit: float, whole: float | None, reason: str | None, segments: list[Segment]
) -> GateResult:
    name = f"{gate.metric}.segment.{gate.segment}"
    threshold = f"at most {limit:g} worse than the whole in every segment of {gate.segment}"
    broken = next((segment for segment in segments if segment.measured is None), None)
    if whole is None:
        return GateResult(name, False, threshold, reason=reason)
    if not any(segment.value != SMALL_SEGMENTS for segment in segments):
        text = f"no segment has {gate.min_segment_rows} rows, or the holdout has no column {gate.segment!r}"
        return GateResult(name, False, threshold, reason=text)
    if broken is not None:
        text = f"segment {broken.value!r} of {broken.rows} rows: {broken.reason}"
        return GateResult(name, False, threshold, reason=text)
    gaps = [
        (worse_by(gate.metric, segment.measured, whole), segment.value)
        for segment in segments
        if segment.measured is not None
    ]
    gap, worst = max(gaps)
    return GateResult(name, gap <= limit, threshold, gap, reason=f"worst segment: {worst!r}")


def measure_segments(
    gate: Gate, candidate: Answers, values: pl.Series, *, personal: bool = False
) -> list[Segment]:
    """The gate's metric in every segment of at least ``min_segment_rows`` rows.

    Smaller ones are measured together if they then are enough; a handful of rows proves nothing either way.

    :param values: the segment column, in the order of the answers, as served: missing numbers are NaN,
        missing texts empty
    :param personal: the segments are called by pseudonyms
    """
    texts = values.fill_nan(None).cast(pl.String) if values.dtype.is_float() else values.cast(pl.String)
    names = texts.replace("", None).fill_null(MISSING)
    frame = pl.DataFrame({"value": names}).with_row_index("row")
    grouped = frame.group_by("value").agg("row").sort("value")
    large = grouped.filter(pl.col("row").list.len() >= gate.min_segment_rows)
    small = grouped.filter(pl.col("row").list.len() < gate.min_segment_rows)
    groups = list(large.iter_rows())
    together = small["row"].explode().drop_nulls().to_list()
    if len(together) >= gate.min_segment_rows:
        groups.append((SMALL_SEGMENTS, together))
    segments = []
    for value, rows in groups:
        part = candidate.take(pl.Series(rows).to_numpy())
        measured, reason = _try_measure(gate.metric, part)
        name = pseudonym(value) if personal and value not in (MISSING, SMALL_SEGMENTS) else value
        segments.append(Segment(str(gate.segment), name, len(part), gate.metric, measured, reason))
    return segments


def _try_measure(metric: str, answers: Answers) -> tuple[float | None, str | None]:
    try:
        return measure(metric, answers), None
    except MetricError as error:
        return None, str(error)
