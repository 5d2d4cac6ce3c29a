"""Prediction logs for tests: parts as servers write them, a few rows each, and everything that reads them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import find_parts, scan_parts
from ml_lifecycle.adapters.predictions import SCHEMA, PredictionWindow
from ml_lifecycle.records import Interval
from ml_lifecycle.serving.log_frames import kind_of
from ml_lifecycle.stages.compact import Compaction, compact

DAY = datetime(2026, 3, 1, tzinfo=UTC)
NEXT = DAY + timedelta(days=1)
LATER = NEXT + timedelta(hours=2)
WINDOW = Interval(DAY, NEXT)
ENDPOINT = "delays"
BATCH_BYTES, STRETCH_BYTES = 25_000, 120_000
"""Of some four and twenty parts."""


def make_rows(model: str, ids: range, at: datetime) -> pl.DataFrame:
    """Rows that a model answered, as servers log them."""
    failed = model == "failed"
    n = len(ids)
    moments = [at + timedelta(milliseconds=k) for k in range(n)]
    features = pl.DataFrame({"distance": [id / 7 for id in ids], "carrier": ["AA", "UA", None, "B6"][:n]})
    if model == "two":
        features = features.with_columns(hour=pl.lit(at.hour, pl.Int64))
    outputs = pl.DataFrame({"label": [id % 2 for id in ids], "probabilities": [[0.25, 0.75]] * n})
    text = pl.lit(None, pl.String)
    return pl.DataFrame(
        {
            "prediction_id": [f"request-{id}" for id in ids],
            "row": [0] * n,
            "received_at": moments,
            "event_time": moments,
            "entity_keys": [f'{{"flight":"{id}"}}' for id in ids],
            "endpoint": pl.Series([ENDPOINT] * n, dtype=pl.Enum([ENDPOINT])),
            "route_revision": [1] * n,
            "variant": pl.Series(["champion"] * n, dtype=pl.Enum(["champion", "canary"])),
            "returned": [not failed] * n,
            "model_version": [model] * n,
            "model_digest": pl.Series([f"digest-{model}"] * n, dtype=pl.Enum([f"digest-{model}"])),
            "features": features.to_struct(),
            "features_from": ["request"] * n,
            "outputs": outputs.to_struct(),
            "score": [id / 1000 for id in ids],
            "latency_ms": [1.5] * n,
            "status": [500 if failed else 200] * n,
        },
        schema_overrides={name: SCHEMA[name] for name in ("received_at", "event_time", "row")},
    ).with_columns(*((text.alias("features"), text.alias("outputs")) if failed else ()))


def write_part(
    lake: Lake, model: str, number: int, rows: pl.DataFrame, server: str = "s1", day: str = ""
) -> str:
    """One part of the log; of the model ``old`` in schema 1."""
    first = rows["received_at"].min()
    assert isinstance(first, datetime)
    ending = f"-{kind_of(model * 12, rows)}"
    if model == "old":
        structs = [pl.col(name).struct.json_encode() for name in ("features", "outputs")]
        rows, ending = rows.with_columns(structs).cast({pl.Enum: pl.String}), ""
    path = f"predictions/{ENDPOINT}/{day or first.date().isoformat()}/"
    path += f"{first:%Y%m%dT%H%M%S%f}-{server}-{number:06d}{ending}.parquet"
    with lake.writing(path) as file:
        rows.write_parquet(file, compression="lz4", statistics=False)
    return path


def write_day(lake: Lake, parts: int, model: str = "one", rows: int = 3, start: int = 0) -> list[str]:
    """A part a minute."""
    return [
        write_part(
            lake,
            model,
            number,
            make_rows(model, range(number * rows, (number + 1) * rows), DAY + timedelta(minutes=number)),
        )
        for number in range(start, start + parts)
    ]


def window(lake: Lake, interval: Interval = WINDOW) -> PredictionWindow:
    """The day, in stretches and batches of a few parts."""
    return PredictionWindow(lake, ENDPOINT, interval, BATCH_BYTES, STRETCH_BYTES)


def compact_log(lake: Lake, now: datetime = LATER, at_most: int | None = None) -> Compaction:
    """Compact into files and stretches of a few parts."""
    return compact(lake, ENDPOINT, now, at_most=at_most, batch_bytes=BATCH_BYTES, stretch_bytes=STRETCH_BYTES)


def compact_and_delete(root: Path) -> None:
    """Both halves, for processes that die in them."""
    lake = Lake(str(root / "lake"))
    compact_log(lake)
    compact_log(lake, LATER + timedelta(days=2))


def read(lake: Lake) -> tuple[object, ...]:
    """All that anybody can read of the log, batch by batch and part by part."""
    log = window(lake)
    batches = list(log.batches(tuple(SCHEMA)))
    features = list(log.feature_batches())
    parts = find_parts(lake, ENDPOINT, DAY.date())
    rows = [scan_parts(lake, [part]).collect().to_dicts() for part in parts]
    assert log.unreadable == {}
    return (
        [(one.name, one.digest, one.parts, one.size) for one in log.stretches],
        [(batch.schema, batch.to_dicts(), batch.n_chunks()) for batch in (*batches, *features)],
        [replace(part, place=None) for part in parts],
        rows,
    )


def ids(lake: Lake, interval: Interval = WINDOW) -> list[str]:
    """Of all rows, those that are read twice twice."""
    return sorted(window(lake, interval).read(["prediction_id"])["prediction_id"])
