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
from ml_lifecycle.adapters.predictions import PredictionWindow, as_text
from ml_lifecycle.personal import told
from ml_lifecycle.profiles.drift import drift_findings
from ml_lifecycle.profiles.profile import (
    NO_SEGMENTS,
    SCORE_COLUMN,
    Profile,
    Segments,
    profile_batches,
    read_profile,
)
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


def measure(lake: Lake, log: PredictionWindow, training: Training, segments: Segments = NO_SEGMENTS) -> Drift:
    """Profile the rows that the training's model answered, and compare."""
    try:
        reference = read_profile(lake.read_json(training.profile_path))
        names = {column.name for column in training.columns}
        known = {name: values for name, values in segments.items() if name in names}
        profile, sample = profile_window(log, training, known)
        found = (
            *(
                Finding("segment", name, None, profile.rows, error="the model has no such column")
                for name in segments.keys() - names
            ),
            *schema_findings(training.columns, sample["features"].to_list()),
            *drift_findings(reference, profile),
        )
    except OSError:
        raise  # the lake is unreachable: a retry helps
    except Exception as error:  # noqa: BLE001 - a broken reference or log is a finding, quality is still told
        return Drift((Finding("profile", None, None, 0, error=told(error)),))
    return Drift(found, profile, sample)


def profile_window(
    log: PredictionWindow, training: Training, segments: Segments = NO_SEGMENTS
) -> tuple[Profile, pl.DataFrame]:
    """Batch by batch: the profile, and evenly spaced rows as a sample, their features also as text."""
    columns = (*training.columns, ColumnSpec(SCORE_COLUMN, "float", nullable=True))
    mine = RETURNED & (pl.col("model_digest") == training.model_digest)
    samples = []

    def batches() -> Iterator[pl.DataFrame]:
        for batch in log.feature_batches(mine):
            samples.append(_sampled(batch, training.columns))
            yield _unpack(batch, training.columns)

    profile = profile_batches(batches(), columns, segments)
    sample = pl.concat(samples)
    return profile, evidently.thin(sample.lazy(), sample.height)


def _sampled(batch: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """Some rows, with each feature as text beside ``features`` itself as JSON."""
    rows = evidently.thin(batch.lazy(), batch.height)
    texts = as_text(rows["features"]).alias("features")
    unpacked = _unpack(rows, columns)
    return unpacked.select(pl.col(column.name).cast(pl.String) for column in columns).with_columns(
        texts, unpacked[SCORE_COLUMN]
    )


def _unpack(batch: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """The logged features as columns, and the score.

    Of JSON as text: a value of the wrong type then becomes a missing one instead of failing the batch.
    """
    names = [column.name for column in columns]
    features = batch["features"]
    if not isinstance(features.dtype, pl.Struct):
        texts = pl.Struct(dict.fromkeys(names, pl.String))
        features = features.cast(pl.String).str.json_decode(texts)
    unpacked = features.struct.unnest()
    score = batch["score"].cast(pl.Float64).alias(SCORE_COLUMN)
    return unpacked.select(
        pl.col(name) if name in unpacked.columns else pl.lit(None, pl.String).alias(name) for name in names
    ).with_columns(score)


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
    lake: Lake, path: str, training: Training, sample: pl.DataFrame, findings: Sequence[Finding] = ()
) -> tuple[str | None, list[Finding]]:
    """Write Evidently's ``report.html`` and ``evidently.json``.

    :param findings: the window's; those of its columns stand in the report
    :returns: the page's path, None if it could not be made; and what it lacks and why
    """
    try:
        training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
        reference = evidently.thin(lake.scan([training_set.train_path]), training_set.train_rows)
        report = evidently.drift_report(reference, sample, training.columns, findings)
    except OSError:
        raise  # the lake is unreachable: a retry helps
    except Exception as error:  # noqa: BLE001 - the page is to look at; its absence must not cost the findings
        text = f"no drift page: {told(error)}"
        return None, [Finding("evidently", None, None, sample.height, error=text)]
    lake.write_bytes(f"{path}/evidently.json", report.snapshot.encode())
    page = lake.write_bytes(f"{path}/report.html", report.html.encode())
    return page, [
        Finding("evidently", column, None, sample.height, error=f"left out of the report: {reason}")
        for column, reason in report.left_out.items()
    ]
