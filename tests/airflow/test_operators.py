"""What operators add to the stages: the folder, the run's moment, and errors that say whether to retry."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import polars as pl
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DagRunTriggerException
from delivery_kit import make_candidate, make_golden
from log_kit import make_rows, write_day, write_part

from ml_lifecycle import errors
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.records import (
    Evidence,
    GateResult,
    Interval,
    ModelVersion,
    Monitoring,
    Run,
    Snapshot,
    Validation,
    from_json,
    to_json,
)
from ml_lifecycle.stages.approve import check_evidence
from ml_lifecycle.stages.evaluate import inputs_digest
from ml_lifecycle_airflow import _HOMES, __all__
from ml_lifecycle_airflow.operators.approve import EvidenceOperator
from ml_lifecycle_airflow.operators.base import Resources, final_errors_fail_at_once
from ml_lifecycle_airflow.operators.deploy import DeployOperator, MarkChampionOperator, RollbackOperator
from ml_lifecycle_airflow.operators.features import PrepareFeaturesOperator
from ml_lifecycle_airflow.operators.ingest import IngestOperator
from ml_lifecycle_airflow.operators.monitor import MonitorOperator, RetrainOperator
from ml_lifecycle_airflow.operators.register import RequestPromotionOperator
from ml_lifecycle_airflow.operators.score import ScoreOperator
from ml_lifecycle_airflow.operators.validate import ValidateOperator

from .conftest import NOW, World

Context = Callable[..., Any]
ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LifecycleError) and kind is not LifecycleError
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: str(kind.__name__))
def test_an_error_is_retried_exactly_if_a_retry_helps(kind: type[LifecycleError]) -> None:
    expected = kind if kind.retryable else AirflowFailException
    with pytest.raises(expected) as raised, final_errors_fail_at_once():
        raise kind("what, where, what would be right")
    assert "what, where, what would be right" in str(raised.value)
    if not kind.retryable:
        assert str(raised.value).startswith(kind.__name__)
        assert isinstance(raised.value.__cause__, kind)


def test_a_bug_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), final_errors_fail_at_once():
        _ = 1 / 0


def test_the_folder_may_come_from_the_dag(world: World) -> None:
    with DAG("d", schedule=None, default_args={"folder": world.path}):
        assert IngestOperator(task_id="ingest").folder == world.path
        assert IngestOperator(task_id="other", folder="/elsewhere").folder == "/elsewhere"


def test_without_a_folder_the_error_says_where_to_give_it() -> None:
    with pytest.raises(ValueError, match=r"task 'ingest' needs folder=.*default_args"):
        IngestOperator(task_id="ingest")


def test_a_folder_that_is_broken_fails_at_once(world: World, context: Context) -> None:
    (world.folder.path / "model.yaml").write_text("spec: 1\nnme: delays\n")
    with pytest.raises(AirflowFailException, match=r"SpecError: [\s\S]*model\.yaml:2:1: nme"):
        IngestOperator(task_id="ingest", folder=world.path).execute(context())


def test_every_public_name_can_be_imported() -> None:
    import ml_lifecycle_airflow

    assert sorted(_HOMES) == sorted(__all__)
    assert [getattr(ml_lifecycle_airflow, name).__name__ for name in __all__] == __all__
    with pytest.raises(AttributeError, match="no attribute 'NoSuchOperator'"):
        _ = ml_lifecycle_airflow.NoSuchOperator


def test_ingest_returns_a_snapshot_of_the_run_s_moment(timed: World, context: Context) -> None:
    timed.arrive()
    record = IngestOperator(task_id="ingest", folder=timed.path).execute(context(triggering_user_name="ann"))
    snapshot = from_json(Snapshot, record)
    assert snapshot.run == Run(
        "delays", "delays__train/manual__1", NOW, Interval(NOW - timedelta(days=1), NOW), "ann"
    )
    assert snapshot.tables["rows"].rows == 1


def test_ingest_is_retried_while_a_source_has_no_file(timed: World, context: Context) -> None:
    with pytest.raises(errors.SourceNotReadyError):
        IngestOperator(task_id="ingest", folder=timed.path).execute(context())


def test_a_source_with_a_connection_is_read_with_its_options(
    world: World, context: Context, connect: Any
) -> None:
    connect("outside", extra={"url": "memory://", "storage_options": {"skip_instance_cache": True}})
    made = world.edit(
        "model.yaml",
        "{uri: rows.parquet, contract: rows}",
        "{uri: 'memory://bucket/rows.csv', format: csv, connection: outside}",
    )
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/rows.csv", b"id\n1\n2\n")
    record = IngestOperator(task_id="ingest", folder=made.path).execute(context())
    assert from_json(Snapshot, record).tables["rows"].rows == 2


def test_a_query_is_sent_to_the_database_of_its_connection(
    world: World, context: Context, connect: Any
) -> None:
    connect("shop", conn_type="sqlite", schema=str(world.root / "shop.db"))
    with sqlite3.connect(world.root / "shop.db") as database:
        database.execute("CREATE TABLE orders (id INTEGER)")
        database.execute("INSERT INTO orders VALUES (1), (2), (3)")
    database.close()
    made = world.edit(
        "model.yaml",
        "{uri: rows.parquet, contract: rows}",
        "{sql: {query: SELECT id FROM orders, cursor: id}, connection: shop, keys: [id]}",
    )
    record = IngestOperator(task_id="ingest", folder=made.path).execute(context())
    assert from_json(Snapshot, record).tables["rows"].rows == 3


def validated(world: World, context: Context, ids: list[Any]) -> Any:
    rows = pl.DataFrame({"id": ids}, schema={"id": pl.Int64})
    world.root.joinpath("lake").mkdir(exist_ok=True)
    rows.write_parquet(world.root / "lake" / "rows.parquet")
    snapshot = IngestOperator(task_id="ingest", folder=world.path).execute(context())
    return ValidateOperator(task_id="validate", folder=world.path, snapshot=snapshot).execute(context())


def test_validate_passes_what_meets_the_contract_and_halts_what_does_not(
    world: World, context: Context
) -> None:
    strict = world.edit("contract.yaml", "{name: id, type: integer}", "{name: id, type: integer, min: 1}")
    assert not from_json(Validation, validated(strict, context, [1, 2])).failed
    with pytest.raises(AirflowFailException, match=r"DataHaltedError: [\s\S]*id"):
        validated(strict, context, [1, -7])


def monitoring(retrain: bool) -> Monitoring:
    window = Interval(NOW - timedelta(days=7), NOW)
    return Monitoring(
        run=Run("delays", "m/1", NOW + timedelta(hours=2), window),
        digest="d",
        path="monitoring/delays/d",
        endpoint="delays",
        window=window,
        predictions=1,
        labelled=1,
        versions=("1",),
        alerts=(),
        metrics={},
        report_path="r.json",
        html_path=None,
        retrain=retrain,
    )


@pytest.mark.parametrize(
    ("conf", "days"),
    [
        ({}, 7),
        ({"interval": {"start": (NOW - timedelta(days=2)).isoformat(), "end": NOW.isoformat()}}, 2),
    ],
)
def test_a_run_that_nobody_gave_a_window_looks_at_the_newest_of_the_spec(
    world: World, context: Context, connect: Any, conf: dict[str, Any], days: int
) -> None:
    connect("l2", conn_type="ml_lifecycle_lake", extra={"url": str(world.root / "production")})
    model = world.edit("model.yaml", "approvers:", "monitoring: {window: 7d}\napprovers:")
    snapshot = Snapshot(
        Run("delays", "delays__monitor/1", NOW, Interval(NOW, NOW)), "0" * 64, "snapshots/delays/0.json", {}
    )
    operator = MonitorOperator(task_id="monitor", folder=model.path, snapshot=world.file(snapshot))
    with (
        mock.patch("ml_lifecycle.stages.features.read_labels", autospec=True),
        mock.patch("ml_lifecycle.stages.monitor.monitor", autospec=True) as measure,
    ):
        measure.side_effect = lambda *arguments, **_: replace(
            monitoring(False), run=arguments[3], window=arguments[3].interval
        )
        window = from_json(Monitoring, operator.execute(context(conf=conf))).window
    assert window == Interval(NOW - timedelta(days=days), NOW)


@pytest.mark.parametrize("damaged", [False, True])
def test_the_log_is_compacted_before_it_is_read_and_never_at_the_window_s_cost(
    world: World, context: Context, connect: Any, damaged: bool
) -> None:
    production = Lake(str(world.root / "production"))
    connect("l2", conn_type="ml_lifecycle_lake", extra={"url": production.url})
    model = world.edit("model.yaml", "approvers:", "monitoring: {keep_predictions: 2d}\napprovers:")
    write_day(production, 40)
    long_ago = write_part(production, "one", 50, make_rows("one", range(3), datetime(2001, 1, 1, tzinfo=UTC)))
    if damaged:
        production.write_bytes("predictions_compacted/delays/2026-03-01/one-0000.json", b"[]")
    snapshot = Snapshot(
        Run("delays", "delays__monitor/1", NOW, Interval(NOW, NOW)), "0" * 64, "snapshots/delays/0.json", {}
    )
    operator = MonitorOperator(task_id="monitor", folder=model.path, snapshot=world.file(snapshot))
    with (
        mock.patch("ml_lifecycle.stages.features.read_labels", autospec=True),
        mock.patch("ml_lifecycle.stages.monitor.monitor", autospec=True) as measure,
    ):
        measure.side_effect = lambda *arguments, **_: replace(monitoring(False), run=arguments[3])
        operator.execute(context())
    assert not production.exists(long_ago)
    assert any(path.endswith(".parquet") for path in production.list("predictions_compacted")) != damaged


def retraining(world: World, found: Monitoring) -> RetrainOperator:
    return RetrainOperator(
        task_id="retrain", folder=world.path, trigger_dag_id="delays__train", monitoring=world.file(found)
    )


def test_a_window_that_asks_for_it_starts_one_retraining_by_its_own_name(
    world: World, context: Context
) -> None:
    triggered = []
    for found in (monitoring(True), replace(monitoring(True), digest="measured again")):
        with pytest.raises(DagRunTriggerException) as raised:
            retraining(world, found).execute(context())
        triggered.append(raised.value)
    first, second = triggered
    assert first.dag_run_id == second.dag_run_id
    assert first.dag_run_id.startswith("drift__delays__20260222T120000")
    assert (first.trigger_dag_id, first.skip_when_already_exists) == ("delays__train", True)
    assert first.conf == {"as_of": "2026-03-01T14:00:00+00:00"}
    assert first.logical_date is None
    other = replace(monitoring(True), window=Interval(NOW, NOW + timedelta(days=7)))
    with pytest.raises(DagRunTriggerException) as raised:
        retraining(world, other).execute(context())
    assert raised.value.dag_run_id != first.dag_run_id


def test_a_window_that_asks_for_none_is_skipped(world: World, context: Context) -> None:
    with pytest.raises(AirflowSkipException):
        retraining(world, monitoring(False)).execute(context())


def test_a_forged_alarm_or_candidate_starts_nothing(world: World, context: Context) -> None:
    forged = retraining(world, monitoring(False))
    forged.monitoring["retrain"] = True
    with pytest.raises(AirflowFailException, match=r"RecordMismatchError: .* in retrain: clear the task"):
        forged.execute(context())
    version = world.file(replace(make_candidate(world.lake, 7, b"model").version, role="record"))
    asking = RequestPromotionOperator(
        task_id="ask",
        folder=world.path,
        trigger_dag_id="delays__promote",
        version={**version, "role": "candidate"},
    )
    with pytest.raises(AirflowFailException, match=r"RecordMismatchError: .* in role: clear the task"):
        asking.execute(context())


def test_a_candidate_starts_one_promotion_by_its_version(world: World, context: Context) -> None:
    version = make_candidate(world.lake, 7, b"model").version
    asking = RequestPromotionOperator(
        task_id="ask", folder=world.path, trigger_dag_id="delays__promote", version=world.file(version)
    )
    with pytest.raises(DagRunTriggerException) as raised:
        asking.execute(context())
    assert (raised.value.trigger_dag_id, raised.value.dag_run_id) == ("delays__promote", "candidate__v7")
    assert raised.value.conf == {"version": "7"}
    assert raised.value.skip_when_already_exists


def test_a_version_for_the_record_starts_none(world: World, context: Context) -> None:
    version = replace(make_candidate(world.lake, 7, b"model").version, role="record")
    asking = RequestPromotionOperator(
        task_id="ask", folder=world.path, trigger_dag_id="delays__promote", version=world.file(version)
    )
    with pytest.raises(AirflowSkipException, match="version 7 is for the record only"):
        asking.execute(context())


def gathering(world: World, version: str) -> EvidenceOperator:
    return EvidenceOperator(task_id="evidence", folder=world.path, version=version)


def registered(world: World, **changes: Any) -> ModelVersion:
    """Version 3 with an evaluation that the spec's gates and no champion lead to."""
    candidate = make_candidate(world.lake, 3, b"model")
    digest = inputs_digest(world.folder.spec, candidate.training, None, None)
    path = f"evaluations/delays/{digest}"
    evaluation = replace(candidate.evaluation, digest=digest, path=path, **changes)
    world.lake.write_json(f"{path}/manifest.json", to_json(evaluation))
    version = replace(candidate.version, evaluation_path=path)
    world.file(version)
    return version


