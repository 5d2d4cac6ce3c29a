"""One Spark for all tests here: its JVM takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ml_lifecycle.spark.session import spark_session, stop_spark
from ml_lifecycle.spec.spark import Driver, Spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Tables of a few rows are done before the JVM has compiled what it would read a billion with.
_QUICK = {
    "spark.driver.defaultJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.codegen.wholeStage": False,
}
LOCAL = Spark(threads=2, driver=Driver(memory="1Gi"), conf=_QUICK)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    yield spark_session(LOCAL)
    stop_spark()
