"""Model servers and online stores behind Airflow connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError, connection_url

if TYPE_CHECKING:
    from ml_lifecycle.serving.client import ModelClient


class ModelServerHook(BaseHook):
    """Connection type ``ml_lifecycle_server``: host with scheme, port, password (the bearer token)."""

    conn_name_attr = "server_conn_id"
    default_conn_name = "production_server"
    conn_type = "ml_lifecycle_server"
    hook_name = "ML Lifecycle Model Server"

    def __init__(self, server_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.server_conn_id = server_conn_id

    def get_conn(self) -> ModelClient:
        """A client of the server.

        :raises ConnectionIncompleteError: the connection has no password. Retry: no.
        """
        from ml_lifecycle.serving.client import ModelClient

        connection = self.get_connection(self.server_conn_id)
        if not connection.password:
            raise ConnectionIncompleteError(
                f"connection {self.server_conn_id!r} needs the token as its password"
            )
        host = connection.host or "http://127.0.0.1"
        url = f"{host}:{connection.port}" if connection.port else host
        return ModelClient(url, connection.password)


class OnlineStoreHook(BaseHook):
    """Connection type ``ml_lifecycle_online_store``: extra ``url``, e.g. ``sqlite:////data/online.db``."""

    conn_name_attr = "online_store_conn_id"
    default_conn_name = "production_online_store"
    conn_type = "ml_lifecycle_online_store"
    hook_name = "ML Lifecycle Online Store"

    def __init__(self, online_store_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.online_store_conn_id = online_store_conn_id

    def get_conn(self) -> str:
        """The store's URL."""
        return connection_url(self.online_store_conn_id)
