"""The small model's life as plain calls of the stages, each as its operator makes it, in one folder.

What a stage returned is kept in ``xcom/``, as Airflow keeps it between tasks. Every run after the first has
a champion, a validated snapshot and a day of traffic behind it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from delivery_kit import Server, confirm_staging
from small_model import DAY, START, land, readings, write_model

from ml_lifecycle.adapters import mlflow
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.delivery.checks import Clock
from ml_lifecycle.delivery.lineage import find_champion, read_training, trained_as
from ml_lifecycle.delivery.release_history import PRODUCTION
from ml_lifecycle.delivery.targets import ModelServers
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import RequestKey, decided_versions
from ml_lifecycle.ledger.windows import record_window
from ml_lifecycle.records import (
    Approval,
    Evaluation,
    Evidence,
    Interval,
    ModelVersion,
    Record,
    Release,
    Run,
    Snapshot,
    Training,
    TrainingSet,
    from_json,
    to_json,
)
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages import (
    approve,
    compact,
    deploy,
    evaluate,
    features,
    ingest,
    monitor,
    monitor_online,
    online_features,
    register,
    replay_features,
    score,
    score_partitions,
    train,
    validate,
)
from ml_lifecycle.training import pod, usage
from ml_lifecycle.training.job import LAKE_OPTIONS_VARIABLE, Attempt

FIRST_DAYS = 7
R = TypeVar("R", bound=Record)


class Place:
    """A folder with everything of one model, and the number of a run: the first has the first seven days.

    :param run: each later run has one day more
    :param lakes: the shared lake and production's, if they are not in the folder
    :param server_environment: variables by which a model server reaches its lake
    """

    ENVIRONMENTS = ("staging", "production")

    def __init__(
        self,
        root: Path,
        run: int,
        lakes: tuple[Lake, Lake] | None = None,
        server_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.run = run
        self.lake, self.production = lakes or (Lake(str(root / "lake")), Lake(str(root / "production")))
        self.server_environment = server_environment or {}
        self.database = Database(f"sqlite:///{root}/lifecycle.db")
        self.mlflow = f"sqlite:///{root}/mlflow.db"
        self.online_stores = {name: f"sqlite:///{root}/online_{name}.db" for name in self.ENVIRONMENTS}
        self.folder = load_folder(root / "dags" / "models" / "small")
        self.spec = self.folder.spec

    @property
    def as_of(self) -> datetime:
        return START + (FIRST_DAYS + self.run - 1) * DAY

    @property
    def now(self) -> datetime:
        """The wall clock, ten minutes later."""
        return self.as_of + timedelta(minutes=10)

    def record(self, cls: type[R], stage: str) -> R:
        """What a stage of this run returned."""
        return from_json(cls, json.loads(self._kept(stage).read_text()))

    def keep(self, stage: str, value: dict[str, Any]) -> None:
        self._kept(stage).parent.mkdir(parents=True, exist_ok=True)
        self._kept(stage).write_text(json.dumps(value))

    def _kept(self, stage: str) -> Path:
        return self.root / "xcom" / str(self.run) / f"{stage}.json"


def run_stage(root: Path, run: int, stage: str) -> dict[str, Any]:
    """One stage; returns its record as a task would."""
    return to_json(STAGES[stage](Place(root, run)))


def _ingest(place: Place) -> Snapshot:
    run_id, own = f"run_{place.run}", Interval(START, place.as_of)
    interval = claim_interval(
        place.database, "small__train", run_id, own, whole=False, succeeded=lambda earlier: True
    )
    run = Run("small", run_id, place.as_of, interval, "carol")
    return ingest.ingest(place.spec, place.lake, run, contracts=place.folder.contracts)


def _validate(place: Place) -> Record:
    snapshot = place.record(Snapshot, "ingest")
    previous = validate.latest_validated(place.lake, "small", place.as_of)
    found = validate.validate(place.spec, place.folder.contracts, place.lake, snapshot, previous)
    validate.raise_if_halted(found)
    return found


def _quarantine(place: Place) -> Record:
    """The same snapshot under a contract that it breaks."""
    contract = place.folder.contracts["readings"]
    strict = tuple(
        field.model_copy(update={"max": 0.9}) if field.name == "load" else field for field in contract.fields
    )
    contracts = {"readings": contract.model_copy(update={"fields": strict})}
    snapshot = place.record(Snapshot, "ingest")
    found = validate.validate(place.spec, contracts, place.lake, snapshot, None)
    validate.raise_if_halted(found)
    return found


def _training_set(place: Place) -> TrainingSet:
    return features.build_training_set(place.folder, place.lake, place.record(Snapshot, "ingest"))


def _train(place: Place) -> Training:
    job = train.plan_training(place.folder, place.lake, place.record(TrainingSet, "training_set"))
    attempt = Attempt(job, 1, "tests")
    usage.WRITE_SECONDS = float("inf")  # by the clock: on a slow machine the effects would be others
    options = {LAKE_OPTIONS_VARIABLE: json.dumps(place.lake.storage_options)}
    pod.main(attempt.environment(place.lake.url) | options)
    return train.log_training(place.mlflow, place.lake, train.collect_training(place.lake, attempt))


def _evaluate(place: Place) -> Evaluation:
    champion = find_champion(place.spec, place.lake, place.database)
    training, version = (champion.training, champion.version) if champion else (None, None)
    found = evaluate.evaluate(
        place.spec, place.lake, place.record(Training, "train"), training, version, place.now
    )
    evaluate.raise_if_failed(found)
    return found


def _register(place: Place) -> ModelVersion:
    champion = find_champion(place.spec, place.lake, place.database)
    return register.register(
        place.mlflow,
        place.spec,
        place.lake,
        place.record(Training, "train"),
        place.record(Evaluation, "evaluate"),
        champion.training.train_end if champion else None,
        decided_versions(place.database, "small"),
    )


def _request(place: Place) -> Evidence:
    version, evaluation = place.record(ModelVersion, "register"), place.record(Evaluation, "evaluate")
    evidence = approve.make_evidence(
        place.lake, version, evaluation, read_training(place.lake, version.training_path), _live(place)
    )
    assigned = approve.assigned_approvers(place.spec, version, None)
    approve.request_approval(Ledger(place.database), evidence, _key(version), assigned, place.now)
    return evidence


def _decide(place: Place) -> Approval:
    key = _key(place.record(ModelVersion, "register"))
    evidence = place.record(Evidence, "request")
    return approve.record_decision(
        Ledger(place.database), evidence, key, "approve", "alice", place.now, champion=_live(place)
    )


def _prepare(place: Place) -> Record:
    return online_features.prepare_online(
        place.folder, place.lake, place.record(Evidence, "request"), place.online_stores["staging"]
    )


def _materialise(place: Place) -> Record:
    snapshot = place.record(Snapshot, "ingest")
    return online_features.materialise(place.folder, place.lake, snapshot, place.online_stores["production"])


def _score(place: Place) -> Record:
    snapshot, champion = (
        place.record(Snapshot, "ingest"),
        find_champion(place.spec, place.lake, place.database),
    )
    assert champion is not None
    plan = score_partitions.plan_scoring(
        place.folder, place.lake, snapshot, champion.training.path, champion.version
    )
    with score_partitions.planned_partitions(place.folder, place.lake, plan) as partitions:
        return score.score(place.spec, place.lake, plan.run, champion.training, champion.version, partitions)


def _monitor(place: Place) -> Record:
    snapshot = place.record(Snapshot, "ingest")
    window = monitor.window_of(snapshot.run.interval, place.spec.monitoring.window)
    # Two weeks late: by then even the few parts of a quiet day are compacted.
    compact.compact(place.production, place.spec.endpoint, place.now + 14 * DAY)
    found = monitor.monitor(
        place.spec,
        place.lake,
        place.production,
        replace(snapshot.run, interval=window),
        lambda digest: trained_as(digest, place.spec, place.lake, place.database, PRODUCTION),
        features.read_labels(place.folder, place.lake, snapshot),
        place.now,
        online=monitor_online.look_at(
            place.folder, place.lake, place.online_stores["production"], place.as_of
        ),
        offline=replay_features.Offline(place.folder, snapshot),
    )
    record_window(place.database, "small", place.spec.endpoint, found.window, to_json(found), place.now)
    return found


def _mark_champion(place: Place) -> Release:
    live = _live(place)
    assert live is not None
    mlflow.set_alias(place.mlflow, "small", "champion", live.version)
    return live


STAGES: Mapping[str, Callable[[Place], Record]] = {
    "ingest": _ingest,
    "validate": _validate,
    "quarantine": _quarantine,
    "materialise": _materialise,
    "score": _score,
    "monitor": _monitor,
    "training_set": _training_set,
    "train": _train,
    "evaluate": _evaluate,
    "register": _register,
    "request": _request,
    "decide": _decide,
    "prepare": _prepare,
    "mark_champion": _mark_champion,
}
"""In the order of a run, all but the deployment."""

FIRST_RUN = (
    "ingest",
    "validate",
    "training_set",
    "train",
    "evaluate",
    "register",
    "request",
    "decide",
)
"""The stages of a run before which there is no champion."""


def begin(root: Path) -> None:
    """An empty lake, empty databases, and the data of the first run and of the second."""
    from mlflow import MlflowClient

    # Beside the folder: copied, the files would be others to ingest.
    source = root.with_name("source")
    land(Lake(str(source)), days=FIRST_DAYS + 1)
    write_model(
        root / "dags",
        sources={"readings": {"uri": f"{source}/landing/readings/*.parquet"}},
        scoring={"partition_rows": 1500},
    )
    place = Place(root, 1)
    place.database.migrate()
    MlflowClient(tracking_uri=place.mlflow).search_registered_models()  # makes the tables


def go_live(root: Path) -> None:
    """The first run's version is champion and answers a day of traffic; then the folder's code changes."""
    place = Place(root, 1)
    serve_a_day(place)
    code = place.folder.path / "features.py"
    code.write_text(f"{code.read_text()}\n\n# Another version of it.\n")


def serve_a_day(place: Place) -> None:
    """The run's version becomes champion and answers a day of traffic."""
    evidence = place.record(Evidence, "request")
    online_features.prepare_online(place.folder, place.lake, evidence, place.online_stores["production"])
    confirm_staging(place.database, evidence)
    server = Server(place.production, place.server_environment)
    try:
        with server.client() as client:
            deploy.deploy(
                place.spec,
                ModelServers(PRODUCTION, place.production, (client,)),
                place.lake,
                place.database,
                evidence,
                place.record(ModelVersion, "register"),
                Clock(now=lambda: place.now),
            )
            asked = readings(place.as_of, place.as_of + DAY)
            client.infer(
                place.spec.endpoint,
                {name: asked[name].to_list() for name in ("load", "mode")},
                place.record(Training, "train").columns,
                event_time=asked["read_at"].to_list(),
                entities={"machine_id": asked["machine_id"].to_list()},
            )
    finally:
        server.stop(signal.SIGTERM)  # writes its prediction log


