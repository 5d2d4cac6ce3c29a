"""From one model folder to its five DAGs.

A model's ``dag.py`` calls :func:`lifecycle_dags`; there is one such file a model, because Airflow keeps
import errors by file: a broken folder then breaks its own model only.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Asset, BaseOperator, CronDataIntervalTimetable, Param, get_parsing_context

from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle_airflow.operators.approve import EvidenceOperator
from ml_lifecycle_airflow.operators.deploy import DeployOperator, MarkChampionOperator, RollbackOperator
from ml_lifecycle_airflow.operators.evaluate import EvaluateOperator
from ml_lifecycle_airflow.operators.features import (
    MaterialiseOperator,
    PrepareFeaturesOperator,
    TrainingSetOperator,
)
from ml_lifecycle_airflow.operators.ingest import IngestOperator
from ml_lifecycle_airflow.operators.monitor import MonitorOperator, NotifyOperator, RetrainOperator
from ml_lifecycle_airflow.operators.register import RegisterOperator, RequestPromotionOperator
from ml_lifecycle_airflow.operators.score import PlanScoreOperator, ScoreOperator, ScoreShareOperator
from ml_lifecycle_airflow.operators.search import PlanSearchOperator, SearchOperator, TrialOperator
from ml_lifecycle_airflow.operators.spark import on_spark
from ml_lifecycle_airflow.operators.train import TrainOperator
from ml_lifecycle_airflow.operators.validate import ValidateOperator
from ml_lifecycle_airflow.operators.watch import WatchOperator
from ml_lifecycle_airflow.pod_arguments import scheduling_arguments
from ml_lifecycle_airflow.sensors.approve import ApprovalSensor
from ml_lifecycle_airflow.sensors.ingest import DataArrivalSensor

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from ml_lifecycle.spec.folder import ModelFolder
    from ml_lifecycle.spec.model import ModelSpec
    from ml_lifecycle.spec.training import Training

_AS_OF = Param(
    None,
    type=["null", "string"],
    format="date-time",
    description="Use nothing known after this moment; empty means the run's own time.",
)
_OPEN_PROMOTIONS = 1000
_ROLLBACK = """\
**What a run does.** A release that is under way, such as a canary, is taken back, and the champion has all
traffic again. Otherwise production serves the newest earlier release that was confirmed and never rolled
back; a second run goes back further. Unless a model server is down, what will be served is checked before it
gets the traffic: if it fails, nothing changes and the task says so. The approval of what is taken out of
service ends: to return, it must be approved anew. `mark_champion` then moves the registry's alias.

**Params.** `reason`: why, kept in the ledger. There is no other: what is gone back to, the ledger says.

A run is one rollback: clearing its tasks finishes it, and never goes back once more."""


def lifecycle_dags(dag_file: str) -> dict[str, DAG]:
    """The five DAGs of the model folder that ``dag_file`` lies in, by DAG id.

    While one task runs, only the DAG it belongs to is built.

    :raises SpecError: the folder is malformed; Airflow shows it as this file's import error. Retry: no.
    """
    model = load_folder(Path(dag_file).parent)
    builders: dict[str, Callable[[ModelFolder, str], DAG]] = {
        f"{model.spec.name}__{kind}": build
        for kind, build in (
            ("train", _train),
            ("promote", _promote),
            ("monitor", _monitor),
            ("score", _score),
            ("rollback", _rollback),
        )
    }
    wanted = get_parsing_context().dag_id
    chosen = [wanted] if wanted in builders else list(builders)
    return {dag_id: builders[dag_id](model, dag_id) for dag_id in chosen}


def asset(model: str, kind: str) -> Asset:
    """``model://<model>/<kind>``: lineage of snapshots, candidates, champions and drift."""
    return Asset(name=f"{model}.{kind}", uri=f"model://{model}/{kind}")


