"""A model that answered from an online store: versions of it, by folders that changed, and their log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from small_model import DAY, START, land, readings, write_model

from ml_lifecycle.adapters.code_package import keep_package
from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import open_store, registry_bytes
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served, convert, decide, feeds, open_session, predict
from ml_lifecycle.adapters.predictions import SCHEMA, PredictionWindow
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import ColumnSpec, Interval, Run, Snapshot, Training
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.feature_tables import build_tables, features_of, local_tables
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.monitor_kept import KeptFindings
from ml_lifecycle.stages.monitor_replay import Replayed, replay
from ml_lifecycle.stages.online_features import materialise
from ml_lifecycle.stages.replay_features import Offline

SERVED = START + 2 * DAY  # up to which the online store was brought
NOW = SERVED + DAY
WINDOW = Interval(SERVED, NOW)
COLUMNS = (
    ColumnSpec("load", "float", nullable=True),
    ColumnSpec("mode", "string", nullable=True),
    ColumnSpec("temperature", "float", nullable=True),
    ColumnSpec("hour", "int"),
)
MACHINES = [f"m{number:02d}" for number in range(20)]
FEATURES = """
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Float64, Int64, String

machine = Entity(name="machine", join_keys=["machine_id"], value_type=ValueType.STRING)


def view(name, *fields):
    source = FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(name=name, entities=[machine], ttl=timedelta(days=3), schema=[*fields], source=source)


state = view("state", Field(name="load", dtype=Float64), Field(name="mode", dtype=String))
climate = view("climate", Field(name="temperature", dtype=Float32), Field(name="hour", dtype=Int64))
service = FeatureService(name="small", features=[state, climate])


def tables(sources):
    readings = sources["readings"].with_columns(pl.col("read_at").alias("event_timestamp"))
    hour = pl.col("read_at").dt.hour().cast(pl.Int64).alias("hour")
    known_at = (pl.col("read_at") + pl.duration(hours=1)).alias("known_at")
    return {
        "state": readings.select("machine_id", "event_timestamp", "load", "mode"),
        "climate": readings.select("machine_id", "event_timestamp", "temperature", hour),
        "labels": readings.select("machine_id", "event_timestamp", known_at, "failed"),
    }
