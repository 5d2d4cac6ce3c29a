"""Model servers and online stores behind Airflow connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError, connection_url

if TYPE_CHECKING:
    from ml_lifecycle.serving.client import ModelClient


class ModelServerHook(BaseHook):
    """Connection type ``ml_lifecycle_server``: host with scheme, port, password (the bearer token).

    Extra ``replicas``: ``"dns"`` if the host's name has an address a server, as a headless Service of
    Kubernetes has; a release then waits for each of them. Without it there is one server.
    """

    conn_name_attr = "server_conn_id"
    default_conn_name = "production_server"
    conn_type = "ml_lifecycle_server"
    hook_name = "ML Lifecycle Model Server"

    def __init__(self, server_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.server_conn_id = server_conn_id

    def get_conn(self) -> ModelClient:
        """A client of the server; of several, of whichever answers.

        :raises ConnectionIncompleteError: the connection has no password. Retry: no.
        """
        from ml_lifecycle.serving.client import ModelClient

        return ModelClient(*self._address())

    def clients(self) -> Iterable[ModelClient]:
        """A client for each server, of those that there are whenever they are gone through.

        :raises ConnectionIncompleteError: the connection has no password, or says how to find the servers in
            a way that is not known. Retry: no.
        """
        from ml_lifecycle.serving.replicas import Replicas

        found_by = self.get_connection(self.server_conn_id).extra_dejson.get("replicas")
        if found_by is None:
            return [self.get_conn()]
        if found_by != "dns":
            raise ConnectionIncompleteError(
                f'connection {self.server_conn_id!r}: replicas is {found_by!r}, write "dns" or leave it out'
            )
        return Replicas(*self._address())

    def _address(self) -> tuple[str, str]:
        """URL and token."""
        connection = self.get_connection(self.server_conn_id)
        if not connection.password:
            raise ConnectionIncompleteError(
                f"connection {self.server_conn_id!r} needs the token as its password"
            )
        host = connection.host or "http://127.0.0.1"
        return f"{host}:{connection.port}" if connection.port else host, connection.password


class OnlineStoreHook(BaseHook):
    """Connection type ``ml_lifecycle_online_store``: extra ``url``: ``sqlite:////data/online.db`` or ``redis://…``."""

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
