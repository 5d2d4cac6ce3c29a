"""The server as Amazon SageMaker runs containers: a real process, told what a release has told SageMaker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from delivery_world import World
from sagemaker_kit import REGION, Account, aws_account
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.sagemaker import SageMakerApi
from ml_lifecycle.cli import main
from ml_lifecycle.delivery import sagemaker
from ml_lifecycle.delivery.checks import Clock, Golden
from ml_lifecycle.delivery.route import Route, Variant, publish, read_pointer
from ml_lifecycle.delivery.sagemaker import SageMakerEndpoint
from ml_lifecycle.errors import ReleaseChecksError
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.serving.pinned import Pinned, PinnedVariablesError
from ml_lifecycle.serving.sagemaker import EXIT_PORT, EXIT_USAGE, PORT, PORT_VARIABLE
from ml_lifecycle.spec.sagemaker import SageMaker
from tests.serving.conftest import Publisher, logged, row

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = SageMaker(role="arn:aws:iam::123456789012:role/m", image="server", instance_type="ml.m5.large")
IMAGES = Path(__file__).parents[2] / "include" / "images"
COMMAND = [str(IMAGES / "serve")]  # what the image starts
PINNED = Pinned("/nowhere", "production", "late", "1", 1, "routes/late/00000001.json", "0" * 64)


def environment(variables: dict[str, str], port: int = 0) -> dict[str, str]:
    modules = os.pathsep.join(path for path in sys.path if path)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PYTHONPATH": modules, "PATH": programs, PORT_VARIABLE: str(port)}
    return {**os.environ, **ours, **variables}


class Container:
    """What SageMaker runs for a variant."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            COMMAND, env=environment(variables), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " on http://" in line, line
        self.http = httpx.Client(base_url=line.split(" on ")[1].strip(), timeout=20, trust_env=False)

    def ping(self) -> bool:
        return self.http.get("/ping").status_code == 200

    def invoke(self, body: Any, attributes: str | None = None) -> httpx.Response:
        headers = {} if attributes is None else {"X-Amzn-SageMaker-Custom-Attributes": attributes}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post("/invocations", content=content, headers=headers)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process.stdout is not None
        self.http.close()
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        return code


Run = Callable[[dict[str, str]], Container]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs containers until each is loaded; those left at the test's end are killed."""
    containers: list[Container] = []

    def run_one(variables: dict[str, str]) -> Container:
        containers.append(Container(variables))
        wait_until(containers[-1].ping, "the container says that it is well")
        return containers[-1]

    yield run_one
    for container in containers:
        if container.process.poll() is None:
            container.stop(signal.SIGKILL)


def make_route(publisher: Publisher, *variants: tuple[Any, str, str]) -> Route:
    """A published route of variants: role, model and version of each."""
    made: list[Variant] = []
    for role, model, version in variants:
        made.append(replace(publisher.built[model].variant(version), role=role, weight=0.5))
        publisher.lake.write_bytes(made[-1].model_path, publisher.built[model].data)
    route = Route("late", "flight_delay", 1, tuple(made), "0" * 64, NOW)
    publish(publisher.lake, route)
    return route


def told(lake: Lake, route: Route, version: str) -> dict[str, str]:
    pointer = read_pointer(lake, route.endpoint)
    assert pointer is not None
    return Pinned.of(lake.url, "production", route, version, pointer).variables()


def test_it_answers_what_sagemaker_asks_of_a_container(publisher: Publisher, run: Run) -> None:
    route = make_route(publisher, ("champion", "binary", "7"))
    container = run(told(publisher.lake, route, "7"))
    answer = container.invoke(row() | {"id": "mine"})
    assert answer.status_code == 200
    assert answer.json()["model_version"] == "7"
    metadata = container.invoke({}, "metadata").json()["parameters"]
    assert (metadata["route_revision"], metadata["model_digest"]) == (1, route.champion.model_digest)
    refused = container.invoke({"inputs": []})
    assert refused.status_code == 400
    assert "error" in refused.json()
    assert container.invoke(b"no json").status_code == 400
    # Nothing else is open, with or without a token.
    for path in ("/v2", "/v2/models/late/infer", "/metrics", "/v2/repository/models/late/unload"):
        assert container.http.post(path, json=row()).status_code == 404
    assert container.http.get("/invocations").status_code == 405
    assert container.stop() == 0
    (line,) = logged(publisher.lake).to_dicts()
    seen = {key: line[key] for key in ("prediction_id", "variant", "returned", "model_version")}
    assert seen == {"prediction_id": "mine", "variant": "champion", "returned": True, "model_version": "7"}


@pytest.mark.parametrize(("role", "returned"), [("canary", True), ("shadow", False), ("standby", True)])
def test_a_challenger_has_a_container_of_its_own(
    publisher: Publisher, run: Run, role: str, returned: bool
) -> None:
    route = make_route(publisher, ("champion", "binary", "1"), (role, "inverted", "2"))
    container = run(told(publisher.lake, route, "2"))
    assert container.invoke(row()).json()["model_version"] == "2"
    assert container.stop() == 0
    (line,) = logged(publisher.lake).to_dicts()
    seen = {key: line[key] for key in ("variant", "returned", "route_revision", "model_version")}
    assert seen == {"variant": role, "returned": returned, "route_revision": 1, "model_version": "2"}


