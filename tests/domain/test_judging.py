"""Releases are judged by what their totals show, no more and no less; and everything says why."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_lifecycle.delivery.harm import harm, losses
from ml_lifecycle.delivery.judging import Comparison, Judgement, Observed, add_up, judge
from ml_lifecycle.delivery.sequential import difference_bounds, mean_bounds, paired_difference_bounds
from ml_lifecycle.delivery.sides import Apart, PairedMean, PairedScores, PairedShare
from ml_lifecycle.delivery.tallies import JudgingError, Levels, Mean, Scores, Share
from ml_lifecycle.metrics import UNKNOWN_CLASS, Answers
from ml_lifecycle.records import Record, from_json, to_json
from ml_lifecycle.spec.loader import read_spec
from ml_lifecycle.spec.watch import Business, Disagreement, Errors, LabelLoss, Scale, Watch

BEGAN = datetime(2026, 3, 1, 8, tzinfo=UTC)
LATER = BEGAN + timedelta(hours=5)
EDGES = tuple(np.linspace(0, 1, 11))
LEVELS = Levels(0.05, 0.05)


def canary(errors: float = 0.01, slow: float = 0.01, rows: int = 20_000, times: int = 3) -> list[Observed]:
    """A canary of so many rows, which is as said; its champion, with more rows, fails and is slow in 1 %."""
    even = np.linspace(0.001, 0.999, 1000)
    scores = [Scores.of(np.repeat(even, count // 1000 or 1), EDGES) for count in (rows, rows * times)]
    return [
        Observed(
            "errors", Apart(Share(rows, round(errors * rows)), Share(rows * times, rows * times // 100))
        ),
        Observed("latency", Apart(Share(rows, round(slow * rows)), Share(rows * times, rows * times // 100))),
        Observed("score_distribution", Apart(*scores)),
    ]


def only(judgement: Judgement, metric: str, segment: str | None = None) -> Comparison:
    (found,) = [one for one in judgement.comparisons if (one.metric, one.segment) == (metric, segment)]
    return found


# Decisions


def test_a_release_that_is_as_good_is_promoted_and_says_by_what() -> None:
    judgement = judge(Watch(), canary(), BEGAN, LATER)
    assert judgement.decision == "promote"
    assert not judgement.for_people
    assert judgement.reasons[0] == (
        "at least 20,000 rows of the challenger in each required metric, in 5:00:00"
    )
    errors = only(judgement, "errors")
    assert (errors.challenger, errors.champion, errors.difference) == (0.01, 0.01, 0)
    assert errors.low < 0 < errors.high < errors.margin == 0.005
    assert errors.verdict == "not_worse"
    assert judgement.reasons[1] == errors.sentence
    assert errors.sentence.startswith(
        "errors: 1.00% in 20,000 rows, the champion 1.00% in 60,000; worse by -0."
    )
    assert errors.sentence.endswith("; 0.50% is accepted: not worse")


def test_a_release_that_fails_is_rolled_back_at_once_and_says_by_what() -> None:
    judgement = judge(Watch(), canary(errors=0.3, rows=200), BEGAN, BEGAN + timedelta(seconds=20))
    assert judgement.decision == "roll_back"
    assert judgement.reasons == (only(judgement, "errors").sentence,)
    assert "30.00% in 200 rows, the champion 1.00% in 600" in judgement.reasons[0]
    assert judgement.reasons[0].endswith("0.50% is accepted: worse")
    assert only(judgement, "latency").verdict == "undecided"


def test_what_is_not_shown_yet_is_held_and_says_what_is_missing() -> None:
    judgement = judge(Watch(), canary(rows=2000), BEGAN, LATER)
    assert judgement.decision == "hold"
    assert not judgement.for_people
    undecided = [one.sentence for one in judgement.comparisons if one.verdict == "undecided"]
    assert list(judgement.reasons) == undecided
    assert "errors" in judgement.reasons[0]


def test_there_is_no_promotion_before_the_minimum_of_rows_and_time() -> None:
    early = judge(Watch(min_rows=50_000), canary(), BEGAN, BEGAN + timedelta(minutes=59, seconds=30))
    assert early.decision == "hold"
    assert early.reasons == (
        "it has had traffic for 0:59:30; at least 1h is asked for",
        *(
            f"{metric}: 20,000 rows of the challenger; at least 50,000 are asked for"
            for metric in ("errors", "latency", "score_distribution")
        ),
    )
    assert judge(Watch(min_rows=20_000), canary(), BEGAN, BEGAN + timedelta(hours=1)).decision == "promote"


def test_after_the_deadline_only_a_rollback_comes_by_itself() -> None:
    late = BEGAN + timedelta(days=3)
    undecided = judge(Watch(), canary(rows=2000), BEGAN, late)
    assert (undecided.decision, undecided.for_people) == ("hold", True)
    assert undecided.reasons[0] == "the deadline, 3d, has passed: people decide"
    good = judge(Watch(), canary(), BEGAN, late)
    assert (good.decision, good.for_people) == ("hold", True)
    assert good.reasons[1:] == tuple(one.sentence for one in good.comparisons)
    bad = judge(Watch(), canary(slow=0.2), BEGAN, late)
    assert (bad.decision, bad.for_people) == ("roll_back", False)
    assert judge(Watch(), canary(), BEGAN, late - timedelta(seconds=1)).decision == "promote"


def test_a_metric_that_is_not_required_rolls_back_but_is_not_waited_for() -> None:
    watch = Watch(latency=None, errors=Errors(required=False))
    few = [replace(canary()[0], counted=Apart(Share(30, 0), Share(90, 0))), canary()[2]]
    assert judge(watch, few, BEGAN, LATER).decision == "promote"
    failing = [replace(canary()[0], counted=Apart(Share(30, 30), Share(90, 0))), canary()[2]]
    assert judge(watch, failing, BEGAN, LATER).decision == "roll_back"


# Edges


def test_without_any_rows_everything_is_held() -> None:
    for observed in ([], [Observed("errors", Apart(Share(), Share()))]):
        judgement = judge(Watch(min_rows=1), observed, BEGAN, LATER)
        assert judgement.decision == "hold"
        assert judgement.reasons[0] == "errors: 0 rows of the challenger; at least 1 are asked for"
        errors = only(judgement, "errors")
        assert errors.sentence == "errors: no rows of both sides yet"
        assert (errors.challenger, errors.difference, errors.verdict) == (None, None, "undecided")


def test_what_cannot_be_counted_is_told_as_that() -> None:
    business = {"revenue": Business(margin=0.1), "visits": Business(margin=0.1, required=False)}
    why = {"revenue": "tables() of features.py returns no 'ordrs'", "visits": "no such column"}
    told = [f"{name}: cannot be counted: {text}" for name, text in why.items()]
    held = judge(Watch(business=business), canary(), BEGAN, LATER, uncountable=why)
    assert (held.decision, list(held.reasons)) == ("hold", told)
    late = judge(Watch(business=business), canary(), BEGAN, BEGAN + timedelta(days=3), uncountable=why)
    assert list(late.reasons[1:]) == told
    del business["revenue"], why["revenue"]
    good = judge(Watch(business=business), canary(), BEGAN, LATER, uncountable=why)
    assert (good.decision, good.reasons[-1]) == ("promote", told[1])


def test_a_side_without_rows_decides_nothing() -> None:
    watch = Watch(latency=None, score_distribution=None)
    for one, two, words in (
        (Share(9000, 0), Share(), "errors: no rows of the champion yet"),
        (Share(), Share(9000, 9000), "errors: 0 rows of the challenger; at least 1,000 are asked for"),
        (Share(9000, 9000), Share(), "errors: no rows of the champion yet"),
    ):
        judgement = judge(watch, [Observed("errors", Apart(one, two))], BEGAN, LATER)
        assert judgement.decision == "hold"
        assert judgement.reasons == (words,)


def test_all_errors_are_seen_within_a_few_rows() -> None:
    watch = Watch(latency=None, score_distribution=None)
    needed = next(
        rows
        for rows in range(1, 50)
        if judge(
            watch, [Observed("errors", Apart(Share(rows, rows), Share(rows * 19, 0)))], BEGAN, BEGAN
        ).decision
        == "roll_back"
    )
    assert 2 <= needed <= 5
    both = [Observed("errors", Apart(Share(9000, 9000), Share(9000, 9000)))]
    assert judge(watch, both, BEGAN, LATER).decision == "promote", "the champion is as bad"


def test_scores_that_are_no_number_are_far_from_all_others() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    assert Scores.of([math.nan, math.inf, 0.05, 0.0, 2.0], EDGES).counts == (2, 1, 1, *[0] * 9, 1)
    broken = np.where(rng.random(2000) < 0.4, math.nan, scores)
    watch = Watch(errors=None, latency=None)
    apart = Apart(Scores.of(broken, EDGES), Scores.of(rng.random(9000), EDGES))
    judgement = judge(watch, [Observed("score_distribution", apart)], BEGAN, LATER)
    assert judgement.decision == "roll_back"
    assert only(judgement, "score_distribution").difference == pytest.approx(0.4, abs=0.03)
    assert "apart, 2,000 rows and the champion's 9,000" in judgement.reasons[0]


def test_a_middle_that_moved_is_found_though_the_mean_stayed() -> None:
    rng = np.random.default_rng(1)
    narrow, wide = rng.normal(0.5, 0.05, 3000), rng.normal(0.5, 0.2, 30_000)
    gap = Apart(Scores.of(narrow, EDGES), Scores.of(wide, EDGES)).gap(LEVELS)
    assert gap.difference == pytest.approx(0.28, abs=0.04)
    assert 0.2 < gap.low < gap.difference < gap.high < 0.4


# Pairs


def test_pairs_show_what_two_piles_cannot() -> None:
    """Two models that fail in the same rows, but one in four more of a thousand."""
    rng = np.random.default_rng(2)
    champion = rng.random(20_000) < 0.2
    challenger = champion | (rng.random(20_000) < 0.02)
    paired = PairedShare.of(challenger, champion)
    assert (paired.both, paired.champion) == (champion.sum(), 0)
    pairs, piles = paired.gap(LEVELS), Apart(Share.of(challenger), Share.of(champion)).gap(LEVELS)
    assert pairs.difference == pytest.approx(piles.difference)
    assert pairs.high - pairs.low < (piles.high - piles.low) / 3
    assert pairs.low > 0


def test_pairs_of_numbers_show_what_two_piles_cannot() -> None:
    rng = np.random.default_rng(2)
    champion = rng.random(5000)
    challenger = np.clip(champion + rng.normal(0.01, 0.02, 5000), 0, 1)
    pairs = PairedMean.of(challenger, champion).gap(LEVELS)
    piles = Apart(Mean.of(challenger), Mean.of(champion)).gap(LEVELS)
    assert pairs.difference == pytest.approx(piles.difference)
    assert 0.005 < pairs.low < pairs.difference < pairs.high < 0.016
    assert piles.low < 0


def test_pairs_of_scores() -> None:
    rng = np.random.default_rng(2)
    champion = rng.random(5000)
    pairs = PairedScores.of(champion + 0.05, champion, EDGES)
    gap = pairs.gap(LEVELS)
    piles = Apart(Scores.of(champion + 0.05, EDGES), Scores.of(champion, EDGES)).gap(LEVELS)
    assert gap.difference == pytest.approx(piles.difference) == pytest.approx(0.05, abs=0.01)
    assert 0.03 < gap.low < gap.difference < gap.high < piles.high
    assert PairedScores.of([math.nan, 0.5], [0.5, math.nan], EDGES).challenger[0] == 1


def test_bounds_of_two_piles_of_numbers_share_their_level() -> None:
    rng = np.random.default_rng(6)
    piles = rng.beta(2, 9, 700), rng.beta(2, 7, 4000)
    gap = Apart(*map(Mean.of, piles)).gap(Levels(0.01, 0.2))
    totals = [(len(pile), pile.sum(), (pile**2).sum()) for pile in piles]
    (low, _), (_, high_too) = (mean_bounds(*total, 0.01 / 2) for total in totals)
    (_, high), (low_too, _) = (mean_bounds(*total, 0.2 / 2) for total in totals)
    assert (gap.low, gap.high) == pytest.approx((low - high_too, high - low_too))


def test_bounds_of_pairs_of_numbers_are_those_of_their_differences() -> None:
    rng = np.random.default_rng(6)
    one, two = rng.beta(2, 9, 700), rng.beta(2, 7, 700)
    gap = PairedMean.of(one, two).gap(Levels(0.01, 0.2))
    shifted = (1 + one - two) / 2
    bounds = [mean_bounds(700, shifted.sum(), (shifted**2).sum(), alpha) for alpha in (0.01, 0.2)]
    assert (gap.low, gap.high) == pytest.approx((2 * bounds[0][0] - 1, 2 * bounds[1][1] - 1))


def test_that_scores_moved_somewhere_may_be_wrong_at_any_edge() -> None:
    """The edges share the level of the lower bound; the upper one must hold at each, and has it whole."""
    rng = np.random.default_rng(6)
    one, two = rng.random(900) ** 1.4, rng.random(900)
    below, below_too = (np.cumsum(Scores.of(scores, EDGES).counts)[:-1] for scores in (one, two))
    levels, pairs = Levels(0.06, 0.2), PairedScores.of(one, two, EDGES)
    for gap, bounds in (
        (
            Apart(Scores.of(one, EDGES), Scores.of(two, EDGES)).gap(levels),
            [difference_bounds(900, below, 900, below_too, alpha) for alpha in (0.06 / 12, 0.2)],
        ),
        (
            pairs.gap(levels),
            [
                paired_difference_bounds(900, pairs.challenger, pairs.champion, alpha)
                for alpha in (0.06 / 12, 0.2)
            ],
        ),
    ):
        assert gap.low == pytest.approx(np.maximum(bounds[0][0], -bounds[0][1]).max())
        assert gap.high == pytest.approx(np.maximum(-bounds[1][0], bounds[1][1]).max())
        assert gap.low > 0


def test_disagreement_has_an_accepted_share() -> None:
    watch = Watch(errors=None, latency=None, score_distribution=None, disagreement=Disagreement(margin=0.1))
    for differing, decision in ((700, "promote"), (1000, "hold"), (1300, "roll_back")):
        judgement = judge(watch, [Observed("disagreement", Share(10_000, differing))], BEGAN, LATER)
        assert judgement.decision == decision
        assert f"disagreement: {differing / 100:.2f}% of 10,000 rows, by " in judgement.reasons[-1]


# Losses, business


def test_a_business_metric_is_shown_in_its_own_unit() -> None:
    revenue = Business(low=0, high=200, better="higher", margin=2)
    watch = Watch(errors=None, latency=None, score_distribution=None, business={"revenue": revenue})
    rng = np.random.default_rng(4)
    brings = [np.round(rng.gamma(2, mean / 2, rows)) for mean, rows in ((12, 20_000), (20, 60_000))]
    scaled = [Mean.of(harm(values, revenue.scale)) for values in brings]
    judgement = judge(watch, [Observed("revenue", Apart(*scaled))], BEGAN, LATER)
    assert judgement.decision == "roll_back"
    found = only(judgement, "revenue")
    assert found.challenger == pytest.approx(brings[0].mean(), abs=1e-6)
    assert found.champion == pytest.approx(brings[1].mean(), abs=1e-6)
    assert found.difference == pytest.approx(brings[1].mean() - brings[0].mean(), abs=1e-6)
    assert 2 < found.low < found.difference < found.high < 12
    assert "revenue: 12" in found.sentence
    better = judge(watch, [Observed("revenue", Apart(*scaled[::-1]))], BEGAN, LATER)
    assert better.decision == "promote"


def test_how_bad_a_row_is() -> None:
    scale = Scale(-10, 30, "higher")
    assert harm([30, 31, -10, -99, 10, math.nan], scale).tolist() == [0, 0, 1, 1, 0.5, 1]
    assert harm([0, 3, 99, math.inf], Scale(0, 6)).tolist() == [0, 0.5, 1, 1]


def test_losses_are_the_textbooks() -> None:
    outputs = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [math.nan, math.nan]])
    answers = Answers("binary", np.array([0, 0, UNKNOWN_CLASS, 0]), outputs)
    assert losses(answers, "zero_one").tolist() == [0, 1, 1, math.inf]
    assert losses(answers, "brier") == pytest.approx([0.01, 0.36, 0.75, math.inf])
    assert losses(answers, "log")[:2] == pytest.approx([-math.log(0.9), -math.log(0.4)])
    assert losses(answers, "log")[2] > 10
    lengths = Answers("regression", np.array([3.0, 3.0, 3.0]), np.array([1.0, 4.0, math.nan]))
    assert losses(lengths, "absolute").tolist() == [2, 1, math.inf]
    assert losses(lengths, "squared").tolist() == [4, 1, math.inf]


def test_labels_of_a_regression_are_compared_in_their_unit() -> None:
    labels = LabelLoss(loss="absolute", largest=50, margin=1.0)
    watch = Watch(errors=None, latency=None, score_distribution=None, labels=labels)
    rng = np.random.default_rng(5)
    off = [harm(np.abs(rng.normal(0, spread, 8000)), labels.scale) for spread in (10.0, 10.0, 14.0)]
    same = judge(watch, [Observed("labels", PairedMean.of(off[0], off[1]))], BEGAN, LATER)
    assert same.decision == "promote"
    assert only(same, "labels").champion == pytest.approx(8, abs=0.2)
    worse = judge(watch, [Observed("labels", Apart(Mean.of(off[2]), Mean.of(off[1])))], BEGAN, LATER)
    assert worse.decision == "roll_back"


# Segments, and what all of them may err by


def test_a_segment_rolls_back_what_looks_well_as_a_whole() -> None:
    watch = Watch(segments={"origin": ("EWR", "JFK", "LGA")})
    bad = Observed("errors", Apart(Share(800, 80), Share(2400, 24)), "origin=LGA")
    judgement = judge(watch, [*canary(), bad], BEGAN, LATER)
    assert judgement.decision == "roll_back"
    assert judgement.reasons[0].startswith("errors of origin=LGA: 10.00% in 800 rows")
    assert only(judgement, "errors").verdict == "not_worse"


def test_no_promotion_waits_for_a_segment() -> None:
    watch = Watch(segments={"origin": ("EWR", "JFK", "LGA")})
    few = Observed("errors", Apart(Share(20, 0), Share(60, 0)), "origin=LGA")
    judgement = judge(watch, [*canary(rows=40_000), few], BEGAN, LATER)
    assert judgement.decision == "promote"
    assert only(judgement, "errors", "origin=LGA").verdict == "undecided"


@pytest.mark.parametrize("segments", [{}, {"a": ("x",)}, {"a": ("x", "y"), "b": ("x", "y", "z")}])
@pytest.mark.parametrize("steps", [1, 4])
def test_all_that_can_roll_back_shares_alpha(segments: dict[str, Any], steps: int) -> None:
    watch = Watch(segments=segments, alpha=0.04, labels=LabelLoss())
    judgement = judge(watch, [], BEGAN, LATER, steps)
    values = sum(map(len, segments.values()))
    assert len(judgement.comparisons) == 4 * (1 + values)
    assert sum(one.alpha for one in judgement.comparisons) == pytest.approx(0.04 / steps)
    whole = sum(one.alpha for one in judgement.comparisons if one.segment is None)
    assert whole == pytest.approx(0.04 / steps / (2 if values else 1))


def test_more_to_look_at_takes_more_rows_to_roll_back_and_none_to_promote() -> None:
    alone = Watch(latency=None, score_distribution=None)
    many = Watch(segments={"a": tuple("abcdefgh")}, disagreement=Disagreement(), labels=LabelLoss())
    one, other = (only(judge(watch, canary()[:1], BEGAN, LATER), "errors") for watch in (alone, many))
    assert other.low < one.low
    assert other.high == one.high


# What is refused


@pytest.mark.parametrize(
    "make",
    [
        lambda: Share(3, 4),
        lambda: Share(-1, 0),
        lambda: Mean(3, 3.5, 3.0),
        lambda: Mean(3, 1.0, 1.5),
        lambda: Mean(4, 2.0, 0.5),
        lambda: Mean(3, math.nan, 0.0),
        lambda: Mean.of([0.5, math.nan]),
        lambda: Mean.of([0.5, 1.5]),
        lambda: Scores((3,)),
        lambda: Scores((3, -1)),
        lambda: PairedShare(10, 5, 5, 1),
        lambda: PairedMean(10, 11.0, 1.0, 1.0),
        lambda: PairedMean(10, 5.0, 1.0, 0.1),
        lambda: PairedScores(5, (3,), (3,)),
        lambda: PairedScores(5, (1, 1), (1,)),
        lambda: Apart(Share(3, 1), Mean(3, 1.0, 1.0)),
        lambda: Apart(Scores((1, 2)), Scores((1, 2, 3))),
    ],
)
def test_totals_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(JudgingError, match=r"cannot be|counted differently"):
        make()


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        (
            [Observed("error", Apart(Share(1, 0), Share(1, 0)))],
            "error is not watched; what is: errors, latency",
        ),
        (canary()[:1] * 2, "errors is there twice"),
        ([replace(canary()[0], segment="origin=XYZ")], "errors of origin=XYZ is not watched; segments: none"),
        ([Observed("errors", canary()[2].counted)], "errors cannot be judged by Apart(challenger=Scores"),
        ([Observed("errors", Share(3, 1))], "errors cannot be judged by Share"),
        ([Observed("score_distribution", Apart(Share(1, 0), Share(1, 0)))], "score_distribution cannot be"),
    ],
)
def test_totals_of_something_else_are_refused(observed: list[Observed], words: str) -> None:
    with pytest.raises(JudgingError) as raised:
        judge(Watch(), observed, BEGAN, LATER)
    assert words in str(raised.value)


def test_a_release_that_begins_later_is_refused() -> None:
    with pytest.raises(JudgingError, match="began at"):
        judge(Watch(), canary(), LATER, BEGAN)


# Totals


flags = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1), st.floats(0, 1)), max_size=30)


@settings(max_examples=50, deadline=None)
@given(flags, flags)
def test_totals_add_up(one, two):  # type: ignore[no-untyped-def]
    def totals(rows):  # type: ignore[no-untyped-def]
        a, b, x, y = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
        return (
            Apart(Share.of(a), Share.of(b)),
            PairedShare.of(a, b),
            Mean.of(x),
            PairedMean.of(x, y),
            Scores.of(x, EDGES),
            PairedScores.of(x, y, EDGES),
        )

    for first, second, both in zip(totals(one), totals(two), totals(one + two), strict=True):
        assert list((first + second).numbers()) == pytest.approx(list(both.numbers()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 4000), st.integers(0, 4000))
def test_one_more_bad_row_never_makes_it_look_better(n, s, m, t):  # type: ignore[no-untyped-def]
    s, t = min(s, n), min(t, m)
    watch = Watch(latency=None, score_distribution=None, min_rows=1)

    def rank(bad: int, champion_bad: int) -> int:
        observed = [Observed("errors", Apart(Share(n, bad), Share(m, champion_bad)))]
        return ["roll_back", "hold", "promote"].index(judge(watch, observed, BEGAN, LATER).decision)

    if s < n:
        assert rank(s + 1, t) <= rank(s, t)
    if t < m:
        assert rank(s, t + 1) >= rank(s, t)


def test_parts_of_a_watch_add_up_to_the_whole() -> None:
    one, two = canary(rows=2000), canary(rows=3000)
    other = Observed("errors", Apart(Share(5, 1), Share(6, 2)), "origin=LGA")
    whole = add_up([*one, other, *two, other])
    assert [(part.metric, part.segment) for part in whole] == [
        ("errors", None), ("latency", None), ("score_distribution", None), ("errors", "origin=LGA"),
    ]  # fmt: skip
    assert whole[0].counted == Apart(Share(5000, 50), Share(15_000, 150))
    assert whole[2].counted.challenger.rows == 5000  # type: ignore[union-attr]
    assert whole[3].counted == Apart(Share(10, 2), Share(12, 4))
    with pytest.raises(JudgingError, match="cannot be added up"):
        add_up([one[0], replace(one[0], counted=PairedShare(9, 1, 1, 1))])
    with pytest.raises(JudgingError, match="cannot be added up"):
        Scores((1, 2)) + Scores((1, 2, 3))


@dataclass(frozen=True)
class Kept(Record):
    schema: ClassVar[str] = "kept/1"
    observed: tuple[Observed, ...]


def test_totals_and_judgements_travel_as_json() -> None:
    kinds = [
        Observed("labels", Apart(Mean(3, 1.5, 1.0), Mean(9, 1.0, 0.5)), "origin=LGA"),
        Observed("errors", PairedShare(10, 1, 2, 3)),
        Observed("labels", PairedMean(10, 1.0, 2.0, 1.5)),
        Observed("score_distribution", PairedScores(9, (1, 2), (3, 4))),
        Observed("disagreement", Share(10, 2)),
    ]
    kept = Kept((*canary(), *kinds))
    assert from_json(Kept, json.loads(json.dumps(to_json(kept), allow_nan=False))) == kept
    judgement = judge(Watch(segments={"origin": ("LGA",)}), canary(), BEGAN, LATER)
    text = json.dumps(to_json(judgement), allow_nan=False)
    assert from_json(Judgement, json.loads(text)) == judgement


# The spec


WHOLE = """
alpha: 0.01
errors: {margin: 0.001}
latency: {limit_ms: 40, margin: 0.02}
score_distribution: null
disagreement: {margin: 0.05, required: false}
labels: {loss: log, largest: 5, margin: 0.05}
business:
  revenue: {high: 500, margin: 2.5}
  cost: {low: -1, high: 9, margin: 0.5, better: lower}
