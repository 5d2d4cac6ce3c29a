"""Deploy and roll back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRescheduleException

from ml_lifecycle_airflow.operators.base import (
    RecordArg,
    Resources,
    StageOperator,
    final_errors_fail_at_once,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Release


class DeployOperator(StageOperator):
    """Release a version in an environment, check it in the running server, or roll back by itself.

    Production needs an approval of exactly this evidence in the ledger; a task marked as success is none.
    While another release of the endpoint is watched, it waits for that one's end, without a worker.

    :param evidence: the evidence's record
    :param environment: the environment's name in the spec
    """

    template_fields = ("evidence",)

    def __init__(self, *, evidence: RecordArg, environment: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evidence = evidence
        self.environment = environment

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the release, once it is its turn.

        :raises AirflowRescheduleException: another release is watched; looked at again as often as that one.
        :raises AirflowFailException: no retry would help: among others, the release it waited for became the
            champion, with which its evidence does not compare it.
        """
        from ml_lifecycle.adapters.lake import outage_said
        from ml_lifecycle.errors import LifecycleError, ReleaseWatchedError
        from ml_lifecycle.records import to_json

        with final_errors_fail_at_once():
            resources = Resources(self.folder)
        every = resources.spec.delivery.watch.every
        # Not deferred: a deferred task counts as active, and would keep the one it waits for from being
        # deployed again, as people do who give it all traffic.
        try:
            with final_errors_fail_at_once(), outage_said():
                return to_json(self.stage(resources, context))
        except ReleaseWatchedError as error:
            if error.left_alone:
                self.log.warning("Waiting in vain: %s", error)
            else:
                self.log.info("Waiting for its end: %s", error)
            raise AirflowRescheduleException(datetime.now(UTC) + every) from error
        except LifecycleError as error:
            # A wait of days has no retries for every time that somebody does not answer.
            if not context.get("task_reschedule_count"):
                raise
            self.log.warning("Cannot deploy now, and will try again: %s: %s", type(error).__name__, error)
            raise AirflowRescheduleException(datetime.now(UTC) + every) from error

    def stage(self, resources: Resources, context: Context) -> Release:
        """Return the release: confirmed, or ``applied`` where its strategy gives it a part of the traffic.

        :raises NotApprovedError: the ledger has no approval of this evidence. Retry: no.
        :raises NotConfirmedError: production, and an environment before it has not confirmed it. Retry: no.
        :raises ChampionChangedError: the champion is no longer the one in the evidence. Retry: no.
        :raises ReleaseChecksError: the server failed the checks; the former release is live. Retry: no.
        :raises ReleaseWatchedError: another release is watched. Retry: yes, once it has ended.
        """
        from ml_lifecycle.delivery.lineage import read_registry, read_version
        from ml_lifecycle.records import Evidence
        from ml_lifecycle.stages.deploy import deploy

        lake, evidence = resources.lake(), resources.received(Evidence, self.evidence)
        release = deploy(
            resources.spec,
            resources.target(self.environment),
            lake,
            resources.database(),
            evidence,
            read_version(lake, evidence.model, evidence.version),
            resources.clock(),
            registry=read_registry(lake, evidence),
            requested_by=context["dag_run"].triggering_user_name,
        )
        self.log.info(
            "%s: version %s, revision %d, is %s",
            *(self.environment, release.version, release.revision, release.state),
        )
        return release


class MarkChampionOperator(StageOperator):
    """Move the registry's alias ``champion`` to the version that is live in production.

    :param version: the registry version that must be live; by default whichever is
    """

    template_fields = ("version",)

    def __init__(self, *, version: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version

    def stage(self, resources: Resources, context: Context) -> Release:
        """Return the live release.

        :raises NotConfirmedError: nothing is live, or another version than it should be. Retry: no.
        """
        from ml_lifecycle.adapters.mlflow import set_alias
        from ml_lifecycle.delivery.release_history import ReleaseHistory
        from ml_lifecycle.errors import NotConfirmedError

        release = ReleaseHistory(resources.database()).champion(resources.spec.endpoint)
        if release is None:
            raise NotConfirmedError(f"{resources.spec.endpoint} has no champion in production")
        if self.version not in (None, release.version):
            raise NotConfirmedError(
                f"version {self.version} of {release.model} is not live in production, "
                f"version {release.version} is: clear the production deployment, so that it runs"
            )
        set_alias(resources.mlflow(), resources.spec.name, "champion", release.version)
        return release


class RollbackOperator(StageOperator):
    """Go back to the newest earlier release that was confirmed and never rolled back.

    :param environment: the environment's name in the spec
    """

    def __init__(self, *, environment: str = "production", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.environment = environment

    def stage(self, resources: Resources, context: Context) -> Release:
        """Return the release that is live now.

        :raises NothingToRollBackToError: no earlier release can be gone back to. Retry: no.
        """
        from ml_lifecycle.stages.deploy import rollback

        dag_run = context["dag_run"]
        return rollback(
            resources.spec,
            resources.target(self.environment),
            resources.database(),
            resources.clock(),
            request=f"{dag_run.dag_id}/{dag_run.run_id}",
            requested_by=dag_run.triggering_user_name,
            reason=str((dag_run.conf or {}).get("reason") or "rolled back by hand"),
        )
