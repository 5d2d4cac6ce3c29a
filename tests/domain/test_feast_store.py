"""The offline store, through Feast's public calls, against a join written out in Python."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from ml_lifecycle.adapters import as_of as joins
from ml_lifecycle.adapters.feast_bulk import materialise
from ml_lifecycle.adapters.feast_repo import Features, repo_config
from ml_lifecycle.adapters.feast_store import AsOfOfflineStore
from ml_lifecycle.errors import FeatureError

START = datetime(2024, 1, 1, tzinfo=UTC)
TTL = timedelta(hours=5)
TIME = pl.Datetime("us", "UTC")

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.STRING)
city = Entity(name="city", join_keys=["city_id"], value_type=ValueType.INT64)


def view(name: str, entities: list[Entity], fields: list[Field], **source: object) -> FeatureView:
    ttl = source.pop("ttl", None)
    return FeatureView(
        name=name,
        entities=entities,
        schema=fields,
        ttl=ttl,
        source=FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp", **source),
    )


def trips(ttl: timedelta | None = TTL) -> FeatureView:
    return view(
        "trips",
        [driver],
        [Field(name="rating", dtype=Float64), Field(name="note", dtype=String)],
        ttl=ttl,
        created_timestamp_column="created",
    )


def store(folder: Path, *objects: object) -> FeatureStore:
    made = FeatureStore(config=repo_config("test", folder))
    made.apply([driver, city, *objects])
    return made


def hours(value: float) -> datetime:
    return START + timedelta(hours=value)


def write(folder: Path, name: str, rows: list[dict[str, object]], **types: pl.DataType) -> None:
    frame = pl.DataFrame(rows, schema_overrides={"event_timestamp": TIME, **types}, infer_schema_length=None)
    frame.write_parquet(folder / f"{name}.parquet")


def moments(*rows: tuple[object, ...], keys: tuple[str, ...] = ("driver_id",)) -> pd.DataFrame:
    frame = pd.DataFrame([dict(zip((*keys, "event_timestamp"), row, strict=True)) for row in rows])
    return frame.assign(event_timestamp=pd.to_datetime(frame["event_timestamp"], utc=True))


def as_of(rows: list[dict[str, object]], key: object, moment: datetime) -> tuple[object, object]:
    """What the join must find, by looking at every row."""
    best: tuple[object, ...] | None = None
    for number, row in enumerate(rows):
        event, created = row["event_timestamp"], row["created"]
        if key is None or row["driver_id"] != key or event > moment or event < moment - TTL:
            continue
        rank = (event, created is not None, created or START, number)
        if best is None or rank > best[0]:
            best = (rank, row["rating"], row["note"])
    return (None, None) if best is None else (best[1], best[2])


@pytest.mark.parametrize("seed", range(5))
def test_join_agrees_with_looking_at_every_row(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    def key() -> str | None:
        return chance.choice(["a", "b", "c", "d", None])

    rows = [
        {
            "driver_id": key(),
            "event_timestamp": hours(chance.randrange(24)),  # whole hours: many ties
            "created": chance.choice([None, hours(30 + chance.randrange(4))]),
            "rating": chance.choice([None, chance.random()]),
            "note": chance.choice([None, "", "x", "y"]),
        }
        for _ in range(300)
    ]
    write(tmp_path, "trips", rows, created=TIME)
    asked = moments(*[(key(), hours(chance.randrange(-2, 36))) for _ in range(300)])

    found = (
        store(tmp_path, trips())
        .get_historical_features(entity_df=asked, features=["trips:rating", "trips:note"])
        .to_arrow()
        .to_pylist()
    )

    assert [row["driver_id"] for row in found] == asked["driver_id"].tolist()
    for row, moment in zip(found, asked["event_timestamp"], strict=True):
        expected = as_of(rows, row["driver_id"], moment.to_pydatetime())
        assert (row["rating"], row["note"]) == expected, (row, moment)


def test_rows_that_are_equal_all_stay_and_their_order_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        "trips",
        [{"driver_id": "a", "event_timestamp": hours(1), "created": hours(1), "rating": 0.5, "note": "n"}],
    )
    asked = moments(("a", hours(2)), ("b", hours(1)), ("a", hours(2)), ("a", hours(0)), ("a", hours(9)))
    found = (
        store(tmp_path, trips()).get_historical_features(entity_df=asked, features=["trips:rating"]).to_df()
    )
    assert found["rating"].tolist()[::2][:2] == [0.5, 0.5]
    assert found["rating"].isna().tolist() == [False, True, False, True, True]
    assert found["event_timestamp"].tolist() == asked["event_timestamp"].tolist()


def test_the_end_of_a_lifetime_belongs_to_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        "trips",
        [{"driver_id": "a", "event_timestamp": hours(0), "created": hours(0), "rating": 1.0, "note": "n"}],
    )
    after = hours(5) + timedelta(microseconds=1)
    asked = moments(("a", hours(5)), ("a", after))
    found = (
        store(tmp_path, trips()).get_historical_features(entity_df=asked, features=["trips:rating"]).to_df()
    )
    assert found["rating"].isna().tolist() == [False, True]
    forever = store(tmp_path, trips(ttl=timedelta(0)))
    found = forever.get_historical_features(entity_df=asked, features=["trips:rating"]).to_df()
    assert found["rating"].tolist() == [1.0, 1.0]


def test_views_of_several_entities_mapped_columns_other_key_names_and_on_demand_features(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        "pairs",
        [
            {"drv": "a", "city_id": 7, "event_timestamp": hours(1), "n": 3},
            {"drv": "a", "city_id": 8, "event_timestamp": hours(1), "n": 4},
        ],
    )
    pairs = view(
        "pairs",
        [driver, city],
        [Field(name="count", dtype=Int64)],
        field_mapping={"drv": "driver_id", "n": "count"},
    )
    write(tmp_path, "homes", [{"city_id": 8, "event_timestamp": hours(0), "size": 2.0}])
    homes = view("homes", [city], [Field(name="size", dtype=Float64)])
    write(tmp_path, "world", [{"event_timestamp": hours(0), "price": 1.5}])
    world = view("world", [], [Field(name="price", dtype=Float64)])

    @on_demand_feature_view(sources=[world], schema=[Field(name="double", dtype=Float64)], mode="pandas")
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": inputs["price"] * 2})

    home = homes.with_name("home").with_join_key_map({"city_id": "home_id"})
    every = FeatureService(name="every", features=[pairs, homes, world, doubled])
    moved = FeatureService(name="moved", features=[pairs, home])
    asked = moments(("a", 7, 8, hours(2)), ("a", 8, 7, hours(2)), keys=("driver_id", "city_id", "home_id"))
    made = store(tmp_path, pairs, homes, world, doubled, every, moved)

    found = made.get_historical_features(entity_df=asked, features=every, full_feature_names=True).to_df()
    assert found["pairs__count"].tolist() == [3, 4]
    assert found["homes__size"].isna().tolist() == [True, False]
    assert found["world__price"].tolist() == [1.5, 1.5]
    assert found["doubled__double"].tolist() == [3.0, 3.0]
    found = made.get_historical_features(entity_df=asked, features=moved, full_feature_names=True).to_df()
    assert found["home__size"].isna().tolist() == [False, True]


def test_times_may_be_named_as_they_are_mapped(tmp_path: Path) -> None:
    """As Feast's own stores take them; by their names in the table they are taken too."""
    rows = [
        {"driver_id": key, "happened": hours(hour), "noted": hours(noted), "rating": rating}
        for key, hour, noted, rating in [
            ("a", 1, 3, 0.25),
            ("a", 1, 4, 0.5),
            ("a", 1, 2, 0.75),
            ("b", 2, 2, 1.0),
            ("b", 9, 9, 2.0),
        ]
    ]
    frame = pl.DataFrame(rows, schema_overrides={"happened": TIME, "noted": TIME})
    frame.write_parquet(tmp_path / "trips.parquet")
    asked = moments(("a", hours(5)), ("b", hours(5)), ("a", hours(0)))
    found, pulled = [], []
    for event, created in (("event_timestamp", "created"), ("happened", "noted")):
        trips = FeatureView(
            name="trips",
            entities=[driver],
            schema=[Field(name="rating", dtype=Float64)],
            source=FileSource(
                name="trips",
                path="trips.parquet",
                timestamp_field=event,
                created_timestamp_column=created,
                field_mapping={"happened": "event_timestamp", "noted": "created"},
            ),
        )
        service = FeatureService(name="every", features=[trips])
        objects = {"driver": driver, "trips": trips, "every": service}
        features = Features.of(SimpleNamespace(**objects), "test", "every")  # type: ignore[arg-type]
        assert features.source_tables()["trips"].keys() == {"driver_id", "rating", "happened", "noted"}
        assert features.order_of(trips) == ["happened", "noted"]
        assert features.counting("trips", frame.lazy(), hours(5)).collect().height == 4
        made = store(tmp_path, trips, service)
        found.append(made.get_historical_features(entity_df=asked, features=service).to_df()["rating"])
        online = repo_config("test", tmp_path, f"sqlite:///{tmp_path}/{event}.db")
        made = FeatureStore(config=online)
        made.apply([driver, trips, service])
        materialise(made, hours(0), hours(6))
        keys = [{"driver_id": key} for key in "ab"]
        pulled.append(made.get_online_features(features=service, entity_rows=keys).to_dict()["rating"])
    assert found[0].isna().tolist() == [False, False, True]
    assert [ratings.tolist()[:2] for ratings in found] == [[0.5, 1.0]] * 2
    assert pulled == [[0.5, 1.0]] * 2


