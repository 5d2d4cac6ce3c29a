"""Score: a batch with the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.operators.base import RecordArg, Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.records import Scoring


class ScoreOperator(StageOperator):
    """Score the interval's rows with the champion's file and write them to the lake.

    :param snapshot: the snapshot's record
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    def stage(self, resources: Resources, context: Context) -> Scoring:
        """Return where the scores are."""
        from ml_lifecycle.delivery.lineage import find_champion
        from ml_lifecycle.errors import NotApprovedError
        from ml_lifecycle.records import Snapshot
        from ml_lifecycle.stages.features import build_scoring_rows
        from ml_lifecycle.stages.score import score

        lake = resources.lake()
        snapshot = resources.received(Snapshot, self.snapshot, context)
        champion = find_champion(resources.spec, lake, resources.database())
        if champion is None:
            raise NotApprovedError(f"{resources.spec.name} has no champion to score with: promote one first")
        rows, _ = build_scoring_rows(resources.model, lake, snapshot, snapshot.run.interval)
        scoring = score(resources.spec, lake, snapshot.run, champion.training, champion.version, rows.lazy())
        self.log.info("%d rows scored by version %s", scoring.rows, scoring.version)
        return scoring
