"""The lifecycle database behind an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from ml_lifecycle.ledger.database import Database


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
