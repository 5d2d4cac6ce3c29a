"""A small real model folder and training set a task type, and ways to train on them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import (
    ColumnSpec,
    Interval,
    Run,
    TaskType,
    Training,
    TrainingSet,
    digest_of,
    to_json,
)
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.train import collect_training, plan_training
from ml_lifecycle.training.job import Attempt, TrainingJob
from ml_lifecycle.training.pod import run_attempt

START = datetime(2026, 1, 1, tzinfo=UTC)
TRAIN_ROWS, HOLDOUT_ROWS = 400, 200
TRAIN_END = START + timedelta(hours=TRAIN_ROWS)
HOLDOUT_START = TRAIN_END + timedelta(hours=24)
HOLDOUT = Interval(HOLDOUT_START, HOLDOUT_START + timedelta(hours=HOLDOUT_ROWS))

COLUMNS = (
    ColumnSpec("distance", "float"),
    ColumnSpec("wind", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("weekend", "bool"),
    ColumnSpec("carrier", "string", nullable=True),
)

PIPELINE = """
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder


def encode(*numbers):
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return ColumnTransformer([("text", encoder, ["carrier"]), ("rest", "passthrough", list(numbers))])


def train(training_set, labels, parameters, seed):
    columns = encode("distance", "wind", "hour", "weekend")
    return make_pipeline(columns, {estimator}(random_state=seed, **parameters)).fit(training_set, labels)
"""
ESTIMATORS = {
    "binary": "HistGradientBoostingClassifier",
    "multiclass": "HistGradientBoostingClassifier",
    "regression": "HistGradientBoostingRegressor",
}
GATES = {
    "binary": [
        "{metric: roc_auc, min: 0.6, max_regression: 0.02}",
        "{metric: accuracy, min: 0.5, max_segment_gap: 0.3, segment: carrier, min_segment_rows: 30}",
    ],
    "multiclass": ["{metric: log_loss, max: 1.1}", "{metric: skill, min: 0.1}"],
    "regression": ["{metric: rmse, max: 160, max_regression: 5}"],
}


def training_py(task: TaskType) -> str:
    return PIPELINE.replace("{estimator}", ESTIMATORS[task])


def make_folder(
    parent: Path,
    task: TaskType = "binary",
    training: str | None = None,
    gates: list[str] | None = None,
    parameters: str = "{max_iter: 8}",
    name: str | None = None,
) -> ModelFolder:
    """A whole model folder on disk, loaded as any other."""
    name = name or f"toy_{task}"
    folder = parent / name
    folder.mkdir(parents=True)
    listed = "\n".join(f"    - {gate}" for gate in (gates if gates is not None else GATES[task]))
    files = {
        "model.yaml": MODEL_YAML.format(name=name, task=task, gates=listed, parameters=parameters),
        "contract.yaml": "contract: {name: rows, version: 1, fields: [{name: id, type: integer}]}\n",
        "features.py": "def tables(sources):\n    return sources\n",
        "training.py": textwrap.dedent(training if training is not None else training_py(task)),
        "dag.py": "",
    }
    for file, text in files.items():
        (folder / file).write_text(text)
    return load_folder(folder)


MODEL_YAML = """
spec: 1
name: {name}
description: A toy
task: {task}
owner: tests
sources:
  rows: {{uri: rows.parquet, contract: rows}}
labels: {{column: label, keys: [id], delay: 24h}}
features: {{service: toy}}
training:
  parameters: {parameters}
  seed: 5
  data: {{start: 2026-01-01T00:00:00Z, holdout: 7d}}
evaluation:
  gates:
{gates}
approvers: {{users: [alice]}}
environments:
  staging: {{server: s, lake: l, online_store: o}}
  production: {{server: s2, lake: l2, online_store: o2}}
