"""Tiny real models, a lake to publish them in, and the real server as a process of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.adapters.predictions import read_parts
from ml_lifecycle.delivery.route import Route, Variant, publish
from ml_lifecycle.records import ColumnSpec, TaskType
from ml_lifecycle.serving.client import ModelClient

TOKEN = "a token of the tests"
COLUMNS = (
    ColumnSpec("carrier", "string", nullable=True),
    ColumnSpec("wind", "float", nullable=True),
    ColumnSpec("hour", "int"),
)
NUMERIC = (ColumnSpec("a", "float", nullable=True), ColumnSpec("b", "float"))


@dataclass(frozen=True)
class Built:
    """A converted model and the estimator it was made from."""

    data: bytes
    estimator: Any
    task: TaskType
    columns: tuple[ColumnSpec, ...]
    classes: tuple[str, ...]

    def variant(self, version: str) -> Variant:
        digest = sha256(self.data)
        path = f"models/{digest}.onnx"
        return Variant("champion", version, path, digest, self.task, self.columns, self.classes)


def _convert(
    estimator: Any, task: TaskType, columns: tuple[ColumnSpec, ...], classes: tuple[str, ...]
) -> Built:
    from onnx import helper
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

    types = {"float": FloatTensorType, "int": Int64TensorType, "string": StringTensorType}
    model = to_onnx(
        estimator,
        initial_types=[(column.name, types[column.type]([None, 1])) for column in columns],
        options={"zipmap": False} if task != "regression" else None,
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    if task == "regression":
        (output,) = model.graph.output
        model.graph.node.append(helper.make_node("Identity", [output.name], ["prediction"]))
        output.name = "prediction"
    return Built(model.SerializeToString(), estimator, task, columns, classes)


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    """``binary`` and ``inverted`` (its labels swapped), ``regression``, and two of ``multiclass``: labels are
    text or, in ``grades``, whole numbers."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    n = 200
    table = pd.DataFrame(
        {
            "carrier": rng.choice(["AA", "UA", ""], n),
            "wind": np.where(rng.random(n) < 0.1, np.nan, rng.normal(10, 4, n)).astype("float32"),
            "hour": rng.integers(0, 24, n),
        }
    )
    late = (table["hour"] + table["wind"].fillna(10) > 22).astype(int)

    def typed() -> ColumnTransformer:
        return ColumnTransformer(
            [
                ("carrier", OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
                ("wind", SimpleImputer(), ["wind"]),
                ("hour", "passthrough", ["hour"]),
            ]
        )

    def classifier(labels: Any) -> Any:
        return make_pipeline(typed(), LogisticRegression(max_iter=1000)).fit(table, labels)

    numbers = pd.DataFrame(rng.normal(size=(n, 2)).astype("float32"), columns=["a", "b"])
    gather = ColumnTransformer([("a", SimpleImputer(), ["a"]), ("b", "passthrough", ["b"])])
    sizes = pd.cut(numbers["a"], [-99, -0.5, 0.5, 99], labels=["small", "middle", "large"]).astype(str)
    three = make_pipeline(gather, LogisticRegression()).fit(numbers, sizes)
    codes = sizes.map({"small": 10, "middle": 20, "large": 30})
    grades = make_pipeline(gather, LogisticRegression()).fit(numbers, codes)
    line = make_pipeline(gather, LinearRegression()).fit(numbers, 3 * numbers["a"] - numbers["b"])
    return {
        "binary": _convert(classifier(late), "binary", COLUMNS, ("0", "1")),
        "inverted": _convert(classifier(1 - late), "binary", COLUMNS, ("0", "1")),
        "multiclass": _convert(three, "multiclass", NUMERIC, ("large", "middle", "small")),
        "grades": _convert(grades, "multiclass", NUMERIC, ("10", "20", "30")),
        "regression": _convert(line, "regression", NUMERIC, ()),
    }


@dataclass
class Publisher:
    """Publishes models as routes of one lake."""

    lake: Lake
    built: dict[str, Built]

    def __call__(self, endpoint: str, model: str, revision: int, version: str, **changes: Any) -> Route:
        data = self.built[model].data
        variant = replace(self.built[model].variant(version), **changes)
        if not self.lake.exists(f"models/{sha256(data)}.onnx"):
            self.lake.write_bytes(f"models/{sha256(data)}.onnx", data)
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        route = Route(endpoint, "flight_delay", revision, (variant,), "0" * 64, moment)
        publish(self.lake, route)
        return route


@pytest.fixture
def publisher(tmp_path: Path, built: dict[str, Built]) -> Publisher:
    return Publisher(Lake(str(tmp_path / "lake")), built)


class Server:
    """``python -m ml_lifecycle.serving`` on a free port."""

    def __init__(self, lake: Lake, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "ml_lifecycle.serving",
            "--lake",
            lake.url,
            "--environment",
            "staging",
        ]
        self.process = subprocess.Popen(
            [*command, *arguments],
            env={
                **os.environ,
                "ML_LIFECYCLE_SERVER_TOKEN": TOKEN,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        first: queue.Queue[str] = queue.Queue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out, err = self.process.stdout, self.process.stderr
        self._readers = [
            threading.Thread(target=lambda: first.put(out.readline())),
            threading.Thread(target=lambda: self.errors.extend(err)),
        ]
        for reader in self._readers:
            reader.start()
        line = first.get(timeout=30)
        assert " on http://" in line, f"the server did not start: {line}{''.join(self.errors)}"
        self.url, *also = line.split(" on ")[1].strip().split(" and grpc://")
        self.grpc = "".join(also)

    def client(self) -> ModelClient:
        return ModelClient(self.url, TOKEN)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=40)
        for reader in self._readers:
            reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code


def with_repository(folder: Path) -> tuple[str, str]:
    """The option by which whoever has the tests' token may load and unload models."""
    clients = folder / "clients.yaml"
    clients.write_text(f"platform: {{token: {TOKEN}, repository: true}}")
    return "--clients", str(clients)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers; those still running at the test's end are killed."""
    servers: list[Server] = []

    def start_one(lake: Lake, *arguments: str) -> Server:
        servers.append(Server(lake, *arguments))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop(signal.SIGKILL)


def row(carrier: Any = "AA", wind: Any = 12.5, hour: Any = 17) -> dict[str, Any]:
    """A V2 request of one row for the binary models."""
    return {
        "inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": [carrier]},
            {"name": "wind", "datatype": "FP32", "shape": [1], "data": [wind]},
            {"name": "hour", "datatype": "INT64", "shape": [1], "data": [hour]},
        ]
    }


def logged(lake: Lake) -> pl.DataFrame:
    """Every prediction log row in the lake."""
    parts = [read_parts(lake, [path]).collect() for path in lake.list("predictions")]
    return pl.concat(parts) if parts else pl.DataFrame()
