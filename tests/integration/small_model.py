"""A small real model for tests that need a whole life within seconds: will this machine fail?

Every hour each of twenty machines reports its load and its mode; whether it failed is known an hour later.
The other task types ask the same machines what state they are in (text, or a whole number) and how worn
they are, from inputs of every type with numbers, text and truth values missing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import TaskType

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MACHINES = 20

MODEL: dict[str, Any] = {
    "spec": 1,
    "owner": "tests",
    "sources": {
        "readings": {
            "uri": "landing/readings/*.parquet",
            "event_time": "read_at",
            "keys": ["machine_id", "read_at"],
            "contract": "readings",
        }
    },
    "labels": {"keys": ["machine_id"], "delay": "2h"},
    "training": {
        "parameters": {"max_iter": 10},
        "resources": {"cpu": "100m", "memory": "512Mi"},
        "data": {"start": START.isoformat(), "holdout": "2d"},
    },
    "approvers": {"users": ["admin", "alice"], "deadline": "1d"},
    "environments": {
        name: {"server": f"{name}_server", "lake": f"{name}_lake", "online_store": f"{name}_online_store"}
        for name in ("staging", "production")
    },
    "monitoring": {"window": "1d"},
}


@dataclass(frozen=True)
class Asked:
    """What a task type asks of a machine.

    :param inputs: feature → Feast's type and the expression that makes it of a reading
    """

    question: str
    label: str
    estimator: str
    gates: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    inputs: dict[str, tuple[str, str]] = field(
        default_factory=lambda: {
            "load": ("Float64", 'pl.col("load")'),
            "mode": ("String", 'pl.col("mode")'),
            "temperature": ("Float32", 'pl.col("temperature")'),
            # A truth value that may be missing is a number to a model.
            "serviced": ("Float32", 'pl.col("serviced").cast(pl.Float32)'),
            "hour": ("Int64", 'pl.col("read_at").dt.hour().cast(pl.Int64)'),
            "weekend": ("Bool", 'pl.col("read_at").dt.weekday() > 5'),
        }
    )


_PER_MODE = {"segment": "mode", "min_segment_rows": 30}
ASKED: dict[TaskType, Asked] = {
    "binary": Asked(
        "Will this machine fail within the hour?",
        "failed",
        "HistGradientBoostingClassifier",
        [{"metric": "skill", "min": 0.0}, {"metric": "log_loss", "max_regression": 0.5}],
        [{"metric": "skill", "below": -0.5, "action": "retrain"}],
        {"load": ("Float64", 'pl.col("load")'), "mode": ("String", 'pl.col("mode")')},
    ),
    "multiclass": Asked(
        "What state is this machine in?",
        "state",
        "HistGradientBoostingClassifier",
        [
            {"metric": "skill", "min": 0.2},
            {"metric": "log_loss", "max_regression": 0.5},
            {"metric": "accuracy", "max_segment_gap": 0.5, **_PER_MODE},
        ],
        [{"metric": "skill", "below": -0.5, "action": "retrain"}],
    ),
    "regression": Asked(
        "How worn is this machine?",
        "wear",
        "HistGradientBoostingRegressor",
        [
            {"metric": "r2", "min": 0.3},
            {"metric": "rmse", "max_regression": 5},
            {"metric": "mae", "max_segment_gap": 10, **_PER_MODE},
        ],
        [{"metric": "rmse", "above": 100, "action": "retrain"}],
    ),
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
    - {name: temperature, type: float}
    - {name: serviced, type: boolean}
    - {name: state, type: string, nullable: false, allowed_values: [broken, fine, worn]}
    - {name: grade, type: integer, nullable: false, allowed_values: [10, 20, 30]}
    - {name: wear, type: float, nullable: false}
"""

FEATURES = """
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Float64, Int64, String

machine = Entity(name="machine", join_keys=["machine_id"], value_type=ValueType.STRING)
machine_state = FeatureView(
    name="machine_state",
    entities=[machine],
    ttl=timedelta(days=3),
    schema=[{schema}],
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
        pl.col("{label}"),
    )
    return {
        "machine_state": readings.select(
            "machine_id", pl.col("read_at").alias("event_timestamp"), {inputs}
        ),
        "labels": labels,
        "entities": readings.select("machine_id", asked),
    }
"""

