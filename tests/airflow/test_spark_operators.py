"""Stages on Spark elsewhere: what is asked of a cluster and of EMR, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from ml_lifecycle.localpods.connection import connection_json
from ml_lifecycle.records import Validation, from_json, to_json
from ml_lifecycle.spark import application, session
from ml_lifecycle.spark.job import SparkFailure, SparkJob
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle_airflow.dag_builder import lifecycle_dags
from ml_lifecycle_airflow.operators.features import MaterialiseOperator
from ml_lifecycle_airflow.operators.ingest import IngestOperator
from ml_lifecycle_airflow.operators.monitor import MonitorOperator
from ml_lifecycle_airflow.operators.spark import on_spark
from ml_lifecycle_airflow.operators.validate import ValidateOperator

from .conftest import World
from .spark_cluster import Manifest, SparkCluster, spark_cluster

Context = Callable[..., Any]
KUBERNETES = (
    "\nengine: spark\nspark: {on: kubernetes, image: 'registry/spark:1', service_account: spark, "
    "executors: {count: 3, cpu: 4, memory: 8Gi}, conf: {spark.speculation: true}}\n"
)
EMR = (
    "\nengine: spark\nspark: {on: emr, emr: {application: 00f1abc2def3gh4i, "
    "role: 'arn:aws:iam::123456789012:role/spark'}}\n"
)
ENVIRONMENTS = "environments:\n"


def in_process(arguments: list[str]) -> int:
    """An application's driver, with Polars where Spark would be: what it computes other tests tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "session_for", lambda *_: None)
        return application.main(arguments)


def nothing(_: Any) -> int:
    return 0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[SparkCluster]:
    with spark_cluster(lambda manifest: in_process(manifest["spec"]["arguments"])) as running:
        monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_PODS", connection_json(running.url, "token"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("KUBECONFIG", raising=False)
        yield running


def on(world: World, text: str) -> World:
    return world.edit("model.yaml", ENVIRONMENTS, f"{text.lstrip()}{ENVIRONMENTS}")


def ingested(world: World, context: Context, ids: list[int | None]) -> Any:
    rows = pl.DataFrame({"id": ids}, schema={"id": pl.Int64})
    world.root.joinpath("lake").mkdir(exist_ok=True)
    rows.write_parquet(world.root / "lake" / "rows.parquet")
    return IngestOperator(task_id="ingest", folder=world.path).execute(context())


def validating(world: World, snapshot: Any) -> Any:
    spec: ModelSpec = world.folder.spec
    return on_spark(ValidateOperator, spec)(task_id="validate", folder=world.path, snapshot=snapshot)


