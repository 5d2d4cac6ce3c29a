"""Releases that wait for another one, which has a part of the traffic."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from delivery_kit import NOW, Candidate
from delivery_world import World

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.releases import Deployment
from ml_lifecycle.errors import (
    ApprovalError,
    ChampionChangedError,
    NotApprovedError,
    ReleaseUnderWayError,
    ReleaseWatchedError,
)
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.records import Evidence
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.stages.approve import record_decision, request_approval
from ml_lifecycle.stages.watch import watch

_numbers = itertools.count(1)
CANARY = {"strategy": "canary", "steps": [5, 50]}
Asked = tuple[Candidate, Evidence]


@pytest.fixture
def world(tmp_path: Path, serving: tuple[ModelClient, Lake]) -> World:
    """Version 1 is live."""
    made = World(tmp_path, f"turns_{next(_numbers)}", *serving, delivery=CANARY).begin()
    made.release(1)
    return made


@pytest.fixture
def approved(world: World) -> Callable[[int], Asked]:
    """Approved beside version 1."""

    def approve(number: int) -> Asked:
        candidate = world.candidate(number)
        return candidate, world.approved(candidate)

    return approve


def waits(world: World, asked: Asked) -> ReleaseWatchedError:
    """It must wait, and changes nothing."""
    before = world.releases.history("production", world.endpoint), len(list(world.target.lake.list("models")))
    with pytest.raises(ReleaseWatchedError) as raised:
        world.deploy(*asked)
    after = world.releases.history("production", world.endpoint), len(list(world.target.lake.list("models")))
    assert before == after
    return raised.value


def test_one_that_comes_while_another_is_watched_waits_and_says_for_what(
    world: World, approved: Callable[[int], Asked]
) -> None:
    second, third = approved(2), approved(3)
    world.deploy(*second)
    waiting = waits(world, third)
    assert f"production/{world.endpoint} revision 3 (version 2, canary 0.05) is under way" in str(waiting)
    assert "last looked at 2026-03-01 12:00:00 UTC" in str(waiting)
    assert (waiting.retryable, waiting.left_alone) == (True, False)


def test_it_goes_on_once_the_other_was_taken_back(world: World, approved: Callable[[int], Asked]) -> None:
    second, third = approved(2), approved(3)
    world.deploy(*second)
    waits(world, third)
    world.rollback("run 1")
    assert (world.deploy(*third).version, world.live().version) == ("3", "1")
    assert world.carry(*third).version == "3"
    world.check_order()


def test_it_is_never_deployed_on_evidence_beside_an_older_champion(
    world: World, approved: Callable[[int], Asked]
) -> None:
    second, third = approved(2), approved(3)
    world.deploy(*second)
    waits(world, third)
    world.carry(*second)
    with pytest.raises(
        ChampionChangedError, match=r"3 was compared with version 1, but version 2 is .*: evaluate it again"
    ):
        world.deploy(*third)
    world.check_order()


def test_of_two_that_wait_one_goes_on_and_the_other_waits_for_it(
    world: World, approved: Callable[[int], Asked]
) -> None:
    second, third, fourth = approved(2), approved(3), approved(4)
    world.deploy(*second)
    waits(world, third), waits(world, fourth)
    world.rollback("run 1")
    world.deploy(*fourth)
    assert "(version 4, canary 0.05)" in str(waits(world, third))
    world.carry(*fourth)
    with pytest.raises(ChampionChangedError, match="but version 4 is champion"):
        world.deploy(*third)


def test_one_that_nobody_looks_at_any_more_is_told_from_one_that_is_watched(
    world: World, approved: Callable[[int], Asked]
) -> None:
    second, third = approved(2), approved(3)
    world.deploy(*second)
    at = NOW + timedelta(hours=2)
    world.clock = Clock(now=lambda: at)
    alone = waits(world, third)
    assert alone.left_alone
    assert "nobody has looked at it since 2026-03-01 12:00:00 UTC" in str(alone)
    assert "delays__rollback" in str(alone)
    watch(world.spec, world.target, world.database, second[1], None, world.clock)
    assert not waits(world, third).left_alone


def test_one_whose_approval_ends_while_it_waits_is_told_at_once(
    world: World, approved: Callable[[int], Asked]
) -> None:
    second, third = approved(2), approved(3)
    world.deploy(*second)
    waits(world, third)
    ledger, key = Ledger(world.database), RequestKey("delays__promote", "again", "approve")
    request_approval(ledger, third[1], key, ("ben",), NOW)
    with pytest.raises(ApprovalError):
        record_decision(ledger, third[1], key, "reject", "ben", NOW, champion=world.live())
    with pytest.raises(NotApprovedError):
        world.deploy(*third)


def test_one_that_nobody_watches_by_design_is_not_waited_for(
    world: World, approved: Callable[[int], Asked]
) -> None:
    (candidate, evidence), third, live = approved(2), approved(3), world.live()
    killed = Deployment(
        model=live.model,
        environment=live.environment,
        endpoint=live.endpoint,
        version=candidate.version.version,
        model_digest=candidate.version.model_digest,
        evidence_digest=evidence.digest,
        strategy="blue_green",
        variants=world.releases.route(live).variants,
        expected=live.revision,
    )
    world.releases.begin(killed, NOW)
    with pytest.raises(ReleaseUnderWayError, match=r"\(version 2\) is under way: let its task end") as raised:
        world.deploy(*third)
    assert not isinstance(raised.value, ReleaseWatchedError)
