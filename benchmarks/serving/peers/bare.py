"""A floor: a Granian RSGI application that parses the V2 request, runs the session, and writes the answer.

    python bare.py MODEL.onnx PORT

No checks, no log, no metrics, no routing, no token: what is left is what any Python server must do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from session import OUTPUTS, Session

_FILE_VARIABLE = "BARE_MODEL"
_DTYPES = {"FP32": np.float32, "BYTES": np.object_}
_HEADERS = [("content-type", "application/json")]


class Tensor(msgspec.Struct):
    """A tensor of the request; its data is flat."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class Request(msgspec.Struct):
    """A V2 request."""

    inputs: list[Tensor]


def _array(tensor: Tensor) -> Any:
    return np.array(tensor.data, _DTYPES[tensor.datatype]).reshape(tensor.shape)


def _application(file: str) -> Any:
    session, decoder, name = Session(file), msgspec.json.Decoder(Request), Path(file).stem

    async def answer(scope: Any, protocol: Any) -> None:
        inputs = decoder.decode(await protocol()).inputs
        if len(inputs) == 1:
            results = session.packed(_array(inputs[0]))
        else:
            results = session.columns({tensor.name: _array(tensor) for tensor in inputs})
        outputs = [
            {
                "name": output,
                "datatype": "INT64" if output == "label" else "FP32",
                "shape": array.shape,
                "data": array.ravel(),
            }
            for output, array in zip(OUTPUTS, results, strict=True)
        ]
        body = orjson.dumps({"model_name": name, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        protocol.response_bytes(200, _HEADERS, body)

    return answer


def main(file: str, port: int) -> None:
    """Serve until it is ended."""
    os.environ[_FILE_VARIABLE] = file
    Granian(
        "bare:application",
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=1,
        loop=Loops.uvloop,
        log_access=False,
        working_dir=Path(__file__).parent,
    ).serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
elif _FILE_VARIABLE in os.environ:  # Granian's worker
    application = _application(os.environ[_FILE_VARIABLE])
