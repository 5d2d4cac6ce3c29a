"""What ``engine`` and ``spark`` may say in model.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_lifecycle.spec.loader import read_spec
from ml_lifecycle.spec.model import ModelSpec

EXAMPLE = Path(__file__).parents[2] / "dags" / "models" / "flight_delay" / "model.yaml"
EMR = "{application: 00f1abc2def3gh4i, role: 'arn:aws:iam::123456789012:role/spark'}"


def problems(text: str) -> list[str]:
    _, found = read_spec(ModelSpec, EXAMPLE.read_bytes() + text.encode(), "model.yaml")
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    "text",
    [
        "engine: spark\n",
        "engine: spark\nspark: {threads: 4, driver: {memory: 4Gi}}\n",
        "engine: spark\nspark: {on: kubernetes, image: 'registry/spark:1', namespace: spark}\n",
        f"engine: spark\nspark: {{on: emr, emr: {EMR}}}\n",
        "engine: spark\nspark: {conf: {spark.sql.shuffle.partitions: 64, spark.speculation: true}}\n",
    ],
)
def test_what_is_right(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine: sparc\n", "must be one of polars, spark"),
        ("spark: {threads: 4}\n", "goes with engine: spark"),
        ("engine: spark\nspark: {on: kubernetes}\n", "is needed on kubernetes"),
        ("engine: spark\nspark: {on: emr}\n", "goes with on: emr, which needs it"),
        (f"engine: spark\nspark: {{emr: {EMR}}}\n", "goes with on: emr, which needs it"),
        ("engine: spark\nspark: {namespace: spark}\n", "goes with on: kubernetes"),
        ("engine: spark\nspark: {connection: aws_default}\n", "goes with on: kubernetes and on: emr"),
        ("engine: spark\nspark: {conf: {shuffle: 1}}\n", "'shuffle' is no setting of Spark"),
        ("engine: spark\nspark: {conf: {spark.executor.memory: 1g}}\n", "use spark.executors.memory"),
        ("engine: spark\nspark: {conf: {spark.sql.session.timeZone: CET}}\n", "the application itself"),
        ("engine: spark\nspark: {conf: {spark.hadoop.fs.s3a.secret.key: s}}\n", "is a secret"),
        ("engine: spark\nspark: {conf: {spark.a: '{{ var.value.x }}'}}\n", "looks like a template"),
        ("engine: spark\nspark: {executors: {cpu: 500m}}\n", "executors.cpu"),
        (f"engine: spark\nspark: {{on: emr, emr: {EMR}, image: a/b}}\n", "is the application's own on emr"),
        ("engine: spark\nspark: {image: a/b}\n", "goes with on: kubernetes; on local"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    (problem,) = problems(text)
    assert said in problem


def test_settings_are_as_spark_reads_them() -> None:
    text = "engine: spark\nspark: {conf: {spark.speculation: true, spark.task.maxFailures: 8}}\n"
    parsed, _ = read_spec(ModelSpec, EXAMPLE.read_bytes() + text.encode(), "model.yaml")
    assert parsed is not None
    assert parsed.value.spark.settings == {"spark.speculation": "true", "spark.task.maxFailures": "8"}
