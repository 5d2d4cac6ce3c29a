"""The triggers: survive serialisation, look until there is something to say, say so once."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import pytest

from ml_lifecycle.records import Interval, Run, to_json
from ml_lifecycle_airflow.triggers.ingest import DataArrivalTrigger
from ml_lifecycle_airflow.triggers.train import TrainTrigger
from ml_lifecycle_airflow.triggers.watch import NextLookTrigger

from .conftest import NOW, World
from .pods_kit import Pods

RUN = Run("delays", "train/1", NOW, Interval(NOW - timedelta(days=1), NOW))


def trigger(world: World, spec: dict[str, Any] | None = None) -> DataArrivalTrigger:
    return DataArrivalTrigger(spec or world.folder.spec.model_dump(mode="json"), to_json(RUN), 0.01)


def events(made: DataArrivalTrigger, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
    """Everything it emits; ``meanwhile`` happens once it has looked."""
    looks = []
    look = made._look

    def counting() -> tuple[str, ...]:
        if len(looks) == 1:
            meanwhile()
        looks.append(1)
        return look()

    made._look = counting  # type: ignore[method-assign]

    async def collect() -> list[Any]:
        return [event.payload async for event in made.run()]

    return asyncio.run(asyncio.wait_for(collect(), 20))


def test_it_is_made_again_from_what_it_serialises(timed: World) -> None:
    first = trigger(timed)
    path, arguments = first.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**arguments)
    assert isinstance(again, DataArrivalTrigger)
    assert again.serialize() == (path, arguments)


def test_airflow_s_own_serialisation_takes_its_arguments(timed: World) -> None:
    from airflow.serialization.serialized_objects import BaseSerialization

    _, arguments = trigger(timed).serialize()
    assert BaseSerialization.deserialize(BaseSerialization.serialize(arguments)) == arguments


def test_data_that_are_there_end_it_with_one_event(timed: World) -> None:
    timed.arrive()
    assert events(trigger(timed)) == [{"status": "arrived"}]


def test_it_waits_for_data_that_come_later(timed: World) -> None:
    assert events(trigger(timed), meanwhile=lambda: timed.arrive()) == [{"status": "arrived"}]


def test_a_source_that_can_never_be_read_ends_it_with_one_error(timed: World) -> None:
    spec = timed.folder.spec.model_dump(mode="json")
    spec["sources"]["rows"]["uri"] = "nowhere://rows.parquet"
    (event,) = events(trigger(timed, spec))
    assert event["status"] == "error"
    assert "nowhere" in event["message"]


def test_a_connection_that_is_missing_ends_it_with_one_error(
    timed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ML_LIFECYCLE_LAKE", '{"conn_type": "ml_lifecycle_lake"}')
    (event,) = events(trigger(timed))
    assert event["status"] == "error"
    assert "'ml_lifecycle_lake' needs" in event["message"]


def test_a_training_s_pod_is_asked_about_over_one_connection(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the client's costs 40 ms of CPU, which a triggerer with a hundred of these does not have."""
    from kubernetes_asyncio.client import ApiClient

    made: list[ApiClient] = []
    asked = asyncio.Event()
    calls = itertools.count(1)
    make, call = ApiClient.__init__, ApiClient.call_api

    def making(client: ApiClient, *arguments: Any, **named: Any) -> None:
        made.append(client)
        make(client, *arguments, **named)

    async def calling(client: ApiClient, *arguments: Any, **named: Any) -> Any:
        if next(calls) == 20:
            asked.set()
        return await call(client, *arguments, **named)

    monkeypatch.setattr(ApiClient, "__init__", making)
    monkeypatch.setattr(ApiClient, "call_api", calling)
    name = pods.pending("waits")
    trigger = TrainTrigger(
        pod_name=name,
        pod_namespace="default",
        trigger_start_time=NOW,
        base_container_name="base",
        kubernetes_conn_id="ml_lifecycle_pods",
        connection_extras=json.loads(os.environ["AIRFLOW_CONN_ML_LIFECYCLE_PODS"])["extra"],
        startup_check_interval=0.02,
    )

    async def watch() -> None:
        async def run() -> None:
            async for event in trigger.run():
                raise AssertionError(f"there was room: {event}")

        running = asyncio.create_task(run())
        await asyncio.wait_for(asked.wait(), 20)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(watch())
    (client,) = made
    assert client.rest_client.pool_manager.closed, "it is let go of"


def test_a_watch_s_next_look_comes_at_its_moment_and_says_nothing_meanwhile(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    path, arguments = NextLookTrigger(moment.isoformat()).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**arguments)

    async def collect() -> list[Any]:
        return [event.payload async for event in again.run()]

    assert asyncio.run(asyncio.wait_for(collect(), 20)) == [moment.isoformat()]
    assert datetime.now(UTC) >= moment
    assert caplog.records == []
