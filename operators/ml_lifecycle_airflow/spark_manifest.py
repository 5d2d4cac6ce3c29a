"""A job as what runs it wants to be told: a SparkApplication, or a job of Amazon EMR Serverless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.hooks.lake import ConnectionIncompleteError, LakeHook

if TYPE_CHECKING:
    from ml_lifecycle.spark.job import SparkJob
    from ml_lifecycle.spec.spark import Driver
    from ml_lifecycle_airflow.operators.base import Resources

MAIN_IN_IMAGE = "local:///opt/ml-lifecycle/spark.py"
"""Where an image for Kubernetes has ``ml_lifecycle/spark/__main__.py``, or a link to it."""
# What goes between driver and executors holds the lake's options, which are credentials.
_ENCRYPTED = {"spark.authenticate": "true", "spark.network.crypto.enabled": "true"}
_MAIN = "import sys\n\nfrom ml_lifecycle.spark.application import main\n\nsys.exit(main())\n"


def application_name(job: SparkJob, number: int) -> str:
    """The name of the application that is a job's so-manieth: the same for who asks for it again."""
    stem = f"{job.model}-{job.stage}".replace("_", "-")[:36].rstrip("-")
    return f"{stem}-{job.digest[:12]}-{number}"


def spark_application(resources: Resources, job: SparkJob, environments: Sequence[str]) -> dict[str, Any]:
    """The manifest (``sparkoperator.k8s.io/v1beta2``), but for the name.

    :param environments: those whose lakes are read, for their secrets
    """
    from ml_lifecycle.spark.session import jvm_memory

    spec, spark = resources.spec, resources.spec.spark
    env = _secrets(resources, environments)

    def process(asked: Driver, **more: Any) -> dict[str, Any]:
        return {
            "cores": asked.cpu,
            "memory": jvm_memory(asked.memory),
            "env": [dict(one) for one in env],
            **more,
        }

    account = {} if spark.service_account is None else {"serviceAccount": spark.service_account}
    return {
        "apiVersion": "sparkoperator.k8s.io/v1beta2",
        "kind": "SparkApplication",
        "metadata": {"labels": {"ml-lifecycle/model": spec.name, "ml-lifecycle/stage": job.stage}},
        "spec": {
            "type": "Python",
            "pythonVersion": "3",
            "mode": "cluster",
            "image": spark.image,
            "imagePullPolicy": "IfNotPresent",
            "sparkVersion": _spark_version(),
            "mainApplicationFile": MAIN_IN_IMAGE,
            "arguments": _arguments(resources, job),
            "sparkConf": {**_ENCRYPTED, **spark.settings},
            # Another application is the task's to ask for: it knows what became of this one.
            "restartPolicy": {"type": "Never"},
            "driver": process(spark.driver, **account),
            "executor": process(spark.executors, instances=spark.executors.count),
        },
    }


def emr_job(resources: Resources, job: SparkJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """``jobDriver`` and ``configurationOverrides``; the main file is put into the lake.

    :raises ConnectionIncompleteError: the lake is not on S3. Retry: no.
    """
    from ml_lifecycle.spark.session import jvm_memory

    lake, spark = resources.lake(), resources.spec.spark
    if not lake.url.startswith("s3://"):
        raise ConnectionIncompleteError(
            f"connection {resources.spec.connections.lake!r} leads to {lake.url}; "
            "Spark on EMR needs a lake at s3://…"
        )
    main = lake.write_bytes("code/spark_main.py", _MAIN.encode())
    properties = {
        "spark.driver.cores": str(spark.driver.cpu),
        "spark.driver.memory": jvm_memory(spark.driver.memory),
        "spark.executor.cores": str(spark.executors.cpu),
        "spark.executor.memory": jvm_memory(spark.executors.memory),
        "spark.executor.instances": str(spark.executors.count),
        **spark.settings,
    }
    driver = {"entryPoint": lake.uri(main), "entryPointArguments": _arguments(resources, job)}
    defaults = {"classification": "spark-defaults", "properties": properties}
    return {"sparkSubmit": driver}, {"applicationConfiguration": [defaults]}


def _arguments(resources: Resources, job: SparkJob) -> list[str]:
    return ["--lake", resources.lake().url, "--job", job.path]


def _secrets(resources: Resources, environments: Sequence[str]) -> list[dict[str, Any]]:
    """The lakes' options, of the Kubernetes secrets that their connections name."""
    from ml_lifecycle.spark.job import ENVIRONMENT_OPTIONS_VARIABLE, LAKE_OPTIONS_VARIABLE

    named = {LAKE_OPTIONS_VARIABLE: resources.spec.connections.lake}
    for environment in environments:
        named[ENVIRONMENT_OPTIONS_VARIABLE] = resources.spec.environments[environment].lake
    found = []
    for variable, connection in named.items():
        if secret := LakeHook(connection).pod_secret():
            name, key = secret
            reference = {"secretKeyRef": {"name": name, "key": key}}
            found.append({"name": variable, "valueFrom": reference})
    return found


def _spark_version() -> str:
    """Shown by the Spark operator; what runs is the image's."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pyspark")
    except PackageNotFoundError:
        return "4.0.0"
