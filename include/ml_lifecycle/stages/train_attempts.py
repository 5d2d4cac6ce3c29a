"""The attempts at one training by one task: begun, settled and decided upon, whoever runs the pods.

Works on the lifecycle database and the lake alone, so that an orchestrator's worker may die at any line: the
next one settles what was left open. Of one owner at most one attempt is open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from ml_lifecycle.adapters.lake import Lake, LakeFileMissingError
from ml_lifecycle.errors import IntegrityError, LifecycleError
from ml_lifecycle.ledger.attempts import AttemptRow, attempts_of, close_attempt, history_of, open_attempt
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import TRAINING, append_entry
from ml_lifecycle.records import Training, to_json
from ml_lifecycle.spec.training import Pool
from ml_lifecycle.spec.training import Training as TrainingSpec
from ml_lifecycle.stages.train import collect_training, failure_of
from ml_lifecycle.training.cost import Cost, Prices, Run, cost_of
from ml_lifecycle.training.job import Attempt, TrainingJob
from ml_lifecycle.training.outcomes import Launch, Outcome, PodFacts, diagnose, next_launch

log = logging.getLogger(__name__)


class TrainingAttempts:
    """One task's hold on a training.

    :param owner: the task instance; its attempts follow each other
    :param try_number: of the task; a new one has its budgets anew
    """

    def __init__(
        self,
        database: Database,
        lake: Lake,
        job: TrainingJob,
        spec: TrainingSpec,
        *,
        owner: str,
        try_number: int,
        now: Callable[[], datetime],
    ) -> None:
        self.job = job
        self._database = database
        self._lake = lake
        self._spec = spec
        self._owner = owner
        self._try_number = try_number
        self._now = now

    def open_attempt(self) -> Attempt | None:
        """The attempt that is under way, or whose end nobody has seen."""
        rows = [row for row in self.rows() if row.outcome is None]
        return self._attempt(rows[-1].number) if rows else None

    def begin(self, pools: Sequence[Pool]) -> tuple[Attempt, Launch]:
        """Take the next attempt; from here on the ones before it publish nothing.

        :param pools: those of the spec that could run the pod
        :raises LifecycleError: the history forbids another: what the task should end with.
        """
        launch = next_launch(
            self._spec.recovery, pools, self._spec.resources, history_of(self.rows()), self._try_number
        )
        if isinstance(launch, LifecycleError):
            raise launch
        number = open_attempt(
            self._database,
            self.job.digest,
            self.job.run.model,
            self._owner,
            self._try_number,
            launch,
            self._now(),
        )
        attempt = self._attempt(number)
        attempt.raise_fence(self._lake)
        return attempt, launch

    def settle(self, attempt: Attempt, facts: PodFacts | None, cause: str) -> Training | Outcome:
        """Say what became of an attempt that is over: the published training, or why there is none.

        :param facts: the cluster's word on its pod; None if it has none
        :param cause: what else is known of its end
        """
        usage = self._usage(attempt)
        try:
            training = collect_training(self._lake, attempt, facts.image if facts is not None else "")
        except IntegrityError as error:
            outcome = Outcome("integrity", str(error))
        except LifecycleError:
            outcome = diagnose(facts, failure_of(self._lake, attempt), usage, cause)
        else:
            self._close(attempt, Outcome("finished"), usage)
            return training
        self._close(attempt, outcome, usage)
        log.warning("attempt %d: %s: %s", attempt.number, outcome.kind, outcome.message)
        return outcome

    def cost(self, prices: Prices | None) -> Cost:
        """What the owner's attempts came to, once one has finished."""
        return cost_of(runs_of(self.rows()), self._spec.resources, prices)

    def record_cost(self, cost: Cost) -> None:
        """Write it to the ledger, once for each task that trained."""
        with self._database.write() as connection:
            append_entry(
                connection,
                TRAINING,
                self.job.run.model,
                to_json(cost),
                self._now(),
                subject=self.job.digest,
                key=self._owner,
            )

    def _close(self, attempt: Attempt, outcome: Outcome, usage: Mapping[str, float]) -> None:
        close_attempt(self._database, self.job.digest, attempt.number, outcome, dict(usage), self._now())

    def rows(self) -> tuple[AttemptRow, ...]:
        """All attempts of the owner, oldest first."""
        return attempts_of(self._database, self.job.digest, self._owner)

    def _attempt(self, number: int) -> Attempt:
        return Attempt(self.job, number, self._owner, deadline=self._now() + self._spec.timeout)

    def _usage(self, attempt: Attempt) -> dict[str, float]:
        try:
            found = self._lake.read_json(attempt.usage_path)
        except (LakeFileMissingError, IntegrityError):
            return {}
        return {str(name): float(value) for name, value in found.items()}


def runs_of(rows: Iterable[AttemptRow]) -> list[Run]:
    """Those that are over, as :func:`~ml_lifecycle.training.cost.cost_of` asks for them."""
    return [
        Run(row.pool, row.memory_factor, row.outcome.kind == "interrupted", row.usage)
        for row in rows
        if row.outcome is not None
    ]
