"""Approve, first half: gather the evidence a human will judge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.links import ModelPageLink, ReportLink
from ml_lifecycle_airflow.operators.base import Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Evidence


class EvidenceOperator(StageOperator):
    """Gather the evidence for a version, evaluated again if the champion or the gates changed meanwhile.

    :param version: the registry version, by default the one in the run's conf
    """

    template_fields = ("version",)
    operator_extra_links = (ReportLink(), ModelPageLink())
    report_path: str | None = None

    def __init__(self, *, version: str = "{{ dag_run.conf['version'] }}", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version

    def stage(self, resources: Resources, context: Context) -> Evidence:
        """Return the evidence.

        :raises GateError: the version is no candidate, or misses a gate against the new champion. Retry: no.
        """
        from ml_lifecycle.adapters.lake import safe_name
        from ml_lifecycle.delivery.lineage import find_champion, read_training, read_version
        from ml_lifecycle.stages.approve import make_evidence
        from ml_lifecycle.stages.evaluate import evaluate, raise_if_failed

        lake, spec = resources.lake(), resources.spec
        version = read_version(lake, spec.name, safe_name(self.version))
        training = read_training(lake, version.training_path)
        champion = find_champion(spec, lake, resources.database())
        # What was evaluated against this very champion and these very gates is only read again.
        evaluation = evaluate(
            spec,
            lake,
            training,
            None if champion is None else champion.training,
            None if champion is None else champion.version,
            datetime.now(UTC),
        )
        if evaluation.path != version.evaluation_path:
            self.log.info("the champion or the gates changed since the version was registered: judged anew")
            version = replace(version, evaluation_path=evaluation.path)
        self.report_path = evaluation.report_path
        raise_if_failed(evaluation)
        release = None if champion is None else champion.release
        return make_evidence(lake, version, evaluation, training, release)
