"""ONNX: an estimator's served form. Conversion, sessions and answers, the same for every task type.

A model has one input a column, shaped ``[n, 1]``: float → FLOAT, int → INT64, bool → BOOL, string → STRING;
a missing float is NaN, a missing string the empty string. Classifiers answer ``label`` ``[n]`` and
``probabilities`` ``[n, classes]``, regressors ``prediction`` ``[n]``.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters import onnx_torch, onnx_trees
from ml_lifecycle.errors import ConversionError, FeatureError
from ml_lifecycle.records import ColumnSpec, TaskType

Array = NDArray[Any]

# The newest opsets that every ONNX Runtime from the floor in pyproject.toml on executes. Left to skl2onnx,
# the bytes, and with them the model's digest, would change with its version.
OPSETS = {"": 18, "ai.onnx.ml": 3}
_POLARS: dict[str, type[pl.DataType]] = {
    "float": pl.Float32,
    "int": pl.Int64,
    "bool": pl.Boolean,
    "string": pl.String,
}


@dataclass(frozen=True)
class Prediction:
    """A model's answers.

    :param outputs: ``(n, classes)`` probabilities or ``(n,)`` predictions
    :param labels: ``(n,)`` the class each row is put in, int64 or text; None for regression
    """

    outputs: Array
    labels: Array | None


def as_served(frame: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """The columns in the types a server gets them in: float32 with NaN, int64, bool, text with ``""``.

    Training on these, rather than on float64, is what makes a served answer the estimator's own: a tree's
    split between two values that float32 cannot tell apart would be decided by rounding.

    :raises FeatureError: a column is missing, or an int or bool column has nulls. Retry: no.
    """
    if missing := [column.name for column in columns if column.name not in frame.columns]:
        raise FeatureError(f"columns are missing: {', '.join(missing)}; there are {', '.join(frame.columns)}")
    for column in columns:
        if column.type in ("int", "bool") and frame[column.name].null_count():
            raise FeatureError(
                f"column {column.name!r} is {column.type} and has {frame[column.name].null_count()} nulls, "
                "which that type cannot hold: make it a float feature"
            )
    return frame.select(_as_served(column) for column in columns)


def _as_served(column: ColumnSpec) -> pl.Expr:
    cast = pl.col(column.name).cast(_POLARS[column.type])
    if column.type == "float":
        return cast.fill_null(float("nan"))
    return cast.fill_null("") if column.type == "string" else cast


def feeds(served: pl.DataFrame) -> dict[str, Array]:
    """What a session is fed: :func:`as_served`'s columns, each ``[n, 1]``; numbers are not copied."""
    return {
        series.name: (_texts(series) if series.dtype == pl.String else series.to_numpy()).reshape(-1, 1)
        for series in served
    }


def _texts(series: pl.Series) -> Array:
    """ONNX Runtime takes text as Python objects only: one for each text there is, not for each row."""
    encoded = series.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    texts: Array = encoded.dictionary.to_numpy(zero_copy_only=False)
    rows: Array = encoded.indices.to_numpy(zero_copy_only=False)
    return texts.astype(object)[rows]


def convert(estimator: Any, columns: Sequence[ColumnSpec], task: TaskType) -> bytes:
    """The fitted estimator as ONNX. The same estimator gives the same bytes.

    :raises ConversionError: a part of it has no form in ONNX, or the result does not load. Retry: no.
    """
    import skl2onnx
    from skl2onnx.common.data_types import (
        BooleanTensorType,
        FloatTensorType,
        Int64TensorType,
        StringTensorType,
    )

    types = {
        "float": FloatTensorType,
        "int": Int64TensorType,
        "bool": BooleanTensorType,
        "string": StringTensorType,
    }
    onnx_trees.register()
    onnx_torch.register(OPSETS[""])
    estimator = getattr(estimator, "best_estimator_", estimator)  # a search is served as what it found
    estimator, labels = _without_encoded_labels(estimator)
    estimator = _with_one_input_a_column(estimator, columns)
    # It warns of each tree ensemble's float64 thresholds; parity is measured on every holdout row anyway.
    logging.getLogger("skl2onnx").setLevel(logging.ERROR)
    try:
        graph = skl2onnx.convert_sklearn(
            estimator,
            name="model",  # a random one otherwise, and with it another digest each time
            initial_types=[(column.name, types[column.type]([None, 1])) for column in columns],
            options={id(estimator): {"zipmap": False}} if task != "regression" else None,
            target_opset=OPSETS,
        )
        _name_outputs(graph, task)
        if labels is not None:
            _decode_labels(graph, labels)
        data: bytes = graph.SerializeToString(deterministic=True)
        open_session(data)
    except Exception as error:  # skl2onnx raises whatever its converters do; all of it means the same here
        raise ConversionError(
            f"{_part_at_fault(error, estimator)} does not convert to ONNX: {_reason(error)}"
        ) from error
    return data


def _part_at_fault(error: Exception, estimator: Any) -> str:
    """The part that skl2onnx was at, and the whole it belongs to."""
    whole, part = _describe(estimator), None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # Its messages name the part only at times; its functions all hold it, the innermost the very one.
        at = getattr(frame.f_locals.get("operator"), "raw_operator", None)
        part = type(at).__name__ if at is not None else part
    return whole if part in (None, whole) else f"{part} (in {whole})"


