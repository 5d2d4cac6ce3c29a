from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from waiting import wait_until

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import SCHEMA
from ml_lifecycle.delivery.route import Pointer
from ml_lifecycle.serving.encoding import encode_answer
from ml_lifecycle.serving.log_rows import Grown, LogEntry
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.moments import microseconds
from ml_lifecycle.serving.prediction_log import PredictionLog
from ml_lifecycle.serving.queries import Asked, decode_query
from ml_lifecycle.serving.routes import RouteLoader
from tests.serving.conftest import Publisher, Server, logged, row

Start = Callable[..., Server]
RECEIVED = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)


def entry_of(publisher: Publisher, model: str, request: dict[str, object]) -> LogEntry:
    route = publisher("endpoint", model, 1, "1")
    served = RouteLoader(publisher.lake, Metrics("test")).load(route, Pointer(1, "", ""))
    body = json.dumps(request).encode()
    loaded, query = decode_query(body, None, Asked(served, microseconds(RECEIVED)), 100_000)
    return LogEntry(loaded.score(route, [query]), [1.5])


def value(metrics: Metrics, name: str) -> float:
    lines = metrics.expose().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def write(lake: Lake, *entries: LogEntry) -> pl.DataFrame:
    log = PredictionLog(lake, Metrics("test"))
    log.start()
    for entry in entries:
        log.append(entry)
    log.close()
    return logged(lake).sort("prediction_id", "row")


def test_rows_follow_the_schema(publisher: Publisher) -> None:
    request = {
        "id": "one",
        "inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["ÄÖ", None]},
            {"name": "wind", "datatype": "FP64", "shape": [2], "data": [39.02, None]},
            {"name": "hour", "datatype": "INT64", "shape": [2], "data": [17, 3]},
        ],
        "parameters": {
            "event_time": ["2013-04-01T00:30:00+02:00", "2013-04-02T00:00:00Z"],
            "entities": {"flight": [7, 8]},
        },
    }
    entry = entry_of(publisher, "binary", request)
    frame = write(publisher.lake, entry)
    assert dict(frame.schema) == SCHEMA
    assert frame["prediction_id"].to_list() == ["one", "one"]
    assert frame["row"].to_list() == [0, 1]
    assert frame["received_at"].to_list() == [RECEIVED, RECEIVED]
    # 00:30 at +02:00 is the evening before: partitions are UTC days.
    assert frame["event_time"].to_list() == [
        datetime(2013, 3, 31, 22, 30, tzinfo=UTC),
        datetime(2013, 4, 2, tzinfo=UTC),
    ]
    folders = sorted(path.rsplit("/", 2)[1] for path in publisher.lake.list("predictions/endpoint"))
    assert folders == ["2013-03-31", "2013-04-02"]
    assert [json.loads(text) for text in frame["entity_keys"]] == [{"flight": 7}, {"flight": 8}]
    # As given, not as rounded to 32 bits: bins of a profile must not move.
    assert [json.loads(text) for text in frame["features"]] == [
        {"carrier": "ÄÖ", "wind": 39.02, "hour": 17},
        {"carrier": None, "wind": None, "hour": 3},
    ]
    assert set(frame["features_from"]) == {"request"}
    outputs = [json.loads(text) for text in frame["outputs"]]
    scored = entry.scored
    pieces, _ = encode_answer(scored.route, scored.variant, scored.queries[0], scored.outputs)
    answered = json.loads(pieces[0])["outputs"]
    assert [output["label"] for output in outputs] == answered[0]["data"]
    probabilities = [value for output in outputs for value in output["probabilities"]]
    assert probabilities == answered[1]["data"]
    for score, output in zip(frame["score"], outputs, strict=True):
        assert math.isclose(score, output["probabilities"][1], rel_tol=1e-6)
    only = frame.row(0, named=True)
    assert (only["endpoint"], only["route_revision"], only["variant"], only["returned"]) == (
        "endpoint",
        1,
        "champion",
        True,
    )
    assert only["model_version"] == "1"
    assert only["model_digest"] == publisher.built["binary"].variant("1").model_digest
    assert (only["latency_ms"], only["status"]) == (1.5, 200)
    path = next(iter(publisher.lake.list("predictions")))
    metadata = pl.read_parquet_metadata(publisher.lake.full_path(path))
    assert metadata["schema"] == "prediction_log/2"


