"""Score: a batch with the champion, by one task or shared by several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_lifecycle_airflow.operators.base import RecordArg, Resources, StageOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.records import ScoredShare, Scoring, ScoringPlan, Snapshot


class PlanScoreOperator(StageOperator):
    """Slice the interval's rows for several tasks, and settle which version scores them.

    :param snapshot: the snapshot's record
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: RecordArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    def stage(self, resources: Resources, context: Context) -> ScoringPlan:
        """Return the plan."""
        from ml_lifecycle.records import Snapshot
        from ml_lifecycle.stages.feature_tables import build_tables

        lake, snapshot = resources.lake(), resources.received(Snapshot, self.snapshot, context)
        plan = _plan(resources, lake, snapshot)
        build_tables(resources.model, lake, snapshot)  # or each of the tasks would, all at the same time
        self.log.info("%d slices for version %s", len(plan.slices), plan.version)
        return plan


class ScoreShareOperator(StageOperator):
    """Score a share of the slices; to be mapped over ``share``.

    A slice that is finished, by whichever task, is not scored again. So a task that was killed loses one
    slice, and what it had done before counts.

    :param plan: the plan's record
    :param share: its number, from 0
    :param shares: how many there are
    """

    template_fields = ("plan",)

    def __init__(self, *, plan: RecordArg, share: int, shares: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.share = share
        self.shares = shares

    def stage(self, resources: Resources, context: Context) -> ScoredShare:
        """Return how much it was."""
        from ml_lifecycle.delivery.lineage import read_training
        from ml_lifecycle.records import ScoringPlan
        from ml_lifecycle.stages.score import score_share
        from ml_lifecycle.stages.score_partitions import planned_partitions

        lake, spec = resources.lake(), resources.spec
        plan = resources.received(ScoringPlan, self.plan, context)
        training = read_training(lake, plan.training_path)
        with planned_partitions(resources.model, lake, plan) as partitions:
            return score_share(
                spec, lake, plan, training, partitions, self.share, self.shares, spec.scoring.threads
            )


class ScoreOperator(StageOperator):
    """Score the interval's rows with the champion's file and write them to the lake.

    :param snapshot: the snapshot's record
    :param plan: the plan's record, where several tasks share the work: this one then puts the result together
    """

    template_fields = ("snapshot", "plan")

    def __init__(self, *, snapshot: RecordArg, plan: RecordArg | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot
        self.plan = plan

    def stage(self, resources: Resources, context: Context) -> Scoring:
        """Return where the scores are."""
        from ml_lifecycle.delivery.lineage import read_training
        from ml_lifecycle.records import ScoringPlan, Snapshot
        from ml_lifecycle.stages.score import score_plan

        lake = resources.lake()
        if self.plan is None:
            plan = _plan(resources, lake, resources.received(Snapshot, self.snapshot, context))
        else:
            plan = resources.received(ScoringPlan, self.plan, context)
        scoring = score_plan(resources.model, lake, plan, read_training(lake, plan.training_path))
        self.log.info("%d rows scored by version %s", scoring.rows, scoring.version)
        return scoring


def _plan(resources: Resources, lake: Lake, snapshot: Snapshot) -> ScoringPlan:
    from ml_lifecycle.delivery.lineage import find_champion
    from ml_lifecycle.errors import NotApprovedError
    from ml_lifecycle.stages.score_partitions import plan_scoring

    champion = find_champion(resources.spec, lake, resources.database())
    if champion is None:
        raise NotApprovedError(f"{resources.spec.name} has no champion to score with: promote one first")
    return plan_scoring(resources.model, lake, snapshot, champion.training.path, champion.version)
