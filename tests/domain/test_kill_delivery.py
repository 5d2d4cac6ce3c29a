"""Deployments and rollbacks killed at every external effect, and run again, while a real server answers."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import TOKEN, Server, make_golden
from delivery_world import World
from faults import AuditedTransport, Death, FaultKit, Outcome

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.route import current, published_heads
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.serving.client import ModelClient

SAMPLE = 2  # kills a scenario in the quick tests
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Scenario:
    """What happens to an endpoint.

    :param released: versions that are released one after the other before
    :param call: of :class:`World`, with what ``arguments`` makes
    :param served: versions that may answer meanwhile, the last one of them in the end
    """

    released: tuple[int, ...]
    call: Callable[..., object]
    arguments: Callable[[World], tuple[Any, ...]]
    served: tuple[str, ...]
    environment: str = "production"
    error: str | None = None
    delivery: Mapping[str, Any] = field(default_factory=dict)


def _approved(world: World) -> tuple[Any, ...]:
    candidate = world.candidate(2)
    return candidate, world.approved(candidate)


def _not_approved(world: World) -> tuple[Any, ...]:
    candidate = world.candidate(2)
    return candidate, world.evidence(candidate)


def _failing(world: World) -> tuple[Any, ...]:
    candidate = world.candidate(2, expected=world.slope(9))
    return candidate, world.approved(candidate)


def _broken_way_back(world: World) -> tuple[Any, ...]:
    first = world.releases.get("production", world.endpoint, 1)
    golden = world.releases.route(first).champion.golden_path
    assert golden is not None
    world.target.lake.write_json(golden, make_golden(-1.0))
    return ("run 1",)


CANARY = {"strategy": "canary", "steps": [5, 50]}
AB = {"strategy": "ab", "watch": {"labels": {"loss": "absolute", "margin": 1, "largest": 100}}}
SCENARIOS = {
    "staging": Scenario((1,), World.deploy, _not_approved, ("1", "2"), environment="staging"),
    "production": Scenario((1,), World.deploy, _approved, ("1", "2")),
    "canary": Scenario((1,), World.carry, _approved, ("1", "2"), delivery=CANARY),
    "shadow": Scenario((1,), World.carry, _approved, ("1", "2"), delivery={"strategy": "shadow"}),
    "ab": Scenario((1,), World.carry, _approved, ("1", "2"), delivery=AB),
    "decided": Scenario((1,), World.decide, _approved, ("1", "2"), delivery=CANARY),
    "refused": Scenario((1, 2), World.rollback, _broken_way_back, ("1", "2"), error="RollbackTargetError"),
    "canary taken back": Scenario((1,), World.begin_and_roll_back, _approved, ("2", "1"), delivery=CANARY),
    "failing": Scenario((1,), World.deploy, _failing, ("2", "1"), error="ReleaseChecksError"),
    "failing first": Scenario((), World.deploy, _failing, (), error="ReleaseChecksError"),
    "rollback": Scenario((1, 2, 3), World.rollback, lambda world: ("run 1",), ("3", "2")),
    "by command": Scenario((1, 2, 3), World.rollback_by_command, lambda world: ("run 1",), ("3", "2")),
    "canary by command": Scenario(
        (1,), World.begin_and_take_back_by_command, _approved, ("2", "1"), delivery=CANARY
    ),
}


@dataclass
class Endpoint:
    """One endpoint on its way through a scenario."""

    root: Path
    server_url: str
    scenario: Scenario
    faults: FaultKit
    name: str = field(default_factory=lambda: f"delays_{next(_numbers)}")

    def __post_init__(self) -> None:
        self.client = ModelClient(self.server_url, TOKEN)
        self.world = self._settings().open(self.client).begin()
        for version in self.scenario.released:
            self.world.release(version)
        self.arguments = self.scenario.arguments(self.world)

    def _settings(self) -> Settings:
        # A slope of its own, so that no other endpoint's model is in the server's lake already; of few
        # binary digits, so that answers are exact.
        slope = int(self.name.split("_")[1]) / 1024
        scenario = self.scenario
        return Settings(
            self.root, self.name, self.server_url, scenario.environment, slope, dict(scenario.delivery)
        )

    def run(self, death: Death | None = None) -> Outcome:
        outcome = self.faults.run(
            self.root, call, self._settings(), self.scenario.call, self.arguments, death=death
        )
        effects = (
            re.sub(r"[0-9a-f]{64}", "<digest>", effect.replace(self.name, "delays"))
            for effect in (*outcome.effects, outcome.stopped_at or "")
        )
        *happened, stopped_at = effects
        return Outcome(tuple(happened), outcome.died, stopped_at or None, outcome.value, outcome.error)

    def kill(self, death: Death) -> Outcome:
        """Run to a death, and see that what is left is whole."""
        outcome = self.run(death)
        assert outcome.died
        world = self.world
        Ledger(world.database).verify(published_heads(world.target.lake, self.name))
        live = world.releases.live(world.target.environment, self.name)
        assert (live.version if live else None) in (*self.scenario.served, None)
        current(world.target.lake, self.name)
        for path in world.target.lake.list("models"):
            assert path == f"models/{sha256(world.target.lake.read_bytes(path))}.onnx"
        return outcome

    def finish(self) -> list[Any]:
        """Run it to its end; returns the endpoint's history, in which nothing is by chance."""
        outcome = self.run()
        assert (outcome.error or "").split(":")[0] == (self.scenario.error or "")
        if self.scenario.served:
            assert self.world.live().version == self.scenario.served[-1]
            self.world.check_order()
        else:
            assert not self.client.ready(self.name)
        return self.history()

    def history(self) -> list[Any]:
        """The releases, oldest first, and the ledger's entries."""
        releases = self.world.releases.history(self.world.target.environment, self.name)
        entries = Ledger(self.world.database).entries()
        return [
            [(one.revision, one.version, one.kind, one.state, one.replaces) for one in reversed(releases)],
            [(entry.kind, entry.subject.split("/")[2:], entry.payload.get("decision")) for entry in entries],
        ]

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Meanwhile the champion is asked without a pause, and always answers as its version should."""
        stop = threading.Event()
        wrong: list[str] = []
        answered: list[str] = []

        def ask() -> None:
            with ModelClient(self.server_url, TOKEN) as client:
                while not stop.wait(0.02):
                    try:
                        answered.append(self._ask(client))
                    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                        wrong.append(repr(error))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert not wrong, wrong[:3]
        assert set(answered) <= set(self.scenario.served)
        assert answered

    def _ask(self, client: ModelClient) -> str:
        answer = client.post(self.name, make_golden(0)["request"])
        version: str = answer["model_version"]
        expected = make_golden(self.world.slope(int(version)))["expected"]["prediction"]
        assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-3)
        return version

    def close(self) -> None:
        """The server need not look at it any more."""
        self.client.close()
        shutil.rmtree(self.world.target.lake.full_path(f"routes/{self.name}"))


@dataclass(frozen=True)
class Settings:
    """What it takes to open an endpoint's world in another process."""

    root: Path
    name: str
    server_url: str
    environment: str
    slope: float
    delivery: dict[str, Any]

    def open(self, client: ModelClient) -> World:
        lake = Lake(str(self.root / "lake"))
        return World(
            self.root,
            self.name,
            client,
            lake,
            environment=self.environment,
            slope=self.slope,
            delivery=self.delivery,
        )


