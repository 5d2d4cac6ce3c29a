"""The example's training set, made by both engines of the same model folder."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flight_world import STORY_STARTS, World, folder_with, january, short_holdout

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo import flights
from ml_lifecycle.records import to_json
from ml_lifecycle.spark.application import STAGES
from ml_lifecycle.spark.job import Job, SparkElsewhereError
from ml_lifecycle.stages.features import build_training_set

AS_OF = january(12)


def on_spark(text: str) -> str:
    return short_holdout(text).replace("task: binary\n", "task: binary\nengine: spark\n")


@pytest.mark.usefixtures("spark")
def test_a_training_set_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    made = {}
    for engine, edit in (("polars", short_holdout), ("spark", on_spark)):
        lake = Lake(str(tmp_path / engine))
        flights.land(tmp_path / engine / "landing", STORY_STARTS, AS_OF, every=timedelta(days=20))
        folder = folder_with(tmp_path / "folders" / engine / "flight_delay", {"model.yaml": edit})
        assert folder.spec.engine == engine
        training_set = World(lake, folder).training_set(AS_OF)
        assert training_set.train_rows > 500
        assert training_set.holdout_rows > 2000
        names = ("train.parquet", "holdout.parquet", "registry.pb", "profile.json")
        files = [lake.read_bytes(f"{training_set.path}/{name}") for name in names]
        made[engine] = [*files, training_set.columns]
        assert not list(lake.list("spark_rows"))
    assert made["spark"] == made["polars"]


def test_where_spark_runs_elsewhere_an_application_is_asked_for_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    lake = Lake(str(tmp_path))
    flights.land(tmp_path / "landing", STORY_STARTS, january(3), every=timedelta(days=20))
    folder = folder_with(tmp_path / "folders" / "flight_delay", {"model.yaml": on_spark})
    elsewhere = folder.spec.spark.model_copy(update={"on": "emr"})
    world = World(lake, replace(folder, spec=folder.spec.model_copy(update={"spark": elsewhere})))
    snapshot = world.snapshot(january(3))
    with pytest.raises(SparkElsewhereError) as asked:
        build_training_set(world.folder, lake, snapshot)
    assert asked.value.job == Job("features", {"snapshot": to_json(snapshot)})
    assert asked.value.job.stage in STAGES
    assert not list(lake.list("features"))
