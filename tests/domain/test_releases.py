from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import COLUMNS, NOW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Route, Variant, current, publish, published_heads
from ml_lifecycle.errors import (
    IntegrityError,
    NothingToRollBackToError,
    ReleaseConflictError,
    ReleaseUnderWayError,
)
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.records import Release, canonical_json, to_json

WHERE = ("production", "delays")


class World:
    """Releases, and the lake they are published to."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database = Database(database_url)
        self.database.migrate()
        self.releases = Releases(self.database)
        self.lake = Lake(str(folder / "lake"))

    def deployment(self, version: str, **changes: Any) -> Deployment:
        live = self.releases.live(*WHERE)
        digest = sha256(version.encode())
        fields: dict[str, Any] = {
            "model": "delays",
            "environment": "production",
            "endpoint": "delays",
            "version": version,
            "model_digest": digest,
            "evidence_digest": sha256(f"evidence {version}".encode()),
            "strategy": "blue_green",
            "variants": self._champion(version),
            "expected": None if live is None else live.revision,
        }
        return Deployment(**{**fields, **changes})

    @staticmethod
    def _champion(version: str) -> tuple[Variant, ...]:
        digest = sha256(version.encode())
        return (Variant("champion", version, f"models/{digest}.onnx", digest, "regression", COLUMNS, ()),)

    def begin(self, version: str) -> Release:
        return self.releases.apply(self.releases.begin(self.deployment(version), NOW), self.lake, NOW)

    def deploy(self, version: str) -> Release:
        return self.releases.confirmed(self.begin(version), NOW)

    def restore(self, replaced: Release, request: str | None = None) -> Release:
        restore = self.releases.begin_restore(
            replaced, NOW, reason="bad", requested_by="ben", request=request
        )
        applied = self.releases.apply(restore, self.lake, NOW)
        if self.published() not in (None, applied.version):  # it is a standby, to be checked
            following = self.releases.advance(applied, self._champion(applied.version), NOW)
            applied = self.releases.apply(following, self.lake, NOW)
        return self.releases.confirmed(applied, NOW)

    def live(self) -> Release:
        live = self.releases.live(*WHERE)
        assert live is not None
        return live

    def published(self) -> str | None:
        route = current(self.lake, "delays")
        assert route is not None
        return route.champion.version if route.variants else None


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> World:
    return World(database_url, tmp_path)


def test_nothing_is_live_before_the_first_release_is_confirmed(world: World) -> None:
    assert world.releases.champion("delays") is None
    first = world.begin("1")
    assert (first.revision, first.state, first.previous_revision) == (1, "applied", None)
    assert world.releases.live(*WHERE) is None
    confirmed = world.releases.confirmed(first, NOW)
    assert world.live() == confirmed == world.releases.champion("delays")
    assert world.releases.live("staging", "delays") is None
    assert world.releases.live("production", "other") is None


def test_a_release_under_way_changes_nothing_until_it_is_confirmed(world: World) -> None:
    world.deploy("1")
    second = world.begin("2")
    assert world.live().version == "1"
    assert world.releases.under_way(*WHERE) == second
    world.releases.confirmed(second, NOW)
    assert (world.live().version, world.live().previous_revision) == ("2", 1)
    assert world.releases.under_way(*WHERE) is None


def test_the_same_evidence_goes_on_with_its_release(world: World) -> None:
    begun = world.releases.begin(world.deployment("1"), NOW)
    assert world.releases.begin(world.deployment("1"), NOW) == begun


def test_another_evidence_has_to_wait(world: World) -> None:
    world.begin("1")
    with pytest.raises(
        ReleaseUnderWayError, match=r"production/delays revision 1 \(version 1\) is under way"
    ):
        world.begin("2")


def test_a_release_expecting_another_champion_loses(world: World) -> None:
    world.deploy("1")
    late = world.deployment("3")
    world.deploy("2")
    with pytest.raises(ReleaseConflictError, match="revision 1 was expected to be live, but 2 is"):
        world.releases.begin(late, NOW)


def test_of_concurrent_promoters_one_wins(world: World) -> None:
    world.deploy("1")
    deployments = [world.deployment(str(number)) for number in range(2, 52)]
    barrier = threading.Barrier(len(deployments))

    def promote(deployment: Deployment) -> Release | None:
        barrier.wait()
        try:
            release = world.releases.begin(deployment, NOW)
        except ReleaseConflictError:
            return None
        return world.releases.confirmed(world.releases.apply(release, world.lake, NOW), NOW)

    with ThreadPoolExecutor(len(deployments)) as pool:
        won = [release for release in pool.map(promote, deployments) if release is not None]
    assert len(won) == 1
    assert world.live() == won[0]
    assert world.published() == won[0].version
    assert [release.revision for release in world.releases.history(*WHERE)] == [2, 1]


def test_a_failed_release_gives_way_to_what_was_live(world: World) -> None:
    world.deploy("1")
    failed = world.begin("2")
    restore = world.restore(failed)
    assert (restore.kind, restore.restores, restore.replaces) == ("restore", 1, 2)
    assert world.live() == restore
    assert (restore.version, restore.revision, world.published()) == ("1", 3, "1")
    assert world.releases.get(*WHERE, 2).state == "rolled_back"
    assert world.releases.get(*WHERE, 1).state == "confirmed"


def test_between_roll_back_and_restore_the_old_one_is_live(world: World) -> None:
    world.deploy("1")
    failed = world.begin("2")
    world.releases.begin_restore(failed, NOW, reason="bad")
    assert (world.live().version, world.live().revision) == ("1", 1)


def test_a_first_release_that_fails_is_withdrawn(world: World) -> None:
    withdrawal = world.restore(world.begin("1"))
    assert withdrawal.kind == "withdraw"
    assert world.releases.live(*WHERE) is None
    assert world.published() is None
    assert world.deploy("2").previous_revision is None
    assert world.live().version == "2"


def test_each_rollback_goes_further_back(world: World) -> None:
    for version in ("1", "2", "3"):
        world.deploy(version)
    assert world.restore(world.live(), "a").version == "2"
    assert world.restore(world.live(), "b").version == "1"
    with pytest.raises(NothingToRollBackToError, match="before revision 1"):
        world.restore(world.live(), "c")
    assert world.live().version == world.published() == "1"
    states = {release.revision: release.state for release in world.releases.history(*WHERE)}
    assert states == {
        1: "confirmed",
        2: "rolled_back",
        3: "rolled_back",
        4: "superseded",
        5: "rolled_back",
        6: "superseded",
        7: "confirmed",
    }


def test_what_was_rolled_back_is_never_gone_back_to(world: World) -> None:
    world.deploy("1")
    world.deploy("2")
    world.restore(world.live(), "a")
    world.deploy("3")
    assert world.restore(world.live(), "b").version == "1"


def test_whatever_people_write_as_their_reason_is_kept_legibly(world: World) -> None:
    world.deploy("1")
    second = world.deploy("2")
    words = "it\x00 was\ud800 worse\n" + "!" * 3000
    restore = world.releases.begin_restore(second, NOW, reason=words, request="by hand")
    assert restore.reason.startswith("it\ufffd was\ufffd worse\n!!!")
    assert len(restore.reason) == 2000
    world.releases.confirmed(world.releases.apply(restore, world.lake, NOW), NOW)
    assert world.live().reason == restore.reason
    assert Ledger(world.database).entries()[-1].payload["reason"] == restore.reason
    Ledger(world.database).verify()


def test_a_request_is_found_again(world: World) -> None:
    world.deploy("1")
    world.deploy("2")
    restore = world.restore(world.live(), "run 7")
    assert world.releases.requested(*WHERE, "run 7") == restore
    assert world.releases.requested(*WHERE, "run 8") is None


def test_what_is_neither_live_nor_under_way_cannot_be_replaced(world: World) -> None:
    first = world.deploy("1")
    world.deploy("2")
    with pytest.raises(ReleaseConflictError, match="neither under way nor live"):
        world.releases.begin_restore(first, NOW, reason="bad")


def test_a_slow_release_cannot_publish_after_it_was_rolled_back(world: World) -> None:
    world.deploy("1")
    slow = world.releases.begin(world.deployment("2"), NOW)
    world.restore(slow)
    for step in (
        lambda: world.releases.apply(slow, world.lake, NOW),
        lambda: world.releases.confirmed(slow, NOW),
    ):
        with pytest.raises(ReleaseConflictError, match="was rolled back meanwhile: bad"):
            step()
    assert world.published() == "1"


def test_a_route_that_an_older_version_wrote_is_published_again_as_it_is(tmp_path):
    """It lacks what routes have come to say since."""
    lake = Lake(str(tmp_path))
    variant = Variant("champion", "1", "m.onnx", "0" * 64, "regression", (), ())
    route = Route("delays", "delays", 1, (variant,), "0" * 64, NOW)
    old = to_json(route)
    del old["variants"][0]["not_found"]
    path = "routes/delays/00000001.json"
    lake.write_bytes(path, canonical_json(old))
    publish(lake, route)
    assert lake.read_bytes(path) == canonical_json(old)
    assert current(lake, "delays") == route
    with pytest.raises(IntegrityError, match="is not revision 1 as it was released"):
        publish(lake, replace(route, salt="other"))


def test_publishing_an_older_release_again_leaves_the_pointer(world: World) -> None:
    first = world.deploy("1")
    world.begin("2")
    assert world.releases.apply(first, world.lake, NOW) == first
    assert world.published() == "2"


def test_steps_taken_twice_change_nothing(world: World) -> None:
    first = world.deploy("1")
    entries = Ledger(world.database).entries()
    assert world.releases.apply(first, world.lake, NOW) == first
    assert world.releases.confirmed(first, NOW) == first
    assert Ledger(world.database).entries() == entries


def test_every_state_is_in_the_ledger_and_its_head_in_the_routes(world: World) -> None:
    world.deploy("1")
    world.restore(world.begin("2"))
    ledger = Ledger(world.database)
    told = [(entry.payload["revision"], entry.payload["state"]) for entry in ledger.entries()]
    assert told == [
        (1, "intent"),
        (1, "applied"),
        (1, "confirmed"),
        (2, "intent"),
        (2, "applied"),
        (2, "rolled_back"),
        (3, "intent"),
        (3, "applied"),
        (3, "confirmed"),
    ]
    heads = published_heads(world.lake, "delays")
    assert heads == [entry.digest for entry in ledger.entries() if entry.payload["state"] == "intent"]
    ledger.verify(heads)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["deploy", "fail", "rollback", "cancel"]), max_size=9))
def test_any_history_behaves_like_a_stack(
    make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """What is live is the top of a stack: a confirmed release is put on it, a rollback takes one off."""
    world, stack = World(make_database(), tmp_path_factory.mktemp("history")), list[str]()
    for number, step in enumerate(steps):
        version = str(number)
        if step == "deploy":
            world.deploy(version)
            stack.append(version)
        elif step == "fail":
            world.restore(world.begin(version))
        elif step == "cancel":
            world.restore(world.begin(version), f"request {number}")
        elif len(stack) > 1:
            world.restore(world.live(), f"request {number}")
            stack.pop()
        elif stack:
            with pytest.raises(NothingToRollBackToError):
                world.restore(world.live(), f"request {number}")
        live = world.releases.live(*WHERE)
        assert (live.version if live else None) == (stack[-1] if stack else None)
        if live is not None:
            assert live.version == world.published()
    Ledger(world.database).verify(published_heads(world.lake, "delays"))
