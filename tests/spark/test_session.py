"""The session: times, paths, and what is said where it cannot be."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
import pytest
from pyspark import SparkContext

import ml_lifecycle
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SparkSetupError
from ml_lifecycle.spark.session import check_installed, jvm_memory, s3_settings, spark_path, spark_session
from ml_lifecycle.spec.spark import Spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_a_process_has_one(spark: SparkSession) -> None:
    assert spark_session(Spark(threads=7)).sparkContext is spark.sparkContext


def test_nobody_else_can_reach_it(spark: SparkSession) -> None:
    spark.range(10).repartition(3).count()  # what a shuffle opens is open
    gateway = SparkContext._gateway
    assert gateway is not None
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(gateway.proc.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_moments_stay_what_they_are_to_the_microsecond(spark: SparkSession, tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    moments = [datetime(2013, 3, 31, 1, 59, 59, 999_999, UTC), datetime(1969, 12, 31, tzinfo=UTC), None]
    frame = pl.DataFrame({"at": moments}, schema={"at": pl.Datetime("us", "UTC")})
    with lake.writing("some/file.parquet") as file:
        frame.write_parquet(file)
    read = spark.read.parquet(spark_path(lake, "some/file.parquet"))
    assert pl.DataFrame(pl.from_arrow(read.toArrow())).to_dict(as_series=False) == {"at": moments}


def test_workers_run_this_process_s_code(spark: SparkSession) -> None:
    def where(batches: Any) -> Any:
        import pyarrow as pa

        import ml_lifecycle

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"at": [ml_lifecycle.__file__]})

    (found,) = spark.range(1).mapInArrow(where, "at string").collect()
    assert found["at"] == ml_lifecycle.__file__


def test_without_java_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkSetupError, match=r"no java on the PATH: install one, such as Debian's openjdk"):
        check_installed()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SparkSetupError, match=f"JAVA_HOME is {tmp_path}, and there is no bin/java in it"):
        check_installed()


def test_without_pyspark_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SparkSetupError, match=r"airflow-ml-lifecycle\[spark\]"):
        check_installed()


def test_a_lake_on_s3_is_reached_by_s3a_with_its_own_credentials() -> None:
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"}}
    lake = Lake("s3://bucket/prefix", options)
    assert spark_path(lake, "a/b.parquet") == "s3a://bucket/prefix/a/b.parquet"
    settings = s3_settings(lake)
    assert settings["spark.hadoop.fs.s3a.access.key"] == "k"
    assert settings["spark.hadoop.fs.s3a.endpoint"] == "http://127.0.0.1:9000"
    assert settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] == "false"
    assert settings["spark.hadoop.fs.s3a.endpoint.region"] == "us-east-1"
    assert {name.startswith("spark.hadoop.fs.s3a.") for name in settings} == {True}
    assert "spark.hadoop.fs.s3a.access.key" not in s3_settings(Lake("s3://bucket/prefix"))


@pytest.mark.parametrize(
    ("client", "region"),
    [
        ({"endpoint_url": "https://store.example", "region_name": "here"}, "here"),
        ({"endpoint_url": "https://s3.eu-west-1.amazonaws.com"}, None),
        ({"region_name": "eu-west-1"}, "eu-west-1"),
        ({}, None),
    ],
)
def test_a_region_is_said_where_none_can_be_found_out(client: dict[str, str], region: str | None) -> None:
    settings = s3_settings(Lake("s3://bucket", {"client_kwargs": client}))
    assert settings.get("spark.hadoop.fs.s3a.endpoint.region") == region


def test_a_folder_needs_no_settings(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    assert s3_settings(lake) == {}
    assert spark_path(lake, "a/b.parquet") == f"file://{os.path.realpath(tmp_path)}/a/b.parquet"


@pytest.mark.parametrize(("quantity", "memory"), [("2Gi", "2048m"), ("1500M", "1430m"), ("1", "1m")])
def test_memory_is_said_as_a_jvm_takes_it(quantity: str, memory: str) -> None:
    assert jvm_memory(quantity) == memory
