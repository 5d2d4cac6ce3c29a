"""Features: the training set, and values for the online store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.operators.base import RecordArg, Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import TrainingSet
    from ml_lifecycle.stages.online_features import Materialisation


class TrainingSetOperator(StageOperator):
    """Join labels with the features as they were known then.

    :param snapshot: the snapshot's record
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    def stage(self, resources: Resources, context: Context) -> TrainingSet:
        """Return the training set."""
        from ml_lifecycle.records import Snapshot
        from ml_lifecycle.stages.features import build_training_set

        snapshot = resources.received(Snapshot, self.snapshot, context)
        made = build_training_set(resources.model, resources.lake(), snapshot)
        self.log.info(
            "%d training rows before %s, %d holdout rows from %s",
            *(made.train_rows, made.train_end, made.holdout_rows, made.holdout.start),
        )
        return made


class MaterialiseOperator(StageOperator):
    """Write what became known since the last time into an environment's online store.

    :param snapshot: the snapshot's record
    :param environment: the environment's name in the spec
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: RecordArg, environment: str = "production", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot
        self.environment = environment

    def stage(self, resources: Resources, context: Context) -> Materialisation:
        """Return what was written."""
        from ml_lifecycle.records import Snapshot
        from ml_lifecycle.stages.online_features import materialise

        return materialise(
            resources.model,
            resources.lake(),
            resources.received(Snapshot, self.snapshot, context),
            resources.online_store(self.environment),
        )


class PrepareFeaturesOperator(StageOperator):
    """Fill an environment's online store for a version that is about to be served there.

    :param evidence: the evidence's record
    :param environment: the environment's name in the spec
    """

    template_fields = ("evidence",)

    def __init__(self, *, evidence: RecordArg, environment: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evidence = evidence
        self.environment = environment

    def stage(self, resources: Resources, context: Context) -> Materialisation:
        """Return what was written.

        :raises NotApprovedError: production, and the ledger has no approval of this evidence. Retry: no.
        """
        from ml_lifecycle.delivery.release_history import PRODUCTION
        from ml_lifecycle.errors import NotApprovedError
        from ml_lifecycle.ledger.ledger import Ledger
        from ml_lifecycle.records import Evidence
        from ml_lifecycle.stages.online_features import prepare_online

        evidence = resources.received(Evidence, self.evidence)
        approved = Ledger(resources.database()).approval_for(evidence.digest)
        if self.environment == PRODUCTION and approved is None:
            raise NotApprovedError(
                f"the ledger has no approval of version {evidence.version} of {evidence.model}: "
                "production's online store stays as it is"
            )
        store = resources.online_store(self.environment)
        return prepare_online(resources.model, resources.lake(), evidence, store)