def _dag(model: ModelFolder, dag_id: str, what: str, *, doc: str = "", **arguments: Any) -> DAG:
    spec = model.spec
    cron = arguments.pop("cron", None)
    return DAG(
        dag_id=dag_id,
        description=f"{spec.name}: {what}",
        doc_md=f"### {spec.name}\n{spec.description}" + (f"\n\n{doc}" if doc else ""),
        schedule=CronDataIntervalTimetable(cron, timezone=spec.schedules.timezone) if cron else None,
        catchup=False,
        tags=["ml-lifecycle", spec.name, *([spec.team] if spec.team else []), *spec.tags],
        access_control=spec.access_control or None,
        default_args={
            "owner": spec.owner,
            "retries": 2,
            "retry_delay": timedelta(seconds=15),
            "folder": str(model.path),
        },
        **arguments,
    )


def _train(model: ModelFolder, dag_id: str) -> DAG:
    spec = model.spec
    with _dag(
        model,
        dag_id,
        "from raw files to a registered candidate",
        cron=spec.schedules.train,
        max_active_runs=1,
        params={"as_of": _AS_OF},
    ) as dag:
        arrived = DataArrivalSensor(task_id="wait_for_data", poke_interval=30, timeout=6 * 3600)
        ingested = IngestOperator(task_id="ingest", outlets=[asset(spec.name, "snapshot")])
        validated = on_spark(ValidateOperator, spec)(task_id="validate", snapshot=ingested.output)
        joined = on_spark(TrainingSetOperator, spec)(task_id="features", snapshot=ingested.output)
        pods: dict[str, Any] = {
            "training": spec.training,
            "kubernetes_conn_id": spec.connections.pods,
            # A killed pod is still listed for a while, and a retry that comes sooner would reattach to it.
            "retry_delay": timedelta(minutes=1),
        }
        search = None if spec.training.search is None else _search(spec.training, joined, pods)
        trained = TrainOperator(task_id="train", training_set=joined.output, search=search, **pods)
        evaluated = EvaluateOperator(task_id="evaluate", training=trained.output)
        registered = RegisterOperator(
            task_id="register",
            training=trained.output,
            evaluation=evaluated.output,
            outlets=[asset(spec.name, "candidate")],
        )
        promotion = RequestPromotionOperator(
            task_id="request_promotion",
            version=registered.output,
            trigger_dag_id=f"{spec.name}__promote",
        )
        arrived >> ingested >> validated >> joined >> trained >> evaluated >> registered >> promotion
    return dag


def _search(training: Training, joined: BaseOperator, pods: dict[str, Any]) -> XComArg:
    search = training.search
    assert search is not None, "asked before"
    planned = PlanSearchOperator(task_id="plan_search", training_set=joined.output)
    given = {**scheduling_arguments(training), **pods, "max_active_tis_per_dagrun": search.parallel}
    tried = TrialOperator.partial(task_id="trial", plan=planned.output, **given).expand(
        number=list(range(search.trials))
    )
    found = SearchOperator(task_id="search", plan=planned.output)
    tried >> found
    return found.output


def _promote(model: ModelFolder, dag_id: str) -> DAG:
    spec = model.spec
    with _dag(
        model,
        dag_id,
        "from a candidate to production, by way of staging and a human",
        # Each waits for a human, superseded ones to their deadline, and no newer candidate waits for them.
        max_active_runs=_OPEN_PROMOTIONS,
        params={
            "version": Param(type="string", pattern="^[0-9]+$", description="Registry version"),
            "all_traffic": Param(
                False,
                type="boolean",
                description="Stop watching the version's release and give it all traffic. For approvers who "
                "started neither its training nor its promotion.",
            ),
        },
    ) as dag:
        gathered = EvidenceOperator(task_id="evidence")
        approval = ApprovalSensor(
            task_id="approve", evidence=gathered.output, deadline=spec.approvers.deadline
        )
        ready: BaseOperator = gathered
        for environment in spec.before("production"):
            prepared, deployed = _environment_tasks(spec, gathered, environment)
            ready >> prepared
            ready = deployed
        prepared, released = _environment_tasks(spec, gathered, "production")
        champion = MarkChampionOperator(
            task_id="mark_champion",
            version="{{ dag_run.conf['version'] }}",
            outlets=[asset(spec.name, "champion")],
        )
        ready >> approval >> prepared
        # There whatever the strategy: the spec may be edited while a canary has its share.
        watched = WatchOperator(task_id="watch_production", evidence=gathered.output)
        released >> watched >> champion
    return dag


