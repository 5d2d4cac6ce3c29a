"""The images, built for real, from a checkout that is full of what no image may hold.

``ML_LIFECYCLE_BASE_IMAGE`` names the image they are built on, where that is not the Dockerfile's own;
``ML_LIFECYCLE_BUILD_OPTIONS`` holds more options of ``docker build``.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from spark_kit import EXECUTOR
from test_application import World

from ml_lifecycle_airflow.spark_manifest import MAIN_IN_IMAGE

pytestmark = pytest.mark.proof

REPOSITORY = Path(__file__).parents[2]
SENT = (
    "LICENSE",
    "README.md",
    "constraints.txt",
    "dags",
    "include",
    "operators",
    "plugins",
    "pyproject.toml",
)
LEFT = {"LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
CANARY = f"canary-{secrets.token_hex(16)}".encode()
PLANTED = (
    ".env",
    ".full/production-token",
    ".git/config",
    ".run/secrets.json",
    "tests/test_canary.py",
    "dags/models/digits/.env",
    "dags/models/digits/.ipynb_checkpoints/training.py",
    "dags/models/digits/__pycache__/dag.cpython-311.pyc",
    "include/ml_lifecycle/__pycache__/errors.cpython-39.pyc",
    "operators/.env.local",
    "plugins/ml_lifecycle_ui/.secrets/token",
)


@dataclass(frozen=True)
class Image:
    """A built image.

    :param archive: what ``docker save`` writes of it: its configuration, its history and its layers
    """

    target: str
    tag: str
    archive: Path

    def run(self, *command: str) -> str:
        """What a command says in a container of it."""
        done = self.tried(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tried(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """A command in a container of it, whatever comes of it."""
        # Its own name leads somewhere, as in any pod.
        alone = ["--network=none", "--hostname=pod", "--add-host=pod:127.0.0.1"]
        whole = ["docker", "run", "--rm", *alone, *options, self.tag, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers, so no image can be built")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in (*SENT, ".dockerignore"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    for name in PLANTED:
        planted = checkout / name
        planted.parent.mkdir(parents=True, exist_ok=True)
        planted.write_bytes(CANARY)
    return checkout


@pytest.fixture(scope="module", params=["server", "training", "airflow", "spark"])
def image(request: pytest.FixtureRequest, checkout: Path) -> Iterator[Image]:
    target: str = request.param
    built = Image(
        target, f"ml-lifecycle-canary-{target}:{secrets.token_hex(4)}", checkout.with_suffix(".tar")
    )
    base = os.environ.get("ML_LIFECYCLE_BASE_IMAGE")
    chosen = ["--build-arg", f"BASE={base}"] if base else []
    chosen += shlex.split(os.environ.get("ML_LIFECYCLE_BUILD_OPTIONS", ""))
    file = str(checkout / "include" / "images" / "Dockerfile")
    command = ["docker", "build", *chosen, "--target", target, "--tag", built.tag, "--file", file]
    subprocess.run([*command, str(checkout)], check=True)
    try:
        subprocess.run(["docker", "save", "--output", str(built.archive), built.tag], check=True)
        yield built
    finally:
        subprocess.run(["docker", "image", "rm", built.tag], check=True)
        built.archive.unlink(missing_ok=True)


def test_nothing_is_in_an_image_but_what_it_is_made_of(image: Image) -> None:
    contents = {name: CANARY in stream.read() for name, stream in _everything(image.archive)}
    assert {name for name, holds_canary in contents.items() if holds_canary} == set()
    ours = {name.split("/")[2] for name in contents if name.startswith("opt/ml-lifecycle/")}
    # Models' code travels in the lake: only those who parse it have it.
    assert ours == LEFT | {"airflow": {"dags"}, "spark": {"spark.py"}}.get(image.target, set())
    assert ("opt/ml-lifecycle/dags/.airflowignore" in contents) == (image.target == "airflow")


def test_it_does_not_run_as_root(image: Image) -> None:
    described = json.loads(subprocess.check_output(["docker", "image", "inspect", image.tag]))
    assert described[0]["Config"]["User"] == "lifecycle"
    assert image.run("id", "-u").strip() == "50000"
    assert image.run("sh", "-c", "test -w /opt/venv || echo kept").strip() == "kept"


def test_it_holds_what_it_is_for_and_no_more(image: Image) -> None:
    uses, lacks = {
        "server": (
            "ml_lifecycle.serving.rest, ml_lifecycle.adapters.feast_reader, s3fs",
            "airflow mlflow sklearn",
        ),
        "training": ("ml_lifecycle.training.pod, skl2onnx, s3fs", "airflow mlflow feast"),
        "spark": (
            # Not Great Expectations: what it imports of PySpark ends a Python that runs no file.
            "ml_lifecycle.spark.application, pyspark, onnxruntime, feast, s3fs",
            "airflow mlflow sklearn",
        ),
        "airflow": ("ml_lifecycle_airflow.dag_builder, ml_lifecycle_ui.plugin, mlflow, psycopg2, s3fs", ""),
    }[image.target]
    code = (
        f"import {uses}\nfrom importlib.util import find_spec\nprint(*filter(find_spec, {lacks.split()!r}))"
    )
    assert image.run("python", "-c", code).split("\n")[-2] == ""


@pytest.mark.parametrize("image", ["spark"], indirect=True)
def test_a_stage_runs_in_a_driver_of_it(image: Image, tmp_path: Path) -> None:
    """As Spark starts one on Kubernetes, but for the executors: its own threads are them."""
    world = World(tmp_path)
    job = world.planned()
    subprocess.run(["chmod", "-R", "a+rwX", world.lake.root], check=True)
    said = image.tried(
        *("driver", "--master", "local[2]", "--conf", "spark.driver.host=127.0.0.1"),
        *("--class", "org.apache.spark.deploy.PythonRunner", MAIN_IN_IMAGE),
        *("--lake", "/lake", "--job", job.path),
        options=["--env=SPARK_DRIVER_BIND_ADDRESS=127.0.0.1", f"--volume={world.lake.root}:/lake"],
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert world.validate().snapshot_digest == world.snapshot.digest


@pytest.mark.parametrize("image", ["spark"], indirect=True)
def test_an_executor_of_it_asks_for_its_driver(image: Image) -> None:
    variables = [f"--env={name}={value}" for name, value in EXECUTOR.items()]
    said = image.tried("executor", options=variables)
    assert "Failed to connect to /127.0.0.1:1" in said.stdout + said.stderr


def _everything(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Every file of every layer by its path, and every description of the image."""
    with tarfile.open(archive) as outer:
        for member in outer:
            if (part := outer.extractfile(member)) is None:
                continue
            if not tarfile.is_tarfile(part):
                part.seek(0)
                yield f"{archive.name}/{member.name}", part
                continue
            part.seek(0)
            with tarfile.open(fileobj=part) as layer:
                for file in layer:
                    if file.isfile() and (stream := layer.extractfile(file)) is not None:
                        yield file.name.removeprefix("./"), stream