def test_entity_rows_may_be_a_frame_of_whatever_types(tmp_path: Path) -> None:
    """Each row finds what is its own: texts that come again, are missing, or are categories; and any zone."""
    rows = [
        {"driver_id": key, "event_timestamp": hours(1), "created": hours(1), "rating": rating, "note": key}
        for key, rating in (("a", 0.5), ("b", 0.75), ("7", 0.25))
    ]
    write(tmp_path, "trips", rows)
    made = store(tmp_path, trips())
    keys = ["a", None, "b", float("nan"), "c", "a", "7", "7"]
    times = pd.Series([hours(2)] * len(keys))
    zones = pd.Series([hours(2).astimezone(ZoneInfo(z)) for z in ("Asia/Tokyo", "UTC") * 4], dtype=object)
    plain = pd.DataFrame({"driver_id": keys, "event_timestamp": times, "beside": ["x", "y"] * 4})
    frames = {
        "object": plain,
        "category": plain.astype({"driver_id": "category", "beside": "category"}),
        "string": plain.astype({"driver_id": "string"}),
        "duplicated index": plain.set_axis([0, 0, 1, 1] * 2),
        "without a zone": plain.assign(event_timestamp=times.dt.tz_localize(None)),
        "another zone": plain.assign(event_timestamp=times.dt.tz_convert("Asia/Tokyo")),
        "several zones": plain.assign(event_timestamp=zones),
    }
    for kind, frame in frames.items():
        job = made.get_historical_features(entity_df=frame, features=["trips:rating", "trips:note"])
        found = job.to_df()
        assert found["note"].tolist() == ["a", None, "b", None, None, "a", "7", "7"], kind
        assert found["rating"].fillna(0).tolist() == [0.5, 0, 0.75, 0, 0, 0.5, 0.25, 0.25], kind
        assert found["beside"].tolist() == ["x", "y"] * 4, kind
        pd.testing.assert_frame_equal(found, RetrievalJob.to_df(job))
        found.loc[0, ["beside", "rating"]] = "y", 0.0  # nobody else's, and not read-only
        assert job.to_df()["beside"].tolist() == frame["beside"].tolist() == ["x", "y"] * 4
    mixed = plain.assign(driver_id=["a", 7] * 4)
    job = made.get_historical_features(entity_df=mixed, features=["trips:rating"])
    with pytest.raises(pa.ArrowException, match="driver_id"):
        job.to_df()


