"""What an online store was given last, remembered in that store itself.

A store that is emptied, or restored from a backup, then tells no more than it holds. The memory is one row
of a feature view in a project of its own, written after all else: a materialisation that is interrupted
leaves the former one, and the next one writes again whatever that one had begun. Newest wins here too.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import String

from ml_lifecycle.adapters.feast_repo import Features, materialise, open_store, repo_config
from ml_lifecycle.errors import OnlineStoreUnavailableError

_TIMESTAMP = pl.Datetime("us", "UTC")
_EVENT, _KNOWN_BY = "event_timestamp", "__known_by"
_VIEW, _ROW = "materialised", {"which": "last"}


@dataclass(frozen=True)
class Written:
    """A materialisation: everything that the snapshot says as of the moment was offered to the store."""

    snapshot_path: str
    code_digest: str
    as_of: datetime


class OnlineWriter:
    """Writes feature rows to one online store.

    :param folder: an empty folder, for the repositories
    :param online_store: URL, ``sqlite:////absolute/path.db``
    :raises OnlineStoreUnavailableError: it cannot be opened, read or written now. Retry: yes.
    """

    def __init__(self, features: Features, folder: Path, online_store: str) -> None:
        self._features = features
        self._folder = folder
        self._online_store = online_store
        self._memory = folder / "memory"
        self._memory.mkdir()
        config = repo_config(f"{features.project}__state", self._memory, online_store)
        self._store = FeatureStore(config=config)
        with self._available():
            self._store.apply([_WHICH, _WRITTEN])

    def last(self) -> Written | None:
        """The newest materialisation that was finished; None if there is none."""
        names = ("snapshot_path", "code_digest", "as_of")
        with self._available():
            found = self._store.get_online_features(
                features=[f"{_VIEW}:{name}" for name in names], entity_rows=[_ROW]
            ).to_dict()
        snapshot_path, code_digest, as_of = (found[name][0] for name in names)
        return as_of and Written(snapshot_path, code_digest, datetime.fromisoformat(as_of))

    def write(self, frames: Mapping[str, pl.DataFrame], written: Written) -> None:
        """Write each table's rows, then remember that ``written`` was.

        Of two values of the same event the one known later stays, unless its source says itself, by a
        created timestamp, which one counts.
        """
        for table, frame in frames.items():
            _stamped(frame, written.as_of).write_parquet(self._folder / f"{table}.parquet")
        before = written.as_of - timedelta.resolution
        with self._available():
            store = open_store(_with_known_by(self._features), self._folder, self._online_store)
            materialise(store, _BEGINNING, before)
        row = {**_ROW, "snapshot_path": written.snapshot_path, "code_digest": written.code_digest}
        frame = pl.DataFrame({**row, "as_of": written.as_of.isoformat(), _EVENT: before})
        frame.with_columns(pl.col(_EVENT).cast(_TIMESTAMP)).write_parquet(self._memory / f"{_VIEW}.parquet")
        with self._available():
            materialise(self._store, _BEGINNING, before)

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = "; is there room on its disk?" if "disk" in str(error) else ""
            raise OnlineStoreUnavailableError(
                f"the online store {self._online_store} cannot be used now: {error}{hint}"
            ) from error


_BEGINNING = datetime.fromisoformat("1970-01-01T00:00:00Z")
_WHICH = Entity(name="which", join_keys=["which"], value_type=ValueType.STRING)
_WRITTEN = FeatureView(
    name=_VIEW,
    entities=[_WHICH],
    schema=[Field(name=name, dtype=String) for name in ("snapshot_path", "code_digest", "as_of")],
    source=FileSource(name=_VIEW, path=f"{_VIEW}.parquet", timestamp_field=_EVENT),
)


def _stamped(frame: pl.DataFrame, known_by: datetime) -> pl.DataFrame:
    return frame.with_columns(pl.lit(known_by).cast(_TIMESTAMP).alias(_KNOWN_BY))


def _with_known_by(features: Features) -> Features:
    """The same features from sources that say when a row was known, where they do not say it themselves."""
    views = []
    for view in features.views:
        source = view.batch_source
        if not source.created_timestamp_column:
            view = copy.copy(view)
            view.batch_source = FileSource(
                name=source.name,
                path=source.path,
                timestamp_field=source.timestamp_field,
                created_timestamp_column=_KNOWN_BY,
                field_mapping=source.field_mapping,
            )
        views.append(view)
    return replace(features, views=tuple(views))
