"""The arrival sensor: however it waits, it waits for the same and ends the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from ml_lifecycle_airflow.sensors.ingest import DataArrivalSensor

from .conftest import NOW, World

Context = Callable[..., Any]


def sensor(world: World, **arguments: Any) -> DataArrivalSensor:
    return DataArrivalSensor(task_id="wait", folder=world.path, **arguments)


async def _first(trigger: Any) -> Any:
    """What it emits first."""
    async for event in trigger.run():
        return event.payload


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
    event = asyncio.run(asyncio.wait_for(_first(deferral.value.trigger), 20))
    assert sensor(timed).poke(context()) is True
    assert sensor(timed).execute_complete(context(), event) is None


def test_a_source_with_a_connection_of_its_own_is_looked_for_there(
    timed: World, context: Context, connect: Callable[..., None]
) -> None:
    """Both ways, for each makes its own way to the files."""
    elsewhere = timed.edit("model.yaml", "event_time: at}", "event_time: at, connection: landing}")
    connect("landing", conn_type="ml_lifecycle_lake", extra={"url": str(timed.root / "landing")})
    waiting = sensor(elsewhere, poke_interval=0.01)
    assert waiting.poke(context()) is False
    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute(context())
    timed.arrive()
    assert waiting.poke(context()) is True
    assert asyncio.run(asyncio.wait_for(_first(deferral.value.trigger), 20)) == {"status": "arrived"}


def test_what_has_arrived_is_looked_for_by_the_folder_as_it_is_then(timed: World, context: Context) -> None:
    with pytest.raises(TaskDeferred) as deferral:
        sensor(timed, poke_interval=0.01).execute(context())
    timed.arrive()
    event = asyncio.run(asyncio.wait_for(_first(deferral.value.trigger), 20))
    moved = timed.edit("model.yaml", "uri: rows.parquet", "uri: moved.parquet")
    with pytest.raises(TaskDeferred) as again:
        sensor(moved).execute_complete(context(), event)
    assert again.value.trigger.spec["sources"]["rows"]["uri"] == "moved.parquet"


def test_when_its_time_is_up_it_says_which_source_is_behind(timed: World, context: Context) -> None:
    timed.arrive(NOW - timedelta(days=3))
    waiting, late = sensor(timed, timeout=3600), {"error": TriggerFailureReason.TRIGGER_TIMEOUT}
    with pytest.raises(AirflowSensorTimeout, match=r"after 2026-02-28T12:00:00\+00:00 in rows within 1:00"):
        waiting.resume_execution("__fail__", late, context())
    timed.arrive()
    assert waiting.resume_execution("__fail__", late, context()) is None, "it came while nobody looked"


def test_a_scheduled_run_that_stands_for_missed_ones_waits_for_its_own_data(
    timed: World, context: Context
) -> None:
    week = timedelta(days=7)
    own = {"data_interval_start": NOW - timedelta(days=1), "data_interval_end": NOW}
    earlier = {key: moment - week for key, moment in own.items()}
    first = context(run_id="first", run_type="scheduled", **earlier)
    sensor(timed, deferrable=False).poke(first)
    late = context(run_id="late", run_type="scheduled", **own)
    late["ti"].get_dagrun_state = lambda dag_id, run_id: "success"
    timed.arrive(NOW - timedelta(days=3))
    assert sensor(timed).poke(late) is False
    timed.arrive()
    assert sensor(timed).poke(late) is True


def test_a_source_that_can_never_be_read_fails_at_once_either_way(timed: World, context: Context) -> None:
    broken = timed.edit("model.yaml", "uri: rows.parquet", "uri: 'nowhere://rows.parquet'")
    for deferrable in (True, False):
        with pytest.raises(AirflowFailException, match="nowhere"):
            sensor(broken, deferrable=deferrable).execute(context())
    with pytest.raises(AirflowFailException, match="the trigger's words"):
        sensor(broken).execute_complete(context(), {"status": "error", "message": "the trigger's words"})


def test_a_conf_that_cannot_be_read_fails_at_once(timed: World, context: Context) -> None:
    with pytest.raises(AirflowFailException, match="as_of is 'tomorrow'"):
        sensor(timed).execute(context(conf={"as_of": "tomorrow"}))


def test_without_a_folder_it_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="task 'wait' needs folder="):
        DataArrivalSensor(task_id="wait")
