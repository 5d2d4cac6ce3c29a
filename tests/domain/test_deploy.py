from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import NOW, Candidate, make_candidate, make_golden, make_model
from delivery_world import CLOCK, World
from sqlalchemy import update

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.lineage import RegistryFile
from ml_lifecycle.delivery.releases import Deployment
from ml_lifecycle.errors import (
    ChampionChangedError,
    IntegrityError,
    LedgerError,
    LifecycleError,
    NotApprovedError,
    NotConfirmedError,
    NothingToRollBackToError,
    ReleaseChecksError,
    ReleaseConflictError,
    RollbackTargetError,
    ServerUnavailableError,
    SpecError,
)
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.tables import ledger as ledger_table
from ml_lifecycle.records import Evidence, InputRules, Release, to_json
from ml_lifecycle.serving.client import ModelClient, RequestRefusedError
from ml_lifecycle.stages.deploy import deploy

_numbers = itertools.count(1)


@pytest.fixture
def make_world(tmp_path: Path, serving: tuple[ModelClient, Lake]) -> Callable[..., World]:
    return lambda **changes: World(tmp_path, f"delays_{next(_numbers)}", *serving, **changes).begin()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def left_behind(world: World, candidate: Candidate, evidence: Evidence) -> Release:
    """A release whose process was killed once it had begun."""
    live = world.live()
    deployment = Deployment(
        model=live.model,
        environment=live.environment,
        endpoint=live.endpoint,
        version=candidate.version.version,
        model_digest=candidate.version.model_digest,
        evidence_digest=evidence.digest,
        strategy=live.strategy,
        variants=world.releases.route(live).variants,
        expected=live.revision,
    )
    return world.releases.begin(deployment, NOW)


def test_a_release_is_copied_published_checked_and_confirmed(world: World) -> None:
    candidate = world.candidate(1)
    evidence = world.approved(candidate)
    release = world.deploy(candidate, evidence)
    assert release == world.live()
    assert (release.state, release.version, release.revision) == ("confirmed", "1", 1)
    assert (release.evidence_digest, release.requested_by) == (evidence.digest, "cem")
    route = world.releases.route(release)
    assert world.target.lake.read_bytes(route.champion.model_path, candidate.version.model_digest)
    assert route.champion.entity_keys == ()
    world.check_order()


def test_a_second_release_follows_on_the_first(world: World) -> None:
    world.release(1)
    second = world.release(2)
    assert (second.previous_revision, second.revision) == (1, 3)
    assert world.releases.get("production", world.endpoint, 2).state == "superseded"
    assert world.served() == ("2", 3)
    world.check_order()


def test_rules_of_inputs_are_released_and_what_becomes_of_values_that_break_them(world: World) -> None:
    candidate = world.candidate(1)
    rules = InputRules("flights.distance", "float", min=-1000, max=1000)
    columns = tuple(
        replace(column, rules=rules if column.name == "distance" else None)
        for column in candidate.training.columns
    )
    candidate = replace(candidate, training=replace(candidate.training, columns=columns))
    world.source.write_json(f"{candidate.training.path}/manifest.json", to_json(candidate.training))
    features = world.spec.features.model_copy(update={"broken_rules": "refuse"})
    world.spec = world.spec.model_copy(update={"features": features})
    champion = world.releases.route(world.deploy(candidate, world.approved(candidate))).champion
    assert (champion.columns, champion.broken_rules) == (columns, "refuse")
    (client,) = world.target.clients
    distance = {"name": "distance", "datatype": "FP32", "shape": [1], "data": [2000.0]}
    hour = {"name": "hour", "datatype": "INT64", "shape": [1], "data": [3]}
    with pytest.raises(RequestRefusedError, match=r"expected -1000 to 1000 \(range of flights.distance"):
        client.post(world.endpoint, {"inputs": [distance, hour]})
    world.check_order()


def test_what_it_replaces_stays_loaded_beside_it(world: World) -> None:
    world.release(1)
    route = world.releases.route(world.release(2))
    assert [(one.role, one.version) for one in route.variants] == [("champion", "2"), ("standby", "1")]
    answer = world.target.clients[0].post(world.endpoint, make_golden(1)["request"], "1")
    assert answer["outputs"][0]["data"] == make_golden(1)["expected"]["prediction"]


