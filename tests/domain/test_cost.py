"""What trainings cost: all attempts together, by a price table, with advice where it would pay."""

from __future__ import annotations

import pytest

from ml_lifecycle.errors import SpecError
from ml_lifecycle.records import from_json, to_json
from ml_lifecycle.spec.training import Resources
from ml_lifecycle.training.cost import Cost, Price, Prices, Run, cost_of, read_prices

GIB = 2.0**30
PRICES = Prices(
    currency="EUR",
    default=Price(cpu=0.04, memory=0.005, gpu=2.0),
    pools={"spot": Price(cpu=0.01, memory=0.001, gpu=0.5)},
)


def run(pool: str = "", interrupted: bool = False, factor: float = 1.0, **usage: float) -> Run:
    return Run(pool, factor, interrupted, {"wall_seconds": 3600.0, "cpu_seconds": 3600.0, **usage})


def test_interrupted_attempts_count_at_their_own_pool_s_price() -> None:
    asked = Resources(cpu="2", memory="8Gi", gpu=1)
    cost = cost_of([run("spot", True), run("bought", wall_seconds=1800, cpu_seconds=900)], asked, PRICES)
    spot = 2 * 0.01 + 8 * 0.001 + 0.5
    bought = (2 * 0.04 + 8 * 0.005 + 2.0) / 2
    assert cost.price == pytest.approx(spot + bought)
    assert (cost.currency, cost.attempts, cost.interruptions) == ("EUR", 2, 1)
    assert (cost.wall_seconds, cost.cpu_seconds, cost.gpu_seconds) == (5400, 4500, 5400)
    assert cost.cpu_utilisation == round(4500 / 10800, 4)
    assert from_json(Cost, to_json(cost)) == cost


def test_without_a_table_there_is_no_price_and_without_a_gpu_no_utilisation() -> None:
    cost = cost_of([run()], Resources(), None)
    assert (cost.price, cost.currency, cost.gpu_utilisation) == (None, None, None)
    assert cost.figures["cpu_seconds"] == 3600
    assert not {"price", "gpu_utilisation", "currency", "advice"} & cost.figures.keys()


def test_a_pod_that_had_more_memory_is_paid_for_it() -> None:
    prices = Prices(default=Price(memory=1.0))
    assert cost_of([run(factor=1.5)], Resources(memory="2Gi"), prices).price == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("asked", "peak", "words"),
    [
        ("16Gi", 3.0, "asked for 16 GiB of memory, used 3: request 4"),
        ("2Gi", 0.5, "asked for 2 GiB of memory, used 0.5: request 0.75"),
        ("4Gi", 3.0, None),
        ("16Gi", 0.0, None),
    ],
)
def test_memory_that_is_never_used_is_named(asked: str, peak: float, words: str | None) -> None:
    cost = cost_of([run(peak_memory_bytes=peak * GIB)], Resources(memory=asked), None)
    assert cost.advice == ((words,) if words else ())


def test_cores_and_a_gpu_that_idle_are_named() -> None:
    idle = run(cpu_seconds=3600, gpu_seconds=3600, gpu_utilisation=0.12, peak_gpu_memory_bytes=GIB)
    cost = cost_of([idle], Resources(cpu="8", gpu=1), None)
    assert cost.peak_gpu_memory_bytes == GIB
    cores, gpu = cost.advice
    assert cores.startswith("asked for 8 cores, used 1: request 2 (")
    assert gpu.startswith("the GPU was busy 12% of the time")


def test_a_short_training_gives_no_advice() -> None:
    short = Run("", 1.0, False, {"wall_seconds": 30.0, "cpu_seconds": 1.0, "peak_memory_bytes": GIB})
    assert cost_of([short], Resources(cpu="8", memory="64Gi"), None).advice == ()


def test_a_price_table_is_read_or_refused_with_its_form() -> None:
    assert read_prices("  ") is None
    assert read_prices('{"default": {"cpu": 0.1}}') == Prices(default=Price(cpu=0.1))
    for wrong in ("{", '{"default": {"cpu": -1}}', '{"defualt": {}}', "[]"):
        with pytest.raises(SpecError, match="It looks like"):
            read_prices(wrong)