def test_evidence_is_gathered_for_the_version_in_the_conf(world: World, context: Context) -> None:
    version = registered(world)
    operator = gathering(world, "{{ dag_run.conf['version'] }}")
    now = context(conf={"version": "3"})
    operator.render_template_fields(now)
    evidence = from_json(Evidence, operator.execute(now))
    check_evidence(evidence)
    assert (evidence.version, evidence.champion_version) == ("3", None)
    assert evidence.evaluation_path == version.evaluation_path


def test_an_evaluation_by_other_gates_is_no_evidence(world: World, context: Context) -> None:
    """A version registered with an evaluation of before the gates were tightened."""
    lax = registered(world)
    strict = world.edit("model.yaml", "metric: rmse, max: 160", "metric: rmse, max: 5")
    failed = (GateResult("rmse", False, "at most 5", 7.25),)
    registered(strict, passed=False, gates=failed)
    world.file(lax)
    with pytest.raises(AirflowFailException, match="GateError: 1 of 1 gates failed"):
        gathering(strict, "3").execute(context())


@pytest.mark.parametrize("version", ["../../etc", "9"])
def test_a_version_that_is_unsafe_or_unknown_fails_at_once(
    world: World, context: Context, version: str
) -> None:
    with pytest.raises(AirflowFailException, match=version.replace(".", r"\.")):
        EvidenceOperator(task_id="e", folder=world.path, version=version).execute(context())