def test_one_version_released_twice_is_gone_back_from(world: World) -> None:
    candidate = world.candidate(1)
    first = world.deploy(candidate, world.approved(candidate))
    again = replace(candidate, evaluation=replace(candidate.evaluation, metrics={"rmse": 7.0}))
    second = world.deploy(again, world.approved(again))
    assert (second.version, second.revision) == ("1", 2)
    assert world.rollback("run 1").restores == first.revision
    route = world.releases.route(world.live())
    assert (route.revision, len(route.variants)) == (3, 1)
    world.check_order()


def test_a_way_back_that_is_broken_is_told_and_stops_nothing(world: World) -> None:
    first = world.release(1)
    golden = world.releases.route(first).champion.golden_path
    assert golden is not None
    world.target.lake.write_json(golden, make_golden(1.5))
    assert world.release(2).reason.startswith("no way back to version 1: golden rows: prediction[0]")
    for message in (
        "version 1 .* version 2 stays live: golden rows",
        "version 1 of delays stays out: golden",
    ):
        with pytest.raises(RollbackTargetError, match=message):
            world.rollback("run 1")
    assert world.live().version == "2"
    world.check_order()


def test_deploying_what_is_live_changes_nothing(world: World) -> None:
    candidate = world.candidate(1)
    evidence = world.approved(candidate)
    release = world.deploy(candidate, evidence)
    entries = Ledger(world.database).entries()
    assert world.deploy(candidate, evidence) == release
    assert Ledger(world.database).entries() == entries


def test_the_registry_goes_along_under_its_digest(world: World) -> None:
    candidate = world.candidate(1)
    evidence = world.approved(candidate)
    world.source.write_bytes("features/registry.pb", b"altered")
    registry = RegistryFile("features/registry.pb", "a" * 64)
    with pytest.raises(IntegrityError, match="expected aaaa"):
        deploy(
            world.spec,
            world.target,
            world.source,
            world.database,
            evidence,
            candidate.version,
            CLOCK,
            registry=registry,
        )
    assert world.releases.history("production", world.endpoint) == []