def _environment_tasks(
    spec: ModelSpec, gathered: EvidenceOperator, environment: str
) -> tuple[BaseOperator, DeployOperator]:
    prepared = on_spark(PrepareFeaturesOperator, spec)(
        task_id=f"prepare_{environment}", evidence=gathered.output, environment=environment
    )
    deployed = DeployOperator(
        task_id=f"deploy_{environment}",
        evidence=gathered.output,
        environment=environment,
        # An endpoint has one release under way at most; candidates that come together take turns.
        max_active_tis_per_dag=1,
    )
    prepared >> deployed
    return prepared, deployed


def _monitor(model: ModelFolder, dag_id: str) -> DAG:
    spec = model.spec
    with _dag(
        model,
        dag_id,
        "one window of production traffic, measured",
        cron=spec.schedules.monitor,
        max_active_runs=1,
        params={"as_of": _AS_OF},
    ) as dag:
        ingested = IngestOperator(task_id="ingest", outlets=[asset(spec.name, "snapshot")])
        measured = on_spark(MonitorOperator, spec)(task_id="monitor", snapshot=ingested.output)
        told = NotifyOperator(task_id="notify", monitoring=measured.output)
        retraining = RetrainOperator(
            task_id="retrain",
            monitoring=measured.output,
            trigger_dag_id=f"{spec.name}__train",
            outlets=[asset(spec.name, "drift")],
        )
        ingested >> measured >> [told, retraining]
    return dag


def _score(model: ModelFolder, dag_id: str) -> DAG:
    spec = model.spec
    with _dag(
        model,
        dag_id,
        "fresh features online, and a batch scored with the champion",
        cron=spec.schedules.score,
        max_active_runs=1,
        params={"as_of": _AS_OF},
    ) as dag:
        ingested = IngestOperator(task_id="ingest", outlets=[asset(spec.name, "snapshot")])
        validated = on_spark(ValidateOperator, spec)(task_id="validate", snapshot=ingested.output)
        fresh = on_spark(MaterialiseOperator, spec)(task_id="materialise", snapshot=ingested.output)
        ingested >> validated >> [fresh, _scoring(spec, ingested)]
    return dag


def _scoring(spec: ModelSpec, ingested: IngestOperator) -> BaseOperator:
    """The tasks that score, one or several that share the work; returns the first."""
    parallel = spec.scoring.parallel
    if parallel == 1 or spec.engine == "spark":  # whose executors share it
        return on_spark(ScoreOperator, spec)(task_id="score", snapshot=ingested.output)
    planned = PlanScoreOperator(task_id="plan_score", snapshot=ingested.output)
    # As many tasks as may run at once, not one a partition: a task costs seconds, and there may be thousands.
    shared = ScoreShareOperator.partial(task_id="score_share", plan=planned.output, shares=parallel).expand(
        share=list(range(parallel))
    )
    shared >> ScoreOperator(task_id="score", snapshot=ingested.output, plan=planned.output)
    return planned


def _rollback(model: ModelFolder, dag_id: str) -> DAG:
    with _dag(
        model,
        dag_id,
        "back to the last good release",
        doc=_ROLLBACK,
        max_active_runs=1,
        params={
            "reason": Param(
                "",
                type="string",
                description="Why; kept in the ledger and shown on the models' page. "
                "Empty means 'rolled back by hand'.",
            )
        },
    ) as dag:
        RollbackOperator(task_id="rollback") >> MarkChampionOperator(
            task_id="mark_champion", outlets=[asset(model.spec.name, "champion")]
        )
    return dag
