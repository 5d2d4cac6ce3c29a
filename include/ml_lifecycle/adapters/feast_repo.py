"""Feast repositories made from a model folder's ``features.py``, for one task and gone with it.

A repository is a folder: the feature tables as ``<name>.parquet`` and a registry of its own. Feast marks a
view in its registry while it materialises, and a process that dies leaves the mark; since nobody else reads
this registry, nobody is stopped. Servers get :func:`registry_bytes`, which never change.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import ParseResult, unquote, urlparse, urlunparse

import polars as pl
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    FileSource,
    OnDemandFeatureView,
    RepoConfig,
    ValueType,
)
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)

from ml_lifecycle.adapters.feast_store import source_columns, time_columns
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import ColumnType
from ml_lifecycle.spec.feature_tags import TAG, Tag

_REGISTRY = "registry.pb"
_TIMESTAMP = pl.Datetime("us", "UTC")

# Fields of a registry that say when and where objects were registered, not what they are.
_MOMENTARY = {
    "created_timestamp",
    "data_source_class_type",  # FileSource, or nothing once it was registered again
    "feature_view_version_history",
    "infra",
    "last_updated",
    "last_updated_timestamp",
    "materialization_intervals",
    "project_uuid",
    "state",
    "version_id",
}

_TYPES: Mapping[FeastType, tuple[ColumnType, pl.DataType]] = {
    Float32: ("float", pl.Float32()),
    Float64: ("float", pl.Float64()),
    Int32: ("int", pl.Int32()),
    Int64: ("int", pl.Int64()),
    String: ("string", pl.String()),
    Bool: ("bool", pl.Boolean()),
}
# What no model takes, but on-demand features may be made from.
_FURTHER: Mapping[FeastType, pl.DataType] = {UnixTimestamp: _TIMESTAMP, Bytes: pl.Binary()}
_KEY_TYPES: Mapping[ValueType, pl.DataType] = {
    ValueType.STRING: pl.String(),
    ValueType.INT32: pl.Int32(),
    ValueType.INT64: pl.Int64(),
}


@dataclass(frozen=True)
class Features:
    """The Feast objects of one ``features.py``.

    :param service: what makes the model's inputs
    :param views: the stored views behind it, on-demand views' sources included
    """

    project: str
    service: FeatureService
    entities: tuple[Entity, ...]
    views: tuple[FeatureView, ...]
    on_demand: tuple[OnDemandFeatureView, ...]

    @classmethod
    def of(cls, module: ModuleType, project: str, service: str) -> Features:
        """Collect them from the module's globals.

        :raises FeatureError: no such service, or a source that is not a Parquet file named after its table.
            Retry: no.
        """
        found = list({id(value): value for value in vars(module).values()}.values())
        services = {value.name: value for value in found if isinstance(value, FeatureService)}
        if service not in services:
            raise FeatureError(
                f"features.py has no FeatureService {service!r} (features.service in model.yaml); "
                f"it has {sorted(services) or 'none'}"
            )
        views = tuple(value for value in found if isinstance(value, FeatureView))
        for view in views:
            _check_source(view)
        return cls(
            project,
            services[service],
            tuple(value for value in found if isinstance(value, Entity)),
            views,
            tuple(value for value in found if isinstance(value, OnDemandFeatureView)),
        )

    def columns(self) -> dict[str, ColumnType]:
        """The service's features in order, with the type a model gets them in.

        :raises FeatureError: a type a model cannot take, or a name twice. Retry: no.
        """
        columns: dict[str, ColumnType] = {}
        for projection in self.service.feature_view_projections:
            for field in projection.features:
                if field.dtype not in _TYPES:
                    raise FeatureError(
                        f"feature {projection.name}:{field.name} is {field.dtype}; "
                        f"a model takes {', '.join(str(known) for known in _TYPES)}"
                    )
                if field.name in columns:
                    raise FeatureError(f"two features of {self.service.name!r} are named {field.name!r}")
                columns[field.name] = _TYPES[field.dtype][0]
        return columns

    def tags(self) -> tuple[Tag, ...]:
        """What the service's features say by their tags of the contract fields that they hold."""
        return tuple(
            Tag(projection.name, field.name, _TYPES[field.dtype][0], field.tags[TAG])
            for projection in self.service.feature_view_projections
            for field in projection.features
            if TAG in field.tags and field.dtype in _TYPES
        )

    def keys_of(self, view: FeatureView) -> dict[str, pl.DataType]:
        """The columns that a view's rows are found by, with their types; none for a view without entities.

        Taken from the entities, since Feast fills in ``view.entity_columns`` only when it registers a view.
        """
        by_name = {entity.name: entity for entity in self.entities}
        if unknown := [name for name in view.entities if name not in by_name and name != DUMMY_ENTITY_NAME]:
            raise FeatureError(f"feature view {view.name!r} uses entities that features.py lacks: {unknown}")
        entities = [by_name[name] for name in view.entities if name in by_name]
        return {entity.join_key: _KEY_TYPES.get(entity.value_type, pl.String()) for entity in entities}

    def keys_in_source(self, view: FeatureView) -> list[str]:
        """What the view's table calls them."""
        in_source = source_columns(view.batch_source)
        return [in_source.get(key, key) for key in self.keys_of(view)]

    @staticmethod
    def order_of(view: FeatureView) -> list[str]:
        """The columns of the view's table by which of two rows one counts: event, then created."""
        event, created = time_columns(view.batch_source)
        return [event, *([created] if created else [])]

    def join_keys(self) -> tuple[str, ...]:
        """The entity columns the service needs, in the order of their first use."""
        views = {view.name: view for view in self.views}
        keys: dict[str, None] = {}
        for projection in self.service.feature_view_projections:
            if (view := views.get(projection.name)) is not None:
                keys |= {projection.join_key_map.get(key, key): None for key in self.keys_of(view)}
        return tuple(keys)

    def source_tables(self) -> dict[str, dict[str, pl.DataType]]:
        """What each view's table must hold: table → column → type."""
        needed: dict[str, dict[str, pl.DataType]] = {}
        for view in self.views:
            source, keys = view.batch_source, self.keys_of(view)
            types = {f.name: _column_type(f.dtype) for f in view.schema if f.name not in keys}
            fields = {name: dtype for name, dtype in types.items() if dtype is not None}
            in_source = source_columns(source)
            columns = needed.setdefault(source.name, {})
            columns |= {str(in_source.get(name, name)): dtype for name, dtype in (keys | fields).items()}
            columns |= dict.fromkeys(self.order_of(view), _TIMESTAMP)
        return needed

    def lifetime(self, table: str) -> timedelta | None:
        """How long a table's rows count after their event; None is for ever."""
        views = self._views_of(table)
        return max(view.ttl for view in views) if all(view.ttl for view in views) else None

    def counting(self, table: str, rows: pl.LazyFrame, moment: datetime) -> pl.LazyFrame:
        """The rows that can count at ``moment``, that instant included: none that is past its lifetime.

        The newest of each key are what an online store has to hold at that moment.
        """
        event, lifetime = pl.col(self.order_of(self._views_of(table)[0])[0]), self.lifetime(table)
        rows = rows.filter(event <= moment)
        return rows if lifetime is None else rows.filter(event >= moment - lifetime)

    def _views_of(self, table: str) -> list[FeatureView]:
        return [view for view in self.views if view.batch_source.name == table]


