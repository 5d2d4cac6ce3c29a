"""The way of a request through the data plane, the same for every protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.serving.batching import Batcher, Job, Result, Waiting, score_together
from ml_lifecycle.serving.dataplane import LoadedVariant, Scored
from ml_lifecycle.serving.errors import BadRequestError, BrokenRulesError, ServingError, UnknownEntityError
from ml_lifecycle.serving.log_rows import FailedEntry, LogEntry
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.prediction_log import PredictionLog
from ml_lifecycle.serving.shadows import Shadows

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of those that wait for the online store so many are read for at once, and rows of theirs.
_READ_REQUESTS = 64
_READ_ROWS = 1_000


class Inference:
    """Decodes, scores, logs and answers. Rows are logged before their answer is sent.

    :param executor: where requests go that would hold the event loop up
    :param waiting: where work goes that only waits: for the lake, or for a model to be loaded
    """

    def __init__(
        self, prediction_log: PredictionLog, metrics: Metrics, executor: Executor, waiting: Executor
    ) -> None:
        self._log = prediction_log
        self._metrics = metrics
        self._executor = executor
        self._waiting = waiting
        self._batcher = Batcher(self._take)
        self._reading: dict[LoadedVariant, list[Waiting]] = {}
        metrics.reads_waiting(lambda: sum(map(len, tuple(self._reading.values()))))
        self._shadows = Shadows(prediction_log, metrics, self._offload_work)

    def submit(self, job: Job) -> None:
        """Answer the job, or fail it, sooner or later. Called on the event loop."""
        if job.offload:
            self._offload(job)
            return
        try:
            loaded, query = job.decode(job.asked)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            self._refuse(job, error)
            return
        if query.features is None:
            # Reading the online store waits, and the first time imports Feast.
            self._read(Waiting(job, loaded, query))
        elif not loaded.slot.loaded:
            self.run(partial(score_together, [Waiting(job, loaded, query)]), self._take, job.fail)
        else:
            self._batcher.submit(job, loaded, query)

    def run(
        self,
        work: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[Exception], None],
        executor: Executor | None = None,
    ) -> None:
        """Do work on a thread, and what comes of it on the event loop.

        :param executor: one for work that waits, if not given
        """

        def take(future: asyncio.Future[T]) -> None:
            error = future.exception()
            if isinstance(error, Exception):
                failed(error)
            else:
                done(future.result())

        asyncio.get_running_loop().run_in_executor(executor or self._waiting, work).add_done_callback(take)

    def close(self) -> None:
        """Count what shadows will not score any more."""
        self._shadows.close()

    def _offload_work(self, work: Callable[[], None]) -> None:
        self.run(
            work, lambda _: None, lambda error: log.error("a shadow failed", exc_info=error), self._executor
        )

    def _refuse(self, job: Job, error: Exception, variant: Variant | None = None) -> None:
        """Tell the client what is wrong; but what a canary does not take, the champion is asked.

        :param variant: that refused it, if it is known. Where it is not, it could not be decoded, which ends
            the same each time: what the champion then takes, only a canary can have refused
        """
        canaries = job.served.canaries if job.asked.version is None else ()
        by_canary = canaries and (variant is None or variant.role == "canary")
        if isinstance(error, BadRequestError) and by_canary:
            self.submit(job.of_champion(variant or canaries[0].variant))
        else:
            job.fail(error)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        """A fault of ours is logged: a release is judged by it. A client's own is not."""
        if isinstance(error, UnknownEntityError):
            endpoint, version = waiting.job.served.route.endpoint, waiting.loaded.variant.version
            self._metrics.unknown_keys(endpoint, version, "refused", error.rows)
        if isinstance(error, BrokenRulesError):
            endpoint, version = waiting.job.served.route.endpoint, waiting.loaded.variant.version
            self._metrics.rules_broken(endpoint, version, "request", "refused", error.broken)
        if not isinstance(error, ServingError) or error.status >= 500:
            latency_ms = (time.perf_counter() - waiting.job.started) * 1000
            status = error.status if isinstance(error, ServingError) else 500
            route, variant = waiting.job.served.route, waiting.loaded.variant
            returned = waiting.job.served.is_returned
            self._log.append(
                FailedEntry(route, variant, waiting.query, latency_ms, status, returned=returned)
            )
        self._refuse(waiting.job, error, waiting.loaded.variant)

    def _read(self, waiting: Waiting) -> None:
        """Score by features from the online store, together with all that come while it is read."""
        queue = self._reading.get(waiting.loaded)
        if queue is not None:
            queue.append(waiting)
            return
        self._reading[waiting.loaded] = []
        self._read_together([waiting])

    def _read_together(self, batch: list[Waiting]) -> None:
        def take(results: list[Result]) -> None:
            self._take(results)
            queue = self._reading.pop(batch[0].loaded)
            if queue:
                count = _read_for(queue)
                self._reading[batch[0].loaded] = queue[count:]
                self._read_together(queue[:count])

        def fail(error: Exception) -> None:
            for one in (*batch, *self._reading.pop(batch[0].loaded)):
                one.job.fail(error)

        self.run(partial(score_together, batch), take, fail, self._executor)

    def _offload(self, job: Job) -> None:
        """Decode, score and encode a large request on a thread."""

        def work() -> list[Result]:
            loaded, query = job.decode(job.asked)
            self._log.wait_for_room()
            return score_together([Waiting(job, loaded, query)])

        self.run(work, self._take, partial(self._refuse, job), self._executor)

    def _take(self, results: list[Result]) -> None:
        for batch, scored, answers in results:
            if isinstance(scored, Exception):
                self._fail(batch[0], scored)
                continue
            jobs = [one.job for one in batch]
            self._note(jobs, scored)
            for job, answer in zip(jobs, answers, strict=True):
                job.reply(answer)

    def _note(self, jobs: Sequence[Job], scored: Scored) -> None:
        now = time.perf_counter()
        latencies = [(now - job.started) * 1000 for job in jobs]
        size = sum(query.size for query in scored.queries)
        self._log.append(LogEntry(scored, latencies, size, jobs[0].served.is_returned))
        if jobs[0].served.canaries:
            self._note_refusals(jobs, scored, latencies)
        variant = scored.variant
        self._metrics.scored(scored.route.endpoint, variant.version, variant.role, scored.table.rows)
        if unknown := len(scored.table.unknown):
            self._metrics.unknown_keys(scored.route.endpoint, variant.version, "answered", unknown)
        if scored.broken:
            endpoint, origin = scored.route.endpoint, scored.table.origin
            self._metrics.rules_broken(endpoint, variant.version, origin, "answered", scored.broken)
        if jobs[0].served.shadows:
            self._shadows.take(jobs[0].served, scored)

    def _note_refusals(self, jobs: Sequence[Job], scored: Scored, latencies: Sequence[float]) -> None:
        for job, query, latency_ms in zip(jobs, scored.queries, latencies, strict=True):
            if job.refused_by is not None:
                status = BadRequestError.status
                self._log.append(
                    FailedEntry(scored.route, job.refused_by, query, latency_ms, status, returned=False)
                )


def _read_for(queue: Sequence[Waiting]) -> int:
    """How many of those that wait come next: at least one."""
    rows = 0
    for count, one in enumerate(queue[:_READ_REQUESTS]):
        rows += one.query.rows
        if count and rows > _READ_ROWS:
            return count
    return min(len(queue), _READ_REQUESTS)
