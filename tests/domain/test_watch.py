"""The watch beside a running server: real requests, a real prediction log, and what follows from them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from delivery_kit import Candidate, make_candidate, make_golden, make_model, make_scaled
from delivery_world import World
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import find_parts
from ml_lifecycle.adapters.predictions import read_parts
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.judgements import read_judgement
from ml_lifecycle.errors import (
    ApprovalError,
    NotApprovedError,
    NotConfirmedError,
    ReleaseChecksError,
)
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.records import Evidence
from ml_lifecycle.serving.client import ModelClient, ServerUnavailableError
from ml_lifecycle.stages.approve import record_decision, request_approval
from ml_lifecycle.stages.watch import Watching, watch
from ml_lifecycle.stages.watch_labels import Tables

_numbers = itertools.count(1)
ROWS = 5
# Enough for a few hundred rows to tell; latency is the machine's own here, and left out.
WATCH = {
    "errors": {"margin": 0.1},
    "latency": None,
    "score_distribution": {"margin": 0.3},
    "min_rows": 100,
    "min_time": "1m",
}
# Less than servers' clocks may differ: what is released then counts rows of now.
SOON = timedelta(minutes=2)
START = datetime.now(UTC).replace(microsecond=0)


class Watched:
    """A champion, version 1, with a challenger, version 2, on its way."""

    def __init__(self, folder: Path, client: ModelClient, lake: Lake, delivery: Mapping[str, Any]) -> None:
        self.client = client
        changes = {"delivery": {"watch": WATCH, **delivery}}
        self.world = World(folder, f"watched_{next(_numbers)}", client, lake, **changes).begin()
        self.world.clock = Clock(now=lambda: datetime.now(UTC))
        self.world.release(1)
        self.evidence: Evidence | None = None

    def deploy(self, model: bytes, expected: Any = None) -> None:
        """Release version 2; its golden rows are version 1's unless it is said."""
        golden = expected or make_golden(1)
        candidate: Candidate = make_candidate(self.world.source, 2, model, golden)
        self.evidence = self.world.approved(candidate)
        self.world.deploy(candidate, self.evidence)

    def look(
        self, after: timedelta = SOON, decided_by: str | None = None, tables: Tables | None = None
    ) -> Watching:
        """Look as if it were so much later."""
        assert self.evidence is not None
        clock = Clock(now=lambda: datetime.now(UTC) + after)
        world = self.world
        return watch(
            world.spec, world.target, world.database, self.evidence, tables, clock, decided_by=decided_by
        )

    def ask(self, requests: int, hour: int = 7) -> dict[str, int]:
        """Ask with requests of a few rows, each assigned by its flight; rows answered by version.

        Returned once they are in the log.
        """
        revision = self.world.served()[1]
        for number in range(requests):
            distances = [float((number * ROWS + row) % 977) for row in range(ROWS)]
            body = {
                "inputs": [
                    {"name": "distance", "datatype": "FP32", "shape": [ROWS], "data": distances},
                    {"name": "hour", "datatype": "INT64", "shape": [ROWS], "data": [hour] * ROWS},
                ],
                "parameters": {
                    "entities": {"flight": [f"f{number}-{row}" for row in range(ROWS)]},
                    "event_time": [(START + timedelta(minutes=row)).isoformat() for row in range(ROWS)],
                },
            }
            try:
                self.client.post(self.world.endpoint, body)
            except ServerUnavailableError:
                assert hour == 99, "only what is meant to fail does"
        answered = wait_until(lambda: self._logged(revision, requests * ROWS), "all rows are logged")
        return answered

    def _logged(self, revision: int, rows: int) -> dict[str, int] | None:
        lake = self.world.target.lake
        found: dict[str, int] = {}
        for part in find_parts(lake, self.world.endpoint, START.date()):
            mine = read_parts(lake, [part.path]).filter(
                pl.col("route_revision") == revision,
                pl.col("returned"),
                ~pl.col("prediction_id").str.starts_with("release-check-"),
            )
            for version, count in mine.group_by("model_version").len().collect().iter_rows():
                found[version] = found.get(version, 0) + count
        return found if sum(found.values()) >= rows else None


@pytest.fixture
def watched(tmp_path: Path, serving: tuple[ModelClient, Lake]) -> Callable[..., Watched]:
    return lambda **delivery: Watched(tmp_path, *serving, delivery)


def fails_at(hour: int) -> bytes:
    """Version 1's model, but for one hour, at which it cannot be run."""
    from onnx import helper

    table = helper.make_node("Constant", [], ["table"], value_floats=[1.0] * hour)
    return make_scaled([table, helper.make_node("Gather", ["table", "hour"], ["slope"])])


def alike() -> bytes:
    """Version 1's model in other bytes."""
    return fails_at(99)


