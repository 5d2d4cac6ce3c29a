"""The one Spark session that a process has.

Started by ``spark-submit``, as on Kubernetes and Amazon EMR, a process gets the session that it was submitted
to; any other makes one of its own, on its own machine and reachable from there only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import ml_lifecycle
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import SparkSetupError
from ml_lifecycle.quantity import parse_quantity
from ml_lifecycle.spark.job import Job, SparkElsewhereError
from ml_lifecycle.spec.spark import Spark

if TYPE_CHECKING:
    # Under its own name also for the stages, which do not import PySpark themselves.
    from pyspark.sql import SparkSession as SparkSession

_LOOPBACK = "127.0.0.1"
_SUBMITTED = "PYSPARK_GATEWAY_PORT"  # spark-submit tells Python so where its JVM listens

_PATTERN = re.compile(r"[][{}*?\\]")  # what Hadoop expands in paths

# What results depend on, wherever Spark runs.
_ALWAYS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.pyspark.fallback.enabled": "false",
    "spark.sql.caseSensitive": "true",
    # There are as many workers as cores; each of them with as many threads would be too many.
    "spark.executorEnv.POLARS_MAX_THREADS": "1",
    # Days and moments before 1582 as they are written: no other calendar is meant anywhere.
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}


def spark_session(spark: Spark, lake: Lake | None = None, *, name: str = "ml-lifecycle") -> SparkSession:
    """The process's session, made if there is none yet.

    Times are UTC, and columns go to Python and back as Arrow. A lake on S3 is reached by ``s3a``, with its
    own credentials and endpoint if it has any, and else as Spark's surroundings say.

    :param spark: the spec's section
    :raises SparkSetupError: PySpark or Java is not installed. Retry: no.
    """
    check_installed()
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    conf = SparkConf()
    conf.setAppName(name)
    own = {} if _SUBMITTED in os.environ else local_settings(spark)
    for settings in (own, spark.settings, {} if lake is None else s3_settings(lake), _ALWAYS):
        for key, value in settings.items():
            conf.set(key, value)
    if own:
        # Before it heeds any setting, Spark looks up its machine's name, which need not lead anywhere.
        os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
    session = SparkSession.builder.config(conf=conf).getOrCreate()
    session.sparkContext.setLogLevel("WARN")
    if own:
        session.sparkContext.pythonExec = sys.executable  # of the workers; else whatever python3 is
    return session


def session_for(spark: Spark, lake: Lake, job: Job) -> SparkSession:
    """The session that a stage computes with, if it is this process that is to compute.

    :param job: the stage with what it is given, for a process elsewhere
    :raises SparkElsewhereError: the spec says that Spark runs elsewhere. Retry: no.
    :raises SparkSetupError: PySpark or Java is not installed. Retry: no.
    """
    if spark.on != "local" and _SUBMITTED not in os.environ:
        raise SparkElsewhereError(job)
    return spark_session(spark, lake)


def check_installed() -> None:
    """Whether Spark can be started here.

    :raises SparkSetupError: PySpark or Java is not installed. Retry: no.
    """
    if importlib.util.find_spec("pyspark") is None:
        raise SparkSetupError(
            "engine: spark needs PySpark and a Java runtime, 17 or later: "
            "pip install 'airflow-ml-lifecycle[spark]'"
        )
    if _SUBMITTED in os.environ:
        return
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    if java is None or not os.access(java, os.X_OK):
        place = (
            f"JAVA_HOME is {home}, and there is no bin/java in it" if home else "there is no java on the PATH"
        )
        raise SparkSetupError(
            f"engine: spark needs a Java runtime, 17 or later, and {place}: install one, such as Debian's "
            "openjdk-17-jre-headless"
        )


def local_settings(spark: Spark) -> dict[str, str]:
    """What Spark in this process is made with: nobody else can reach it, and it shows no pages."""
    return {
        "spark.master": f"local[{spark.threads}]",
        "spark.driver.memory": jvm_memory(spark.driver.memory),
        "spark.driver.host": _LOOPBACK,
        "spark.driver.bindAddress": _LOOPBACK,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": str(spark.threads),
        # No table is kept; Spark's own default is a folder in whatever the working folder is.
        "spark.sql.warehouse.dir": f"file://{tempfile.gettempdir()}/spark-warehouse",
        "spark.sql.catalogImplementation": "in-memory",
        "spark.driver.extraJavaOptions": "-Duser.timezone=UTC",
        # Workers import the code that this process runs, wherever else it is installed.
        "spark.executorEnv.PYTHONPATH": str(Path(ml_lifecycle.__file__).parents[1]),
    }


def s3_settings(lake: Lake) -> dict[str, str]:
    """How Spark reaches a lake on S3; nothing for other lakes."""
    if not lake.url.startswith("s3://"):
        return {}
    options = lake.storage_options
    client: Mapping[str, str] = options.get("client_kwargs") or {}
    endpoint = str(options.get("endpoint_url") or client.get("endpoint_url") or "")
    # Signatures name a region. Amazon's own stores know theirs; for others it is what Python's client says.
    elsewhere = endpoint and "amazonaws.com" not in endpoint
    given = {
        "access.key": options.get("key"),
        "secret.key": options.get("secret"),
        "session.token": options.get("token"),
        "endpoint": endpoint,
        "endpoint.region": client.get("region_name") or ("us-east-1" if elsewhere else None),
    }
    if endpoint:  # of a store other than Amazon's, whose buckets are no host names
        given["path.style.access"] = "true"
        given["connection.ssl.enabled"] = str(urlsplit(endpoint).scheme == "https").lower()
    return {f"spark.hadoop.fs.s3a.{name}": str(value) for name, value in given.items() if value}


def spark_path(lake: Lake, path: str) -> str:
    """A lake's file as Spark reads it; what would be a pattern is escaped."""
    named = f"file://{lake.full_path(path)}" if lake.local_root is not None else lake.uri(path)
    if named.startswith("s3://"):
        named = f"s3a://{named.removeprefix('s3://')}"
    return _PATTERN.sub(r"\\\g<0>", named)


def jvm_memory(quantity: str) -> str:
    """A Kubernetes quantity as a JVM takes it, in whole MiB."""
    return f"{max(int(parse_quantity(quantity)) >> 20, 1)}m"


def stop_spark() -> None:
    """End the process's session and its JVM, if it has one."""
    from pyspark import SparkContext

    context, gateway = SparkContext._active_spark_context, SparkContext._gateway
    if context is not None:
        context.stop()
    if gateway is None:
        return
    gateway.shutdown()
    if (process := getattr(gateway, "proc", None)) is not None:
        process.stdin.close()  # the JVM ends with it
        process.wait()
    SparkContext._gateway = SparkContext._jvm = None
