"""What was answered, as rows of the prediction log: built only when a part is written, many at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain

import numpy as np
import orjson
import polars as pl

from ml_lifecycle.adapters.predictions import SCHEMA
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.columns import Matrix, Table
from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.model import Outputs
from ml_lifecycle.serving.moments import microseconds

_ROLES = pl.Enum(["champion", "canary", "shadow", "standby"])
_ORIGINS = pl.Enum(["request", "online_store"])


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Requests that were answered together; they become as many rows as were scored.

    :param latencies_ms: one a request: from its arrival to its answer being ready
    :param size: bytes of the requests: about what their rows take while they wait
    """

    scored: Scored
    latencies_ms: Sequence[float]
    size: int = 0
    returned: bool = True

    @property
    def rows(self) -> int:
        """How many were scored."""
        return self.scored.table.rows


@dataclass(frozen=True, slots=True)
class FailedEntry:
    """A request that its variant could not answer: its rows have neither features nor outputs.

    :param latency_ms: from its arrival to the error
    :param status: what the client was told
    """

    route: Route
    variant: Variant
    query: Query
    latency_ms: float
    status: int
    size: int = 0
    returned: bool = True

    @property
    def rows(self) -> int:
        """How many were to be scored."""
        return self.query.rows


def kind_of(digest: str, frame: pl.DataFrame) -> str:
    """What the names of parts end with that may be read together: of one model, and with the same types."""
    types = zlib.crc32(repr(list(frame.schema.items())).encode())
    return f"{digest[:12]}{types:08x}"


def by_day(frame: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    """The rows by the UTC day that they are about."""
    moments = frame["received_at"]
    if frame["event_time"].null_count() < frame.height:
        moments = frame.select(pl.coalesce("event_time", "received_at"))["event_time"]
    days = moments.dt.date()
    if days.min() == days.max():
        yield days[0], frame
        return
    for (day,), part in frame.with_columns(days.alias("day")).partition_by("day", as_dict=True).items():
        yield day, part.drop("day")


def answered_frame(entries: Sequence[LogEntry]) -> pl.DataFrame:
    """Rows of one variant and origin, in the order they were scored in."""
    scored = [entry.scored for entry in entries]
    first, tables = scored[0], [one.table for one in scored]
    queries = [query for one in scored for query in one.queries]
    requests = _Requests(queries, [ms for entry in entries for ms in entry.latencies_ms])
    outputs = _joined([one.outputs for one in scored])
    digest = first.variant.model_digest
    return requests.frame(
        first.route,
        first.variant,
        {
            "returned": _constant(entries[0].returned, pl.Boolean(), requests.rows),
            "model_digest": _constant(digest, pl.Enum([digest]), requests.rows),
            "features": _features(first.variant.columns, tables),
            "features_from": _constant(first.table.origin, _ORIGINS, requests.rows),
            "outputs": _outputs(outputs),
            "score": _scores(outputs),
            "status": _constant(200, pl.Int64(), requests.rows),
        },
    )


def failed_frame(entries: Sequence[FailedEntry]) -> pl.DataFrame:
    """Rows that one variant could not score, with one status."""
    first = entries[0]
    requests = _Requests([entry.query for entry in entries], [entry.latency_ms for entry in entries])
    nothing = _constant(None, pl.String(), requests.rows)
    return requests.frame(
        first.route,
        first.variant,
        {
            "returned": _constant(first.returned, pl.Boolean(), requests.rows),
            "model_digest": _constant(first.variant.model_digest, pl.String(), requests.rows),
            "features": nothing,
            "features_from": nothing,
            "outputs": nothing,
            "score": _constant(None, pl.Float64(), requests.rows),
            "status": _constant(first.status, pl.Int64(), requests.rows),
        },
    )


class _Requests:
    """Requests whose rows are to be laid out: what they all have, answered or not."""

    def __init__(self, queries: Sequence[Query], latencies_ms: Sequence[float]) -> None:
        counts = np.fromiter((query.rows for query in queries), np.int64, len(queries))
        self.rows = int(counts.sum())
        self._queries = queries
        self._latencies = pl.Series(latencies_ms, dtype=pl.Float64)
        self._numbers = np.arange(self.rows) - np.repeat(np.cumsum(counts) - counts, counts)
        self._of_row = pl.Series(np.repeat(np.arange(len(queries)), counts))

    def frame(self, route: Route, variant: Variant, more: Mapping[str, pl.Series]) -> pl.DataFrame:
        """The rows, with columns of the caller's own, in the schema's order."""
        ids = pl.Series([query.id for query in self._queries], dtype=pl.String)
        received = _moments([query.received_us for query in self._queries])
        endpoint = pl.Enum([route.endpoint])
        columns = {
            "prediction_id": ids.gather(self._of_row),
            "row": pl.Series(self._numbers),
            "received_at": received.gather(self._of_row),
            "event_time": _event_times(self._queries, self.rows),
            "entity_keys": _entity_keys(self._queries, self.rows),
            "endpoint": _constant(route.endpoint, endpoint, self.rows),
            "route_revision": _constant(route.revision, pl.Int64(), self.rows),
            "variant": _constant(variant.role, _ROLES, self.rows),
            "model_version": _constant(variant.version, pl.String(), self.rows),
            "latency_ms": self._latencies.gather(self._of_row),
            **more,
        }
        return pl.DataFrame({name: columns[name] for name in SCHEMA})


def _constant(value: object, dtype: pl.DataType, rows: int) -> pl.Series:
    """Of a text that is the same in all rows an Enum costs a tenth of a String to write."""
    return pl.Series([value], dtype=dtype).new_from_index(0, rows)


def _event_times(queries: Sequence[Query], rows: int) -> pl.Series:
    if all(query.event_times is None for query in queries):
        return _constant(None, pl.Datetime("us", "UTC"), rows)
    times = chain.from_iterable(query.event_times or (None,) * query.rows for query in queries)
    return _moments([None if moment is None else microseconds(moment) for moment in times])


def _moments(since_1970: Sequence[int | None]) -> pl.Series:
    return pl.Series(since_1970, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def _entity_keys(queries: Sequence[Query], rows: int) -> pl.Series:
    """One JSON object a row."""
    if not any(query.entities for query in queries):
        return _constant("{}", pl.Enum(["{}"]), rows)
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
    """A struct of the columns as they were given; of numbers a missing one is NaN, for the reader to see."""
    matrices = [table.packed for table in tables if isinstance(table, Matrix)]
    if len(matrices) == len(tables):
        packed = matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
        values = np.ascontiguousarray(packed.T)
        found = [pl.Series(column.name, one) for column, one in zip(columns, values, strict=True)]
        return pl.DataFrame(found).to_struct("features")
    found = []
    all_given = [table.given for table in tables]
    for column in columns:
        given = [one[column.name] for one in all_given]
        if column.type == "string":
            found.append(pl.Series(column.name, list(chain.from_iterable(given)), dtype=pl.String))
        else:
            found.append(pl.Series(column.name, given[0] if len(given) == 1 else np.concatenate(given)))
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
