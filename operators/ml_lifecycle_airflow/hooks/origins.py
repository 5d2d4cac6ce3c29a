"""Where rows come from that are in no file: databases, HTTP APIs and brokers behind Airflow connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException

from ml_lifecycle.errors import SourceError
from ml_lifecycle_airflow.hooks.database import LifecycleDatabaseHook
from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError

if TYPE_CHECKING:
    import httpx
    from sqlalchemy import Engine

    from ml_lifecycle.spec.model import ModelSpec
    from ml_lifecycle.stages.fetch import Origin, Origins

_TIMEOUT_SECONDS = 60.0


def source_origins(spec: ModelSpec) -> Origins:
    """What opens the connection of each source that is fetched."""
    found: dict[str, Callable[[], Origin]] = {}
    for source in spec.sources.values():
        if source.connection is not None and source.fetched is not None:
            open_origin: Callable[[str], Origin] = _brokers
            if source.kafka is None:
                open_origin = _engine if source.sql is not None else _client
            found[source.connection] = partial(open_origin, source.connection)
    return found


def _engine(conn_id: str) -> Engine:
    """By the connection's own hook; without one, by its URL.

    :raises ConnectionIncompleteError: there is no such database, or its driver is not installed. Retry: no.
    """
    from sqlalchemy.exc import ArgumentError

    from ml_lifecycle.adapters.databases import engine_of

    try:
        hook = BaseHook.get_hook(conn_id)
    except (AirflowException, AttributeError):  # no provider knows its type; "generic" is one without a hook
        hook = LifecycleDatabaseHook(conn_id)
    if hasattr(hook, "get_sqlalchemy_engine"):
        engine: Engine = hook.get_sqlalchemy_engine()
        return engine
    try:
        return engine_of(LifecycleDatabaseHook(conn_id).url())
    except (ArgumentError, ImportError) as error:
        raise ConnectionIncompleteError(
            f"connection {conn_id!r} leads to no database that can be opened: {error}. Install the Airflow "
            'provider of its type, or give it an SQLAlchemy URL in its extra, {"url": "…"}, and its driver'
        ) from error


def _client(conn_id: str) -> httpx.Client:
    """As Airflow's HTTP hook reads a connection: host, schema and port; login and password; headers as extra.

    :raises ConnectionIncompleteError: it has no host, or one that is none. Retry: no.
    """
    import httpx

    connection = BaseHook.get_connection(conn_id)
    host = connection.host or ""
    if not host:
        raise ConnectionIncompleteError(
            f"connection {conn_id!r} needs a host: the API's address, such as https://shop.example/v1"
        )
    address = host if "://" in host else f"{connection.schema or 'http'}://{host}"
    if connection.port:
        address = f"{address}:{connection.port}"
    headers: Mapping[str, str] = connection.extra_dejson.get("headers") or {}
    auth = (connection.login, connection.password or "") if connection.login else None
    try:
        return httpx.Client(
            base_url=address, headers=headers, auth=auth, timeout=_TIMEOUT_SECONDS, follow_redirects=False
        )
    except httpx.InvalidURL as error:
        raise ConnectionIncompleteError(
            f"connection {conn_id!r} has an address that is none: {error}; write one such as "
            "https://shop.example/v1 as its host"
        ) from error


def _brokers(conn_id: str) -> Mapping[str, Any]:
    """As Airflow's Kafka hooks read a connection: its extra is librdkafka's configuration.

    By their base class, so that a connection which their operators use serves here too: it resolves the
    callbacks that ``[apache_kafka] callback_allowlist`` allows, and adds the tokens of managed brokers.

    :raises ConnectionIncompleteError: it names no brokers. Retry: no.
    :raises SourceError: the provider is not installed. Retry: no.
    """
    try:
        from airflow.providers.apache.kafka.hooks.base import KafkaBaseHook
    except ImportError as error:
        raise SourceError(
            f"connection {conn_id!r} leads to Kafka: pip install 'airflow-ml-lifecycle[kafka]'"
        ) from error

    class Configuration(KafkaBaseHook):
        def _get_client(self, config: dict[str, Any]) -> dict[str, Any]:
            return config

    if not BaseHook.get_connection(conn_id).extra_dejson.get("bootstrap.servers"):
        raise ConnectionIncompleteError(
            f'connection {conn_id!r} needs {{"bootstrap.servers": …}} in its extra, as librdkafka reads it'
        )
    config: Mapping[str, Any] = Configuration(conn_id).get_conn  # type: ignore[no-untyped-call]
    return config
