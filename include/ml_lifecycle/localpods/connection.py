"""How Airflow reaches the server: the value of an ``AIRFLOW_CONN_…`` variable."""

from __future__ import annotations

import json


def connection_json(url: str, token: str, namespace: str = "default") -> str:
    """An Airflow connection of type ``kubernetes``, as the JSON that an ``AIRFLOW_CONN_…`` variable holds.

    :param url: the server's, e.g. ``http://127.0.0.1:8001``
    :param namespace: where pods go that name none
    """
    kube_config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "localpods",
        "contexts": [{"name": "localpods", "context": {"cluster": "localpods", "user": "localpods"}}],
        "clusters": [{"name": "localpods", "cluster": {"server": url}}],
        "users": [{"name": "localpods", "user": {"token": token}}],
    }
    return json.dumps(
        {"conn_type": "kubernetes", "extra": {"namespace": namespace, "kube_config": kube_config}}
    )
