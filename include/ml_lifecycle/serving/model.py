"""One ONNX file, loaded, checked against what its route says about it, and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_lifecycle.adapters.onnx import decide, open_session
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.records import ColumnSpec, TaskType
from ml_lifecycle.serving.columns import Features, Matrix, Table, make_table
from ml_lifecycle.serving.errors import ModelFailedError, RouteRefusedError

OUTPUTS: Mapping[TaskType, tuple[str, ...]] = {
    "binary": ("label", "probabilities"),
    "multiclass": ("label", "probabilities"),
    "regression": ("prediction",),
}
_ONNX_TYPES = {
    "float": "tensor(float)",
    "int": "tensor(int64)",
    "bool": "tensor(bool)",
    "string": "tensor(string)",
}
# Output type of the file → V2 datatype.
_DATATYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(string)": "BYTES"}
_ANY_VALUE: Mapping[str, Any] = {"float": 0.0, "int": 0, "bool": False, "string": ""}

Outputs = Mapping[str, NDArray[Any]]


class OnnxModel:
    """A model ready to answer: its interface was checked and one row was scored.

    The file takes an input of shape ``[rows, 1]`` a column, or, if all columns are floats, a single one of
    shape ``[rows, columns]`` that has no column's name.

    :param data: the ONNX file's bytes, already checked against the variant's digest
    :param threads: intra-op threads of ONNX Runtime
    :ivar datatypes: the V2 datatype of each output
    :raises RouteRefusedError: the bytes are no such model. Retry: no.
    """

    def __init__(self, data: bytes, variant: Variant, threads: int = 1) -> None:
        self.variant = variant
        self._session = _open(data, variant, threads)
        inputs = self._session.get_inputs()
        self._inputs = tuple(node.name for node in inputs)
        self._outputs = OUTPUTS[variant.task]
        self._packed = len(inputs) == 1 and self._inputs[0] not in {column.name for column in variant.columns}
        self._check_interface()
        self._warm_up()

    def run(self, table: Table) -> Outputs:
        """Score the rows: ``label [n]`` and ``probabilities [n, classes]``, or ``prediction [n]``.

        Safe from several threads at once.

        :raises ModelFailedError: ONNX Runtime could not run it. Retry: no.
        """
        try:
            results = self._session.run(self._outputs, self._feeds(table))
        except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
            raise ModelFailedError(
                f"version {self.variant.version} could not score the rows: {error}"
            ) from error
        outputs = dict(zip(self._outputs, results, strict=True))
        if self.variant.task == "regression":
            outputs["prediction"] = outputs["prediction"].reshape(table.rows)
        else:
            outputs["label"] = self._decide(outputs["label"].reshape(table.rows), outputs["probabilities"])
        return outputs

    def _feeds(self, table: Table) -> dict[str, NDArray[Any]]:
        if self._packed and isinstance(table, Matrix):
            return {self._inputs[0]: table.matrix}
        columns = table.columns
        if self._packed:
            return {self._inputs[0]: np.column_stack([columns[one.name] for one in self.variant.columns])}
        return {name: columns[name].reshape(-1, 1) for name in self._inputs}

    def _decide(self, label: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[Any]:
        if self.variant.task != "binary":
            return label
        return decide(label, probabilities, self.variant.classes, self.variant.threshold)

    def _check_interface(self) -> None:
        found = {node.name: node.type for node in self._session.get_inputs()}
        declared = {column.name: _ONNX_TYPES[column.type] for column in self.variant.columns}
        if self._packed and set(declared.values()) == {"tensor(float)"}:
            declared |= dict.fromkeys(self._inputs, "tensor(float)")
        # A column the estimator drops may be no input of the file.
        if not found.items() <= declared.items():
            raise RouteRefusedError(f"the model's inputs are {found}, its route declares {declared}")
        outputs = {node.name: node.type for node in self._session.get_outputs()}
        if missing := [name for name in self._outputs if name not in outputs]:
            raise RouteRefusedError(f"the model gives {list(outputs)} and lacks {missing}")
        if odd := {name: outputs[name] for name in self._outputs if outputs[name] not in _DATATYPES}:
            raise RouteRefusedError(f"the model's outputs {odd} are none of {list(_DATATYPES)}")
        # Labels are text or whole numbers, as the training labels were.
        self.datatypes = {name: _DATATYPES[outputs[name]] for name in self._outputs}

    def _warm_up(self) -> None:
        """Score one row: the first run allocates, and a model that cannot run is found out here."""
        columns = self.variant.columns
        row = Features(1, [[_ANY_VALUE[column.type]] for column in columns], "request")
        try:
            outputs = self.run(make_table(columns, [row]))
        except (ModelFailedError, ValueError) as error:
            raise RouteRefusedError(f"the model failed on a row of zeros: {error}") from error
        classes = len(self.variant.classes)
        if "probabilities" in outputs and outputs["probabilities"].shape != (1, classes):
            raise RouteRefusedError(
                f"the model gives probabilities of shape {outputs['probabilities'].shape} for one row, "
                f"its route declares {classes} classes"
            )


def _open(data: bytes, variant: Variant, threads: int) -> Any:
    try:
        return open_session(data, threads)
    except Exception as error:  # ONNX Runtime's own exceptions share no base but Exception
        raise RouteRefusedError(f"{variant.model_path} does not load as an ONNX model: {error}") from error


def same_model(one: Variant, other: Variant) -> bool:
    """Whether a model loaded for ``one`` can answer for ``other``."""
    return _interface(one) == _interface(other)


def _interface(variant: Variant) -> tuple[str, TaskType, tuple[ColumnSpec, ...], tuple[str, ...], float]:
    return variant.model_digest, variant.task, variant.columns, variant.classes, variant.threshold
