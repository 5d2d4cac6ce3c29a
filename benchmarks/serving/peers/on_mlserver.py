"""MLServer with a custom runtime around ONNX Runtime.

    python on_mlserver.py MODEL.onnx PORT

One process (``parallel_workers: 0``, without which this release does not start), no access log, no metrics,
no compression: what costs time and can be turned off is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput
from session import OUTPUTS, Session

_DATATYPES = {"label": "INT64", "probabilities": "FP32"}


class OnnxModel(MLModel):  # type: ignore[misc]  # known to its own environment only
    """The custom runtime."""

    async def load(self) -> bool:
        """Open the session."""
        self._session = Session(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it on one packed tensor, or on a tensor a column."""
        if len(payload.inputs) == 1:
            results = self._session.packed(_array(payload.inputs[0]))
        else:
            results = self._session.columns({tensor.name: _array(tensor) for tensor in payload.inputs})
        outputs = [
            ResponseOutput(
                name=name, datatype=_DATATYPES[name], shape=array.shape, data=array.ravel().tolist()
            )
            for name, array in zip(OUTPUTS, results, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def _array(tensor: RequestInput) -> Any:
    dtype = np.object_ if tensor.datatype == "BYTES" else np.float32
    return np.array(tensor.data.root, dtype).reshape(tensor.shape)


def main(file: str, port: int) -> None:
    """Write the settings beside the model, and become the server."""
    folder = Path(file).parent
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": port + 1,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "gzip_enabled": False,
    }
    model = {
        "name": Path(file).stem,
        "implementation": "on_mlserver.OnnxModel",
        "parameters": {"uri": file},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = str(Path(sys.executable).parent / "mlserver")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    os.execve(program, [program, "start", str(folder)], environment)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
