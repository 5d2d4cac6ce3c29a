"""Prediction log, schema 1: one row a scored row, in Parquet parts of at most a second each."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from io import BytesIO
from typing import Any

import orjson
import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import SCHEMA
from ml_lifecycle.serving.dataplane import Prediction
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.model import Outputs

log = logging.getLogger(__name__)

SCHEMA_NAME = "prediction_log/1"

Folder = tuple[str, date]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One answered request; it becomes as many rows as were scored.

    :param latency_ms: from the request's arrival to its answer being ready
    :param size: bytes of the request: about what its rows take while they wait
    """

    prediction: Prediction
    latency_ms: float
    size: int = 0
    status: int = 200
    returned: bool = True


@dataclass(frozen=True, slots=True)
class _Part:
    path: str
    data: bytes
    rows: int


class PredictionLog:
    """Buffers entries and writes them from a thread of its own.

    A row is in the lake at most about a second after its answer: the process may be killed at any time and
    lose no more than that. :meth:`close` writes everything. While the lake refuses writes, parts are kept
    and tried again; beyond ``buffer_rows`` or ``buffer_bytes`` new rows are lost, and counted.

    :param flush_seconds: how long a row waits at most before its part is written; the rest of the second
        is for the write
    :param part_rows: a part is written at once when this many rows wait
    :param buffer_rows: rows held at most, in memory
    :param buffer_bytes: of requests and parts held at most; for a moment, one request more
    :param close_seconds: how long :meth:`close` keeps trying
    """

    def __init__(
        self,
        lake: Lake,
        metrics: Metrics,
        flush_seconds: float = 0.7,
        part_rows: int = 5_000,
        buffer_rows: int = 100_000,
        buffer_bytes: int = 64 * 2**20,
        close_seconds: float = 10.0,
    ) -> None:
        self._lake = lake
        self._metrics = metrics
        self._flush_seconds = flush_seconds
        self._part_rows = part_rows
        self._buffer_rows = buffer_rows
        self._buffer_bytes = buffer_bytes
        self._close_seconds = close_seconds
        self._instance = uuid.uuid4().hex[:12]
        self._sequence = 0
        self._entries: list[LogEntry] = []
        self._waiting = 0  # rows in entries
        self._pending = 0  # rows in entries and parts
        self._bytes = 0  # of both
        self._parts: deque[_Part] = deque()
        self._closing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        metrics.log_pending(lambda: self._pending)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def append(self, entry: LogEntry) -> None:
        """Take an entry; never blocks on the lake."""
        rows = entry.prediction.query.rows
        with self._wake:
            if self._pending + rows > self._buffer_rows or self._bytes > self._buffer_bytes:
                self._metrics.log_lost.inc(rows)
                return
            self._entries.append(entry)
            self._waiting += rows
            self._pending += rows
            self._bytes += entry.size
            if self._waiting >= self._part_rows:
                self._wake.notify()

    def close(self) -> None:
        """Write all that waits; what cannot be written within ``close_seconds`` is counted as lost."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            with self._wake:
                self._wake.wait_for(self._due, timeout=self._flush_seconds)
            self._flush()
        deadline = time.monotonic() + self._close_seconds
        while not self._flush() and time.monotonic() < deadline:
            time.sleep(0.2)
        if self._pending:
            log.error("%d prediction log rows are lost: %s takes no writes", self._pending, self._lake.url)
            self._metrics.log_lost.inc(self._pending)
            self._settle(self._pending, self._bytes)

    def _due(self) -> bool:
        return self._closing or self._waiting >= self._part_rows

    def _flush(self) -> bool:
        """Write what waits; False if the lake refused."""
        with self._wake:
            entries, self._entries, self._waiting = self._entries, [], 0
        size = sum(entry.size for entry in entries)
        try:
            parts = self._encode(entries)
            self._parts.extend(parts)
            self._settle(0, size - sum(len(part.data) for part in parts))
        except Exception:  # one row that cannot be encoded must not end the log
            rows = sum(entry.prediction.query.rows for entry in entries)
            log.exception("%d prediction log rows cannot be encoded and are lost", rows)
            self._metrics.log_lost.inc(rows)
            self._settle(rows, size)
        while self._parts:
            part = self._parts[0]
            try:
                self._lake.write_bytes(part.path, part.data)
            # Every storage client raises errors of its own; whatever it is, the part is kept and tried again.
            except Exception as error:  # noqa: BLE001
                self._metrics.log_failures.inc()
                log.warning("%s could not be written and will be tried again: %s", part.path, error)
                return False
            self._parts.popleft()
            self._metrics.log_written.inc(part.rows)
            self._settle(part.rows, len(part.data))
        return True

    def _settle(self, rows: int, size: int) -> None:
        with self._wake:
            self._pending -= rows
            self._bytes -= size

    def _encode(self, entries: Iterable[LogEntry]) -> list[_Part]:
        folders: dict[Folder, list[tuple[Any, ...]]] = {}
        for entry in entries:
            for folder, row in _rows(entry):
                folders.setdefault(folder, []).append(row)
        return [self._part(folder, rows) for folder, rows in folders.items()]

    def _part(self, folder: Folder, rows: list[tuple[Any, ...]]) -> _Part:
        frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        buffer = BytesIO()
        frame.write_parquet(buffer, compression="zstd", metadata={"schema": SCHEMA_NAME})
        self._sequence += 1
        endpoint, day = folder
        first = min(row[2] for row in rows)
        name = f"{first:%Y%m%dT%H%M%S%f}-{self._instance}-{self._sequence:06d}.parquet"
        return _Part(f"predictions/{endpoint}/{day.isoformat()}/{name}", buffer.getvalue(), len(rows))


def _rows(entry: LogEntry) -> Iterator[tuple[Folder, tuple[Any, ...]]]:
    prediction = entry.prediction
    variant, query = prediction.variant, prediction.query
    endpoint = prediction.route.endpoint
    features = _json_rows(prediction.features.values, query.rows)
    entities = _json_rows(query.entities, query.rows)
    # A vector as Python's own numbers, a matrix as rows that orjson writes as they are.
    columns = {
        name: array.tolist() if array.ndim == 1 else array for name, array in prediction.outputs.items()
    }
    outputs = _json_rows(columns, query.rows)
    scores = _scores(prediction.outputs)
    for number, event_time in enumerate(query.event_times):
        folder = endpoint, (event_time or query.received_at).date()
        yield (
            folder,
            (
                query.id,
                number,
                query.received_at,
                event_time,
                entities[number],
                endpoint,
                prediction.route.revision,
                variant.role,
                entry.returned,
                variant.version,
                variant.model_digest,
                features[number],
                prediction.features.origin,
                outputs[number],
                scores[number],
                entry.latency_ms,
                entry.status,
            ),
        )


def _json_rows(columns: Mapping[str, Iterable[Any]], rows: int) -> list[str]:
    """``column → values`` as one JSON object a row."""
    if not columns:
        return ["{}"] * rows
    names = tuple(columns)
    return [
        orjson.dumps(
            dict(zip(names, row, strict=True)), default=str, option=orjson.OPT_SERIALIZE_NUMPY
        ).decode()
        for row in zip(*columns.values(), strict=True)
    ]


def _scores(outputs: Outputs) -> list[float | None]:
    """Binary: probability of the last class; multiclass: the highest; regression: the prediction."""
    if "prediction" in outputs:
        values = outputs["prediction"]
    elif outputs["probabilities"].shape[1] == 2:
        values = outputs["probabilities"][:, -1]
    else:
        values = outputs["probabilities"].max(axis=1)
    return [float(value) if value == value else None for value in values.tolist()]