def registry(root: Path) -> dict[str, Any]:
    """What MLflow shows of the model: its runs, versions and aliases, without their random ids and times."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=Place(root, 1).mlflow)
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    versions = client.search_model_versions("name = 'small'")
    models = client.search_registered_models("name = 'small'")
    return {
        "runs": sorted(
            (
                run.data.tags[f"{mlflow.TAG}.training_digest"],
                run.info.status,
                sorted(run.data.params.items()),
                sorted(name for name in run.data.metrics),
                _artifacts(run.info.artifact_uri) if run.info.status == "FINISHED" else {},
            )
            for run in runs
        ),
        "versions": sorted((int(version.version), _lineage(version.tags)) for version in versions),
        "aliases": {alias: int(version) for model in models for alias, version in model.aliases.items()},
    }


def _lineage(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(tags.items()) if name.startswith(mlflow.TAG)}


def _artifacts(uri: str) -> dict[str, str]:
    """Name → digest; of files that hold a random id or a time, that they are there."""
    folder = Path(uri.removeprefix("file://"))
    return {
        str(path.relative_to(folder)): "" if path.name == "MLmodel" else sha256(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _live(place: Place) -> Release | None:
    champion = find_champion(place.spec, place.lake, place.database)
    return champion.release if champion else None


def _key(version: ModelVersion) -> RequestKey:
    return RequestKey("small__promote", f"candidate__v{version.version}", "approve")
