"""A small job to try a training image on: made-up rows of every type, in a lake that is a folder."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.records import (
    ColumnSpec,
    Interval,
    Run,
    TaskType,
    TrainingSet,
    digest_of,
    to_json,
)
from ml_lifecycle.training.job import TrainingJob

COLUMNS = (
    ColumnSpec("distance", "float"),
    ColumnSpec("wind", "float", nullable=True),
    ColumnSpec("hour", "int"),
    ColumnSpec("weekend", "bool"),
    ColumnSpec("carrier", "string", nullable=True),
)
_ROWS = {"train": 400, "holdout": 200}
_START = datetime(2026, 1, 1, tzinfo=UTC)
_HOUR = timedelta(hours=1)

_CODE = """
from sklearn.compose import make_column_transformer
from sklearn.ensemble import {estimator}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from ml_lifecycle.training.frameworks import fit_in_segments


def train(training_set, labels, parameters, seed, checkpoints):
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["carrier"]),
        ("passthrough", ["distance", "wind", "hour", "weekend"]),
    )
    rows = encode.fit_transform(training_set)
    model = {estimator}(max_iter=40, random_state=seed, early_stopping=False, **parameters)
    return make_pipeline(encode, fit_in_segments(model, rows, labels, checkpoints))
"""


def make_job(lake: Lake, task: TaskType, parameters: dict[str, Any], threads: int = 1) -> TrainingJob:
    """Write a training set, a code package and a job to the lake."""
    end = _START + sum(_ROWS.values()) * _HOUR + timedelta(days=1)
    run = Run("pod_check", "pod_check", end, Interval(_START, end))
    training_set = _training_set(lake, run, task)
    estimator = "HistGradientBoostingRegressor" if task == "regression" else "HistGradientBoostingClassifier"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("training.py", _CODE.replace("{estimator}", estimator))
    code = buffer.getvalue()
    job = TrainingJob(
        run=run,
        digest=digest_of([training_set.digest, task, parameters]),
        path="training/pod_check/job",
        training_set_path=f"{training_set.path}/manifest.json",
        training_set_digest=training_set.digest,
        code_path=f"code/{sha256(code)}.zip",
        code_digest=sha256(code),
        spec_digest="0" * 64,
        task=task,
        parameters=parameters,
        seed=7,
        threads=threads,
    )
    lake.write_bytes(job.code_path, code)
    lake.write_json(job.job_path, to_json(job))
    return job


def _training_set(lake: Lake, run: Run, task: TaskType) -> TrainingSet:
    path = "training_sets/pod_check/rows"
    first = {"train": _START, "holdout": _START + _ROWS["train"] * _HOUR + timedelta(days=1)}
    for number, (part, rows) in enumerate(_ROWS.items()):
        buffer = io.BytesIO()
        _rows(rows, task, number, first[part]).write_parquet(buffer)
        lake.write_bytes(f"{path}/{part}.parquet", buffer.getvalue())
    training_set = TrainingSet(
        run=run,
        digest=digest_of(["pod_check", task]),
        path=path,
        snapshot_digest="0" * 64,
        code_digest="0" * 64,
        train_path=f"{path}/train.parquet",
        holdout_path=f"{path}/holdout.parquet",
        train_rows=_ROWS["train"],
        holdout_rows=_ROWS["holdout"],
        train_end=_START + _ROWS["train"] * _HOUR,
        holdout=Interval(first["holdout"], run.as_of),
        columns=COLUMNS,
        label_column="label",
        entity_keys=("id",),
    )
    lake.write_json(f"{path}/manifest.json", to_json(training_set))
    return training_set


def _rows(n: int, task: TaskType, seed: int, start: datetime) -> pl.DataFrame:
    chance = np.random.default_rng(seed)
    distance, hour = chance.normal(500, 200, n), chance.integers(0, 24, n)
    carrier = [None if draw == 3 else "ABC"[draw] for draw in chance.integers(0, 4, n)]
    signal = distance + 20.0 * hour + np.array([150.0 * (name == "A") for name in carrier])
    if task == "regression":
        labels: Any = signal
    elif task == "binary":
        labels = (signal > 750).astype(np.int64)
    else:
        labels = np.array(["early", "late", "on time"])[np.digitize(signal, [650, 850])]
    missing = chance.random(n) < 0.2
    return pl.DataFrame(
        {
            "distance": distance,
            "wind": [
                None if gone else value for gone, value in zip(missing, chance.normal(10, 3, n), strict=True)
            ],
            "hour": hour,
            "weekend": chance.random(n) < 0.3,
            "carrier": carrier,
            "label": labels,
            "event_timestamp": [start + row * _HOUR for row in range(n)],
            "id": range(n),
        },
        schema_overrides={"wind": pl.Float64, "carrier": pl.String},
    )