def test_a_stage_is_computed_by_a_sparkapplication(
    world: World, context: Context, cluster: SparkCluster, supervisor: Any
) -> None:
    made = on(world, KUBERNETES)
    snapshot = ingested(made, context, [1, 2])
    record = validating(made, snapshot).execute(context(task_id="validate"))
    assert from_json(Validation, record).rules > 0
    (manifest,) = cluster.asked
    asked = manifest["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("sparkoperator.k8s.io/v1beta2", "SparkApplication")
    assert manifest["metadata"]["name"].startswith("delays-validate-")
    assert asked["image"] == "registry/spark:1"
    assert asked["mainApplicationFile"] == "local:///opt/ml-lifecycle/spark.py"
    assert (asked["type"], asked["mode"], asked["restartPolicy"]) == ("Python", "cluster", {"type": "Never"})
    encrypted = {"spark.authenticate": "true", "spark.network.crypto.enabled": "true"}
    assert asked["sparkConf"] == {"spark.speculation": "true", **encrypted}
    assert (asked["executor"]["instances"], asked["executor"]["cores"], asked["executor"]["memory"]) == (
        *(3, 4, "8192m"),
    )
    assert asked["driver"]["serviceAccount"] == "spark"
    assert asked["driver"]["labels"]["task_id"] == "validate"
    assert cluster.applications == {}, "what has ended is removed"
    # The result is there: nothing more is asked for.
    assert validating(made, snapshot).execute(context(task_id="validate")) == record
    assert len(cluster.asked) == 1


def test_the_lake_s_secret_reaches_driver_and_executors_by_reference(
    world: World, context: Context, cluster: SparkCluster, supervisor: Any, connect: Callable[..., None]
) -> None:
    made = on(world, KUBERNETES)
    connect("ml_lifecycle_lake", extra={"url": world.lake.url, "pod_secret": "lake-options/json"})
    validating(made, ingested(made, context, [1])).execute(context(task_id="validate"))
    for process in ("driver", "executor"):
        (given,) = (
            one for one in cluster.asked[0]["spec"][process]["env"] if one["name"].endswith("LAKE_OPTIONS")
        )
        assert given["valueFrom"] == {"secretKeyRef": {"name": "lake-options", "key": "json"}}


def test_an_application_gets_no_environment_s_secrets_but_for_the_lake_that_it_reads(world: World) -> None:
    spec = on(world, KUBERNETES).folder.spec
    given = {"task_id": "t", "folder": world.path, "snapshot": {}, "environment": "staging"}
    read = [
        on_spark(stage, spec)(**given).environment_lakes() for stage in (MaterialiseOperator, MonitorOperator)
    ]
    assert read == [(), ("staging",)], "only the task writes into the online store"


def test_what_the_application_says_decides_whether_to_retry(
    world: World, context: Context, cluster: SparkCluster, supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = on(world, KUBERNETES)
    snapshot = ingested(made, context, [1])

    def failing(manifest: Manifest) -> int:
        job = from_json(SparkJob, world.lake.read_json(manifest["spec"]["arguments"][-1]))
        said = SparkFailure("SpecError", "no such contract", retryable=False)
        world.lake.write_json(job.failure_path, to_json(said))
        return 1

    cluster.run = failing
    with pytest.raises(AirflowFailException, match="SpecError: no such contract"):
        validating(made, snapshot).execute(context(task_id="validate"))
    cluster.run = lambda _: 1
    with pytest.raises(AirflowException, match="returned a failure"):
        validating(made, snapshot).execute(context(task_id="validate"))
    cluster.run = nothing
    with pytest.raises(AirflowException, match="ended well and left no result"):
        validating(made, snapshot).execute(context(task_id="validate"))
    names = [manifest["metadata"]["name"] for manifest in cluster.asked]
    assert [name.rpartition("-")[2] for name in names] == ["1", "2", "3"]
    assert len({name.rpartition("-")[0] for name in names}) == 1


def test_a_task_goes_on_with_the_application_of_a_worker_that_died(
    world: World, context: Context, cluster: SparkCluster, supervisor: Any
) -> None:
    made = on(world, KUBERNETES)
    snapshot = ingested(made, context, [1])
    dying = validating(made, snapshot)
    dying.process_pod_deletion = dying.post_complete_action = lambda *_, **__: None
    dying.await_pod_start = lambda *_, **__: (_ for _ in ()).throw(ConnectionError("the worker is gone"))
    run, cluster.run = cluster.run, nothing
    with pytest.raises(ConnectionError):
        dying.execute(context(task_id="validate"))
    assert len(cluster.pods) == 1
    following = validating(made, snapshot)
    find = following.find_spark_job

    def found_while_it_ends(*arguments: Any, **named: Any) -> Any:
        run(cluster.asked[0])
        return find(*arguments, **named)

    following.find_spark_job = found_while_it_ends
    record = following.execute(context(task_id="validate"))
    assert from_json(Validation, record).rules > 0
    assert len(cluster.asked) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "Operator"),
        ("engine: spark\nscoring: {parallel: 3}\n", "Operator"),
        (KUBERNETES, "OnKubernetesOperator"),
        (EMR, "OnEmrOperator"),
    ],
)
def test_the_builder_takes_the_operator_of_the_place(world: World, text: str, names: str) -> None:
    made = on(world, text) if text else world
    dags = lifecycle_dags(f"{made.path}/dag.py")
    train = dags["delays__train"]
    found = {type(train.get_task(name)).__name__ for name in ("validate", "features")}
    found |= {type(dags[f"delays__{name}"].get_task(name)).__name__ for name in ("monitor", "score")}
    found |= {type(dags["delays__score"].get_task("materialise")).__name__}
    prepared = [dags["delays__promote"].get_task(f"prepare_{name}") for name in ("staging", "production")]
    found |= {type(task).__name__ for task in prepared}
    stages = ("Validate", "TrainingSet", "Monitor", "Score", "Materialise", "PrepareFeatures")
    assert found == {f"{stage}{names}" for stage in stages}


def test_a_stage_is_computed_by_a_job_on_emr(
    world: World,
    context: Context,
    supervisor: Any,
    connect: Callable[..., None],
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import boto3

    options = {"region_name": "eu-west-1", "endpoint_url": s3.options["client_kwargs"]["endpoint_url"]}
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    emr = boto3.client("emr-serverless", **options, **keys)
    made_application = emr.create_application(name="spark", releaseLabel="emr-7.10.0", type="SPARK")
    number = made_application["applicationId"]
    made = on(world, EMR.replace("00f1abc2def3gh4i", number))
    lake = s3.new_lake()
    connect("ml_lifecycle_lake", extra={"url": lake.url, "storage_options": lake.storage_options})
    connect("aws_default", conn_type="aws", login="test", password="test", extra=options)
    lake.write_bytes("rows.parquet", b"")
    buffer = tmp_path / "rows.parquet"
    pl.DataFrame({"id": [1, 2]}).write_parquet(buffer)
    lake.put_file("rows.parquet", buffer)
    snapshot = IngestOperator(task_id="ingest", folder=made.path).execute(context())
    with pytest.raises(AirflowException, match="ended well and left no result"):
        validating(made, snapshot).execute(context(task_id="validate"))
    (run,) = emr.list_job_runs(applicationId=number)["jobRuns"]
    job = emr.get_job_run(applicationId=number, jobRunId=run["id"])["jobRun"]
    driver = job["jobDriver"]["sparkSubmit"]
    assert driver["entryPoint"] == f"{lake.url}/code/spark_main.py"
    assert b"ml_lifecycle.spark.application" in lake.read_bytes("code/spark_main.py")
    (defaults,) = job["configurationOverrides"]["applicationConfiguration"]
    assert defaults["properties"]["spark.executor.memory"] == "4096m"
    assert job["executionRole"].endswith("role/spark")
    assert job["name"].startswith("delays-validate-")
    # What the job would have done on EMR.
    monkeypatch.setenv("ML_LIFECYCLE_LAKE_OPTIONS", json.dumps(lake.storage_options))
    assert in_process(driver["entryPointArguments"]) == 0
    record = validating(made, snapshot).execute(context(task_id="validate"))
    assert from_json(Validation, record).rules > 0
    assert len(emr.list_job_runs(applicationId=number)["jobRuns"]) == 1
