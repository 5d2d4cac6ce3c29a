"""What the offline store has for requests that were served: Feast's own join, and the rows it chose from.

Only the rows of the asked keys are copied from the tables, so that some requests cost little however long the
tables are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

import polars as pl
from feast import FeatureView

from ml_lifecycle.adapters.feast_repo import Features, historical_features, open_store
from ml_lifecycle.adapters.feast_store import source_columns, time_columns

_ASKED, _MOMENT = "__asked", "event_timestamp"


@dataclass(frozen=True)
class Event:
    """A row of a view's table.

    :param created: when it became known, if its table says so
    :param values: feature → value
    """

    at: datetime
    created: datetime | None
    values: Mapping[str, object]


@dataclass(frozen=True)
class View:
    """A view of the service.

    :param made_from: the stored views of an on-demand one
    :param columns: join keys and features → where the table has them; none of an on-demand one
    """

    name: str
    features: tuple[str, ...]
    lifetime: timedelta | None
    made_from: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None


class OfflineRows:
    """The offline store at the rows that were asked for.

    :param tables: each feature table's rows, as ``tables()`` of the model folder made them
    :param asked: the service's join keys as they were sent, and ``event_timestamp``, the last moment at which
        a row counts
    """

    def __init__(self, features: Features, tables: Mapping[str, pl.LazyFrame], asked: pl.DataFrame) -> None:
        self._features = features
        self._asked = asked.with_columns(
            pl.col(name).cast(dtype, strict=False) for name, dtype in key_types(features).items()
        )
        self._rows = self._copy(tables)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The service's views in order."""
        stored = {view.name: view for view in self._features.views}
        derived = {view.name: view for view in self._features.on_demand}
        found = []
        for projection in self._features.service.feature_view_projections:
            names = tuple(field.name for field in projection.features)
            if (view := stored.get(projection.name)) is None:
                sources = derived[projection.name].source_feature_view_projections
                found.append(View(projection.name, names, None, tuple(sources)))
                continue
            in_source = source_columns(view.batch_source)
            places = {name: in_source.get(name, name) for name in (*names, *self._features.keys_of(view))}
            found.append(View(view.name, names, view.ttl or None, columns=places))
        return tuple(found)

    def joined(self) -> pl.DataFrame:
        """Feast's point-in-time join of the asked rows, in their order: the service's features."""
        with tempfile.TemporaryDirectory(prefix="replay-") as name:
            for table, rows in self._rows.items():
                rows.write_parquet(Path(name) / f"{table}.parquet")
            store = open_store(self._features, Path(name))
            found = historical_features(store, self._features.service, self._asked)
        return found.select(*self._features.columns())

    def events(self, name: str, row: int) -> list[Event]:
        """The rows of a stored view's table with an asked row's keys, in the order in which they count."""
        view = next(one for one in self._features.views if one.name == name)
        described = next(one for one in self.views if one.name == name)
        assert described.columns is not None, "a stored view"
        source, rows = view.batch_source, self._rows[view.batch_source.name]
        for key, asked in self._asked_by(view).items():
            rows = rows.filter(pl.col(key) == pl.lit(self._asked[asked][row], self._asked[asked].dtype))
        event, created = time_columns(source)
        rows = rows.sort([event, *([created] if created else [])], maintain_order=True, nulls_last=False)
        return [
            Event(
                one[event],
                one[created] if created else None,
                {feature: one[described.columns[feature]] for feature in described.features},
            )
            for one in rows.to_dicts()
        ]

    def _asked_by(self, view: FeatureView) -> dict[str, str]:
        """Key column of a view's table → the name it is asked for by."""
        in_source, names = source_columns(view.batch_source), _key_names(self._features, view)
        return {in_source.get(key, key): names[key] for key in self._features.keys_of(view)}

    def _copy(self, tables: Mapping[str, pl.LazyFrame]) -> dict[str, pl.DataFrame]:
        served = {one.name for one in self._features.service.feature_view_projections}
        served |= {source for view in self.views for source in view.made_from}
        by_table: dict[str, list[FeatureView]] = {}
        for view in self._features.views:
            by_table.setdefault(view.batch_source.name, []).append(view)
        wanted = []
        for table, views in by_table.items():
            used = [view for view in views if view.name in served]
            rows = tables[table]
            if len(used) < 2:
                wanted.append(self._of_keys(rows, used[0]) if used else rows.clear())
                continue
            numbered = rows.with_row_index(_ASKED)
            parts = [self._of_keys(numbered, view) for view in used]
            wanted.append(pl.concat(parts).unique(_ASKED).sort(_ASKED).drop(_ASKED))
        return dict(zip(by_table, pl.collect_all(wanted), strict=True))

    def _of_keys(self, rows: pl.LazyFrame, view: FeatureView) -> pl.LazyFrame:
        """A table's rows that may say something about an asked one."""
        first = self._asked[_MOMENT].min()
        if view.ttl and isinstance(first, datetime):
            rows = rows.filter(pl.col(time_columns(view.batch_source)[0]) >= first - 2 * view.ttl)
        if keys := self._asked_by(view):
            asked = self._asked.lazy().select(pl.col(name).alias(key) for key, name in keys.items())
            rows = rows.join(asked.unique(), on=[*keys], how="semi", maintain_order="left")
        return rows


def key_types(features: Features) -> dict[str, pl.DataType]:
    """The names that the service's entities are asked by, with the types they are looked up in."""
    types: dict[str, pl.DataType] = {}
    for view in features.views:
        names = _key_names(features, view)
        types |= {names[key]: dtype for key, dtype in features.keys_of(view).items()}
    return {name: types[name] for name in features.join_keys()}


def _key_names(features: Features, view: FeatureView) -> dict[str, str]:
    renamed: Mapping[str, str] = {}
    for projection in features.service.feature_view_projections:
        if projection.name == view.name:
            renamed = projection.join_key_map
    return {key: renamed.get(key, key) for key in features.keys_of(view)}


def masked_features(features: Features, hidden: Sequence[str]) -> frozenset[str]:
    """The features and join keys that a table has under one of these names, or that are called so."""
    names = set(hidden)
    for view in features.views:
        in_source, asked = source_columns(view.batch_source), _key_names(features, view)
        for name in (*(field.name for field in view.schema), *asked):
            if {name, in_source.get(name, name)} & names:
                names |= {name, asked.get(name, name)}
    return frozenset(names)