TRAINING = """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import {estimator}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder


def train(training_set, labels, parameters, seed):
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    numbers = [column for column in training_set if column != "mode"]
    columns = make_column_transformer((encoder, ["mode"]), ("passthrough", numbers))
    model = {estimator}(random_state=seed, **parameters)
    return make_pipeline(columns, model).fit(training_set, labels)
"""

DAG = "from ml_lifecycle_airflow import lifecycle_dags\n\nglobals().update(lifecycle_dags(__file__))\n"


def write_model(dags: Path, name: str = "small", task: TaskType = "binary", **overrides: Any) -> Path:
    """Write the folder ``dags/models/<name>``; returns it.

    :param overrides: keys of model.yaml; a mapping is merged into the one that is there. Labels are the
        column ``failed``, ``state`` or ``wear`` by task; ``labels={"column": "grade"}`` are whole numbers
    """
    asked = ASKED[task]
    of_task = {
        "name": name,
        "description": asked.question,
        "task": task,
        "features": {"service": name},
        "labels": MODEL["labels"] | {"column": asked.label},
        "evaluation": {"gates": asked.gates},
        "monitoring": MODEL["monitoring"] | {"alerts": asked.alerts},
    }
    spec = _merged(MODEL | of_task, overrides)
    schema = (f'Field(name="{feature}", dtype={dtype})' for feature, (dtype, _) in asked.inputs.items())
    inputs = (f'({made}).alias("{feature}")' for feature, (_, made) in asked.inputs.items())
    words = {
        "{name}": name,
        "{schema}": ", ".join(schema),
        "{inputs}": ", ".join(inputs),
        "{label}": spec["labels"]["column"],
        "{estimator}": asked.estimator,
    }
    files = {
        "model.yaml": yaml.safe_dump(spec, sort_keys=False),
        "contract.yaml": CONTRACT,
        "features.py": FEATURES,
        "training.py": TRAINING,
        "dag.py": DAG,
    }
    folder = dags / "models" / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        for word, meant in words.items() if file.endswith(".py") else ():
            text = text.replace(word, meant)
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
    mode = rng.choice(np.array(["idle", "normal", "turbo", None]), n, p=[0.3, 0.4, 0.25, 0.05])
    risk = 0.05 + 0.7 * load * (mode == "turbo") + 0.2 * load
    failed = rng.random(n) < risk
    temperature = np.where(rng.random(n) < 0.1, np.nan, rng.normal(60, 10, n))
    serviced = rng.choice(np.array([True, False, None]), n, p=[0.5, 0.3, 0.2])
    neglected = np.array([one is not True for one in serviced])
    wear = 40 * load + 30 * (mode == "turbo") + 10 * neglected + rng.normal(0, 5, n)
    state = np.digitize(wear, [25, 50])
    return pl.DataFrame(
        {
            "machine_id": [f"m{number:02d}" for number in range(MACHINES)] * hours,
            "read_at": [start + hour * HOUR for hour in range(hours) for _ in range(MACHINES)],
            "load": load,
            "mode": mode.tolist(),
            "failed": failed,
            "temperature": temperature,
            "serviced": serviced.tolist(),
            "state": np.array(["fine", "worn", "broken"])[state],
            "grade": 10 * (state + 1),
            "wear": wear,
        },
        schema_overrides={
            "read_at": pl.Datetime("us", "UTC"),
            "mode": pl.String,
            "serviced": pl.Boolean,
        },
        nan_to_null=True,
    )


def land(lake: Lake, start: datetime = START, days: int = 10) -> datetime:
    """One file a day into ``landing/readings``; returns the end of the last day."""
    for number in range(days):
        day = start + number * DAY
        buffer = io.BytesIO()
        readings(day, day + DAY).write_parquet(buffer)
        lake.write_bytes(f"landing/readings/{day:%Y-%m-%d}.parquet", buffer.getvalue())
    return start + days * DAY