segments: {origin: [EWR, JFK], month: [1, 2]}
min_rows: 200
min_time: 30m
deadline: 2d
"""


def watch_of(text: str) -> tuple[Watch | None, str]:
    parsed, problems = read_spec(Watch, text.encode(), "watch.yaml")
    return (parsed.value if parsed else None), "\n".join(problem.text for problem in problems)


def test_a_whole_section() -> None:
    watch, problems = watch_of(WHOLE)
    assert problems == ""
    assert watch is not None
    assert list(watch.criteria) == ["errors", "latency", "disagreement", "labels", "revenue", "cost"]
    assert watch.segment_names == ("origin=EWR", "origin=JFK", "month=1", "month=2")
    assert watch.criteria["labels"].scale == Scale(0, 5, "lower")
    assert watch.criteria["revenue"].scale == Scale(0, 500, "higher")
    assert (watch.deadline, watch.min_time) == (timedelta(days=2), timedelta(minutes=30))
    assert watch_of("{}")[0] == Watch()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("errors: {margins: 0.1}", "did you mean 'margin'?"),
        ("error: {margin: 0.1}", "did you mean 'errors'?"),
        ("errors: {margin: 1}", "errors.margin"),
        ("errors: {margin: -0.1}", "errors.margin"),
        ("errors: {margin: .nan}", ".nan is not a number"),
        ("alpha: 0", "alpha"),
        ("alpha: 0.6", "alpha"),
        ("latency: {limit_ms: 0}", "latency.limit_ms"),
        ("disagreement: {margin: 0}", "disagreement.margin"),
        ("labels: {loss: rmse}", "loss"),
        ("labels: {loss: log, margin: 0.1}", "log needs largest: what a larger loss counts as"),
        ("labels: {loss: absolute, largest: 9}", "absolute needs margin: how much worse"),
        ("labels: {loss: brier, largest: 2}", "goes without loss brier, which is at most 1 by itself"),
        ("labels: {loss: squared, largest: 2, margin: 2}", "2 is as wide as the range (2): nothing is worse"),
        ("business: {revenue: {high: 3}}", "margin"),
        ("business: {revenue: {low: 3, high: 3, margin: 1}}", "3 is not below high (3)"),
        ("business: {revenue: {low: -1, high: 1, margin: 2}}", "2 is as wide as the range (2)"),
        ("business: {errors: {margin: 0.1}}", "errors: has a meaning of its own"),
        ("segments: {origin: []}", "origin: has no values"),
        ("segments: {origin: [EWR, EWR]}", "origin=EWR is there twice"),
        ('segments: {a: ["b=c"], "a=b": [c]}', "a=b=c is there twice"),
        ("min_rows: 0", "min_rows"),
        ("min_time: 4d", "must be longer than min_time, or nothing could be promoted"),
        ("{errors: null, latency: null, score_distribution: null}", "needs a required metric"),
        (
            "{errors: {required: false}, latency: null, score_distribution: {required: false}}",
            "needs a required metric",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_place(text: str, words: str) -> None:
    watch, problems = watch_of(text)
    assert watch is None
    assert problems.count("watch.yaml:") == 1
    assert words in problems
