"""The ONNX Runtime session that every peer runs: one thread, as the model server's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

OUTPUTS = ("label", "probabilities")


class Session:
    """An ONNX file whose inputs are columns of shape ``[n, 1]``."""

    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.names = tuple(node.name for node in session.get_inputs())
        self._run = session.run

    def columns(self, columns: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Label and probabilities of rows given as columns."""
        outputs: list[NDArray[Any]] = self._run(OUTPUTS, columns)
        return outputs

    def packed(self, matrix: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Label and probabilities of rows given as one matrix, its columns in the inputs' order."""
        columns = np.ascontiguousarray(matrix.T)[:, :, None]
        return self.columns(dict(zip(self.names, columns, strict=True)))