"""


def tracking_database(factory: pytest.TempPathFactory) -> str:
    """One MLflow database a test session: creating its tables takes seconds."""
    folder = factory.getbasetemp() / "mlflow"
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def make_rows(n: int, task: TaskType, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    distance, hour = rng.normal(500, 200, n), rng.integers(0, 24, n)
    carriers: Any = ["AA", "BB", "CC", None]
    carrier = rng.choice(carriers, n)
    signal = distance + 20.0 * hour + np.where(carrier == "AA", 150.0, 0.0) + rng.normal(0, 30, n)
    label: Any = {
        "binary": (signal > 750).astype(np.int64),
        "multiclass": np.array(["early", "on time", "late"])[np.digitize(signal, [650, 850])],
        "regression": signal,
    }[task]
    return pl.DataFrame(
        {
            "distance": distance,
            "wind": [None if rng.random() < 0.2 else float(rng.normal(10, 3)) for _ in range(n)],
            "hour": hour,
            "weekend": rng.random(n) < 0.3,
            "carrier": carrier.tolist(),
            "label": label,
            "id": np.arange(n),
        },
        schema_overrides={"wind": pl.Float64, "carrier": pl.String},
    )


def make_training_set(
    lake: Lake,
    folder: ModelFolder,
    *,
    train: pl.DataFrame | None = None,
    holdout: pl.DataFrame | None = None,
    columns: tuple[ColumnSpec, ...] = COLUMNS,
    shift: timedelta = timedelta(0),
    requested_by: str | None = None,
) -> TrainingSet:
    """Write a training set as the features stage leaves it; ``shift`` moves all of it in time."""
    name, task = folder.spec.name, folder.spec.task
    train = make_rows(TRAIN_ROWS, task, seed=1) if train is None else train
    holdout = make_rows(HOLDOUT_ROWS, task, seed=2) if holdout is None else holdout
    data = {
        part: _with_times(frame, start + shift)
        for part, frame, start in (("train", train, START), ("holdout", holdout, HOLDOUT.start))
    }
    digest = digest_of(
        [folder.code_digest, repr(columns), *(frame.write_ndjson() for frame in data.values())]
    )
    path = f"training_sets/{name}/{digest}"
    for part, frame in data.items():
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        lake.write_bytes(f"{path}/{part}.parquet", buffer.getvalue())
    interval = Interval(START + shift, HOLDOUT.end + shift)
    training_set = TrainingSet(
        run=Run(name, "run_1", interval.end, interval, requested_by),
        digest=digest,
        path=path,
        snapshot_digest="5" * 64,
        code_digest=folder.code_digest,
        train_path=f"{path}/train.parquet",
        holdout_path=f"{path}/holdout.parquet",
        train_rows=train.height,
        holdout_rows=holdout.height,
        train_end=TRAIN_END + shift,
        holdout=Interval(HOLDOUT.start + shift, HOLDOUT.end + shift),
        columns=columns,
        label_column="label",
        entity_keys=("id",),
    )
    lake.write_json(f"{path}/manifest.json", to_json(training_set))
    return training_set


def _with_times(frame: pl.DataFrame, start: datetime) -> pl.DataFrame:
    times = [start + timedelta(hours=row) for row in range(frame.height)]
    return frame.with_columns(pl.Series("event_timestamp", times, dtype=pl.Datetime("us", "UTC")))


def attempt_at(job: TrainingJob, number: int = 1, owner: str = "tests") -> Attempt:
    return Attempt(job, number, owner)


def pod_environment(lake: Lake, job: TrainingJob, number: int = 1) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry.endswith("include"))
    given = attempt_at(job, number).environment(lake.url)
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, **given}


def run_pod(lake: Lake, job: TrainingJob, number: int = 1, **extra: str) -> subprocess.CompletedProcess[str]:
    """The pod's command, as a process of its own."""
    command = [sys.executable, *job.command[1:]]
    environment = pod_environment(lake, job, number) | extra
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def collect(lake: Lake, job: TrainingJob, number: int = 1) -> Training:
    return collect_training(lake, attempt_at(job, number))


@dataclass(frozen=True)
class Trained:
    lake: Lake
    folder: ModelFolder
    training_set: TrainingSet
    training: Training


def train_here(
    lake: Lake, folder: ModelFolder, scratch: Path, training_set: TrainingSet | None = None
) -> Trained:
    """Train in this process, which has the libraries imported already."""
    training_set = training_set or make_training_set(lake, folder)
    job = plan_training(folder, lake, training_set)
    run_attempt(lake, attempt_at(job), scratch / job.digest)
    return Trained(lake, folder, training_set, collect(lake, job))
