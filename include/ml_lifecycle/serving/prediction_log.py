"""Prediction log: one row a scored row, in Parquet parts of at most a second each.

Requests are buffered as they were scored, many at a time, and their rows become columns only when a part is
written: a row costs about a microsecond.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import orjson
import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.columns import Table
from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.model import Outputs

log = logging.getLogger(__name__)

SCHEMA_NAME = "prediction_log/2"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Requests that were answered together; they become as many rows as were scored.

    :param latencies_ms: one a request: from its arrival to its answer being ready
    :param size: bytes of the requests: about what their rows take while they wait
    """

    scored: Scored
    latencies_ms: Sequence[float]
    size: int = 0
    status: int = 200
    returned: bool = True

    @property
    def rows(self) -> int:
        """How many were scored."""
        return self.scored.table.rows


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
        rows = entry.rows
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
            rows = sum(entry.rows for entry in entries)
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
        groups: dict[tuple[Any, ...], list[LogEntry]] = {}
        for entry in entries:
            scored = entry.scored
            kind = scored.table.origin, entry.status, entry.returned
            groups.setdefault((id(scored.route), id(scored.variant), *kind), []).append(entry)
        return [
            self._part(group[0].scored, day, frame)
            for group in groups.values()
            for day, frame in _by_day(_frame(group))
        ]

    def _part(self, scored: Scored, day: date, frame: pl.DataFrame) -> _Part:
        buffer = BytesIO()
        # Statistics and better compression cost more CPU than all else here, and readers take whole files.
        frame.write_parquet(buffer, compression="lz4", statistics=False, metadata={"schema": SCHEMA_NAME})
        self._sequence += 1
        first = frame["received_at"].min()
        assert isinstance(first, datetime)
        kind = scored.variant.model_digest.removeprefix("sha256:")[:12]
        name = f"{first:%Y%m%dT%H%M%S%f}-{self._instance}-{self._sequence:06d}-{kind}.parquet"
        path = f"predictions/{scored.route.endpoint}/{day.isoformat()}/{name}"
        return _Part(path, buffer.getvalue(), frame.height)


def _by_day(frame: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    days = frame.select(pl.coalesce("event_time", "received_at").dt.date())["event_time"]
    if days.n_unique() == 1:
        yield days[0], frame
        return
    for (day,), part in frame.with_columns(days.alias("day")).partition_by("day", as_dict=True).items():
        yield day, part.drop("day")


def _frame(entries: Sequence[LogEntry]) -> pl.DataFrame:
    """Rows of one variant and origin, in the order they were scored in."""
    first = entries[0].scored
    variant = first.variant
    queries = [query for entry in entries for query in entry.scored.queries]
    counts = np.fromiter((query.rows for query in queries), np.int64, len(queries))
    rows = int(counts.sum())
    starts = np.cumsum(counts) - counts
    requests = pl.Series(np.repeat(np.arange(len(queries)), counts))
    received = pl.Series([query.received_at for query in queries], dtype=pl.Datetime("us", "UTC"))
    latencies = pl.Series([ms for entry in entries for ms in entry.latencies_ms], dtype=pl.Float64)
    outputs = _joined([entry.scored.outputs for entry in entries])
    return pl.DataFrame(
        {
            "prediction_id": pl.Series([query.id for query in queries], dtype=pl.String).gather(requests),
            "row": np.arange(rows) - np.repeat(starts, counts),
            "received_at": received.gather(requests),
            "event_time": _event_times(queries, rows),
            "entity_keys": _entity_keys(queries, rows),
            "features": _features(variant.columns, [entry.scored.table for entry in entries]),
            "outputs": _outputs(outputs),
            "score": _scores(outputs),
            "latency_ms": latencies.gather(requests),
        }
    ).select(
        "prediction_id",
        "row",
        "received_at",
        "event_time",
        "entity_keys",
        pl.lit(first.route.endpoint).alias("endpoint"),
        pl.lit(first.route.revision, pl.Int64).alias("route_revision"),
        pl.lit(variant.role).alias("variant"),
        pl.lit(entries[0].returned).alias("returned"),
        pl.lit(variant.version).alias("model_version"),
        pl.lit(variant.model_digest).alias("model_digest"),
        "features",
        pl.lit(first.table.origin).alias("features_from"),
        "outputs",
        "score",
        "latency_ms",
        pl.lit(entries[0].status, pl.Int64).alias("status"),
    )


def _event_times(queries: Sequence[Query], rows: int) -> pl.Series:
    dtype = pl.Datetime("us", "UTC")
    if all(query.event_times is None for query in queries):
        return pl.Series([None], dtype=dtype).extend_constant(None, rows - 1)
    times = (query.event_times or (None,) * query.rows for query in queries)
    return pl.Series(list(chain.from_iterable(times)), dtype=dtype)


def _entity_keys(queries: Sequence[Query], rows: int) -> pl.Series:
    """One JSON object a row."""
    if not any(query.entities for query in queries):
        return pl.repeat("{}", rows, dtype=pl.String, eager=True)
    texts: list[str] = []
    for query in queries:
        if not query.entities:
            texts += ["{}"] * query.rows
            continue
        names = tuple(query.entities)
        texts += [
            orjson.dumps(dict(zip(names, values, strict=True))).decode()
            for values in zip(*query.entities.values(), strict=True)
        ]
    return pl.Series(texts, dtype=pl.String)


def _features(columns: Sequence[ColumnSpec], tables: Sequence[Table]) -> pl.Series:
    found: list[pl.Series] = []
    all_given = [table.given for table in tables]
    for column in columns:
        given = [one[column.name] for one in all_given]
        if column.type == "string":
            found.append(pl.Series(column.name, list(chain.from_iterable(given)), dtype=pl.String))
            continue
        series = pl.Series(column.name, given[0] if len(given) == 1 else np.concatenate(given))
        found.append(series.fill_nan(None) if column.type == "float" else series)
    return pl.DataFrame(found).to_struct("features")


def _joined(outputs: Sequence[Outputs]) -> Outputs:
    if len(outputs) == 1:
        return outputs[0]
    return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}


def _outputs(outputs: Outputs) -> pl.Series:
    columns: list[pl.Series] = []
    for name, array in outputs.items():
        if array.ndim == 2:
            columns.append(pl.Series(name, array).arr.to_list())
        elif array.dtype.kind == "O":
            columns.append(pl.Series(name, array.tolist(), dtype=pl.String))
        else:
            columns.append(pl.Series(name, array))
    return pl.DataFrame(columns).to_struct("outputs")


def _scores(outputs: Outputs) -> pl.Series:
    """Binary: probability of the last class; multiclass: the highest; regression: the prediction."""
    if "prediction" in outputs:
        values = outputs["prediction"]
    elif outputs["probabilities"].shape[1] == 2:
        values = outputs["probabilities"][:, -1]
    else:
        values = outputs["probabilities"].max(axis=1)
    return pl.Series(values, dtype=pl.Float64).fill_nan(None)
