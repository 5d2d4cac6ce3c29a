"""Which target an environment's connections and spec lead to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sagemaker_kit import REGION, aws_account
from tests.airflow.conftest import World

from ml_lifecycle.delivery.sagemaker import SageMakerEndpoint
from ml_lifecycle.delivery.targets import ModelServers, Target
from ml_lifecycle.errors import ServerUnavailableError
from ml_lifecycle.serving.replicas import Replicas
from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError
from ml_lifecycle_airflow.operators.base import Resources

Connect = Callable[..., None]
SETTINGS = "{role: 'arn:aws:iam::123456789012:role/m', image: server, instance_type: ml.m5.large}"


def target(world: World) -> Target:
    return Resources(world.path).target("production")


def serve_at(connect: Connect, **extra: str) -> None:
    fields = {"host": "http://127.0.0.2", "port": 9, "password": "t", "extra": extra}
    connect("s2", conn_type="ml_lifecycle_server", **fields)


@pytest.fixture
def on_servers(world: World, connect: Connect) -> World:
    connect("l2", conn_type="ml_lifecycle_lake", extra={"url": str(world.root / "production")})
    return world


def test_one_server(on_servers: World, connect: Connect) -> None:
    serve_at(connect)
    found = target(on_servers)
    assert isinstance(found, ModelServers)
    assert [str(client) for client in found.clients] == ["http://127.0.0.2:9"]
    assert (found.environment, found.lake.url) == ("production", str(on_servers.root / "production"))


def test_every_server_that_a_name_leads_to(on_servers: World, connect: Connect) -> None:
    serve_at(connect, replicas="dns")
    found = target(on_servers)
    assert isinstance(found, ModelServers)
    assert isinstance(found.clients, Replicas)
    assert [str(client) for client in found.clients] == ["http://127.0.0.2:9 at 127.0.0.2"]
    with pytest.raises(ServerUnavailableError):
        found.ready()


def test_another_way_to_find_servers_is_refused(on_servers: World, connect: Connect) -> None:
    serve_at(connect, replicas="srv")
    with pytest.raises(ConnectionIncompleteError, match="replicas is 'srv', write \"dns\" or leave it out"):
        target(on_servers)


@pytest.fixture
def on_sagemaker(on_servers: World, connect: Connect) -> World:
    keys = {"login": "key", "password": "secret"}
    connect("s2", conn_type="aws", **keys, extra={"region_name": REGION})
    connect("l2", conn_type="ml_lifecycle_lake", extra={"url": "s3://bucket/production"})
    return on_servers.edit("model.yaml", "online_store: o2", f"online_store: o2, sagemaker: {SETTINGS}")


def test_an_environment_on_sagemaker_is_reached_by_its_amazon_connection(on_sagemaker: World) -> None:
    with aws_account() as account:
        found = target(on_sagemaker)
        assert isinstance(found, SageMakerEndpoint)
        assert found.lake.url == "s3://bucket/production"
        assert found.settings.instances == 1
        found.ready()
        # It is that very account, by the connection's keys and in its region.
        account.control.create_model(ModelName="one", ExecutionRoleArn=found.settings.role)
        assert found.api.models("one") == ["one"]
        assert found.api.endpoint("none") is None


def test_a_lake_that_containers_cannot_reach_is_refused(on_sagemaker: World, connect: Connect) -> None:
    connect("l2", conn_type="ml_lifecycle_lake", extra={"url": "/data/production"})
    with pytest.raises(
        ConnectionIncompleteError, match=r"'l2' leads to /data/production; .* needs a lake at s3:"
    ):
        target(on_sagemaker)
