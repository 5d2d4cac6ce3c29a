"""The typed form of ``model.yaml``'s ``spark`` section: what Spark applications are run with, and where."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml_lifecycle.spec.types import (
    ConnectionId,
    FieldError,
    Image,
    KubernetesName,
    Memory,
    PositiveDuration,
    RoleArn,
    Strict,
)

Engine = Literal["polars", "spark"]
Place = Literal["local", "kubernetes", "emr"]

ApplicationId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-z]{1,64}$",
        json_schema_extra={
            "patternErrorMessage": "must be the id of an EMR Serverless application, such as 00f1abc2def3gh4i"
        },
    ),
]

# Settings that the session, the manifest or another key of the section decides.
_DECIDED = {
    "spark.app.name": None,
    "spark.driver.cores": "driver.cpu",
    "spark.driver.memory": "driver.memory",
    "spark.executor.cores": "executors.cpu",
    "spark.executor.instances": "executors.count",
    "spark.executor.memory": "executors.memory",
    "spark.kubernetes.container.image": "image",
    "spark.master": "on",
    "spark.sql.session.timeZone": None,
    "spark.submit.deployMode": None,
}
# What comes after the prefix is a secret: Airflow's connection and the cluster's own roles have them.
_SECRET = re.compile(r"secret|password|token|access\.?key", re.IGNORECASE)


class Driver(Strict):
    """The process that plans the work and puts results together.

    :param cpu: whole cores
    :param memory: of its JVM; Spark adds what Python needs beside it (``spark.driver.memoryOverhead``)
    """

    cpu: int = Field(default=1, ge=1, le=256)
    memory: Memory = "2Gi"


class Executors(Driver):
    """The processes that do the work; on ``local`` there are none.

    :param count: how many
    :param cpu: whole cores of each
    :param memory: of each one's JVM; Spark adds what Python needs (``spark.executor.memoryOverhead``)
    """

    count: int = Field(default=2, ge=1, le=10_000)
    memory: Memory = "4Gi"


class EmrServerless(Strict):
    """An application of Amazon EMR Serverless that is there already.

    :param application: its id
    :param role: what jobs run as; it may read and write the lake
    """

    application: ApplicationId
    role: RoleArn


class Spark(Strict):
    """What stages are run with where the model says ``engine: spark``.

    :param on: ``local``: in the task's own process. ``kubernetes``: a SparkApplication, by Kubeflow's Spark
        operator. ``emr``: a job of Amazon EMR Serverless
    :param threads: of Spark in the task's own process
    :param conf: further settings of Spark, by their names there
    :param image: of driver and executors, with this project in it; needed on ``kubernetes``
    :param connection: Airflow connection to where it runs; ``connections.pods`` or ``aws_default`` by default
    :param namespace: that SparkApplications are made in; ``default`` if none is given
    :param service_account: what a SparkApplication's driver runs as; it may make pods
    :param emr: needed on ``emr``
    :param timeout: of one application
    """

    on: Place = "local"
    threads: int = Field(default=2, ge=1, le=256)
    driver: Driver = Driver()
    executors: Executors = Executors()
    conf: dict[str, str | bool | int | float] = Field(default_factory=dict)
    image: Image | None = None
    connection: ConnectionId | None = None
    namespace: KubernetesName | None = None
    service_account: KubernetesName | None = None
    emr: EmrServerless | None = None
    timeout: PositiveDuration = timedelta(hours=2)

    @model_validator(mode="after")
    def _has_what_its_place_needs(self) -> Spark:
        if self.on == "kubernetes" and self.image is None:
            raise FieldError("image", "is needed on kubernetes: Spark, Python and this project in one image")
        if (self.on == "emr") != (self.emr is not None):
            raise FieldError("emr", "goes with on: emr, which needs it")
        for name in ("namespace", "service_account"):
            if getattr(self, name) is not None and self.on != "kubernetes":
                raise FieldError(name, "goes with on: kubernetes")
        if self.image is not None and self.on == "emr":
            raise FieldError("image", "is the application's own on emr")
        if self.image is not None and self.on == "local":
            raise FieldError("image", "goes with on: kubernetes; on local it is the task's own process")
        if self.connection is not None and self.on == "local":
            raise FieldError("connection", "goes with on: kubernetes and on: emr")
        return self

    @model_validator(mode="after")
    def _conf_is_left_open(self) -> Spark:
        for name, value in self.conf.items():
            if not re.fullmatch(r"spark(\.[A-Za-z0-9_-]+)+", name):
                raise FieldError("conf", f"{name!r} is no setting of Spark: they start with 'spark.'")
            if name in _DECIDED:
                instead = _DECIDED[name]
                hint = f"use spark.{instead}" if instead else "the application itself decides it"
                raise FieldError("conf", f"{name} cannot be given here: {hint}")
            if _SECRET.search(name):
                raise FieldError(
                    "conf", f"{name} is a secret: it belongs in an Airflow connection or a role, not here"
                )
            if any(mark in str(value) for mark in ("{{", "{%", "{#")):
                raise FieldError(
                    "conf", f"{name}: {value!r} looks like a template: a spec is data, nothing in it runs"
                )
        return self

    @property
    def settings(self) -> dict[str, str]:
        """``conf`` as Spark reads it."""
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in self.conf.items()
        }
