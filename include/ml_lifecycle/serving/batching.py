"""Scores together what has come together. Nothing is ever waited for.

One run of ONNX Runtime for 32 rows costs a fraction of 32 runs for one. The event loop hands over, in one
round, whatever has arrived since the last; all of that is scored at its end. A lone request is scored alone,
at once; the more there are, the larger the batches get. ONNX Runtime may sum a batch in another order than a
row: the last bits of a probability can differ between the two, by some 1e-7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.serving.dataplane import LoadedVariant, Query, Scored, ServedRoute
from ml_lifecycle.serving.errors import FeaturesUnavailableError
from ml_lifecycle.serving.model import Outputs
from ml_lifecycle.serving.queries import Asked

# A hand-off to a thread costs about as much CPU as decoding and scoring one row (measured: 46 against
# 43 to 72 µs); a request of this size holds the event loop for about half a millisecond.
INLINE_BYTES = 32 * 1024
# Two hundred rows take about half a millisecond: what comes later waits no longer for those before it.
BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """A request on its way, whatever protocol it came by.

    :param offload: whether decoding it would hold the event loop up
    :param started: when it came, by ``time.perf_counter``
    :param decode: makes its query, and says which variant answers it; raises what is wrong with it
    :param encode: makes its answer, on the thread it was scored on
    :param reply: sends the answer, on the event loop
    :param fail: sends an error, on the event loop
    :param refused_by: the canary that would not take it: the champion is asked instead
    """

    asked: Asked
    offload: bool
    started: float
    decode: Callable[[Asked], tuple[LoadedVariant, Query]]
    encode: Callable[[Scored, Query, Outputs], Any]
    reply: Callable[[Any], None]
    fail: Callable[[Exception], None]
    refused_by: Variant | None = None

    @property
    def served(self) -> ServedRoute:
        """The route that it began with."""
        return self.asked.served

    def of_champion(self, refused_by: Variant) -> Job:
        """The same, asked of the champion."""
        asked = replace(self.asked, version=self.served.champion.variant.version)
        return replace(self, asked=asked, refused_by=refused_by)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job whose query is known."""

    job: Job
    loaded: LoadedVariant
    query: Query


Result = tuple[list[Waiting], Scored | Exception, list[Any]]
"""Requests that were scored together, and their answers; or one, and why it has none."""


def score_together(batch: list[Waiting]) -> list[Result]:
    """Score and encode requests for one variant together; if that fails, each alone.

    One of them is at fault then, and the others must not pay for it.
    """
    first = batch[0]
    try:
        scored = first.loaded.score(first.job.served.route, [one.query for one in batch])
        answers = [
            one.job.encode(scored, query, outputs)
            for one, (query, outputs) in zip(batch, scored.each(), strict=True)
        ]
    except Exception as error:  # noqa: BLE001 - each is told its own, whatever it is
        if len(batch) == 1 or isinstance(error, FeaturesUnavailableError):
            return [([one], error, []) for one in batch]
        return [result for one in batch for result in score_together([one])]
    return [(batch, scored, answers)]


class Batcher:
    """Collects jobs for a round of the event loop.

    :param take: what came of each batch
    :param rows: in one run at most, unless one request has more
    """

    def __init__(self, take: Callable[[list[Result]], None], rows: int = BATCH_ROWS) -> None:
        self._take = take
        self._rows = rows
        self._waiting: list[Waiting] = []

    def submit(self, job: Job, loaded: LoadedVariant, query: Query) -> None:
        """Score it at the end of this round."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append(Waiting(job, loaded, query))

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in self._batches(waiting):
            self._take(score_together(batch))

    def _batches(self, waiting: list[Waiting]) -> Iterator[list[Waiting]]:
        """Jobs of one variant each; a route that has changed meanwhile parts them too."""
        kinds: dict[tuple[int, int], list[Waiting]] = {}
        for one in waiting:
            kinds.setdefault((id(one.job.served), id(one.loaded)), []).append(one)
        for together in kinds.values():
            batch: list[Waiting] = []
            rows = 0
            for one in together:
                rows += one.query.rows
                if batch and rows > self._rows:
                    yield batch
                    batch, rows = [], one.query.rows
                batch.append(one)
            yield batch
