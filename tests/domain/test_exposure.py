from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from step_log_kit import BEGUN, LATER, RELEASE, row, write

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.exposure import Baseline, Exposure, champion_before, count
from ml_lifecycle.delivery.judging import Observed
from ml_lifecycle.delivery.sides import Apart, PairedMean, PairedScores, PairedShare
from ml_lifecycle.delivery.step_log import StepLog
from ml_lifecycle.delivery.tallies import Mean, Scores, Share
from ml_lifecycle.records import from_json, to_json
from ml_lifecycle.spec.watch import Watch

WATCH = Watch.model_validate({"segments": {"carrier": ["AA"], "flight": ["f1"]}})
BASELINE = Baseline(latency_ms=10.0, edges=(0.5,), rows=1000)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path))


def look(
    lake: Lake,
    before: Exposure | None = None,
    paired: bool = False,
    watch: Watch = WATCH,
    now: datetime = LATER,
) -> Exposure:
    return count(StepLog.at(lake, RELEASE, now), paired, watch, BASELINE, before or Exposure(7))


def totals(exposure: Exposure) -> dict[str, Any]:
    return {str(one): one.counted for one in exposure.observed}


def test_both_sides_are_counted_in_all_and_by_segment(lake: Lake) -> None:
    write(lake, 1, [row("1", 1), row("1", 2, latency_ms=11.0), row("1", 3, score=0.9)])
    write(lake, 2, [row("2", 4, features={"carrier": "UA", "distance": 2.0}, latency_ms=12.0)])
    write(lake, 3, [row("2", 5, status=503), row("2", 6, status=400)])
    found = totals(look(lake))
    assert found["errors"] == Apart(Share(3, 2), Share(3, 0)), "what it alone refused is in the log, too"
    assert found["latency"] == Apart(Share(1, 1), Share(3, 1))
    assert found["score_distribution"] == Apart(Scores((0, 1, 0)), Scores((0, 2, 1)))
    assert found["latency of carrier=AA"] == Apart(Share(0, 0), Share(3, 1))
    # A request that failed has no features, but its keys are known.
    assert found["errors of carrier=AA"] == Apart(Share(0, 0), Share(3, 0))
    assert found["errors of flight=f1"] == Apart(Share(3, 2), Share(3, 0))


def test_what_the_champion_answered_in_its_place_is_not_the_champions_own(lake: Lake) -> None:
    write(lake, 1, [row("1", 1), row("2", 2, status=400, returned=False)])
    write(lake, 2, [row("1", 2, latency_ms=99.0)])
    found = totals(look(lake))
    assert found["errors"] == Apart(Share(1, 1), Share(1, 0))
    assert found["latency"] == Apart(Share(0, 0), Share(1, 0))


def test_a_request_fails_or_is_late_once_however_many_rows_it_has(lake: Lake) -> None:
    write(lake, 1, [row("2", 1, row=number, latency_ms=50.0) for number in range(100)])
    write(lake, 2, [row("2", 2, row=number, status=500) for number in range(100)])
    found = totals(look(lake))
    assert found["errors"] == Apart(Share(2, 1), Share(0, 0))
    assert found["latency"] == Apart(Share(1, 1), Share(0, 0))
    assert found["score_distribution"] == Apart(Scores((0, 1, 0)), Scores((0, 0, 0)))


def test_a_part_that_was_written_later_is_not_passed_over_for_its_older_rows(lake: Lake) -> None:
    # One flush: answers that came two seconds ago, then a request that was given up after seven.
    now = BEGUN + timedelta(seconds=60)
    write(lake, 1, [row("1", 58)])
    write(lake, 2, [row("2", 53, status=503)])
    early = look(lake, now=now)
    assert early.counted == {}
    assert totals(look(lake, early))["errors"] == Apart(Share(1, 1), Share(1, 0))


def test_a_copy_may_be_logged_in_a_part_before_its_answer(lake: Lake) -> None:
    watch = Watch().of_shadow()
    write(lake, 1, [row("2", 1)])
    write(lake, 2, [row("1", 1), row("1", 57)])
    write(lake, 3, [row("2", 57)])
    early = look(lake, paired=True, watch=watch, now=BEGUN + timedelta(seconds=58))
    assert totals(look(lake, early, paired=True, watch=watch))["errors"] == PairedShare(2, 0, 0, 0)


def test_of_an_id_that_was_given_twice_nobody_knows_which_belong_together(lake: Lake) -> None:
    write(lake, 1, [row("1", 1, prediction_id="x"), row("1", 2, prediction_id="x"), row("1", 3)])
    write(lake, 2, [row("2", 1, prediction_id="x"), row("2", 2, prediction_id="x"), row("2", 3)])
    assert totals(look(lake, paired=True, watch=Watch().of_shadow()))["errors"] == PairedShare(1, 0, 0, 0)


