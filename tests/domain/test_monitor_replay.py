"""Served requests taken through the training path once more: each planted fault is named for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from small_model import DAY, HOUR, START, land, readings, write_model

from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import open_store, registry_bytes
from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.onnx import as_served, convert, decide, feeds, open_session, predict
from ml_lifecycle.adapters.predictions import SCHEMA, PredictionWindow
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.personal import MASK
from ml_lifecycle.records import ColumnSpec, Finding, Interval, Run, Snapshot, Training
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.feature_tables import build_tables, features_of, local_tables
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.monitor import judge, monitor
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


@pytest.fixture(scope="module")
def model() -> bytes:
    """A model of load, mode, temperature and hour, as ONNX."""
    rows = readings(START, START + 2 * DAY)
    rows = as_served(rows.with_columns(hour=pl.col("read_at").dt.hour().cast(pl.Int64)), COLUMNS).hstack(
        rows.select("failed")
    )
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["mode"]), ("passthrough", ["load", "temperature", "hour"]))
    estimator = make_pipeline(columns, HistGradientBoostingClassifier(random_state=1, max_iter=10))
    frame = rows.select(one.name for one in COLUMNS).to_pandas()
    return convert(estimator.fit(frame, rows["failed"].to_numpy().astype(int)), COLUMNS, "binary")


def trained(lake: Lake, model: bytes) -> Training:
    lake.write_bytes("training/small/tr/model.onnx", model)
    run = Run("small", "test", SERVED, Interval(START, SERVED))
    return Training(
        run=run, digest="tr", path="training/small/tr", attempt=1, training_set_path="", snapshot_digest="s",
        code_digest="c", spec_digest="d", train_end=SERVED, model_path="training/small/tr/model.onnx",
        model_digest=sha256(model), columns=COLUMNS, classes=("0", "1"), reference_path="", profile_path="",
        metrics_path="", parameters={}, metrics={}, packages={}, resources={},
    )  # fmt: skip


@dataclass
class World:
    """A lake with readings, an online store brought up to ``SERVED``, and a model that answered from it."""

    lake: Lake
    served: Lake
    folder: ModelFolder
    training: Training
    reader: OnlineReader
    parts: int = 0

    def snapshot(self, as_of: datetime = NOW) -> Snapshot:
        run = Run("small", "test", as_of, Interval(START, as_of))
        return ingest(self.folder.spec, self.lake, run, contracts=self.folder.contracts)

    def online(self, machines: Sequence[str], moment: datetime = SERVED) -> pl.DataFrame:
        """What a server reads."""
        found = self.reader.read({"machine_id": [*machines]}, moment)
        types = {"load": pl.Float64, "mode": pl.String, "temperature": pl.Float64, "hour": pl.Int64}
        return pl.DataFrame(found, schema_overrides=types, strict=False).select(*types)

    def log(
        self,
        features: pl.DataFrame,
        machines: Sequence[str],
        moment: datetime = SERVED,
        threshold: float = 0.5,
        **overrides: Any,
    ) -> None:
        """Rows as the server logs them, answered by the model with these features."""
        session = open_session(self.lake.read_bytes(self.training.model_path))
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
                "route_revision": [1] * rows,
                "variant": ["champion"] * rows,
                "returned": [True] * rows,
                "model_version": ["1"] * rows,
                "model_digest": [self.training.model_digest] * rows,
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
        return self.training if digest == self.training.model_digest else None


MACHINES = [f"m{number:02d}" for number in range(20)]


@pytest.fixture
def world(tmp_path: Path, model: bytes) -> World:
    lake, served = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "production"))
    land(lake, days=3)
    folder = write_model(tmp_path / "dags")
    (folder / "features.py").write_text(FEATURES)
    made = load_folder(folder)
    run = Run("small", "test", SERVED, Interval(START, SERVED))
    snapshot = ingest(made.spec, lake, run, contracts=made.contracts)
    url = f"sqlite:///{tmp_path}/online.db"
    materialise(made, lake, snapshot, url)
    features = features_of(made)
    with local_tables(lake, build_tables(made, lake, snapshot)) as path:
        registry = registry_bytes(open_store(features, path))
    training = trained(lake, model)
    variant = Variant(
        "champion", "1", "model.onnx", training.model_digest, "binary", COLUMNS, ("0", "1"), threshold=0.5
    )
    publish(served, Route("small", "small", 1, (variant,), "0" * 64, SERVED))
    return World(lake, served, made, training, OnlineReader(registry, "small", url))


def shares(replayed: Replayed) -> dict[tuple[str, str | None], float | None]:
    assert [one.error for one in replayed.findings if one.error] == []
    return {(one.metric, one.column): one.value for one in replayed.findings}


def test_what_was_served_as_it_was_known_is_the_same(world):
    world.log(world.online(MACHINES), MACHINES)
    replayed = world.replay()
    assert shares(replayed) == {
        ("replay_mismatch_share", None): 0,
        ("replay_stale_share", None): 0,
        ("replay_ahead_share", None): 0,
    }
    assert (replayed.report["rows"], replayed.report["with_features"]) == (20, 20)
    assert replayed.report["examples"] == []


def test_a_row_that_was_materialised_before_a_newer_event_is_stale_and_no_skew(world):
    moment = SERVED + 5 * HOUR / 2  # two events have come since
    world.log(world.online(MACHINES, moment), MACHINES, moment)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert shares(replayed)["replay_stale_share", None] == 1
    assert replayed.report["timing"]["state stale"] == {
        "rows": 20,
        "without_any": 0,
        "median_seconds": 3 * 3600,
        "largest_seconds": 3 * 3600,
    }
    assert replayed.report["examples"][0]["cause"] == "stale"


def test_a_view_that_was_not_in_the_store_yet_is_stale_without_an_age(world):
    served = world.online(MACHINES).with_columns(load=pl.lit(None, pl.Float64), mode=pl.lit(None, pl.String))
    world.log(served, MACHINES)
    replayed = world.replay()
    assert shares(replayed)["replay_stale_share", None] == 1
    assert replayed.report["timing"]["state stale"] == {
        "rows": 20,
        "without_any": 20,
        "median_seconds": None,
        "largest_seconds": None,
    }


def test_a_moment_in_the_past_gets_rows_that_it_did_not_know(world):
    moment = SERVED - 2 * HOUR
    world.log(world.online(MACHINES), MACHINES, moment, event_time=pl.lit(moment))
    log_day = f"predictions/small/{SERVED:%Y-%m-%d}"
    assert world.served.sizes(log_day)
    log = PredictionWindow(world.served, "small", Interval(moment, NOW))
    kept = KeptFindings(world.lake, "small", log)
    offline = Offline(world.folder, world.snapshot())
    found = replay(world.folder.spec, world.lake, world.served, log, kept, world.known, offline)
    assert shares(found)["replay_ahead_share", None] == 1
    assert shares(found)["replay_mismatch_share", None] == 0


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (lambda rows: rows.with_columns(pl.col("temperature") * 1.8 + 32), "features: climate:temperature"),
        (lambda rows: rows.with_columns(pl.col("mode").str.to_uppercase()), "features: state:mode"),
        (
            lambda rows: rows.with_columns(
                pl.Series("load", np.nextafter(rows["load"].to_numpy().astype(np.float32), np.float32(2)))
            ),
            "types: load",
        ),
    ],
    ids=["transformation", "text", "rounding"],
)
def test_a_skewed_feature_is_named(
    world: World, fault: Callable[[pl.DataFrame], pl.DataFrame], step: str
) -> None:
    served = fault(world.online(MACHINES).with_columns(pl.col("mode").fill_null("idle")))
    known = world.online(MACHINES)
    rows = [n for n in range(20) if known["mode"][n] is not None and known["temperature"][n] is not None]
    rows = [n for n in rows if not np.isnan(known["temperature"][n])]
    world.log(served[rows], [MACHINES[n] for n in rows])
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", step] == 1
    assert replayed.report["first_differences"] == {step: len(rows)}
    assert replayed.report["examples"][0]["step"] == step
    assert replayed.report["examples"][0]["cause"] in ("skew", None)


def test_a_stale_row_with_a_skewed_feature_is_named_by_that_feature(world):
    moment = SERVED + HOUR / 2
    served = world.online(MACHINES, moment).with_columns(pl.col("load") * 2)
    world.log(served, MACHINES, moment)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "features: state:load"] == 1


def test_rounding_to_32_bits_is_what_the_model_takes_anyway(world):
    served = world.online(MACHINES).with_columns(pl.col("load").cast(pl.Float32).cast(pl.Float64))
    world.log(served, MACHINES)
    assert shares(world.replay())["replay_mismatch_share", None] == 0


def test_a_value_that_a_column_cannot_hold_is_of_the_wrong_type(world):
    world.log(world.online(MACHINES), MACHINES, entity_keys=pl.lit("{}"))
    [path] = world.served.list("predictions")
    local = Path(world.served.full_path(path))
    odd = pl.col("features").str.replace(r'"hour": \d+', '"hour": 7.5')
    pl.read_parquet(local).with_columns(odd).write_parquet(local)
    assert shares(world.replay())["replay_mismatch_share", "types: hour"] == 1


def test_a_model_that_nobody_released_is_named(world):
    world.log(world.online(MACHINES), MACHINES, model_digest=pl.lit("0" * 64))
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "model"] == 1
    assert replayed.report["examples"][0]["detail"] == "no release has a model with this digest"


def test_a_file_that_is_another_model_is_named(world):
    world.log(world.online(MACHINES), MACHINES)
    world.lake.write_bytes(world.training.model_path, b"another")
    assert shares(world.replay())["replay_mismatch_share", "model"] == 1


def test_a_version_that_its_route_serves_as_another_model_is_named(world):
    other = Variant("champion", "2", "m", "1" * 64, "binary", COLUMNS, ("0", "1"))
    publish(world.served, Route("small", "small", 2, (other,), "0" * 64, SERVED))
    world.log(world.online(MACHINES), MACHINES, route_revision=pl.lit(2), model_version=pl.lit("2"))
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "model"] == 1
    assert replayed.report["examples"][0]["replayed"] == "1" * 64


def test_another_threshold_is_named(world):
    world.log(world.online(MACHINES), MACHINES, threshold=0.05)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", "outputs: label"] > 0
    assert set(replayed.report["first_differences"]) == {"outputs: label"}
    assert replayed.report["examples"][0]["detail"] == "released with the threshold 0.5"


def test_other_probabilities_are_named(world):
    outputs = pl.lit(json.dumps({"label": 0, "probabilities": [0.9, 0.1]}))
    world.log(world.online(MACHINES), MACHINES, outputs=outputs)
    assert shares(world.replay())["replay_mismatch_share", "outputs: probabilities"] == 1


def test_vectors_without_keys_are_scored_only(world):
    served = world.online(MACHINES).with_columns(pl.col("load") * 2)  # the client's own affair
    world.log(served, MACHINES, features_from=pl.lit("request"), entity_keys=pl.lit("{}"))
    replayed = world.replay()
    assert shares(replayed) == {("replay_mismatch_share", None): 0}
    assert replayed.report["with_features"] == 0


def test_vectors_with_keys_are_held_against_the_offline_store_too(world):
    served = world.online(MACHINES).with_columns(pl.col("load") * 2)
    world.log(served, MACHINES, features_from=pl.lit("request"))
    assert shares(world.replay())["replay_mismatch_share", "features: state:load"] == 1


def test_what_was_corrected_since_was_right_when_it_was_served(world):
    world.log(world.online(MACHINES), MACHINES)
    for path in world.lake.list("landing/readings"):
        local = Path(world.lake.full_path(path))
        pl.read_parquet(local).with_columns(pl.col("load") / 3).write_parquet(local)
    replayed = world.replay()
    assert shares(replayed)["replay_mismatch_share", None] == 0
    assert replayed.report["with_features"] == 20
    # And what is wrong by what was known then too, is still found.
    world.log(world.online(MACHINES).with_columns(pl.col("load") / 2), MACHINES)
    assert shares(world.replay())["replay_mismatch_share", "features: state:load"] == pytest.approx(0.5)


def test_few_requests_of_a_version_are_chosen_too_and_count_for_themselves_only(world):
    many = MACHINES * 50
    world.log(world.online(many), many)
    odd = world.online(MACHINES[:4]).with_columns(pl.col("load") / 2)
    other = Variant(
        "canary", "1", "model.onnx", world.training.model_digest, "binary", COLUMNS, ("0", "1"), weight=0.1
    )
    publish(world.served, Route("small", "small", 2, (other,), "0" * 64, SERVED))
    world.log(odd, MACHINES[:4], route_revision=pl.lit(2), variant=pl.lit("canary"))
    first, again, others = world.replay(rows=20), world.replay(rows=20), world.replay(rows=20, seed=1)
    assert first == again
    assert first.report["examples"] != others.report["examples"] or first.findings == others.findings
    assert first.report["rows"] == 20
    assert first.report["first_differences"] == {"features: state:load": 4}
    assert shares(first)["replay_mismatch_share", None] == pytest.approx(4 / 1004)
    assert world.replay(rows=0) == Replayed()


def test_personal_data_do_not_show(world, tmp_path):
    contract = (world.folder.path / "contract.yaml").read_text()
    for name in ("machine_id", "mode"):
        contract = contract.replace(f"{{name: {name}, ", f"{{name: {name}, pii: true, ")
    (world.folder.path / "contract.yaml").write_text(contract)
    world.folder = load_folder(world.folder.path)
    world.log(world.online(MACHINES).with_columns(mode=pl.lit("turbo!")), MACHINES)
    replayed = world.replay()
    assert replayed.report["first_differences"] == {"features: state:mode": 20}
    example = replayed.report["examples"][0]
    assert (example["logged"], example["replayed"]) == (MASK, MASK)
    assert example["entity_keys"] == {"machine_id": MASK}
    shown = json.dumps(replayed.report) + repr(replayed.findings)
    assert not any(text in shown for text in ("turbo", "idle", "normal", *MACHINES))


def test_a_replay_that_fails_is_a_finding(world, tmp_path):
    snapshot = world.snapshot()
    world.log(world.online(MACHINES), MACHINES)
    text = FEATURES.replace("def tables(sources):", "def tables(sources):\n    raise KeyError('no')")
    (world.folder.path / "features.py").write_text(text)
    world.folder = load_folder(world.folder.path)
    replayed = world.replay(snapshot=snapshot)
    assert replayed.findings == (
        Finding("replay_mismatch_share", None, None, 0, error="nothing was replayed: KeyError: 'no'"),
    )


def test_the_monitor_alerts_on_it(world):
    world.log(world.online(MACHINES).with_columns(pl.col("load") * 2), MACHINES)
    alerts = [{"metric": "replay_mismatch_share", "above": 0.01, "severity": "critical"}]
    monitoring = world.folder.spec.monitoring.model_validate({"alerts": alerts})
    spec = world.folder.spec.model_copy(update={"monitoring": monitoring})
    snapshot = world.snapshot()
    run = replace(snapshot.run, interval=WINDOW)
    offline = Offline(world.folder, snapshot)
    found = monitor(spec, world.lake, world.served, run, world.known, None, NOW, offline=offline)
    assert ("replay_mismatch_share", None, "critical") in {
        (one.metric, one.column, one.severity) for one in found.alerts
    }
    report = world.lake.read_json(found.report_path)
    assert report["replay"]["first_differences"] == {"features: state:load": 20}
    assert judge([Finding("replay_stale_share", None, 0.5, 3)], ())[1] == []
