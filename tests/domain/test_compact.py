"""The prediction log is compacted while it is read: nobody sees less, more or other rows than before."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from faults import Death, FaultKit
from hypothesis import given, settings
from hypothesis import strategies as st
from log_kit import (
    BATCH_BYTES,
    DAY,
    ENDPOINT,
    LATER,
    NEXT,
    STRETCH_BYTES,
    compact_and_delete,
    compact_log,
    ids,
    make_rows,
    read,
    window,
    write_day,
    write_part,
)
from s3_kit import S3Store
from step_log_kit import RELEASE
from tests.domain.test_monitor import DAY as MONITORED
from tests.domain.test_monitor import World, known_labels, log_rows, make_spec, run, traffic
from training_world import make_folder

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import find_parts, list_day, scan_parts
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.cli import main
from ml_lifecycle.errors import IntegrityError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Interval
from ml_lifecycle.stages import monitor as monitor_stage
from ml_lifecycle.stages.compact import compact, expire, kept_from

MUCH_LATER = LATER + timedelta(days=2)
MODELS = ("one", "two", "failed", "old")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def parts_of(lake: Lake) -> list[str]:
    return list(lake.list(f"predictions/{ENDPOINT}"))


def compacted(lake: Lake, ending: str = "") -> list[str]:
    return [path for path in lake.list("predictions_compacted") if path.endswith(ending)]


def names(*numbers: int) -> list[str]:
    return sorted(f"request-{number}" for number in numbers)


def test_a_day_becomes_a_few_files_and_its_parts_go_a_day_later(lake: Lake) -> None:
    write_day(lake, 40)
    before = read(lake)
    done = compact_log(lake)
    assert (done.parts, done.deleted) == (40, 0)
    assert done.files < 15
    assert (len(parts_of(lake)), read(lake)) == (40, before)
    assert compact_log(lake, LATER + timedelta(hours=23)).deleted == 0
    assert compact_log(lake, MUCH_LATER).deleted == 40
    assert (parts_of(lake), read(lake)) == ([], before)
    assert compact_log(lake, MUCH_LATER).parts == 0


Drawn = list[tuple[str, int, int, int]]


@settings(max_examples=5)
@given(
    st.lists(
        st.tuples(st.sampled_from(MODELS), st.integers(1, 2), st.integers(0, 1439), st.integers(1, 4)),
        min_size=20,
        max_size=60,
    ),
    st.integers(1, 60),
)
def test_what_is_read_is_the_same_before_and_after(
    tmp_path_factory: pytest.TempPathFactory, drawn: Drawn, at_most: int
) -> None:
    """Of two servers and several models; compacted bit by bit, and with its parts deleted."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for number, (model, server, minute, count) in enumerate(drawn):
        rows = make_rows(model, range(number * 10, number * 10 + count), DAY + timedelta(minutes=minute))
        write_part(lake, model, number, rows, f"s{server}")
    before = read(lake)
    for now in (DAY + timedelta(hours=5), LATER, MUCH_LATER, MUCH_LATER + timedelta(days=20)):
        compact_log(lake, now, at_most)
        assert read(lake) == before
    compact_log(lake, MUCH_LATER + timedelta(days=20))
    compact_log(lake, MUCH_LATER + timedelta(days=22))
    assert (parts_of(lake), read(lake)) == ([], before)
    kinds = [frozenset(pl.read_parquet(lake.full_path(path))["model_version"]) for path in rows_of(lake)]
    assert all(len(models) == 1 for models in kinds)


def rows_of(lake: Lake) -> list[str]:
    return [path for path in compacted(lake, ".parquet") if "-parts-" not in path]


@settings(max_examples=12)
@given(st.lists(st.lists(st.integers(0, 1439), max_size=25), min_size=2, max_size=5))
def test_late_parts_are_read_once_whenever_they_come(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[list[int]]
) -> None:
    """Between compactions, before and behind what is compacted already."""
    lake, written, now = Lake(str(tmp_path_factory.mktemp("lake"))), 0, LATER
    for minutes in arrivals:
        for minute in minutes:
            rows = make_rows("one", range(written, written + 1), DAY + timedelta(minutes=minute))
            write_part(lake, "one", written, rows)
            written += 1
        compact_log(lake, now)
        assert ids(lake) == names(*range(written))
        assert [part.number for part in sorted_parts(lake)] == list(range(written))
        now += timedelta(hours=20)
    compact_log(lake, now + timedelta(days=20))
    compact_log(lake, now + timedelta(days=22))
    assert (parts_of(lake), ids(lake)) == ([], names(*range(written)))


