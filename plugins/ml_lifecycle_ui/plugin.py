"""The plugin Airflow loads through its ``airflow.plugins`` entry point."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from ml_lifecycle_airflow.links import PAGE

_Message = MutableMapping[str, Any]


class LazyApp:
    """The ASGI application, imported at its first request.

    Airflow loads plugins in every process; only the API server ever serves this.
    """

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Hand the request on."""
        from ml_lifecycle_ui.api import app

        await app(scope, receive, send)


class LifecyclePlugin(AirflowPlugin):
    """The models' page in Airflow's navigation, and what it asks for."""

    name = "ml_lifecycle_ui"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": f"/{PAGE}", "name": "ML Lifecycle"}]
    # Addresses without a leading slash are relative to Airflow's own root, wherever a proxy puts that.
    external_views = [
        {
            "name": "Lifecycle",
            "href": f"{PAGE}/",
            "icon": f"{PAGE}/static/icon.svg",
            "icon_dark_mode": f"{PAGE}/static/icon-dark.svg",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": PAGE,
        }
    ]
