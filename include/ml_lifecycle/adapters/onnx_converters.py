"""What our own converters to ONNX share: how skl2onnx learns of them, and how a label is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# What skl2onnx asks of a classifier's converter; raw_scores within CalibratedClassifierCV.
_CLASSIFIER_OPTIONS = {
    "nocl": [True, False],
    "zipmap": [True, False, "columns"],
    "raw_scores": [True, False],
}


def register(estimator: type[Any], convert: Callable[[Any, Any, Any], None], classifier: bool) -> None:
    """Have skl2onnx convert this class, alone, in a pipeline or within another estimator, by ``convert``.

    :param convert: gets scope, operator and container; a classifier's operator has two outputs, label and
        probabilities, any other's one
    """
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    update_registered_converter(
        estimator,
        f"MlLifecycle{estimator.__name__}",
        calculate_linear_classifier_output_shapes if classifier else calculate_linear_regressor_output_shapes,
        convert,
        options=_CLASSIFIER_OPTIONS if classifier else None,
    )


def add_most_probable_label(scope: Any, container: Any, classes: Any, probabilities: str, label: str) -> None:
    """Add what makes ``label`` of ``probabilities``: the class of the highest, the first of equals.

    :param classes: numbers or texts, in the order of the columns
    """
    from onnx import TensorProto

    numbers = np.issubdtype(np.asarray(classes).dtype, np.number)
    kind = TensorProto.INT64 if numbers else TensorProto.STRING
    values = [int(value) if numbers else str(value).encode() for value in classes]
    known, best = scope.get_unique_variable_name("classes"), scope.get_unique_variable_name("best")
    container.add_initializer(known, kind, [len(values)], values)
    name = scope.get_unique_operator_name
    container.add_node("ArgMax", [probabilities], [best], name=name("ArgMax"), axis=1, keepdims=0)
    container.add_node("Gather", [known, best], [label], name=name("Gather"), axis=0)
