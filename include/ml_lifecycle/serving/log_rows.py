"""What was answered, as rows of the prediction log: built only when a part is written, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain

import numpy as np
import orjson
import polars as pl

from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.records import ColumnSpec
from ml_lifecycle.serving.columns import Table
from ml_lifecycle.serving.dataplane import Query, Scored
from ml_lifecycle.serving.model import Outputs


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

    @property
    def rows(self) -> int:
        """How many were to be scored."""
        return self.query.rows


def digest_part(variant: Variant) -> str:
    """What the names of a model's parts end with: parts of one model have the same columns."""
    return variant.model_digest.removeprefix("sha256:")[:12]


def by_day(frame: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    """The rows by the UTC day that they are about."""
    days = frame.select(pl.coalesce("event_time", "received_at").dt.date())["event_time"]
    if days.n_unique() == 1:
        yield days[0], frame
        return
    for (day,), part in frame.with_columns(days.alias("day")).partition_by("day", as_dict=True).items():
        yield day, part.drop("day")


def answered_frame(entries: Sequence[LogEntry]) -> pl.DataFrame:
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
        pl.lit(200, pl.Int64).alias("status"),
    )


def failed_frame(entries: Sequence[FailedEntry]) -> pl.DataFrame:
    """Rows that one variant could not score, with one status."""
    first = entries[0]
    queries = [entry.query for entry in entries]
    rows = [(entry, row) for entry in entries for row in range(entry.rows)]
    return pl.DataFrame(
        {
            "prediction_id": [entry.query.id for entry, _ in rows],
            "row": [row for _, row in rows],
            "received_at": pl.Series(
                [entry.query.received_at for entry, _ in rows], dtype=pl.Datetime("us", "UTC")
            ),
            "event_time": _event_times(queries, len(rows)),
            "entity_keys": _entity_keys(queries, len(rows)),
            "latency_ms": pl.Series([entry.latency_ms for entry, _ in rows], dtype=pl.Float64),
        }
    ).select(
        "prediction_id",
        "row",
        "received_at",
        "event_time",
        "entity_keys",
        pl.lit(first.route.endpoint).alias("endpoint"),
        pl.lit(first.route.revision, pl.Int64).alias("route_revision"),
        pl.lit(first.variant.role).alias("variant"),
        pl.lit(True).alias("returned"),
        pl.lit(first.variant.version).alias("model_version"),
        pl.lit(first.variant.model_digest).alias("model_digest"),
        pl.lit(None, pl.String).alias("features"),
        pl.lit(None, pl.String).alias("features_from"),
        pl.lit(None, pl.String).alias("outputs"),
        pl.lit(None, pl.Float64).alias("score"),
        "latency_ms",
        pl.lit(first.status, pl.Int64).alias("status"),
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