def sorted_parts(lake: Lake) -> list[Any]:
    return sorted(find_parts(lake, ENDPOINT, DAY.date()), key=lambda part: part.number)


def test_of_today_what_is_full_is_compacted_and_a_few_parts_wait_a_week(lake: Lake) -> None:
    write_day(lake, 25)
    full = compact_log(lake, DAY + timedelta(hours=1)).parts
    assert 10 < full < 25
    assert compact_log(lake, LATER).parts == 0  # fewer than 16 are left
    assert compact_log(lake, NEXT + timedelta(days=7)).parts == 25 - full


def test_who_began_to_read_goes_on_while_it_is_compacted(lake: Lake) -> None:
    write_day(lake, 40)
    log, watched = window(lake), find_parts(lake, ENDPOINT, DAY.date())
    batches = log.batches(["prediction_id"])
    seen = next(batches).height
    compact_log(lake)
    assert seen + sum(batch.height for batch in batches) == 120
    compact_log(lake, MUCH_LATER)
    with pytest.raises(FileNotFoundError):  # never fewer rows
        list(log.batches(["prediction_id"]))
    with pytest.raises(FileNotFoundError):
        scan_parts(lake, watched).collect()


def test_what_is_compacted_between_two_listings_is_read_once(lake: Lake) -> None:
    """The reader has listed the parts, and not yet the indexes."""
    write_day(lake, 40)

    class Compacted(Lake):
        def list(self, prefix: str) -> Any:
            compact_log(lake)
            return super().list(prefix)

    assert ids(Compacted(lake.url)) == names(*range(120))
    assert len(compacted(lake, ".json")) == 2


def test_of_two_at_once_one_compacts(lake: Lake) -> None:
    """Just before the first publishes a stretch, a second has found one part more, and is quicker."""
    write_day(lake, 20)

    class Slow(Lake):
        raced = False

        def create_json(self, path: str, value: Any) -> bool:
            if not self.raced:
                self.raced = True
                write_part(lake, "one", 99, make_rows("one", range(500, 501), DAY + timedelta(seconds=1)))
                compact_log(lake)
            return super().create_json(path, value)

    assert compact_log(Slow(lake.url)).parts == 0
    assert ids(lake) == names(*range(60), 500)
    compact_log(lake, MUCH_LATER)
    compact_log(lake, MUCH_LATER + timedelta(days=20))
    assert ids(lake) == names(*range(60), 500)


