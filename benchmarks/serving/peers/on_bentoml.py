"""BentoML: a service class with an ONNX Runtime session, a method a model.

    python on_bentoml.py MODEL.onnx PORT

One worker, coroutines (no hop to a thread), no access log, no metrics, no tracing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType, Shape
from session import Session

_FILE_VARIABLE = "BENTO_MODEL"
_SETTINGS = {"workers": 1, "metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}
_SERVICES = {"packed": "Packed", "strings": "Strings"}


@bentoml.service(**_SETTINGS)
class Packed:
    """Twelve numbers a row, as a matrix."""

    def __init__(self) -> None:
        self._session = Session(os.environ[_FILE_VARIABLE])

    @bentoml.api  # type: ignore[untyped-decorator]  # known to its own environment only
    async def predict(self, rows: Annotated[np.ndarray, DType("float32"), Shape((-1, 12))]) -> np.ndarray:
        """The probabilities."""
        return self._session.packed(rows)[1]


@bentoml.service(**_SETTINGS)
class Strings:
    """Two strings and four numbers a row, a list a column."""

    def __init__(self) -> None:
        self._session = Session(os.environ[_FILE_VARIABLE])

    @bentoml.api  # type: ignore[untyped-decorator]  # known to its own environment only
    async def predict(
        self,
        carrier: list[str],
        origin: list[str],
        wind: list[float],
        hour: list[float],
        distance: list[float],
        delay: list[float],
    ) -> np.ndarray:
        """The probabilities."""
        columns = {
            "carrier": np.array(carrier, np.object_),
            "origin": np.array(origin, np.object_),
            "wind": np.array(wind, np.float32),
            "hour": np.array(hour, np.float32),
            "distance": np.array(distance, np.float32),
            "delay": np.array(delay, np.float32),
        }
        return self._session.columns({name: values.reshape(-1, 1) for name, values in columns.items()})[1]


def main(file: str, port: int) -> None:
    """Become the server."""
    here = str(Path(__file__).parent)
    service = f"on_bentoml:{_SERVICES[Path(file).stem]}"
    environment = {
        **os.environ,
        _FILE_VARIABLE: file,
        "PYTHONPATH": here,
        "BENTOML_HOME": str(Path(file).parent / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    options = ("--host", "127.0.0.1", "--port", str(port), "--working-dir", here)
    os.execve(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *options], environment)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
