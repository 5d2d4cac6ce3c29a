"""Approve: a human's decision, bound to the evidence and written to the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators.hitl import HITLOperator

from ml_lifecycle_airflow.links import ModelPageLink, ReportLink, model_url, report_url
from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    final_errors_fail_at_once,
    required_folder,
)

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Context

    from ml_lifecycle.ledger.requests import RequestKey
    from ml_lifecycle.records import Evaluation, Evidence


class ApprovalSensor(HITLOperator):
    """Ask a human whether a candidate may go to production; waits without holding a worker.

    Assigned are the spec's approvers minus whoever started the training or the promotion. The answer, yes or
    no, is written to the ledger together with the digest of the evidence that was shown; deployment trusts
    the ledger, never this task's state. An unanswered request counts as rejected at its deadline.

    :param folder: the model folder
    :param evidence: the evidence's record
    :param deadline: how long to wait for an answer
    """

    APPROVE = "Approve"
    REJECT = "Reject"

    template_fields = ("subject", "body", "evidence")
    operator_extra_links = (ReportLink(), ModelPageLink())
    report_path: str | None = None

    def __init__(
        self, *, folder: str | None = None, evidence: RecordArg, deadline: timedelta, **kwargs: Any
    ) -> None:
        from airflow.sdk import Param

        kwargs.pop("params", None)  # the DAG's own, which Airflow hands to every task: no fields of this form
        super().__init__(
            subject="A candidate asks for production",
            options=[self.APPROVE, self.REJECT],
            params={"reason": Param("", type=["null", "string"], description="Why; kept in the ledger")},
            response_timeout=deadline,
            **kwargs,
        )
        self.folder = required_folder(folder, self.task_id)
        self.evidence = evidence
        self.deadline = deadline

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Show the evidence to those who may decide, and wait.

        :returns: the approval that an earlier attempt was given, if it still stands
        :raises AirflowFailException: nobody is left who may approve, or an environment before production has
            not confirmed this evidence. Retry: no.
        """
        from airflow.sdk.execution_time.hitl import HITLUser

        from ml_lifecycle.delivery.lineage import read_evaluation, read_training, read_version
        from ml_lifecycle.delivery.release_history import ReleaseHistory
        from ml_lifecycle.ledger.ledger import Ledger
        from ml_lifecycle.records import Evidence, to_json
        from ml_lifecycle.stages.approve import (
            approval_page,
            assigned_approvers,
            check_environments,
            request_approval,
            standing_approval,
        )

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
            spec, lake, database = resources.spec, resources.lake(), resources.database()
            evidence = resources.received(Evidence, self.evidence)
            self.report_path = evidence.report_path
            check_environments(spec, ReleaseHistory(database), evidence)
            champion = ReleaseHistory(database).champion(spec.endpoint)
            standing = standing_approval(Ledger(database), evidence, _request(context), champion)
            if standing is not None:
                self.log.info(
                    "%s has approved already, ledger row %d", standing.approved_by, standing.ledger_seq
                )
                return to_json(standing)
            version = read_version(lake, evidence.model, evidence.version)
            assigned = assigned_approvers(spec, version, context["dag_run"].triggering_user_name)
            now = resources.clock().now()
            request_approval(
                Ledger(database), evidence, _request(context), assigned, now, now + self.deadline
            )
        # An empty list would mean anyone to Airflow; assigned_approvers has refused that already.
        self.assigned_users = [HITLUser(id=user, name=user) for user in assigned]
        self.subject = f"{evidence.model}: may version {evidence.version} go to production?"
        evaluation = read_evaluation(lake, evidence.evaluation_path)
        training = read_training(lake, evidence.training_path)
        self.body = approval_page(evidence, evaluation, training, self._links(evidence, evaluation))
        super().execute(context)
        return None

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Write the decision to the ledger.

        :raises AirflowFailException: rejected, too late, or decided by someone not assigned. Retry: no.
        """
        from ml_lifecycle.delivery.release_history import ReleaseHistory
        from ml_lifecycle.ledger.ledger import Ledger
        from ml_lifecycle.records import Evidence, to_json
        from ml_lifecycle.stages.approve import record_decision

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
            evidence, database = resources.received(Evidence, self.evidence), resources.database()
        self.report_path = evidence.report_path
        try:
            answer: dict[str, Any] = dict(super().execute_complete(context, event))
        except HITLTimeoutError:
            # No answer is an answer: it is written down as a rejection by nobody.
            answer = {"chosen_options": [self.REJECT], "params_input": {}, "responded_by_user": None}
            answer["responded_at"] = resources.clock().now()
        user = answer["responded_by_user"]
        with final_errors_fail_at_once():
            approval = record_decision(
                Ledger(database),
                evidence,
                _request(context),
                "approve" if answer["chosen_options"] == [self.APPROVE] else "reject",
                None if user is None else str(user["name"]),
                answer["responded_at"],
                champion=ReleaseHistory(database).champion(resources.spec.endpoint),
                reason=str(answer["params_input"].get("reason") or ""),
            )
        self.log.info("approved by %s, ledger row %d", approval.approved_by, approval.ledger_seq)
        return to_json(approval)

    def _links(self, evidence: Evidence, evaluation: Evaluation) -> dict[str, str]:
        return {
            "Evaluation report": report_url(evaluation.report_path),
            "All models": model_url(evidence.model),
        }


def _request(context: Context) -> RequestKey:
    from ml_lifecycle.ledger.requests import RequestKey

    instance = context["ti"]
    return RequestKey(instance.dag_id, instance.run_id, instance.task_id, instance.try_number)
