"""The page's routes inside Airflow's own API server: who sees what, and in which wrapping."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from airflow_server import AirflowServer
from lifecycle_world import World

from ml_lifecycle_airflow.links import model_url, report_url, run_url

REPORT = "/ml-lifecycle/reports/monitoring/flights/abc/report.html"
ROUTES = ["/ml-lifecycle/", "/ml-lifecycle/static/page.js", "/ml-lifecycle/api/models", REPORT]
ROUTES += ["/ml-lifecycle/api/models/flights", "/ml-lifecycle/api/models/arrivals/watches/arrivals/2"]


@pytest.fixture(scope="module")
def ada(airflow: AirflowServer) -> Iterator[httpx.Client]:
    with airflow.client("ada") as client:
        yield client


@pytest.fixture(scope="module")
def vera(airflow: AirflowServer) -> Iterator[httpx.Client]:
    with airflow.client("vera") as client:
        yield client


def names(client: httpx.Client) -> set[str]:
    return {model["name"] for model in client.get("/ml-lifecycle/api/models").json()["models"]}


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_shown_to_nobody(airflow: AirflowServer, route: str) -> None:
    with airflow.client(None) as client:
        assert client.get(route).status_code == 401
        assert client.get(route, headers={"Authorization": "Bearer nonsense"}).status_code == 403


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_can_be_changed(ada: httpx.Client, route: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert ada.request(method, route).status_code == 405


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_answers_who_may_see_it(ada: httpx.Client, route: str) -> None:
    answer = ada.get(route)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_each_sees_the_models_whose_dags_he_may_read(airflow: AirflowServer, vera: httpx.Client) -> None:
    assert "secret" not in names(vera)
    assert {"flights", "delays", "empty"} <= names(vera)
    with airflow.client("nick") as nick:
        assert names(nick) == {"secret"}
    with airflow.client("eve") as eve:
        assert names(eve) == set()


@pytest.mark.parametrize(
    "route",
    ["/ml-lifecycle/api/models/secret", "/ml-lifecycle/reports/monitoring/secret/abc/report.html"],
)
def test_of_a_model_he_may_not_read_he_sees_nothing(
    airflow: AirflowServer, vera: httpx.Client, route: str
) -> None:
    hidden = vera.get(route)
    assert hidden.status_code == 404
    assert hidden.json() == vera.get(route.replace("secret", "never_heard_of")).json()
    with airflow.client("nick") as nick:
        assert nick.get(route).status_code == 200


def test_the_overview_leaves_credentials_out(ada: httpx.Client) -> None:
    answer = ada.get("/ml-lifecycle/api/models")
    assert answer.json()["mlflow"] == "http://mlflow.example:5000"
    assert "token@" not in answer.text


def test_one_models_history(ada: httpx.Client, world: World) -> None:
    answer = ada.get("/ml-lifecycle/api/models/flights").json()
    assert [release["revision"] for release in answer["releases"]] == [3, 2, 1]
    assert len(answer["windows"]) == 12


def test_the_page_runs_its_own_script_and_no_other(ada: httpx.Client) -> None:
    answer = ada.get("/ml-lifecycle/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert not re.search(r"<script>|<style| style=| on[a-z]+=", answer.text)
    for name in re.findall(r'(?:src|href)="(static/[^"]+)"', answer.text):
        assert ada.get(f"/ml-lifecycle/{name}").status_code == 200, name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_static_files_have_their_types(ada: httpx.Client, name: str, kind: str) -> None:
    assert ada.get(f"/ml-lifecycle/static/{name}").headers["Content-Type"] == kind


def test_a_report_is_sandboxed(ada: httpx.Client) -> None:
    answer = ada.get(REPORT)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in policy
    assert "connect-src 'none'" in policy
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "drawn" in answer.text
    machine_readable = ada.get(REPORT.replace(".html", ".json"))
    assert machine_readable.headers["Content-Type"] == "application/json"
    assert machine_readable.headers["Content-Security-Policy"] == policy


@pytest.mark.parametrize(
    "path",
    [
        "monitoring/flights/abc/missing.html",
        "monitoring/flights/abc/sample.parquet",
        "monitoring/flights/abc",
        "monitoring/flights/",
        "monitoring/flights/../secret/abc/report.html",
        "monitoring/flights/%2e%2e/secret/abc/report.html",
        "monitoring/flights/..%2fsecret/abc/report.html",
        "monitoring/flights/..%5csecret/abc/report.html",
        "monitoring/flights/%2fetc/passwd.html",
        "monitoring/flights/abc/report.html%00.html",
        "monitoring/flights//abc/report.html",
        "monitoring/../monitoring/flights/abc/report.html%2f..",
        "training/flights/abc/manifest.json",
        "..%2fairflow.json/flights/x.json",
    ],
)
def test_other_files_are_not_to_be_had(airflow: AirflowServer, path: str) -> None:
    # As sent: a client library would tidy the path up first.
    with airflow.client("vera") as client:
        request = client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=f"/ml-lifecycle/reports/{path}".encode())
        answer = client.send(request)
    assert answer.status_code in (404, 422)
    assert "secret" not in answer.text.replace(path, "")


@pytest.mark.parametrize("name", ["..%2fapi.py", "%2e%2e/plugin.py", "plugin.py", ".", ""])
def test_static_serves_its_own_folder_only(ada: httpx.Client, name: str) -> None:
    assert ada.get(f"/ml-lifecycle/static/{name}").status_code == 404


def test_airflow_lists_the_view_and_loads_the_plugin_once(ada: httpx.Client) -> None:
    plugins = ada.get("/api/v2/plugins").json()["plugins"]
    (ours,) = (plugin for plugin in plugins if plugin["name"] == "ml_lifecycle_ui")
    (view,) = ours["external_views"]
    assert view["url_route"] == "ml-lifecycle"
    assert ada.get(f"/{view['href']}").status_code == 200
    assert ada.get(f"/{view['icon']}").headers["Content-Type"] == "image/svg+xml"
    assert ada.get("/api/v2/plugins/importErrors").json()["total_entries"] == 0


def test_links_from_tasks_lead_to_pages_that_exist(ada: httpx.Client) -> None:
    assert ada.get(report_url("monitoring/flights/abc/report.html")).status_code == 200
    # What follows the view's name is the framed page's own address.
    inner = model_url("flights").removeprefix("/plugin/ml-lifecycle")
    assert inner == "/ml-lifecycle/#flights"
    assert ada.get(inner).status_code == 200
    assert run_url("a__train", "manual__2026-01-01T00:00:00+00:00").endswith("T00%3A00%3A00%2B00%3A00")


def test_a_database_that_is_down_is_said_so_and_no_more(
    airflow: AirflowServer, ada: httpx.Client, world: World
) -> None:
    path = world.url.removeprefix("sqlite:///")
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE windows RENAME TO gone")
    try:
        answer = ada.get("/ml-lifecycle/api/models")
    finally:
        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE gone RENAME TO windows")
    assert answer.status_code == 503
    assert answer.json() == {"detail": "The database cannot be read; the API server's log says why."}
    assert "no such table: windows" in airflow.log.read_text()
    assert json.dumps(ada.get("/ml-lifecycle/api/models").json())
