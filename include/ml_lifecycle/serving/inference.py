"""The way of a request through the data plane, the same for every protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from ml_lifecycle.serving.batching import Batcher, Job
from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.prediction_log import LogEntry, PredictionLog

# A hand-off to a thread costs about as much CPU as decoding and scoring one row (measured: 46 against
# 43 to 72 µs); a request of this size holds the event loop for about half a millisecond.
_INLINE_BYTES = 32 * 1024


class Inference:
    """Decodes, scores, logs and answers. Rows are logged before their answer is sent.

    :param executor: where work goes that would hold the event loop up
    """

    def __init__(self, prediction_log: PredictionLog, metrics: Metrics, executor: Executor) -> None:
        self._log = prediction_log
        self._metrics = metrics
        self._executor = executor
        self._batcher = Batcher(self._answer)

    def submit(self, job: Job) -> None:
        """Answer the job, or fail it, sooner or later. Called on the event loop."""
        if job.size > _INLINE_BYTES:
            self._offload(job, None)
            return
        try:
            query = job.decode()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            job.fail(error)
            return
        if query.features is None:
            # Reading the online store waits, and the first time imports Feast.
            self._offload(job, query)
        else:
            self._batcher.submit(job, query)

    def _answer(self, jobs: Sequence[Job], scored: Scored) -> None:
        answers = [
            job.encode(scored, query, outputs)
            for job, (query, outputs) in zip(jobs, scored.each(), strict=True)
        ]
        self._note(jobs, scored)
        for job, answer in zip(jobs, answers, strict=True):
            job.reply(answer)

    def _offload(self, job: Job, query: Query | None) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, _work, job, query)
        future.add_done_callback(partial(self._answer_offloaded, job))

    def _answer_offloaded(self, job: Job, future: asyncio.Future[tuple[Scored, Any]]) -> None:
        error = future.exception()
        if isinstance(error, Exception):
            job.fail(error)
            return
        scored, answer = future.result()
        self._note([job], scored)
        job.reply(answer)

    def _note(self, jobs: Sequence[Job], scored: Scored) -> None:
        now = time.perf_counter()
        latencies = [(now - job.started) * 1000 for job in jobs]
        self._log.append(LogEntry(scored, latencies, sum(job.size for job in jobs)))
        variant = scored.variant
        self._metrics.scored(scored.route.endpoint, variant.version, variant.role, scored.table.rows)


def _work(job: Job, query: Query | None) -> tuple[Scored, Any]:
    query = query or job.decode()
    scored = job.loaded.score(job.served.route, [query])
    return scored, job.encode(scored, query, scored.outputs)