class TestApproval:
    def test_production_asks_the_ledger(self, world: World) -> None:
        candidate = world.candidate(1)
        evidence = candidate.evidence(world.source)
        with pytest.raises(NotApprovedError, match=f"no approval of version 1 of delays.*{evidence.digest}"):
            world.deploy(candidate, evidence)
        assert world.releases.history("production", world.endpoint) == []

    def test_staging_does_not(self, world: World) -> None:
        world.target = replace(world.target, environment="staging")
        candidate = world.candidate(1)
        release = world.deploy(candidate, candidate.evidence(world.source))
        assert (release.environment, release.state) == ("staging", "confirmed")
        assert world.releases.champion(world.endpoint) is None

    def test_approval_of_other_evidence_does_not_count(self, world: World) -> None:
        world.approved(world.candidate(1))
        other = world.candidate(2)
        with pytest.raises(NotApprovedError):
            world.deploy(other, other.evidence(world.source))

    @pytest.mark.parametrize("forged", [{"model_digest": "f" * 64}, {"champion_digest": "f" * 64}])
    def test_approved_evidence_cannot_be_altered(self, world: World, forged: dict[str, Any]) -> None:
        candidate = world.candidate(1)
        evidence = world.approved(candidate)
        with pytest.raises(IntegrityError, match="its content has"):
            world.deploy(candidate, replace(evidence, **forged))

    def test_another_version_cannot_use_it(self, world: World) -> None:
        evidence, other = world.approved(world.candidate(1)), world.candidate(2)
        with pytest.raises(IntegrityError, match="version is 2, the evidence says 1"):
            world.deploy(other, evidence)

    def test_altered_bytes_are_found(self, world: World) -> None:
        candidate = world.candidate(1)
        evidence = world.approved(candidate)
        world.source.write_bytes(candidate.training.model_path, make_model(-1.0 * next(_numbers)))
        world.target.lake.delete(f"models/{candidate.version.model_digest}.onnx")
        with pytest.raises(IntegrityError, match="has digest"):
            world.deploy(candidate, evidence)

    def test_an_altered_evaluation_is_found(self, world: World) -> None:
        candidate = world.candidate(1)
        evidence = world.approved(candidate)
        better = replace(candidate, evaluation=replace(candidate.evaluation, metrics={"rmse": 0.1}))
        better.evidence(world.source)
        with pytest.raises(IntegrityError, match="evaluation is"):
            world.deploy(candidate, evidence)

    def test_staging_must_have_confirmed_it(self, world: World) -> None:
        first = world.release(1)
        second = world.candidate(2)
        evidence = world.approved(second)
        staged = world.releases.live("staging", "delays")
        assert staged is not None
        back = world.releases.begin_restore(staged, CLOCK.now(), reason="slow", request="r")
        world.releases.confirmed(back, CLOCK.now())
        with pytest.raises(NotConfirmedError, match=f"staging has not confirmed .*{evidence.digest}"):
            world.deploy(second, evidence)
        assert world.live() == first

    def test_approved_evidence_of_another_model_opens_no_endpoint(self, world: World) -> None:
        candidate = world.candidate(1)
        evidence = world.approved(candidate)
        world.spec = world.spec.model_copy(update={"name": "refunds"})
        with pytest.raises(IntegrityError, match="the endpoint is refunds, the evidence says delays"):
            world.deploy(candidate, evidence)
        assert world.releases.history("production", world.endpoint) == []

    def test_another_champion_asks_for_another_evaluation(self, world: World) -> None:
        world.release(1)
        late = world.candidate(3)
        evidence = world.approved(late)
        world.release(4)
        with pytest.raises(ChampionChangedError, match="compared with version 1, but version 4 is champion"):
            world.deploy(late, evidence)
        assert world.live().version == "4"

    def test_a_rewritten_ledger_stops_everything(self, world: World) -> None:
        world.release(1)
        candidate = world.candidate(2)
        evidence = world.approved(candidate)
        with world.database.write() as connection:
            connection.execute(
                update(ledger_table).where(ledger_table.c.seq == 1).values(payload='{"decision":"approve"}')
            )
        with pytest.raises(LedgerError, match="entry 1 was edited"):
            world.deploy(candidate, evidence)

    def test_what_people_rolled_back_needs_a_new_approval(self, world: World) -> None:
        world.release(1)
        second = world.candidate(2)
        evidence = world.approved(second)
        world.deploy(second, evidence)
        world.rollback("run 1")
        with pytest.raises(NotApprovedError):
            world.deploy(second, evidence)


def test_an_unknown_environment_is_named(world: World) -> None:
    world.target = replace(world.target, environment="uat")
    candidate = world.candidate(1)
    with pytest.raises(SpecError, match="no environment 'uat', only staging, production"):
        world.deploy(candidate, candidate.evidence(world.source))


class TestChecksFail:
    def test_what_was_live_is_served_again(self, world: World) -> None:
        world.release(1)
        bad = world.candidate(2, expected=2.5)
        with pytest.raises(ReleaseChecksError, match=r"version 2 .* back: golden rows: prediction\[0\]"):
            world.deploy(bad, world.approved(bad))
        assert (world.live().version, world.live().kind, world.served()) == ("1", "restore", ("1", 3))
        assert "golden rows" in world.releases.get("production", world.endpoint, 2).reason
        world.check_order()

    def test_a_model_the_server_refuses_is_taken_back(self, make_world: Callable[..., World]) -> None:
        world = make_world(timeout="1s")
        world.release(1)
        torn = make_candidate(world.source, 2, b"no ONNX file", make_golden(2))
        with pytest.raises(ReleaseChecksError, match=r"did not come to revision 2 within 1 s.*does not load"):
            world.deploy(torn, world.approved(torn))
        assert world.served() == ("1", 3)
        world.check_order()

    def test_a_first_release_leaves_nothing_served(self, world: World) -> None:
        bad = world.candidate(1, expected=2.5)
        with pytest.raises(ReleaseChecksError):
            world.deploy(bad, world.approved(bad))
        assert world.releases.live("production", world.endpoint) is None
        assert not world.target.clients[0].ready(world.endpoint)
        with pytest.raises(RequestRefusedError, match="404"):
            world.target.clients[0].post(world.endpoint, make_golden(1)["request"])
        assert world.release(2).previous_revision is None
        world.check_order()

    def test_a_process_killed_while_taking_it_back_has_failed_too(self, world: World) -> None:
        world.release(1)
        bad = world.candidate(2, expected=2.5)
        evidence = world.approved(bad)
        stuck = left_behind(world, bad, evidence)
        world.releases.begin_restore(stuck, NOW, reason="golden rows: wrong")
        with pytest.raises(ReleaseChecksError, match="as revision 2 and was rolled back: golden rows: wrong"):
            world.deploy(bad, evidence)
        assert (world.live().version, world.live().revision) == ("1", 3)
        world.check_order()

    def test_a_server_that_is_down_is_told_before_anything_changes(self, world: World) -> None:
        candidate = world.candidate(1)
        evidence = world.approved(candidate)
        with ModelClient("http://127.0.0.1:9", "x") as nobody:
            world.target = replace(world.target, clients=(*world.target.clients, nobody))
            with pytest.raises(ServerUnavailableError):
                world.deploy(candidate, evidence)
        assert world.releases.history("production", world.endpoint) == []