def test_what_is_torn_stays_and_is_told_and_the_rest_is_compacted(lake: Lake) -> None:
    paths = write_day(lake, 40)
    foot, pages = lake.read_bytes(paths[7]), lake.read_bytes(paths[30])
    lake.write_bytes(paths[7], foot[: len(foot) // 2])
    lake.write_bytes(paths[30], pages[:4] + bytes(1500) + pages[1504:])
    assert compact_log(lake).parts == 38
    assert compact_log(lake, MUCH_LATER).deleted == 38
    assert parts_of(lake) == [paths[7], paths[30]]
    log = window(lake)
    assert log.read(["prediction_id"]).height == 114
    assert sorted(log.unreadable) == [paths[7], paths[30]]
    assert log.parts == 40
    lake.write_bytes(paths[7], foot)
    assert window(lake).read(["prediction_id"]).height == 117


def without_footer(part: bytes) -> bytes:
    """Its length is what it was."""
    size = int.from_bytes(part[-8:-4], "little")
    return part[: -8 - size] + b"\xff" * size + part[-8:]


def panicking(part: bytes) -> bytes:
    """A changed bit or two make Polars panic, which is no Exception."""
    table = pq.read_table(BytesIO(part))
    marked = table.schema.field("endpoint").with_metadata({"_PL_ENUM_VALUES2": "not a length"})
    buffer = BytesIO()
    pq.write_table(table.cast(table.schema.set(table.schema.names.index("endpoint"), marked)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [without_footer, panicking])
def test_whatever_is_wrong_with_a_part_the_others_are_read_and_compacted(
    lake: Lake, damage: Callable[[bytes], bytes]
) -> None:
    paths = write_day(lake, 20)
    lake.write_bytes(paths[7], damage(lake.read_bytes(paths[7])))
    log = window(lake)
    assert log.read(["prediction_id", "endpoint"]).height == 57
    assert sorted(log.unreadable) == [paths[7]]
    assert compact_log(lake).parts == 19
    compact_log(lake, MUCH_LATER)
    assert parts_of(lake) == [paths[7]]
    assert len(ids(lake)) == 57


def test_parts_stay_while_their_compacted_file_is_not_what_it_was(lake: Lake) -> None:
    write_day(lake, 40)
    compact_log(lake)
    damaged = rows_of(lake)[0]
    whole = lake.read_bytes(damaged)
    lake.write_bytes(damaged, whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(IntegrityError, match=f"{damaged.rsplit('/', 1)[-1]} is damaged; its parts are still"):
        compact_log(lake, MUCH_LATER)
    assert len(parts_of(lake)) == 40
    (index,) = [path for path in compacted(lake, ".json") if damaged in lake.read_bytes(path).decode()]
    lake.delete(index)
    compact_log(lake, MUCH_LATER)
    compact_log(lake, MUCH_LATER + timedelta(days=2))
    assert (parts_of(lake), ids(lake)) == ([], names(*range(120)))


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.full)])
def test_killed_anywhere_and_again_it_goes_on(faults: FaultKit, tmp_path: Path, every: int) -> None:
    """Before any external effect of both halves, twice."""
    undisturbed = tmp_path / "undisturbed"
    write_day(Lake(str(undisturbed / "lake")), 18)
    expected = read(Lake(str(undisturbed / "lake")))
    outcome = faults.run(undisturbed, compact_and_delete, undisturbed)
    assert outcome.error is None
    after = sorted(compacted(Lake(str(undisturbed / "lake"))))
    for gap in range(1, len(outcome.effects) + 1, every):
        root = tmp_path / str(gap)
        lake = Lake(str(root / "lake"))
        write_day(lake, 18)
        for attempt in range(2):
            assert faults.run(root, compact_and_delete, root, death=Death(gap - attempt)).died
            assert read(lake) == expected, outcome.effects[gap - 1]
        compact_and_delete(root)
        compact_and_delete(root)
        assert (parts_of(lake), read(lake)) == ([], expected)
        assert sorted(compacted(lake)) == after


def expire_the_day(root: Path) -> list[str]:
    return expire(Lake(str(root / "lake")), ENDPOINT, NEXT.date())


@pytest.mark.full
def test_killed_while_a_day_goes_it_is_gone_the_next_time_and_nothing_is_read_twice(
    faults: FaultKit, tmp_path: Path
) -> None:
    """Some of it compacted with its parts still there, some not; the next day stays."""
    begun, root = tmp_path / "begun", tmp_path / "place"
    lake = Lake(str(begun / "lake"))
    write_day(lake, 17)
    compact_log(lake)
    write_day(lake, 2, start=17)
    kept = write_part(lake, "one", 99, make_rows("one", range(500, 501), NEXT))
    for gap in itertools.count():
        shutil.copytree(begun, root)
        outcome = faults.run(root, expire_the_day, root, death=Death(gap))
        lake = Lake(str(root / "lake"))
        with suppress(FileNotFoundError):  # an index whose file is gone
            assert Counter(ids(lake)) <= Counter(names(*range(57)))
        assert expire_the_day(root) in ([DAY.date().isoformat()], [])
        assert [*lake.list("predictions"), *lake.list("predictions_compacted")] == [kept]
        shutil.rmtree(root)
        if outcome.stopped_at is None:
            break
    assert gap > 17


def test_on_s3_it_is_the_same(s3: S3Store, lake: Lake) -> None:
    bucket = s3.new_lake()
    for one in (lake, bucket):
        write_day(one, 17)
        write_day(one, 16, "two", start=100)
    before = read(lake)
    assert read(bucket) == before
    for now in (LATER, MUCH_LATER):
        assert compact_log(bucket, now) == compact_log(lake, now)
        assert read(bucket) == before
    assert parts_of(bucket) == []
    assert compacted(bucket, ".parquet") == compacted(lake, ".parquet")
    assert expire(bucket, ENDPOINT, NEXT.date()) == [DAY.date().isoformat()]
    assert list(bucket.list("predictions_compacted")) == []


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(PredictionWindow, batch_bytes=BATCH_BYTES, stretch_bytes=STRETCH_BYTES)
    monkeypatch.setattr(monitor_stage, "PredictionWindow", small)


def log_day(world: World, rows: pl.DataFrame) -> None:
    """As a server of today writes it."""
    features = pl.Struct({"delay": pl.Float64, "hour": pl.Int64, "carrier": pl.String, "night": pl.Boolean})
    outputs = pl.Struct({"label": pl.Int64, "probabilities": pl.List(pl.Float64)})
    logged = log_rows(rows).with_columns(
        pl.col("features").str.json_decode(features), pl.col("outputs").str.json_decode(outputs)
    )
    for number, part in enumerate(logged.iter_slices(40)):
        folder = f"predictions/late/{MONITORED.date().isoformat()}"
        first = part["received_at"][0]
        path = f"{folder}/{first:%Y%m%dT%H%M%S%f}-s1-{number:06d}-0123456789abcdef0123.parquet"
        with world.served.writing(path) as file:
            part.write_parquet(file, compression="lz4")


def compact_late(world: World, now: Any) -> int:
    sizes = {"batch_bytes": BATCH_BYTES, "stretch_bytes": STRETCH_BYTES}
    return compact(world.served, "late", now, **sizes).parts


@pytest.mark.usefixtures("small_batches")
def test_a_window_has_one_report_before_and_after(tmp_path: Path) -> None:
    """The whole report, with numbers to the last bit, where nothing was found before."""
    rows = traffic(3000, seed=3)
    spec = make_spec(segments={"carrier": ["UA", "AA"]})
    reports = []
    for name in ("parts", "compacted"):
        world = World(tmp_path / name)
        log_day(world, rows)
        if name == "compacted":
            assert compact_late(world, MONITORED + timedelta(days=9)) == 75
            compact_late(world, MONITORED + timedelta(days=11))
            assert list(world.served.list("predictions")) == []
        made = world.monitor(known_labels(rows), spec)
        report = world.lake.read_json(made.report_path)
        del report["made_at"]
        reports.append(json.dumps(report, sort_keys=True).replace(world.lake.url, ""))
    assert reports[0] == reports[1]


@pytest.mark.usefixtures("small_batches")
def test_what_was_found_before_holds_after_and_is_not_made_again(tmp_path: Path) -> None:
    rows = traffic(1500, seed=2)
    world = World(tmp_path)
    log_day(world, rows)
    first = world.monitor(known_labels(rows))
    assert compact_late(world, MONITORED + timedelta(days=9)) == 38
    assert world.monitor(known_labels(rows)) == first
    compact_late(world, MONITORED + timedelta(days=11))
    for path in world.served.list("predictions_compacted"):
        if path.endswith(".parquet"):
            world.served.write_bytes(path, b"nobody reads this")
    window = Interval(MONITORED, MONITORED + timedelta(hours=25))
    later = world.monitor(known_labels(rows), the_run=run(window))
    assert (later.predictions, later.metrics) == (1500, first.metrics)


@pytest.mark.parametrize("name", ["notes", "2026-13-45", "20260302", ".ipynb_checkpoints"])
def test_a_folder_that_is_no_day_is_in_nobodys_way(lake: Lake, name: str) -> None:
    write_day(lake, 20)
    other = Path(lake.root, "predictions", ENDPOINT, name, "some.parquet")
    other.parent.mkdir()
    other.write_bytes(b"of somebody else")
    assert compact_log(lake).parts == 20
    assert [part.number for part in sorted_parts(lake)] == list(range(20))
    assert expire(lake, ENDPOINT, date(2027, 1, 1)) == [DAY.date().isoformat()]
    assert other.exists()


def test_a_damaged_index_is_named(lake: Lake) -> None:
    write_day(lake, 20)
    compact_log(lake)
    (index, *_) = compacted(lake, ".json")
    lake.write_bytes(index, b"{")
    with pytest.raises(IntegrityError, match=f"{index} is damaged"):
        window(lake)


def test_whole_days_that_are_too_old_go(lake: Lake) -> None:
    write_day(lake, 20)
    compact_log(lake)
    for days in (-1, 1):
        for number in range(3):
            rows = make_rows("one", range(1000, 1002), DAY + timedelta(days=days, hours=number))
            write_part(lake, "one", number, rows)
    lake.write_bytes(f"predictions/{ENDPOINT}/notes/readme", b"not a day")
    assert expire(lake, ENDPOINT, date(2026, 2, 28)) == []
    assert expire(lake, ENDPOINT, NEXT.date()) == ["2026-02-28", "2026-03-01"]
    assert expire(lake, ENDPOINT, NEXT.date()) == []
    assert compacted(lake) == []
    assert ids(lake, Interval(DAY - timedelta(days=2), NEXT + timedelta(days=1))) == names(*[1000, 1001] * 3)


def test_stretches_of_a_day_are_in_one_order(lake: Lake) -> None:
    """What is compacted and what is not take turns as if all were loose."""
    for model in MODELS:
        write_day(lake, 30, model, start=MODELS.index(model) * 100)
    before = [one.name for one in window(lake).stretches]
    compact_log(lake, DAY + timedelta(hours=3))
    after = list_day(lake, ENDPOINT, DAY.date().isoformat())
    assert 0 < len(after.indexes) < len(before)
    assert [one.name for one in after.stretches(STRETCH_BYTES)] == before


def test_a_watch_reads_the_same_of_a_day_that_was_compacted(lake: Lake) -> None:
    """The parts of one server in its order, from where two servers' lie."""
    for number in range(24):
        for server in ("s1", "s2"):
            at = DAY + timedelta(minutes=number, seconds=server == "s2")
            write_part(lake, "one", number, make_rows("one", range(number * 3, number * 3 + 3), at), server)
    mine = [part for part in find_parts(lake, ENDPOINT, DAY.date()) if part.server == "s2"][5:15]
    before = scan_parts(lake, mine).collect()
    compact_log(lake)
    compact_log(lake, MUCH_LATER)
    again = [part for part in find_parts(lake, ENDPOINT, DAY.date()) if part.server == "s2"][5:15]
    assert all(part.place is not None for part in again)
    assert scan_parts(lake, again).collect().equals(before)


def test_by_hand_it_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "models", "regression", name=ENDPOINT).path
    spec = folder / "model.yaml"
    spec.write_text(spec.read_text() + "monitoring: {keep_predictions: 400d}\n")
    lake, database = Lake(str(tmp_path / "staging")), f"sqlite:///{tmp_path}/lifecycle.db"
    Database(database).migrate()
    write_part(lake, "one", 1, make_rows("one", range(3), datetime(2001, 1, 1, tzinfo=UTC)))
    write_day(lake, 20)
    command = ["predictions", "compact", str(folder), "--database", database, "--environment", "staging"]
    assert main(command) == 1
    assert "where is the lake of staging?" in capsys.readouterr().err
    assert main([*command, "--environment-lake", f"staging={lake.url}", "--expire"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 days deleted, of those before ")
    assert "20 parts became 1 files; 0 replaced parts deleted\n" in said
    assert main([*command, "--environment-lake", f"staging={lake.url}", "--grace", "0"]) == 0
    assert capsys.readouterr().out == "0 parts became 0 files; 20 replaced parts deleted\n"


def test_what_a_window_or_a_watch_needs_is_kept(tmp_path: Path) -> None:
    spec = make_spec()
    month = spec.model_copy(
        update={"monitoring": spec.monitoring.model_copy(update={"keep_predictions": timedelta(days=30)})}
    )
    now, window = NEXT + timedelta(days=60, hours=3), NEXT + timedelta(days=59)
    assert kept_from(spec, now, window, None) is None
    assert kept_from(month, now, window, None) == (NEXT + timedelta(days=30)).date()
    assert kept_from(month, now, NEXT + timedelta(hours=5), None) == NEXT.date()
    watched = replace(RELEASE, created_at=NEXT + timedelta(hours=5))
    assert kept_from(month, now, window, watched) == DAY.date()
