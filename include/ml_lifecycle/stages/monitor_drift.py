"""The part of the monitor that compares a window's features and scores with the reference profile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ml_lifecycle.adapters import evidently
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.profiles.drift import feature_findings, score_findings
from ml_lifecycle.profiles.profile import SCORE_COLUMN, Profile, make_profile, merge
from ml_lifecycle.records import ColumnSpec, Finding, Training, TrainingSet, from_json

RETURNED = pl.col("returned") & (pl.col("status") == 200)
"""Rows that a client got as an answer."""

_SCHEMA_ROWS = 1_000


@dataclass(frozen=True)
class Drift:
    """A window's findings about its data, its profile, and evenly spaced rows of it."""

    findings: tuple[Finding, ...]
    profile: Profile | None = None
    sample: pl.DataFrame | None = None


def measure(lake: Lake, log: PredictionWindow, training: Training) -> Drift:
    """Profile the rows that the training's model answered, and compare."""
    try:
        reference = from_json(Profile, lake.read_json(training.profile_path))
        profile, sample = profile_window(log, training, reference)
        found = (
            *schema_findings(training.columns, sample["features"].to_list()),
            *feature_findings(reference, profile),
            *score_findings(reference, profile),
        )
    except OSError:
        raise  # the lake is unreachable: a retry helps
    except Exception as error:  # noqa: BLE001 - a broken reference or log is a finding, quality is still told
        return Drift((Finding("profile", None, None, 0, error=f"{type(error).__name__}: {error}"),))
    return Drift(found, profile, sample)


def profile_window(
    log: PredictionWindow, training: Training, reference: Profile
) -> tuple[Profile, pl.DataFrame]:
    """Batch by batch: the profile on the reference's edges, and evenly spaced rows as a sample."""
    columns = (*training.columns, ColumnSpec(SCORE_COLUMN, "float", nullable=True))
    mine = RETURNED & (pl.col("model_digest") == training.model_digest)
    profile = make_profile(
        _unpack(pl.DataFrame({"features": [], "score": []}), training.columns), columns, reference
    )
    samples = []
    for batch in log.batches(["features", "score"], mine):
        rows = _unpack(batch, training.columns)
        profile = merge(profile, make_profile(rows, columns, reference))
        samples.append(evidently.thin(rows.lazy(), rows.height))
    sample = pl.concat(samples)
    return profile, evidently.thin(sample.lazy(), sample.height)


def _unpack(batch: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """The logged features as columns of text beside ``features`` itself.

    As text first: a value of the wrong type then becomes a missing one instead of failing the batch.
    """
    texts = pl.Struct({column.name: pl.String for column in columns})
    unpacked = batch.select(pl.col("features").cast(pl.String).str.json_decode(texts)).unnest("features")
    rest = batch.select(
        pl.col("features").cast(pl.String), pl.col("score").cast(pl.Float64).alias(SCORE_COLUMN)
    )
    return pl.concat([unpacked, rest], how="horizontal")


def schema_findings(columns: Sequence[ColumnSpec], logged: Sequence[str]) -> Iterator[Finding]:
    """Share of sampled rows whose value is absent, null where it may not be, of another type or unknown.

    :param logged: the rows' features as JSON objects
    """
    step = max(1, len(logged) // _SCHEMA_ROWS)
    rows = [json.loads(text) for text in logged[::step]]
    breaches: Counter[str] = Counter()
    for row in rows:
        breaches.update(_breaches(columns, row))
    names = [column.name for column in columns]
    for name in [*names, *sorted(breaches.keys() - set(names))]:
        yield Finding("schema", name, breaches[name] / len(rows), len(rows))


def _breaches(columns: Sequence[ColumnSpec], row: Mapping[str, Any]) -> Iterator[str]:
    for column in columns:
        if column.name not in row or not _fits(column, row[column.name]):
            yield column.name
    yield from row.keys() - {column.name for column in columns}


def _fits(column: ColumnSpec, value: object) -> bool:
    if value is None:
        return column.nullable
    if column.type == "string":
        return isinstance(value, str)
    if column.type == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return column.type == "float" or value == int(value)


def write_report(
    lake: Lake, path: str, training: Training, sample: pl.DataFrame
) -> tuple[str | None, list[Finding]]:
    """Write Evidently's ``report.html`` and ``evidently.json``.

    :returns: the page's path, None if it could not be made; and what it lacks and why
    """
    try:
        training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
        reference = evidently.thin(lake.scan([training_set.train_path]), training_set.train_rows)
        report = evidently.drift_report(reference, sample, training.columns)
    except OSError:
        raise  # the lake is unreachable: a retry helps
    except Exception as error:  # noqa: BLE001 - the page is to look at; its absence must not cost the findings
        text = f"no drift page: {type(error).__name__}: {error}"
        return None, [Finding("evidently", None, None, sample.height, error=text)]
    lake.write_bytes(f"{path}/evidently.json", report.snapshot.encode())
    page = lake.write_bytes(f"{path}/report.html", report.html.encode())
    return page, [
        Finding("evidently", column, None, sample.height, error=f"left out of the report: {reason}")
        for column, reason in report.left_out.items()
    ]
