"""Evaluate: the file that will be served, gate by gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.links import ModelPageLink, ReportLink
from ml_lifecycle_airflow.operators.base import RecordArg, Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Evaluation


class EvaluateOperator(StageOperator):
    """Judge a trained model on the holdout, beside the champion on the same rows.

    :param training: the training's record
    """

    template_fields = ("training",)
    operator_extra_links = (ReportLink(), ModelPageLink())
    report_path: str | None = None

    def __init__(self, *, training: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.training = training

    def stage(self, resources: Resources, context: Context) -> Evaluation:
        """Return the evaluation.

        :raises GateError: a gate was missed or could not be computed. Retry: no.
        """
        from datetime import UTC, datetime

        from ml_lifecycle.delivery.lineage import find_champion
        from ml_lifecycle.records import Training
        from ml_lifecycle.stages.evaluate import evaluate, raise_if_failed

        lake = resources.lake()
        champion = find_champion(resources.spec, lake, resources.database())
        evaluation = evaluate(
            resources.spec,
            lake,
            resources.received(Training, self.training, context),
            None if champion is None else champion.training,
            None if champion is None else champion.version,
            datetime.now(UTC),
        )
        for gate in evaluation.gates:
            self.log.info(
                "%s %s: measured %s, threshold %s%s",
                "passed" if gate.passed else "MISSED",
                *(gate.gate, gate.measured, gate.threshold, f" ({gate.reason})" if gate.reason else ""),
            )
        self.report_path = evaluation.report_path
        raise_if_failed(evaluation)
        return evaluation
