"""What a training cost, all its attempts together, and what it could do with.

Pods are billed for what they ask for, as long as they run, whether they use it or not. So the price is that
of the requests; what was really used is beside it, and where the two are far apart there is advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from pydantic import Field, ValidationError

from ml_lifecycle.errors import SpecError
from ml_lifecycle.quantity import parse_quantity
from ml_lifecycle.records import Record
from ml_lifecycle.spec.training import Resources
from ml_lifecycle.spec.types import Strict

_GIB = 2**30
_HEADROOM = 1.3
_WORTH_SAYING = 0.75  # advice saves at least a quarter of what was asked for
_LEAST_SECONDS = 60.0  # a shorter training says little about a longer one
_IDLE_GPU = 0.3


class Price(Strict):
    """An hour's price, in the table's currency.

    :param cpu: of one core
    :param memory: of one GiB
    :param gpu: of one device
    """

    cpu: float = Field(default=0.0, ge=0)
    memory: float = Field(default=0.0, ge=0)
    gpu: float = Field(default=0.0, ge=0)


class Prices(Strict):
    """The price table.

    :param default: of every pool that is not named
    """

    currency: str = "USD"
    default: Price = Price()
    pools: dict[str, Price] = Field(default_factory=dict)

    def of(self, pool: str) -> Price:
        """A pool's."""
        return self.pools.get(pool, self.default)


@dataclass(frozen=True)
class Run:
    """One attempt's part.

    :param usage: as the pod reported it: seconds, bytes
    """

    pool: str
    memory_factor: float
    interrupted: bool
    usage: Mapping[str, float]


@dataclass(frozen=True)
class Cost(Record):
    """What all attempts at one training came to.

    :param cpu_utilisation: share of the cores asked for that worked; of the GPU likewise, None without one
    :param price: of what was asked for, None without a price table
    :param advice: what to ask for instead, one sentence each
    """

    schema: ClassVar[str] = "training_cost/1"
    attempts: int
    interruptions: int
    wall_seconds: float
    cpu_seconds: float
    cpu_utilisation: float
    peak_memory_bytes: float
    gpu_seconds: float
    gpu_utilisation: float | None
    peak_gpu_memory_bytes: float | None
    price: float | None
    currency: str | None
    advice: tuple[str, ...]

    @property
    def figures(self) -> dict[str, float]:
        """Its numbers by name, those that are known."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: float(value)
            for name, value in named.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }


def read_prices(text: str) -> Prices | None:
    """The price table from JSON; None from nothing.

    :raises SpecError: it is no price table. Retry: no.
    """
    if not text.strip():
        return None
    try:
        return Prices.model_validate_json(text)
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise SpecError(
            f"the price table is wrong: {said}. It looks like "
            '{"currency": "EUR", "default": {"cpu": 0.04, "memory": 0.005, "gpu": 2}, "pools": {"spot": {…}}}'
        ) from error


def cost_of(runs: Sequence[Run], resources: Resources, prices: Prices | None) -> Cost:
    """Add up the attempts of one training; the last one is the one that finished."""
    wall, cpu = _sum(runs, "wall_seconds"), _sum(runs, "cpu_seconds")
    cores = float(parse_quantity(resources.cpu))
    peak = max((run.usage.get("peak_memory_bytes", 0.0) for run in runs), default=0.0)
    busy = [
        (run.usage["gpu_utilisation"], run.usage["gpu_seconds"])
        for run in runs
        if run.usage.get("gpu_seconds") and "gpu_utilisation" in run.usage
    ]
    gpu_seconds = wall * resources.gpu
    gpu_utilisation = sum(share * s for share, s in busy) / sum(s for _, s in busy) if busy else None
    gpu_peaks = [run.usage["peak_gpu_memory_bytes"] for run in runs if "peak_gpu_memory_bytes" in run.usage]
    price = None if prices is None else round(sum(_price(run, resources, prices) for run in runs), 6)
    cpu_utilisation = round(cpu / (wall * cores), 4) if wall else 0.0
    return Cost(
        attempts=len(runs),
        interruptions=sum(run.interrupted for run in runs),
        wall_seconds=round(wall, 3),
        cpu_seconds=round(cpu, 3),
        cpu_utilisation=cpu_utilisation,
        peak_memory_bytes=peak,
        gpu_seconds=round(gpu_seconds, 3),
        gpu_utilisation=None if gpu_utilisation is None else round(gpu_utilisation, 4),
        peak_gpu_memory_bytes=max(gpu_peaks, default=None),
        price=price,
        currency=None if prices is None else prices.currency,
        advice=tuple(_advice(resources, runs, wall, cores * cpu_utilisation, peak, gpu_utilisation)),
    )


def _price(run: Run, resources: Resources, prices: Prices) -> float:
    price, hours = prices.of(run.pool), run.usage.get("wall_seconds", 0.0) / 3600
    memory = float(parse_quantity(resources.memory)) * run.memory_factor / _GIB
    cores = float(parse_quantity(resources.cpu))
    return hours * (cores * price.cpu + memory * price.memory + resources.gpu * price.gpu)


def _advice(
    resources: Resources,
    runs: Sequence[Run],
    wall: float,
    cores_used: float,
    peak: float,
    gpu_utilisation: float | None,
) -> Iterable[str]:
    if wall < _LEAST_SECONDS:
        return
    asked = float(parse_quantity(resources.memory)) * runs[-1].memory_factor
    enough = _rounded_up(peak * _HEADROOM)
    if peak and enough <= asked * _WORTH_SAYING:
        used = f"{peak / _GIB:.2g}"
        yield f"asked for {asked / _GIB:.3g} GiB of memory, used {used}: request {enough / _GIB:.3g}"
    cores = float(parse_quantity(resources.cpu))
    if (fewer := max(1, ceil(cores_used * _HEADROOM))) <= cores * _WORTH_SAYING:
        yield (
            f"asked for {cores:g} cores, used {cores_used:.2g}: request {fewer} (the number of threads is "
            "part of what the model depends on, so it is trained anew)"
        )
    if gpu_utilisation is not None and gpu_utilisation < _IDLE_GPU:
        yield (
            f"the GPU was busy {gpu_utilisation:.0%} of the time: larger batches, or feed it faster, "
            "or do without"
        )


def _rounded_up(amount: float) -> float:
    """To a whole GiB, below four to a quarter of one."""
    step = _GIB if amount > 4 * _GIB else _GIB / 4
    return ceil(amount / step) * step


def _sum(runs: Iterable[Run], name: str) -> float:
    return sum(run.usage.get(name, 0.0) for run in runs)
