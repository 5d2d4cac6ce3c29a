"""One server and one filled lifecycle database for all tests of the page that only look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow_server import AirflowServer, serving
from lifecycle_world import HOSTILE, World, alert, traffic

from ml_lifecycle.delivery.judgements import write_judgement
from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.spec.watch import Watch

# Looked at so seldom that the look below is not overdue while the tests run.
RULES = Watch(segments={"carrier": ("AA", HOSTILE)}, every=timedelta(hours=1))
LONG = "a_model_whose_owner_could_not_decide_on_a_shorter_name_and_wrote"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """``flights`` has lived a whole life, ``delays`` is new, ``empty`` has only been parsed.

    A canary of ``arrivals`` is held, and one of ``fares`` was rolled back by the watch.
    """
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
    for model in ("arrivals", "fares"):
        made.release(model, 1)
        begun = made.applied(made.begin(model, 2, step=Step("canary", 0.05)))
        if model == "arrivals":
            held = made.look(begun, RULES, [*traffic(800, 8), *traffic(300, 3, f"carrier={HOSTILE}")])
            write_judgement(made.production, begun, replace(held, judged_at=datetime.now(UTC)))
        else:
            made.look(begun, RULES, [*traffic(800, 160), *traffic(200, 40, "carrier=AA")])
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
        "production_lake": {"conn_type": "ml_lifecycle_lake", "extra": {"url": world.production.url}},
        "ml_lifecycle_mlflow": {
            "conn_type": "ml_lifecycle_mlflow",
            "extra": {"url": "http://robot:token@mlflow.example:5000/"},
        },
    }
    teams = [f"blue=flights,delays,empty,arrivals,fares,{LONG}", "green=secret"]
    with serving(root, teams, connections) as server:
        yield server
