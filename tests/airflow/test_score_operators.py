"""A batch as Airflow scores it: by one task, and shared by several."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from delivery_kit import make_candidate, make_model

from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.records import Scoring, ScoringPlan, Snapshot, from_json
from ml_lifecycle_airflow.dag_builder import lifecycle_dags
from ml_lifecycle_airflow.operators.ingest import IngestOperator
from ml_lifecycle_airflow.operators.score import PlanScoreOperator, ScoreOperator, ScoreShareOperator

from .conftest import NOW, World

Context = Callable[..., Any]
ROWS = 50
FEATURES = """
from datetime import timedelta

import polars as pl
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

flight = Entity(name="flight", join_keys=["id"], value_type=ValueType.INT64)
flights = FeatureView(
    name="flights",
    entities=[flight],
    ttl=timedelta(days=9),
    schema=[Field(name="distance", dtype=Float32), Field(name="hour", dtype=Int64)],
    source=FileSource(name="flights", path="flights.parquet", timestamp_field="event_timestamp"),
)
service = FeatureService(name="toy", features=[flights])


def tables(sources):
    rows = sources["rows"]
    asked = (pl.col("at") + pl.duration(minutes=1)).alias("event_timestamp")
    return {
        "flights": rows.select("id", "distance", "hour", event_timestamp="at"),
        "labels": rows.select("id", asked, label="distance", known_at="at"),
        "entities": rows.select("id", asked),
    }
