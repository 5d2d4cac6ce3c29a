"""Copies for shadows: scored when there is time, logged and compared, never returned.

Copies wait until the answers are out and are scored many at a time on the event loop, a small piece of it
each time, so that no request waits longer than for such a piece. While there is no time to spare they wait;
when the oldest has waited for a second all are dropped, and counted: no answer suffers for a copy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ml_lifecycle.serving.batching import BATCH_ROWS
from ml_lifecycle.serving.columns import features_of, make_table
from ml_lifecycle.serving.dataplane import LoadedVariant, Scored, ServedRoute
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.log_rows import FailedEntry, LogEntry
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.prediction_log import PredictionLog

log = logging.getLogger(__name__)

# A piece of at most so many rows takes a fraction of a millisecond.
_PIECE_ROWS = 64
# Meanwhile more of them come: a run for forty costs a tenth of forty runs for one.
_PAUSE_SECONDS = 0.002
# The loop is this late only if requests queue up before it.
_LATE_SECONDS = 0.010
_PATIENCE_SECONDS = 1.0
# A server with little to do answers requests one by one, which takes most of a core long before it is at its
# limit: eight together cost half as much each. One that answers so many at once, and has hardly a pause
# nevertheless, has no more to give.
_CROWD = 8
_FULL_SHARE = 0.9
_LOOK_SECONDS = 0.020


class Shadows:
    """What waits to be scored once more.

    :param offload: does work on a thread
    :param rows: that wait at most
    """

    def __init__(
        self,
        prediction_log: PredictionLog,
        metrics: Metrics,
        offload: Callable[[Callable[[], None]], None],
        rows: int = 5_000,
    ) -> None:
        self._offload = offload
        self._load = Load()
        self._log = prediction_log
        self._metrics = metrics
        self._limit = rows
        self._waiting: list[tuple[ServedRoute, Scored, float]] = []  # since when, by the loop's clock
        self._rows = 0
        self._due: float | None = None

    def take(self, served: ServedRoute, scored: Scored) -> None:
        """Have the rows of an answered batch scored by the route's shadows, later."""
        rows = scored.table.rows
        if scored.variant.role == "shadow":
            return  # asked for by name: there is nothing to compare it with
        self._load.answered(len(scored.queries))
        if self._rows + rows > self._limit and self._waiting:
            self._count(served, "dropped", rows)
            return
        self._waiting.append((served, scored, asyncio.get_running_loop().time()))
        self._rows += rows
        self._wake()

    def _wake(self) -> None:
        if self._due is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + _PAUSE_SECONDS
            loop.call_at(self._due, self._run)

    def _run(self) -> None:
        due, self._due = self._due, None
        assert due is not None
        if not self._waiting:
            return
        now = asyncio.get_running_loop().time()
        if self._load.is_over(now) or now - due > _LATE_SECONDS:
            if now - self._waiting[0][2] > _PATIENCE_SECONDS:
                self.close()
            self._wake()
            return
        served, piece = self._next_piece()
        large = sum(scored.table.rows for scored in piece) > BATCH_ROWS
        for shadow in served.shadows:
            if large or not shadow.slot.loaded:
                self._offload(partial(self._score, served, shadow, piece))
            else:
                self._score(served, shadow, piece)
        self._wake()

    def close(self) -> None:
        """Drop what waits."""
        for served, scored, _ in self._waiting:
            self._count(served, "dropped", scored.table.rows)
        self._waiting, self._rows = [], 0

    def _next_piece(self) -> tuple[ServedRoute, list[Scored]]:
        """The oldest batches of one route."""
        served = self._waiting[0][0]
        piece: list[Scored] = []
        rows = 0
        for other, scored, _ in self._waiting:
            if other is not served or (piece and rows + scored.table.rows > _PIECE_ROWS):
                break
            piece.append(scored)
            rows += scored.table.rows
        del self._waiting[: len(piece)]
        self._rows -= rows
        return served, piece

    def _score(self, served: ServedRoute, shadow: LoadedVariant, piece: list[Scored]) -> None:
        rows = sum(scored.table.rows for scored in piece)
        queries = [query for scored in piece for query in scored.queries]
        started = time.perf_counter()
        columns = shadow.variant.columns
        parts = [features_of(scored.table, scored.variant.columns, columns) for scored in piece]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            # It takes columns that the champion does not, and the request did not bring.
            self._count_one(served, shadow, "skipped", rows)
            return
        try:
            table = make_table(columns, known)
            outputs = shadow.model().run(table)
        except Exception as error:  # noqa: BLE001 - whatever a shadow does, answers go on
            if len(piece) > 1:  # one bad row must not take those with it that came at the same time
                for one in piece:
                    self._score(served, shadow, [one])
                return
            log.warning("the shadow of %s could not score: %s", served.route.endpoint, error)
            latency_ms = (time.perf_counter() - started) * 1000
            status = error.status if isinstance(error, ServingError) else 500
            for query in queries:
                failed = FailedEntry(served.route, shadow.variant, query, latency_ms, status, returned=False)
                self._log.append(failed)
            self._count_one(served, shadow, "failed", rows)
            return
        copy = Scored(served.route, shadow.variant, queries, table, outputs)
        latency_ms = (time.perf_counter() - started) * 1000
        self._log.append(LogEntry(copy, [latency_ms] * len(queries), 200 * rows, returned=False))
        self._count_one(served, shadow, "scored", rows)
        if "label" in outputs and all("label" in scored.outputs for scored in piece):
            labels = np.concatenate([scored.outputs["label"] for scored in piece])
            different = int((labels != outputs["label"]).sum())
            self._metrics.shadow_disagreed(served.route.endpoint, shadow.variant.version, different)

    def _count(self, served: ServedRoute, outcome: str, rows: int) -> None:
        for shadow in served.shadows:
            self._count_one(served, shadow, outcome, rows)

    def _count_one(self, served: ServedRoute, shadow: LoadedVariant, outcome: str, rows: int) -> None:
        self._metrics.shadowed(served.route.endpoint, shadow.variant.version, outcome, rows)


class Load:
    """Whether the server is at its limit: all of it, or the thread of its event loop."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._since = self._thread = self._process = 0.0
        self._batches = self._requests = 0
        self._is_over = False

    def answered(self, requests: int) -> None:
        """Count requests that were answered together."""
        self._batches += 1
        self._requests += requests

    def is_over(self, now: float) -> bool:
        """Asked on the event loop; what is said is at most some hundredths of a second old."""
        passed = now - self._since
        if passed >= _LOOK_SECONDS:
            thread, process = time.thread_time(), time.process_time()
            used = max(thread - self._thread, (process - self._process) / self._cores)
            self._is_over = used > _FULL_SHARE * passed and self._requests >= _CROWD * self._batches
            self._since, self._thread, self._process = now, thread, process
            self._batches = self._requests = 0
        return self._is_over