def _column_type(dtype: FeastType) -> pl.DataType | None:
    if isinstance(dtype, Array):
        inner = _column_type(dtype.base_type)
        return None if inner is None else pl.List(inner)
    return _TYPES[dtype][1] if dtype in _TYPES else _FURTHER.get(dtype)


def _check_source(view: FeatureView) -> None:
    source = view.batch_source
    if not isinstance(source, FileSource) or source.path != f"{source.name}.parquet":
        raise FeatureError(
            f"the source of feature view {view.name!r} must be FileSource(name=<table>, "
            "path='<table>.parquet'), where <table> is one of the frames tables() returns; "
            f"it is {type(source).__name__}(name={source.name!r}, path={getattr(source, 'path', None)!r})"
        )


def repo_config(project: str, folder: Path, online_store: str | None = None) -> RepoConfig:
    """Feast's configuration of the repository in ``folder``.

    :param online_store: URL, ``sqlite:////absolute/path.db`` or ``redis://host:port/database``; None for a
        repository that only trains
    :raises FeatureError: the URL is of no known kind. Retry: no.
    """
    return RepoConfig(
        project=project,
        provider="local",
        repo_path=folder,
        # 0: read the registry file once; it does not change behind a reader's back
        registry={"registry_type": "file", "path": str(folder / _REGISTRY), "cache_ttl_seconds": 0},
        offline_store={"type": "ml_lifecycle.adapters.feast_store.AsOfOfflineStore"},
        online_store=_online_store(online_store) if online_store is not None else None,
        entity_key_serialization_version=3,
    )


