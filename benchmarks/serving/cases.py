"""What is asked of the servers, and what ours must reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servers import KINDS, OURS

LOOP = "loop"
LOOP_TITLE = "bare ONNX Runtime in a loop"
_ONE_ROW = {"mlserver": 5.5, "kserve": 5.5, "mlflow": 7.0, "bentoml": 11.0, "bare": 0.55}
_HUNDRED = {"mlserver": 2.5, "kserve": 4.5, "bare": 0.8}


@dataclass(frozen=True)
class Case:
    """One kind of traffic, and its goals.

    :param rows: in each request
    :param binary: tensors as raw bytes; asked of ours alone, and compared with the loop
    :param times: server → how many times its requests a second ours must answer
    :param per_second: how many ours must answer at least
    :param p99_below: whether ours must have the lowest p99 of all model servers
    """

    name: str
    model: str
    rows: int
    connections: int
    binary: bool = False
    times: Mapping[str, float] = field(default_factory=dict)
    per_second: float = 0.0
    p99_below: bool = False


CASES = {
    case.name: case
    for case in (
        *(
            case
            for model in ("packed", "strings")
            for case in (
                Case(f"{model}-1-row-32", model, 1, 32, times=_ONE_ROW, p99_below=True),
                Case(f"{model}-1-row-1", model, 1, 1, per_second=2500, p99_below=True),
                Case(f"{model}-100-rows-32", model, 100, 32, times=_HUNDRED),
            )
        ),
        Case("binary-100-rows-32", "packed", 100, 32, binary=True, times={LOOP: 0.65}),
        Case("binary-1000-rows-32", "packed", 1000, 32, binary=True, times={LOOP: 0.9}),
    )
}


@dataclass(frozen=True)
class Goal:
    """Something ours must reach, with what was measured.

    :param measured: None where it could not be
    :param by_cpu: of a ratio, the same of the requests a second of CPU time that the servers got; decides
        nothing, and is near the ratio where each had its core for itself
    """

    text: str
    measured: float | None
    limit: float
    met: bool
    by_cpu: float | None = None


def goals(case: Case, rounds: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Sequence[str]) -> list[Goal]:
    """The case's goals; of each server the median of its rounds counts.

    :param rounds: server → its rounds; a server that could not be measured has none
    :param chosen: the servers that were to be measured; goals against others are left out
    """
    return list(_goals(case, rounds, {*chosen, LOOP}))


def median(rounds: Mapping[str, Sequence[Mapping[str, Any]]], server: str, figure: str) -> float | None:
    """The median of a server's rounds; None if it has none."""
    values = [one[figure] for one in rounds.get(server, ())]
    return statistics.median(values) if values else None


def _goals(case: Case, rounds: Mapping[str, Sequence[Mapping[str, Any]]], chosen: set[str]) -> Iterator[Goal]:
    rate = median(rounds, OURS, "per_second")
    if case.per_second:
        met = rate is not None and rate >= case.per_second
        yield Goal("requests a second", rate, case.per_second, met)
    for server, times in case.times.items():
        if server in chosen:
            ratio = _ratio(rate, median(rounds, server, "per_second"))
            by_cpu = _ratio(_per_cpu_second(rounds, OURS), _per_cpu_second(rounds, server))
            met = ratio is not None and ratio >= times
            yield Goal(f"times {title(server)}", ratio, times, met, by_cpu)
    if not case.p99_below:
        return
    p99 = median(rounds, OURS, "p99_ms")
    for server, kind in KINDS.items():
        if kind.product and server in chosen:
            theirs = median(rounds, server, "p99_ms")
            met = p99 is not None and theirs is not None and p99 < theirs
            limit = float("nan") if theirs is None else theirs
            yield Goal(f"p99 ms, below {kind.title}'s", p99, limit, met)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _per_cpu_second(rounds: Mapping[str, Sequence[Mapping[str, Any]]], server: str) -> float | None:
    values = [
        one["per_second"] / one["server_share"] for one in rounds.get(server, ()) if one["server_share"]
    ]
    return statistics.median(values) if values else None


def title(server: str) -> str:
    """A server's name as it is printed."""
    return {OURS: OURS, LOOP: LOOP_TITLE}.get(server) or KINDS[server].title
