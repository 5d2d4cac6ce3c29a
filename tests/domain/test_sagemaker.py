"""Releases to Amazon SageMaker, against moto: whole lives of an endpoint, killed before and after calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import COLUMNS, NOW, make_model
from sagemaker_kit import Account, Killed, aws_account

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.sagemaker import SageMakerRefusedError
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.delivery.sagemaker import SageMakerEndpoint, endpoint_name
from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.pinned import Pinned
from ml_lifecycle.spec.sagemaker import SageMaker

SETTINGS = SageMaker(
    role="arn:aws:iam::123456789012:role/models",
    image="123456789012.dkr.ecr.eu-central-1.amazonaws.com/server:0.1.0",
    instance_type="ml.m5.large",
    instances=2,
)
NAME = "production-delays"


def variant(role: Any, number: int, weight: float = 1.0) -> Variant:
    digest = sha256(make_model(float(number)))
    path = f"models/{digest}.onnx"
    return Variant(role, str(number), path, digest, "regression", COLUMNS, (), weight=weight)


@dataclass
class Endpoint:
    """An endpoint, and the clock that its target waits by: it moves only when it is waited on."""

    account: Account
    lake: Lake
    settings: SageMaker = SETTINGS
    revision: int = 0
    passed: list[float] = field(default_factory=lambda: [0.0])

    @property
    def target(self) -> SageMakerEndpoint:
        return SageMakerEndpoint("production", self.lake, self.account.api, self.settings)

    def publish(self, *variants: Variant) -> Route:
        for one in variants:
            self.lake.write_bytes(one.model_path, make_model(float(one.version)))
        self.revision += 1
        route = Route("delays", "delays", self.revision, variants, "0" * 64, NOW, salt="s")
        publish(self.lake, route)
        return route

    def follow(self, route: Route, seconds: float = 60.0) -> list[str]:
        def sleep(seconds: float) -> None:
            self.passed[0] += seconds

        return self.target.follow(route, seconds, Clock(lambda: NOW, lambda: self.passed[0], sleep))

    def release(self, *variants: Variant) -> Route:
        route = self.publish(*variants)
        assert self.follow(route) == []
        return route

    def weights(self) -> dict[str, float]:
        """What SageMaker serves: variant → weight."""
        state = self.account.state()
        config, status = state["endpoints"][NAME]
        assert status == "InService"
        return {one["VariantName"]: one["InitialVariantWeight"] for one in state["configs"][config][0]}


@pytest.fixture
def account() -> Iterator[Account]:
    with aws_account() as account:
        yield account


@pytest.fixture
def endpoint(account: Account, tmp_path: Path) -> Endpoint:
    return Endpoint(account, Lake(str(tmp_path / "lake")))


CHAMPION, NEXT = variant("champion", 1), variant("champion", 2)


def test_a_first_release_makes_an_endpoint(endpoint: Endpoint) -> None:
    endpoint.target.ready()
    route = endpoint.release(CHAMPION)
    state = endpoint.account.state()
    ((config, status),) = [state["endpoints"][NAME]]
    assert status == "InService"
    assert list(state["configs"]) == [config]
    ((made,), shadows) = state["configs"][config]
    assert shadows is None
    (model,) = state["models"]
    assert made == {
        "VariantName": "champion",
        "ModelName": model,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 2,
        "InitialVariantWeight": 1.0,
    }
    container, role = state["models"][model]
    assert (container["Image"], role) == (SETTINGS.image, SETTINGS.role)
    told = Pinned.from_variables(container["Environment"])
    assert (told.version, told.revision, told.endpoint) == ("1", route.revision, "delays")
    assert (told.lake, told.environment) == (endpoint.lake.url, "production")


def test_done_again_it_changes_nothing(endpoint: Endpoint) -> None:
    route = endpoint.release(CHAMPION)
    before, calls = endpoint.account.state(), endpoint.account.calls.copy()
    assert endpoint.follow(route) == []
    assert endpoint.account.state() == before
    made = [
        name for name in endpoint.account.calls - calls if name.startswith(("Create", "Update", "Delete"))
    ]
    assert made == []


def test_a_canary_grows_and_becomes_the_champion(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION)
    endpoint.release(CHAMPION, variant("canary", 2, 0.05))
    assert endpoint.weights() == {"champion": 0.95, "canary": 0.05}
    endpoint.release(CHAMPION, variant("canary", 2, 0.25))
    assert endpoint.weights() == {"champion": 0.75, "canary": 0.25}
    endpoint.release(NEXT)
    assert endpoint.weights() == {"champion": 1.0}
    state = endpoint.account.state()
    assert len(state["configs"]) == len(state["models"]) == 1
    (told,) = [Pinned.from_variables(container["Environment"]) for container, _ in state["models"].values()]
    assert (told.version, told.revision) == ("2", 4)


def test_a_shadow_is_sent_a_copy_of_every_request(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION, variant("shadow", 2, 0.0))
    state = endpoint.account.state()
    ((champion,), (shadow,)) = state["configs"][state["endpoints"][NAME][0]]
    assert champion["VariantName"] == "champion"
    assert shadow["VariantName"] == "shadow"
    assert shadow["InitialVariantWeight"] == champion["InitialVariantWeight"] == 1.0
    assert shadow["InitialInstanceCount"] == 1


def test_a_standby_answers_only_who_names_it(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION, variant("standby", 2, 0.0))
    assert endpoint.weights() == {"champion": 1.0, "standby": 0.0}


def test_a_withdrawn_endpoint_leaves_nothing(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION)
    endpoint.release()
    assert endpoint.account.state() == {"endpoints": {}, "configs": {}, "models": {}}
    endpoint.release(NEXT)
    assert endpoint.weights() == {"champion": 1.0}


# What is served before → what is released.
LIVES: dict[str, tuple[Sequence[Variant], Sequence[Variant]]] = {
    "first release": ((), (CHAMPION,)),
    "canary": ((CHAMPION,), (CHAMPION, variant("canary", 2, 0.05))),
    "step up": (
        (CHAMPION, variant("canary", 2, 0.05)),
        (CHAMPION, variant("canary", 2, 0.25)),
    ),
    "rollback": ((CHAMPION, variant("canary", 2, 0.25)), (CHAMPION,)),
    "shadow": ((CHAMPION,), (CHAMPION, variant("shadow", 2))),
    "standby": ((CHAMPION,), (NEXT, variant("standby", 1, 0.0))),
    "withdrawal": ((CHAMPION, variant("shadow", 2)), ()),
}


def check_kills(life: str, folder: Path, every: int) -> None:
    """Kill the release at every so manieth call, before and after it, and let it run again."""
    before, after = LIVES[life]
    lake = Lake(str(folder / "lake"))

    def begin(account: Account) -> tuple[Endpoint, Route]:
        endpoint = Endpoint(account, lake)
        if before:
            endpoint.release(*before)
        else:
            endpoint.revision = 1
        account.calls.clear()
        return endpoint, endpoint.publish(*after)

    with aws_account() as account:
        endpoint, route = begin(account)
        assert endpoint.follow(route) == []
        calls, wanted = sum(account.calls.values()), account.state()
    assert len(wanted["endpoints"]) == bool(after)
    kills = [(number, when) for number in range(1, calls + 1) for when in ("before", "after")]
    assert len(kills) > 10
    for number, when in kills[::every]:
        with aws_account() as account:
            endpoint, route = begin(account)
            account.kill_at(number, when)
            with pytest.raises(Killed):
                endpoint.follow(route)
            account.go_on()
            assert endpoint.follow(route) == []
            assert account.state() == wanted, (number, when)


@pytest.mark.parametrize("life", LIVES)
def test_killed_at_a_call_it_ends_in_the_same(life: str, tmp_path: Path) -> None:
    check_kills(life, tmp_path, every=5)


@pytest.mark.proof
@pytest.mark.parametrize("life", LIVES)
def test_killed_at_any_call_it_ends_in_the_same(life: str, tmp_path: Path) -> None:
    check_kills(life, tmp_path, every=1)


def test_a_change_takes_as_long_as_sagemaker_does(endpoint: Endpoint) -> None:
    endpoint.account.looks = 100
    assert endpoint.follow(endpoint.publish(CHAMPION), seconds=1.0) == []
    assert 500.0 <= endpoint.passed[0] < 600.0
    endpoint.account.looks = 10_000
    (failure,) = endpoint.follow(endpoint.publish(NEXT), seconds=1.0)
    assert failure == (f"endpoint {NAME} did not come to revision 2 within 1800 s: it is Updating")


def test_what_sagemaker_does_not_take_is_said_and_can_be_taken_back(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION)
    endpoint.account.failing = "The container did not pass the ping health check."
    (failure,) = endpoint.follow(endpoint.publish(NEXT))
    assert failure.startswith(f"endpoint {NAME}: it is InService with {NAME}-r00000001-")
    assert failure.endswith("The container did not pass the ping health check.")
    endpoint.account.failing = None
    endpoint.release(CHAMPION)
    state = endpoint.account.state()
    assert len(state["configs"]) == len(state["models"]) == 1


def test_an_endpoint_that_could_not_be_created_is_made_anew(endpoint: Endpoint) -> None:
    endpoint.account.failing = "no capacity"
    route = endpoint.publish(CHAMPION)
    (failure,) = endpoint.follow(route)
    assert "it is Failed" in failure
    assert "no capacity" in failure
    endpoint.account.failing = None
    assert endpoint.follow(route) == []
    assert endpoint.weights() == {"champion": 1.0}


def test_the_newest_published_route_is_served_whoever_follows(endpoint: Endpoint) -> None:
    first = endpoint.publish(CHAMPION)
    endpoint.publish(NEXT)
    assert endpoint.follow(first) == []
    (told,) = [
        Pinned.from_variables(container["Environment"])
        for container, _ in endpoint.account.state()["models"].values()
    ]
    assert told.revision == 2


def test_revisions_only_rise(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION)
    second = endpoint.release(NEXT)
    publish(endpoint.lake, replace(second, revision=1, variants=(CHAMPION,)))
    (failure,) = endpoint.follow(replace(second, revision=1))
    assert "it serves revision 2, but 1 is published: revisions only rise" in failure


def test_what_is_not_published_is_not_made(endpoint: Endpoint) -> None:
    route = Route("delays", "delays", 7, (CHAMPION,), "0" * 64, NOW)
    (failure,) = endpoint.follow(route)
    assert "revision 7 is not published" in failure
    assert endpoint.account.state()["models"] == {}


def test_an_endpoint_of_somebody_else_is_left_alone(endpoint: Endpoint) -> None:
    theirs = endpoint.account
    theirs.control.create_model(ModelName="theirs", ExecutionRoleArn=SETTINGS.role)
    variants = [{"VariantName": "a", "ModelName": "theirs", "InstanceType": "ml.m5.large"}]
    theirs.control.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=variants)
    theirs.control.create_endpoint(EndpointName=NAME, EndpointConfigName="theirs")
    for route in (endpoint.publish(CHAMPION), endpoint.publish()):
        (failure,) = endpoint.follow(route)
        assert "the configuration theirs, that no release made" in failure
    assert list(theirs.state()["endpoints"]) == [NAME]


def test_endpoints_whose_names_begin_alike_are_not_mixed_up(endpoint: Endpoint) -> None:
    endpoint.release(CHAMPION)
    longer = Route("delays_late", "delays", 1, (NEXT,), "0" * 64, NOW)
    publish(endpoint.lake, longer)
    endpoint.lake.write_bytes(NEXT.model_path, make_model(2.0))
    assert endpoint.follow(longer) == []
    endpoint.release()
    state = endpoint.account.state()
    assert list(state["endpoints"]) == [f"{NAME}-late"]
    assert len(state["configs"]) == len(state["models"]) == 1


def test_other_machines_are_another_configuration(endpoint: Endpoint) -> None:
    route = endpoint.release(CHAMPION)
    before = endpoint.account.state()["endpoints"]
    endpoint.settings = SETTINGS.model_copy(update={"instances": 4})
    assert endpoint.follow(route) == []
    state = endpoint.account.state()
    assert state["endpoints"] != before
    assert len(state["configs"]) == 1


@pytest.mark.parametrize(
    ("environment", "endpoint", "expected"),
    [
        ("production", "flight_delay", "production-flight-delay"),
        ("production", "a__b", "production-a-b-[0-9a-f]{8}"),
        ("production", "a_", "production-a-[0-9a-f]{8}"),
        ("a_b", "c", "a-b-c-[0-9a-f]{8}"),
        ("production", "x" * 63, "production-x{12}-[0-9a-f]{8}"),
    ],
)
def test_names_are_ones_that_sagemaker_takes(environment: str, endpoint: str, expected: str) -> None:
    name = endpoint_name(environment, endpoint)
    assert re.fullmatch(expected, name)
    assert len(f"{name}-r00000001-champion-01234567") <= 63
    assert re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)


def test_names_that_would_be_the_same_are_told_apart() -> None:
    pairs = [("a", "b_c"), ("a_b", "c"), ("a", "b__c"), ("a", "b_c_")]
    assert len({endpoint_name(*pair) for pair in pairs}) == len(pairs)


def test_errors_say_whether_a_retry_helps(endpoint: Endpoint) -> None:
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    def fail(error: Exception) -> Callable[..., None]:
        def hook(**_: Any) -> None:
            raise error

        return hook

    events = endpoint.account.control.meta.events
    events.register("before-call.sagemaker", fail(EndpointConnectionError(endpoint_url="x")), unique_id="f")
    with pytest.raises(ServerUnavailableError, match="Could not connect"):
        endpoint.target.ready()
    (failure,) = endpoint.follow(endpoint.publish(CHAMPION))
    assert "within 1800 s" in failure
    events.unregister("before-call.sagemaker", unique_id="f")
    events.register("before-call.sagemaker", fail(NoCredentialsError()), unique_id="f")
    with pytest.raises(SageMakerRefusedError, match="Unable to locate credentials"):
        endpoint.target.ready()
    before = endpoint.passed[0]
    (failure,) = endpoint.follow(endpoint.publish(CHAMPION))
    assert "Unable to locate credentials" in failure
    assert endpoint.passed[0] == before