def test_whatever_cannot_be_joined_is_said(tmp_path: Path) -> None:
    row = {"driver_id": "a", "event_timestamp": hours(1), "rating": 0.5, "note": "n"}
    write(tmp_path, "trips", [row])
    made = store(tmp_path, trips())

    def ask(asked: object, *features: str) -> object:
        return made.get_historical_features(entity_df=asked, features=[*features]).to_df()

    good = moments(("a", hours(1)))
    with pytest.raises(FeatureError, match=r"lacks the columns \['created'\]"):
        ask(good, "trips:rating")
    write(tmp_path, "trips", [{**row, "created": hours(1)}])
    with pytest.raises(FeatureError, match=r"needs the entity columns \['driver_id'\]"):
        ask(good.rename(columns={"driver_id": "id"}), "trips:rating")
    with pytest.raises(FeatureError, match="full_feature_names"):
        ask(good.assign(rating=1.0), "trips:rating")
    with pytest.raises(FeatureError, match="needs a column 'event_timestamp'"):
        ask(good.drop(columns="event_timestamp"), "trips:rating")
    for other in ("SELECT 1", good["driver_id"]):
        with pytest.raises(FeatureError, match="must be a pandas data frame or the path of a Parquet file"):
            ask(other, "trips:rating")


def test_results_persist_and_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    write(
        tmp_path,
        "trips",
        [{"driver_id": "a", "event_timestamp": hours(1), "created": hours(1), "rating": 0.5, "note": "n"}],
    )
    made = store(tmp_path, trips())
    storage = SavedDatasetFileStorage(path="saved/set.parquet")
    job = made.get_historical_features(entity_df=moments(("a", hours(2))), features=["trips:rating"])
    made.create_saved_dataset(from_=job, name="saved", storage=storage)
    assert pl.read_parquet(tmp_path / "saved/set.parquet")["rating"].to_list() == [0.5]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    with pytest.raises(FeatureError, match="a local path"):
        job.persist(SavedDatasetFileStorage(path="s3://bucket/set.parquet"))


