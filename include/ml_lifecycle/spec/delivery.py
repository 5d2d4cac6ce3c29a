"""How a release reaches production: the ``delivery:`` of ``model.yaml``."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import FieldError, Name, PositiveDuration, Strict, format_duration
from ml_lifecycle.spec.watch import Watch

# Of the traffic. The bounds find shares that were meant as 0 to 1, and leave both sides something to judge.
Percent = Annotated[
    float,
    Field(
        ge=0.1,
        le=99.9,
        json_schema_extra={"patternErrorMessage": "must be percent from 0.1 to 99.9 (5 is five percent)"},
    ),
]


class Delivery(Strict):
    """How a release reaches production.

    Whatever the strategy, a new version is loaded and checked before it answers anybody.

    :param endpoint: name under which clients call the model; the model's name by default
    :param strategy: ``blue_green``: all traffic at once. ``canary``: a growing share, judged at each step.
        ``shadow``: a copy of the traffic is scored and compared, and never returned. ``ab``: a share that
        stays until a business metric, or the labels, have told. Requests of one key stay on their side
    :param steps: percent of the traffic, rising; all of it follows the last. 5, 25, 50 by default for a
        canary, 50 for ``ab``, and none for a shadow, which may have some
    :param max_latency_ms: p99 over the release checks' requests; None leaves latency unchecked
    :param watch: what a release is judged by while it has a part of the traffic
    """

    endpoint: Name | None = None
    strategy: Literal["blue_green", "canary", "shadow", "ab"] = "blue_green"
    steps: tuple[Percent, ...] | None = None
    max_latency_ms: float | None = Field(default=None, gt=0)
    check_timeout: PositiveDuration = timedelta(seconds=60)
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _steps_fit_the_strategy(self) -> Delivery:
        if self.strategy == "blue_green" and self.steps is not None:
            raise FieldError("steps", "go with canary, ab or shadow; blue_green has all traffic at once")
        if self.strategy == "canary" and self.steps == ():
            raise FieldError("steps", "a canary has at least one")
        if self.strategy == "ab" and self.steps is not None and len(self.steps) != 1:
            raise FieldError("steps", "ab has one: the share that stays on the challenger's side")
        if any(later <= earlier for earlier, later in pairwise(self.shares)):
            raise FieldError("steps", "must rise")
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Delivery:
        measured = self.watch.criteria
        if self.strategy == "ab" and not any(
            name == "labels" or name in self.watch.business for name, one in measured.items() if one.required
        ):
            raise FieldError("watch", "ab needs business or labels, required: what the sides are compared by")
        if self.strategy != "shadow" and self.watch.disagreement is not None:
            raise FieldError(
                "watch", "is measured by a shadow only: both answer the same rows", "disagreement"
            )
        if self.strategy == "shadow" and not self.watch.of_shadow().can_promote:
            raise FieldError("watch", "a shadow has nothing required to be judged by: it has no latency")
        if self.shares and not self.watch.of_canary().can_promote:
            raise FieldError("watch", "the steps after the shadow have nothing required to be judged by")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The steps' shares of the traffic, 0 to 1."""
        default = {"canary": (5.0, 25.0, 50.0), "ab": (50.0,)}.get(self.strategy, ())
        return tuple(percent / 100 for percent in (default if self.steps is None else self.steps))

    @property
    def in_words(self) -> str:
        """A release's steps, and what it is judged by, in a line."""
        if self.strategy == "blue_green":
            return "blue_green: all traffic at once, nothing is watched"
        steps = f" {', '.join(f'{share * 100:g}' for share in self.shares)} %" if self.shares else ""
        watch = self.watch if self.shares else self.watch.of_shadow()
        return (
            f"{self.strategy}{steps}; watched: {', '.join(watch.criteria)}; "
            f"every {format_duration(watch.every)}, deadline {format_duration(watch.deadline)}"
        )
