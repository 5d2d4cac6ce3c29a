"""Train: in pods, until one of them has left a result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.links import MlflowRunLink, ModelPageLink
from ml_lifecycle_airflow.operators.base import RecordArg, Resources, final_errors_fail_at_once
from ml_lifecycle_airflow.operators.training_pods import TrainingPodsOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Training
    from ml_lifecycle.stages.train_attempts import TrainingAttempts
    from ml_lifecycle.training.cost import Prices
    from ml_lifecycle.training.job import TrainingJob

log = logging.getLogger(__name__)


class TrainOperator(TrainingPodsOperator):
    """Train in pods, one after another until one has left a result, and log it to MLflow.

    :param training_set: the training set's record
    :param search: the record of a search, whose parameters it is trained with; without one those of the spec
    """

    template_fields = (*TrainingPodsOperator.template_fields, "training_set", "search")
    operator_extra_links = (MlflowRunLink(), ModelPageLink())
    mlflow_run_url: str | None = None

    def __init__(self, *, training_set: RecordArg, search: RecordArg | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training_set = training_set
        self.search = search

    def _plan(self, resources: Resources, context: Context) -> TrainingJob:
        from ml_lifecycle.records import TrainingSet
        from ml_lifecycle.stages.train import plan_training
        from ml_lifecycle.training.search import Search

        with final_errors_fail_at_once():
            training_set = resources.received(TrainingSet, self.training_set, context)
            search = None if self.search is None else resources.received(Search, self.search, context)
            return plan_training(resources.model, resources.lake(), training_set, search=search)

    def _finish(
        self, resources: Resources, attempts: TrainingAttempts, training: Training, context: Context
    ) -> None:
        from ml_lifecycle.records import to_json
        from ml_lifecycle.stages.train import log_training

        cost = attempts.cost(price_table()) if attempts.rows() else None  # none: an earlier run trained it
        with final_errors_fail_at_once():
            training = log_training(resources.mlflow(), resources.lake(), training, cost=cost)
        if cost is not None:
            attempts.record_cost(cost)
            self.log.info("%d attempts, %.0f s: %s", cost.attempts, cost.wall_seconds, cost.figures)
            for advice in cost.advice:
                self.log.info("advice: %s", advice)
        if page := resources.mlflow_page():
            self.mlflow_run_url = f"{page}/#/runs/{training.mlflow_run_id}"
        self.log.info("model %s: %s", training.model_digest[:12], training.metrics)
        context["ti"].xcom_push(key="return_value", value=to_json(training))


def price_table() -> Prices | None:
    """The price table of Airflow's configuration; a wrong one is said, and costs no training."""
    from airflow.configuration import conf

    from ml_lifecycle.errors import SpecError
    from ml_lifecycle.training.cost import read_prices

    try:
        return read_prices(conf.get("ml_lifecycle", "prices", fallback=""))
    except SpecError as error:
        log.warning("%s", error)
        return None
