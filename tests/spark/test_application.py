"""The application: what it reads, computes and leaves, in this process and under spark-submit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyspark
import pytest
from data_cases import run
from training_world import make_folder

import ml_lifecycle.spark
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Snapshot, from_json
from ml_lifecycle.spark.application import main, plan_application
from ml_lifecycle.spark.attempts import SparkAttempts
from ml_lifecycle.spark.job import Job, SparkElsewhereError, SparkFailure, SparkJob
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.validate import validate

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ELSEWHERE = "engine: spark\nspark: {on: kubernetes, image: 'registry/spark:1'}\nenvironments:\n"


class World:
    """A model whose Spark runs elsewhere, and a snapshot of its three rows."""

    def __init__(self, root: Path) -> None:
        made = make_folder(root / "models", name="demo").path
        text = (made / "model.yaml").read_text()
        (made / "model.yaml").write_text(text.replace("environments:\n", ELSEWHERE))
        self.folder: ModelFolder = load_folder(made)
        self.lake = Lake(str(root / "lake"))
        with self.lake.writing("rows.parquet") as file:
            pl.DataFrame({"id": [1, 2, None]}).write_parquet(file)
        spec, contracts = self.folder.spec, self.folder.contracts
        self.snapshot: Snapshot = ingest(
            spec, self.lake, run("2026-01-01", "2026-02-01"), contracts=contracts
        )

    def validate(self) -> Any:
        return validate(self.folder.spec, self.folder.contracts, self.lake, self.snapshot, None)

    def planned(self) -> SparkJob:
        with pytest.raises(SparkElsewhereError) as raised:
            self.validate()
        return plan_application(self.folder, self.lake, raised.value.job)

    def arguments(self, job: SparkJob) -> list[str]:
        return ["--lake", self.lake.url, "--job", job.path]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.full
def test_it_leaves_the_stage_s_own_manifest(
    spark: SparkSession, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.planned()
    assert world.planned() == job
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "as spark-submit says it")
    monkeypatch.setenv("ML_LIFECYCLE_LAKE_OPTIONS", "{}")
    assert main(world.arguments(job)) == 0
    assert "ML_LIFECYCLE_LAKE_OPTIONS" not in os.environ
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT")
    assert not world.validate().failed


def test_what_goes_wrong_is_said_beside_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = plan_application(world.folder, world.lake, Job("validate", {"snapshot": {}, "previous": None}))
    assert main(world.arguments(job)) == 1
    failure = from_json(SparkFailure, world.lake.read_json(job.failure_path))
    assert (failure.kind, failure.retryable) == ("RecordError", False)
    attempts = SparkAttempts(world.lake, job)
    assert attempts.number == 1
    assert attempts.failed("exit code 1") == failure
    following = SparkAttempts(world.lake, job)
    assert following.number == 2
    assert following.failed("evicted") is None, "it said nothing itself"


def test_code_that_was_changed_on_its_way_is_refused(world: World) -> None:
    job = world.planned()
    world.lake.write_bytes(job.code_path, b"something else")
    assert main(world.arguments(job)) == 1
    failure = from_json(SparkFailure, world.lake.read_json(job.failure_path))
    assert failure.kind == "IntegrityError"


@pytest.mark.full
def test_under_spark_submit(world: World) -> None:
    """The real thing but for the cluster: a JVM that starts Python, which finds its session there."""
    job = world.planned()
    home, package = Path(pyspark.__file__).parent, Path(ml_lifecycle.spark.__file__).parent
    command = [str(home / "bin" / "spark-submit"), "--master", "local[2]", "--driver-memory", "1g"]
    command += ["--conf", "spark.ui.enabled=false", "--conf", "spark.driver.host=127.0.0.1"]
    path = os.pathsep.join([str(package.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": path}
    done = subprocess.run(
        [*command, str(package / "__main__.py"), *world.arguments(job)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert world.validate().snapshot_digest == world.snapshot.digest