def test_production_is_closed_without_an_approval_in_the_ledger(
    world: World, context: Context, connect: Any
) -> None:
    candidate = make_candidate(world.lake, 1, b"model", make_golden(2.0))
    evidence = candidate.evidence(world.lake)
    world.file(candidate.version)
    world.lake.write_bytes("training_sets/delays/" + candidate.training.digest + "/registry.pb", b"")
    connect("l2", extra={"url": str(world.root / "production")})
    connect("s2", host="http://127.0.0.1", port=1, password="token")
    deploying = DeployOperator(
        task_id="deploy", folder=world.path, evidence=to_json(evidence), environment="production"
    )
    with pytest.raises(AirflowFailException, match="NotApprovedError"):
        deploying.execute(context())
    preparing = PrepareFeaturesOperator(
        task_id="prepare", folder=world.path, evidence=to_json(evidence), environment="production"
    )
    with pytest.raises(AirflowFailException, match="NotApprovedError"):
        preparing.execute(context())
    assert not list((world.root / "production").rglob("*"))


def test_nothing_to_score_with_roll_back_to_or_mark_fails_at_once(
    world: World, context: Context, connect: Any
) -> None:
    connect("l2", extra={"url": str(world.root / "production")})
    connect("s2", host="http://127.0.0.1", port=1, password="token")
    snapshot = Snapshot(Run("delays", "r", NOW, Interval(NOW, NOW + timedelta(1))), "d", "snapshots/p", {})
    scoring = ScoreOperator(task_id="score", folder=world.path, snapshot=world.file(snapshot))
    with pytest.raises(AirflowFailException, match="delays has no champion to score with"):
        scoring.execute(context())
    with pytest.raises(AirflowFailException, match="NothingToRollBackToError"):
        RollbackOperator(task_id="back", folder=world.path).execute(context())
    with pytest.raises(AirflowFailException, match="delays has no champion"):
        MarkChampionOperator(task_id="mark", folder=world.path).execute(context())