def test_entity_rows_may_be_a_parquet_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "trips",
        [{"driver_id": "a", "event_timestamp": hours(1), "created": hours(1), "rating": 0.5, "note": "n"}],
    )
    asked = moments(("a", hours(2)), ("b", hours(2)), ("a", hours(0)))
    asked.to_parquet(tmp_path / "rows.parquet")
    made = store(tmp_path, trips())
    for path in ("rows.parquet", str(tmp_path / "rows.parquet"), "*rows.parquet"):
        job = made.get_historical_features(entity_df=path, features=["trips:rating", "trips:note"])
        found = job.to_df()
        assert found["driver_id"].tolist() == ["a", "b", "a"]
        assert found["note"].tolist() == ["n", None, None]
    saved = SavedDatasetFileStorage(path="saved.parquet")
    dataset = made.create_saved_dataset(from_=job, name="saved", storage=saved)
    assert (dataset.min_event_timestamp, dataset.max_event_timestamp) == (hours(0), hours(2))
    assert dataset.to_df()["note"].tolist() == ["n", None, None]


def test_a_result_is_written_slice_by_slice_as_it_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On-demand features too, whose types pandas would guess anew from each slice's values."""
    write(tmp_path, "world", [{"event_timestamp": hours(1), "count": 3}])
    world = view("world", [], [Field(name="count", dtype=Int64)])

    @on_demand_feature_view(sources=[world], schema=[Field(name="double", dtype=Int64)], mode="pandas")
    def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"double": inputs["count"] * 2})

    made = store(tmp_path, world, doubled)
    asked = moments(*[(name, hours(at)) for at, name in enumerate("abcde")])
    features = ["world:count", "doubled:double"]
    job = made.get_historical_features(entity_df=asked, features=features)
    whole = pl.DataFrame(pl.from_arrow(job.to_arrow())).with_columns(pl.col("double").cast(pl.Int64()))
    for size in (1, 100, 10_000):  # bytes
        monkeypatch.setattr(joins, "SLICE_BYTES", size)
        assert job.write(tmp_path / "result.parquet") == 5
        assert pl.read_parquet(tmp_path / "result.parquet").equals(whole)
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_the_newest_row_of_each_key_does_not_depend_on_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(1)
    rows = [
        {
            "driver_id": chance.choice("abcdef"),
            "event_timestamp": hours(chance.randrange(24)),
            "created": chance.choice([None, hours(chance.randrange(30, 34))]),
            "rating": float(number),
            "note": "n",
        }
        for number in range(200)
    ]
    write(tmp_path, "trips", rows, created=TIME)
    made = store(tmp_path, trips())
    source = made.get_feature_view("trips").batch_source

    def pull(end: datetime) -> list[dict[str, object]]:
        job = AsOfOfflineStore.pull_latest_from_table_or_query(
            made.config, source, ["driver_id"], ["rating"], "event_timestamp", "created", hours(3), end
        )
        found: list[dict[str, object]] = job.to_arrow().to_pylist()
        return sorted(found, key=lambda row: str(row["driver_id"]))

    def rank(place: int) -> tuple[object, ...]:
        created = rows[place]["created"]
        return rows[place]["event_timestamp"], created is not None, created or START, place

    expected: dict[str, float] = {}
    for place in sorted(range(len(rows)), key=rank):
        if hours(3) <= rows[place]["event_timestamp"] <= hours(20):
            expected[rows[place]["driver_id"]] = rows[place]["rating"]
    for size in (1, 500, 100_000):  # bytes
        monkeypatch.setattr(joins, "SLICE_BYTES", size)
        assert {row["driver_id"]: row["rating"] for row in pull(hours(20))} == expected
        assert pull(hours(2)) == []


def test_rows_written_through_feast_are_read_back(tmp_path: Path) -> None:
    rows = [{"driver_id": "a", "event_timestamp": hours(1), "created": hours(1), "rating": 0.5, "note": "n"}]
    write(tmp_path, "trips", rows)
    made = store(tmp_path, trips())
    new = pd.DataFrame(rows).assign(event_timestamp=pd.Timestamp(hours(2)), rating=0.75)
    made.write_to_offline_store("trips", new[["driver_id", "event_timestamp", "created", "rating", "note"]])
    found = made.get_historical_features(
        entity_df=moments(("a", hours(3))), features=["trips:rating"]
    ).to_df()
    assert found["rating"].tolist() == [0.75]
