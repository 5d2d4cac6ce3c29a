"""Golden rows: a V2 request and the answer a server with this model must give to it.

``golden.json`` holds ``request`` (V2, one input a column), ``expected`` (output name → flat values) and
``absolute``, the tolerance of its numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from ml_lifecycle.adapters.onnx import decide, feeds, predict
from ml_lifecycle.records import Training

GOLDEN_ROWS = 50
# The same file on another processor differs by rounding only.
_TOLERANCE = 1e-5
_DATATYPES = {"float": "FP32", "int": "INT64", "bool": "BOOL", "string": "BYTES"}


def golden_rows(holdout_rows: int) -> list[int]:
    """Which holdout rows become golden: evenly spread over it."""
    spread = np.linspace(0, holdout_rows - 1, GOLDEN_ROWS)
    return sorted({int(row) for row in spread.round()})


def make_golden(session: Any, training: Training, served: pl.DataFrame, threshold: float) -> dict[str, Any]:
    """The request for these rows (as served) and the session's answer.

    Rows that JSON or the model's signature cannot carry are left out: an infinite value, a missing one in
    a column that is not nullable.

    :param threshold: binary only: from which probability on a row counts as positive
    """
    columns = training.columns
    for column in columns:
        if column.type == "float":
            value = pl.col(column.name)
            served = served.filter(
                value.is_finite() | value.is_nan() if column.nullable else value.is_finite()
            )
    answer = predict(session, feeds(served))
    outputs = answer.outputs.astype(np.float64)
    expected: dict[str, list[Any]] = {}
    if answer.labels is None:
        expected["prediction"] = outputs.tolist()
    else:
        binary = outputs.shape[1] == 2
        labels = decide(answer.labels, outputs, training.classes, threshold) if binary else answer.labels
        expected["label"] = labels.tolist()
        expected["probabilities"] = outputs.ravel().tolist()
    inputs = [
        {
            "name": column.name,
            "datatype": _DATATYPES[column.type],
            "shape": [served.height],
            "data": [_json_value(value) for value in served[column.name].to_list()],
        }
        for column in columns
    ]
    return {
        "schema": "golden/1",
        "model_digest": training.model_digest,
        "request": {"inputs": inputs},
        "expected": expected,
        "absolute": _TOLERANCE * max(1.0, float(np.abs(outputs).max(initial=0))),
    }


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