def test_the_alias_moves_to_the_version_that_is_live_and_to_no_other(
    world: World, context: Context, connect: Any
) -> None:
    evidence = make_candidate(world.lake, 4, b"model").evidence(world.lake)
    releases = Releases(world.database)
    deployment = Deployment(
        model="delays",
        environment="production",
        endpoint="delays",
        version="4",
        model_digest=evidence.model_digest,
        evidence_digest=evidence.digest,
        strategy="blue_green",
        variants=(),
        expected=None,
    )
    releases.confirmed(releases.begin(deployment, NOW), NOW)
    marking = MarkChampionOperator(task_id="mark", folder=world.path, version="{{ dag_run.conf['version'] }}")
    now = context(conf={"version": "5"})
    marking.render_template_fields(now)
    # MLflow has no connection here: were it asked, the error would be another.
    with pytest.raises(
        AirflowFailException, match="version 5 of delays is not live in production, version 4 is"
    ):
        marking.execute(now)


def test_who_asked_is_the_run_s_own_starter_whatever_a_record_says(timed: World, context: Context) -> None:
    timed.arrive()
    ingesting = IngestOperator(task_id="ingest", folder=timed.path)
    # The manifest is of the run that came first.
    ingesting.execute(context(run_id="manual__0", triggering_user_name="cem"))
    now = context(triggering_user_name="ann")
    snapshot = ingesting.execute(now)
    snapshot["run"] |= {
        "requested_by": "ben",
        "run_id": "delays__train/another",
        "as_of": "2030-01-01T00:00:00Z",
    }
    validating = ValidateOperator(task_id="validate", folder=timed.path, snapshot=snapshot)
    validation = from_json(Validation, validating.execute(now))
    assert (validation.run.requested_by, validation.run.run_id) == ("ann", "delays__train/manual__1")
    assert validation.run.as_of == NOW