def test_of_two_promoters_one_wins(world: World) -> None:
    world.release(1)
    candidates = [world.candidate(2), world.candidate(3)]
    evidences = [world.approved(candidate) for candidate in candidates]
    barrier = threading.Barrier(2)

    def promote(number: int) -> Release | LifecycleError:
        barrier.wait()
        try:
            return world.deploy(candidates[number], evidences[number])
        except (ReleaseConflictError, ChampionChangedError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(promote, range(2)))
    won = [result for result in results if isinstance(result, Release)]
    assert len(won) == 1
    assert world.live() == won[0]
    world.check_order()


class TestRollback:
    def test_goes_back_and_says_who_and_why(self, world: World) -> None:
        world.release(1)
        world.release(2)
        restored = world.rollback("run 1")
        assert (restored.version, restored.revision, restored.restores, world.served()) == (
            "1",
            5,
            1,
            ("1", 5),
        )
        entries = Ledger(world.database).entries()
        told = next(entry for entry in entries if entry.payload.get("kind") == "restore")
        assert (told.payload["requested_by"], told.payload["reason"]) == ("ben", "complaints")
        world.check_order()

    def test_called_again_makes_no_further_one(self, world: World) -> None:
        for number in (1, 2, 3):
            world.release(number)
        assert world.rollback("run 1") == world.rollback("run 1")
        assert world.live().version == "2"
        assert world.rollback("run 2").version == "1"
        with pytest.raises(NothingToRollBackToError):
            world.rollback("run 3")
        world.check_order()

    def test_of_nothing(self, world: World) -> None:
        with pytest.raises(NothingToRollBackToError, match="serves nothing"):
            world.rollback("run 1")

    def test_ends_a_release_that_is_stuck(self, world: World) -> None:
        world.release(1)
        candidate = world.candidate(2)
        evidence = world.approved(candidate)
        left_behind(world, candidate, evidence)
        other = world.candidate(3)
        with pytest.raises(ReleaseConflictError, match="a rollback of the endpoint ends it too"):
            world.deploy(other, world.approved(other))
        assert world.rollback("run 1").version == "1"
        with pytest.raises(NotApprovedError):
            world.deploy(candidate, evidence)
        world.check_order()

    def test_two_at_once_go_back_once(self, world: World) -> None:
        for number in (1, 2, 3):
            world.release(number)
        world.releases.begin_restore(world.live(), NOW, reason="complaints", request="run 1")
        with pytest.raises(ReleaseConflictError, match="the rollback run 1 was under way: it is finished"):
            world.rollback("run 2")
        assert world.live().version == "2"
        assert world.rollback("run 1") == world.live()
        world.check_order()

    def test_a_server_that_does_not_follow_is_told(self, make_world: Callable[..., World]) -> None:
        world = make_world(timeout="1s")
        world.release(1)
        world.release(2)
        with ModelClient("http://127.0.0.1:9", "x") as nobody:
            real, world.target = world.target, replace(world.target, clients=(nobody,))
            with pytest.raises(ServerUnavailableError, match="revision 5 is published, but"):
                world.rollback("run 1")
            world.target = real
        assert world.rollback("run 1").revision == 5
        world.check_order()