def test_a_torn_part_is_left_out_and_named(lake: Lake) -> None:
    write(lake, 1, [row("2", 1)])
    torn = (
        f"predictions/delays/2026-03-01/{BEGUN + timedelta(seconds=2):%Y%m%dT%H%M%S%f}-s1-000002-aaa.parquet"
    )
    lake.write_bytes(torn, b"PAR1")
    write(lake, 3, [row("2", 3)])
    exposure = look(lake)
    assert totals(exposure)["errors"] == Apart(Share(2, 0), Share(0, 0))
    assert (exposure.unreadable, exposure.counted) == ((torn,), {"s1": 3})


def test_what_is_no_traffic_of_the_step_is_left_out(lake: Lake) -> None:
    write(lake, 1, [row("2", 1)])
    write(
        lake, 2, [row("2", 2, route_revision=6), row("2", 3, prediction_id="release-check-delays-7-golden")]
    )
    write(lake, 3, [row("1", 4, received_at=BEGUN - timedelta(days=1))], day="2026-03-09")
    assert totals(look(lake))["errors"] == Apart(Share(1, 0), Share(0, 0))


def test_looking_often_counts_each_row_once(lake: Lake) -> None:
    exposure: Exposure | None = None
    for number in range(1, 7):
        version = "12"[number % 2]
        write(
            lake,
            number,
            [row(version, number), row(version, number + 10, score=0.7)],
            day=f"2026-03-0{number}",
        )
        write(lake, number, [row(version, number + 20)], server="s2")
        exposure = look(lake, exposure)
        assert look(lake, exposure) == exposure
    assert exposure is not None
    assert totals(exposure) == totals(look(lake))
    assert totals(exposure)["errors"] == Apart(Share(9, 0), Share(9, 0))
    assert exposure.counted == {"s1": 6, "s2": 6}


def test_what_is_not_settled_waits_with_all_that_follow(lake: Lake) -> None:
    write(lake, 1, [row("2", 1)])
    write(lake, 2, [row("2", 600)])
    early = look(lake, now=BEGUN + timedelta(seconds=601))
    assert (early.counted, totals(early)["errors"]) == ({"s1": 1}, Apart(Share(1, 0), Share(0, 0)))
    assert totals(look(lake, early))["errors"] == Apart(Share(2, 0), Share(0, 0))


def test_of_a_shadow_the_rows_that_both_answered_are_compared(lake: Lake) -> None:
    watch = Watch.model_validate({"disagreement": {}, "segments": {"carrier": ["AA"]}}).of_shadow()
    write(lake, 1, [row("1", number) for number in range(1, 6)])
    first = look(lake, paired=True, watch=watch)
    assert totals(first)["errors"] == PairedShare(0, 0, 0, 0)
    # The copies come in a part of their own, after their answers were counted; two were dropped.
    write(lake, 2, [row("2", 1, score=0.9, outputs={"label": "yes"}), row("2", 2)])
    write(lake, 3, [row("2", 3, status=500)])
    found = totals(look(lake, first, paired=True, watch=watch))
    assert found["errors"] == PairedShare(rows=3, both=0, challenger=1, champion=0)
    assert found["score_distribution"] == PairedScores(2, (0, 0), (0, 1))
    assert found["disagreement"] == Share(2, 1)
    assert found["errors of carrier=AA"] == PairedShare(3, 0, 1, 0), (
        "the answer tells what a failed copy does not"
    )
    assert found == totals(look(lake, paired=True, watch=watch))


def test_the_baseline_is_the_champions_own(lake: Lake) -> None:
    write(lake, 1, [row("1", number, score=number / 200, latency_ms=float(number)) for number in range(199)])
    assert champion_before(StepLog.at(lake, RELEASE, LATER), "1") is None
    write(lake, 2, [row("1", 200, score=1.0, latency_ms=200.0), row("2", 201, latency_ms=1e6)])
    write(lake, 3, [row("1", 202, status=500, latency_ms=1e6)])
    made = champion_before(StepLog.at(lake, RELEASE, LATER), "1")
    assert made is not None
    assert (made.rows, len(made.edges)) == (200, 19)
    assert made.latency_ms == pytest.approx(197.01, abs=0.5)
    assert made.edges[9] == pytest.approx(0.5, abs=0.01)


def test_parts_before_the_step_are_not_even_opened(lake: Lake) -> None:
    write(lake, 1, [row("1", 1, received_at=BEGUN - timedelta(hours=2))])
    write(lake, 2, [row("1", 2)])
    assert [part.number for part in StepLog.at(lake, RELEASE, LATER).fresh({})] == [2]


def test_every_kind_of_total_comes_back_from_json() -> None:
    counted = (
        Apart(Share(5, 1), Share(0, 0)),
        Apart(Mean(5, 2.0, 2.0), Mean(0, 0.0, 0.0)),
        Apart(Scores((1, 2)), Scores((0, 0))),
        PairedShare(5, 1, 1, 1),
        PairedMean(5, 1.0, 2.0, 1.0),
        PairedMean(),
        PairedScores(5, (1, 2), (2, 1)),
        Share(4, 2),
    )
    exposure = Exposure(7, {"s1": 3}, tuple(Observed(f"m{n}", one) for n, one in enumerate(counted)))
    assert from_json(Exposure, json.loads(json.dumps(to_json(exposure)))) == exposure
