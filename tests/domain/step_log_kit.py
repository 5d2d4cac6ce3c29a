"""A prediction log of our own making, of one step of a release."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.records import Release

BEGUN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = BEGUN + timedelta(hours=1)
RELEASE = Release(
    model="delays",
    environment="production",
    endpoint="delays",
    revision=7,
    state="applied",
    version="2",
    model_digest="b" * 64,
    evidence_digest="e" * 64,
    strategy="canary",
    created_at=BEGUN,
)


def row(version: str, request: int, **changes: Any) -> dict[str, Any]:
    """A logged row: answered in a millisecond, score 0.2, carrier AA, flight f1."""
    made: dict[str, Any] = {
        "prediction_id": f"request-{request}",
        "row": 0,
        "received_at": BEGUN + timedelta(seconds=request),
        "event_time": None,
        "entity_keys": '{"flight":"f1"}',
        "route_revision": 7,
        "returned": True,
        "model_version": version,
        "latency_ms": 1.0,
        "status": 200,
        "score": 0.2,
        "features": {"carrier": "AA", "distance": 1.5},
        "outputs": {"label": "no"},
    }
    made |= changes
    if made["status"] != 200:
        made |= {"features": None, "outputs": None, "score": None}
    return made


def write(lake: Lake, number: int, rows: Sequence[dict[str, Any]], server: str = "s1", day: str = "") -> None:
    """One part of the log, as servers write them: named by when its first row came."""
    first = min(one["received_at"] for one in rows)
    schema = {
        "received_at": pl.Datetime("us", "UTC"),
        "event_time": pl.Datetime("us", "UTC"),
        "score": pl.Float64,
    }
    frame = pl.DataFrame(list(rows), schema_overrides=schema)
    kind = "".join("f" if dtype == pl.Null else "a" for dtype in frame.dtypes)
    name = f"{first:%Y%m%dT%H%M%S%f}-{server}-{number:06d}-{kind}.parquet"
    with lake.writing(f"predictions/delays/{day or first.date().isoformat()}/{name}") as file:
        frame.write_parquet(file)
