"""Specs, contracts and runs for the tests of ingest and validate."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ml_lifecycle.records import Interval, Run
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.model import ModelSpec


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def run(start: str, end: str, as_of: str | None = None, run_id: str = "run_1") -> Run:
    return Run("demo", run_id, at(as_of or end), Interval(at(start), at(end)))


def spec(**sources: Mapping[str, Any]) -> ModelSpec:
    environment = {"server": "server", "lake": "lake", "online_store": "online"}
    return ModelSpec.model_validate(
        {
            "spec": 1,
            "name": "demo",
            "description": "A model for tests.",
            "task": "binary",
            "owner": "data",
            "sources": sources,
            "labels": {"column": "late", "keys": ["id"]},
            "features": {"service": "demo"},
            "training": {"data": {"start": "2013-01-01T00:00:00Z", "holdout": "7d"}},
            "evaluation": {"gates": [{"metric": "skill", "min": 0}]},
            "approvers": {"users": ["alice"]},
            "environments": {"staging": environment, "production": environment},
        }
    )


def contract(name: str, fields: list[dict[str, Any]], **rules: Any) -> dict[str, Contract]:
    return {name: Contract.model_validate({"name": name, "version": "1", "fields": fields, **rules})}


def events(first: str, rows: int, every: timedelta = timedelta(hours=6), **columns: Any) -> pl.DataFrame:
    """``id``, ``at`` and ``value``, one row every six hours."""
    times = [at(first) + every * i for i in range(rows)]
    frame = pl.DataFrame(
        {
            "id": list(range(rows)),
            "at": pl.Series(times, dtype=pl.Datetime("us", "UTC")),
            "value": [i / 4 for i in range(rows)],
        }
    )
    return frame.with_columns(**columns)


def put(folder: Path, name: str, frame: pl.DataFrame) -> Path:
    """Write a frame as the file's suffix says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if name.endswith(".parquet"):
        frame.write_parquet(buffer)
    elif name.endswith(".json"):
        frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_ndjson(buffer)
    else:
        frame.write_csv(buffer, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")
    path.write_bytes(buffer.getvalue())
    return path


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below with what a write would change."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
