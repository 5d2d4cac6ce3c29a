"""Connections in, clients and URLs out; what is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy import text

from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.spec.source import Source
from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook
from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError, LakeHook, source_options
from ml_lifecycle_airflow.hooks.mlflow import MlflowHook
from ml_lifecycle_airflow.hooks.model_server import ModelServerHook, OnlineStoreHook
from ml_lifecycle_airflow.hooks.origins import source_origins
from ml_lifecycle_airflow.provider_info import get_provider_info

Connect = Callable[..., None]


def test_a_lake_is_where_the_connection_says(connect: Connect, tmp_path: Any) -> None:
    connect("here", conn_type="ml_lifecycle_lake", extra={"url": str(tmp_path)})
    lake = LakeHook("here").get_conn()
    lake.write_bytes("a/b.bin", b"x")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"x"


def test_storage_options_reach_the_filesystem(connect: Connect) -> None:
    connect("there", extra={"url": "memory://bucket/lake", "storage_options": {"use_listings_cache": True}})
    assert LakeHook("there").storage_options() == {"use_listings_cache": True}
    assert LakeHook("there").get_conn().storage_options == {"use_listings_cache": True}


def test_an_amazon_connection_gives_a_lake_its_credentials(connect: Connect) -> None:
    connect(
        "minio",
        conn_type="aws",
        login="key",
        password="secret",
        extra={"endpoint_url": "http://127.0.0.1:9000", "region_name": "eu-west-1"},
    )
    connect("bucket", extra={"url": "s3://bucket/lake", "aws_conn_id": "minio"})
    assert LakeHook("bucket").storage_options() == {
        "key": "key",
        "secret": "secret",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"},
    }


@pytest.mark.parametrize("extra", [{}, {"url": ""}, {"url": 5}])
@pytest.mark.parametrize("hook", [LakeHook, OnlineStoreHook])
def test_a_missing_url_is_named_with_its_connection(connect: Connect, hook: Any, extra: Any) -> None:
    connect("half", conn_type=hook.conn_type, extra=extra)
    with pytest.raises(ConnectionIncompleteError, match=r"'half' needs \{.url.: .….\} in its extra"):
        hook("half").get_conn()


def test_an_unknown_connection_is_airflow_s_own_error() -> None:
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        LakeHook("nowhere").get_conn()


def test_a_pod_s_secret_is_a_name_and_a_key(connect: Connect) -> None:
    connect("lake", extra={"url": "/x", "pod_secret": "lake-options/json"})
    assert LakeHook("lake").pod_secret() == ("lake-options", "json")
    connect("lake", extra={"url": "/x"})
    assert LakeHook("lake").pod_secret() is None


@pytest.mark.parametrize("named", ["lake-options", "/json", "lake-options/"])
def test_a_secret_of_another_form_is_refused(connect: Connect, named: str) -> None:
    connect("lake", extra={"url": "/x", "pod_secret": named})
    with pytest.raises(ConnectionIncompleteError, match='write "secret-name/key"'):
        LakeHook("lake").pod_secret()


def test_a_database_is_an_url_or_a_connection_s_fields(connect: Connect, tmp_path: Any) -> None:
    connect("db", extra={"url": f"sqlite:///{tmp_path}/l.db"})
    LifecycleDatabaseHook("db").get_conn().migrate()
    assert (tmp_path / "l.db").exists()
    connect(
        "db", conn_type="postgres", host="db", port=5432, login="ml", password="p@ss/w", schema="lifecycle"
    )
    assert LifecycleDatabaseHook("db").url() == "postgresql+psycopg2://ml:p%40ss%2Fw@db:5432/lifecycle"


def with_query(connection: str) -> ModelSpec:
    """The example's spec, one source of which is a query's rows."""
    spec = load_folder(Path(__file__).parents[2] / "dags" / "models" / "digits").spec
    source = Source.model_validate({"sql": {"query": "SELECT 1 AS one"}, "connection": connection})
    return spec.model_copy(update={"sources": {"ones": source}})


def test_rows_come_from_whatever_database_a_connection_leads_to(connect: Connect, tmp_path: Path) -> None:
    """A connection whose provider is installed is opened by its own hook, any other by its URL."""
    connect("by_url", conn_type="postgres", extra={"url": f"sqlite:///{tmp_path}/a.db"})
    connect("generic", conn_type="generic", extra={"url": f"sqlite:///{tmp_path}/g.db"})
    connect("by_hook", conn_type="sqlite", schema=f"{tmp_path}/b.db")

    class Database(DbApiHook):
        conn_name_attr = "conn_id"
        conn_id = "by_hook"

        def get_uri(self) -> str:
            return f"sqlite:///{tmp_path}/c.db"

    def ask(conn_id: str) -> str:
        (make,) = source_origins(with_query(conn_id)).values()
        engine = make()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()
        return str(engine.url.database)

    assert ask("by_url") == f"{tmp_path}/a.db"
    assert ask("generic") == f"{tmp_path}/g.db"
    assert ask("by_hook") == f"{tmp_path}/b.db"
    with mock.patch.object(BaseHook, "get_hook", autospec=True, return_value=Database("by_hook")):
        assert ask("by_hook") == f"{tmp_path}/c.db"
    assert source_options(with_query("by_url")) == {}
    for odd, said in (
        ({"conn_type": "nothing", "host": "db"}, "sqlalchemy.dialects:nothing"),
        ({"conn_type": "generic", "extra": {"url": "/some/path.db"}}, "Could not parse SQLAlchemy URL"),
    ):
        connect("odd", **odd)
        with pytest.raises(
            ConnectionIncompleteError, match=f"'odd' leads to no database .*{said}.* its extra"
        ):
            ask("odd")


def test_an_api_is_asked_as_its_connection_says(connect: Connect) -> None:
    def client(**fields: Any) -> httpx.Client:
        connect("api", conn_type="http", **fields)
        source = Source.model_validate({"http": {"path": "orders"}, "connection": "api"})
        spec = with_query("other").model_copy(update={"sources": {"orders": source}})
        (make,) = source_origins(spec).values()
        made = make()
        assert isinstance(made, httpx.Client)
        return made

    with client(host="shop.example", schema="https", port=8443, login="me", password="p") as by_parts:
        assert str(by_parts.base_url) == "https://shop.example:8443"
        assert isinstance(by_parts.auth, httpx.BasicAuth)
    with client(host="https://shop.example/v1", extra={"headers": {"X-Key": "k"}}) as by_url:
        assert str(by_url.base_url) == "https://shop.example/v1/"
        assert (by_url.headers["X-Key"], by_url.auth) == ("k", None)
    with pytest.raises(ConnectionIncompleteError, match="connection 'api' needs a host"):
        client()
    with pytest.raises(ConnectionIncompleteError, match="'api' has an address that is none: Invalid port"):
        client(host="http://shop.example:port")


def test_brokers_are_configured_as_airflow_s_kafka_hooks_are(connect: Connect) -> None:
    def config(**fields: Any) -> Any:
        connect("events", conn_type="kafka", **fields)
        source = Source.model_validate({"kafka": {"topic": "orders"}, "connection": "events"})
        spec = with_query("other").model_copy(update={"sources": {"orders": source}})
        (make,) = source_origins(spec).values()
        return make()

    extra = {"bootstrap.servers": "b:9092", "security.protocol": "SASL_SSL", "group.id": "mine"}
    assert config(extra=extra) == extra
    with pytest.raises(ConnectionIncompleteError, match=r"'events' needs \{.bootstrap.servers.: .\}"):
        config(host="b:9092")
    with pytest.raises(ValueError, match="callback_allowlist is empty"):
        config(extra={**extra, "oauth_cb": "os.system"})


def test_mlflow_is_an_url_or_host_and_port(connect: Connect) -> None:
    connect("m", conn_type="ml_lifecycle_mlflow", host="http://127.0.0.1", port=5001)
    assert MlflowHook("m").get_conn() == "http://127.0.0.1:5001"
    connect("m", conn_type="ml_lifecycle_mlflow", host="https://mlflow.internal")
    assert MlflowHook("m").get_conn() == "https://mlflow.internal"
    connect("m", extra={"url": "sqlite:////tmp/mlflow.db"})
    assert MlflowHook("m").get_conn() == "sqlite:////tmp/mlflow.db"


def test_browsers_may_find_mlflow_elsewhere_than_tasks(connect: Connect) -> None:
    connect("m", conn_type="ml_lifecycle_mlflow", host="http://mlflow", port=5000)
    assert MlflowHook("m").page() == "http://mlflow:5000"
    connect(
        "m",
        conn_type="ml_lifecycle_mlflow",
        host="http://mlflow",
        port=5000,
        extra={"page": "https://me:secret@ml.example/mlflow/"},
    )
    assert MlflowHook("m").page() == "https://ml.example/mlflow"
    assert MlflowHook("m").get_conn() == "http://mlflow:5000"


def test_a_model_server_needs_its_token(connect: Connect) -> None:
    connect("s", conn_type="ml_lifecycle_server", host="http://127.0.0.1", port=8093)
    with pytest.raises(ConnectionIncompleteError, match="'s' needs the token as its password"):
        ModelServerHook("s").get_conn()
    connect("s", conn_type="ml_lifecycle_server", host="http://127.0.0.1", port=8093, password="t")
    with ModelServerHook("s").get_conn() as client:
        assert client is not None


def test_every_hook_is_announced_to_airflow_under_its_own_type() -> None:
    hooks = [LakeHook, LifecycleDatabaseHook, MlflowHook, ModelServerHook, OnlineStoreHook]
    announced = {
        entry["connection-type"]: entry["hook-class-name"]
        for entry in get_provider_info()["connection-types"]
    }
    assert announced == {hook.conn_type: f"{hook.__module__}.{hook.__name__}" for hook in hooks}
