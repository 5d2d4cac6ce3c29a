"""Feast's SQLite online store made safe for backfills and readers, and the reader a model server uses.

The store differs from Feast's in three ways: a write never replaces a newer value, so windows may be
materialised in any order; readers are never blocked by a writer (write-ahead log) nor stopped by one that
died, whose half-written view is rolled back; and times are microseconds since 1970 in UTC, whatever the
zone of the process.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import FeatureStore, FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig, _quote_id, _table_id
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from ml_lifecycle.adapters.feast_repo import repo_config
from ml_lifecycle.errors import FeatureError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_SECONDS = 30
_KEYS_A_QUERY = 10_000  # SQLite takes 32,766 variables

Key = tuple[object, ...]
Row = tuple[tuple[object, datetime | None], ...]
"""Value and event time of each feature, in the service's order."""
WriteRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
ReadRow = tuple[datetime | None, dict[str, Value] | None]


class NewestWinsSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):  # type: ignore[misc]  # no types
    """What RepoConfig validates the online store's section with."""

    type: Literal["ml_lifecycle.adapters.feast_online.NewestWinsSqliteOnlineStore"] = (
        "ml_lifecycle.adapters.feast_online.NewestWinsSqliteOnlineStore"
    )


class NewestWinsSqliteOnlineStore(SqliteOnlineStore):  # type: ignore[misc]  # Feast has no types
    """A row a feature, as in Feast's; the newer event stays, and of one event the newer creation."""

    _conn: sqlite3.Connection | None = None

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        if self._conn is None:
            path = Path(self._get_db_path(config))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._conn = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
            self._conn.execute("PRAGMA journal_mode = WAL")
            self._conn.execute("PRAGMA synchronous = NORMAL")
        return self._conn

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write all rows or none; a value whose event is older than the stored one's changes nothing."""
        statement = (
            f"INSERT INTO {_name(config, table)} AS stored "
            "(entity_key, feature_name, value, value_text, event_ts, created_ts) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
            "value_text = excluded.value_text, event_ts = excluded.event_ts, "
            "created_ts = excluded.created_ts WHERE (excluded.event_ts, ifnull(excluded.created_ts, 0)) "
            ">= (stored.event_ts, ifnull(stored.created_ts, 0))"
        )
        connection = self._get_conn(config)
        with connection:
            connection.executemany(statement, _parameters(config, data))
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Event time and values of each key in order; ``(None, None)`` for a key that has none."""
        encoded = [_encode(config, key) for key in entity_keys]
        found: dict[bytes, ReadRow] = {}
        for first in range(0, len(encoded), _KEYS_A_QUERY):
            found.update(self._read(config, table, encoded[first : first + _KEYS_A_QUERY]))
        return [found.get(key, (None, None)) for key in encoded]

    def _read(
        self, config: RepoConfig, table: FeatureView, keys: Sequence[bytes]
    ) -> Iterator[tuple[bytes, ReadRow]]:
        query = (
            f"SELECT entity_key, feature_name, value, event_ts FROM {_name(config, table)} "
            f"WHERE entity_key IN ({','.join('?' * len(keys))}) ORDER BY entity_key"
        )
        try:
            rows = self._get_conn(config).execute(query, keys).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            rows = []  # nothing was ever materialised
        for key, group in itertools.groupby(rows, key=lambda row: row[0]):
            values, newest = {}, 0
            for _, feature, value, event in group:
                values[feature] = Value.FromString(value)
                newest = max(newest, event)
            yield key, (_EPOCH + timedelta(microseconds=newest), values)


class OnlineReader:
    """Reads a feature service's values by entity keys, through Feast's own ``get_online_features``.

    :param registry: an exported registry; what happens to any other registry does not matter to it
    :param service: name of the feature service
    :param online_store: URL, ``sqlite:////absolute/path.db``
    :param cache_seconds: how long rows that were read may be given again without another look at the store;
        what has been materialised since is not seen until then
    :param cache_rows: that are kept at most
    :param monotonic: the clock of the cache, seconds
    :raises FeatureError: the registry has no such service, or the URL is of no known kind. Retry: no.
    """

    def __init__(
        self,
        registry: bytes,
        service: str,
        online_store: str,
        cache_seconds: float = 0.0,
        cache_rows: int = 100_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache_seconds = cache_seconds
        self._cache_rows = cache_rows
        self._monotonic = monotonic
        self._cache: dict[Key, tuple[float, Row]] = {}
        proto = Registry.FromString(registry)
        found = {spec.spec.name: spec.spec.project for spec in proto.feature_services}
        if service not in found:
            raise FeatureError(f"the registry has no feature service {service!r}; it has {sorted(found)}")
        self._folder = tempfile.TemporaryDirectory(prefix="feast-")
        path = Path(self._folder.name) / "registry.pb"
        path.write_bytes(registry)
        self._store = FeatureStore(config=repo_config(found[service], Path(self._folder.name), online_store))
        self._service = self._store.get_feature_service(service)
        self._keys, self._lifetimes = self._layout()

    def read(
        self, entities: Mapping[str, Sequence[object]], as_of: datetime | Sequence[datetime] | None = None
    ) -> dict[str, list[object]]:
        """One list a feature, rows in the keys' order, None where there is no value.

        :param entities: join key → one value a row; a null key has no values
        :param as_of: the moment, or each row's own, at which a value older than its view's time to live is
            None, as in training; without it values of any age are returned, as Feast does
        :raises FeatureError: a join key is missing, or the lists differ in length. Retry: no.
        """
        return self.look_up(entities, as_of)[0]

    def look_up(
        self, entities: Mapping[str, Sequence[object]], as_of: datetime | Sequence[datetime] | None = None
    ) -> tuple[dict[str, list[object]], dict[str, int]]:
        """As :meth:`read`, with how many values of each feature were there and too old."""
        if missing := sorted(self._keys - entities.keys()):
            raise FeatureError(
                f"entity keys {missing} are missing; {self._service.name!r} needs {sorted(self._keys)}"
            )
        lengths = {key: len(values) for key, values in entities.items()}
        if len(set(lengths.values())) != 1:
            raise FeatureError(f"entity keys differ in length: {lengths}")
        keys = list(zip(*(entities[key] for key in sorted(self._keys)), strict=True))
        rows = self._rows(keys)
        values = {name: [row[at][0] for row in rows] for at, name in enumerate(self._lifetimes)}
        if as_of is None:
            return values, {}
        moments = [as_of] * len(keys) if isinstance(as_of, datetime) else list(as_of)
        return values, self._expire(values, rows, moments)

    def _rows(self, keys: Sequence[Key]) -> list[Row]:
        """One row a key, in their order, from the cache as far as it has them."""
        if self._cache_seconds <= 0:
            return self._fetch(keys)
        now = self._monotonic()
        found = {key: self._cache[key] for key in keys if key in self._cache}
        wanted = list(dict.fromkeys(key for key in keys if key not in found or found[key][0] < now))
        until = now + self._cache_seconds
        found |= {key: (until, row) for key, row in zip(wanted, self._fetch(wanted), strict=True)}
        for key in wanted:
            self._cache.pop(key, None)  # to the end: what was read last goes last
            self._cache[key] = found[key]
        for key in list(itertools.islice(self._cache, max(0, len(self._cache) - self._cache_rows))):
            del self._cache[key]
        return [found[key][1] for key in keys]

    def _fetch(self, keys: Sequence[Key]) -> list[Row]:
        if not keys:
            return []
        columns = dict(zip(sorted(self._keys), map(list, zip(*keys, strict=True)), strict=True))
        response = self._store.get_online_features(features=self._service, entity_rows=columns)
        values, proto = response.to_dict(), response.proto
        stamps = {
            name: [stamp.ToDatetime(tzinfo=UTC) for stamp in vector.event_timestamps]
            for name, vector in zip(proto.metadata.feature_names.val, proto.results, strict=True)
        }
        nothing: list[datetime | None] = [None] * len(keys)
        pairs = [zip(values[name], stamps.get(name) or nothing, strict=True) for name in self._lifetimes]
        return list(zip(*pairs, strict=True))

    def close(self) -> None:
        """Let go of the store and of the files that were made; nothing can be read any more."""
        asyncio.run(self._store.close())
        self._folder.cleanup()

    def _layout(self) -> tuple[set[str], dict[str, timedelta | None]]:
        """The join keys that are needed, and by feature, in the service's order, the time to live.

        An on-demand feature lives as long as what it is made from: see ``_sources``.
        """
        keys: set[str] = set()
        lifetimes: dict[str, timedelta | None] = {}
        features: dict[str, list[str]] = {}
        derived: dict[str, list[str]] = {}
        for projection in self._service.feature_view_projections:
            view = self._store.registry.get_any_feature_view(projection.name, self._store.project)
            names = [feature.name for feature in projection.features]
            lifetimes |= dict.fromkeys(names, getattr(view, "ttl", None) or None)
            sources = getattr(view, "source_feature_view_projections", None)
            if sources is not None:
                derived |= {name: list(sources) for name in names}
                continue
            features[projection.name] = names
            for column in view.entity_columns:
                if column.name != DUMMY_ENTITY_ID:
                    keys.add(projection.join_key_map.get(column.name, column.name))
        for name, sources in derived.items():
            if lacking := sorted(set(sources) - features.keys()):
                raise FeatureError(
                    f"feature {name!r} is made from {', '.join(lacking)}: add features of it to the service "
                    f"{self._service.name!r}, so that their age is known"
                )
        self._sources = {
            name: [feature for source in sources for feature in features[source]]
            for name, sources in derived.items()
        }
        return keys, lifetimes

    def _expire(
        self, values: dict[str, list[object]], rows: Sequence[Row], moments: Sequence[datetime]
    ) -> dict[str, int]:
        """Take out what was too old; returns how many values of each feature."""
        stale: dict[str, int] = {}
        expired: dict[str, set[int]] = {}
        # What counts at a moment was known before it: as in training, Feast is asked an instant earlier.
        known = [moment - timedelta.resolution for moment in moments]
        for at, (name, lifetime) in enumerate(self._lifetimes.items()):
            if lifetime is None:
                continue
            for number, (row, moment) in enumerate(zip(rows, known, strict=True)):
                value, stamp = row[at]
                if stamp is not None and stamp < moment - lifetime:
                    values[name][number] = None
                    stale[name] = stale.get(name, 0) + (value is not None)
                    if value is not None:
                        expired.setdefault(name, set()).add(number)
        # Feast has computed them from values that were too old.
        for name, sources in self._sources.items():
            for number in set[int]().union(*(expired.get(source, ()) for source in sources)):
                stale[name] = stale.get(name, 0) + (values[name][number] is not None)
                values[name][number] = None
        return {name: count for name, count in stale.items() if count}


def _name(config: RepoConfig, table: FeatureView) -> str:
    versioned = config.registry.enable_online_feature_view_versioning
    return str(_quote_id(_table_id(config.project, table, versioned)))


def _encode(config: RepoConfig, key: EntityKey) -> bytes:
    return bytes(serialize_entity_key(key, config.entity_key_serialization_version))


def _parameters(config: RepoConfig, data: Sequence[WriteRow]) -> Iterator[tuple[object, ...]]:
    for key, values, event, created in data:
        encoded, event_us = _encode(config, key), _microseconds(event)
        created_us = None if created is None else _microseconds(created)
        for feature, value in values.items():
            text, _ = extract_text_and_num(value, False)
            yield encoded, feature, value.SerializeToString(), text, event_us, created_us


def _microseconds(moment: datetime) -> int:
    """Since 1970; a moment without a zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
