"""The ledger of what an online store was given, kept in that store itself.

A store that is emptied, or restored from a backup, then tells no more than it holds. The ledger is rows of a
feature view in a project of its own: the window that was begun last, the one that was finished last, and
every finished one by its end. A materialisation that is interrupted has begun and not finished; the next one
writes again whatever it had to write. Newest wins here too.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.feature_view import DUMMY_ENTITY_ID
from feast.type_map import feast_value_type_to_python_type
from feast.types import String

from ml_lifecycle.adapters.feast_bulk import EVENT, bulk_writer, newest_rows, rows_of, stored_views
from ml_lifecycle.adapters.feast_online import microseconds
from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import (
    Features,
    open_store,
    registry_bytes,
    repo_config,
    without_password,
)
from ml_lifecycle.adapters.feast_values import values_of
from ml_lifecycle.errors import CanaryError, OnlineStoreUnavailableError
from ml_lifecycle.personal import masked

_VIEW, _LAST, _BEGUN = "materialised", "last", "begun"
_FIELDS = ("snapshot_path", "code_digest", "as_of", "since", "newest")
_TIME = "event_timestamp"
_CANARIES = 10  # rows of each view that are read back


@dataclass(frozen=True)
class Written:
    """A materialisation: everything that the snapshot says as of the moment was offered to the store.

    :param since: the moment of the finished one before it; None if the store knew of none
    :param newest: feature view → its newest event; those of a finished one
    """

    snapshot_path: str
    code_digest: str
    as_of: datetime
    since: datetime | None = None
    newest: Mapping[str, datetime] = field(default_factory=dict)


class OnlineWriter:
    """Writes feature rows to one online store.

    :param folder: an empty folder, for the repositories
    :param online_store: URL, ``sqlite:////absolute/path.db`` or ``redis://host:port/database``
    :param personal: columns whose values stand in no error
    :raises OnlineStoreUnavailableError: it cannot be opened, read or written now. Retry: yes.
    """

    def __init__(
        self, features: Features, folder: Path, online_store: str, personal: Collection[str] = ()
    ) -> None:
        self._features, self._personal = features, personal
        self._online_store, self._shown = online_store, without_password(online_store)
        memory = folder / "memory"
        memory.mkdir()
        with self._available():
            self._store = open_store(features, folder, online_store)
            self._memory = FeatureStore(
                config=repo_config(f"{features.project}__state", memory, online_store)
            )
            self._memory.apply([_WHICH, _WRITTEN])
            self._rows = bulk_writer(self._store.config)
            self._ledger = bulk_writer(self._memory.config)

    def close(self) -> None:
        """Close the connections to the store."""
        self._rows.close()
        self._ledger.close()
        for store in (self._store, self._memory):
            asyncio.run(store.close())

    def last(self) -> Written | None:
        """The newest materialisation that was finished; None if there is none."""
        return self._noted(_LAST)

    def begun(self) -> Written | None:
        """The newest materialisation that was begun, be it finished or not."""
        return self._noted(_BEGUN)

    def windows(self) -> Iterator[Written]:
        """The finished materialisations from the last one back to the first, whatever code they were by."""
        window = self.last()
        while window is not None:
            yield window
            window = self._noted(window.since.isoformat()) if window.since is not None else None

    def write(
        self, newest: Mapping[str, pl.LazyFrame], known: Mapping[str, pl.LazyFrame], written: Written
    ) -> dict[str, int]:
        """Write each view's newest rows, read some of them back, then note that ``written`` was.

        Of two values of the same event the one known later stays, unless its source says itself, by a
        created timestamp, which one counts.

        :param newest: feature view → rows of its table, the newest of each key among them
        :param known: the same of rows that need not be written again; empty if there are none
        :return: view → rows
        :raises CanaryError: what is read is not what was written. Retry: yes.
        """
        rows, events = {}, dict(written.newest)
        with self._available():
            self._note([_BEGUN], replace(written, newest={}))  # those are known once it is done
            for view in stored_views(self._store):
                now, *before = (
                    rows_of(view, one[view.name], written.as_of) for one in (newest, known) if one
                )
                passed = _Passed(newest_rows(view, now, *before))
                self._rows.write(view, passed)
                self._check(view, passed.sample(), written)
                rows[view.name] = passed.rows
                if (event := now.select(pl.col(EVENT).max()).collect().item()) is not None:
                    events[view.name] = event
            written = replace(written, newest=events)
            self._note([written.as_of.isoformat(), _LAST], written)
        return rows

    def _noted(self, which: str) -> Written | None:
        with self._available():
            found = self._memory.get_online_features(
                features=[f"{_VIEW}:{name}" for name in _FIELDS], entity_rows=[{"which": which}]
            ).to_dict()
        snapshot_path, code_digest, as_of, since, newest = (found[name][0] for name in _FIELDS)
        if not as_of:
            return None
        moment = datetime.fromisoformat(since) if since else None
        events = {view: datetime.fromisoformat(text) for view, text in json.loads(newest or "{}").items()}
        return Written(snapshot_path, code_digest, datetime.fromisoformat(as_of), moment, events)

    def _note(self, which: Sequence[str], written: Written) -> None:
        row = {
            "snapshot_path": written.snapshot_path,
            "code_digest": written.code_digest,
            "as_of": written.as_of.isoformat(),
            "since": written.since.isoformat() if written.since is not None else None,
            "newest": json.dumps({view: event.isoformat() for view, event in written.newest.items()}),
            _TIME: written.as_of - timedelta.resolution,
        }
        frame = pl.DataFrame([{"which": one, **row} for one in which], schema_overrides={"since": pl.String})
        view = self._memory.get_feature_view(_VIEW)
        self._ledger.write(view, [rows_of(view, frame.lazy()).collect()])

    def _check(self, view: FeatureView, sample: pl.DataFrame, written: Written) -> None:
        """Read rows back, as a model server does.

        A newer event in the store is as it should be, and so is another value of the same event if a newer
        window has begun, or if the source says itself which one counts: it may have withdrawn that one since.
        """
        if sample.is_empty():
            return
        keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
        names = [field.name for field in view.features]
        service = FeatureService(name="canary", features=[view])
        self._store.apply([service])
        reader = OnlineReader(registry_bytes(self._store), service.name, self._online_store)
        try:
            read = reader.rows({key: sample[key].to_list() for key in keys} or {"row": [0]})
        finally:
            reader.close()
        columns = [map(feast_value_type_to_python_type, values_of(view, sample, name)) for name in names]
        for row, values, (found, (event, *_)) in zip(
            sample.to_dicts(), zip(*columns, strict=True), read, strict=True
        ):
            moment = microseconds(row[EVENT])
            # Two NaN, in a list even, are alike.
            if event is not None and (event > moment or (event == moment and repr(found) == repr(values))):
                continue
            if event == moment and (view.batch_source.created_timestamp_column or self._is_late(written)):
                continue
            of, wrote, reads = (
                masked(one, self._personal)
                for one in (
                    {key: row[key] for key in keys},
                    dict(zip(names, values, strict=True)),
                    dict(zip(names, found, strict=True)),
                )
            )
            raise CanaryError(
                f"{view.name} of {list(of.values())} was written to {self._shown} as {wrote} at "
                f"{row[EVENT]}, and is read as {reads}"
            )

    def _is_late(self, written: Written) -> bool:
        newest = self.begun()
        return newest is not None and newest.as_of > written.as_of

    @contextmanager
    def _available(self) -> Iterator[None]:
        try:
            yield
        except _store_errors() as error:
            hint = "; is there room on its disk?" if "disk" in str(error) else ""
            raise OnlineStoreUnavailableError(
                f"the online store {self._shown} cannot be used now: {error}{hint}"
            ) from error


class _Passed:
    """Parts on their way, how many rows they had, and some of these."""

    def __init__(self, parts: Iterator[pl.DataFrame]) -> None:
        self._parts = parts
        self._samples: list[pl.DataFrame] = []
        self.rows = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for part in self._parts:
            self.rows += part.height
            self._samples.append(_sample(part))
            yield part

    def sample(self) -> pl.DataFrame:
        return _sample(pl.concat(self._samples))


def _sample(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.gather_every(max(1, rows.height // _CANARIES)).head(_CANARIES)


_WHICH = Entity(name="which", join_keys=["which"], value_type=ValueType.STRING)
_WRITTEN = FeatureView(
    name=_VIEW,
    entities=[_WHICH],
    schema=[Field(name=name, dtype=String) for name in _FIELDS],
    source=FileSource(name=_VIEW, path=f"{_VIEW}.parquet", timestamp_field=_TIME),
)


def _store_errors() -> tuple[type[Exception], ...]:
    """What the clients of the stores raise when these cannot be used now."""
    if importlib.util.find_spec("redis") is None:
        return (sqlite3.Error,)
    from redis.exceptions import RedisError

    return (sqlite3.Error, RedisError)
