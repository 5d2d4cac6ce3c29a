"""Validate: a snapshot against its contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.links import ModelPageLink, ReportLink
from ml_lifecycle_airflow.operators.base import RecordArg, Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Validation


class ValidateOperator(StageOperator):
    """Hold a snapshot against the contract; a broken rule that halts fails the task at once.

    :param snapshot: the snapshot's record
    """

    template_fields = ("snapshot",)
    operator_extra_links = (ReportLink(), ModelPageLink())
    report_path: str | None = None

    def __init__(self, *, snapshot: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    def stage(self, resources: Resources, context: Context) -> Validation:
        """Return the verdict.

        :raises DataHaltedError: a rule that halts was broken. Retry: no.
        :raises ContractBreaksError: the contract breaks the last one under the same major version. Retry: no.
        """
        from ml_lifecycle.records import Snapshot
        from ml_lifecycle.stages.validate import latest_validated, raise_if_halted, validate

        lake = resources.lake()
        snapshot = resources.received(Snapshot, self.snapshot, context)
        previous = latest_validated(lake, resources.spec.name, snapshot.run.as_of)
        model = resources.model
        validation = validate(model.spec, model.contracts, lake, snapshot, previous, model.contract_file)
        for result in validation.failed:
            self.log.warning(
                "%s.%s %s: expected %s, observed %s",
                *(result.source, result.field, result.rule, result.expected, result.observed),
            )
        self.report_path = validation.page_path
        raise_if_halted(validation)
        return validation
