"""Rows in files of a lake, as a snapshot has them, and a pod as Spark makes one."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import StoredRows, column_types, write_parquet
from ml_lifecycle.records import SnapshotFile

# As Spark's own steps fill in an executor's pod.
EXECUTOR = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@127.0.0.1:1",
    "SPARK_EXECUTOR_ID": "7",
    "SPARK_EXECUTOR_CORES": "2",
    "SPARK_EXECUTOR_MEMORY": "256m",
    "SPARK_APPLICATION_ID": "spark-0123",
    "SPARK_EXECUTOR_POD_IP": "127.0.0.1",
    "SPARK_EXECUTOR_POD_NAME": "exec-7",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_JAVA_OPT_0": "-Dspark.driver.port=1",
    "SPARK_JAVA_OPT_1": "-Dtold=in two words",
    "SPARK_JAVA_OPT_2": "-XX:TieredStopAtLevel=1",
}


def stored(lake: Lake, folder: str, frame: pl.DataFrame, sizes: Sequence[int]) -> StoredRows:
    """The frame in files of so many rows each, none of them empty of files."""
    files, start = [], 0
    for number, size in enumerate([*sizes, max(frame.height - sum(sizes), 0)]):
        part = frame.slice(start, size)
        path = write_parquet(lake, f"{folder}/{number}.parquet", part)
        files.append(SnapshotFile(str(number), path, f"{number:064x}", part.height))
        start += size
    return StoredRows(lake, column_types(frame), tuple(files))
