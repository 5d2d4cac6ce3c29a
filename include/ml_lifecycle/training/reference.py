"""The original estimator's answers: what the ONNX file is held against, and what a golden request expects.

``reference.parquet`` has a row for each holdout row, in the holdout's order, then one for each probe. Probes
are holdout rows made difficult: a category no training row had, a missing value where one may be missing.
Their inputs are stored with them; a holdout row's inputs are in the holdout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.onnx import Prediction
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.errors import TrainingError
from ml_lifecycle.records import ColumnSpec, TaskType
from ml_lifecycle.training.fit import described

Array = NDArray[Any]

BATCH_ROWS = 50_000
UNSEEN_CATEGORY = "(unseen category)"
_ROW, _PROBE, _LABEL, _OUTPUTS = "__row__", "__probe__", "__label__", "__outputs__"


@dataclass(frozen=True)
class Reference:
    """The estimator's answers, holdout rows first, then probes.

    :param probes: the probes' inputs as served
    :param probe_names: what was made difficult in each
    :param outputs: ``(holdout rows + probes, classes)`` probabilities or ``(…,)`` predictions, float64
    :param labels: as text; None for regression
    """

    holdout_rows: int
    probes: pl.DataFrame
    probe_names: tuple[str, ...]
    outputs: Array
    labels: tuple[str, ...] | None


def probe_rows(served: pl.DataFrame, columns: Sequence[ColumnSpec]) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Probes made of the first holdout row, and their names: one a difficulty, then all of them together."""
    changes: dict[str, tuple[str, Any]] = {}
    for column in columns:
        if column.type == "string":
            changes[f"{column.name} unseen"] = (column.name, UNSEEN_CATEGORY)
            if column.nullable:
                changes[f"{column.name} missing"] = (column.name, "")
        elif column.type == "float" and column.nullable:
            changes[f"{column.name} missing"] = (column.name, float("nan"))
    first = served.row(0, named=True)
    rows = [first | dict([change]) for change in changes.values()]
    rows.append(first | dict(changes.values()))
    return pl.DataFrame(rows, schema=served.schema), (*changes, "all together")


def estimator_answers(estimator: Any, served: pl.DataFrame, task: TaskType) -> Prediction:
    """The estimator's own answers, a batch at a time."""
    parts = [_answer(estimator, batch, task) for batch in served.iter_slices(BATCH_ROWS)]
    outputs = np.concatenate([part.outputs for part in parts])
    labels = None if task == "regression" else np.concatenate([part.labels for part in parts])
    return Prediction(outputs, labels)


def _answer(estimator: Any, batch: pl.DataFrame, task: TaskType) -> Prediction:
    """:raises ValueError: the answers are of another shape than the task's, or no numbers. Retry: no."""
    rows, n = batch.to_pandas(), batch.height
    if task == "regression":
        predictions = np.asarray(estimator.predict(rows), dtype=np.float64)
        _check_numbers("predict()", predictions, [(n,), (n, 1)])
        return Prediction(predictions.reshape(-1), None)
    probabilities = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    _check_numbers("predict_proba()", probabilities, [(n, len(estimator.classes_))])
    return Prediction(probabilities, np.asarray(estimator.predict(rows)).reshape(n))


def _check_numbers(what: str, answers: Array, shapes: list[tuple[int, ...]]) -> None:
    if answers.shape not in shapes:
        raise ValueError(f"{what} gives an array of shape {answers.shape}, expected {shapes[0]}")
    if odd := np.count_nonzero(~np.isfinite(answers).reshape(len(answers), -1).all(axis=1)):
        raise ValueError(f"{what} gives NaN or infinity for {odd} of {len(answers)} rows")


def make_reference(
    estimator: Any, holdout: pl.DataFrame, columns: Sequence[ColumnSpec], task: TaskType
) -> Reference:
    """Ask the estimator about the holdout (as served) and the probes made of it.

    :raises TrainingError: it cannot answer one of them. Retry: no.
    """
    try:
        answers = estimator_answers(estimator, holdout, task)
    except Exception as error:  # whatever the user's estimator raises
        raise TrainingError(f"the estimator cannot answer the holdout: {described(error)}") from error
    probes, names = probe_rows(holdout, columns)
    parts = [answers]
    for name, probe in zip(names, probes.iter_slices(1), strict=True):
        try:
            parts.append(_answer(estimator, probe, task))
        except Exception as error:  # whatever the user's estimator raises
            raise TrainingError(
                f"the estimator cannot answer a row with {name}, as production will send it: "
                f"{described(error)}. Encoders need handle_unknown, missing values an imputer"
            ) from error
    labels = None
    if task != "regression":
        labels = tuple(str(label) for part in parts for label in np.asarray(part.labels).tolist())
    return Reference(holdout.height, probes, names, np.concatenate([part.outputs for part in parts]), labels)


def reference_bytes(reference: Reference) -> bytes:
    """As a Parquet file."""
    rows, probes = reference.holdout_rows, len(reference.probe_names)
    inputs = pl.concat([reference.probes.clear(rows), reference.probes])
    outputs = reference.outputs.reshape(rows + probes, -1)
    frame = inputs.with_columns(
        pl.Series(_ROW, [*range(rows), *[None] * probes], dtype=pl.Int64),
        pl.Series(_PROBE, [*[None] * rows, *reference.probe_names], dtype=pl.String),
        pl.Series(_LABEL, reference.labels or [None] * (rows + probes), dtype=pl.String),
        pl.Series(_OUTPUTS, outputs, dtype=pl.Array(pl.Float64, outputs.shape[1])).cast(pl.List(pl.Float64)),
    )
    return parquet_bytes(frame)


def read_reference(lake: Lake, path: str, columns: Sequence[ColumnSpec], task: TaskType) -> Reference:
    """Read :func:`reference_bytes`'s file back."""
    with lake.open(path) as file:
        frame = pl.read_parquet(file)
    probes = frame.filter(pl.col(_PROBE).is_not_null())
    outputs = np.array(frame[_OUTPUTS].to_list(), dtype=np.float64)
    return Reference(
        holdout_rows=frame.height - probes.height,
        probes=probes.select(column.name for column in columns),
        probe_names=tuple(probes[_PROBE]),
        outputs=outputs[:, 0] if task == "regression" else outputs,
        labels=None if task == "regression" else tuple(frame[_LABEL]),
    )


def batches(lake: Lake, path: str) -> Iterator[pl.DataFrame]:
    """A Parquet file of the lake, :data:`BATCH_ROWS` rows at a time."""
    import pyarrow.parquet

    with lake.open(path) as file:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)  # a record batch always is one
            yield frame
