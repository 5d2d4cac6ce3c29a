"""Rows to score: what there is to predict, in slices, joined with its features as of each row's moment.

When a value counts is what :mod:`.features` says, for training and here alike.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from ml_lifecycle.adapters.as_of import in_microseconds
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnSpec, Interval, RowSlice, Snapshot
from ml_lifecycle.spec.folder import ModelFolder, load_module
from ml_lifecycle.stages.feature_tables import (
    INSTANT,
    MOMENT,
    build_tables,
    features_of,
    history_start,
    local_tables,
    sources_of,
    tables_within,
)
from ml_lifecycle.stages.served_features import as_served, served_specs

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features


def entity_rows(folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval) -> pl.DataFrame:
    """What there is to predict in ``window``: entity keys and ``event_timestamp``, in that order.

    :raises FeatureError: ``features.py`` makes no table of them. Retry: no.
    """
    rows = _entities(folder, lake, snapshot, window).collect()
    return rows.sort(MOMENT, *folder.spec.labels.keys)


def slice_rows(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval, rows: int
) -> tuple[RowSlice, ...]:
    """The entity rows of ``window`` in slices of at most ``rows``; none if there is nothing to predict.

    Hours go together while they are few, and one that has too many is cut by the order of its rows: to read a
    slice takes the keys of its hours, whatever the length of the window.

    :raises FeatureError: as for :func:`entity_rows`. Retry: no.
    """
    hour = pl.col(MOMENT).dt.truncate("1h")
    counts = _entities(folder, lake, snapshot, window).group_by(hour).len().collect().sort(MOMENT)
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
    rows: pl.LazyFrame = made[table]
    moment = in_microseconds(MOMENT, rows.collect_schema().get(MOMENT))  # whatever zone they are in
    within = rows.filter(moment >= window.start, moment < window.end)
    return within.select(*labels.keys, moment)


def build_scoring_rows(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval
) -> tuple[pl.DataFrame, tuple[ColumnSpec, ...]]:
    """The window's entity rows joined with their features as they were known at each row's moment.

    :raises FeatureError: as for :func:`entity_rows` and :func:`~.features.build_training_set`. Retry: no.
    """
    with ScoringRows(folder, lake, snapshot) as rows:
        return rows.joined(entity_rows(folder, lake, snapshot, window))


class ScoringRows(AbstractContextManager["ScoringRows"]):
    """The rows to score, joined with their features slice by slice.

    The feature tables are computed, and fetched from a remote lake, with the first slice that is read. A join
    holds a slice and some parts of them (:mod:`ml_lifecycle.adapters.as_of`), whatever their length.

    :param window: where all slices lie, if there are several: what they are looked up in is made once, and
        not every slice reads a long history anew
    """

    def __init__(
        self, folder: ModelFolder, lake: Lake, snapshot: Snapshot, window: Interval | None = None
    ) -> None:
        self.folder = folder
        self.snapshot = snapshot
        self._lake = lake
        self._window = window
        self._opened = ExitStack()
        self._newest: tuple[Interval, pl.DataFrame] | None = None

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @cached_property
    def _store(self) -> tuple[Features, Any]:
        from ml_lifecycle.adapters.feast_repo import open_store

        features = features_of(self.folder)
        tables = build_tables(self.folder, self._lake, self.snapshot)
        path = self._opened.enter_context(local_tables(self._lake, tables, features.source_tables()))
        if self._window is not None:
            path = self._opened.enter_context(tables_within(features, path, self._window))
        return features, open_store(features, path)

    def joined(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, tuple[ColumnSpec, ...]]:
        """Entity rows behind their features. Raises as :func:`build_scoring_rows`."""
        from ml_lifecycle.adapters.feast_repo import historical_features

        features, store = self._store
        moments = rows.with_columns(pl.col(MOMENT) - INSTANT)
        found = historical_features(store, features.service, moments)
        columns = features.columns()
        served = as_served(found.select(*columns).hstack(rows), columns)
        return served, served_specs(columns)

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
