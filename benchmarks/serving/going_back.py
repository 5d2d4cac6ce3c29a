"""From the decision to take a canary back until nobody is answered by it: at most 2 s.

    python benchmarks/serving/going_back.py [--times 20] [--results FOLDER]

A release gets half of the traffic, four clients ask without a pause, and the release is taken back as the
watch and people do it: decided in the lifecycle database, published, confirmed, followed. Counted from before
the first of that to the last answer of the release. Exits with 1 if it ever took longer than 2 s, or if a
request failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import Server, cores

from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.endpoint import Endpoint
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.delivery.targets import ModelServers
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Release
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.spec.model import ModelSpec
from models import Model, packed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import table

RESULTS = Path(__file__).parent / "results"
LIMIT = 2.0
CLIENTS = 4
_HALF = 0.5


def spec_of(model: Model) -> ModelSpec:
    """As little of a spec as a release needs."""
    connections = {"server": "server", "lake": "lake", "online_store": "store"}
    return ModelSpec.model_validate(
        {
            "spec": 1,
            "name": model.name,
            "description": "two models that take turns",
            "task": "binary",
            "owner": "benchmarks",
            "sources": {"rows": {"uri": "rows/*.parquet"}},
            "labels": {"column": "label", "keys": ["row"]},
            "features": {"service": model.name},
            "training": {"data": {"start": "2026-01-01T00:00:00Z", "holdout": "7d"}},
            "evaluation": {"gates": [{"metric": "log_loss", "max": 1}]},
            "approvers": {"users": ["somebody"]},
            "environments": {"staging": connections, "production": connections},
            "delivery": {"strategy": "canary", "steps": [100 * _HALF]},
        }
    )


class Asking(threading.Thread):
    """A client that asks without a pause, each time by another key; when it was last answered by whom."""

    def __init__(self, url: str, token: str, model: Model) -> None:
        super().__init__(daemon=True)
        self._client = ModelClient(url, token)
        self._name = model.name
        width = len(model.columns)
        self._tensor = {"name": "rows", "datatype": "FP32", "shape": [1, width], "data": [0.5] * width}
        self._over = threading.Event()
        self.last: dict[str, float] = {}
        self.failed = 0

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            body = {"inputs": [self._tensor], "parameters": {"assignment_key": f"{self.ident}-{number}"}}
            try:
                version = self._client.post(self._name, body)["model_version"]
            except Exception:  # noqa: BLE001 - whatever it is, it must not be
                self.failed += 1
                continue
            self.last[version] = time.perf_counter()

    def end(self) -> None:
        self._over.set()
        self.join()
        self._client.close()


def main() -> int:
    """Measure, print, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(description="How long it takes to take a release back.")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of what was seen")
    options = parser.parse_args()
    model = packed()
    # An endpoint of its own: the one that the server begins with has a release that nobody decided.
    first, second = (dataclasses.replace(one, name="taken_back") for one in (model, packed(seed=1)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server ends with it
    server_core, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    with tempfile.TemporaryDirectory(prefix="back-") as temporary:
        server = Server(model, server_core, Path(temporary), None, sys.executable)
        try:
            server.wait()
            seconds, failed = _measure(server, first, second, Path(temporary), options.times)
        finally:
            server.process.stop()
    table(
        ("a canary with half of the traffic, taken back", "seen", "limit"),
        (
            ("times", len(seconds), ""),
            ("s from the decision to its last answer, median", f"{statistics.median(seconds):.2f}", ""),
            ("the longest", f"{max(seconds):.2f}", f"{LIMIT:g}"),
            ("requests that failed", failed, 0),
        ),
    )
    options.results.mkdir(parents=True, exist_ok=True)
    seen = {"seconds": [round(one, 3) for one in seconds], "failed": failed}
    (options.results / "going_back.json").write_text(json.dumps(seen, indent=1) + "\n")
    return int(failed > 0 or max(seconds) > LIMIT)


def _measure(
    server: Server, first: Model, second: Model, folder: Path, times: int
) -> tuple[list[float], int]:
    host, port = server.address
    url, token = f"http://{host}:{port}", server.headers["Authorization"].removeprefix("Bearer ")
    database = Database(f"sqlite:///{folder}/lifecycle.db")
    database.migrate()
    clock = Clock(now=lambda: datetime.now(UTC))
    champion, challenger = first.variant("1"), second.variant("2")
    server.lake.write_bytes(challenger.model_path, second.data)
    with ModelClient(url, token) as client:
        target = ModelServers(PRODUCTION, server.lake, [client])
        endpoint = Endpoint(spec_of(first), target, Releases(database), clock)
        endpoint.carry_on(_begin(endpoint, champion, (champion,)))
        asking = [Asking(url, token, first) for _ in range(CLIENTS)]
        for one in asking:
            one.start()
        seconds = []
        for number in range(times):
            variants = Step("canary", _HALF).variants(challenger, champion)
            release = endpoint.carry_on(_begin(endpoint, challenger, variants, f"{number:064x}"))
            time.sleep(0.3)  # some traffic
            began = time.perf_counter()
            endpoint.take_back(release, "measured")
            time.sleep(0.5)  # were it still to answer anybody, it would now
            seconds.append(max(one.last["2"] for one in asking) - began)
        for one in asking:
            one.end()
    return seconds, sum(one.failed for one in asking)


def _begin(
    endpoint: Endpoint, variant: Variant, variants: tuple[Variant, ...], evidence: str = "0" * 64
) -> Release:
    environment, name = endpoint.where
    live: Any = endpoint.releases.live(environment, name)
    deployment = Deployment(
        model=name,
        environment=environment,
        endpoint=name,
        version=variant.version,
        model_digest=variant.model_digest,
        evidence_digest=evidence,
        strategy="canary",
        variants=variants,
        expected=None if live is None else live.revision,
    )
    return endpoint.releases.begin(deployment, endpoint.clock.now())


if __name__ == "__main__":
    sys.exit(main())
