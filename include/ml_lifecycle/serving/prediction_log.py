"""Prediction log: one row a scored row, in Parquet parts of at most a second each.

What rows need is put aside as requests are answered, and becomes columns only when a part is written: a row
costs a microsecond or two. Both may have one core to share, so the thread that writes gives way.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from io import BytesIO
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.log_frames import by_day, frame_of, kind_of
from ml_lifecycle.serving.log_rows import FailedEntry, LogEntry, Rows, gather, kind_of_entry
from ml_lifecycle.serving.metrics import Metrics

log = logging.getLogger(__name__)

SCHEMA_NAME = "prediction_log/2"

# A third of an answering thread's weight: Linux gives 1024 to nice 0 and 335 to nice 5.
_NICENESS = 5


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
    :param written: called by the thread that writes, after each look for what to write: then least is held
    """

    def __init__(
        self,
        lake: Lake,
        metrics: Metrics,
        flush_seconds: float = 0.7,
        part_rows: int = 50_000,
        buffer_rows: int = 500_000,
        buffer_bytes: int = 64 * 2**20,
        close_seconds: float = 10.0,
        written: Callable[[], object] | None = None,
    ) -> None:
        self._lake = lake
        self._metrics = metrics
        self._flush_seconds = flush_seconds
        self._part_rows = part_rows
        self._buffer_rows = buffer_rows
        self._buffer_bytes = buffer_bytes
        self._close_seconds = close_seconds
        self._written = written
        self._instance = uuid.uuid4().hex[:12]
        self._sequence = 0
        self._gathered: dict[tuple[Any, ...], Rows] = {}
        self._waiting = 0  # rows in gathered
        self._pending = 0  # rows in gathered and parts
        self._bytes = 0  # of both
        self._parts: deque[_Part] = deque()
        self._closing = False
        self._failing = False  # the lake refused the last write
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        metrics.log_pending(lambda: self._pending)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def append(self, entry: LogEntry | FailedEntry) -> None:
        """Take an entry; never blocks on the lake."""
        rows, kind = entry.rows, kind_of_entry(entry)
        with self._wake:
            if self._pending + rows > self._buffer_rows or self._bytes > self._buffer_bytes:
                self._metrics.log_lost.inc(rows)
                return
            try:
                if (gathered := self._gathered.get(kind)) is None:
                    self._gathered[kind] = gather(entry)
                else:
                    gathered.add(entry)
            except Exception:  # noqa: BLE001 - whatever an entry has, answers go on
                self._give_up(kind, rows)
                return
            self._waiting += rows
            self._pending += rows
            self._bytes += entry.size
            if self._waiting >= self._part_rows:
                self._wake.notify_all()

    def _give_up(self, kind: tuple[Any, ...], rows: int) -> None:
        """An entry was taken in half, if at all: what came before it would get its values."""
        lost = self._gathered.pop(kind, None)
        waited = 0 if lost is None else sum(lost.counts)
        log.exception("%d prediction log rows cannot be taken in and are lost", rows + waited)
        self._metrics.log_lost.inc(rows + waited)
        self._waiting -= waited
        self._pending -= waited
        self._bytes -= 0 if lost is None else sum(lost.sizes)

    def wait_for_room(self, seconds: float = 1.0) -> None:
        """Wait until half of the buffer is free, if the log can get there: called by threads that have time.

        Large requests can come faster than their rows are written. They wait a little instead of losing them.
        """
        with self._wake:
            self._wake.wait_for(self._has_room, timeout=seconds)

    def _has_room(self) -> bool:
        half = self._pending * 2 <= self._buffer_rows and self._bytes * 2 <= self._buffer_bytes
        return half or self._failing or self._closing

    def close(self) -> None:
        """Write all that waits; what cannot be written within ``close_seconds`` is counted as lost."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        _give_way()
        while not self._closing:
            with self._wake:
                self._wake.wait_for(self._due, timeout=self._flush_seconds)
            self._flush()
            if self._written is not None:
                self._written()
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
            gathered, self._gathered, self._waiting = self._gathered, {}, 0
        for rows in gathered.values():
            self._take(rows)
        while self._parts:
            part = self._parts[0]
            try:
                self._lake.write_bytes(part.path, part.data)
            # Every storage client raises errors of its own; whatever it is, the part is kept and tried again.
            except Exception as error:  # noqa: BLE001
                self._failing = True
                self._metrics.log_failures.inc()
                log.warning("%s could not be written and will be tried again: %s", part.path, error)
                return False
            self._failing = False
            self._parts.popleft()
            self._metrics.log_written.inc(part.rows)
            self._settle(part.rows, len(part.data))
        return True

    def _take(self, rows: Rows) -> None:
        """Make parts of rows; one entry that cannot be encoded must not take others with it."""
        count, size = sum(rows.counts), sum(rows.sizes)
        try:
            parts = self._encode(rows)
        except Exception:
            if len(rows.ends) > 1:
                for entry in rows.each():
                    self._take(entry)
                return
            log.exception("%d prediction log rows cannot be encoded and are lost", count)
            self._metrics.log_lost.inc(count)
            self._settle(count, size)
            return
        self._parts.extend(parts)
        self._settle(0, size - sum(len(part.data) for part in parts))

    def _settle(self, rows: int, size: int) -> None:
        with self._wake:
            self._pending -= rows
            self._bytes -= size
            self._wake.notify_all()

    def _encode(self, rows: Rows) -> list[_Part]:
        frame = frame_of(rows)
        ending = kind_of(rows.variant.model_digest if rows.values else "failed", frame)
        return [self._part(rows.route.endpoint, ending, day, part) for day, part in by_day(frame)]

    def _part(self, endpoint: str, ending: str, day: date, frame: pl.DataFrame) -> _Part:
        buffer = BytesIO()
        # Statistics and better compression cost more CPU than all else here, and readers take whole files.
        frame.write_parquet(buffer, compression="lz4", statistics=False, metadata={"schema": SCHEMA_NAME})
        self._sequence += 1
        first = frame["received_at"].min()
        assert isinstance(first, datetime)
        name = f"{first:%Y%m%dT%H%M%S%f}-{self._instance}-{self._sequence:06d}-{ending}.parquet"
        return _Part(f"predictions/{endpoint}/{day.isoformat()}/{name}", buffer.getvalue(), frame.height)


def _give_way() -> None:
    """Let the threads that answer go first, without ever coming to a stand: a quarter of a core is left."""
    if sys.platform != "linux":
        return  # nowhere else has a thread a priority of its own
    thread = threading.get_native_id()
    with suppress(OSError):  # a sandbox may forbid it, and the log must be written all the same
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