def call(settings: Settings, function: Callable[..., object], arguments: Sequence[Any]) -> None:
    """Call a function of the world, in a process that may die of it."""
    with ModelClient(settings.server_url, TOKEN, transport=AuditedTransport()) as client:
        function(settings.open(client), *arguments)


@dataclass
class Played:
    """A scenario that went undisturbed."""

    effects: tuple[str, ...]
    history: list[Any]

    def deaths(self) -> list[Death]:
        opened = [gap for gap, effect in enumerate(self.effects, 1) if effect.startswith("open ")]
        return [Death(gap) for gap in range(len(self.effects) + 1)] + [Death(gap, True) for gap in opened]

    def over_before(self, gap: int) -> bool:
        """Whether all was decided by then, and only the caller did not hear of it."""
        return not any(effect.startswith("commit") for effect in self.effects[gap:])


@dataclass
class Delivery:
    """A server, and endpoints to be delivered to."""

    root: Path
    server: Server
    faults: FaultKit
    played: dict[str, Played] = field(default_factory=dict)

    @contextmanager
    def endpoint(self, name: str) -> Iterator[Endpoint]:
        endpoint = Endpoint(self.root, self.server.url, SCENARIOS[name], self.faults)
        try:
            if endpoint.scenario.released:
                with endpoint.asked():
                    yield endpoint
            else:
                yield endpoint
        finally:
            endpoint.close()

    def undisturbed(self, name: str) -> Played:
        if name not in self.played:
            with self.endpoint(name) as endpoint:
                effects = endpoint.run().effects
                self.played[name] = Played(effects, endpoint.history())
        return self.played[name]


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory, faults: FaultKit) -> Iterator[Delivery]:
    root = tmp_path_factory.mktemp("delivery")
    server = Server(Lake(str(root / "lake")))
    yield Delivery(root, server, faults)
    server.stop()


def kill_and_run_again(delivery: Delivery, name: str, death: Death) -> str:
    """Returns the effect it died before, by number and name."""
    played = delivery.undisturbed(name)
    with delivery.endpoint(name) as endpoint:
        outcome = endpoint.kill(death)
        assert outcome.effects == played.effects[: death.gap]
        over = played.over_before(death.gap)
        assert outcome.stopped_at == (played.effects[death.gap] if death.gap < len(played.effects) else None)
        history = endpoint.finish()
        # A deployment that failed is a new one when it is asked for again; it fails again.
        if not (over and endpoint.scenario.error):
            assert history == played.history
    return f"{len(outcome.effects)} {outcome.stopped_at}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_somewhere_a_release_arrives_once(delivery: Delivery, name: str) -> None:
    for death in random.Random(name).sample(delivery.undisturbed(name).deaths(), SAMPLE):
        kill_and_run_again(delivery, name, death)


@pytest.mark.proof
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_a_release_arrives_once(delivery: Delivery, name: str) -> None:
    played = delivery.undisturbed(name)
    visited = {kill_and_run_again(delivery, name, death) for death in played.deaths()}
    assert visited == {f"{gap} {effect}" for gap, effect in enumerate([*played.effects, None])}


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(20))
def test_killed_twice_a_release_arrives_once(delivery: Delivery, seed: int) -> None:
    chance = random.Random(seed)
    name = chance.choice([name for name, scenario in SCENARIOS.items() if scenario.error is None])
    played = delivery.undisturbed(name)
    with delivery.endpoint(name) as endpoint:
        endpoint.kill(first := chance.choice(played.deaths()))
        endpoint.kill(Death(chance.randint(0, len(played.effects) - first.gap)))
        assert endpoint.finish() == played.history
