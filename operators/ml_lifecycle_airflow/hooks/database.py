"""The lifecycle database behind an Airflow connection, and the databases that rows come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.spec.model import ModelSpec


def source_databases(spec: ModelSpec) -> Mapping[str, Callable[[], Engine]]:
    """What makes an engine for the connection of each source that a query is sent to."""
    named = {source.connection for source in spec.sources.values() if source.sql is not None}
    return {conn_id: partial(_engine, conn_id) for conn_id in sorted(filter(None, named))}


def _engine(conn_id: str) -> Engine:
    """By the connection's own hook; without one, by its URL."""
    from ml_lifecycle.adapters.databases import engine_of

    try:
        hook = BaseHook.get_hook(conn_id)
    except AirflowException:  # no provider that is installed knows its type
        hook = LifecycleDatabaseHook(conn_id)
    if hasattr(hook, "get_sqlalchemy_engine"):
        engine: Engine = hook.get_sqlalchemy_engine()
        return engine
    return engine_of(LifecycleDatabaseHook(conn_id).url())


class LifecycleDatabaseHook(BaseHook):
    """Connection type ``ml_lifecycle_database``, or any database connection such as ``postgres``.

    Extra ``url`` is an SQLAlchemy URL; without it the URL is made from the connection's own fields.
    """

    conn_name_attr = "database_conn_id"
    default_conn_name = "ml_lifecycle_database"
    conn_type = "ml_lifecycle_database"
    hook_name = "ML Lifecycle Database"

    def __init__(self, database_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.database_conn_id = database_conn_id

    def get_conn(self) -> Database:
        """The database."""
        from ml_lifecycle.ledger.database import Database

        return Database(self.url())

    def url(self) -> str:
        """Its SQLAlchemy URL, password included; never log it."""
        from sqlalchemy import URL

        connection = self.get_connection(self.database_conn_id)
        if url := connection.extra_dejson.get("url"):
            return str(url)
        kind = connection.conn_type or ""
        driver = "postgresql+psycopg2" if "postgres" in kind else kind
        made = URL.create(
            driver,
            username=connection.login,
            password=connection.password,
            host=connection.host,
            port=connection.port,
            database=connection.schema,
        )
        return made.render_as_string(hide_password=False)
