"""Features: snapshot → training set.

**When a value counts.** A feature row is usable just *after* its event time, as everything here is usable
when it was known *before* the moment in question. Feast counts the instant itself too, so the moments
handed to it lie a microsecond earlier. A prediction for the moment t is then made from the same values
whether they are joined later for training, or materialised from ``[…, t)`` and read online at t.

**Which rows.** The holdout is the newest span whose labels are all known: it ends ``labels.delay`` before
the run's ``as_of``. Training rows end a second ``labels.delay`` before the holdout starts, so that no
label was known later than the first question of the holdout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import write_batches
from ml_lifecycle.personal import personal_columns
from ml_lifecycle.profiles.profiling import Profiling
from ml_lifecycle.records import Snapshot, TrainingSet, digest_of, from_json, to_json
from ml_lifecycle.spec.folder import ModelFolder
from ml_lifecycle.stages.feature_tables import build_tables, features_of
from ml_lifecycle.stages.input_rules import InputProof
from ml_lifecycle.stages.served_features import batches_as_served, served_specs, served_types
from ml_lifecycle.stages.training_rows import Spans, joined_rows, labelled_rows
from ml_lifecycle.stages.validation_facts import in_pieces


def build_training_set(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> TrainingSet:
    """Labels joined with the features as they were known at each label's event time.

    Beside the two files lie the registry that a server of the model resolves entity keys with, and the
    training rows' profile, made while they are written; see :class:`TrainingSet`.

    :raises FeatureError: a table or column is missing, or a span has no labelled row; or a feature's tag
        names no contract field, or one whose rules its values break. Retry: no.
    :raises SparkElsewhereError: an application is to do this. Retry: no, run it.
    """
    run, spec = snapshot.run, folder.spec
    digest = digest_of(
        {"snapshot": snapshot.digest, "code": folder.code_digest, "as_of": run.as_of.isoformat()}
    )
    root = f"training_sets/{spec.name}/{digest}"
    if lake.exists(f"{root}/manifest.json"):
        return replace(from_json(TrainingSet, lake.read_json(f"{root}/manifest.json")), run=run)

    session = None
    if spec.engine == "spark":
        from ml_lifecycle.spark.job import Job
        from ml_lifecycle.spark.session import session_for

        session = session_for(spec.spark, lake, Job("features", {"snapshot": to_json(snapshot)}))
    features = features_of(folder)
    proof = InputProof(features.tags(), folder.contracts.values())
    tables = build_tables(folder, lake, snapshot)
    labels, spans = spec.labels, Spans.of(spec, run.as_of)
    inputs = features.columns()
    personal = personal_columns(folder.contracts.values()) | proof.personal
    columns = tuple(replace(one, personal=one.name in personal) for one in served_specs(inputs))
    segments = {name: values for name, values in spec.monitoring.segments.items() if name in inputs}
    profiling = Profiling(columns, segments)
    with (
        labelled_rows(lake, tables, labels, spans, run.as_of) as labelled,
        joined_rows(session, lake, tables, features, labels, labelled) as (joined, registry),
    ):
        schema = pl.Schema({**served_types(inputs), **labelled.rows.collect_schema()})
        rows = _Taken(in_pieces(batches_as_served(_seen(joined, proof.add), inputs)))
        training = _seen(rows.take(labelled.training), profiling.add)
        for name, part in (("train", training), ("holdout", rows.take(labelled.holdout))):
            write_batches(lake, f"{root}/{name}.parquet", schema, part)
    training_set = TrainingSet(
        run=run,
        digest=digest,
        path=root,
        snapshot_digest=snapshot.digest,
        code_digest=folder.code_digest,
        train_path=f"{root}/train.parquet",
        holdout_path=f"{root}/holdout.parquet",
        train_rows=labelled.training,
        holdout_rows=labelled.holdout,
        train_end=spans.train.end,
        holdout=spans.holdout,
        columns=proof.proved(columns),
        label_column=labels.column,
        entity_keys=labels.keys,
        personal=tuple(sorted(personal.intersection(schema))),
    )
    lake.write_bytes(training_set.registry_path, registry)
    lake.write_json(training_set.profile_path, to_json(profiling.profile()))
    lake.write_json(f"{root}/manifest.json", to_json(training_set))
    return training_set


def read_labels(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> pl.LazyFrame:
    """The labels table of a snapshot, as ``tables()`` made it."""
    tables = build_tables(folder, lake, snapshot)
    return lake.scan([tables.tables[folder.spec.labels.table]])


class _Taken:
    """Frames whose rows are taken some at a time."""

    def __init__(self, frames: Iterator[pl.DataFrame]) -> None:
        self._frames = frames
        self._held = pl.DataFrame()

    def take(self, rows: int) -> Iterator[pl.DataFrame]:
        """The next so many rows, in frames as they come."""
        while rows:
            frame = self._held if self._held.height else next(self._frames)
            self._held = frame[rows:]
            rows -= min(rows, frame.height)
            yield frame.head(frame.height - self._held.height)


def _seen(frames: Iterable[pl.DataFrame], see: Callable[[pl.DataFrame], None]) -> Iterator[pl.DataFrame]:
    for frame in frames:
        see(frame)
        yield frame
