"""The typed form of ``delivery.watch``: what a release is judged by while it has traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import FieldError, Name, PositiveDuration, Strict, Text, format_duration

Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
_WITHIN_ONE = ("zero_one", "brier")  # losses that are at most 1 by themselves


class Scale(NamedTuple):
    """The range of a metric's values, and which of its ends is the good one."""

    low: float = 0.0
    high: float = 1.0
    better: Literal["lower", "higher"] = "lower"


class Criterion(Strict):
    """One metric by which the challenger is compared with the champion.

    :param margin: how much worse than the champion is accepted. A release is rolled back once it is shown to
        be worse than that, and promoted only once it is shown not to be
    :param required: whether a promotion waits for it; one that is not required can still roll back
    """

    margin: NotNegative
    required: bool = True

    @property
    def scale(self) -> Scale:
        """The range of its values; a share's unless it says otherwise."""
        return Scale()


class Errors(Criterion):
    """Share of requests that were not answered, or that the new version alone refused.

    :param margin: half a point by default: less takes rows in proportion, and without an error on either side
        half a point already takes some 1,200 rows of the challenger
    """

    margin: Share = 0.005


class Latency(Criterion):
    """Share of answers that took longer than a limit.

    :param margin: a point by default. With the champion's p99 as the limit one answer in a hundred exceeds
        it, and two may
    :param limit_ms: None takes the champion's p99 before the release. It is fixed before there is traffic: a
        limit taken from the traffic would follow a slow challenger
    """

    margin: Share = 0.01
    limit_ms: Annotated[Number, Field(gt=0)] | None = None


class ScoreDistribution(Criterion):
    """The largest distance between both sides' distribution functions of the score, at the edges of its bins.

    :param margin: two tenths of the rows by default. A new model is meant to score otherwise; one that moves
        more than that across some score decides otherwise as often, and people should know why
    """

    margin: Share = 0.2


class Disagreement(Criterion):
    """Share of rows that both sides decide otherwise; only where both answer the same rows.

    :param margin: the share that is accepted, a tenth by default: as much as of two models that are wrong in
        one decision of twenty, and never in the same
    """

    margin: Annotated[Share, Field(gt=0)] = 0.1


class LabelLoss(Criterion):
    """The mean loss of the rows whose label has become known.

    :param margin: in the loss's unit. Two points of wrong decisions by default, also of ``brier``; the others
        need one
    :param loss: ``zero_one`` (wrong decisions), ``brier`` or ``log`` for classes, ``absolute`` or ``squared``
        for regression
    :param largest: what a larger loss counts as, of ``log``, ``absolute`` and ``squared``: one row must not
        decide. One that is too large costs rows
    """

    margin: NotNegative = 0.02
    loss: Literal["zero_one", "brier", "log", "absolute", "squared"] = "zero_one"
    largest: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _fits_the_loss(self) -> LabelLoss:
        if self.loss in _WITHIN_ONE and self.largest is not None:
            raise FieldError("largest", f"goes without loss {self.loss}, which is at most 1 by itself")
        if self.loss not in _WITHIN_ONE and self.largest is None:
            raise FieldError("loss", f"{self.loss} needs largest: what a larger loss counts as")
        if self.loss not in _WITHIN_ONE and "margin" not in self.model_fields_set:
            raise FieldError("loss", f"{self.loss} needs margin: how much worse, in its unit, is accepted")
        return _margin_within_scale(self)

    @property
    def scale(self) -> Scale:
        """From no loss to the largest."""
        return Scale(high=self.largest or 1.0)


class Business(Criterion):
    """The mean of a number that a row brings or costs, joined later as its label is: by keys and event time.

    :param margin: in the number's unit; only its owner knows how much
    :param table: the frame of ``features.py``'s ``tables()`` with the numbers; the labels' by default
    :param column: the number's column in it; the metric's name by default
    :param low: what a row counts as at least
    :param high: what a row counts as at most: one row must not decide
    """

    low: Number = 0.0
    high: Number = 1.0
    better: Literal["higher", "lower"] = "higher"
    table: Text | None = None
    column: Text | None = None

    @model_validator(mode="after")
    def _has_a_range(self) -> Business:
        if self.low >= self.high:
            raise FieldError("low", f"{self.low:g} is not below high ({self.high:g})")
        return _margin_within_scale(self)

    @property
    def scale(self) -> Scale:
        """The declared range."""
        return Scale(self.low, self.high, self.better)


