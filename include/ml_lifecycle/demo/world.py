"""The world around the model: raw files arrive day by day, and clients ask the production server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.airflow import AirflowUser
from ml_lifecycle.demo.files import landing_folder
from ml_lifecycle.demo.flights import land
from ml_lifecycle.records import Interval, Run, Snapshot
from ml_lifecycle.serving.client import ModelClient
from ml_lifecycle.spec.folder import ModelFolder, load_folder

DAY = timedelta(days=1)
BATCH = 250
_JSON_TYPES = {"float": pl.Float64, "int": pl.Int64, "string": pl.String, "bool": pl.Boolean}


@dataclass(frozen=True)
class Access:
    """How to reach a stack from outside.

    :param mlflow_url: as a browser finds it
    :param passwords: Airflow users' passwords by name
    :param model_folder: the example's folder
    :param airflow_page: Airflow as a browser finds it, if that is another address than ``airflow_url``
    """

    airflow_url: str
    mlflow_url: str
    passwords: dict[str, str]
    model_folder: Path
    lake: str
    production_lake: str
    production_url: str
    production_token: str
    production_online_store: str
    airflow_page: str | None = None

    def user(self, name: str) -> AirflowUser:
        """Log in."""
        return AirflowUser(self.airflow_url, name, self.passwords[name])


class World:
    """Time passes in steps of a day; every step uses what was known at its beginning, no more."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._model: ModelFolder = load_folder(access.model_folder)
        self._lake = Lake(access.lake)
        # A day more: the schedule of the first day is published the day before.
        self._landed = self._model.spec.training.data.start - DAY

    def land_until(self, moment: datetime) -> None:
        """Let the files arrive that an airline and a weather service had sent by ``moment``."""
        backlog = moment - self._landed
        with landing_folder(self._lake) as folder:
            land(folder, self._landed, moment, every=max(DAY, backlog / 10))
        self._landed = moment

    def serve(self, window: Interval) -> int:
        """Ask the production server about every flight of the window, a day at a time; returns how many.

        Each step first brings the online store up to the step's beginning, as the score DAG does on its
        schedule; the steps are too many to be runs of their own here.
        """
        from ml_lifecycle.stages.online_features import materialise

        rows = 0
        with ModelClient(self._access.production_url, self._access.production_token) as client:
            for step in _steps(window):
                self.land_until(step.start)
                snapshot = self._ingest(step.start)
                store = self._access.production_online_store
                materialise(self._model, self._lake, snapshot, store)
                rows += self._ask(client, snapshot, step)
        # The last day's flights land after the window's end; their labels arrive with the next step.
        self.land_until(window.end)
        return rows

    def _ask(self, client: ModelClient, snapshot: Snapshot, step: Interval) -> int:
        from ml_lifecycle.stages.scoring_rows import entity_rows

        flights = entity_rows(self._model, self._lake, snapshot, step)
        keys = [name for name in flights.columns if name != "event_timestamp"]
        for batch in flights.iter_slices(BATCH):
            client.infer_entities(
                self._model.spec.endpoint,
                {key: batch[key].to_list() for key in keys},
                event_time=batch["event_timestamp"].to_list(),
            )
        return flights.height

    def skill_of(self, version: str, window: Interval) -> float:
        """The skill another version would have had on the rows that the window's monitoring measures."""
        from ml_lifecycle.adapters.onnx import as_served, feeds, open_session, predict
        from ml_lifecycle.adapters.predictions import PredictionWindow
        from ml_lifecycle.delivery.lineage import read_training, read_version
        from ml_lifecycle.metrics import skill
        from ml_lifecycle.stages.features import read_labels
        from ml_lifecycle.stages.monitor_quality import as_answers, join_labels, known_labels

        spec = self._model.spec
        training = read_training(self._lake, read_version(self._lake, spec.name, version).training_path)
        mature = Interval(window.start, window.end - spec.labels.delay)
        log = PredictionWindow(Lake(self._access.production_lake), spec.endpoint, mature)
        rows = log.read(["event_time", "entity_keys", "features", "outputs"])
        types = {column.name: _JSON_TYPES[column.type] for column in training.columns}
        logged = rows.select(pl.col("features").str.json_decode(pl.Struct(types))).unnest("features")
        session = open_session(self._lake.read_bytes(training.model_path, training.model_digest))
        scores = predict(session, feeds(as_served(logged, training.columns))).outputs[:, -1]
        labels = read_labels(self._model, self._lake, self._ingest(window.end))
        truth = known_labels(spec.labels, labels, mature, window.end)
        joined = join_labels(spec.labels, rows.with_columns(score=pl.Series(scores)), truth)
        return skill(as_answers(spec.task, training.classes, joined, spec.evaluation.threshold))

    def _ingest(self, moment: datetime) -> Snapshot:
        from ml_lifecycle.stages.ingest import ingest

        run = Run(self._model.spec.name, "demo", moment, Interval(moment - DAY, moment))
        return ingest(self._model.spec, self._lake, run, contracts=self._model.contracts)


def _steps(window: Interval) -> Iterator[Interval]:
    moment = window.start
    while moment < window.end:
        yield Interval(moment, min(moment + DAY, window.end))
        moment += DAY
