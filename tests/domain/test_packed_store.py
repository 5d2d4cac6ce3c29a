"""Our online store through Feast's own calls: every type of value, views that change, strange files."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from hypothesis import given
from hypothesis import strategies as st

from ml_lifecycle.adapters.feast_online import PackedSqliteOnlineStore
from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import registry_bytes, repo_config
from ml_lifecycle.errors import FeatureError

START = datetime(2024, 1, 1, tzinfo=UTC)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
FIELDS = {"spent": Float32, "orders": Int64, "country": String}


def view(fields: dict[str, Any], name: str = "users") -> FeatureView:
    return FeatureView(
        name=name,
        entities=[USER],
        ttl=timedelta(days=1),
        schema=[Field(name=field, dtype=dtype) for field, dtype in fields.items()],
        source=FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp"),
    )


def key(user: int) -> EntityKey:
    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])


class Opened:
    """A repository with one view, its store and its reader."""

    def __init__(self, folder: Path, fields: dict[str, Any], url: str | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.url = url or f"sqlite:///{folder}/online.db"
        self.store = FeatureStore(config=repo_config("test", folder, self.url))
        made = view(fields)
        self.store.apply([USER, made, FeatureService(name="service", features=[made])])
        self.view = self.store.get_feature_view("users")
        self.config: RepoConfig = self.store.config
        self.online = get_online_store_from_config(self.config.online_store)

    def write(self, *rows: tuple[int, dict[str, Value], datetime, datetime | None]) -> None:
        data = [(key(user), values, event, created) for user, values, event, created in rows]
        self.online.online_write_batch(self.config, self.view, data, None)

    def read(self, *users: int) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        return list(self.online.online_read(self.config, self.view, [key(user) for user in users]))

    def served(self, *users: int) -> dict[str, list[object]]:
        reader = OnlineReader(registry_bytes(self.store), "service", self.url)
        try:
            return reader.read({"user_id": users})
        finally:
            reader.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("store"), FIELDS)


def every_kind() -> list[Value]:
    """A value of every type that Feast has, with content where it takes some, and without."""
    contents = (1, 1.5, True, "a", b"a")
    found = [Value()]
    for field in Value.DESCRIPTOR.fields:
        if field.message_type is None:
            for content in (*contents, 0, 0.0, False, "", b""):
                try:
                    found.append(Value(**{field.name: content}))
                except (TypeError, ValueError):
                    continue
        else:
            empty = Value()
            getattr(empty, field.name).SetInParent()
            found.append(empty)
            for content in contents:
                full = Value()
                try:
                    getattr(full, field.name).val.append(content)
                except (AttributeError, TypeError, ValueError):
                    continue
                found.append(full)
    nested = Value()
    nested.map_val.val["k"].string_val = "v"
    return [*found, nested, Value(float_val=math.nan), Value(double_val=-0.0), Value(int64_val=-(2**63))]


def test_every_type_of_value_comes_back(opened: Opened) -> None:
    values = every_kind()
    assert {value.WhichOneof("val") for value in values} >= {f.name for f in Value.DESCRIPTOR.fields}
    for user, value in enumerate(values, 1000):
        opened.write((user, {"country": value, "other": value}, START, None))
    for (event, found), value in zip(opened.read(*range(1000, 1000 + len(values))), values, strict=True):
        assert event == START
        assert found is not None
        for name in ("country", "other"):
            assert found[name].SerializeToString() == value.SerializeToString()


def test_what_is_asked_for_is_what_comes(opened: Opened) -> None:
    opened.write((1, {"spent": Value(float_val=1.5), "orders": Value(int64_val=2)}, START, None))
    rows = opened.online.online_read(opened.config, opened.view, [key(1), key(404)], ["orders"])
    assert rows == [(START, {"orders": Value(int64_val=2)}), (None, None)]


moments = st.integers(0, 3).map(lambda seconds: START + timedelta(microseconds=seconds))


@given(st.lists(st.tuples(moments, st.none() | moments), min_size=1, max_size=6), st.integers(1, 6))
def test_the_newest_stays_however_rows_are_parted_into_batches(
    opened: Opened, written: Sequence[tuple[datetime, datetime | None]], parts: int
) -> None:
    user = hash((tuple(written), parts)) % 2**40
    for first in range(0, len(written), parts):
        batch = enumerate(written[first : first + parts], first)
        opened.write(*((user, {"orders": Value(int64_val=n)}, *moment) for n, moment in batch))
    oldest = datetime(1970, 1, 1, tzinfo=UTC)
    newest = max(range(len(written)), key=lambda n: (written[n][0], written[n][1] or oldest, n))
    assert opened.read(user) == [(written[newest][0], {"orders": Value(int64_val=newest)})]


def test_a_view_may_gain_and_lose_features(tmp_path: Path) -> None:
    before = Opened(tmp_path / "before", FIELDS)
    before.write(
        (
            1,
            {"spent": Value(float_val=1.5), "orders": Value(int64_val=2), "country": Value(string_val="GB")},
            START,
            None,
        )
    )
    after = Opened(tmp_path / "after", {"country": String, "seats": Int32, "spent": Float32}, before.url)
    assert after.served(1, 2) == {"country": ["GB", None], "seats": [None, None], "spent": [1.5, None]}
    row = {"country": Value(string_val=""), "seats": Value(int32_val=4), "spent": Value(float_val=math.nan)}
    after.write((2, row, START, None))
    found = after.served(1, 2)
    assert found["country"] == ["GB", ""]
    assert found["seats"] == [None, 4]
    assert math.isnan(found["spent"][1])  # type: ignore[arg-type]
    assert before.served(1, 2)["orders"] == [2, None]


def test_the_reader_gives_what_feast_gives(tmp_path: Path) -> None:
    """Lists, times and bytes too, of types that only Feast knows."""
    fields = {
        "a": Int32, "b": Int64, "c": Float32, "d": Float64, "e": Bool, "f": String, "g": Bytes,
        "h": UnixTimestamp, "i": Array(Float32), "j": Array(String),
    }  # fmt: skip
    opened = Opened(tmp_path, fields)
    moment, lists = Value(unix_timestamp_val=1_700_000_000), (Value(), Value())
    lists[0].float_list_val.val.extend([1.5, math.inf])
    lists[1].string_list_val.val.extend(["a", ""])
    full = [
        Value(int32_val=-1), Value(int64_val=2**40), Value(float_val=0.1), Value(double_val=0.1),
        Value(bool_val=False), Value(string_val="é"), Value(bytes_val=b"\0"), moment, *lists,
    ]  # fmt: skip
    opened.write((1, dict(zip(fields, full, strict=True)), START, None))
    opened.write((2, dict.fromkeys(fields, Value()), START, None))
    asked = {"user_id": [2, 1, 3, "1", True]}
    feast = opened.store.get_online_features(
        features=opened.store.get_feature_service("service"), entity_rows=asked
    ).to_dict()
    reader = OnlineReader(registry_bytes(opened.store), "service", opened.url)
    assert reader.read(asked) == {name: feast[name] for name in fields}
    assert [feast[name][1] for name in fields] == [feast_value_type_to_python_type(value) for value in full]
    assert reader.read({"user_id": [None, 1, math.nan]})["b"] == [None, 2**40, None]


def test_views_that_go_take_their_rows_with_them(tmp_path: Path) -> None:
    opened = Opened(tmp_path, FIELDS)
    opened.write((1, {"orders": Value(int64_val=1)}, START, None))
    opened.store.apply([view(FIELDS, "others")])
    opened.store.apply([], objects_to_delete=[opened.view], partial=False)
    assert opened.read(1) == [(None, None)]
    opened.store.teardown()
    with sqlite3.connect(tmp_path / "online.db") as file:
        assert file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
            ("layouts",)
        ]


def test_a_file_of_another_layout_is_refused_by_all(tmp_path: Path) -> None:
    """Not read as empty: a row a feature is what Feast and earlier versions wrote."""
    path = tmp_path / "online.db"
    config = RepoConfig(
        project="test",
        provider="local",
        repo_path=tmp_path,
        registry=str(tmp_path / "old.pb"),
        online_store={"type": "sqlite", "path": str(path)},
        entity_key_serialization_version=3,
    )
    SqliteOnlineStore().update(config, [], [view(FIELDS)], [], [], False)
    with pytest.raises(FeatureError, match="a row a feature: move the file away and materialise again"):
        Opened(tmp_path / "new", FIELDS, f"sqlite:///{path}")
    fresh = Opened(tmp_path / "fresh", FIELDS)
    reader = OnlineReader(registry_bytes(fresh.store), "service", f"sqlite:///{path}")
    with pytest.raises(FeatureError, match="no online store of this layout"):
        reader.read({"user_id": [1]})


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    opened = Opened(tmp_path, FIELDS)
    with sqlite3.connect(tmp_path / "online.db") as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(FeatureError, match="has layout 99; this version reads up to 1"):
        PackedSqliteOnlineStore().file(opened.config)
