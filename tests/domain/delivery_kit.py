"""What the tests of ledger, approval and delivery start from: a spec, and records of one small model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.records import (
    ColumnSpec,
    Evaluation,
    Evidence,
    GateResult,
    Interval,
    ModelVersion,
    Release,
    Run,
    Training,
    TrainingSet,
    digest_of,
    to_json,
)
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.approve import make_evidence, record_decision, request_approval

TOKEN = "a token of the tests"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLUMNS = (ColumnSpec("distance", "float", nullable=True), ColumnSpec("hour", "int"))
RUN = Run("delays", "manual__1", NOW, Interval(NOW - timedelta(days=1), NOW), "ann")


def make_spec(**changes: Any) -> ModelSpec:
    environment = {"server": "server", "lake": "lake", "online_store": "store"}
    return ModelSpec.model_validate(
        {
            "spec": 1,
            "name": "delays",
            "description": "minutes of delay",
            "task": "regression",
            "owner": "team",
            "sources": {"flights": {"uri": "flights/*.parquet"}},
            "labels": {"column": "delay", "keys": ["flight"]},
            "features": {"service": "delays"},
            "training": {"data": {"start": "2026-01-01T00:00:00Z", "holdout": "7d"}},
            "evaluation": {"gates": [{"metric": "rmse", "max": 10}]},
            "approvers": {"users": ["ann", "ben", "cem"]},
            "environments": {"staging": environment, "production": environment},
            **changes,
        }
    )


@dataclass(frozen=True)
class Candidate:
    """A registered version, and what its evidence is made of."""

    version: ModelVersion
    evaluation: Evaluation
    training: Training

    def evidence(self, lake: Lake, champion: Release | None = None) -> Evidence:
        evaluation = replace(
            self.evaluation,
            champion_version=champion.version if champion else None,
            champion_digest=champion.model_digest if champion else None,
        )
        lake.write_json(f"{self.evaluation.path}/manifest.json", to_json(evaluation))
        return make_evidence(lake, self.version, evaluation, self.training, champion)


def make_candidate(lake: Lake, number: int, model: bytes, golden: dict[str, Any] | None = None) -> Candidate:
    """Version ``number`` of the model, with its manifests in the lake."""
    digest = digest_of(number)
    folders = {kind: f"{kind}/delays/{digest}" for kind in ("training_sets", "training", "evaluations")}
    training_set = TrainingSet(
        run=RUN,
        digest=digest,
        path=folders["training_sets"],
        snapshot_digest=digest,
        code_digest=digest,
        train_path="train.parquet",
        holdout_path="holdout.parquet",
        train_rows=10,
        holdout_rows=1000,
        train_end=NOW - timedelta(days=8),
        holdout=Interval(NOW - timedelta(days=7), NOW),
        columns=COLUMNS,
        label_column="delay",
        entity_keys=("flight",),
    )
    training = Training(
        run=RUN,
        digest=digest,
        path=folders["training"],
        attempt=1,
        training_set_path=f"{folders['training_sets']}/manifest.json",
        snapshot_digest=digest,
        code_digest=digest,
        spec_digest=digest,
        train_end=training_set.train_end,
        model_path=f"{folders['training']}/model.onnx",
        model_digest=sha256(model),
        columns=COLUMNS,
        classes=(),
        reference_path="reference.parquet",
        profile_path="profile.json",
        metrics_path="metrics.json",
        parameters={},
        metrics={},
        packages={},
        resources={},
    )
    evaluation = Evaluation(
        run=RUN,
        digest=digest,
        path=folders["evaluations"],
        training_path=training.path,
        model_digest=training.model_digest,
        passed=True,
        gates=(GateResult("rmse", True, "at most 10", 7.25, 8.5),),
        metrics={"rmse": 7.25},
        champion_metrics={},
        champion_version=None,
        champion_digest=None,
        golden_path=f"{folders['evaluations']}/golden.json",
        report_path="report.json",
        holdout_rows=1000,
    )
    version = ModelVersion(
        run=RUN,
        name="delays",
        version=str(number),
        role="candidate",
        model_digest=training.model_digest,
        training_path=training.path,
        evaluation_path=evaluation.path,
        mlflow_run_id="run",
        requested_by="ann",
    )
    lake.write_bytes(training.model_path, model)
    lake.write_json(f"{training_set.path}/manifest.json", to_json(training_set))
    lake.write_json(f"{training.path}/manifest.json", to_json(training))
    lake.write_json(evaluation.golden_path, golden or {})
    return Candidate(version, evaluation, training)


def approve(
    database: Database, evidence: Evidence, champion: Release | None, run_id: str = "promote"
) -> None:
    """Have staging confirm it, ask for approval, and have ``ben`` give it."""
    confirm_staging(database, evidence)
    ledger, key = Ledger(database), RequestKey("delays__promote", f"{run_id}__{evidence.digest}", "approve")
    request_approval(ledger, evidence, key, ("ben", "cem"), NOW)
    record_decision(ledger, evidence, key, "approve", "ben", NOW, champion=champion)


def confirm_staging(database: Database, evidence: Evidence) -> Release:
    """A release in staging as a deployment leaves it, without a server."""
    live = Releases(database).live("staging", evidence.model)
    if live is not None and live.evidence_digest == evidence.digest:
        return live
    return Releases(database).confirmed(begin_staging(database, evidence), NOW)


def begin_staging(database: Database, evidence: Evidence) -> Release:
    """A release in staging that is under way."""
    live = Releases(database).live("staging", evidence.model)
    return Releases(database).begin(
        Deployment(
            model=evidence.model,
            environment="staging",
            endpoint=evidence.model,
            version=evidence.version,
            model_digest=evidence.model_digest,
            evidence_digest=evidence.digest,
            strategy="blue_green",
            variants=(served_variant(evidence),),
            expected=None if live is None else live.revision,
        ),
        NOW,
    )


def served_variant(evidence: Evidence) -> Variant:
    """What a route has of a version whose bytes nobody reads."""
    digest = evidence.model_digest
    return Variant("champion", evidence.version, f"models/{digest}.onnx", digest, "regression", COLUMNS, ())


def make_model(slope: float) -> bytes:
    """An ONNX file that predicts ``slope * distance + hour``."""
    from onnx import helper

    return make_scaled([helper.make_node("Constant", [], ["slope"], value_float=float(slope))])


def make_scaled(slope: Sequence[Any]) -> bytes:
    """An ONNX file that predicts ``slope * distance + hour``, with nodes that make ``slope``."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            *slope,
            helper.make_node("Mul", ["distance", "slope"], ["scaled"]),
            helper.make_node("Cast", ["hour"], ["hour_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["scaled", "hour_float"], ["prediction"]),
        ],
        "delays",
        [
            helper.make_tensor_value_info("distance", TensorProto.FLOAT, [None, 1]),
            helper.make_tensor_value_info("hour", TensorProto.INT64, [None, 1]),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def make_golden(slope: float, absolute: float = 1e-4) -> dict[str, Any]:
    """What a server with :func:`make_model`'s file answers to three rows."""
    distances, hours = [100.0, 250.5, -3.0], [7, 12, 23]
    return {
        "request": {
            "inputs": [
                {"name": "distance", "datatype": "FP32", "shape": [3], "data": distances},
                {"name": "hour", "datatype": "INT64", "shape": [3], "data": hours},
            ]
        },
        "expected": {"prediction": [slope * d + h for d, h in zip(distances, hours, strict=True)]},
        "absolute": absolute,
    }


class Server:
    """``python -m ml_lifecycle.serving`` on a free port, as a process of its own.

    :param environment: variables on top of this process's own, e.g. those that lead to an object store
    """

    def __init__(self, lake: Lake, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "ml_lifecycle.serving", "--lake", lake.url]
        self._process = subprocess.Popen(
            [*command, "--environment", "production", "--poll-seconds", "0.02"],
            env={
                **os.environ,
                **(environment or {}),
                "ML_LIFECYCLE_SERVER_TOKEN": TOKEN,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert " on http://" in line, f"the server did not start: {line!r}"
        self.url = line.split(" on ")[1].split()[0]

    def client(self) -> ModelClient:
        return ModelClient(self.url, TOKEN)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """On SIGTERM it writes its prediction log first."""
        assert self._process.stdout is not None
        self._process.send_signal(number)
        self._process.wait()
        self._process.stdout.close()
