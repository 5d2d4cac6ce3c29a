"""Rows of the prediction log as a frame: made only when a part is written, thousands of rows at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import chain
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from ml_lifecycle.adapters.predictions import SCHEMA
from ml_lifecycle.serving.log_rows import Grown, Rows
from ml_lifecycle.serving.model import Outputs
from ml_lifecycle.serving.moments import microseconds

_ROLES = pl.Enum(["champion", "canary", "shadow", "standby"])
_ORIGINS = pl.Enum(["request", "online_store", "missing"])


def frame_of(rows: Rows) -> pl.DataFrame:
    """The rows as :data:`SCHEMA` has them, in the order they were scored in."""
    counts = np.frombuffer(rows.counts, np.int64)
    height = int(counts.sum())
    requests = pl.DataFrame(
        {
            "prediction_id": pl.Series(rows.ids, dtype=pl.String),
            "received_at": _moments(np.frombuffer(rows.received_us, np.int64)),
            "latency_ms": np.frombuffer(rows.latencies_ms, np.float64),
        }
    )
    if height > len(counts):
        requests = requests[np.repeat(np.arange(len(counts)), counts)]
    columns = [
        *requests,
        pl.Series("row", np.arange(height) - np.repeat(np.cumsum(counts) - counts, counts)),
    ]
    # Of a text that is the same in all rows an Enum costs a tenth of a String to write.
    digest = pl.Enum([rows.variant.model_digest]) if rows.values else pl.String()
    constants = [
        _constant("endpoint", rows.route.endpoint, pl.Enum([rows.route.endpoint])),
        _constant("route_revision", rows.route.revision, pl.Int64()),
        _constant("variant", rows.variant.role, _ROLES),
        _constant("model_version", rows.variant.version, pl.String()),
        _constant("returned", rows.returned, pl.Boolean()),
        _constant("model_digest", rows.variant.model_digest, digest),
        _origins(rows, height),
        _constant("status", rows.status, pl.Int64()),
    ]
    if any(times is not None for times in rows.event_times):
        columns.append(_event_times(rows.event_times, rows.counts))
    else:
        constants.append(_constant("event_time", None, pl.Datetime("us", "UTC")))
    if any(rows.entities):
        columns.append(_entity_keys(rows.entities, rows.counts))
    else:
        constants.append(_constant("entity_keys", "{}", pl.Enum(["{}"])))
    if rows.values:
        outputs = rows.named("outputs:")
        columns += [_features(rows), _outputs(outputs), _scores(outputs)]
    else:
        constants += [_constant(name, None, pl.String()) for name in ("features", "outputs")]
        constants.append(_constant("score", None, pl.Float64()))
    return pl.DataFrame(columns).with_columns(constants).select(tuple(SCHEMA))


def kind_of(digest: str, frame: pl.DataFrame) -> str:
    """What the names of parts end with that may be read together: of one model, and with the same types."""
    types = zlib.crc32(repr(list(frame.schema.items())).encode())
    return f"{digest[:12]}{types:08x}"


def by_day(frame: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    """The rows by the UTC day that they are about."""
    moments = frame["received_at"]
    if frame["event_time"].null_count() < frame.height:
        moments = frame.select(pl.coalesce("event_time", "received_at"))["event_time"]
    first, last = moments.min(), moments.max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    if first.date() == last.date():
        yield first.date(), frame
        return
    days = moments.dt.date().alias("day")
    for (day,), part in frame.with_columns(days).partition_by("day", as_dict=True).items():
        yield day, part.drop("day")


def _constant(name: str, value: object, dtype: pl.DataType) -> pl.Expr:
    return pl.lit(value, dtype).alias(name)


def _origins(rows: Rows, height: int) -> pl.Expr:
    """Where features came from; ``missing`` where the online store did not know the entity keys."""
    origin = _constant("features_from", rows.origin, _ORIGINS)
    if not rows.unknown:
        return origin
    unknown = np.zeros(height, np.bool_)
    unknown[np.frombuffer(rows.unknown, np.int64)] = True
    missing = pl.lit("missing", _ORIGINS)
    return pl.when(pl.Series(unknown)).then(missing).otherwise(origin).alias("features_from")


def _event_times(given: Sequence[Sequence[datetime | None] | None], counts: Sequence[int]) -> pl.Series:
    times = chain.from_iterable(one or (None,) * count for one, count in zip(given, counts, strict=True))
    moments = [None if moment is None else microseconds(moment) for moment in times]
    return _moments(moments).alias("event_time")


def _moments(since_1970: Sequence[int | None] | NDArray[np.int64]) -> pl.Series:
    return pl.Series(since_1970, dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))


def _entity_keys(entities: Sequence[Mapping[str, Sequence[Any]] | None], counts: Sequence[int]) -> pl.Series:
    """One JSON object a row."""
    texts: list[str] = []
    for given, count in zip(entities, counts, strict=True):
        if not given:
            texts += ["{}"] * count
            continue
        names = tuple(given)
        texts += [
            orjson.dumps(dict(zip(names, values, strict=True))).decode()
            for values in zip(*given.values(), strict=True)
        ]
    return pl.Series("entity_keys", texts, dtype=pl.String)


def _features(rows: Rows) -> pl.Series:
    """A struct of the columns as they were given; a missing number is NaN, for the reader to see."""
    columns = rows.variant.columns
    if isinstance(packed := rows.values.get("packed"), Grown):
        matrix = np.ascontiguousarray(packed.whole.T)
        found = [pl.Series(column.name, one) for column, one in zip(columns, matrix, strict=True)]
    else:
        given = rows.named("features:")
        found = [
            pl.Series(column.name, given[column.name], dtype=pl.String if column.type == "string" else None)
            for column in columns
        ]
    return pl.DataFrame(found).to_struct("features")


def _outputs(outputs: Outputs) -> pl.Series:
    columns: list[pl.Series] = []
    for name, values in outputs.items():
        if values.ndim == 2:
            columns.append(pl.Series(name, values).arr.to_list())
        elif values.dtype.kind == "O":
            columns.append(pl.Series(name, values.tolist(), dtype=pl.String))
        else:
            columns.append(pl.Series(name, values))
    return pl.DataFrame(columns).to_struct("outputs")


def _scores(outputs: Outputs) -> pl.Series:
    """Binary: probability of the last class; multiclass: the highest; regression: the prediction."""
    if "prediction" in outputs:
        values = outputs["prediction"]
    elif outputs["probabilities"].shape[1] == 2:
        values = outputs["probabilities"][:, -1]
    else:
        values = outputs["probabilities"].max(axis=1)
    return pl.Series("score", values, dtype=pl.Float64).fill_nan(None)
