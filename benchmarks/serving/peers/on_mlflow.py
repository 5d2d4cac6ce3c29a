"""``mlflow models serve`` of the same file, saved in its ONNX flavor.

    python on_mlflow.py MODEL.onnx PORT

One worker in this environment; uvloop and httptools are installed, which its uvicorn takes if they are there.
No signature: checking one costs time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mlflow.onnx
import onnx


def main(file: str, port: int) -> None:
    """Save the model beside the file, and become the server."""
    saved = Path(file).parent / "saved"
    mlflow.onnx.save_model(
        onnx.load(file),
        str(saved),
        pip_requirements=[],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
    binaries = str(Path(sys.executable).parent)  # it starts `uvicorn`, found on the path
    environment = {
        **os.environ,
        "PATH": binaries + os.pathsep + os.environ.get("PATH", ""),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "UVICORN_ACCESS_LOG": "false",
        "UVICORN_LOG_LEVEL": "warning",
    }
    options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--env-manager", "local")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(saved), *options]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