def test_a_snapshot_that_was_tampered_with_is_not_validated(timed: World, context: Context) -> None:
    timed.arrive()
    snapshot = IngestOperator(task_id="ingest", folder=timed.path).execute(context())
    snapshot["tables"]["rows"]["files"][0]["rows"] = 2
    validating = ValidateOperator(task_id="validate", folder=timed.path, snapshot=snapshot)
    with pytest.raises(AirflowFailException, match=r"RecordMismatchError: .* in tables: clear the task"):
        validating.execute(context())


def test_an_environment_has_a_lake_a_server_and_a_store_of_its_own(world: World, connect: Any) -> None:
    for name in ("l", "l2"):
        connect(name, extra={"url": str(world.root / name)})
    for name in ("s", "s2"):
        connect(name, host=f"http://{name}", port=80, password=name)
    for name in ("o", "o2"):
        connect(name, extra={"url": f"sqlite:////{name}.db"})
    resources = Resources(world.path)
    staging, production = resources.target("staging"), resources.target("production")
    assert (staging.lake.url, production.lake.url) == (str(world.root / "l"), str(world.root / "l2"))
    assert (staging.environment, production.environment) == ("staging", "production")
    assert resources.online_store("staging") == "sqlite:////o.db"
    assert resources.online_store("production") == "sqlite:////o2.db"
