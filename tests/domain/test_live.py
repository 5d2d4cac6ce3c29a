"""What answered while a release had a part of the traffic: with its share, and who let it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_audit import World

from ml_lifecycle.delivery.audit import as_table, live_at
from ml_lifecycle.delivery.strategies import Step


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_version_that_has_a_part_of_the_traffic_is_live_beside_the_champion(world: World) -> None:
    world.release(1)
    begun, lake = world.begin(2, step=Step("shadow")), world.lakes["production"]
    moments = [world.now]
    for step in (Step("canary", 0.2), Step("champion"), None):
        applied = world.releases.apply(begun, lake, world.tick())
        moments.append(world.now)
        if step is not None:
            route = world.releases.route(applied)
            begun = world.releases.advance(
                applied, step.variants(route.variant("2"), route.champion), world.tick()
            )
    confirmed = world.releases.confirmed(begun, world.tick())
    live = ("1", "champion", 1.0, "confirmed", "ben")
    assert [world.served(moment) for moment in (*moments, world.now)] == [
        [live],
        [live, ("2", "shadow", 0.0, "applied", "ben")],
        [("1", "champion", 0.8, "confirmed", "ben"), ("2", "canary", 0.2, "applied", "ben")],
        # It has all traffic, and until it is confirmed a rollback needs no other release to go back to.
        [("1", "standby", 0.0, "confirmed", "ben"), ("2", "champion", 1.0, "applied", "ben")],
        [("2", "champion", 1.0, "confirmed", "ben")],
    ]
    shown = as_table("production", moments[2], live_at(world.ledger, "production", moments[2]))
    assert "  version       2 of delays\n  share         20 % of the traffic, as canary\n" in shown
    assert "revision 3, applied (ledger entry" in shown
    assert confirmed.revision == 4


def test_a_canary_answers_until_it_is_published_that_it_was_taken_back(world: World) -> None:
    world.release(1)
    canary = world.releases.apply(
        world.begin(2, step=Step("canary", 0.2)), world.lakes["production"], world.tick()
    )
    back = world.releases.begin_restore(canary, world.tick(), reason="worse", withdraw=True)
    assert world.served(world.now)[1] == ("2", "canary", 0.2, "rolled_back", "ben")
    world.releases.apply(back, world.lakes["production"], world.tick())
    assert world.served(world.now) == [("1", "champion", 1.0, "confirmed", "ben")]
    world.confirm(back)
    assert (world.live().revision, world.live().requested_by) == (back.revision, None)
