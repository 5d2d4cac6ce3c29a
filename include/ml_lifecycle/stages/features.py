"""Features: snapshot → training set, and rows to score.

**When a value counts.** A feature row is usable just *after* its event time, as everything here is usable
when it was known *before* the moment in question. Feast counts the instant itself too, so the moments
handed to it lie a microsecond earlier. A prediction for the moment t is then made from the same values
whether they are joined later for training, or materialised from ``[…, t)`` and read online at t.

**Which rows.** The holdout is the newest span whose labels are all known: it ends ``labels.delay`` before
the run's ``as_of``. Training rows end a second ``labels.delay`` before the holdout starts, so that no
label was known later than the first question of the holdout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.tables import TIMESTAMP, write_parquet
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.personal import personal_columns
from ml_lifecycle.records import (
    ColumnSpec,
    Interval,
    RowSlice,
    Snapshot,
    TrainingSet,
    digest_of,
    from_json,
    to_json,
)
from ml_lifecycle.spec.folder import ModelFolder, load_module
from ml_lifecycle.spec.model import Labels, ModelSpec
from ml_lifecycle.spec.types import format_duration
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    FeatureTables,
    build_tables,
    features_of,
    history_start,
    local_tables,
    sources_of,
)
from ml_lifecycle.stages.input_rules import InputProof

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features
    from ml_lifecycle.spark.session import SparkSession

ColumnType = Literal["float", "int", "string", "bool"]

_MOMENT = "event_timestamp"  # what Feast calls the moment of an entity row
# A model's input types, and what a missing value is in those that have one.
_TYPES: Mapping[ColumnType, pl.DataType] = {
    "float": pl.Float32(),
    "int": pl.Int64(),
    "string": pl.String(),
    "bool": pl.Boolean(),
}
_MISSING: Mapping[ColumnType, object] = {"float": float("nan"), "string": ""}


def build_training_set(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> TrainingSet:
    """Labels joined with the features as they were known at each label's event time.

    Beside the two files lies the registry that a server of the model resolves entity keys with, see
    :attr:`TrainingSet.registry_path`.

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
    spans = Spans.of(spec, run.as_of)
    training, holdout = spans.split(_known_labels(folder, lake, tables, run.as_of))
    personal = personal_columns(folder.contracts.values()) | proof.personal
    joined, registry = _join(session, lake, tables, features, spec.labels, pl.concat([training, holdout]))
    proof.add(joined)
    rows, columns = as_served(joined, features.columns())
    columns = tuple(replace(column, personal=column.name in personal) for column in proof.proved(columns))
    for name, part in (("train", rows.head(training.height)), ("holdout", rows.tail(holdout.height))):
        write_parquet(lake, f"{root}/{name}.parquet", part)
    training_set = TrainingSet(
        run=run,
        digest=digest,
        path=root,
        snapshot_digest=snapshot.digest,
        code_digest=folder.code_digest,
        train_path=f"{root}/train.parquet",
        holdout_path=f"{root}/holdout.parquet",
        train_rows=training.height,
        holdout_rows=holdout.height,
        train_end=spans.train.end,
        holdout=spans.holdout,
        columns=columns,
        label_column=spec.labels.column,
        entity_keys=spec.labels.keys,
        personal=tuple(sorted(personal.intersection(rows.columns))),
    )
    lake.write_bytes(training_set.registry_path, registry)
    if session is not None:
        from ml_lifecycle.spark.profiling import profile_training_rows

        profile_training_rows(session, lake, training_set, spec.monitoring.segments)
    lake.write_json(f"{root}/manifest.json", to_json(training_set))
    return training_set


