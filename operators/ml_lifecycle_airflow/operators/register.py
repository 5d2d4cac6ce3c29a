"""Register: a candidate in MLflow's registry, and the run that carries it to production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

from ml_lifecycle_airflow.links import ModelPageLink, TriggeredRunLink
from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    StageOperator,
    final_errors_fail_at_once,
    required_folder,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import ModelVersion


class RegisterOperator(StageOperator):
    """Register an evaluated model; the same model twice is one version.

    :param training: the training's record
    :param evaluation: the evaluation's record
    """

    template_fields = ("training", "evaluation")

    def __init__(self, *, training: RecordArg, evaluation: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training = training
        self.evaluation = evaluation

    def stage(self, resources: Resources, context: Context) -> ModelVersion:
        """Return the registered version."""
        from ml_lifecycle.delivery.lineage import find_champion
        from ml_lifecycle.ledger.requests import decided_versions
        from ml_lifecycle.records import Evaluation, Training
        from ml_lifecycle.stages.register import register
        from ml_lifecycle.stages.train import log_training

        lake, database = resources.lake(), resources.database()
        training = resources.received(Training, self.training, context)
        champion = find_champion(resources.spec, lake, database)
        version = register(
            resources.mlflow(),
            resources.spec,
            lake,
            # MLflow's run is found by the training's digest, not by the id that was received.
            log_training(resources.mlflow(), lake, training),
            resources.received(Evaluation, self.evaluation, context),
            None if champion is None else champion.training.train_end,
            decided_versions(database, resources.spec.name),
        )
        self.log.info("version %s is %s", version.version, version.role)
        return version


class RequestPromotionOperator(TriggerDagRunOperator):
    """Start exactly one promotion run for a candidate; a version for the record starts none.

    :param folder: the model folder
    :param version: the registered version's record
    """

    template_fields = (*TriggerDagRunOperator.template_fields, "version")
    operator_extra_links = [TriggeredRunLink(), ModelPageLink()]

    def __init__(self, *, folder: str | None = None, version: RecordArg, **kwargs: Any) -> None:
        super().__init__(logical_date=None, skip_when_already_exists=True, **kwargs)
        self.folder = required_folder(folder, self.task_id)
        self.version = version

    def execute(self, context: Context) -> None:
        """Trigger the run, whose id is the candidate's version.

        :raises AirflowSkipException: the version is registered for the record only.
        """
        from ml_lifecycle.records import ModelVersion

        with final_errors_fail_at_once():
            registered = Resources(self.folder).received(ModelVersion, self.version)
        if registered.role != "candidate":
            raise AirflowSkipException(f"version {registered.version} is for the record only")
        self.trigger_run_id = f"candidate__v{registered.version}"
        self.conf = {"version": registered.version}
        super().execute(context)