def test_it_stays_at_its_revision_whatever_is_published(publisher: Publisher, run: Run) -> None:
    route = make_route(publisher, ("champion", "binary", "1"))
    variables = told(publisher.lake, route, "1")
    publisher("late", "inverted", 2, "2")
    container = run(variables)  # a machine that is added later is told the same
    assert container.invoke({}, "metadata").json()["parameters"]["route_revision"] == 1
    assert container.invoke(row()).json()["model_version"] == "1"


def test_it_is_not_well_until_its_model_is_there(publisher: Publisher, run: Run) -> None:
    route = make_route(publisher, ("champion", "binary", "1"))
    model = publisher.lake.read_bytes(route.champion.model_path)
    publisher.lake.write_bytes(route.champion.model_path, b"torn")
    container = Container(told(publisher.lake, route, "1"))
    try:
        wait_until(lambda: container.invoke(row()).status_code == 503, "it says that it cannot load")
        assert not container.ping()
        publisher.lake.write_bytes(route.champion.model_path, model)
        wait_until(container.ping, "it has loaded")
    finally:
        container.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ML_LIFECYCLE_VERSION": ""}, "not set: ML_LIFECYCLE_VERSION; a release to SageMaker sets them"),
        ({"ML_LIFECYCLE_REVISION": "two"}, "ML_LIFECYCLE_REVISION must be a number, got 'two'"),
    ],
)
def test_what_it_is_not_told_is_named(changed: dict[str, str], message: str) -> None:
    variables = environment({**PINNED.variables(), **changed})
    done = subprocess.run(COMMAND, env=variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (EXIT_USAGE, f"{message}\n")
    with pytest.raises(PinnedVariablesError):
        Pinned.from_variables({**PINNED.variables(), **changed})


def test_the_server_s_image_has_the_command_that_sagemaker_calls() -> None:
    target = (IMAGES / "Dockerfile").read_text().partition("AS server\n")[2].partition("\nFROM ")[0]
    (copied,) = [line.split() for line in target.splitlines() if "include/images/" in line]
    assert "include/images/serve" in copied
    assert copied[-1] == "/usr/local/bin/"


def test_what_it_is_told_comes_over_whole() -> None:
    assert Pinned.from_variables(PINNED.variables()) == PINNED
    # SageMaker takes no longer ones.
    assert max(map(len, PINNED.variables().values())) < 1024


def test_a_taken_port_is_one_clear_line() -> None:
    import socket

    assert PORT == 8080
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        variables = environment(PINNED.variables(), port)
        done = subprocess.run(COMMAND, env=variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        EXIT_PORT,
        f"cannot listen on port {port}: Address already in use\n",
    )


@pytest.fixture
def account() -> Iterator[Account]:
    with aws_account() as account:
        yield account


def test_a_release_is_checked_in_the_containers_that_it_has_made(
    publisher: Publisher, run: Run, account: Account
) -> None:
    """From the published route through SageMaker's models to processes, and back by its runtime."""
    route = make_route(publisher, ("champion", "binary", "1"), ("canary", "inverted", "2"))
    target = SageMakerEndpoint("production", publisher.lake, account.api, SETTINGS)
    passed = [0.0]
    clock = Clock(lambda: NOW, lambda: passed[0], lambda seconds: passed.append(seconds))
    assert target.follow(route, 60.0, clock) == []
    state = account.state()
    ((config, _),) = state["endpoints"].values()
    containers = {
        one["VariantName"]: run(state["models"][one["ModelName"]][0]["Environment"])
        for one in state["configs"][config][0]
    }
    asked: list[str | None] = []

    def answer(variant: str | None, attributes: str | None, body: bytes) -> tuple[int, bytes]:
        asked.append(variant)
        response = containers[variant or "champion"].invoke(body, attributes)
        return response.status_code, response.content

    account.answer_by(answer)
    champion, canary = route.variants
    answers = {name: container.invoke(row()).json() for name, container in containers.items()}
    golden = {
        name: Golden(row(), {each["name"]: each["data"] for each in got["outputs"]}, 1e-6)
        for name, got in answers.items()
    }
    assert target.check(route, champion, golden["champion"], 10_000.0) == []
    assert set(asked) == {"champion"}
    assert target.check(route, canary, golden["canary"], None) == []
    # The other's answers are not its own.
    (failure,) = target.check(route, canary, golden["champion"], None)
    assert failure.startswith("golden rows: ")
    assert failure.endswith("(production-late)")
    # A variant whose container is not the one that was released.
    containers["canary"] = containers["champion"]
    failures = target.check(route, canary, golden["champion"], None)
    assert any(f"model {champion.model_digest} answered" in each for each in failures)
    containers["canary"].stop(signal.SIGKILL)
    assert target.check(route, replace(canary, role="shadow"), golden["canary"], None) == []


class Fleet:
    """Has a container run for each variant that is asked, as the account's endpoint says what it is."""

    def __init__(self, account: Account, run: Run) -> None:
        self._account = account
        self._run = run
        self._containers: dict[str, Container] = {}

    def __call__(self, variant: str | None, attributes: str | None, body: bytes) -> tuple[int, bytes]:
        state = self._account.state()
        ((config, _),) = state["endpoints"].values()
        models = {one["VariantName"]: one["ModelName"] for one in state["configs"][config][0]}
        name = models[variant or "champion"]
        if name not in self._containers:
            self._containers[name] = self._run(state["models"][name][0]["Environment"])
        response = self._containers[name].invoke(body, attributes)
        return response.status_code, response.content


def released_there(folder: Path, run: Run, account: Account, **delivery: Any) -> World:
    """A world whose endpoint, ``delays``, is on SageMaker; nothing was released yet."""
    with ModelClient("http://127.0.0.1:9", "nobody is asked here") as client:
        world = World(folder, "delays", client, Lake(str(folder / "lake")), delivery=delivery).begin()
    target = SageMakerEndpoint("production", Lake(str(folder / "lake")), account.api, SETTINGS)
    passed: list[float] = []
    world.target = target  # type: ignore[assignment]
    world.clock = Clock(lambda: NOW, lambda: sum(passed), passed.append)
    account.answer_by(Fleet(account, run))
    return world


def served(account: Account) -> dict[str, tuple[str, float]]:
    """Variant → version and weight."""
    state = account.state()
    ((config, status),) = state["endpoints"].values()
    assert status == "InService"
    told = {
        name: Pinned.from_variables(container["Environment"])
        for name, (container, _) in state["models"].items()
    }
    assert set(told) == {one["ModelName"] for one in state["configs"][config][0]}
    return {
        one["VariantName"]: (told[one["ModelName"]].version, one["InitialVariantWeight"])
        for one in state["configs"][config][0]
    }


def test_versions_come_and_go_as_the_stages_say(tmp_path: Path, run: Run, account: Account) -> None:
    """First release, canary, all traffic, rollback, and a version that does not answer as it should."""
    world = released_there(tmp_path, run, account, strategy="canary", steps=[25])
    world.release(1)
    assert served(account) == {"champion": ("1", 1.0)}
    candidate = world.candidate(2)
    evidence = world.approved(candidate)
    assert world.deploy(candidate, evidence).state == "applied"
    assert served(account) == {"champion": ("1", 0.75), "canary": ("2", 0.25)}
    assert world.carry(candidate, evidence).state == "confirmed"
    assert served(account) == {"champion": ("2", 1.0), "standby": ("1", 0.0)}
    world.rollback("run 1")
    assert served(account)["champion"] == ("1", 1.0)
    with pytest.raises(ReleaseChecksError, match=r"golden rows: .* \(production-delays\)"):
        world.deploy(wrong := world.candidate(3, expected=-1.0), world.approved(wrong))
    assert served(account)["champion"] == ("1", 1.0)
    assert "3" not in {version for version, _ in served(account).values()}


def test_a_rollback_by_command_changes_the_endpoint_as_the_dag_does(
    tmp_path: Path,
    run: Run,
    account: Account,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what runs there: of roles, images and machines neither the lake nor the database knows."""
    world = released_there(tmp_path, run, account)
    connected: list[str] = []

    def connect(region: str) -> SageMakerApi:
        connected.append(region)
        return account.api

    monkeypatch.setattr(SageMakerApi, "connect", connect)
    monkeypatch.setattr(sagemaker, "_POLL_SECONDS", 0.0)
    world.release(1)
    world.release(2)
    before = account.state()
    assert served(account) == {"champion": ("2", 1.0), "standby": ("1", 0.0)}
    command = [
        *("rollback", "delays", "--reason", "complaints", "--by", "ada", "--database", world.database_url),
        *("--environment-lake", f"production={world.target.lake.url}"),
    ]
    # The same lake by another name: what is there could not read it.
    (tmp_path / "other").symlink_to(tmp_path / "lake")
    assert main([*command[:-1], f"production={tmp_path / 'other'}"]) == 1
    said = capsys.readouterr().err
    assert f"read {tmp_path / 'lake'}, not {tmp_path / 'other'}. Nothing was changed" in said
    assert (account.state(), world.live().version) == (before, "2")
    assert main(command) == 0
    assert "serves version 1" in capsys.readouterr().out
    assert connected == [REGION, REGION]
    assert served(account)["champion"] == ("1", 1.0)
    assert (world.live().version, world.live().requested_by) == ("1", "ada")
    state = account.state()
    ((config, _),) = state["endpoints"].values()
    machines = {(one["InstanceType"], one["InitialInstanceCount"]) for one in state["configs"][config][0]}
    assert machines == {(SETTINGS.instance_type, 1)}
    assert {(model["Image"], role) for model, role in state["models"].values()} == {
        (SETTINGS.image, SETTINGS.role)
    }
    # Nothing is left to go back to, and the endpoint stays as it is.
    assert main(command) == 1
    assert "no confirmed release before" in capsys.readouterr().err
    assert account.state() == state