def read_labels(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> pl.LazyFrame:
    """The labels table of a snapshot, as ``tables()`` made it."""
    tables = build_tables(folder, lake, snapshot)
    return lake.scan([tables.tables[folder.spec.labels.table]])


def entity_rows(folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval) -> pl.DataFrame:
    """What there is to predict in ``window``: entity keys and ``event_timestamp``, in that order.

    :raises FeatureError: ``features.py`` makes no table of them. Retry: no.
    """
    rows = _entities(folder, lake, snapshot, window).collect()
    return rows.sort(_MOMENT, *folder.spec.labels.keys)


def slice_rows(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval, rows: int
) -> tuple[RowSlice, ...]:
    """The entity rows of ``window`` in slices of at most ``rows``; none if there is nothing to predict.

    Hours go together while they are few, and one that has too many is cut by the order of its rows: to read a
    slice takes the keys of its hours, whatever the length of the window.

    :raises FeatureError: as for :func:`entity_rows`. Retry: no.
    """
    hour = pl.col(_MOMENT).dt.truncate("1h")
    counts = _entities(folder, lake, snapshot, window).group_by(hour).len().collect().sort(_MOMENT)
    slices: list[RowSlice] = []
    start, held = window.start, 0

    def cut(end: datetime) -> None:
        span = Interval(start, end)
        slices.extend(RowSlice(span, at, min(rows, held - at), held) for at in range(0, held, rows))

    for moment, count in counts.iter_rows():
        if held and held + count > rows:
            cut(moment)
            start, held = moment, 0
        held += count
    cut(window.end)
    return tuple(slices)


def _entities(folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval) -> pl.LazyFrame:
    table, labels = folder.spec.features.entities, folder.spec.labels
    sources = sources_of(folder, lake, snapshot, history_start(folder, window))
    made = load_module(folder.path, "features").tables(sources)
    if table not in made:
        raise FeatureError(
            f"tables() of features.py has no table {table!r} (features.entities in model.yaml), so it is not "
            f"known what to predict; it returns {sorted(made)}"
        )
    moment = pl.col(_MOMENT)
    rows: pl.LazyFrame = made[table].filter(moment >= window.start, moment < window.end)
    return rows.select(*labels.keys, moment.cast(TIMESTAMP))


def build_scoring_rows(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval
) -> tuple[pl.DataFrame, tuple[ColumnSpec, ...]]:
    """The window's entity rows joined with their features as they were known at each row's moment.

    :raises FeatureError: as for :func:`entity_rows` and :func:`build_training_set`. Retry: no.
    """
    with ScoringRows(folder, lake, snapshot) as rows:
        return rows.joined(entity_rows(folder, lake, snapshot, window))


class ScoringRows(AbstractContextManager["ScoringRows"]):
    """The rows to score, joined with their features slice by slice.

    The feature tables are computed, and fetched from a remote lake, with the first slice that is read; a join
    holds them in memory whole.
    """

    def __init__(self, folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> None:
        self.folder = folder
        self.snapshot = snapshot
        self._lake = lake
        self._opened = ExitStack()
        self._newest: tuple[Interval, pl.DataFrame] | None = None

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @cached_property
    def _store(self) -> tuple[Features, Any]:
        from ml_lifecycle.adapters.feast_repo import open_store

        features = features_of(self.folder)
        tables = build_tables(self.folder, self._lake, self.snapshot)
        path = self._opened.enter_context(local_tables(self._lake, tables))
        return features, open_store(features, path)

    def joined(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, tuple[ColumnSpec, ...]]:
        """Entity rows behind their features. Raises as :func:`build_scoring_rows`."""
        from ml_lifecycle.adapters.feast_repo import historical_features

        features, store = self._store
        moments = rows.with_columns(pl.col(_MOMENT) - INSTANT)
        found = historical_features(store, features.service, moments)
        return as_served(found.select(*features.columns()).hstack(rows), features.columns())

    def read(self, part: RowSlice) -> pl.DataFrame:
        """The rows of a slice. Raises as :func:`build_scoring_rows` and :meth:`keys`."""
        return self.joined(self.keys(part))[0]

    def keys(self, part: RowSlice) -> pl.DataFrame:
        """The entity rows of a slice.

        :raises FeatureError: the window has not as many rows as when it was sliced. Retry: no.
        """
        if self._newest is None or self._newest[0] != part.window:
            self._newest = None  # two windows' keys need not be held
            rows = entity_rows(self.folder, self._lake, self.snapshot, part.window)
            self._newest = part.window, rows
        rows = self._newest[1]
        if rows.height != part.of:
            raise FeatureError(
                f"from {part.window.start.isoformat()} to {part.window.end.isoformat()} there were {part.of} "
                f"rows to score when they were counted, and now there are {rows.height}: tables() of "
                f"features.py must make the same {self.folder.spec.features.entities!r} of the same "
                "sources, and of no more than features.lookback of them"
            )
        return rows.slice(part.first, part.rows)


@dataclass(frozen=True)
class Spans:
    """Which event times are trained on, and which are held out."""

    train: Interval
    holdout: Interval
    event_time: str
    known_at: str

    @classmethod
    def of(cls, spec: ModelSpec, as_of: datetime) -> Spans:
        """The spans of a training as of ``as_of``.

        :raises FeatureError: the data do not reach far enough back. Retry: no.
        """
        labels, data = spec.labels, spec.training.data
        holdout = Interval(as_of - labels.delay - data.holdout, as_of - labels.delay)
        train_end = holdout.start - labels.delay
        start = data.start if data.window is None else max(data.start, train_end - data.window)
        if start >= train_end:
            raise FeatureError(
                f"nothing to train on: rows count from {start.isoformat()}, but with a holdout of "
                f"{format_duration(data.holdout)} and labels that take {format_duration(labels.delay)} "
                f"they end at {train_end.isoformat()}; train later, or hold out less"
            )
        return cls(Interval(start, train_end), holdout, labels.event_time, labels.known_at)

    def split(self, labels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Training and holdout rows, ordered by event time.

        :raises FeatureError: one of them is empty. Retry: no.
        """
        event, known = pl.col(self.event_time), pl.col(self.known_at)
        training = labels.filter(
            event >= self.train.start, event < self.train.end, known < self.holdout.start
        )
        holdout = labels.filter(event >= self.holdout.start, event < self.holdout.end)
        for name, rows, span in (("training", training, self.train), ("holdout", holdout, self.holdout)):
            if rows.is_empty():
                first, last = labels[self.event_time].min(), labels[self.event_time].max()
                raise FeatureError(
                    f"no labelled row in the {name} span {span.start.isoformat()} to {span.end.isoformat()}; "
                    f"the labels known by then are for {first!s} to {last!s}"
                )
        return training, holdout


def _known_labels(folder: ModelFolder, lake: Lake, tables: FeatureTables, as_of: datetime) -> pl.DataFrame:
    """The labels known before ``as_of``, ordered by event time and keys."""
    labels = folder.spec.labels
    with lake.open(tables.tables[labels.table]) as file:
        frame = pl.read_parquet(file)
    needed = [labels.event_time, labels.known_at, labels.column, *labels.keys]
    if missing := [column for column in needed if column not in frame.columns]:
        raise FeatureError(
            f"table {labels.table!r} of features.py lacks the columns {missing} "
            "that labels: in model.yaml names"
        )
    moments = pl.col(labels.event_time, labels.known_at).cast(TIMESTAMP)
    return (
        frame.select(needed)
        .with_columns(moments)
        .filter(pl.col(labels.known_at) < as_of, pl.col(labels.column).is_not_null())
        .sort(labels.event_time, *labels.keys)
    )


def _join(
    session: SparkSession | None,
    lake: Lake,
    tables: FeatureTables,
    features: Features,
    labels: Labels,
    rows: pl.DataFrame,
) -> tuple[pl.DataFrame, bytes]:
    """The labels' rows behind their features, and the registry that the features were found by."""
    from ml_lifecycle.adapters.feast_repo import historical_features, open_store, registry_bytes

    columns = features.columns()
    if missing := [key for key in features.join_keys() if key not in labels.keys]:
        raise FeatureError(
            f"the feature service {features.service.name!r} looks features up by {missing} too: "
            "list them in labels.keys in model.yaml"
        )
    if clash := sorted(columns.keys() & {*labels.keys, labels.column, _MOMENT}):
        raise FeatureError(f"features {clash} are named like the label or an entity key: rename them")
    moments = pl.col(labels.event_time).alias(_MOMENT)
    asked = rows.select(*labels.keys, moments - INSTANT)
    if session is not None:
        from ml_lifecycle.spark import features as on_spark

        found = on_spark.historical_features(session, lake, tables.tables, features, asked)
        with tempfile.TemporaryDirectory(prefix="features-") as name:  # to register views, no table is read
            registry = registry_bytes(open_store(features, Path(name)))
    else:
        with local_tables(lake, tables) as path:
            store = open_store(features, path)
            found = historical_features(store, features.service, asked)
            registry = registry_bytes(store)
    # The join keeps rows and order, so the label need not go through Feast.
    joined = found.select(*columns).hstack(rows.select(labels.column, moments, *labels.keys))
    return joined, registry


def as_served(
    rows: pl.DataFrame, columns: Mapping[str, ColumnType]
) -> tuple[pl.DataFrame, tuple[ColumnSpec, ...]]:
    """The features in the types, and with the missing values, that a server will see; and their specs.

    :raises FeatureError: a value is missing that its type cannot leave out. Retry: no.
    """
    typed = []
    for name, kind in columns.items():
        values = pl.col(name).cast(_TYPES[kind])
        if kind in _MISSING:
            values = values.fill_null(_MISSING[kind])
        elif nulls := rows[name].null_count():
            raise FeatureError(
                f"feature {name!r} is {kind} and has no value in {nulls} of {rows.height} rows, which that "
                "type cannot hold: declare it Float32, or fill it in tables()"
            )
        typed.append(values)
    specs = (ColumnSpec(name, kind, nullable=kind in _MISSING) for name, kind in columns.items())
    return rows.with_columns(typed), tuple(specs)
