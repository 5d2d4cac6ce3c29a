"""The way of a request through the data plane, the same for every protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from ml_lifecycle.serving.batching import Batcher, Job, Waiting
from ml_lifecycle.serving.dataplane import LoadedVariant, Query, Scored
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.log_rows import FailedEntry, LogEntry
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.prediction_log import PredictionLog
from ml_lifecycle.serving.shadows import Shadows

# A hand-off to a thread costs about as much CPU as decoding and scoring one row (measured: 46 against
# 43 to 72 µs); a request of this size holds the event loop for about half a millisecond.
_INLINE_BYTES = 32 * 1024

Decoded = tuple[LoadedVariant, Query]


class Inference:
    """Decodes, scores, logs and answers. Rows are logged before their answer is sent.

    :param executor: where work goes that would hold the event loop up
    """

    def __init__(self, prediction_log: PredictionLog, metrics: Metrics, executor: Executor) -> None:
        self._log = prediction_log
        self._metrics = metrics
        self._executor = executor
        self._batcher = Batcher(self._answer, self._fail)
        self._shadows = Shadows(prediction_log, metrics)

    def submit(self, job: Job) -> None:
        """Answer the job, or fail it, sooner or later. Called on the event loop."""
        if job.size > _INLINE_BYTES:
            self._offload(job, None)
            return
        try:
            loaded, query = job.decode()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            job.fail(error)
            return
        if query.features is None:
            # Reading the online store waits, and the first time imports Feast.
            self._offload(job, (loaded, query))
        else:
            self._batcher.submit(job, loaded, query)

    def _answer(self, jobs: Sequence[Job], scored: Scored) -> None:
        answers = [
            job.encode(scored, query, outputs)
            for job, (query, outputs) in zip(jobs, scored.each(), strict=True)
        ]
        self._note(jobs, scored)
        for job, answer in zip(jobs, answers, strict=True):
            job.reply(answer)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        """A fault of ours is logged: a release is judged by it. A client's own is not."""
        if not isinstance(error, ServingError) or error.status >= 500:
            latency_ms = (time.perf_counter() - waiting.job.started) * 1000
            status = error.status if isinstance(error, ServingError) else 500
            route, variant = waiting.job.served.route, waiting.loaded.variant
            self._log.append(FailedEntry(route, variant, waiting.query, latency_ms, status))
        waiting.job.fail(error)

    def _offload(self, job: Job, decoded: Decoded | None) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, _work, job, decoded)
        future.add_done_callback(partial(self._answer_offloaded, job))

    def _answer_offloaded(
        self, job: Job, future: asyncio.Future[tuple[Decoded, tuple[Scored, Any] | Exception]]
    ) -> None:
        error = future.exception()
        if isinstance(error, Exception):
            job.fail(error)
            return
        (loaded, query), result = future.result()
        if isinstance(result, Exception):
            self._fail(Waiting(job, loaded, query), result)
            return
        scored, answer = result
        self._note([job], scored)
        job.reply(answer)

    def _note(self, jobs: Sequence[Job], scored: Scored) -> None:
        now = time.perf_counter()
        latencies = [(now - job.started) * 1000 for job in jobs]
        self._log.append(LogEntry(scored, latencies, sum(job.size for job in jobs)))
        variant = scored.variant
        self._metrics.scored(scored.route.endpoint, variant.version, variant.role, scored.table.rows)
        if jobs[0].served.shadows:
            self._shadows.take(jobs[0].served, scored)


def _work(job: Job, decoded: Decoded | None) -> tuple[Decoded, tuple[Scored, Any] | Exception]:
    """Decode if that is still to do, score and encode; what is wrong with the request is raised."""
    loaded, query = decoded or job.decode()
    try:
        scored = loaded.score(job.served.route, [query])
        return (loaded, query), (scored, job.encode(scored, query, scored.outputs))
    except Exception as error:  # noqa: BLE001 - told with the variant that failed
        return (loaded, query), error
