"""KServe's Python server with a custom model around ONNX Runtime.

    python on_kserve.py MODEL.onnx PORT

One process on uvloop, no gRPC, no log of latencies or accesses.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import OUTPUTS, Session

_DATATYPES = {"label": "INT64", "probabilities": "FP32"}


class OnnxModel(Model):  # type: ignore[misc]  # known to its own environment only
    """The custom model."""

    def __init__(self, file: str) -> None:
        super().__init__(Path(file).stem)
        self._session = Session(file)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        """Run it on one packed tensor, or on a tensor a column."""
        if len(payload.inputs) == 1:
            results = self._session.packed(_array(payload.inputs[0]))
        else:
            results = self._session.columns({tensor.name: _array(tensor) for tensor in payload.inputs})
        outputs = [
            InferOutput(name, list(array.shape), _DATATYPES[name], array.ravel().tolist())
            for name, array in zip(OUTPUTS, results, strict=True)
        ]
        return InferResponse(payload.id or "", self.name, outputs)


def _array(tensor: Any) -> Any:
    dtype = np.object_ if tensor.datatype == "BYTES" else np.float32
    return np.array(tensor.data, dtype).reshape(tensor.shape)


def main(file: str, port: int) -> None:
    """Serve until it is ended."""
    # Its own `event_loop` setting takes no effect with one worker; it wants a loop to be there.
    uvloop.install()
    asyncio.set_event_loop(asyncio.new_event_loop())
    server = ModelServer(http_port=port, workers=1, enable_grpc=False, enable_latency_logging=False)
    server.start([OnnxModel(file)])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
