"""The part of the monitor that compares a window's features and scores with the reference profile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from ml_lifecycle.adapters import evidently
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import MOMENT, PredictionWindow, as_text
from ml_lifecycle.errors import NoSpaceError
from ml_lifecycle.personal import told
from ml_lifecycle.profiles.drift import drift_findings
from ml_lifecycle.profiles.profile import (
    SCORE_COLUMN,
    Profile,
    ProfileError,
    Segments,
    merge,
    read_profile,
)
from ml_lifecycle.profiles.profiling import profile_batches
from ml_lifecycle.profiles.sample import TURN, smallest, strata, turns
from ml_lifecycle.records import (
    ColumnSpec,
    Finding,
    Training,
    TrainingSet,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.stages.monitor_kept import Found, KeptFindings
from ml_lifecycle.stages.monitor_traffic import RETURNED, first_and_last, span

_SCHEMA_ROWS = 1_000


@dataclass(frozen=True)
class Drift:
    """A window's findings about its data, its profile, and a sample of its rows, spread over it evenly."""

    findings: tuple[Finding, ...]
    profile: Profile | None = None
    sample: pl.DataFrame | None = None


def measure(
    lake: Lake,
    log: PredictionWindow,
    training: Training,
    segments: Segments,
    kept: KeptFindings,
    stretches: Sequence[Stretch],
) -> Drift:
    """Profile the rows that the training's model answered, and compare.

    :param stretches: where these are
    """
    try:
        reference = read_profile(lake.read_json(training.profile_path))
        known = known_segments(training, segments)
        profile, sample = _profile_window(log, training, known, kept, stretches)
        found = (
            *(
                Finding("segment", name, None, profile.rows, error="the model has no such column")
                for name in segments.keys() - known.keys()
            ),
            *schema_findings(training.columns, sample["features"].to_list()),
            *drift_findings(reference, profile),
        )
    except (OSError, NoSpaceError):
        raise  # the lake is unreachable or full: a retry helps
    except Exception as error:  # noqa: BLE001 - a broken reference or log is a finding, quality is still told
        return Drift((Finding("profile", None, None, 0, error=told(error)),))
    return Drift(found, profile, sample)


def known_segments(training: Training, segments: Segments) -> Segments:
    """Those of the model's own columns."""
    names = {column.name for column in training.columns}
    return {name: values for name, values in segments.items() if name in names}


def _profile_window(
    log: PredictionWindow,
    training: Training,
    segments: Segments,
    kept: KeptFindings,
    stretches: Sequence[Stretch],
) -> tuple[Profile, pl.DataFrame]:
    """Stretch by stretch: the profile, and a sample in the order of time, its features also as text."""
    total = profile_batches([], _profiled(training), segments)
    sample: pl.DataFrame | None = None
    for stretch in stretches:
        found = profiled_stretch(log, training, segments, kept, stretch)
        if found is None:
            continue
        total = merge(total, from_json(Profile, dict(found.told)))
        sample = found.rows if sample is None else smallest(pl.concat([sample, found.rows]))
    if sample is None:
        raise ProfileError("no row of the window can be read")
    return total, sample.sort(MOMENT, TURN)


def profiled_stretch(
    log: PredictionWindow, training: Training, segments: Segments, kept: KeptFindings, stretch: Stretch
) -> Found | None:
    """A stretch's profile and sample, kept or made now; None if none of its rows is in the window."""
    return kept.find(
        stretch,
        profile_kind(training, segments),
        lambda beyond: _profile_stretch(log, training, segments, stretch, beyond),
    )


def profile_kind(training: Training, segments: Segments) -> str:
    """What profiles of stretches depend on, beside their files, as they are kept by."""
    inputs = [training.model_digest, [asdict(one) for one in training.columns], dict(segments)]
    return f"profile-{digest_of([Profile.schema, *inputs])[:16]}"


def _profile_stretch(
    log: PredictionWindow, training: Training, segments: Segments, stretch: Stretch, beyond: bool
) -> Found:
    mine = RETURNED & (pl.col("model_digest") == training.model_digest)
    samples, moments = [], []

    def batches() -> Iterator[pl.DataFrame]:
        for number, batch in enumerate(log.feature_batches(mine, stretch, beyond=beyond)):
            moments.extend(span(batch[MOMENT]))
            unpacked = _unpack(batch, training.columns)
            turn = turns(strata(unpacked, training.columns, segments), f"{stretch.digest} {number}")
            samples.append(_sampled(batch.with_columns(turn), training.columns))
            yield unpacked

    profile = profile_batches(batches(), _profiled(training), segments)
    rows = smallest(pl.concat(samples)) if samples else pl.DataFrame()
    return Found(*first_and_last(moments), to_json(profile), rows)


def _profiled(training: Training) -> tuple[ColumnSpec, ...]:
    return (*training.columns, ColumnSpec(SCORE_COLUMN, "float", nullable=True))


def _sampled(batch: pl.DataFrame, columns: Sequence[ColumnSpec]) -> pl.DataFrame:
    """Rows whose turn it is first, with each feature as text beside ``features`` itself as JSON."""
    rows = smallest(batch)
    texts = as_text(rows["features"]).alias("features")
    unpacked = _unpack(rows, columns)
    return unpacked.select(pl.col(column.name).cast(pl.String) for column in columns).with_columns(
        texts, unpacked[SCORE_COLUMN], rows[MOMENT], rows[TURN]
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
    lake: Lake,
    path: str,
    training: Training,
    segments: Segments,
    sample: pl.DataFrame,
    findings: Sequence[Finding] = (),
) -> tuple[str | None, list[Finding]]:
    """Write Evidently's ``report.html`` and ``evidently.json``.

    :param segments: have the same shares in the sample of the training rows as in all of them

    :param findings: the window's; those of its columns stand in the report
    :returns: the page's path, None if it could not be made; and what it lacks and why
    """
    try:
        training_set = from_json(TrainingSet, lake.read_json(training.training_set_path))
        reference = _training_sample(lake, training_set, training, known_segments(training, segments))
        report = evidently.drift_report(reference, sample, training.columns, findings)
    except (OSError, NoSpaceError):
        raise  # the lake is unreachable or full: a retry helps
    except Exception as error:  # noqa: BLE001 - the page is to look at; its absence must not cost the findings
        text = f"no drift page: {told(error)}"
        return None, [Finding("evidently", None, None, sample.height, error=text)]
    lake.write_bytes(f"{path}/evidently.json", report.snapshot.encode())
    page = lake.write_bytes(f"{path}/report.html", report.html.encode())
    return page, [
        Finding("evidently", column, None, sample.height, error=f"left out of the report: {reason}")
        for column, reason in report.left_out.items()
    ]


def _training_sample(
    lake: Lake, training_set: TrainingSet, training: Training, segments: Segments
) -> pl.DataFrame:
    rows = lake.scan([training_set.train_path])
    made = strata(rows.select(*segments).collect(), training.columns, segments)
    if not segments:
        made = pl.zeros(training_set.train_rows, pl.UInt32, eager=True)
    chosen = smallest(pl.DataFrame(turns(made, training.digest)).with_row_index("row"))["row"].sort()
    return (
        rows.with_row_index("row")
        .join(chosen.to_frame().lazy(), on="row", maintain_order="left")
        .drop("row")
        .collect()
    )
