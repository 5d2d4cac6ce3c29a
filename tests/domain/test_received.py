"""Records received from another task count for where they point to, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import NOW, RUN, Candidate, make_candidate

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import RecordMismatchError
from ml_lifecycle.received import reread
from ml_lifecycle.records import (
    Evaluation,
    Evidence,
    Interval,
    ModelVersion,
    Monitoring,
    Record,
    RecordError,
    Run,
    Snapshot,
    Training,
    TrainingSet,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.stages.approve import evidence_digest

OWN = Run("delays", "delays__train/other", NOW + timedelta(days=1), RUN.interval, "eve")
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (Snapshot, TrainingSet, Training, Evaluation, ModelVersion, Evidence, Monitoring)
}
FORGERIES: list[tuple[str, dict[str, Any]]] = [
    ("Snapshot", {"digest": "0" * 64}),
    ("TrainingSet", {"train_rows": 11}),
    ("TrainingSet", {"holdout": Interval(NOW, NOW)}),
    ("Training", {"model_digest": "0" * 64}),
    ("Training", {"parameters": {"depth": {"max": 4}}}),
    ("Evaluation", {"passed": False}),
    ("Evaluation", {"gates": ()}),
    ("ModelVersion", {"role": "record"}),
    ("ModelVersion", {"requested_by": "eve"}),
    ("Evidence", {"requested_by": None}),
    ("Evidence", {"digest": "0" * 64}),
    ("Monitoring", {"retrain": True}),
]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def records(lake: Lake) -> dict[str, Any]:
    """One record of every kind that tasks hand to each other, filed as the stages file it."""
    candidate = make_candidate(lake, 3, b"the model")
    return _file(lake, candidate)


def _file(lake: Lake, candidate: Candidate) -> dict[str, Any]:
    evidence, version, digest = candidate.evidence(lake), candidate.version, digest_of("snapshot")
    lake.write_json(f"versions/{version.name}/{version.version}/manifest.json", to_json(version))
    snapshot = Snapshot(RUN, digest, f"snapshots/delays/{digest}/manifest.json", {})
    lake.write_json(snapshot.path, to_json(snapshot))
    monitoring = Monitoring(
        run=RUN,
        digest=digest,
        path=f"monitoring/delays/{digest}",
        endpoint="delays",
        window=RUN.interval,
        predictions=1,
        labelled=1,
        versions=("3",),
        alerts=(),
        metrics={"skill": 0.5},
        report_path="report.json",
        html_path=None,
        retrain=False,
    )
    lake.write_json(f"{monitoring.path}/manifest.json", to_json(monitoring))
    training_set = from_json(TrainingSet, lake.read_json(candidate.training.training_set_path))
    made = (snapshot, training_set, candidate.training, candidate.evaluation, version, evidence, monitoring)
    return {type(record).__name__: record for record in made}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_task_returned_is_what_the_next_one_gets(
    lake: Lake, records: dict[str, Any], kind: str
) -> None:
    record = records[kind]
    assert reread(lake, KINDS[kind], to_json(record), "delays") == record


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Evidence"])
def test_the_run_is_the_receiver_s_own_whatever_the_record_says(
    lake: Lake, records: dict[str, Any], kind: str
) -> None:
    forged = replace(records[kind], run=replace(RUN, requested_by="somebody else", as_of=NOW))
    assert reread(lake, KINDS[kind], to_json(forged), "delays", OWN) == replace(records[kind], run=OWN)


def test_the_run_in_mlflow_is_not_taken_from_the_record(lake: Lake, records: dict[str, Any]) -> None:
    logged = replace(records["Training"], mlflow_run_id="another's")
    assert reread(lake, Training, to_json(logged), "delays").mlflow_run_id is None


@pytest.mark.parametrize(("kind", "forged"), FORGERIES, ids=lambda value: str(value)[:40])
def test_a_record_that_differs_is_refused_by_name(
    lake: Lake, records: dict[str, Any], kind: str, forged: dict[str, Any]
) -> None:
    received = to_json(replace(records[kind], **forged))
    (field,) = forged
    with pytest.raises(RecordMismatchError, match=rf"differs from its manifest in .* in {field}: clear the"):
        reread(lake, KINDS[kind], received, "delays")


def test_evidence_that_fits_itself_but_was_never_made_is_refused(lake: Lake, records: dict[str, Any]) -> None:
    draft = replace(records["Evidence"], champion_digest="c" * 64, digest="", path="")
    digest = evidence_digest(draft)
    made_up = replace(draft, digest=digest, path=f"evidence/delays/{digest}.json")
    with pytest.raises(RecordMismatchError, match="the lake has no such evidence/1 as was received"):
        reread(lake, Evidence, to_json(made_up), "delays")


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_another_model_is_refused(lake: Lake, records: dict[str, Any], kind: str) -> None:
    with pytest.raises(RecordMismatchError, match="is of model delays, not of refunds"):
        reread(lake, KINDS[kind], to_json(records[kind]), "refunds")


@pytest.mark.parametrize("path", ["../../etc/passwd", "", "training/delays/none", "/"])
def test_a_path_that_leads_nowhere_is_refused(lake: Lake, records: dict[str, Any], path: str) -> None:
    received = to_json(replace(records["Training"], path=path))
    with pytest.raises(RecordMismatchError, match="the lake has no such training/2 as was received"):
        reread(lake, Training, received, "delays")


@pytest.mark.parametrize("data", [None, "yes", {"schema": "approval/1"}, {"schema": "evidence/1"}])
def test_what_is_no_such_record_is_refused(lake: Lake, data: Any) -> None:
    with pytest.raises(RecordError):
        reread(lake, Evidence, data, "delays")
