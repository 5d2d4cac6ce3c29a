"""Extra links, as Airflow's own task runner asks for them when a task has ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
import structlog
from airflow.sdk import DAG, BaseOperator, Context
from airflow.sdk.api.datamodels._generated import DagRun, TIRunContext
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import OKResponse, SetXCom
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

import ml_lifecycle_airflow
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import GateError
from ml_lifecycle.records import Interval, ModelVersion, Monitoring, Record, Run, to_json
from ml_lifecycle_airflow import RegisterOperator, RequestPromotionOperator, RetrainOperator
from ml_lifecycle_airflow.links import MlflowRunLink, ReportLink, model_url, report_url, run_url
from ml_lifecycle_airflow.operators.base import Resources, StageOperator

FOLDER = Path(__file__).parents[2] / "dags" / "models" / "flight_delay"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPERATORS = [
    operator
    for name in ml_lifecycle_airflow.__all__
    if isinstance(operator := getattr(ml_lifecycle_airflow, name), type)
]
REPORTING = {"ValidateOperator", "EvaluateOperator", "EvidenceOperator", "ApprovalSensor", "MonitorOperator"}
TRIGGERING = {"RequestPromotionOperator", "RetrainOperator"}
MODEL = "/plugin/ml-lifecycle/ml-lifecycle/#flight_delay"


class Supervisor:
    """Airflow's side of a task's process: takes down what it is told, and agrees."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, msg: Any) -> Any:
        self.told.append(msg)
        return OKResponse(ok=True)

    @property
    def links(self) -> dict[str, Any]:
        pushed = (message for message in self.told if isinstance(message, SetXCom))
        return {message.key: message.value for message in pushed if message.key.startswith("_link_")}


