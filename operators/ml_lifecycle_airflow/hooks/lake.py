"""A lake behind an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from ml_lifecycle.errors import LifecycleError

if TYPE_CHECKING:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.spec.model import ModelSpec


class ConnectionIncompleteError(LifecycleError):
    """An Airflow connection lacks what is needed. Retry: no, edit the connection."""


def connection_url(conn_id: str) -> str:
    """The ``url`` in a connection's extra.

    :raises ConnectionIncompleteError: it has none. Retry: no.
    """
    url = BaseHook.get_connection(conn_id).extra_dejson.get("url")
    if not isinstance(url, str) or not url:
        raise ConnectionIncompleteError(f'connection {conn_id!r} needs {{"url": "…"}} in its extra')
    return url


def source_options(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """What fsspec needs for each connection that a source names; never log it."""
    named = {source.connection for source in spec.sources.values() if source.fetched is None}
    return {conn_id: LakeHook(conn_id).storage_options() for conn_id in sorted(filter(None, named))}


class LakeHook(BaseHook):
    """Connection type ``ml_lifecycle_lake``.

    Extra: ``url`` (a folder or any fsspec URL), ``storage_options`` (for fsspec), ``aws_conn_id`` (an Amazon
    connection whose credentials an ``s3://`` URL uses).
    """

    conn_name_attr = "lake_conn_id"
    default_conn_name = "ml_lifecycle_lake"
    conn_type = "ml_lifecycle_lake"
    hook_name = "ML Lifecycle Lake"

    def __init__(self, lake_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.lake_conn_id = lake_conn_id

    def get_conn(self) -> Lake:
        """The lake.

        :raises ConnectionIncompleteError: the connection has no URL. Retry: no.
        """
        from ml_lifecycle.adapters.lake import Lake

        return Lake(connection_url(self.lake_conn_id), self.storage_options())

    def storage_options(self) -> dict[str, Any]:
        """What fsspec needs to reach it, credentials included; never log it."""
        extra = self.get_connection(self.lake_conn_id).extra_dejson
        options = dict(extra.get("storage_options") or {})
        if aws_conn_id := extra.get("aws_conn_id"):
            from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

            hook = AwsBaseHook(aws_conn_id=str(aws_conn_id))
            credentials = hook.get_credentials()
            options |= {"key": credentials.access_key, "secret": credentials.secret_key}
            if credentials.token:
                options["token"] = credentials.token
            if endpoint := hook.conn_config.endpoint_url:
                options["client_kwargs"] = {"endpoint_url": endpoint}
        return options

    def pod_secret(self) -> tuple[str, str] | None:
        """Name and key of the Kubernetes secret that holds the storage options for pods, if one is named.

        Extra ``pod_secret``: ``"name/key"``; the secret's value is the JSON of ``storage_options``.

        :raises ConnectionIncompleteError: it is not of that form. Retry: no.
        """
        named = self.get_connection(self.lake_conn_id).extra_dejson.get("pod_secret")
        if not named:
            return None
        name, _, key = str(named).partition("/")
        if not (name and key):
            raise ConnectionIncompleteError(
                f'connection {self.lake_conn_id!r}: pod_secret is {named!r}, write "secret-name/key"'
            )
        return name, key
