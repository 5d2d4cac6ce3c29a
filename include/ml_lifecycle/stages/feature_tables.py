"""What ``features.py`` makes of a snapshot: one frame a feature table, and Feast over them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import polars as pl

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.local_files import PIECE, no_room_said
from ml_lifecycle.adapters.newest import newest
from ml_lifecycle.adapters.parquet import ROW_GROUP_ROWS, parquet_rows, write_batches, write_queries
from ml_lifecycle.adapters.tables import read_table
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.personal import personal_columns
from ml_lifecycle.records import Interval, Record, Snapshot, digest_of, from_json, to_json
from ml_lifecycle.spec.feature_tags import personal_features
from ml_lifecycle.spec.folder import ModelFolder, load_module

if TYPE_CHECKING:
    from ml_lifecycle.adapters.feast_repo import Features

INSTANT = timedelta(microseconds=1)
MOMENT = "event_timestamp"
"""What Feast calls the moment of an entity row."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def personal_names(folder: ModelFolder, features: Features) -> frozenset[str]:
    """Fields that the folder's contracts mark ``pii``, and features that hold one, whatever they are called.

    :raises TagError: a feature's tag names no field, or one that it cannot hold. Retry: no.
    """
    contracts = folder.contracts.values()
    return personal_columns(contracts) | personal_features(features.tags(), contracts)


@dataclass(frozen=True)
class FeatureTables(Record):
    """The frames of ``tables()``, one Parquet file each.

    :param tables: table → path
    :param rows: table → rows
    """

    schema: ClassVar[str] = "feature_tables/1"
    digest: str
    path: str
    snapshot_digest: str
    code_digest: str
    tables: dict[str, str]
    rows: dict[str, int]


def build_tables(folder: ModelFolder, lake: Lake, snapshot: Snapshot) -> FeatureTables:
    """Compute ``features.py``'s tables from all of the snapshot, once for each snapshot and code.

    Tables of business metrics are made if there are such: what only the watch reads must not stop a training.

    :raises FeatureError: ``tables()`` lacks a table or a column. Retry: no.
    """
    digest = digest_of({"snapshot": snapshot.digest, "code": folder.code_digest})
    root = f"features/{folder.spec.name}/{digest}"
    if lake.exists(f"{root}/manifest.json"):
        return from_json(FeatureTables, lake.read_json(f"{root}/manifest.json"))
    features = features_of(folder)
    names = [*features.source_tables(), folder.spec.labels.table]
    business = {metric.table for metric in folder.spec.delivery.watch.business.values() if metric.table}
    queries = feature_queries(folder, features, sources_of(folder, lake, snapshot), names, sorted(business))
    paths = {name: f"{root}/{name}.parquet" for name in queries}
    write_queries(lake, {paths[name]: query for name, query in queries.items()})
    tables = FeatureTables(
        digest=digest,
        path=root,
        snapshot_digest=snapshot.digest,
        code_digest=folder.code_digest,
        tables=paths,
        rows={name: parquet_rows(lake, path) for name, path in paths.items()},
    )
    lake.write_json(f"{root}/manifest.json", to_json(tables))
    return tables


def features_of(folder: ModelFolder) -> Features:
    """The Feast objects of the folder's ``features.py``."""
    from ml_lifecycle.adapters.feast_repo import Features

    module = load_module(folder.path, "features")
    return Features.of(module, folder.spec.name, folder.spec.features.service)


def sources_of(
    folder: ModelFolder, lake: Lake, snapshot: Snapshot, start: datetime | None = None
) -> dict[str, pl.LazyFrame]:
    """The snapshot's tables; with ``start``, only events from then on."""
    frames = {name: read_table(lake, snapshot, name) for name in snapshot.tables}
    for name, source in folder.spec.sources.items():
        if start is not None and source.event_time is not None:
            frames[name] = frames[name].filter(pl.col(source.event_time) >= start)
    return frames


def history_start(folder: ModelFolder, window: Interval) -> datetime | None:
    """From where on events matter to the window's features; None is from the beginning."""
    lookback = folder.spec.features.lookback
    return None if lookback is None or window.start - BEGINNING < lookback else window.start - lookback


def make_frames(
    folder: ModelFolder,
    features: Features,
    sources: Mapping[str, pl.LazyFrame],
    names: Collection[str],
) -> dict[str, pl.DataFrame]:
    """Compute the tables ``names``, each with the columns and types its feature views declare."""
    queries = feature_queries(folder, features, sources, names)
    return dict(zip(queries, pl.collect_all([*queries.values()]), strict=True))


def feature_queries(
    folder: ModelFolder,
    features: Features,
    sources: Mapping[str, pl.LazyFrame],
    names: Collection[str],
    optional: Collection[str] = (),
) -> dict[str, pl.LazyFrame]:
    """What makes the tables ``names``, each with the columns and types its feature views declare.

    :param optional: further ones, which may be missing
    :raises FeatureError: ``tables()`` lacks a table or a column. Retry: no.
    """
    declared = features.source_tables()
    made = load_module(folder.path, "features").tables(sources)
    if missing := sorted(set(names) - made.keys()):
        raise FeatureError(f"tables() of features.py lacks {missing}; it returns {sorted(made)}")
    names = [*names, *(name for name in optional if name in made and name not in names)]
    queries = {}
    for name in names:
        present = made[name].collect_schema().names()
        columns = declared.get(name, {})
        if lacking := [column for column in columns if column not in present]:
            raise FeatureError(f"table {name!r} of features.py lacks the columns {lacking}; it has {present}")
        typed = [pl.col(column).cast(dtype) for column, dtype in columns.items()]
        queries[name] = made[name].select(typed) if name in declared else made[name]
    return queries


@contextmanager
def local_tables(lake: Lake, tables: FeatureTables, only: Collection[str] | None = None) -> Iterator[Path]:
    """A folder that holds the tables as ``<name>.parquet``: the lake's own, or a copy of a remote one's.

    :param only: the tables that are needed, all if not given
    """
    with tempfile.TemporaryDirectory(prefix="features-") as name:
        for table in tables.tables if only is None else only:
            path = tables.tables[table]
            target = Path(name) / f"{table}.parquet"
            if lake.local_root is not None:
                target.symlink_to(Path(lake.full_path(path)).absolute())
            else:
                with lake.open(path) as source, no_room_said(target), target.open("wb") as file:
                    shutil.copyfileobj(source, file, PIECE)
        yield Path(name)


@contextmanager
def tables_within(features: Features, folder: Path, window: Interval) -> Iterator[Path]:
    """A folder with tables that answer as those in ``folder`` do, for moments in a window.

    Of what was before it they hold the newest row of each key.
    """
    with tempfile.TemporaryDirectory(prefix="features-") as name:
        lake = Lake(name)
        for table in features.source_tables():
            file = f"{table}.parquet"
            views = [view for view in features.views if view.batch_source.name == table]
            if len(views) > 1:  # each with keys of its own
                Path(name, file).symlink_to(folder / file)
                continue
            rows = pl.scan_parquet(folder / file)
            order = features.order_of(views[0])
            event = pl.col(order[0])
            before = features.counting(table, rows, window.start - INSTANT)
            within = rows.filter(event >= window.start, event < window.end)
            parts = chain(
                newest(before, features.keys_in_source(views[0]), order),
                within.collect_batches(chunk_size=ROW_GROUP_ROWS, engine="streaming"),
            )
            write_batches(lake, file, rows.collect_schema(), parts)
        yield Path(name)
