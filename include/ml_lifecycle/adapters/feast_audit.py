"""Does the online store hold what the offline join says? Asked of sampled keys, a view at a time."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from feast import FeatureStore, FeatureView

from ml_lifecycle.adapters.feast_repo import Features, historical_features
from ml_lifecycle.adapters.feast_store import source_columns, time_columns
from ml_lifecycle.personal import masked

_RELATIVE = 1e-6  # Float32 values are rounded once more on their way through the online store


@dataclass(frozen=True)
class Difference:
    """One value that differs; ``feature`` is ``view:feature``."""

    feature: str
    key: dict[str, object]
    online: object
    offline: object

    def shown(self, personal: Collection[str]) -> str:
        """In words, without the values of columns that hold personal data."""
        name = self.feature.split(":", 1)[1]
        online, offline = (masked({name: value}, personal)[name] for value in (self.online, self.offline))
        return f"{self.feature} of {masked(self.key, personal)}: {online!r} online, {offline!r} offline"


def compare(
    store: FeatureStore, features: Features, moment: datetime, sample: int, seed: int
) -> tuple[int, list[Difference]]:
    """How many values were compared, and those that differ.

    Online values past their view's time to live at ``moment`` count as missing, as they do offline.
    """
    compared = 0
    differences: list[Difference] = []
    for view in features.views:
        keys = _sample(store, view, [*features.keys_of(view)], moment, sample, seed)
        if keys.is_empty():
            continue
        refs = [f"{view.name}:{field.name}" for field in view.features]
        offline = historical_features(store, refs, keys.with_columns(pl.lit(moment).alias("event_timestamp")))
        online = _online(store, view, refs, keys, moment)
        for field in view.features:
            values = zip(keys.to_dicts(), online[field.name], offline[field.name].to_list(), strict=True)
            differences += [
                Difference(f"{view.name}:{field.name}", key, mine, theirs)
                for key, mine, theirs in values
                if not _same(mine, theirs)
            ]
            compared += keys.height
    return compared, differences


def _sample(
    store: FeatureStore, view: FeatureView, keys: list[str], moment: datetime, size: int, seed: int
) -> pl.DataFrame:
    """Distinct keys of the view's table that were known by ``moment``."""
    source = view.batch_source
    in_source = source_columns(source)
    rows = pl.scan_parquet(store.config.repo_path / source.path).filter(
        pl.col(time_columns(source)[0]) <= moment
    )
    found = (
        rows.select(pl.col(in_source.get(key, key)).alias(key) for key in keys)
        .drop_nulls()
        .unique()
        .collect()
    )
    found = found.sort(keys) if keys else found
    return found.sample(min(size, found.height), seed=seed, shuffle=True)


def _online(
    store: FeatureStore, view: FeatureView, refs: list[str], keys: pl.DataFrame, moment: datetime
) -> dict[str, list[object]]:
    response = store.get_online_features(features=refs, entity_rows=keys.to_dicts())
    values: dict[str, list[object]] = response.to_dict()
    if not view.ttl:
        return values
    oldest = moment - view.ttl
    for name, vector in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True):
        if name in keys.columns:
            continue
        values[name] = [
            None if stamp.ToDatetime(tzinfo=oldest.tzinfo) < oldest else value
            for value, stamp in zip(values[name], vector.event_timestamps, strict=True)
        ]
    return values


def _same(online: object, offline: object) -> bool:
    if isinstance(online, float) and isinstance(offline, float):
        both_missing = math.isnan(online) and math.isnan(offline)
        return both_missing or math.isclose(online, offline, rel_tol=_RELATIVE, abs_tol=1e-12)
    if isinstance(online, list) and isinstance(offline, list):
        return len(online) == len(offline) and all(map(_same, online, offline))
    if isinstance(online, datetime) and isinstance(offline, datetime):
        return abs(online - offline) < timedelta(seconds=1)  # Feast's own conversion cuts them to seconds
    return online == offline