def _reason(error: Exception) -> str:
    """Why, and what would be right."""
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    if isinstance(error, ConversionError):
        return str(error)
    if isinstance(error, MissingConverter | MissingShapeCalculator):
        reason = "skl2onnx has no converter for it"
    else:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
    return (
        f"{reason}. Use parts that skl2onnx supports, in a pipeline that starts with a ColumnTransformer or "
        "with a step that takes every column"
    )


def _without_encoded_labels(estimator: Any) -> tuple[Any, Array | None]:
    """The estimator that answers positions of labels, and the labels; None if it answers them itself."""
    from sklearn.pipeline import Pipeline

    estimators = sys.modules.get("ml_lifecycle.training.labels")
    *before, (name, last) = estimator.steps if isinstance(estimator, Pipeline) else [("model", estimator)]
    if estimators is None or not isinstance(last, estimators.EncodedLabels):
        return estimator, None
    inner = Pipeline([*before, (name, last.estimator_)]) if before else last.estimator_
    return inner, last.classes_


def _with_one_input_a_column(estimator: Any, columns: Sequence[ColumnSpec]) -> Any:
    """A bare estimator takes one matrix; a passing-through step before it takes the columns one by one."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline) or len(columns) == 1:
        return estimator
    names = [column.name for column in columns]
    gather = ColumnTransformer([("columns", "passthrough", names)])
    gather.fit(pd.DataFrame(np.zeros((1, len(names)), dtype=np.float32), columns=names))
    return Pipeline([("columns", gather), ("model", estimator)])


def _describe(estimator: Any) -> str:
    steps = getattr(estimator, "steps", None)
    return " → ".join(type(step).__name__ for _, step in steps) if steps else type(estimator).__name__


def _name_outputs(graph: Any, task: TaskType) -> None:
    """Rename the outputs to the convention's names, and make predictions ``[n]`` of ``[n, 1]``."""
    from onnx import TensorProto, helper

    model = graph.graph
    names = ["label", "probabilities"] if task != "regression" else ["prediction"]
    if len(model.output) != len(names):
        found = [output.name for output in model.output]
        raise ValueError(f"expected {len(names)} outputs for {task}, the graph has {found}")
    if task != "regression":
        for output, name in zip(model.output, names, strict=True):
            if output.name != name:
                model.node.append(helper.make_node("Identity", [output.name], [name], name=f"name_{name}"))
                output.name = name
        return
    flat = helper.make_tensor("prediction_shape", TensorProto.INT64, [1], [-1])
    model.initializer.append(flat)
    model.node.append(
        helper.make_node("Reshape", [model.output[0].name, flat.name], ["prediction"], name="name_prediction")
    )
    del model.output[:]
    model.output.append(helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None]))


def _decode_labels(graph: Any, labels: Array) -> None:
    """Have ``label`` be the labels themselves, not their positions."""
    from onnx import TensorProto, helper

    model, output = graph.graph, graph.graph.output[0]
    for node in model.node:
        node.output[:] = ["position" if name == "label" else name for name in node.output]
        node.input[:] = ["position" if name == "label" else name for name in node.input]
    numbers = labels.dtype.kind in "iu"
    kind = TensorProto.INT64 if numbers else TensorProto.STRING
    values = [int(label) if numbers else str(label).encode() for label in labels]
    model.initializer.append(helper.make_tensor("labels", kind, [len(values)], values))
    model.node.append(helper.make_node("Gather", ["labels", "position"], ["label"], name="decode_label"))
    output.type.tensor_type.elem_type = kind


def open_session(data: bytes, threads: int = 1) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    :param threads: for one call; ONNX Runtime's own default takes every core of the machine
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def label_type(session: Any) -> str | None:
    """``int`` or ``string``, as the model answers classes; None for regression."""
    types = {item.name: item.type for item in session.get_outputs()}
    return {"tensor(int64)": "int", "tensor(string)": "string", None: None}[types.get("label")]


def predict(session: Any, inputs: Mapping[str, Array]) -> Prediction:
    """The session's answers to :func:`feeds`' inputs, of which it takes those the model has.

    :raises ConversionError: the file loads, but cannot answer these rows. Retry: no.
    """
    wanted = {item.name for item in session.get_inputs()}
    names = [item.name for item in session.get_outputs()]
    try:
        results = session.run(names, {key: inputs[key] for key in wanted})
    except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
        raise ConversionError(f"the ONNX file loads, but cannot answer these rows: {error}") from error
    answers = dict(zip(names, results, strict=True))
    if "prediction" in answers:
        return Prediction(np.asarray(answers["prediction"]).reshape(-1), None)
    return Prediction(answers["probabilities"], answers["label"])


def decide(labels: Array, probabilities: Array, classes: Sequence[str], threshold: float) -> Array:
    """Binary labels at a threshold of the positive (last) class; the file itself decides at 0.5."""
    if threshold == 0.5:
        return labels
    negative, positive = np.array(classes, dtype=object).astype(labels.dtype)
    decided: Array = np.where(probabilities[:, 1] >= threshold, positive, negative)
    return decided