class Watch(Strict):
    """How a release is judged against the champion, at any time and any number of times.

    :param alpha: how probable it may be that a release that is within all margins is ever rolled back, by
        whichever metric and segment; and, each for itself, that one that is not within them is promoted. The
        usual twentieth by default: a release rolled back in vain costs a day, and can be made again
    :param errors: null leaves it out, as all others
    :param disagreement: only a shadow's can be measured; while it is required no canary is promoted
    :param labels: measured as labels arrive: such a release takes at least ``labels.delay``
    :param business: metrics by name
    :param segments: column to the values that are watched apart; they can roll back, but no promotion waits
        for them. Half of ``alpha`` is theirs, so name those that matter
    :param min_rows: no promotion before the challenger has so many in each required metric, of requests, each
        by its first row: fewer than a thousand may all be one client's
    :param min_time: no promotion before a step has had traffic so long. An hour by default: caches are
        warm, and what runs every hour has run
    :param every: between two looks; shorter than ``deadline``
    :param deadline: a step that is undecided for so long is left to people: the release is not promoted any
        more by itself, and still rolled back. As long as an approval waits by default
    """

    alpha: Annotated[Number, Field(gt=0, le=0.5)] = 0.05
    errors: Errors | None = Errors()
    latency: Latency | None = Latency()
    score_distribution: ScoreDistribution | None = ScoreDistribution()
    disagreement: Disagreement | None = None
    labels: LabelLoss | None = None
    business: dict[Name, Business] = Field(default_factory=dict)
    segments: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    min_rows: int = Field(default=1000, ge=1)
    min_time: PositiveDuration = timedelta(hours=1)
    every: PositiveDuration = timedelta(minutes=1)
    deadline: PositiveDuration = timedelta(days=3)

    @model_validator(mode="after")
    def _can_end(self) -> Watch:
        if self.deadline <= self.min_time:
            raise FieldError("deadline", "must be longer than min_time, or nothing could be promoted")
        if self.every >= self.deadline:
            every, deadline = format_duration(self.every), format_duration(self.deadline)
            raise FieldError(
                "every", f"{every} must be shorter than deadline ({deadline}), or nothing could be promoted"
            )
        if not self.can_promote:
            raise ValueError("needs a required metric, or everything would be promoted")
        return self

    @model_validator(mode="after")
    def _names_are_unlike(self) -> Watch:
        if taken := sorted(self.business.keys() & Watch.model_fields.keys()):
            raise FieldError("business", "has a meaning of its own: use another name", taken[0])
        segment_names(self.segments)
        return self

    @property
    def criteria(self) -> dict[str, Criterion]:
        """What is watched, by name."""
        named: dict[str, Criterion | None] = {
            "errors": self.errors,
            "latency": self.latency,
            "score_distribution": self.score_distribution,
            "disagreement": self.disagreement,
            "labels": self.labels,
            **self.business,
        }
        return {name: criterion for name, criterion in named.items() if criterion is not None}

    @property
    def can_promote(self) -> bool:
        """Whether there is a metric that a promotion waits for."""
        return any(criterion.required for criterion in self.criteria.values())

    def of_shadow(self) -> Watch:
        """What can be measured of a shadow.

        It is scored when there is time, many rows at once, and nobody acts on its answers: its latency is
        none that a client would see, and it has no business metric.
        """
        return self.model_copy(update={"latency": None, "business": {}})

    def of_canary(self) -> Watch:
        """What can be measured where each row is answered by one side only."""
        return self.model_copy(update={"disagreement": None})

    @property
    def segment_names(self) -> tuple[str, ...]:
        """``column=value`` of each segment that is watched apart."""
        return segment_names(self.segments)


def segment_names(segments: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """``column=value`` of each segment.

    :raises FieldError: a column has no values, or one twice. Retry: no.
    """
    if empty := [column for column, values in segments.items() if not values]:
        raise FieldError("segments", "has no values", empty[0])
    names = tuple(f"{column}={value}" for column, values in segments.items() for value in values)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise FieldError("segments", f"{twice[0]} is there twice")
    return names


C = TypeVar("C", bound=Criterion)


def _margin_within_scale(criterion: C) -> C:
    width = criterion.scale.high - criterion.scale.low
    if criterion.margin >= width:
        raise FieldError(
            "margin", f"{criterion.margin:g} is as wide as the range ({width:g}): nothing is worse"
        )
    return criterion
