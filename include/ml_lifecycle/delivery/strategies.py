"""How a release reaches all traffic: step by step, each a route of its own. Pure functions of spec and route.

Whatever the strategy, a new version is loaded and checked before it answers anybody, and what it replaces
stays loaded beside it: going back is then a change of weights, not of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.spec.delivery import Delivery
from ml_lifecycle.spec.watch import Watch

Role = Literal["standby", "shadow", "canary", "champion"]
_ORDER: tuple[Role, ...] = ("standby", "shadow", "canary", "champion")


@dataclass(frozen=True)
class Step:
    """What the challenger is while a release is at this step.

    :param role: ``standby``: loaded, and checked; ``shadow``: gets a copy of the traffic; ``canary``: answers
        a share of it; ``champion``: answers all of it
    :param weight: a canary's share of the traffic, 0 to 1
    """

    role: Role
    weight: float = 1.0

    @property
    def is_watched(self) -> bool:
        """Whether both sides have traffic here, and are compared before the release goes on."""
        return self.role in ("shadow", "canary")

    @property
    def is_last(self) -> bool:
        """Whether the release is confirmed once it stands here."""
        return self.role == "champion"

    def __str__(self) -> str:
        return f"canary {self.weight:.4g}" if self.role == "canary" else self.role

    def variants(self, challenger: Variant, champion: Variant | None) -> tuple[Variant, ...]:
        """The route's variants: the champion has what the challenger has not.

        :param champion: what is live; None if nothing is
        """
        if self.role == "champion":
            before = () if champion is None else (replace(champion, role="standby", weight=0.0),)
            return (replace(challenger, role="champion", weight=1.0), *before)
        assert champion is not None, "without a champion there is one step only"
        weight = self.weight if self.role == "canary" else 0.0
        return (
            replace(champion, role="champion", weight=1.0),
            replace(challenger, role=self.role, weight=weight),
        )


def steps_of(delivery: Delivery, champion: Variant | None) -> tuple[Step, ...]:
    """The steps of a release in order; where nothing is live there is nothing to go beside, and one step."""
    if champion is None:
        return (Step("champion"),)
    # A shadow answers nobody: it needs no step of its own to be checked in.
    first = Step("shadow") if delivery.strategy == "shadow" else Step("standby")
    canaries = (Step("canary", share) for share in delivery.shares)
    return (first, *canaries, Step("champion"))


def watch_at(watch: Watch, step: Step) -> Watch:
    """What can be measured at a step."""
    return watch.of_shadow() if step.role == "shadow" else watch.of_canary()


def step_at(variants: Sequence[Variant], version: str) -> Step:
    """The step that a route stands at, as what it makes of the version that is released tells."""
    variant = next(one for one in variants if one.version == version)
    return Step(variant.role, variant.weight) if variant.role == "canary" else Step(variant.role)


def next_step(steps: Sequence[Step], at: Step) -> Step:
    """The first step after ``at``; also where the steps were changed meanwhile: shares never fall.

    :param at: not the last
    """
    place = _place(at)
    return next((step for step in steps if _place(step) > place), Step("champion"))


def _place(step: Step) -> tuple[int, float]:
    return _ORDER.index(step.role), step.weight
