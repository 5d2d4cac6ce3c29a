"""Records of a topic, fetched from brokers that speak the protocol: each once, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import run, spec
from faults import Death, FaultKit
from kafka_kit import Brokers, running_brokers
from pydantic import ValidationError

from ml_lifecycle.adapters.kafka_topic import Topic
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.landed_topic import TopicLanding, TopicLandings
from ml_lifecycle.errors import IntegrityError, SourceError, SourceNotReadyError
from ml_lifecycle.records import Snapshot
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.fetch import fetch
from ml_lifecycle.stages.ingest import ingest, not_arrived, read_table

JANUARY = run("2013-01-01", "2013-02-01")


def orders_spec(source: Mapping[str, Any] | None = None, **kafka: Any) -> ModelSpec:
    topic = {"topic": "orders", "timestamp": "at", **kafka}
    return spec(orders={"kafka": topic, "connection": "events", "event_time": "at", **(source or {})})


class Events:
    """A topic of two partitions, and a lake that its records are fetched into."""

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config = config
        self.lake = Lake(str(folder / "lake"))

    def fetch(self, **kafka: Any) -> int:
        return fetch(orders_spec(**kafka), self.lake, {"events": lambda: self.config})["orders"]

    def snapshot(self, **kafka: Any) -> Snapshot:
        return ingest(orders_spec(**kafka), self.lake, JANUARY, origins={"events": lambda: self.config})

    def rows(self, **kafka: Any) -> pl.DataFrame:
        return read_table(self.lake, self.snapshot(**kafka), "orders").collect()

    def ids(self, **kafka: Any) -> list[int]:
        return sorted(self.rows(**kafka)["id"].to_list())

    def landings(self, **kafka: Any) -> list[TopicLanding]:
        return TopicLandings(self.lake, "orders", orders_spec(**kafka).sources["orders"]).current()


@pytest.fixture
def brokers() -> Iterator[Brokers]:
    with running_brokers() as made:
        made.create("orders", 2)
        yield made


@pytest.fixture
def events(brokers: Brokers, tmp_path: Path) -> Events:
    return Events(brokers.config(), tmp_path)


def numbered(first: int, end: int) -> list[dict[str, Any]]:
    return [{"id": number, "value": number / 4} for number in range(first, end)]


def test_every_record_comes_once_and_nothing_is_written_where_nothing_is_new(
    brokers: Brokers, events: Events
) -> None:
    brokers.put("orders", *numbered(0, 30))
    brokers.put("orders", *numbered(30, 50), partition=1)
    first = events.snapshot()
    assert events.landings()[0].end == {0: 30, 1: 20}
    assert (events.fetch(), events.snapshot(), len(events.landings())) == (0, first, 1)
    brokers.put("orders", *numbered(50, 60), partition=1)
    assert events.fetch() == 10
    assert events.ids() == list(range(60))
    assert [(landing.begin, landing.end) for landing in events.landings()] == [
        ({0: 0, 1: 0}, {0: 30, 1: 20}),
        ({0: 30, 1: 20}, {0: 30, 1: 30}),
    ]


def test_a_chunk_is_held_and_kept_at_a_time(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 45))
    brokers.put("orders", *numbered(45, 95), partition=1)
    assert events.fetch(chunk_rows=10) == 95
    assert [landing.rows for landing in events.landings()] == [*[10] * 9, 5]
    assert events.ids(chunk_rows=7) == list(range(95))


def test_what_comes_while_it_reads_is_left_to_the_next(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 10))
    with Topic(events.config, "orders", "source 'orders'") as topic:
        end = {partition: span.end for partition, span in topic.spans().items()}
        brokers.put("orders", *numbered(10, 20))
        (chunk,) = topic.read({0: 0, 1: 0}, end, 100)
    assert ([record.offset() for record in chunk.records], chunk.offsets) == ([*range(10)], {0: 10, 1: 0})


def test_markers_and_tombstones_take_offsets_and_are_no_rows(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 3))
    brokers.commit_marker("orders")
    brokers.put("orders", *numbered(3, 5))
    brokers.put("orders", None, key="k")
    brokers.commit_marker("orders")
    brokers.commit_marker("orders", partition=1)
    assert events.fetch() == 5
    (landing,) = events.landings()
    assert (landing.end, landing.tombstones) == ({0: 8, 1: 1}, 1)
    assert (events.fetch(), events.ids()) == (0, list(range(5)))
    brokers.commit_marker("orders")
    assert (events.fetch(), events.landings()[-1].path, events.ids()) == (0, None, list(range(5)))


def test_a_tombstone_may_be_a_row(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", {"id": 7}, None, key="seven")
    rows = events.rows(key="name", deleted="gone").sort("at")
    assert rows.select("name", "gone", "id").rows() == [("seven", False, 7), ("seven", True, None)]
    assert rows["at"].to_list() == [
        datetime(2013, 1, 1, 0, 26, 40, thousand * 1000, tzinfo=UTC) for thousand in (0, 1)
    ]


def test_time_may_be_a_field_and_what_is_nested_becomes_columns(brokers: Brokers, events: Events) -> None:
    record = {"id": 1, "when": "2013-01-05T10:00:00+01:00", "price": {"amount": 2}, "tags": ["a", "ä"]}
    brokers.put("orders", record, {"id": 2, "when": None, "price": {"amount": 2.5}, "note": None})
    rows = events.rows(timestamp=None, source={"event_time": "when"}).sort("id")
    assert rows["when"].to_list() == [datetime(2013, 1, 5, 9, tzinfo=UTC), None]
    assert rows["price.amount"].to_list() == [2.0, 2.5]
    assert rows["tags"].to_list() == ['["a", "ä"]', None]


def test_a_field_that_no_record_of_a_chunk_has_is_null(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", {"id": 1}, {"id": 2, "when": "2013-01-05T10:00:00Z"})
    for times in ({"event_time": "when"}, {"event_time": "when", "known_at": "when", "keys": ["id", "when"]}):
        rows = events.rows(timestamp=None, chunk_rows=1, source=times).sort("id")
        assert rows["when"].to_list() == [None, datetime(2013, 1, 5, 10, tzinfo=UTC)]


def test_text_is_one_column(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", "früh".encode(), b"12")
    assert sorted(events.rows(format="text")["value"]) == ["12", "früh"]


def test_retention_that_was_faster_is_no_silent_gap(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 10))
    brokers.delete_before("orders", 0, 4)
    assert events.ids() == list(range(4, 10))  # who comes first takes what there is
    brokers.put("orders", *numbered(10, 30))
    brokers.delete_before("orders", 0, 8)  # what was read may go
    assert events.fetch() == 20
    brokers.put("orders", *numbered(30, 50))
    brokers.delete_before("orders", 0, 35)
    said = r"topic 'orders': offsets 30 to 34 of partition 0 were deleted before they were read.*lost: skip"
    with pytest.raises(SourceError, match=said):
        events.fetch()
    assert events.fetch(lost="skip") == 15
    assert events.landings()[-1].lost == {0: 5}
    assert events.ids() == [*range(4, 30), *range(35, 50)]


def test_what_is_deleted_while_it_is_read_is_said_too(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 10))
    with Topic(events.config, "orders", "source 'orders'") as topic:
        brokers.delete_before("orders", 0, 5)
        with pytest.raises(SourceNotReadyError, match="deleted while they were being read"):
            list(topic.read({0: 0}, {0: 10}, 100))


@pytest.mark.parametrize("records", [5, 10, 15])
def test_a_topic_that_was_made_anew_is_another(brokers: Brokers, events: Events, records: int) -> None:
    """Whether the new one has fewer records, as many, or more."""
    brokers.put("orders", *numbered(0, 10))
    assert events.fetch() == 10
    brokers.drop("orders")
    brokers.create("orders", 2)
    brokers.put("orders", *numbered(100, 100 + records))
    with pytest.raises(SourceError, match="'orders' was made anew since landing 1: it has another id"):
        events.fetch()
    assert events.fetch(lost="skip") == records
    assert (events.fetch(), events.ids()) == (0, [*range(10), *range(100, 100 + records)])


def test_brokers_without_ids_are_caught_by_offsets(
    brokers: Brokers, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Topic, "identity", lambda _: None)
    brokers.put("orders", *numbered(0, 10))
    assert events.fetch() == 10
    brokers.drop("orders")
    brokers.create("orders", 1)
    with pytest.raises(SourceError, match="it ends before what was read of it"):
        events.fetch()


def test_partitions_that_are_added_are_read_from_their_beginning(tmp_path: Path) -> None:
    """The kit's brokers cannot add any: the second ones stand for the first, with the topic's id."""
    with running_brokers() as before, running_brokers() as after, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Topic, "identity", lambda _: "one")
        for brokers, partitions in ((before, 1), (after, 3)):
            brokers.create("orders", partitions)
            brokers.put("orders", *numbered(0, 10))
        after.put("orders", *numbered(10, 15), partition=2)
        assert Events(before.config(), tmp_path).fetch() == 10
        grown = Events(after.config(), tmp_path)
        assert (grown.fetch(), grown.landings()[-1].end) == (5, {0: 10, 1: 0, 2: 5})
        after.put("orders", *numbered(15, 20), partition=1)
        after.delete_before("orders", 1, 2)
        with pytest.raises(SourceError, match="offsets 0 to 1 of partition 1 were deleted"):
            grown.fetch()


UNREADABLE = [
    (b"{not", "its value is no JSON: Expecting property name enclosed in double quotes"),
    (b"\xff\xfe", "its value is not UTF-8"),
    (b"[1]", "its value is no object of JSON"),
    (b'{"id": NaN}', "its value is no JSON: no value of JSON"),
    (b"[" * 100_000, "its value is no JSON: no value of JSON"),
    (b'{"id": "secret"}', "id is of type string, and was integer before"),
    (b'{"id": 9223372036854775808}', "id is a whole number that 64 bits cannot hold"),
    (b'{"id": 1, "name": "\\ud800"}', "name holds half a character"),
    (b'{"a.b": 1, "a": {"b": 2}}', "its value has a.b more than once"),
    (b'{"at": 1}', "its value has at too"),
]


@pytest.mark.parametrize(("value", "said"), UNREADABLE)
def test_a_record_that_cannot_be_read_is_named_and_nothing_is_lost(
    brokers: Brokers, events: Events, value: bytes, said: str
) -> None:
    brokers.put("orders", *numbered(0, 3))
    assert events.fetch() == 3
    brokers.put("orders", {"id": 3}, value, {"id": 4}, partition=1)
    with pytest.raises(SourceError, match=f"topic 'orders', partition 1, offset 1: {said}") as raised:
        events.fetch()
    assert "secret" not in str(raised.value)
    assert len(events.landings()) == 1
    assert (events.fetch(unreadable="set_aside"), events.ids()) == (2, list(range(5)))
    aside = events.landings()[-1].set_aside
    assert aside is not None
    kept = pl.read_parquet(events.lake.read_bytes(aside))
    assert kept.select("partition", "offset", "value").rows() == [(1, 1, value)]
    assert said in kept["reason"][0]


def test_a_record_without_any_column_is_no_row(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", {})
    with pytest.raises(SourceError, match="offset 0: its value has no field"):
        events.fetch(timestamp=None, source={"event_time": None})


def test_a_column_has_one_type_for_ever_but_whole_numbers_may_get_fractions(
    brokers: Brokers, events: Events
) -> None:
    brokers.put("orders", {"id": 1, "value": 1, "flag": True})
    brokers.put("orders", {"id": 2, "value": 2.5})
    assert events.fetch(chunk_rows=1) == 2
    assert events.landings()[-1].kinds["value"] == "float"
    assert sorted(events.rows()["value"]) == [1.0, 2.5]
    brokers.put("orders", {"id": 3, "flag": 1})
    with pytest.raises(SourceError, match="offset 2: flag is of type integer, and was boolean before"):
        events.fetch()


def test_two_at_once_keep_every_record_once(brokers: Brokers, events: Events) -> None:
    for partition in (0, 1):
        brokers.put("orders", *numbered(partition * 100, partition * 100 + 100), partition=partition)
    barrier = threading.Barrier(2)
    fetched = []

    def work() -> None:
        barrier.wait()
        fetched.append(events.fetch(chunk_rows=20))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(fetched) == 200
    assert events.ids() == list(range(200))
    kept = {landing.path for landing in events.landings()}
    assert {path for path in events.lake.list("landed") if path.endswith("parquet")} == kept


def test_who_finds_the_landing_taken_goes_on_after_it(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 30))
    other = Events(events.config, Path(events.lake.url).parent)
    add, raced = TopicLandings.add, []

    def late(self: TopicLandings, *arguments: Any) -> TopicLanding | None:
        if not raced:  # the other one reads up to another place, and is first
            raced.append(True)
            raced.append(other.fetch(chunk_rows=12))
        return add(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TopicLandings, "add", late)
        assert events.fetch(chunk_rows=20) == 0
    assert (raced, events.ids()) == ([True, 30], list(range(30)))


def fetch_in(folder: Path, address: str) -> int:
    return Events({"bootstrap.servers": address, "fetch.wait.max.ms": 20}, folder).fetch(chunk_rows=3)


@pytest.mark.full
def test_killed_anywhere_it_goes_on_and_keeps_every_record_once(
    brokers: Brokers, tmp_path: Path, faults: FaultKit
) -> None:
    brokers.put("orders", *numbered(0, 8))
    (tmp_path / "played").mkdir()
    played = faults.run(tmp_path, fetch_in, tmp_path / "played", brokers.address)
    assert played.value == 8
    for gap in range(len(played.effects)):
        folder = tmp_path / f"killed_{gap}"
        folder.mkdir()
        assert faults.run(tmp_path, fetch_in, folder, brokers.address, death=Death(gap)).died
        assert Events(brokers.config(), folder).ids(chunk_rows=3) == list(range(8))


def test_without_brokers_topic_or_rows_it_has_not_arrived(brokers: Brokers, events: Events) -> None:
    with pytest.raises(SourceNotReadyError, match="nothing was fetched that has a row"):
        events.snapshot()
    assert not_arrived(orders_spec(), events.lake, JANUARY) == ()  # it is asked when it is fetched
    # What comes next is a first record, and what is deleted before it is seen is lost.
    brokers.put("orders", *numbered(0, 5))
    brokers.delete_before("orders", 0, 2)
    with pytest.raises(SourceError, match="offsets 0 to 1 of partition 0"):
        events.fetch()
    with pytest.raises(
        SourceNotReadyError, match=r"topic 'nothing' cannot be read now: .*Unknown topic.*; asked were 1"
    ):
        events.fetch(topic="nothing")
    with pytest.raises(SourceError, match="source 'orders': the connection's configuration is refused"):
        Events({"bootstrap.servers": 5, "no.such.setting": "x"}, Path(events.lake.url)).fetch()


def test_a_landing_that_is_missing_is_said(brokers: Brokers, events: Events) -> None:
    brokers.put("orders", *numbered(0, 5))
    events.fetch(chunk_rows=1)
    (third,) = [path for path in events.lake.list("landed") if path.endswith("/00000003.json")]
    events.lake.delete(third)
    with pytest.raises(IntegrityError, match="some are missing"):
        events.fetch()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connection": None}, "needs connection"),
        ({"uri": "raw/*.parquet"}, "exactly one of uri, sql, http and kafka; it has uri, kafka"),
        ({"format": "json"}, "goes with uri"),
        ({"kafka": {"topic": "t", "deleted": "gone"}}, "needs key"),
        ({"kafka": {"topic": "t", "key": "at", "timestamp": "at"}}, "at cannot be two columns"),
        ({"kafka": {"topic": "t", "format": "text", "key": "value"}}, "value cannot be two columns"),
        ({"kafka": {"topic": "t", "unreadable": "drop"}}, "'halt' or 'set_aside'"),
    ],
)
def test_a_topic_is_declared_in_one_way(change: dict[str, Any], said: str) -> None:
    declared = orders_spec().sources["orders"].model_dump(mode="json")
    with pytest.raises(ValidationError, match=said):
        spec(orders={**declared, **change})