def finish(task: BaseOperator, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Run and finalise a task as its process does: its end state, and the links Airflow then has."""
    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    run = DagRun(
        dag_id="d",
        run_id="r",
        logical_date=None,
        data_interval_start=None,
        data_interval_end=None,
        run_after=NOW,
        start_date=NOW,
        end_date=None,
        run_type="manual",
        state="running",
        consumed_asset_events=[],
        partition_key=None,
    )
    ti = RuntimeTaskInstance.model_construct(
        id=uuid4(),
        task_id=task.task_id,
        dag_id="d",
        run_id="r",
        try_number=1,
        dag_version_id=uuid4(),
        map_index=-1,
        task=task,
        start_date=NOW,
        max_tries=0,
        _ti_context_from_server=TIRunContext(dag_run=run, max_tries=0),
    )
    log = structlog.get_logger()
    context = ti.get_template_context()
    state, _, error = task_runner.run(ti, context, log)
    task_runner.finalize(ti, state, context, log, error)
    return state.value, supervisor.links


def in_dag(make: Any, **arguments: Any) -> Any:
    with DAG("d", schedule=None):
        return make(task_id="t", folder=str(FOLDER), **arguments)


class Judged(StageOperator):
    """A stage that writes its report and then says no, as validate and evaluate do."""

    operator_extra_links = (ReportLink(), MlflowRunLink(), *StageOperator.operator_extra_links)
    report_path: str | None = None
    mlflow_run_url: str | None = None

    def stage(self, resources: Resources, context: Context) -> Record:
        if self.task_id == "t":
            self.report_path = "evaluations/flight_delay/abc/report.html"
        raise GateError("skill is 0.01, at least 0.02 is needed")


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_every_operator_leads_to_its_model_and_what_it_made(operator: type[BaseOperator]) -> None:
    names = [link.name for link in operator.operator_extra_links]
    assert "Model" in names
    assert ("Report" in names) == (operator.__name__ in REPORTING)
    assert ("Triggered DAG" in names) == (operator.__name__ in TRIGGERING)
    assert ("MLflow run" in names) == (operator.__name__ == "TrainOperator")
    keys = [link.xcom_key for link in operator.operator_extra_links]
    assert len(set(keys)) == len(keys)


def test_no_operator_is_left_out() -> None:
    functions = {"lifecycle_dags", "on_spark"}
    assert len(OPERATORS) == len(set(ml_lifecycle_airflow.__all__) - functions)


def test_a_task_that_said_no_still_leads_to_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    state, links = finish(in_dag(Judged), monkeypatch)
    assert state == "failed"
    assert links == {
        "_link_ReportLink": "/ml-lifecycle/reports/evaluations/flight_delay/abc/report.html",
        "_link_MlflowRunLink": "",
        "_link_ModelPageLink": MODEL,
    }


def test_a_task_that_died_before_its_report_leads_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with DAG("d", schedule=None):
        task = Judged(task_id="other", folder=str(FOLDER))
    assert finish(task, monkeypatch)[1]["_link_ReportLink"] == ""


@pytest.fixture
def filed(tmp_path: Path, connect: Any) -> Callable[[str, Record], dict[str, Any]]:
    """Write a record's manifest into the lake of the model; returns what its task would."""
    lake = Lake(str(tmp_path / "lake"))
    connect("ml_lifecycle_lake", conn_type="ml_lifecycle_lake", extra={"url": lake.url})

    def write(path: str, record: Record) -> dict[str, Any]:
        lake.write_json(path, to_json(record))
        return to_json(record)

    return write


def version(role: Literal["candidate", "record"]) -> ModelVersion:
    run = Run("flight_delay", "d/r", NOW, Interval(NOW, NOW))
    return ModelVersion(run, "flight_delay", "3", role, "0" * 64, "training/0", "evaluations/0", "run", None)


def test_a_promotion_that_was_requested_is_linked(monkeypatch: pytest.MonkeyPatch, filed: Any) -> None:
    record = filed("versions/flight_delay/3/manifest.json", version("candidate"))
    task = in_dag(RequestPromotionOperator, version=record, trigger_dag_id="flight_delay__promote")
    state, links = finish(task, monkeypatch)
    assert state == "success"
    assert links["_link_TriggeredRunLink"] == "/dags/flight_delay__promote/runs/candidate__v3"
    assert links["_link_ModelPageLink"] == MODEL


def test_a_version_for_the_record_has_no_promotion_to_link(
    monkeypatch: pytest.MonkeyPatch, filed: Any
) -> None:
    record = filed("versions/flight_delay/3/manifest.json", version("record"))
    task = in_dag(RequestPromotionOperator, version=record, trigger_dag_id="flight_delay__promote")
    state, links = finish(task, monkeypatch)
    assert state == "skipped"
    assert links == {"_link_TriggeredRunLink": "", "_link_ModelPageLink": MODEL}


@pytest.mark.parametrize("retrain", [True, False])
def test_a_retraining_is_linked_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, filed: Any, retrain: bool
) -> None:
    run = Run("flight_delay", "d/r", NOW, Interval(datetime(2026, 2, 1, tzinfo=UTC), NOW))
    found = Monitoring(
        run=run,
        digest="0" * 64,
        path="monitoring/flight_delay/0",
        endpoint="flight_delay",
        window=run.interval,
        predictions=0,
        labelled=0,
        versions=(),
        alerts=(),
        metrics={},
        report_path="monitoring/flight_delay/0/report.json",
        html_path=None,
        retrain=retrain,
    )
    record = filed(f"{found.path}/manifest.json", found)
    task = in_dag(RetrainOperator, monitoring=record, trigger_dag_id="flight_delay__train")
    link = finish(task, monkeypatch)[1]["_link_TriggeredRunLink"]
    assert bool(link) == retrain
    if retrain:
        assert link.startswith("/dags/flight_delay__train/runs/")


def test_a_task_that_cannot_be_run_at_all_leads_to_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    state, links = finish(in_dag(RegisterOperator, training={}, evaluation={}), monkeypatch)
    assert (state, links) == ("failed", {"_link_ModelPageLink": MODEL})


@pytest.mark.parametrize(
    ("base", "root", "inner"),
    [
        ("", "/", "/ml-lifecycle/"),
        ("https://airflow.example", "https://airflow.example/", "/ml-lifecycle/"),
        (
            "https://example.org/team/airflow/",
            "https://example.org/team/airflow/",
            "/team/airflow/ml-lifecycle/",
        ),
    ],
)
def test_links_are_below_airflows_own_root(
    monkeypatch: pytest.MonkeyPatch, base: str, root: str, inner: str
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base)
    assert model_url("a model") == f"{root}plugin/ml-lifecycle{inner}#a%20model"
    assert (
        report_url("monitoring/m/1/report.html") == f"{root}ml-lifecycle/reports/monitoring/m/1/report.html"
    )
    assert run_url("d", "manual__2026+00:00/1") == f"{root}dags/d/runs/manual__2026%2B00%3A00%2F1"
