"""An online store for Feast on one machine: a packed row an entity in a SQLite file; the newest stays.

Feast finds it by its class path in the RepoConfig or ``feature_store.yaml``. Unlike Feast's SQLite store it
keeps a whole row of a view together: a write replaces all values of an entity, or none, and never by an older
event, so windows may be materialised in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from ml_lifecycle.adapters.online_file import OnlineFile, PackedRow
from ml_lifecycle.adapters.online_rows import EntityKeys, Fields, KeyKind, Kind

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

WriteRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
ReadRow = tuple[datetime | None, dict[str, Value] | None]

_KINDS: Mapping[ValueType, Kind] = {
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.FLOAT: "float",
    ValueType.DOUBLE: "double",
    ValueType.BOOL: "bool",
    ValueType.STRING: "string",
    ValueType.BYTES: "bytes",
    ValueType.PDF_BYTES: "bytes",
    ValueType.IMAGE_BYTES: "bytes",
}
_ATTRIBUTES: Mapping[str, Kind] = {
    f"{kind}_val": kind for kind in ("int32", "int64", "float", "double", "bool", "string", "bytes")
}
_KEY_KINDS: Mapping[ValueType, KeyKind] = {
    ValueType.STRING: "string",
    ValueType.BYTES: "bytes",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast has no types
    """What RepoConfig validates the online store's section with.

    :param path: of the file, absolute or within the repository
    """

    type: Literal["ml_lifecycle.adapters.feast_online.PackedSqliteOnlineStore"] = (
        "ml_lifecycle.adapters.feast_online.PackedSqliteOnlineStore"
    )
    path: str = "data/online.db"


class PackedSqliteOnlineStore(OnlineStore):  # type: ignore[misc]  # Feast has no types
    """Feast's online store interface over an :class:`OnlineFile`."""

    _file: OnlineFile | None = None

    def file(self, config: RepoConfig) -> OnlineFile:
        """The file, opened at the first call.

        :raises FeatureError: it holds something else. Retry: no.
        """
        if self._file is None:
            path = Path(config.online_store.path)
            self._file = OnlineFile(path if path.is_absolute() else Path(config.repo_path or ".") / path)
        return self._file

    async def close(self) -> None:
        """Close the file; the next call opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write all rows or none; a row that is older than the stored one changes nothing."""
        file = self.file(config)
        file.write(table_name(config, table), list(_packed(config, file, dict(fields_of(table)), data)))
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
        file = self.file(config)
        keys = [_key(config, key) for key in entity_keys]
        found = file.read(table_name(config, table), keys)
        wanted = None if requested_features is None else set(requested_features)
        return [_read(file, found.get(key), wanted) for key in keys]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the tables of the views to keep, remove those of the others."""
        file = self.file(config)
        file.create(table_name(config, table) for table in tables_to_keep)
        file.drop(table_name(config, table) for table in tables_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the views' tables; the file may hold those of other projects."""
        self.file(config).drop(table_name(config, table) for table in tables)

    def _is_versioned_read_supported(self) -> bool:
        return True  # each version of a view has a table of its own


def table_name(config: RepoConfig, table: FeatureView) -> str:
    """The table of a view's rows."""
    return str(compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning))


def fields_of(view: FeatureView) -> Fields:
    """A view's features and how they are packed."""
    return tuple((field.name, _KINDS.get(field.dtype.to_value_type(), "value")) for field in view.features)


def keys_of(view: FeatureView) -> EntityKeys:
    """Packs the keys of a registered view's rows.

    :raises ValueError: an entity has a type that Feast cannot serialise. Retry: no.
    """
    types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    if unknown := sorted(name for name, one in types.items() if one not in _KEY_KINDS):
        raise ValueError(f"entity keys {unknown} of {view.name!r} have types that Feast cannot serialise")
    return EntityKeys({name: _KEY_KINDS[one] for name, one in types.items()})


def microseconds(moment: datetime) -> int:
    """Since 1970; a moment without a zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // _MICROSECOND


def _key(config: RepoConfig, key: EntityKey) -> bytes:
    return bytes(serialize_entity_key(key, config.entity_key_serialization_version))


def _packed(
    config: RepoConfig, file: OnlineFile, kinds: Mapping[str, Kind], data: Sequence[WriteRow]
) -> Iterator[PackedRow]:
    """Rows by the types that their values have; a null's is what the view says."""
    for key, values, event, created in data:
        types = {name: value.WhichOneof("val") for name, value in values.items()}
        fields: Fields = tuple(
            (name, kinds.get(name, "value") if one is None else _ATTRIBUTES.get(one, "value"))
            for name, one in types.items()
        )
        row = file.layout(fields).pack(
            [
                None
                if one is None
                else getattr(values[name], one)
                if one in _ATTRIBUTES
                else values[name].SerializeToString()
                for name, one in types.items()
            ]
        )
        yield _key(config, key), microseconds(event), None if created is None else microseconds(created), row


def _read(file: OnlineFile, found: tuple[int, bytes] | None, wanted: set[str] | None) -> ReadRow:
    if found is None:
        return None, None
    event, row = found
    layout = file.layout_of(row)
    values = {
        name: _value(kind, value)
        for (name, kind), value in zip(layout.fields, layout.unpack(row, Value.FromString), strict=True)
        if wanted is None or name in wanted
    }
    return EPOCH + event * _MICROSECOND, values


def _value(kind: Kind, value: Any) -> Value:
    if value is None:
        return Value()
    return value if kind == "value" else Value(**{f"{kind}_val": value})
