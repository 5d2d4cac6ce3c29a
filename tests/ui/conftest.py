"""One server and one filled lifecycle database for all tests of the page that only look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow_server import AirflowServer, serving
from lifecycle_world import World, alert

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "a_model_whose_owner_could_not_decide_on_a_shorter_name_and_wrote"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """``flights`` has lived a whole life, ``delays`` is new, ``empty`` has only been parsed."""
    made = World(tmp_path_factory.mktemp("world"))
    made.release("flights", 1)
    made.release("flights", 2, "bob", canary=0.1)
    for number in range(14):
        made.window("flights", number)
    psi = alert("psi", 0.61, "above 0.25", "informational", column="humidity")
    failed = alert("skill", None, "below 0", "warning", error=f"ValueError: {HOSTILE}")
    made.window("flights", 14, [psi, failed])
    drop = alert("skill", -0.118, "below 0", "critical", action="retrain")
    made.window("flights", 15, [psi, drop])
    made.roll_back("flights", HOSTILE)
    made.ask("flights", 5)
    made.release(LONG, 7, "alice.with.a.very.long.account.name@example.org")
    made.begin("delays", 1)
    page = (
        "<!doctype html><p id=shown></p><script>document.getElementById('shown').textContent='drawn'</script>"
    )
    made.lake.write_bytes("monitoring/flights/abc/report.html", page.encode())
    made.lake.write_json("monitoring/flights/abc/report.json", {"findings": []})
    made.lake.write_bytes("monitoring/flights/abc/sample.parquet", b"PAR1")
    made.lake.write_bytes("monitoring/secret/abc/report.html", b"secret")
    made.lake.write_bytes("training/flights/abc/manifest.json", b"{}")
    return made


@pytest.fixture(scope="session")
def airflow(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowServer]:
    """Airflow with ``secret`` for team green and the rest for team blue."""
    root: Path = tmp_path_factory.mktemp("airflow")
    connections: dict[str, dict[str, object]] = {
        "ml_lifecycle_database": {"conn_type": "ml_lifecycle_database", "extra": {"url": world.url}},
        "ml_lifecycle_lake": {"conn_type": "ml_lifecycle_lake", "extra": {"url": world.lake.url}},
        "ml_lifecycle_mlflow": {
            "conn_type": "ml_lifecycle_mlflow",
            "extra": {"url": "http://robot:token@mlflow.example:5000/"},
        },
    }
    teams = [f"blue=flights,delays,empty,{LONG}", "green=secret"]
    with serving(root, teams, connections) as server:
        yield server
