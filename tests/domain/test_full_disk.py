"""No room at any stage that writes: it fails saying so, nothing that stood changes, and with room it goes on.

Lake, lifecycle database, MLflow and the online store lie together on a disk of a few megabytes, which is
filled before each stage: wholly, and then leaving room for some of what the stage writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_disk import SmallDisk, small_disk
from small_model import DAY, START, land, readings, write_model
from standing import Standing
from training_world import attempt_at, collect

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import SCHEMA
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.records import Interval, Run
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.approve import make_evidence, record_decision, request_approval
from ml_lifecycle.stages.compact import compact
from ml_lifecycle.stages.evaluate import evaluate
from ml_lifecycle.stages.features import build_training_set, read_labels
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.monitor import monitor
from ml_lifecycle.stages.online_features import materialise
from ml_lifecycle.stages.register import register
from ml_lifecycle.stages.replay_features import Offline
from ml_lifecycle.stages.score import score_plan
from ml_lifecycle.stages.score_partitions import plan_scoring
from ml_lifecycle.stages.train import log_training, plan_training
from ml_lifecycle.stages.validate import validate
from ml_lifecycle.training.pod import run_attempt

NOW = START + 7 * DAY
RUN = Run("small", "run_1", NOW, Interval(START, NOW), "carol")


@dataclass
class Life:
    """The small model on a small disk, and what its stages returned so far."""

    root: Path
    disk: SmallDisk
    records: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lake = Lake(str(self.root / "disk" / "lake"))
        self.database = Database(f"sqlite:///{self.root}/disk/lifecycle.db")
        self.mlflow = f"sqlite:///{self.root}/disk/mlflow.db"
        self.online_store = f"sqlite:///{self.root}/disk/online.db"
        self.folder = load_folder(self.root / "dags" / "models" / "small")

    def standing(self) -> Standing:
        return Standing.of(self.lake, self.database, self.mlflow)


def _train(life: Life) -> Any:
    job = plan_training(life.folder, life.lake, life.records["training set"])
    run_attempt(life.lake, attempt_at(job), life.root / f"unpacked-{len(list(life.root.glob('unpacked-*')))}")
    return collect(life.lake, job)


def _request(life: Life) -> Any:
    evidence = make_evidence(
        life.lake, life.records["register"], life.records["evaluate"], life.records["log"], None
    )
    request_approval(Ledger(life.database), evidence, KEY, ("alice",), NOW)
    return evidence


def _monitor(life: Life) -> Any:
    folder, snapshot, training = life.folder, life.records["ingest"], life.records["log"]
    run = replace(RUN, interval=Interval(NOW - DAY, NOW))
    labels = read_labels(folder, life.lake, snapshot)
    return monitor(
        folder.spec,
        life.lake,
        life.lake,
        run,
        lambda digest: training,
        labels,
        NOW,
        offline=Offline(folder, snapshot),
    )


def log_a_day(lake: Lake) -> None:
    """What an endpoint has answered by the end of the last day, as its server logs it."""
    rows = readings(NOW - DAY, NOW)
    asked = [json.dumps(row) for row in rows.select("load", "mode").to_dicts()]
    logged = pl.DataFrame(
        {
            "prediction_id": [f"p{number}" for number in range(rows.height)],
            "row": [0] * rows.height,
            "received_at": rows["read_at"] + timedelta(minutes=1),
            "event_time": rows["read_at"] + timedelta(minutes=1),
            "entity_keys": [json.dumps({"machine_id": one}) for one in rows["machine_id"]],
            "endpoint": ["small"] * rows.height,
            "route_revision": [1] * rows.height,
            "variant": ["champion"] * rows.height,
            "returned": [True] * rows.height,
            "model_version": ["1"] * rows.height,
            "model_digest": ["of version 1"] * rows.height,
            "features": asked,
            "features_from": ["request"] * rows.height,
            "outputs": [
                json.dumps({"label": one > 0.5, "probabilities": [1 - one, one]}) for one in rows["load"]
            ],
            "score": rows["load"],
            "latency_ms": [1.0] * rows.height,
            "status": [200] * rows.height,
        },
        schema=SCHEMA,
    )
    write_parquet(lake, f"predictions/small/{NOW - DAY:%Y-%m-%d}/part-1.parquet", logged)


KEY = RequestKey("small__promote", "candidate__v1", "approve")
STAGES: dict[str, Callable[[Life], Any]] = {
    "ingest": lambda life: ingest(life.folder.spec, life.lake, RUN, contracts=life.folder.contracts),
    "validate": lambda life: validate(
        life.folder.spec, life.folder.contracts, life.lake, life.records["ingest"], None
    ),
    "training set": lambda life: build_training_set(life.folder, life.lake, life.records["ingest"]),
    "train": _train,
    "log": lambda life: log_training(life.mlflow, life.lake, life.records["train"]),
    "evaluate": lambda life: evaluate(life.folder.spec, life.lake, life.records["log"], None, None, NOW),
    "register": lambda life: register(
        life.mlflow, life.folder.spec, life.lake, life.records["log"], life.records["evaluate"], None
    ),
    "request": _request,
    "decide": lambda life: record_decision(
        Ledger(life.database), life.records["request"], KEY, "approve", "alice", NOW, champion=None
    ),
    "materialise": lambda life: materialise(
        life.folder, life.lake, life.records["ingest"], life.online_store
    ),
    "plan scoring": lambda life: plan_scoring(
        life.folder, life.lake, life.records["ingest"], life.records["log"].path, "1"
    ),
    "score": lambda life: score_plan(
        life.folder, life.lake, life.records["plan scoring"], life.records["log"]
    ),
    "compact": lambda life: compact(life.lake, "small", NOW + 30 * DAY),
    "monitor": _monitor,
}


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with small_disk(tmp_path / "disk", 64 * 2**20) as disk:
        write_model(
            tmp_path / "dags", sources={"readings": {"uri": f"{tmp_path}/landing/readings/*.parquet"}}
        )
        land(Lake(str(tmp_path)), days=7)
        life = Life(tmp_path, disk)
        (tmp_path / "disk" / "lake").mkdir()
        log_a_day(life.lake)
        life.database.migrate()
        life.standing()  # MLflow makes its tables
        yield life


def refused(life: Life, stage: str) -> Exception | None:
    """What the stage raises; None if it found room enough."""
    try:
        life.records[stage] = STAGES[stage](life)
    except (LifecycleError, OSError) as error:
        return error
    return None


@pytest.mark.proof
def test_every_stage_survives_a_full_disk(life: Life) -> None:
    for stage in STAGES:
        before, tried = life.standing(), 0
        for room in (0, 4096, 16_384, 65_536, 262_144):
            life.disk.fill(leave=room)
            said = refused(life, stage)
            life.disk.free()
            if said is None:
                break
            tried += 1
            # Airflow tries again what is no final error of ours.
            assert getattr(said, "retryable", True), repr(said)
            assert re.search("No space left|is full|room", str(said)), repr(said)
            before.check(life.standing(), "features")  # whole, whatever comes of the training set
        if stage not in life.records:
            life.records[stage] = STAGES[stage](life)
        assert tried, f"{stage} writes nothing"
        assert STAGES[stage](life) is not None
    Ledger(life.database).verify([])