def test_a_canary_grows_while_nothing_is_worse_and_takes_over(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[30, 60])
    one.deploy(alike())
    assert one.look().judgement.reasons[0].startswith("errors: 0 rows of the challenger")  # type: ignore[union-attr]
    first = one.ask(600)
    assert 0 < first["2"] < first["1"], "a smaller part of the keys"
    held = one.look(after=timedelta(seconds=30))
    assert (held.is_over, held.step) == (False, "canary 0.3")
    assert "it has had traffic for 0:00:3" in held.judgement.reasons[0]  # type: ignore[union-attr]
    assert one.look().step == "canary 0.6"
    held = one.look(after=2 * SOON)
    assert held.step == "canary 0.6", "each step is judged by its own traffic"
    second = one.ask(600)
    assert second["2"] > first["2"]
    done = one.look(after=2 * SOON)
    assert done.is_over
    assert one.ask(3) == {"2": 3 * ROWS}
    assert one.look(after=2 * SOON) == Watching(done.release, "champion")
    one.world.check_order()


def test_the_last_judgement_is_kept_with_what_it_went_by(watched: Callable[..., Watched]) -> None:
    latency = {"limit_ms": 10_000, "margin": 0.5}
    one = watched(strategy="canary", steps=[50], watch={**WATCH, "latency": latency, "min_rows": 9999})
    one.deploy(alike())
    one.ask(200)
    for after in (SOON, 2 * SOON):
        held = one.look(after=after)
        kept = read_judgement(one.world.target.lake, held.release)
        assert kept == held.judgement
        assert (kept.min_rows, kept.min_time, kept.latency_limit_ms) == (9999, timedelta(minutes=1), 10_000)


def test_one_that_answers_otherwise_is_taken_back_and_says_why(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50])
    one.deploy(make_model(3.0), make_golden(3))
    one.ask(600)
    with pytest.raises(ReleaseChecksError, match=r"rolled back: score_distribution: .* 30.00% is accepted"):
        one.look(after=timedelta(seconds=10))
    assert one.ask(2) == {"1": 2 * ROWS}
    entries = Ledger(one.world.database).entries()
    told = [entry.payload["reason"] for entry in entries if entry.payload.get("kind") == "restore"]
    assert told
    assert all("score_distribution" in reason for reason in told)
    with pytest.raises(ReleaseChecksError, match="score_distribution"):
        one.look()
    one.world.check_order()


def test_one_that_fails_is_taken_back(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50], watch={**WATCH, "score_distribution": None})
    one.deploy(fails_at(24))
    one.ask(200, hour=99)
    with pytest.raises(ReleaseChecksError, match=r"rolled back: errors: 100.00% in .* the champion 0.00%"):
        one.look(after=timedelta(seconds=10))
    assert one.ask(2, hour=99) == {"1": 2 * ROWS}


def test_a_shadow_is_judged_by_the_rows_that_both_answered(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="shadow")
    one.deploy(alike())
    assert one.look().step == "shadow"
    assert one.ask(300) == {"1": 300 * ROWS}, "its answers are not returned"
    done = wait_until(lambda: _over(one.look()), "the copies are logged")
    assert done.judgement is not None
    errors, scores = done.judgement.comparisons
    assert (errors.metric, scores.metric) == ("errors", "score_distribution")
    # Copies may be dropped where there is no time for them; of a request all rows are.
    assert errors.challenger_rows == errors.champion_rows >= 100
    assert scores.challenger_rows == errors.challenger_rows
    assert one.ask(2) == {"2": 2 * ROWS}


def _over(watching: Watching) -> Watching | None:
    return watching if watching.is_over else None


def test_a_shadow_that_scores_otherwise_never_answered_anybody(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="shadow")
    one.deploy(make_model(3.0), make_golden(3))
    one.ask(300)

    def taken_back() -> bool:
        try:
            one.look()
        except ReleaseChecksError as error:
            return "score_distribution" in str(error)
        return False

    wait_until(taken_back, "the copies are logged")
    assert one.ask(2) == {"1": 2 * ROWS}


def outcomes(column: str, value: Callable[[int, float], float]) -> Tables:
    """The labels of all that :meth:`Watched.ask` asks for: ``value`` of the request's number and distance."""
    rows = [
        {
            "flight": f"f{number}-{row}",
            "event_timestamp": START + timedelta(minutes=row),
            "known_at": START,
            column: value(number, float((number * ROWS + row) % 977)),
        }
        for number in range(400)
        for row in range(ROWS)
    ]
    return lambda _: pl.LazyFrame(rows)


def test_labels_decide_when_they_arrive(watched: Callable[..., Watched]) -> None:
    loss = {"loss": "absolute", "largest": 50, "margin": 5}
    one = watched(strategy="ab", watch={**WATCH, "score_distribution": None, "labels": loss})
    one.deploy(make_model(1.0625), make_golden(1.0625))
    one.ask(400)
    none = one.look(tables=lambda _: outcomes("delay", lambda *_: 0.0)("").limit(0))
    assert none.judgement.reasons[0].startswith("labels: 0 rows of the challenger")  # type: ignore[union-attr]
    lake = one.world.target.lake
    gone = [path for path in lake.list(f"watches/{one.world.endpoint}") if path.endswith(".parquet")]
    assert gone
    for path in gone:
        lake.delete(path)
    right = outcomes("delay", lambda _, distance: distance + 7)  # as version 1 says
    with pytest.raises(ReleaseChecksError, match=r"labels: .* the champion 0 in .*worse by \+"):
        one.look(tables=right)


