"""The lake behind an S3 API: the small model lives there as it lives in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from s3_kit import S3Store
from small_life import FIRST_RUN, STAGES, Place, begin, serve_a_day

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import to_json

SECOND_RUN = tuple(stage for stage in STAGES if stage != "quarantine")
# What differs between any two lives: MLflow's random ids, what a process had imported, seconds and bytes.
OF_ITS_OWN = ("mlflow_run_id", "packages", "resources")


def play(root: Path, lakes: tuple[Lake, Lake], server_environment: dict[str, str]) -> dict[str, Any]:
    """Two runs with a day of traffic between them; returns what each stage returned."""
    root.mkdir()
    begin(root)
    returned = {}
    for run, stages in ((1, FIRST_RUN), (2, SECOND_RUN)):
        place = Place(root, run, lakes, server_environment)
        for stage in stages:
            record = to_json(STAGES[stage](place))
            place.keep(stage, record)
            returned[f"{stage}_{run}"] = {key: record[key] for key in record if key not in OF_ITS_OWN}
        if run == 1:
            serve_a_day(place)
    found = returned.pop("monitor_2")  # its digest is over measured latencies, too
    metrics = {name: value for name, value in found["metrics"].items() if not name.startswith("latency")}
    return returned | {
        "monitor_2": {"metrics": metrics, "predictions": found["predictions"], "alerts": found["alerts"]}
    }


@pytest.mark.full
def test_a_life_on_s3_is_the_same_as_in_folders(s3: S3Store, tmp_path: Path) -> None:
    folders = Lake(str(tmp_path / "lake")), Lake(str(tmp_path / "production"))
    buckets = s3.new_lake(), s3.new_lake()
    expected = play(tmp_path / "folders", folders, {})
    found = play(tmp_path / "buckets", buckets, s3.aws_files(tmp_path))
    assert found["monitor_2"]["predictions"] > 0
    assert found == expected
    for folder, bucket in zip(folders, buckets, strict=True):
        assert bucket.folders("predictions") == folder.folders("predictions")
        assert list(bucket.list("routes")) == list(folder.list("routes"))
