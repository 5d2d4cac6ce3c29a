"""What Spark starts its pods with, as far as a machine without a cluster goes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyspark
from spark_kit import EXECUTOR

ENTRYPOINT = Path(__file__).parents[2] / "include" / "images" / "spark-entrypoint.sh"


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARK_HOME": str(Path(pyspark.__file__).parent), **variables}
    command = ["sh", str(ENTRYPOINT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_an_executor_s_arguments_are_understood_and_its_driver_is_asked_for(tmp_path: Path) -> None:
    """Up to where a driver would answer."""
    said = start("executor", **EXECUTOR, SPARK_CONF_DIR=str(tmp_path))
    assert said.returncode != 0
    assert "Failed to connect to /127.0.0.1:1" in said.stdout + said.stderr
    assert "Unrecognized" not in said.stderr


def test_an_executor_that_is_told_too_little_is_not_started() -> None:
    for name in EXECUTOR:
        if not name.startswith("SPARK_JAVA_OPT"):
            said = start("executor", **{key: value for key, value in EXECUTOR.items() if key != name})
            assert said.returncode != 0
            assert f"{name}: parameter not set" in said.stderr


def test_a_driver_gets_what_spark_submit_is_given(tmp_path: Path) -> None:
    home = tmp_path / "spark home"
    submit = home / "bin" / "spark-submit"
    submit.parent.mkdir(parents=True)
    submit.write_text('#!/bin/sh\nfor one in "$@"; do echo "$one"; done\n')
    submit.chmod(0o755)
    given = ["--properties-file", "a b", "local:///opt/ml-lifecycle/spark.py", "--lake", ""]
    said = start("driver", *given, SPARK_HOME=str(home), SPARK_DRIVER_BIND_ADDRESS="10.0.0.1")
    lines = said.stdout.splitlines()
    assert lines[:2] == ["--deploy-mode", "client"]
    assert "spark.driver.bindAddress=10.0.0.1" in lines
    assert lines[-len(given) :] == given


def test_anything_else_is_run_as_it_is() -> None:
    assert start("echo", "a  b").stdout == "a  b\n"