def test_scores_of_the_other_tasks(publisher: Publisher) -> None:
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.5, 0.25, None, -2]}]}
    frame = write(publisher.lake, entry_of(publisher, "multiclass", request))
    for score, text in zip(frame["score"], frame["outputs"], strict=True):
        output = json.loads(text)
        assert output["label"] in ("small", "middle", "large")
        assert math.isclose(score, max(output["probabilities"]), rel_tol=1e-6)


def test_the_score_of_a_regression_is_its_prediction(publisher: Publisher) -> None:
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 0.25]}]}
    frame = write(publisher.lake, entry_of(publisher, "regression", request))
    (output,) = (json.loads(text) for text in frame["outputs"])
    assert math.isclose(frame["score"][0], output["prediction"], rel_tol=1e-6)
    assert frame["event_time"].to_list() == [None]
    assert next(iter(publisher.lake.list("predictions"))).split("/")[2] == RECEIVED.date().isoformat()


def test_refused_writes_are_tried_again(publisher: Publisher) -> None:
    entry = entry_of(publisher, "binary", row())
    metrics = Metrics("test")
    # A file where the folder should be: every write below it fails until it is gone.
    blocker = Path(publisher.lake.full_path("predictions"))
    blocker.write_text("in the way")
    log = PredictionLog(publisher.lake, metrics, flush_seconds=0.02)
    log.start()
    log.append(entry)
    wait_until(lambda: b"write_failures_total 0.0" not in metrics.expose())
    assert value(metrics, "ml_lifecycle_log_rows_pending") == 1.0
    log.append(entry)
    blocker.unlink()
    log.close()
    assert len(logged(publisher.lake)) == 2
    assert value(metrics, "ml_lifecycle_log_rows_written_total") == 2.0
    assert value(metrics, "ml_lifecycle_log_rows_pending") == 0.0
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 0.0


def test_what_does_not_fit_the_buffer_or_cannot_be_written_is_counted_as_lost(publisher: Publisher) -> None:
    entry = entry_of(publisher, "binary", row())
    metrics = Metrics("test")
    Path(publisher.lake.full_path("predictions")).write_text("in the way")
    log = PredictionLog(publisher.lake, metrics, buffer_rows=3, close_seconds=0.1)
    log.start()
    for _ in range(5):
        log.append(entry)
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 2.0
    log.close()
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 5.0
    assert value(metrics, "ml_lifecycle_log_rows_pending") == 0.0


def test_rows_too_large_to_be_kept_are_counted_as_lost(publisher: Publisher) -> None:
    entry = replace(entry_of(publisher, "binary", row()), size=1_000)
    metrics = Metrics("test")
    blocked = Path(publisher.lake.full_path("predictions"))
    blocked.write_text("in the way")
    log = PredictionLog(publisher.lake, metrics, flush_seconds=0.05, buffer_bytes=2_500)
    for _ in range(5):
        log.append(entry)
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 2.0
    log.start()
    wait_until(lambda: value(metrics, "ml_lifecycle_log_write_failures_total") > 0)
    blocked.unlink()
    wait_until(lambda: value(metrics, "ml_lifecycle_log_rows_pending") == 0.0)
    for _ in range(3):  # what was written has made room
        log.append(entry)
    log.close()
    assert value(metrics, "ml_lifecycle_log_rows_written_total") == 6.0
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 2.0


def test_who_has_time_waits_for_room_but_not_for_a_lake_that_refuses(publisher: Publisher) -> None:
    entry = entry_of(publisher, "binary", row())
    log = PredictionLog(publisher.lake, Metrics("test"), flush_seconds=60, buffer_rows=4)
    log.wait_for_room(seconds=0)  # there is room: it returns at once
    for _ in range(3):
        log.append(entry)
    waited = threading.Thread(target=log.wait_for_room, kwargs={"seconds": 60})
    waited.start()
    log.start()
    assert waited.is_alive()
    log.close()  # writes what waits
    waited.join()
    blocker = Path(publisher.lake.full_path("predictions"))
    shutil.rmtree(blocker)
    blocker.write_text("in the way")
    metrics = Metrics("test")
    refused = PredictionLog(publisher.lake, metrics, flush_seconds=0.02, buffer_rows=4, close_seconds=0)
    refused.start()
    for _ in range(3):
        refused.append(entry)
    wait_until(lambda: value(metrics, "ml_lifecycle_log_write_failures_total") > 0)
    refused.wait_for_room(seconds=3600)
    refused.close()