"""


@cache
def make_model(version: int) -> bytes:
    """A model of load, mode, temperature and hour, as ONNX; each version another one."""
    rows = readings(START, START + 2 * DAY)
    rows = as_served(rows.with_columns(hour=pl.col("read_at").dt.hour().cast(pl.Int64)), COLUMNS).hstack(
        rows.select("failed")
    )
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["mode"]), ("passthrough", ["load", "temperature", "hour"]))
    estimator = make_pipeline(columns, HistGradientBoostingClassifier(random_state=1, max_iter=9 + version))
    frame = rows.select(one.name for one in COLUMNS).to_pandas()
    return convert(estimator.fit(frame, rows["failed"].to_numpy().astype(int)), COLUMNS, "binary")


@dataclass(frozen=True)
class Version:
    """A version, and how a server of it reads the online store."""

    number: int
    training: Training
    reader: OnlineReader


@dataclass
class World:
    """A lake with readings, an online store brought up to ``SERVED``, and versions that answered from it.

    :ivar versions: in the order of their releases; number and route revision are counted from 1
    """

    lake: Lake
    served: Lake
    folder: ModelFolder
    online_store: str
    versions: list[Version] = field(default_factory=list)
    parts: int = 0

    @property
    def training(self) -> Training:
        """The first version's."""
        return self.versions[0].training

    def snapshot(self, as_of: datetime = NOW) -> Snapshot:
        run = Run("small", "test", as_of, Interval(START, as_of))
        return ingest(self.folder.spec, self.lake, run, contracts=self.folder.contracts)

    def edit(self, before: str, after: str, file: str = "features.py") -> ModelFolder:
        """The folder with another text in one of its files."""
        path = self.folder.path / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
        self.folder = load_folder(self.folder.path)
        return self.folder

    def materialise(self, as_of: datetime = SERVED) -> None:
        materialise(self.folder, self.lake, self.snapshot(as_of), self.online_store)

    def release(self) -> Version:
        """A version trained with the folder as it is."""
        number = len(self.versions) + 1
        model, path = make_model(number), f"training/small/tr{number}"
        self.lake.write_bytes(f"{path}/model.onnx", model)
        keep_package(self.folder, self.lake)
        training = Training(
            run=Run("small", "test", SERVED, Interval(START, SERVED)), digest=f"tr{number}", path=path,
            attempt=1, training_set_path="", snapshot_digest="s", code_digest=self.folder.code_digest,
            spec_digest="d", train_end=SERVED, model_path=f"{path}/model.onnx", model_digest=sha256(model),
            columns=COLUMNS, classes=("0", "1"), reference_path="", profile_path="", metrics_path="",
            parameters={}, metrics={}, packages={}, resources={},
        )  # fmt: skip
        variant = Variant(
            "champion", str(number), "model.onnx", sha256(model), "binary", COLUMNS, ("0", "1"), threshold=0.5
        )
        publish(self.served, Route("small", "small", number, (variant,), "0" * 64, SERVED))
        features = features_of(self.folder)
        with local_tables(self.lake, build_tables(self.folder, self.lake, self.snapshot(SERVED))) as tables:
            registry = registry_bytes(open_store(features, tables))
        self.versions.append(Version(number, training, OnlineReader(registry, "small", self.online_store)))
        return self.versions[-1]

    def online(
        self, machines: Sequence[str], moment: datetime = SERVED, version: Version | None = None
    ) -> pl.DataFrame:
        """What a server reads."""
        found = (version or self.versions[0]).reader.read({"machine_id": [*machines]}, moment)
        types = {"load": pl.Float64, "mode": pl.String, "temperature": pl.Float64, "hour": pl.Int64}
        return pl.DataFrame(found, schema_overrides=types, strict=False).select(*types)

    def log(
        self,
        features: pl.DataFrame,
        machines: Sequence[str],
        moment: datetime = SERVED,
        threshold: float = 0.5,
        version: Version | None = None,
        **overrides: Any,
    ) -> None:
        """Rows as the server logs them, answered by the model with these features."""
        version = version or self.versions[0]
        session = open_session(self.lake.read_bytes(version.training.model_path))
        answered = predict(session, feeds(as_served(features, COLUMNS)))
        assert answered.labels is not None
        labels = decide(answered.labels, answered.outputs, ("0", "1"), threshold)
        outputs = [
            json.dumps({"label": int(label), "probabilities": [float(one) for one in values]})
            for label, values in zip(labels, answered.outputs, strict=True)
        ]
        self.parts += 1
        rows = features.height
        logged = pl.DataFrame(
            {
                "prediction_id": [f"p{self.parts}-{number}" for number in range(rows)],
                "row": [0] * rows,
                "received_at": [moment + timedelta(seconds=1)] * rows,
                "event_time": [moment] * rows,
                "entity_keys": [json.dumps({"machine_id": one}) for one in machines],
                "endpoint": ["small"] * rows,
                "route_revision": [version.number] * rows,
                "variant": ["champion"] * rows,
                "returned": [True] * rows,
                "model_version": [str(version.number)] * rows,
                "model_digest": [version.training.model_digest] * rows,
                "features": [json.dumps(row) for row in features.fill_nan(None).to_dicts()],
                "features_from": ["online_store"] * rows,
                "outputs": outputs,
                "score": answered.outputs[:, 1].astype(float),
                "latency_ms": [1.0] * rows,
                "status": [200] * rows,
            },
            schema=SCHEMA,
        ).with_columns(**overrides)
        path = f"predictions/small/{SERVED:%Y-%m-%d}/part-{self.parts}.parquet"
        local = Path(self.served.full_path(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        logged.write_parquet(local)

    def replay(self, rows: int = 60, seed: int = 0, snapshot: Snapshot | None = None) -> Replayed:
        chosen = self.folder.spec.monitoring.replay.model_copy(update={"rows": rows, "seed": seed})
        monitoring = self.folder.spec.monitoring.model_copy(update={"replay": chosen})
        spec = self.folder.spec.model_copy(update={"monitoring": monitoring})
        log = PredictionWindow(self.served, "small", WINDOW)
        offline = Offline(self.folder, snapshot or self.snapshot())
        kept = KeptFindings(self.lake, "small", log)
        return replay(spec, self.lake, self.served, log, kept, self.known, offline)

    def known(self, digest: str) -> Training | None:
        trainings = (one.training for one in self.versions)
        return next((one for one in trainings if one.model_digest == digest), None)


def make_world(root: Path) -> World:
    """A first version, and the online store as its code has it at ``SERVED``."""
    lake, served = Lake(str(root / "lake")), Lake(str(root / "production"))
    land(lake, days=3)
    folder = write_model(root / "dags")
    (folder / "features.py").write_text(FEATURES)
    world = World(lake, served, load_folder(folder), f"sqlite:///{root}/online.db")
    world.materialise()
    world.release()
    return world


def shares(replayed: Replayed) -> dict[tuple[str, str | None], float | None]:
    """Metric and step → share, of a replay without an error."""
    assert [one.error for one in replayed.findings if one.error] == []
    return {(one.metric, one.column): one.value for one in replayed.findings}
