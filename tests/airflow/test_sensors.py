"""The arrival sensor: however it waits, it waits for the same and ends the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from ml_lifecycle_airflow.sensors.ingest import DataArrivalSensor

from .conftest import NOW, World

Context = Callable[..., Any]


def sensor(world: World, **arguments: Any) -> DataArrivalSensor:
    return DataArrivalSensor(task_id="wait", folder=world.path, **arguments)


def test_before_the_data_it_pokes_false_and_defers(timed: World, context: Context) -> None:
    waiting = sensor(timed, poke_interval=7, timeout=60)
    assert waiting.poke(context()) is False
    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute(context())
    assert deferral.value.method_name == "execute_complete"
    assert deferral.value.timeout == timedelta(seconds=60)
    assert deferral.value.trigger.poll_interval == 7


def test_data_of_an_earlier_interval_are_not_the_run_s(timed: World, context: Context) -> None:
    timed.arrive(NOW - timedelta(days=3))
    assert sensor(timed).poke(context()) is False


def test_with_the_data_it_pokes_true_and_never_defers(timed: World, context: Context) -> None:
    timed.arrive()
    assert sensor(timed).poke(context()) is True
    assert sensor(timed).execute(context()) is None
    assert sensor(timed, deferrable=False).execute(context()) is None


def test_the_trigger_it_defers_to_agrees_with_its_poke(timed: World, context: Context) -> None:
    with pytest.raises(TaskDeferred) as deferral:
        sensor(timed, poke_interval=0.01).execute(context())
    timed.arrive()

    async def first() -> Any:
        async for event in deferral.value.trigger.run():
            return event.payload

    event = asyncio.run(asyncio.wait_for(first(), 20))
    assert sensor(timed).poke(context()) is True
    assert sensor(timed).execute_complete(context(), event) is None


def test_a_source_that_can_never_be_read_fails_at_once_either_way(timed: World, context: Context) -> None:
    broken = timed.edit("model.yaml", "uri: rows.parquet", "uri: ../outside.parquet")
    for deferrable in (True, False):
        with pytest.raises(AirflowFailException, match=r"outside\.parquet"):
            sensor(broken, deferrable=deferrable).execute(context())
    with pytest.raises(AirflowFailException, match="the trigger's words"):
        sensor(broken).execute_complete(context(), {"status": "error", "message": "the trigger's words"})


def test_a_conf_that_cannot_be_read_fails_at_once(timed: World, context: Context) -> None:
    with pytest.raises(AirflowFailException, match="as_of is 'tomorrow'"):
        sensor(timed).execute(context(conf={"as_of": "tomorrow"}))


def test_without_a_folder_it_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="task 'wait' needs folder="):
        DataArrivalSensor(task_id="wait")