def test_a_full_part_is_written_at_once(publisher: Publisher) -> None:
    entry = entry_of(publisher, "binary", row())
    log = PredictionLog(publisher.lake, Metrics("test"), flush_seconds=60, part_rows=3)
    log.start()
    for _ in range(3):
        log.append(entry)
    wait_until(lambda: len(logged(publisher.lake)) == 3)
    log.close()


class Load:
    """Asks one-row requests from several connections; remembers what was answered, and when."""

    def __init__(self, server: Server, connections: int = 6) -> None:
        self.answered: dict[str, float] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(connections)
        self._askers = [self._pool.submit(self._ask, server, number) for number in range(connections)]

    def _ask(self, server: Server, number: int) -> None:
        count = 0
        with server.http() as http:
            while not self._stop.is_set():
                count += 1
                try:
                    response = http.post("/v2/models/late/infer", json={**row(), "id": f"{number}-{count}"})
                except httpx.TransportError:
                    return
                if response.status_code == 200:
                    self.answered[f"{number}-{count}"] = time.monotonic()

    def finish(self) -> dict[str, float]:
        self._stop.set()
        for asker in self._askers:
            asker.result()
        self._pool.shutdown()
        return self.answered


def test_sigterm_loses_no_row(publisher: Publisher, start: Start) -> None:
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
    load = Load(server)
    wait_until(lambda: len(load.answered) > 500)
    assert server.stop(signal.SIGTERM) == 0
    answered = load.finish()
    ids = logged(publisher.lake)["prediction_id"]
    assert ids.n_unique() == len(ids)
    assert set(ids) == set(answered)


def test_sigkill_loses_at_most_a_second(publisher: Publisher, start: Start) -> None:
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
    load = Load(server)
    wait_until(lambda: load.answered and time.monotonic() - min(load.answered.values()) > 2)
    killed = time.monotonic()
    server.process.kill()
    answered = load.finish()
    ids = set(logged(publisher.lake)["prediction_id"])
    old = {name for name, moment in answered.items() if moment < killed - 1}
    assert len(old) > 100
    assert old <= ids
    leftovers = [
        name for _, _, names in os.walk(publisher.lake.url) for name in names if name.endswith(".tmp")
    ]
    assert len(leftovers) <= 1, "readers skip a torn temporary file"


def test_a_days_partition_is_the_event_times(publisher: Publisher, start: Start) -> None:
    publisher("late", "binary", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(lambda: client.ready("late"))
        client.post("late", {**row(), "parameters": {"event_time": "2013-09-04T12:00:00Z"}})
        client.post("late", row())
    server.stop()
    days = {date.fromisoformat(path.split("/")[2]) for path in publisher.lake.list("predictions/late")}
    assert date(2013, 9, 4) in days
    assert len(days) == 2


@pytest.mark.parametrize("rows", [1, 2_000])
def test_rows_logged_are_rows_answered(publisher: Publisher, start: Start, rows: int) -> None:
    publisher("line", "regression", 1, "1")
    server = start(publisher.lake)
    with server.client() as client:
        wait_until(lambda: client.ready("line"))
        data = [0.5] * 2 * rows
        request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data}]}
        for _ in range(5):
            client.post("line", request)
    server.stop()
    assert len(logged(publisher.lake)) == 5 * rows


def test_an_entry_that_cannot_be_taken_in_is_lost_and_counted_and_answers_go_on(publisher: Publisher) -> None:
    metrics = Metrics("test")
    log = PredictionLog(publisher.lake, metrics, flush_seconds=60)
    log.start()
    good = entry_of(publisher, "binary", row())
    odd = {name: np.concatenate([values, values]) for name, values in good.scored.outputs.items()}
    log.append(good)
    log.append(replace(good, scored=replace(good.scored, outputs=odd)))
    log.append(good)
    log.close()
    assert value(metrics, "ml_lifecycle_log_rows_lost_total") == 2
    assert logged(publisher.lake).height == 1


def test_vectors_of_both_widths_are_logged_together() -> None:
    blocks = [np.array([[0.1, 2.0]], dtype) for dtype in (np.float32, np.float64, np.float32)]
    grown = Grown(blocks[0])
    for block in (*blocks[1:], np.ones((1000, 2))):
        grown.extend(block)
    assert grown.whole.dtype == np.float64
    assert grown.whole[:3].tolist() == [[np.float32(0.1), 2.0], [0.1, 2.0], [np.float32(0.1), 2.0]]
    assert grown.whole.shape == (1003, 2)
