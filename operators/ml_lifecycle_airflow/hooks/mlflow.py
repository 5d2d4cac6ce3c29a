"""MLflow behind an Airflow connection."""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow.sdk import BaseHook


class MlflowHook(BaseHook):
    """Connection type ``ml_lifecycle_mlflow``: host with scheme, port; or extra ``url``.

    Extra ``page`` says where browsers find it, if that is another address than the tasks'.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "ml_lifecycle_mlflow"
    conn_type = "ml_lifecycle_mlflow"
    hook_name = "ML Lifecycle MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    def get_conn(self) -> str:
        """The tracking and registry URI."""
        connection = self.get_connection(self.mlflow_conn_id)
        if url := connection.extra_dejson.get("url"):
            return str(url)
        host = connection.host or "http://127.0.0.1"
        return f"{host}:{connection.port}" if connection.port else host

    def page(self) -> str | None:
        """Where a browser finds it, credentials left out; None if it has no web page."""
        page = self.get_connection(self.mlflow_conn_id).extra_dejson.get("page")
        address = urlsplit(str(page or self.get_conn()))
        if address.scheme not in ("http", "https"):
            return None
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}".rstrip("/")
