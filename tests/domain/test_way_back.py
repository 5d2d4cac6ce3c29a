"""Going back from a terminal: with the lifecycle database and the lake alone, by the rules of the DAG."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import NOW, make_golden
from delivery_world import World
from sagemaker_kit import REGION, aws_account
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.delivery import checks
from ml_lifecycle.delivery.audit import verify
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.sagemaker_found import Note, keep_note
from ml_lifecycle.errors import ReleaseChecksError
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.serving.client import ModelClient

_numbers = itertools.count(1)
CANARY = {"strategy": "canary", "steps": [5, 50]}


@dataclass
class Place:
    folder: Path
    client: ModelClient
    lake: Lake

    def world(self, *released: int, **settings: Any) -> World:
        world = World(self.folder, f"back_{next(_numbers)}", self.client, self.lake, **settings).begin()
        for number in released:
            world.release(number)
        return world


@pytest.fixture
def place(tmp_path: Path, serving: tuple[ModelClient, Lake]) -> Iterator[Place]:
    client, lake = serving
    yield Place(tmp_path, client, lake)
    for endpoint in lake.folders("routes"):
        shutil.rmtree(lake.full_path(f"routes/{endpoint}"))


def command(world: World, *more: str) -> list[str]:
    """Without a server."""
    where = world.target.environment
    return [
        *("rollback", f"delays/{world.endpoint}", "--reason", "too many false alarms", "--by", "ada"),
        *("--environment", where, "--database", world.database_url),
        *("--environment-lake", f"{where}={world.target.lake.url}", *more),
    ]


def test_the_release_before_is_served_again_and_who_did_it_is_in_the_ledger(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    world = place.world(1, 2, 3)
    assert main([*world.rollback_command(), "--by", "ada"]) == 0
    world.check_order()
    live = world.live()
    assert (live.version, live.kind, live.requested_by, live.reason) == ("2", "restore", "ada", "complaints")
    said = capsys.readouterr()
    assert f"production/{world.endpoint} serves version 2: revision {live.revision}, confirmed" in said.out
    assert f"--request {live.request}" in said.err
    told = [
        (entry.subject.rpartition("/")[2], entry.payload["state"], entry.payload["requested_by"])
        for entry in Ledger(world.database).entries()
        if entry.kind == "release" and entry.payload["kind"] == "restore"
    ]
    first, last = str(live.revision - 1), str(live.revision)
    assert told == [
        (first, "intent", "ada"),
        (first, "applied", "ada"),
        (first, "superseded", "ada"),
        (last, "intent", "ada"),
        (last, "applied", "ada"),
        (last, "confirmed", "ada"),
    ]
    verify(Ledger(world.database), [world.target.lake])
    # And once more: further back, for what was rolled back is never gone back to.
    assert main([*world.rollback_command(), "--by", "ada"]) == 0
    assert world.live().version == "1"
    assert main([*world.rollback_command(), "--by", "ada"]) == 1
    assert "no confirmed release before" in capsys.readouterr().err


def test_without_a_server_the_lake_is_enough(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    world = place.world(1, 2)
    assert main(command(world)) == 0
    assert "no server was asked" in capsys.readouterr().out
    wait_until(lambda: world.served() == ("1", world.live().revision))
    world.check_order()


def test_a_watched_release_is_taken_back(place: Place) -> None:
    world = place.world(1, delivery=CANARY)
    candidate = world.candidate(2)
    evidence = world.approved(candidate)
    assert world.deploy(candidate, evidence).state == "applied"
    assert main(command(world)) == 0
    wait_until(lambda: world.served() == ("1", world.live().revision))
    world.check_order()
    assert Ledger(world.database).approval_for(evidence.digest) is None


def test_where_nothing_is_served_there_is_no_way_back(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    world = place.world()
    candidate = world.candidate(1, expected=9.0)
    with pytest.raises(ReleaseChecksError):
        world.deploy(candidate, world.approved(candidate))
    assert main(command(world)) == 1
    assert "serves nothing" in capsys.readouterr().err


def test_the_same_request_goes_back_once(place: Place) -> None:
    world = place.world(1, 2, 3)
    for _ in range(2):
        assert main(command(world, "--request", "mine")) == 0
    assert world.live().version == "2"


def test_another_rollback_under_way_is_finished_and_is_no_reason_for_one_more(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    world = place.world(1, 2, 3)
    world.releases.begin_restore(
        world.live(), NOW, reason="theirs", requested_by="ben", request="delays__rollback/manual__1"
    )
    assert main(command(world)) == 1
    assert "the rollback delays__rollback/manual__1 was under way: it is finished" in capsys.readouterr().err
    assert (world.live().version, world.live().requested_by) == ("2", "ben")


def test_what_would_be_served_is_checked_where_a_server_is_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    world = place.world(1, 2)
    golden = world.releases.route(world.releases.get("production", world.endpoint, 1)).champion.golden_path
    assert golden is not None
    world.target.lake.write_json(golden, make_golden(-1.0))
    assert main(world.rollback_command()) == 1
    assert "version 2 stays live" in capsys.readouterr().err
    assert world.live().version == "2"


def test_what_is_waited_for_is_told_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world, passed = place.world(1, 2), [0.0]

    def sleep(seconds: float) -> None:
        told.append(capsys.readouterr().err)
        passed[0] += seconds

    told: list[str] = []
    clock = Clock(lambda: NOW, lambda: passed[0], sleep)
    monkeypatch.setattr(checks, "Clock", lambda now: clock)
    main([*world.rollback_command(), "--server", "http://127.0.0.1:1"])
    assert passed[0] >= 60
    silent = f"for http://127.0.0.1:1 to come to revision {world.live().revision}: "
    assert f"waiting up to 60 s {silent}" in told[0]
    assert sum(silent in text for text in told) == 1


def test_a_wrong_token_is_said_before_anything_is_changed(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = place.world(1, 2)
    (tmp_path / "other").write_text("another server's")
    before = len(Ledger(world.database).entries())
    assert main([*world.rollback_command(), "--token-file", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.endswith(" does not take this token; nothing was changed\n")
    assert len(Ledger(world.database).entries()) == before


def test_a_server_without_a_scheme_is_no_server_that_is_down(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command(place.world(1)), "--server", "127.0.0.1:8093"])
    assert "write an address such as http://127.0.0.1:8093" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("empty", "this is not production's lake"),
        ("altered", f"expected {'0' * 64}"),
        ("theirs", "one of both belongs to another platform"),
    ],
)
def test_another_lake_is_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, said: str
) -> None:
    world = place.world(1, 2)
    wrong, pointer = Lake(str(tmp_path / other)), f"routes/{world.endpoint}/current.json"
    if other == "altered":
        shutil.copytree(place.lake.full_path("routes"), wrong.full_path("routes"))
        wrong.write_json(pointer, wrong.read_json(pointer) | {"digest": "0" * 64})
    if other == "theirs":
        strange = place.world(1, 3)
        wrong.write_json(pointer, place.lake.read_json(f"routes/{strange.endpoint}/current.json"))
        shutil.copytree(
            place.lake.full_path(f"routes/{strange.endpoint}"), wrong.full_path(f"routes/{strange.endpoint}")
        )
    arguments = command(world)
    arguments[arguments.index("--environment-lake") + 1] = f"production={wrong.url}"
    assert main(arguments) == 1
    assert said in capsys.readouterr().err
    assert world.live().version == "2"
    assert world.releases.under_way("production", world.endpoint) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "no endpoint is called 'nothing' in production"),
        ("delays", "2 endpoints are called 'delays' in production: write MODEL/ENDPOINT"),
    ],
)
def test_an_endpoint_is_named_exactly(
    place: Place, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    world = place.world(1)
    first = world.endpoint
    world.endpoint = f"{first}_too"
    delivery = world.spec.delivery.model_copy(update={"endpoint": world.endpoint})
    world.spec = world.spec.model_copy(update={"delivery": delivery})
    world.release(2)
    arguments = command(world)
    arguments[1] = name
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert f"delays/{first}, delays/{first}_too" in shown


def test_what_is_not_said_is_asked_for(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = place.world(1)
    monkeypatch.delenv("ML_LIFECYCLE_PRODUCTION_LAKE", raising=False)
    monkeypatch.delenv("ML_LIFECYCLE_SERVER_TOKEN", raising=False)
    arguments = command(world)
    at = arguments.index("--environment-lake")
    assert main(arguments[:at] + arguments[at + 2 :]) == 1
    assert "where is the lake of production?" in capsys.readouterr().err
    assert main(command(world, "--server", "http://127.0.0.1:1")) == 1
    assert "what is the servers' token?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("credentials", "Unable to locate credentials"),
        ("the endpoint", "these credentials show no endpoint production-delays in eu-central-1"),
        ("boto3", "import of boto3 halted"),
    ],
)
def test_where_sagemaker_cannot_be_asked_nothing_is_changed(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str, said: str
) -> None:
    world = place.world(1, 2)
    keep_note(place.lake, Note(world.endpoint, "production-delays", REGION))

    def standing() -> Any:
        history = world.releases.history("production", world.endpoint)
        return history, {path: place.lake.read_bytes(path) for path in place.lake.list("routes")}

    before = standing()
    with aws_account(), pytest.MonkeyPatch.context() as patch:
        if lacking == "credentials":
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                patch.setenv(name, str(tmp_path / "none"))
        if lacking == "boto3":
            patch.setitem(sys.modules, "boto3", None)
        assert main(command(world)) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert f"production/{world.endpoint} is on Amazon SageMaker (production-delays in {REGION})" in shown
    assert "Nothing was changed. Trigger delays__rollback in Airflow" in shown
    assert "--request" not in shown, "there is nothing to finish"
    assert standing() == before
    # Whoever names model servers says that these have taken its place.
    assert main([*world.rollback_command(), "--by", "ada"]) == 0
    assert world.live().version == "1"
