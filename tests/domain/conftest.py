"""What takes seconds to make, one of each a session.

The example's worlds, for tests that change nothing, and a process to fork from.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from delivery_kit import Server
from faults import FaultKit
from flight_world import World, three_weeks, whole_year
from localpods_kit import Cluster
from toy_loop import Attempts, Sum

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.client import ModelClient

# What the stages import by and by; a fork that has it starts within hundredths of a second.
_IMPORTED = (
    "evidently.presets",
    "feast.infra.passthrough_provider",
    "feast.repo_operations",
    "lightgbm",
    "mlflow.onnx",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.types.responses",
    "onnxruntime",
    "pandas",
    "pytest",
    "skl2onnx",
    "sklearn.ensemble",
    "sklearn.pipeline",
    "torch._dynamo",  # the first optimizer of a process imports it
    "xgboost",
    "delivery_world",
    "small_life",
    "ml_lifecycle.adapters.evidently",
    "ml_lifecycle.adapters.feast_reader",
    "ml_lifecycle.adapters.feast_written",
)


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory) -> World:
    return whole_year(tmp_path_factory.mktemp("year"))


@pytest.fixture(scope="session")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> World:
    return three_weeks(tmp_path_factory.mktemp("weeks"))


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelClient, Lake]]:
    """A model server, and the lake that it serves from."""
    lake = Lake(str(tmp_path_factory.mktemp("serving") / "lake"))
    server = Server(lake)
    with server.client() as client:
        yield client, lake
    server.stop()


@pytest.fixture(scope="session")
def faults() -> FaultKit:
    return FaultKit(_IMPORTED)


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts a localpods of the test's own with the given options."""
    started: list[Cluster] = []

    def start(*options: str) -> Cluster:
        started.append(Cluster(tmp_path, *options))
        return started[-1]

    yield start
    for cluster in started:
        cluster.close()


@pytest.fixture(params=["folder", "object store"])
def any_lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    if request.param == "folder":
        return Lake(str(tmp_path / "lake"))
    return Lake(f"memory://bucket-{uuid.uuid4().hex}/prefix")


@pytest.fixture
def attempts(any_lake: Lake, tmp_path: Path) -> Attempts:
    return Attempts(any_lake, tmp_path / "scratch")


@pytest.fixture
def whole_sum(tmp_path: Path) -> Sum:
    """What a training without interruption ends in."""
    return Attempts(Lake(str(tmp_path / "whole")), tmp_path / "whole-scratch").train()
