"""The example's stages as plain function calls, without Airflow: what the benchmarks measure.

    python benchmarks/stages.py ROOT STAGE [AS_OF]

runs one stage on what earlier ones left in ROOT and prints seconds and peak memory as JSON. All state lies
in ROOT: the lake, the lifecycle database, MLflow's database and the online stores.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import MODEL, YEAR_END, YEAR_START

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import (
    Approval,
    Evaluation,
    Evidence,
    Interval,
    ModelVersion,
    Monitoring,
    Record,
    Run,
    Scoring,
    Snapshot,
    Training,
    TrainingSet,
    Validation,
    from_json,
    to_json,
)
from ml_lifecycle.spec.folder import ModelFolder, load_folder

if TYPE_CHECKING:
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.ledger.requests import RequestKey
    from ml_lifecycle.training.job import Attempt

KINDS: dict[str, type[Record]] = {
    "ingest": Snapshot,
    "validate": Validation,
    "features": TrainingSet,
    "train": Training,
    "evaluate": Evaluation,
    "register": ModelVersion,
    "evidence": Evidence,
    "approve": Approval,
    "monitor": Monitoring,
    "score": Scoring,
}


@dataclass(frozen=True)
class Plain:
    """One model's stages on the state in ``root``.

    :param interval: the run's; its end is ``as_of``
    :param servers: environment → URL of the model server that follows its lake, and the servers' token
    """

    root: Path
    interval: Interval
    servers: dict[str, str] | None = None
    token: str = ""

    @cached_property
    def folder(self) -> ModelFolder:
        return load_folder(MODEL)

    @cached_property
    def lake(self) -> Lake:
        return Lake(str(self.root / "lake"))

    @cached_property
    def database(self) -> Database:
        from ml_lifecycle.ledger.database import Database

        return Database(f"sqlite:///{self.root / 'lifecycle.db'}")

    @property
    def run(self) -> Run:
        return Run(self.folder.spec.name, "benchmark", self.interval.end, self.interval)

    @property
    def mlflow(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def online_store(self, environment: str) -> str:
        return f"sqlite:///{self.root / environment / 'online_store.db'}"

    def environment_lake(self, environment: str) -> Lake:
        return Lake(str(self.root / environment / "lake"))

    def load(self, stage: str) -> Any:
        """What a stage returned, in this process or in an earlier one."""
        return from_json(KINDS[stage], json.loads((self.root / f"{stage}.json").read_text()))

    def call(self, stage: str) -> Any:
        """Run a stage and keep its record."""
        made = getattr(self, stage)()
        if stage in KINDS:
            (self.root / f"{stage}.json").write_text(json.dumps(to_json(made)))
        return made

    def ingest(self) -> Snapshot:
        from ml_lifecycle.stages.ingest import ingest

        return ingest(self.folder.spec, self.lake, self.run, contracts=self.folder.contracts)

    def validate(self) -> Validation:
        from ml_lifecycle.stages.validate import latest_validated, validate

        snapshot, spec = self.load("ingest"), self.folder.spec
        previous = latest_validated(self.lake, spec.name, self.interval.end)
        return validate(spec, self.folder.contracts, self.lake, snapshot, previous)

    def features(self) -> TrainingSet:
        from ml_lifecycle.stages.features import build_training_set

        return build_training_set(self.folder, self.lake, self.load("ingest"))

    def attempt(self) -> Attempt:
        from ml_lifecycle.stages.train import plan_training
        from ml_lifecycle.training.job import Attempt

        return Attempt(plan_training(self.folder, self.lake, self.load("features")), 1, "benchmark")

    def plan(self) -> None:
        """Write what the pod is given to ``pod.json``."""
        environment = self.attempt().environment(self.lake.url)
        (self.root / "pod.json").write_text(json.dumps(environment))

    def fit(self) -> None:
        """What the pod does, in this process."""
        from ml_lifecycle.training.pod import run_attempt

        run_attempt(self.lake, self.attempt(), self.root / "unpacked")

    def train(self) -> Training:
        """Collect what the pod, or :meth:`fit`, left behind."""
        from ml_lifecycle.stages.train import collect_training, log_training

        return log_training(self.mlflow, self.lake, collect_training(self.lake, self.attempt()))

    def evaluate(self) -> Evaluation:
        from ml_lifecycle.stages.evaluate import evaluate

        return evaluate(self.folder.spec, self.lake, self.load("train"), None, None, self.interval.end)

    def register(self) -> ModelVersion:
        from ml_lifecycle.stages.register import register

        training, evaluation = self.load("train"), self.load("evaluate")
        return register(self.mlflow, self.folder.spec, self.lake, training, evaluation, None)

    def evidence(self) -> Evidence:
        from ml_lifecycle.stages.approve import make_evidence

        return make_evidence(
            self.lake, self.load("register"), self.load("evaluate"), self.load("train"), None
        )

    def prepare_staging(self) -> Any:
        return self._prepare("staging")

    def prepare_production(self) -> Any:
        return self._prepare("production")

    def _prepare(self, environment: str) -> Any:
        from ml_lifecycle.stages.online_features import prepare_online

        return prepare_online(self.folder, self.lake, self.load("evidence"), self.online_store(environment))

    def deploy_staging(self) -> Any:
        return self._deploy("staging")

    def deploy_production(self) -> Any:
        return self._deploy("production")

    def _deploy(self, environment: str) -> Any:
        from ml_lifecycle.delivery.checks import Clock
        from ml_lifecycle.delivery.lineage import read_registry
        from ml_lifecycle.delivery.targets import ModelServers
        from ml_lifecycle.serving.client import ModelClient
        from ml_lifecycle.stages.deploy import deploy

        assert self.servers is not None
        evidence = self.load("evidence")
        with ModelClient(self.servers[environment], self.token) as client:
            return deploy(
                self.folder.spec,
                ModelServers(environment, self.environment_lake(environment), [client]),
                self.lake,
                self.database,
                evidence,
                self.load("register"),
                Clock(now=lambda: datetime.now(UTC)),
                registry=read_registry(self.lake, evidence),
                requested_by=None,
            )

    def approve(self) -> Approval:
        from ml_lifecycle.ledger.ledger import Ledger
        from ml_lifecycle.stages.approve import assigned_approvers, record_decision, request_approval

        evidence, ledger, key = self.load("evidence"), Ledger(self.database), self._key()
        assigned = assigned_approvers(self.folder.spec, self.load("register"), None)
        now = datetime.now(UTC)
        request_approval(ledger, evidence, key, assigned, now)
        return record_decision(ledger, evidence, key, "approve", assigned[0], now, champion=None)

    def _key(self) -> RequestKey:
        from ml_lifecycle.ledger.requests import RequestKey

        return RequestKey("plain", "plain", "approve")

    def mark_champion(self) -> None:
        from ml_lifecycle.adapters.mlflow import set_alias

        set_alias(self.mlflow, self.folder.spec.name, "champion", self.load("register").version)

    def monitor(self) -> Monitoring:
        from ml_lifecycle.stages.features import read_labels
        from ml_lifecycle.stages.monitor import monitor

        snapshot, training = self.load("ingest"), self.load("train")
        return monitor(
            self.folder.spec,
            self.lake,
            self.environment_lake("production"),
            snapshot.run,
            lambda digest: training,
            read_labels(self.folder, self.lake, snapshot),
            self.interval.end,
        )

    def materialise(self) -> Any:
        from ml_lifecycle.stages.online_features import materialise

        return materialise(self.folder, self.lake, self.load("ingest"), self.online_store("production"))

    def score(self) -> Scoring:
        from ml_lifecycle.stages.score import score
        from ml_lifecycle.stages.score_partitions import plan_scoring, planned_partitions

        training, version = self.load("train"), self.load("register").version
        plan = plan_scoring(self.folder, self.lake, self.load("ingest"), training.path, version)
        with planned_partitions(self.folder, self.lake, plan) as partitions:
            return score(self.folder.spec, self.lake, plan.run, training, version, partitions)

    def write_log(self) -> int:
        """A prediction log of every row of the interval, as a server that scored them would have kept it."""
        import polars as pl

        from ml_lifecycle.adapters.predictions import SCHEMA
        from ml_lifecycle.stages.scoring_rows import build_scoring_rows

        spec, training = self.folder.spec, self.load("train")
        rows, columns = build_scoring_rows(self.folder, self.lake, self.load("ingest"), self.interval)
        parts = [path for path in self.lake.list(self.load("score").output_path) if path.endswith(".parquet")]
        scored = self.lake.scan(sorted(parts)).collect()
        features = [column.name for column in columns]
        log = rows.with_columns(scored.get_column("score")).select(
            prediction_id=pl.format("p{}", pl.int_range(pl.len())),
            row=pl.lit(0, pl.Int64),
            received_at=pl.col("event_timestamp"),
            event_time=pl.col("event_timestamp"),
            entity_keys=pl.struct(*spec.labels.keys).struct.json_encode(),
            endpoint=pl.lit(spec.endpoint),
            route_revision=pl.lit(1, pl.Int64),
            variant=pl.lit("champion"),
            returned=pl.lit(True),
            model_version=pl.lit("1"),
            model_digest=pl.lit(training.model_digest),
            features=pl.struct(*features).struct.json_encode(),
            features_from=pl.lit("online_store"),
            outputs=pl.struct(
                label=(pl.col("score") >= 0.5).cast(pl.Int64),
                probabilities=pl.concat_list(1 - pl.col("score"), "score"),
            ).struct.json_encode(),
            score="score",
            latency_ms=pl.lit(3.0),
            status=pl.lit(200, pl.Int64),
        )
        log = log.cast(pl.Schema(SCHEMA))
        folder = self.root / "production" / "lake" / "predictions" / spec.endpoint
        for (day,), part in log.group_by(pl.col("event_time").dt.date()):
            path = folder / str(day) / "part.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_parquet(path, metadata={"schema": "prediction_log/1"})
        return log.height


def year(root: Path) -> Plain:
    """The whole of 2013 as one interval."""
    return Plain(root, Interval(YEAR_START, YEAR_END))


def until(root: Path, moment: datetime, span: timedelta | None = None, **arguments: Any) -> Plain:
    """The interval that ends at ``moment``: from the year's start, or ``span`` long."""
    start = YEAR_START if span is None else moment - span
    return Plain(root, Interval(start, moment), **arguments)


def main() -> int:
    """Run one stage of the year."""
    root, stage = Path(sys.argv[1]), sys.argv[2]
    began = time.monotonic()
    year(root).call(stage)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("MEASURED " + json.dumps({"seconds": time.monotonic() - began, "peak": peak}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
