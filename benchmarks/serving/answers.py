"""Whether the answers of a run are what ONNX Runtime says for the rows that were asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from load import Run
from numpy.typing import NDArray
from wire import Protocol, request, split

from models import Model

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Pool:
    """Requests that were built before the run, and what their answers must say.

    :param size: rows in each request
    :param labels: of all rows, in the requests' order
    :param probabilities: the same, a row each
    """

    requests: Sequence[bytes]
    size: int
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a run's answers.

    :param wrong: answers with another number than expected, or that are no answer of the protocol
    :param refused: status → answers that had it instead of 200
    :param failed: requests without any answer
    :param example: one of them, to begin looking with
    """

    wrong: int
    refused: Mapping[int, int]
    failed: int
    example: str

    @property
    def ok(self) -> bool:
        """Whether every request was answered, and rightly."""
        return not (self.wrong or self.refused or self.failed)

    def __str__(self) -> str:
        return f"{self.wrong} wrong, {dict(self.refused)} refused, {self.failed} failed: {self.example:.300}"


def make_pool(
    model: Model,
    protocol: Protocol,
    path: str,
    headers: Mapping[str, str],
    size: int,
    count: int,
    seed: int,
) -> Pool:
    """``count`` requests of ``size`` random rows each; no row twice."""
    rows = model.draw(size * count, seed)
    requests = [request(path, body, {**headers, **own}) for body, own in protocol.bodies(model, rows, size)]
    return Pool(requests, size, *model.answers(rows))


def verify(run: Run, pools: Mapping[str, Pool], protocol: Protocol) -> Verdict:
    """Look at every answer of a run.

    :param pools: model version → the pool as that version answers it; ``""`` for whatever version
    """
    wrong, refused, example = 0, dict[int, int](), ""
    for answer, number in zip(run.answers, run.numbers, strict=True):
        status, head, body = split(answer)
        if status != 200:
            refused[status] = refused.get(status, 0) + 1
            example = example or answer.decode(errors="replace")
            continue
        try:
            said = protocol.read(head, body)
            pool = pools.get(said.version) or pools[""]
            right = _agrees(said.probabilities, said.labels, pool, number)
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            wrong += 1
            example = example or answer.decode(errors="replace")
    return Verdict(wrong, refused, run.failures, example)


def _agrees(
    probabilities: Sequence[float] | NDArray[np.float32],
    labels: Sequence[int] | NDArray[np.int64] | None,
    pool: Pool,
    number: int,
) -> bool:
    rows = slice(number * pool.size, (number + 1) * pool.size)
    expected = pool.probabilities[rows]
    if len(probabilities) != expected.size:
        return False
    # Not `<` of the opposite: a NaN must not pass.
    if not np.abs(np.asarray(probabilities, np.float64) - expected.ravel()).max() <= TOLERANCE:
        return False
    if labels is None:
        return True
    # Where both classes are as likely as the tolerance can tell, either label is right.
    close = np.abs(expected[:, 1] - 0.5) <= TOLERANCE
    return bool((close | (np.asarray(labels, np.int64) == pool.labels[rows])).all())
