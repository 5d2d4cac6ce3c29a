from __future__ import annotations

from typing import Any

import pytest
from delivery_kit import COLUMNS
from pydantic import ValidationError

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.strategies import Step, next_step, step_at, steps_of, watch_at
from ml_lifecycle.spec.delivery import Delivery

LABELS = {"labels": {"margin": 0.02}}


def variant(version: str) -> Variant:
    return Variant("champion", version, f"models/{version}.onnx", version * 64, "regression", COLUMNS, ())


OLD, NEW = variant("1"), variant("2")


def walk(delivery: Delivery) -> list[str]:
    """The steps as a release takes them, one from the other."""
    steps = steps_of(delivery, OLD)
    at = steps[0]
    walked = [at]
    while not at.is_last:
        at = next_step(steps, step_at(at.variants(NEW, OLD), "2"))
        walked.append(at)
    return [str(step) for step in walked]


@pytest.mark.parametrize(
    ("delivery", "expected"),
    [
        ({}, ["standby", "champion"]),
        ({"strategy": "canary"}, ["standby", "canary 0.05", "canary 0.25", "canary 0.5", "champion"]),
        ({"strategy": "canary", "steps": [1, 99]}, ["standby", "canary 0.01", "canary 0.99", "champion"]),
        ({"strategy": "shadow"}, ["shadow", "champion"]),
        ({"strategy": "shadow", "steps": [10]}, ["shadow", "canary 0.1", "champion"]),
        ({"strategy": "ab", "watch": LABELS}, ["standby", "canary 0.5", "champion"]),
        ({"strategy": "ab", "steps": [20], "watch": LABELS}, ["standby", "canary 0.2", "champion"]),
    ],
)
def test_steps_of_a_strategy(delivery: dict[str, Any], expected: list[str]) -> None:
    assert walk(Delivery.model_validate(delivery)) == expected


def test_the_first_release_has_nothing_to_go_beside() -> None:
    (only,) = steps_of(Delivery(strategy="canary"), None)
    assert only.is_last
    assert [(one.role, one.version) for one in only.variants(NEW, None)] == [("champion", "2")]


def test_nobody_but_the_champion_answers_all_and_what_was_live_stays_at_hand() -> None:
    roles = {
        str(step): [(one.role, one.version, one.weight) for one in step.variants(NEW, OLD)]
        for step in (Step("standby"), Step("shadow"), Step("canary", 0.25), Step("champion"))
    }
    assert roles == {
        "standby": [("champion", "1", 1.0), ("standby", "2", 0.0)],
        "shadow": [("champion", "1", 1.0), ("shadow", "2", 0.0)],
        "canary 0.25": [("champion", "1", 1.0), ("canary", "2", 0.25)],
        "champion": [("champion", "2", 1.0), ("standby", "1", 0.0)],
    }


def test_a_share_never_falls_when_the_spec_was_changed_meanwhile() -> None:
    changed = steps_of(Delivery(strategy="canary", steps=(10, 30)), OLD)
    assert next_step(changed, Step("canary", 0.2)) == Step("canary", 0.3)
    assert next_step(changed, Step("canary", 0.3)) == Step("champion")
    assert next_step(steps_of(Delivery(), OLD), Step("canary", 0.05)) == Step("champion")
    assert next_step(changed, Step("shadow")) == Step("canary", 0.1)


def test_only_what_can_be_measured_is_judged() -> None:
    watch = Delivery.model_validate(
        {"strategy": "shadow", "watch": {"disagreement": {}, "business": {"revenue": {"margin": 0.1}}}}
    ).watch
    assert set(watch_at(watch, Step("shadow")).criteria) == {"errors", "score_distribution", "disagreement"}
    assert set(watch_at(watch, Step("canary", 0.1)).criteria) == {
        "errors",
        "latency",
        "score_distribution",
        "revenue",
    }


@pytest.mark.parametrize(
    ("delivery", "told"),
    [
        ({}, "blue_green: all traffic at once, nothing is watched"),
        (
            {"strategy": "canary", "watch": {"every": "10s", "deadline": "2h"}},
            "canary 5, 25, 50 %; watched: errors, latency, score_distribution; every 10s, deadline 2h",
        ),
        ({"strategy": "shadow"}, "shadow; watched: errors, score_distribution; every 1m, deadline 3d"),
    ],
)
def test_a_delivery_in_a_line(delivery: dict[str, Any], told: str) -> None:
    assert Delivery.model_validate(delivery).in_words == told


@pytest.mark.parametrize(
    ("delivery", "message"),
    [
        ({"steps": [5]}, "steps go with canary, ab or shadow"),
        ({"strategy": "canary", "steps": []}, "steps a canary has at least one"),
        ({"strategy": "canary", "steps": [25, 5]}, "steps must rise"),
        ({"strategy": "canary", "steps": [100]}, "less than or equal to 99.9"),
        ({"strategy": "canary", "steps": [0.05, 0.25, 0.5]}, "greater than or equal to 0.1"),
        ({"strategy": "ab", "steps": [5, 50], "watch": LABELS}, "steps ab has one"),
        ({"strategy": "ab"}, "watch ab needs business or labels"),
        ({"strategy": "ab", "watch": {"labels": {"required": False}}}, "watch ab needs business or labels"),
        ({"strategy": "canary", "watch": {"disagreement": {}}}, "watch.disagreement is measured by a shadow"),
        (
            {"strategy": "shadow", "watch": {"errors": None, "score_distribution": None}},
            "watch a shadow has nothing required to be judged by",
        ),
    ],
)
def test_what_cannot_be_is_refused(delivery: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Delivery.model_validate(delivery)
    assert message in str(caught.value).replace(":", "").replace("'", "")
