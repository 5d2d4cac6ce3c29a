"""Whether a release is promoted, held or rolled back, and why.

A pure function of totals: it may be asked every minute or once, by a watch that was killed in between, and
says the same. That looking often does not cheat is :mod:`ml_lifecycle.delivery.sequential`'s doing.

Two errors are kept apart. Rolling back in vain: any metric in any segment could cause it, so all of them
share ``alpha`` (Bonferroni); where segments are watched, they have half of it. Promoting in vain: the bound
of a metric that is worse would have to err, whatever the others do, so each has the whole ``alpha`` (the
intersection-union test of Berger, Technometrics 24, 1982).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from pydantic import AwareDatetime

from ml_lifecycle.delivery.sides import Apart, PairedMean, PairedScores, PairedShare
from ml_lifecycle.delivery.tallies import Gap, JudgingError, Levels, Mean, Scores, Share, Tally
from ml_lifecycle.records import Record
from ml_lifecycle.spec.types import PositiveDuration, format_duration
from ml_lifecycle.spec.watch import Criterion, Number, Scale, Watch

Counted = Apart | PairedShare | PairedMean | PairedScores | Share
Verdict = Literal["worse", "not_worse", "undecided"]
Decision = Literal["promote", "hold", "roll_back"]

# Shares of bad rows that are expected before there are any: few failed or slow answers, but a challenger's.
_EXPECTED = {"errors": 0.02, "latency": 0.02, "disagreement": 0.1}
_KINDS: dict[str, tuple[type[Tally], ...]] = {
    "errors": (Share, PairedShare),
    "latency": (Share, PairedShare),
    "score_distribution": (Scores, PairedScores),
    "disagreement": (),
}
_OTHERS: tuple[type[Tally], ...] = (Mean, PairedMean, Share, PairedShare)


@dataclass(frozen=True)
class Observed:
    """What both sides did, measured by one metric, in total since the release, or its step, has traffic.

    :param metric: its name in the spec: ``errors``, ``labels`` …
    :param counted: shares for errors and latency, scores for score_distribution, means for the others, or
        shares where every row is as good or as bad as can be. For disagreement one share: of the rows that
        both answered
    :param segment: ``column=value``; None for all rows
    """

    metric: str
    counted: Counted
    segment: str | None = None

    def __str__(self) -> str:
        return f"{self.metric} of {self.segment}" if self.segment else self.metric


@dataclass(frozen=True)
class Comparison:
    """One metric, of all rows or of a segment: how much worse the challenger is, and whether that is shown.

    All numbers are in the metric's unit; shares are from 0 to 1.

    :param challenger: its own share or mean; None where there is none, as of distances, or no rows
    :param difference: how much worse it is, negative where it is better
    :param low: at least so much worse, however often one looks: at level ``alpha``
    :param high: at most so much worse, at the level of the spec
    :param margin: how much worse is accepted
    :param alpha: this comparison's share of the level
    :param in_percent: whether its numbers are shares, which people read in percent
    """

    metric: str
    segment: str | None
    challenger_rows: int
    champion_rows: int
    challenger: Number | None
    champion: Number | None
    difference: Number | None
    low: Number
    high: Number
    margin: Number
    alpha: Number
    required: bool
    verdict: Verdict
    sentence: str
    in_percent: bool = False


@dataclass(frozen=True)
class Judgement(Record):
    """What is to be done with a release, and why.

    :param for_people: the deadline has passed: nothing but a rollback comes by itself any more
    :param reasons: in plain words, with numbers
    :param min_rows: how many the challenger must have in each required metric to be promoted
    :param min_time: how long a step must have had traffic to be promoted
    :param deadline: after which time people decide
    :param every: how often it is looked at
    :param latency_limit_ms: what slow answers took longer than; None where latency is not measured
    """

    schema: ClassVar[str] = "judgement/1"
    decision: Decision
    for_people: bool
    reasons: tuple[str, ...]
    began_at: AwareDatetime
    judged_at: AwareDatetime
    comparisons: tuple[Comparison, ...]
    # Judgements of before these were kept have None.
    min_rows: int | None = None
    min_time: PositiveDuration | None = None
    deadline: PositiveDuration | None = None
    latency_limit_ms: Number | None = None
    every: PositiveDuration | None = None


def judge(
    watch: Watch,
    observed: Sequence[Observed],
    began_at: datetime,
    now: datetime,
    steps: int = 1,
    uncountable: Mapping[str, str] | None = None,
) -> Judgement:
    """Promote, hold or roll back.

    A canary that grows is judged step by step: the totals of a step are those since it began, as days and
    nights had other shares of its traffic before. A promotion then is one to the next step.

    :param observed: totals of each metric, and of each segment that has rows
    :param began_at: when the totals began
    :param steps: how many steps the release has in all; each has its part of ``alpha``
    :param uncountable: metrics that can have no rows, and why: so it is told instead of their number
    :raises JudgingError: totals contradict each other or the spec. Retry: no.
    """
    if began_at > now:
        raise JudgingError(f"the release began at {began_at.isoformat()}, after {now.isoformat()}")
    known = _by_name(watch, observed)
    criteria, segments = watch.criteria, watch.segment_names
    whole = watch.alpha / steps / len(criteria) / (2 if segments else 1)
    comparisons = [
        _compare(name, criterion, segment, known, Levels(level, watch.alpha, _EXPECTED.get(name, 0.5)))
        for segment, level in ((None, whole), *((one, whole / len(segments)) for one in segments))
        for name, criterion in criteria.items()
    ]
    why_none = {name: f"{name}: cannot be counted: {why}" for name, why in (uncountable or {}).items()}
    comparisons = [
        replace(one, sentence=why_none[one.metric]) if one.metric in why_none else one for one in comparisons
    ]
    elapsed = now - began_at
    decision, reasons = _decide(watch, comparisons, elapsed, why_none)
    for_people = decision == "hold" and elapsed >= watch.deadline
    return Judgement(
        decision,
        for_people,
        tuple(reasons),
        began_at,
        now,
        tuple(comparisons),
        watch.min_rows,
        watch.min_time,
        watch.deadline,
        every=watch.every,
    )


def add_up(observed: Iterable[Observed]) -> tuple[Observed, ...]:
    """One total for each metric and segment, of any number of parts: of what was counted before, and since.

    :raises JudgingError: two parts were counted differently. Retry: no.
    """
    totals: dict[tuple[str, str | None], Observed] = {}
    for one in observed:
        before = totals.get((one.metric, one.segment))
        counted = one.counted if before is None else before.counted + one.counted  # type: ignore[operator]
        totals[one.metric, one.segment] = replace(one, counted=counted)
    return tuple(totals.values())


def _by_name(watch: Watch, observed: Sequence[Observed]) -> dict[tuple[str, str | None], Counted]:
    known: dict[tuple[str, str | None], Counted] = {}
    for one in observed:
        if one.metric not in watch.criteria:
            raise JudgingError(f"{one} is not watched; what is: {', '.join(watch.criteria)}")
        if one.segment not in (None, *watch.segment_names):
            raise JudgingError(f"{one} is not watched; segments: {', '.join(watch.segment_names) or 'none'}")
        if (one.metric, one.segment) in known:
            raise JudgingError(f"{one} is there twice")
        side = one.counted.challenger if isinstance(one.counted, Apart) else one.counted
        kinds = _KINDS.get(one.metric, _OTHERS)
        alone = isinstance(one.counted, Share)
        if alone != (one.metric == "disagreement") or not (alone or isinstance(side, kinds)):
            raise JudgingError(f"{one} cannot be judged by {one.counted}")
        known[one.metric, one.segment] = one.counted
    return known


def _compare(
    name: str,
    criterion: Criterion,
    segment: str | None,
    known: Mapping[tuple[str, str | None], Counted],
    levels: Levels,
) -> Comparison:
    scale = criterion.scale
    width = scale.high - scale.low
    counted = known.get((name, segment))
    gap = counted.gap(levels) if counted is not None else Gap(0, 0, None, None, None, -1.0, 1.0)
    low, high = gap.low * width, gap.high * width
    verdict: Verdict = "undecided"
    if not gap.challenger_rows or not gap.champion_rows:
        pass  # one side alone shows nothing, whatever its bounds
    elif low > criterion.margin:
        verdict = "worse"
    elif high < criterion.margin:
        verdict = "not_worse"
    made = Comparison(
        name,
        segment,
        gap.challenger_rows,
        gap.champion_rows,
        _unscaled(gap.challenger, scale),
        _unscaled(gap.champion, scale),
        None if gap.difference is None else gap.difference * width,
        low,
        high,
        criterion.margin,
        levels.low,
        criterion.required and segment is None,
        verdict,
        "",
        in_percent=scale == Scale(),
    )
    return replace(made, sentence=_sentence(made))


def _unscaled(value: float | None, scale: Scale) -> float | None:
    if value is None:
        return None
    place = value if scale.better == "lower" else 1 - value
    return scale.low + place * (scale.high - scale.low)


def _sentence(one: Comparison) -> str:
    def text(value: float | None, sign: str = "") -> str:
        if value is None:
            return "nothing"
        return format(value, f"{sign}.2%") if one.in_percent else format(value, f"{sign}.4g")

    what = f"{one.metric} of {one.segment}" if one.segment else one.metric
    if not one.challenger_rows or not one.champion_rows:
        side = "both sides" if not (one.challenger_rows or one.champion_rows) else "the challenger"
        side = side if not one.challenger_rows else "the champion"
        return f"{what}: no rows of {side} yet"
    rows = f"{one.challenger_rows:,} rows"
    if one.metric == "disagreement":
        seen = f"{text(one.difference)} of {rows}, by {text(one.low)} to {text(one.high)}"
    elif one.challenger is None:
        seen = (
            f"{text(one.difference)} apart, {rows} and the champion's {one.champion_rows:,}; "
            f"by {text(one.low)} to {text(one.high)}"
        )
    else:
        seen = (
            f"{text(one.challenger)} in {rows}, the champion {text(one.champion)} in {one.champion_rows:,}; "
            f"worse by {text(one.low, '+')} to {text(one.high, '+')}"
        )
    verdict = one.verdict.replace("_", " ")
    return f"{what}: {seen}; {text(one.margin)} is accepted: {verdict}"


def _decide(
    watch: Watch, comparisons: Sequence[Comparison], elapsed: timedelta, why_none: Mapping[str, str]
) -> tuple[Decision, list[str]]:
    if worse := [one.sentence for one in comparisons if one.verdict == "worse"]:
        return "roll_back", worse
    missing = list(_missing(watch, comparisons, elapsed, why_none))
    required = [one for one in comparisons if one.required]
    untold = [why for name, why in why_none.items() if not watch.criteria[name].required]
    if elapsed >= watch.deadline:
        passed = f"the deadline, {format_duration(watch.deadline)}, has passed: people decide"
        return "hold", [passed, *(missing or (one.sentence for one in required)), *untold]
    if missing:
        return "hold", [*missing, *untold]
    rows = min(one.challenger_rows for one in required)
    exposed = f"at least {rows:,} rows of the challenger in each required metric, in {_hours(elapsed)}"
    return "promote", [exposed, *(one.sentence for one in required), *untold]


def _missing(
    watch: Watch, comparisons: Sequence[Comparison], elapsed: timedelta, why_none: Mapping[str, str]
) -> Iterator[str]:
    """What a promotion still needs."""
    if elapsed < watch.min_time:
        asked = f"at least {format_duration(watch.min_time)} is asked for"
        yield f"it has had traffic for {_hours(elapsed)}; {asked}"
    for one in comparisons:
        if not one.required:
            continue
        if one.metric in why_none:
            yield one.sentence
        elif one.challenger_rows < watch.min_rows:
            asked = f"at least {watch.min_rows:,} are asked for"
            yield f"{one.metric}: {one.challenger_rows:,} rows of the challenger; {asked}"
        elif one.verdict == "undecided":
            yield one.sentence


def _hours(elapsed: timedelta) -> str:
    return str(timedelta(seconds=int(elapsed.total_seconds())))