"""


def release(world: World, number: int, slope: float) -> None:
    """Make version ``number`` the champion."""
    candidate = make_candidate(world.lake, number, make_model(slope))
    evidence = candidate.evidence(world.lake)
    world.file(candidate.version)
    releases = Releases(world.database)
    live = releases.champion("delays")
    deployment = Deployment(
        model="delays",
        environment="production",
        endpoint="delays",
        version=str(number),
        model_digest=evidence.model_digest,
        evidence_digest=evidence.digest,
        strategy="blue_green",
        variants=(),
        expected=None if live is None else live.revision,
    )
    releases.confirmed(releases.begin(deployment, NOW), NOW)


@pytest.fixture
def scoring(timed: World) -> World:
    """Fifty rows within a day, and a champion that answers twice the distance and the hour."""
    (timed.folder.path / "features.py").write_text(FEATURES)
    world = timed.edit("model.yaml", "training:\n", "scoring: {partition_rows: 20}\ntraining:\n")
    rows = pl.DataFrame({"id": range(ROWS), "distance": [1.5 * k for k in range(ROWS)], "hour": range(ROWS)})
    world.root.joinpath("lake").mkdir(exist_ok=True)
    begun = NOW - timedelta(hours=20)
    rows.with_columns(at=begun + pl.duration(minutes=20) * pl.col("id")).write_parquet(
        world.root / "lake" / "rows.parquet"
    )
    release(world, 4, 2.0)
    return world


@pytest.fixture
def shared(scoring: World) -> World:
    return scoring.edit("model.yaml", "{partition_rows: 20}", "{partition_rows: 20, parallel: 2}")


def ingested(world: World, context: Context) -> dict[str, Any]:
    return IngestOperator(task_id="ingest", folder=world.path).execute(context())


def predictions(world: World, record: dict[str, Any]) -> list[float]:
    scored = world.lake.scan([file.path for file in from_json(Scoring, record).files]).collect()
    assert scored["id"].to_list() == list(range(ROWS))
    return list(scored["prediction"])


def test_one_task_scores_all_and_again_for_nothing(scoring: World, context: Context) -> None:
    task = ScoreOperator(task_id="score", folder=scoring.path, snapshot=ingested(scoring, context))
    record = task.execute(context())
    assert (record["rows"], record["version"], len(record["files"])) == (ROWS, "4", 3)
    assert predictions(scoring, record) == [2.0 * 1.5 * k + k for k in range(ROWS)]
    made = sorted((scoring.root / "lake").rglob("*"))
    assert task.execute(context()) == record
    assert sorted((scoring.root / "lake").rglob("*")) == made


def test_a_plan_several_shares_and_one_result(shared: World, context: Context) -> None:
    snapshot = ingested(shared, context)
    plan = PlanScoreOperator(task_id="plan_score", folder=shared.path, snapshot=snapshot).execute(context())
    assert [part["rows"] for part in plan["slices"]] == [18, 18, 14]
    release(shared, 5, 3.0)  # while the plan is being carried out
    done = [share(shared, plan, number).execute(context()) for number in (1, 0, 0)]
    assert [(one["share"], one["partitions"], one["rows"]) for one in done] == [
        (1, 1, 18),
        (0, 2, 32),
        (0, 2, 32),
    ]
    gather = ScoreOperator(task_id="score", folder=shared.path, snapshot=snapshot, plan=plan)
    files = set((shared.root / "lake").rglob("*.parquet"))
    record = gather.execute(context())
    assert record["version"] == "4"
    assert set((shared.root / "lake").rglob("*.parquet")) == files
    assert predictions(shared, record) == [2.0 * 1.5 * k + k for k in range(ROWS)]


def share(world: World, plan: dict[str, Any], number: int) -> ScoreShareOperator:
    return ScoreShareOperator(task_id="share", folder=world.path, plan=plan, share=number, shares=2)


def test_a_share_that_died_is_made_up_for_by_the_last_task(shared: World, context: Context) -> None:
    snapshot = ingested(shared, context)
    plan = PlanScoreOperator(task_id="plan_score", folder=shared.path, snapshot=snapshot).execute(context())
    share(shared, plan, 1).execute(context())
    gather = ScoreOperator(task_id="score", folder=shared.path, snapshot=snapshot, plan=plan)
    assert gather.execute(context())["rows"] == ROWS


def test_a_plan_is_what_the_lake_says_and_for_the_folder_it_was_made_for(
    shared: World, context: Context
) -> None:
    snapshot = ingested(shared, context)
    planning = PlanScoreOperator(task_id="plan_score", folder=shared.path, snapshot=snapshot)
    plan = planning.execute(context())
    assert planning.execute(context()) == plan
    with pytest.raises(AirflowFailException, match=r"RecordMismatchError: .* in version: clear the task"):
        share(shared, {**plan, "version": "5"}, 0).execute(context())
    (shared.folder.path / "training.py").write_text("def train(): ...")
    with pytest.raises(AirflowFailException, match=r"SpecError: .* changed since the scoring was planned"):
        share(shared, plan, 0).execute(context())
    assert from_json(ScoringPlan, plan).snapshot_digest == from_json(Snapshot, snapshot).digest


def test_without_a_champion_there_is_no_plan(timed: World, context: Context) -> None:
    timed.arrive()
    planning = PlanScoreOperator(task_id="p", folder=timed.path, snapshot=ingested(timed, context))
    with pytest.raises(AirflowFailException, match="delays has no champion to score with"):
        planning.execute(context())


def test_tasks_that_share_stand_between_a_plan_and_the_result(shared: World) -> None:
    dag = lifecycle_dags(str(shared.folder.path / "dag.py"))["delays__score"]
    assert dag.get_task("plan_score").upstream_task_ids == {"ingest", "validate"}
    assert dag.get_task("score").upstream_task_ids == {"ingest", "plan_score", "score_share"}
    mapped = dag.get_task("score_share")
    assert mapped.is_mapped
    assert mapped.expand_input.value == {"share": [0, 1]}
    assert set(DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_dict) == set(dag.task_dict)


def test_one_task_is_enough_unless_the_spec_says_otherwise(scoring: World) -> None:
    dag = lifecycle_dags(str(scoring.folder.path / "dag.py"))["delays__score"]
    assert set(dag.task_ids) == {"ingest", "validate", "materialise", "score"}
