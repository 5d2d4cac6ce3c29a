"""The reader of online features that a model server uses.

Rows of our own store are read and unpacked as they are; on-demand features, and other stores, are read
through Feast's ``get_online_features``. Both ways give the same values by the same rules.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from feast import FeatureService, FeatureStore, FeatureView
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values

from ml_lifecycle.adapters.feast_online import (
    PackedSqliteOnlineStore,
    PackedSqliteOnlineStoreConfig,
    keys_of,
    microseconds,
    table_name,
)
from ml_lifecycle.adapters.feast_repo import repo_config
from ml_lifecycle.errors import FeatureError

_MICROSECOND = timedelta(microseconds=1)
_ABSENT = -(2**63)  # the age of a row that is not there

Key = tuple[object, ...]


class Row(NamedTuple):
    """What was read by one key.

    :param values: of the features, in the service's order
    :param events: of each stored view, in the service's order, microseconds since 1970; None without a row
    """

    values: tuple[object, ...]
    events: tuple[int | None, ...]


class Found(NamedTuple):
    """What a look at the store has come to.

    :param values: one list a feature, rows in the keys' order, None where there is no value
    :param stale: how many values of each feature were there and too old
    :param unknown: numbers of the rows whose keys no view has a row of
    :param ages: stored view → the age of its oldest row that was read, in seconds at the moment asked about
    """

    values: dict[str, list[object]]
    stale: dict[str, int]
    unknown: list[int]
    ages: dict[str, float]


@dataclass(frozen=True)
class _Served:
    """A stored view of the service, and what is taken from it.

    :param keys: join keys of the view → the names by which they are asked for
    :param lifetime_us: None for a view whose rows are never too old
    """

    view: FeatureView
    features: tuple[str, ...]
    keys: Mapping[str, str]
    lifetime_us: int | None


@dataclass(frozen=True)
class _Plan:
    """A service's views in their order.

    :param features: of all views in the service's order, on-demand ones too
    :param asked: the join keys that are needed, sorted
    :param derived: on-demand feature → the numbers of the views it is made from
    """

    views: tuple[_Served, ...]
    features: tuple[str, ...]
    asked: tuple[str, ...]
    derived: Mapping[str, tuple[int, ...]]


class _Source(Protocol):
    def fetch(self, keys: Sequence[Key]) -> list[Row]: ...

    def close(self) -> None: ...


class OnlineReader:
    """Reads a feature service's values by entity keys.

    :param registry: an exported registry; what happens to any other registry does not matter to it
    :param service: name of the feature service
    :param online_store: URL, ``sqlite:////absolute/path.db`` or ``redis://host:port/database``
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
        self._plan = _plan(self._store, self._service)
        self._source: _Source
        if isinstance(self._store.config.online_store, PackedSqliteOnlineStoreConfig) and (
            not self._plan.derived
        ):
            self._source = _PackedSource(self._store, self._plan)
        else:
            self._source = _FeastSource(self._store, self._service, self._plan)

    def read(
        self, entities: Mapping[str, Sequence[object]], as_of: datetime | Sequence[datetime] | None = None
    ) -> dict[str, list[object]]:
        """One list a feature, rows in the keys' order, None where there is no value.

        :param entities: join key → one value a row; a null key has no values
        :param as_of: the moment, or each row's own, at which a value older than its view's time to live is
            None, as in training; without it values of any age are returned, as Feast does
        :raises FeatureError: a join key is missing, or the lists differ in length. Retry: no.
        """
        return self.look_up(entities, as_of).values

    def look_up(
        self, entities: Mapping[str, Sequence[object]], as_of: datetime | Sequence[datetime] | None = None
    ) -> Found:
        """As :meth:`read`, with what was too old, which keys are unknown, and how old what was read is."""
        rows = self.rows(entities)
        columns = zip(*(row.values for row in rows), strict=True) if rows else itertools.repeat(())
        values = {name: [*column] for name, column in zip(self._plan.features, columns, strict=False)}
        unknown = self._unknown(rows)
        if as_of is None:
            return Found(values, {}, unknown, {})
        # What counts at a moment was known before it: as in training, Feast is asked an instant earlier.
        if isinstance(as_of, datetime):
            known = [microseconds(as_of) - 1] * len(rows)
        else:
            known = [microseconds(moment) - 1 for moment in as_of]
        stale, ages = self._expire(values, rows, known)
        return Found(values, stale, unknown, ages)

    def _unknown(self, rows: Sequence[Row]) -> list[int]:
        """Rows that no view has anything of; views without keys have the same of everybody."""
        keyed = [at for at, served in enumerate(self._plan.views) if served.keys]
        if not keyed:
            return []
        return [number for number, row in enumerate(rows) if all(row.events[at] is None for at in keyed)]

    def rows(self, entities: Mapping[str, Sequence[object]]) -> list[Row]:
        """What the store has of each key, whatever its age; see :meth:`read`."""
        asked = self._plan.asked
        if missing := [key for key in asked if key not in entities]:
            raise FeatureError(
                f"entity keys {missing} are missing; {self._service.name!r} needs {list(asked)}"
            )
        count, *others = {len(values) for values in entities.values()} or {0}
        if others:
            lengths = {key: len(values) for key, values in entities.items()}
            raise FeatureError(f"entity keys differ in length: {lengths}")
        if not asked:
            return self._rows([()] * count)
        return self._rows(list(zip(*(entities[key] for key in asked), strict=True)))

    def _rows(self, keys: Sequence[Key]) -> list[Row]:
        """One row a key, in their order, from the cache as far as it has them."""
        if self._cache_seconds <= 0:
            return self._source.fetch(keys)
        now = self._monotonic()
        found = {key: self._cache[key] for key in keys if key in self._cache}
        wanted = list(dict.fromkeys(key for key in keys if key not in found or found[key][0] < now))
        until = now + self._cache_seconds
        found |= {key: (until, row) for key, row in zip(wanted, self._source.fetch(wanted), strict=True)}
        for key in wanted:
            self._cache.pop(key, None)  # to the end: what was read last goes last
            self._cache[key] = found[key]
        for key in list(itertools.islice(self._cache, max(0, len(self._cache) - self._cache_rows))):
            del self._cache[key]
        return [found[key][1] for key in keys]

    def close(self) -> None:
        """Let go of the store and of the files that were made; nothing can be read any more."""
        self._source.close()
        self._folder.cleanup()

    def _expire(
        self, values: dict[str, list[object]], rows: Sequence[Row], known: Sequence[int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Take out what was too old; returns how many values of each feature, and the ages."""
        stale: dict[str, int] = {}
        oldest: dict[str, float] = {}
        expired: list[set[int]] = []
        for at, served in enumerate(self._plan.views):
            read = zip((row.events[at] for row in rows), known, strict=True)
            ages = [_ABSENT if event is None else moment - event for event, moment in read]
            age, lifetime = max(ages, default=_ABSENT), served.lifetime_us
            old: list[int] = []
            if age > _ABSENT:
                oldest[served.view.name] = max(age, 0) / 1e6
                if lifetime is not None and age > lifetime:
                    old = [number for number, one in enumerate(ages) if one > lifetime]
            gone = [_take_out(values, name, old, stale) for name in served.features] if old else []
            expired.append(set().union(*gone))
        # Feast has computed them from values that were too old.
        for name, sources in self._plan.derived.items():
            _take_out(values, name, sorted(set().union(*(expired[at] for at in sources))), stale)
        return stale, oldest


def _take_out(
    values: dict[str, list[object]], name: str, numbers: Sequence[int], stale: dict[str, int]
) -> set[int]:
    """Make these values of a feature None and count them; returns which there were."""
    column = values[name]
    present = {number for number in numbers if column[number] is not None}
    for number in present:
        column[number] = None
    if present:
        stale[name] = len(present)
    return present


def _plan(store: FeatureStore, service: FeatureService) -> _Plan:
    """What to read, and for how long it counts; an on-demand feature lives as long as its sources.

    :raises FeatureError: the service lacks the views that an on-demand feature is made from. Retry: no.
    """
    views: list[_Served] = []
    features: list[str] = []
    derived: dict[str, list[str]] = {}
    for projection in service.feature_view_projections:
        view = store.registry.get_any_feature_view(projection.name, store.project)
        names = tuple(feature.name for feature in projection.features)
        features += names
        sources = getattr(view, "source_feature_view_projections", None)
        if sources is not None:
            derived |= {name: list(sources) for name in names}
            continue
        keys = {
            column.name: projection.join_key_map.get(column.name, column.name)
            for column in view.entity_columns
            if column.name != DUMMY_ENTITY_ID
        }
        views.append(_Served(view, names, keys, view.ttl // _MICROSECOND if view.ttl else None))
    numbers = {served.view.name: at for at, served in enumerate(views)}
    for name, sources in derived.items():
        if lacking := sorted(set(sources) - numbers.keys()):
            raise FeatureError(
                f"feature {name!r} is made from {', '.join(lacking)}: add features of it to the service "
                f"{service.name!r}, so that their age is known"
            )
    asked = sorted({key for served in views for key in served.keys.values()})
    made_from = {name: tuple(numbers[one] for one in sources) for name, sources in derived.items()}
    return _Plan(tuple(views), tuple(features), tuple(asked), made_from)


class _FeastSource:
    """Any online store, through Feast's own calls."""

    def __init__(self, store: FeatureStore, service: FeatureService, plan: _Plan) -> None:
        self._store = store
        self._service = service
        self._plan = plan

    def fetch(self, keys: Sequence[Key]) -> list[Row]:
        if not keys:
            return []
        columns = dict(zip(self._plan.asked, map(list, zip(*keys, strict=True)), strict=True))
        columns = columns or {"row": [0] * len(keys)}  # Feast counts the rows by any column
        response = self._store.get_online_features(features=self._service, entity_rows=columns)
        values, proto = response.to_dict(), response.proto
        stamps = dict(zip(proto.metadata.feature_names.val, proto.results, strict=True))
        events = [
            [microseconds(stamp.ToDatetime(tzinfo=UTC)) or None for stamp in stamps[name].event_timestamps]
            for name in (served.features[0] for served in self._plan.views)
        ]
        rows = zip(*(values[name] for name in self._plan.features), strict=True)
        return [Row(row, one) for row, one in zip(rows, zip(*events, strict=True), strict=True)]

    def close(self) -> None:
        asyncio.run(self._store.close())


class _PackedSource:
    """Our own store, from its rows."""

    def __init__(self, store: FeatureStore, plan: _Plan) -> None:
        self._config = store.config
        self._online = PackedSqliteOnlineStore()
        self._tables = [
            (table_name(store.config, served.view), _PackedView(served, plan.asked)) for served in plan.views
        ]

    def fetch(self, keys: Sequence[Key]) -> list[Row]:
        file = self._online.file(self._config)
        found = []
        for table, view in self._tables:
            packed = [view.key(key) for key in keys]
            rows = file.read(table, [key for key in packed if key is not None])
            made = {key: (event, view.values(file.layout_of(row), row)) for key, (event, row) in rows.items()}
            found.append([made.get(key, view.nothing) if key is not None else view.nothing for key in packed])
        if len(found) == 1:
            return [Row(values, (event,)) for event, values in found[0]]
        return [
            Row(tuple(itertools.chain.from_iterable(one[1] for one in row)), tuple(one[0] for one in row))
            for row in zip(*found, strict=True)
        ]

    def close(self) -> None:
        asyncio.run(self._online.close())


class _PackedView:
    """How the keys and values of one view stand in its rows."""

    def __init__(self, served: _Served, asked: Sequence[str]) -> None:
        self._features = served.features
        self._keys = keys_of(served.view)
        self._constant = None if served.keys else self._keys.pack([DUMMY_ENTITY_VAL])
        types = {column.name: column.dtype.to_value_type() for column in served.view.entity_columns}
        self._parts = [
            (asked.index(served.keys[name]), _converter(types[name]))
            for name in self._keys.names
            if served.keys
        ]
        self._places: dict[int, list[int | None] | None] = {}
        self.nothing: tuple[int | None, tuple[object, ...]] = (None, (None,) * len(served.features))

    def key(self, asked: Key) -> bytes | None:
        """The key of the row; None if there cannot be one."""
        if self._constant is not None:
            return self._constant
        values = []
        for at, convert in self._parts:
            value = asked[at]
            if value is None or value != value:
                return None
            values.append(convert(value))
        return self._keys.pack(values)

    def values(self, layout: Any, row: bytes) -> tuple[object, ...]:
        """The values of the features in order; None for one that the row was written without."""
        values = layout.unpack(row, _of_message)
        if layout.number not in self._places:
            at = {name: number for number, name in enumerate(layout.names)}
            places = [at.get(name) for name in self._features]
            self._places[layout.number] = None if places == list(range(len(values))) else places
        wanted = self._places[layout.number]
        return tuple(values if wanted is None else (None if at is None else values[at] for at in wanted))


def _of_message(data: bytes) -> object:
    return feast_value_type_to_python_type(Value.FromString(data))


def _converter(value_type: Any) -> Callable[[Any], Any]:
    """Makes of what was asked for what Feast would look up."""
    if value_type.name == "STRING":
        return str
    if value_type.name in ("INT32", "INT64"):
        return int

    def by_feast(value: Any) -> Any:
        proto = python_values_to_proto_values([value], value_type)[0]
        return getattr(proto, proto.WhichOneof("val"))

    return by_feast
