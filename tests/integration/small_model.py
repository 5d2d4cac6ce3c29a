"""A small real model for tests that need a whole life within seconds: will this machine fail?

Every hour each of twenty machines reports its load and its mode; whether it failed is known an hour later.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from ml_lifecycle.adapters.lake import Lake

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MACHINES = 20

MODEL: dict[str, Any] = {
    "spec": 1,
    "description": "Will this machine fail within the hour?",
    "task": "binary",
    "owner": "tests",
    "sources": {
        "readings": {
            "uri": "landing/readings/*.parquet",
            "event_time": "read_at",
            "keys": ["machine_id", "read_at"],
            "contract": "readings",
        }
    },
    "labels": {"column": "failed", "keys": ["machine_id"], "delay": "2h"},
    "training": {
        "parameters": {"max_iter": 10},
        "resources": {"cpu": "100m", "memory": "512Mi"},
        "data": {"start": START.isoformat(), "holdout": "2d"},
    },
    "evaluation": {"gates": [{"metric": "skill", "min": 0.0}, {"metric": "log_loss", "max_regression": 0.5}]},
    "approvers": {"users": ["admin", "alice"], "deadline": "1d"},
    "environments": {
        name: {"server": f"{name}_server", "lake": f"{name}_lake", "online_store": f"{name}_online_store"}
        for name in ("staging", "production")
    },
    "monitoring": {"window": "1d", "alerts": [{"metric": "skill", "below": -0.5, "action": "retrain"}]},
}

CONTRACT = """
contract:
  name: readings
  version: 1
  fields:
    - {name: machine_id, type: string, nullable: false}
    - {name: read_at, type: timestamp, nullable: false}
    - {name: load, type: float, nullable: false, min: 0, max: 1}
    - {name: mode, type: string, allowed_values: [idle, normal, turbo]}
    - {name: failed, type: boolean, nullable: false}
"""

FEATURES = """
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

machine = Entity(name="machine", join_keys=["machine_id"], value_type=ValueType.STRING)
machine_state = FeatureView(
    name="machine_state",
    entities=[machine],
    ttl=timedelta(days=3),
    schema=[Field(name="load", dtype=Float64), Field(name="mode", dtype=String)],
    source=FileSource(name="machine_state", path="machine_state.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="{name}", features=[machine_state])


def tables(sources):
    readings = sources["readings"]
    # Asked a minute after the reading: what is known at the very moment does not count yet.
    asked = (pl.col("read_at") + pl.duration(minutes=1)).alias("event_timestamp")
    labels = readings.select(
        "machine_id",
        asked,
        (pl.col("read_at") + pl.duration(hours=1)).alias("known_at"),
        pl.col("failed").cast(pl.Int64),
    )
    return {
        "machine_state": readings.select(
            "machine_id", pl.col("read_at").alias("event_timestamp"), "load", "mode"
        ),
        "labels": labels,
        "entities": readings.select("machine_id", asked),
    }
"""

TRAINING = """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder


def train(training_set, labels, parameters, seed):
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer((encoder, ["mode"]), ("passthrough", ["load"]))
    model = HistGradientBoostingClassifier(random_state=seed, **parameters)
    return make_pipeline(columns, model).fit(training_set, labels)
"""

DAG = "from ml_lifecycle_airflow import lifecycle_dags\n\nglobals().update(lifecycle_dags(__file__))\n"


def write_model(dags: Path, name: str = "small", **overrides: Any) -> Path:
    """Write the folder ``dags/models/<name>``; returns it.

    :param overrides: keys of model.yaml; a mapping is merged into the one that is there
    """
    spec = _merged(MODEL | {"name": name, "features": {"service": name}}, overrides)
    folder = dags / "models" / name
    folder.mkdir(parents=True)
    files = {
        "model.yaml": yaml.safe_dump(spec, sort_keys=False),
        "contract.yaml": CONTRACT,
        "features.py": FEATURES.replace("{name}", name),
        "training.py": TRAINING,
        "dag.py": DAG,
    }
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: base[key] for key in base if key not in over}
    for key, value in over.items():
        under = base.get(key)
        both[key] = (
            _merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def readings(start: datetime, end: datetime, seed: int = 7) -> pl.DataFrame:
    """One row a machine and hour in ``[start, end)``; turbo at high load fails."""
    hours = int((end - start) / HOUR)
    n = hours * MACHINES
    rng = np.random.default_rng([seed, int(start.timestamp())])
    load = rng.random(n)
    mode = rng.choice(["idle", "normal", "turbo", None], n, p=[0.3, 0.4, 0.25, 0.05])
    risk = 0.05 + 0.7 * load * (mode == "turbo") + 0.2 * load
    return pl.DataFrame(
        {
            "machine_id": [f"m{number:02d}" for number in range(MACHINES)] * hours,
            "read_at": [start + hour * HOUR for hour in range(hours) for _ in range(MACHINES)],
            "load": load,
            "mode": mode.tolist(),
            "failed": rng.random(n) < risk,
        },
        schema_overrides={"read_at": pl.Datetime("us", "UTC"), "mode": pl.String},
    )


def land(lake: Lake, start: datetime = START, days: int = 10) -> datetime:
    """One file a day into ``landing/readings``; returns the end of the last day."""
    for number in range(days):
        day = start + number * DAY
        buffer = io.BytesIO()
        readings(day, day + DAY).write_parquet(buffer)
        lake.write_bytes(f"landing/readings/{day:%Y-%m-%d}.parquet", buffer.getvalue())
    return start + days * DAY
