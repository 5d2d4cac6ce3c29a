"""Rows of every column type, labels of every task, and the parity gates over a converted estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OrdinalEncoder
from tests.domain.training_world import COLUMNS, make_rows

from ml_lifecycle.adapters.onnx import as_served, convert, feeds, open_session, predict
from ml_lifecycle.evaluation.parity import parity_gates
from ml_lifecycle.records import ColumnSpec, GateResult, TaskType
from ml_lifecycle.spec.model import Evaluation
from ml_lifecycle.training.reference import Reference, make_reference

NUMBERS = COLUMNS[:2]
# A tenth and a hundredth of the default limits, which leave room for scalers.
EVALUATION = Evaluation.model_validate(
    {"gates": [{"metric": "skill", "min": 0}], "parity": {"absolute": 1e-5, "relative": 1e-4}}
)
NUMERIC = [column.name for column in COLUMNS if column.type != "string"]


def encode(*numbers: str) -> ColumnTransformer:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return ColumnTransformer([("text", encoder, ["carrier"]), ("numbers", "passthrough", list(numbers))])


def training_rows(task: TaskType, n: int = 600) -> tuple[Any, np.ndarray[Any, Any]]:
    """Features as ``train()`` gets them, and labels."""
    rows = make_rows(n, task, seed=1)
    return as_served(rows, COLUMNS).to_pandas(), rows["label"].to_numpy()


def holdout(n: int = 500) -> pl.DataFrame:
    """Rows no training saw, some of them odd: zeros, nothing but missing values, a category of no other."""
    rows = as_served(make_rows(n, "regression", seed=2), COLUMNS)
    odd = rows.head(60)
    return pl.concat(
        [
            rows,
            odd.with_columns(
                distance=pl.lit(0, pl.Float32), wind=pl.lit(0, pl.Float32), hour=pl.lit(0, pl.Int64)
            ),
            odd.with_columns(pl.lit(float("nan"), pl.Float32).alias(name) for name in ("distance", "wind")),
            odd.with_columns(carrier=pl.lit("ZZ")),
        ]
    )


def gates(
    estimator: Any,
    task: TaskType,
    columns: tuple[ColumnSpec, ...] = COLUMNS,
    rows: pl.DataFrame | None = None,
    spread: float = 1.0,
) -> list[GateResult]:
    """The parity gates of the file, on the holdout and the probes made of it."""
    asked = (holdout() if rows is None else rows).select(column.name for column in columns)
    reference: Reference = make_reference(estimator, asked, columns, task)
    answers = predict(
        open_session(convert(estimator, columns, task)), feeds(pl.concat([asked, reference.probes]))
    )
    return parity_gates(reference, answers, EVALUATION, task, spread, lambda: [asked, reference.probes])


def failed(results: list[GateResult]) -> list[str | None]:
    return [f"{result.gate}: {result.measured} {result.reason}" for result in results if not result.passed]