def _online_store(url: str) -> dict[str, object]:
    parts = urlparse(url)
    if parts.scheme in ("redis", "rediss") and parts.hostname:
        return {"type": "redis", "connection_string": _redis_connection(parts)}
    # The path of sqlite:////a/b.db starts with two slashes: a separator, and the absolute path's own.
    path = parts.path[1:]
    if parts.scheme != "sqlite" or parts.netloc or not os.path.isabs(path):
        raise FeatureError(
            f"online store {without_password(url)!r} is not known: write sqlite:////absolute/path.db "
            "(four slashes) or redis://host:port/database"
        )
    return {"type": "ml_lifecycle.adapters.feast_online.PackedSqliteOnlineStore", "path": path}


def _redis_connection(parts: ParseResult) -> str:
    """As Feast writes it: what it takes apart at commas, and then for JSON."""
    options: dict[str, object] = {"db": int(parts.path.strip("/") or 0)}
    if parts.scheme == "rediss":
        options["ssl"] = True
    options |= {
        name: unquote(value)
        for name, value in (("username", parts.username), ("password", parts.password))
        if value
    }
    written = (f"{name}={json.dumps(value)}".replace(",", r"\u002c") for name, value in options.items())
    return ",".join([f"{parts.hostname}:{parts.port or 6379}", *written])


def without_password(online_store: str) -> str:
    """The URL as it may be shown."""
    parts = urlparse(online_store)
    return urlunparse(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def open_store(features: Features, folder: Path, online_store: str | None = None) -> FeatureStore:
    """A FeatureStore over the tables in ``folder``, with everything of ``features`` registered."""
    store = FeatureStore(config=repo_config(features.project, folder, online_store))
    store.apply([*features.entities, *features.views, *features.on_demand, features.service])
    return store


def registry_bytes(store: FeatureStore) -> bytes:
    """The registry for servers: the same objects give the same bytes, whenever they were registered."""
    store.refresh_registry()
    proto = Registry.FromString(store.registry.proto().SerializeToString())
    _forget_when(proto)
    proto.data_sources.sort(key=lambda source: source.name)  # Feast collects them in a set
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _forget_when(message: Any) -> None:
    """Clear, all the way down, what differs between two registrations of the same objects."""
    for field, value in message.ListFields():
        if field.name in _MOMENTARY:
            message.ClearField(field.name)
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        else:
            for part in value if field.is_repeated else (value,):
                _forget_when(part)


def historical_features(
    store: FeatureStore, features: FeatureService | Sequence[str], entity_rows: pl.DataFrame
) -> pl.DataFrame:
    """Feast's own point-in-time join; rows and their order are those of ``entity_rows``.

    They are handed in as a Parquet file: a data frame of pandas would be made, copied and taken apart again,
    which takes longer than the join.
    """
    with tempfile.TemporaryDirectory(prefix="entity-rows-") as folder:
        path = os.path.join(folder, "rows.parquet")
        entity_rows.write_parquet(path)
        job = store.get_historical_features(entity_df=path, features=features)
        return pl.DataFrame(pl.from_arrow(job.to_arrow()))


def historical_slices(
    store: FeatureStore, features: FeatureService | Sequence[str], entity_rows: str
) -> Iterator[pl.DataFrame]:
    """As :func:`historical_features` of rows in Parquet, a slice of them at a time.

    :param entity_rows: the path of a file, or a pattern
    """
    job = store.get_historical_features(entity_df=entity_rows, features=features)
    return (pl.DataFrame(pl.from_arrow(part)) for part in job.parts())