def test_a_business_metric_decides_an_ab_test(watched: Callable[..., Watched]) -> None:
    revenue = {"margin": 5, "high": 20, "column": "paid"}
    one = watched(
        strategy="ab", watch={**WATCH, "score_distribution": None, "business": {"revenue": revenue}}
    )
    one.deploy(alike())
    one.ask(400)
    done = one.look(tables=outcomes("paid", lambda number, distance: (number + distance) % 11))
    assert done.is_over
    (known,) = [each for each in done.judgement.comparisons if each.metric == "revenue"]  # type: ignore[union-attr]
    assert known.challenger_rows + known.champion_rows == 400


def test_a_business_metric_without_its_table_or_column_is_told(watched: Callable[..., Watched]) -> None:
    business = {
        "revenue": {"margin": 0.5, "table": "ordrs"},
        "visits": {"margin": 0.5, "required": False},
    }
    one = watched(strategy="canary", steps=[50], watch={**WATCH, "business": business})
    one.deploy(alike())
    frames = {"labels": outcomes("delay", lambda *_: 0.0)("")}
    judgement = one.look(tables=frames.__getitem__).judgement
    assert judgement is not None
    revenue = "revenue: cannot be counted: tables() of features.py returns no 'ordrs'"
    visits = "visits: cannot be counted: table 'labels' of features.py has no column 'visits'"
    assert judgement.reasons[-2:] == (revenue, visits)
    assert [one.sentence for one in judgement.comparisons[-2:]] == [revenue, visits]


def test_what_is_undecided_is_left_to_people(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50])
    one.deploy(alike())
    held = one.look(after=timedelta(days=3))
    assert (held.is_over, held.judgement.for_people) == (False, True)  # type: ignore[union-attr]
    for user in ("eve", "ann", "cem"):  # no approver; started its training; started its promotion
        with pytest.raises(NotApprovedError, match=rf"{user} may not decide .* may: ben$"):
            one.look(decided_by=user)
    assert one.look(decided_by="ben").is_over
    assert one.world.live().reason == "given all traffic by ben"
    one.world.check_order()


def test_after_the_deadline_a_release_that_turns_bad_is_still_taken_back(
    watched: Callable[..., Watched],
) -> None:
    one = watched(
        strategy="canary", steps=[50], watch={**WATCH, "deadline": "2m", "score_distribution": None}
    )
    one.deploy(fails_at(24))
    assert one.look().judgement.for_people  # type: ignore[union-attr]
    one.ask(200, hour=99)
    with pytest.raises(ReleaseChecksError, match="rolled back: errors"):
        one.look()


def test_what_traffic_showed_to_be_worse_needs_another_approval(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50], watch={**WATCH, "score_distribution": None})
    one.deploy(fails_at(24))
    one.ask(200, hour=99)
    with pytest.raises(ReleaseChecksError):
        one.look()
    assert one.evidence is not None
    assert Ledger(one.world.database).approval_for(one.evidence.digest) is None


def test_one_whose_approval_ends_is_taken_back(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50])
    one.deploy(alike())
    evidence, ledger = one.evidence, Ledger(one.world.database)
    assert evidence is not None
    key = RequestKey("delays__promote", "again", "approve")
    request_approval(ledger, evidence, key, ("ben",), datetime.now(UTC))
    now, champion = datetime.now(UTC), one.world.live()
    with pytest.raises(ApprovalError, match="rejected by ben"):
        record_decision(ledger, evidence, key, "reject", "ben", now, champion=champion)
    with pytest.raises(ReleaseChecksError, match="its approval was withdrawn"):
        one.look()
    one.world.check_order()


def test_a_torn_part_of_the_log_does_not_blind_the_watch(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50], watch={**WATCH, "score_distribution": None})
    one.deploy(fails_at(24))
    one.ask(200, hour=99)
    lake = one.world.target.lake
    part = find_parts(lake, one.world.endpoint, START.date())[0]
    lake.write_bytes(part.path.replace(f"-{part.number:06d}-", "-999999-"), b"PAR1 torn PAR1")
    with pytest.raises(ReleaseChecksError, match="rolled back: errors"):
        one.look()


def test_what_people_took_back_is_over(watched: Callable[..., Watched]) -> None:
    one = watched(strategy="canary", steps=[50])
    one.deploy(alike())
    assert one.world.rollback("run 1").version == "1"
    with pytest.raises(ReleaseChecksError, match="complaints"):
        one.look()
    one.evidence = one.world.evidence(one.world.candidate(3))
    with pytest.raises(NotConfirmedError, match="version 3 of delays is neither on its way"):
        one.look()


def test_in_staging_all_goes_at_once(tmp_path: Path, serving: tuple[ModelClient, Lake]) -> None:
    name = f"watched_{next(_numbers)}"
    world = World(tmp_path, name, *serving, environment="staging", delivery={"strategy": "canary"}).begin()
    for number in (1, 2):
        candidate = world.candidate(number)
        assert world.deploy(candidate, world.evidence(candidate)).state == "confirmed"
