"""Watch: a release that has a part of the traffic, judged until it has all of it or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    StageOperator,
    final_errors_fail_at_once,
)

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.sdk import Context

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.stages.watch import Watching
    from ml_lifecycle.stages.watch_labels import Tables


class WatchOperator(StageOperator):
    """Look at a release every ``delivery.watch.every``: give it more traffic, hold, or roll it back.

    While a server, a lake or the lifecycle database does not answer it warns and looks again, for as long as
    that takes. A task that is killed or cleared goes on where it was; the release keeps its share meanwhile.

    :param evidence: the evidence's record
    :param environment: the environment's name in the spec
    :param deferrable: wait in the triggerer instead of on a worker
    """

    template_fields = ("evidence",)

    def __init__(
        self,
        *,
        evidence: RecordArg,
        environment: str = "production",
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.evidence = evidence
        self.environment = environment
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the confirmed release, with what was judged last.

        :raises AirflowFailException: it was rolled back; the message says why.
        """
        return self._watch(context)

    def execute_complete(self, context: Context, event: Any) -> dict[str, Any]:
        """Look again."""
        return self._watch(context)

    def _watch(self, context: Context) -> dict[str, Any]:
        from ml_lifecycle.records import to_json

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
            every, clock = resources.spec.delivery.watch.every, resources.clock()
            while (over := self._look(resources, context)) is None and not self.deferrable:
                clock.sleep(every.total_seconds())
        if over is None:
            from ml_lifecycle_airflow.triggers.watch import NextLookTrigger

            moment = (clock.now() + every).isoformat()
            self.defer(trigger=NextLookTrigger(moment), method_name="execute_complete")
        return to_json(over)

    def _look(self, resources: Resources, context: Context) -> Watching | None:
        """Look once; None while the release is not over, or somebody who must be asked does not answer."""
        from ml_lifecycle.adapters.lake import outage_said
        from ml_lifecycle.errors import LifecycleError

        try:
            with outage_said():
                watching = self.stage(resources, context)
        except LifecycleError as error:
            if not error.retryable:
                raise
            self.log.warning(
                "Cannot look now, and will again every %s. Meanwhile the release keeps its share, and nobody "
                "takes it back. %s: %s",
                *(resources.spec.delivery.watch.every, type(error).__name__, error),
            )
            return None
        return watching if watching.is_over else None

    def stage(self, resources: Resources, context: Context) -> Watching:
        """Look once.

        :raises ReleaseChecksError: it was worse than the champion, or not served as it should be, and was
            rolled back. Retry: no.
        """
        from ml_lifecycle.records import Evidence
        from ml_lifecycle.stages.watch import watch

        dag_run = context["dag_run"]
        decided = bool((dag_run.conf or {}).get("all_traffic"))
        watching = watch(
            resources.spec,
            resources.target(self.environment),
            resources.database(),
            resources.received(Evidence, self.evidence),
            self._tables(resources, context),
            resources.clock(),
            decided_by=dag_run.triggering_user_name if decided else None,
        )
        release = watching.release
        self.log.info("version %s, revision %d: %s", release.version, release.revision, watching.step)
        judgement = watching.judgement
        for reason in () if judgement is None else judgement.reasons:
            self.log.info("%s: %s", judgement and judgement.decision, reason)
        if judgement is not None and judgement.for_people and not watching.is_over:
            model = resources.spec.name
            self.log.warning(
                "People decide: %s__rollback takes it back; %s__promote of the same version with "
                "all_traffic, by an approver who started neither training nor promotion, lets it have all",
                *(model, model),
            )
        return watching

    def _tables(self, resources: Resources, context: Context) -> Tables | None:
        """The frames that labels and business metrics are in, as of now."""
        from ml_lifecycle.adapters.lake import outage_said
        from ml_lifecycle.errors import LifecycleError
        from ml_lifecycle.stages.watch import needs_tables

        if not needs_tables(resources.spec):
            return None
        lake, now = resources.lake(), resources.clock().now()
        # What a source lacks today must not keep the rest from being watched.
        try:
            with outage_said():
                return self._read_tables(resources, context, lake, now)
        except LifecycleError as error:
            self.log.warning("labels and business metrics are not counted: %s", error)
            return None

    def _read_tables(self, resources: Resources, context: Context, lake: Lake, now: datetime) -> Tables:
        from ml_lifecycle.records import Interval, Run
        from ml_lifecycle.stages.feature_tables import build_tables
        from ml_lifecycle.stages.ingest import ingest
        from ml_lifecycle_airflow.hooks.lake import source_options
        from ml_lifecycle_airflow.hooks.origins import source_origins

        run = Run(resources.spec.name, context["dag_run"].run_id, now, Interval(now, now))
        snapshot = ingest(
            resources.spec,
            lake,
            run,
            contracts=resources.model.contracts,
            storage_options=source_options(resources.spec),
            origins=source_origins(resources.spec),
        )
        frames = build_tables(resources.model, lake, snapshot).tables
        return lambda name: lake.scan([frames[name]])
