"""The monitor's log in stretches, and its labels in parts."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from tests.domain.test_monitor import WINDOW, World, known_labels, log_rows, make_spec, run, traffic

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.prediction_parts import Stretch
from ml_lifecycle.adapters.predictions import PredictionWindow
from ml_lifecycle.records import Interval
from ml_lifecycle.spec.model import Labels
from ml_lifecycle.stages import monitor_labels, monitor_quality
from ml_lifecycle.stages.monitor_kept import Found, KeptFindings
from ml_lifecycle.stages.monitor_labels import KnownLabels

DAY = datetime(2013, 9, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
LABELS = Labels(column="late", keys=("flight",))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Finder:
    """Finds one number in a stretch, and counts how often it was asked."""

    def __init__(self, lake: Lake, first: datetime, last: datetime) -> None:
        self.lake = lake
        self.span = first, last
        self.made: list[bool] = []

    def find(self, window: Interval, files: dict[str, int]) -> Found | None:
        kept = KeptFindings(self.lake, "late", PredictionWindow(self.lake, "late", window))
        return kept.find(Stretch("2013-09-04/a-0000", files), "number", self._make)

    def _make(self, beyond: bool) -> Found:
        self.made.append(beyond)
        return Found(*self.span, {"n": 7}, pl.DataFrame({"x": [1.5]}))


def test_what_was_found_in_a_stretch_is_kept_until_its_files_are_others(tmp_path: Path) -> None:
    finder = Finder(Lake(str(tmp_path)), DAY, DAY + HOUR)
    first = finder.find(WINDOW, {"a.parquet": 3})
    again = finder.find(Interval(DAY, DAY + 2 * HOUR), {"a.parquet": 3})
    assert first is not None
    assert again is not None
    assert (first.told, first.first, first.last) == (again.told, again.first, again.last)
    assert first.rows.equals(again.rows)
    assert finder.made == [True]
    finder.find(WINDOW, {"a.parquet": 3, "b.parquet": 1})
    assert finder.made == [True, True]


def test_a_window_that_cuts_a_stretch_looks_at_its_rows(tmp_path: Path) -> None:
    finder = Finder(Lake(str(tmp_path)), DAY, DAY + HOUR)
    files = {"a.parquet": 3}
    assert finder.find(Interval(DAY + 2 * HOUR, DAY + 3 * HOUR), files) is None
    finder.find(Interval(DAY, DAY + HOUR), files)  # its last row is about the moment that the window ends
    finder.find(Interval(DAY, DAY + HOUR), files)
    assert finder.made == [True, False, False]


def no_parquet(data: bytes) -> bytes:
    return data[: len(data) // 2]


def no_entry(data: bytes) -> bytes:
    buffer = io.BytesIO()
    pl.read_parquet(io.BytesIO(data)).write_parquet(buffer)
    return buffer.getvalue()


def other_entry(data: bytes) -> bytes:
    buffer = io.BytesIO()
    pl.read_parquet(io.BytesIO(data)).write_parquet(buffer, metadata={"ml_lifecycle": "[1]"})
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [no_parquet, no_entry, other_entry, lambda data: b""])
def test_a_damaged_one_is_made_again(tmp_path: Path, damage) -> None:
    lake = Lake(str(tmp_path))
    finder = Finder(lake, DAY, DAY + HOUR)
    finder.find(WINDOW, {"a.parquet": 3})
    (path,) = lake.list("monitoring/late/stretches")
    lake.write_bytes(path, damage(lake.read_bytes(path)))
    assert finder.find(WINDOW, {"a.parquet": 3}) is not None
    finder.find(WINDOW, {"a.parquet": 3})
    assert finder.made == [True, True]


def test_of_a_torn_part_nothing_is_kept(world: World) -> None:
    rows = traffic(900, seed=1)
    world.log(log_rows(rows[:600]))
    torn = world.log(log_rows(rows[600:]))
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    assert world.monitor().predictions == 600
    kept = list(world.lake.list("monitoring/late/stretches"))
    assert len(kept) == 4  # traffic, answers, profile and replayed rows of the first part
    assert "unreadable_parts" in {
        metric for metric, _ in world.findings(world.monitor(spec=make_spec(alerts=[])))
    }


def test_of_what_was_found_before_no_part_is_read_again(world: World) -> None:
    rows = traffic(1500, seed=2)
    parts = [world.log(log_rows(part)) for part in rows.iter_slices(500)]
    first = world.monitor(known_labels(rows))
    for part in parts:
        part.write_bytes(bytes(len(part.read_bytes())))  # as long as it was, and nothing in it
    later = run(Interval(WINDOW.start, WINDOW.end + HOUR))
    again = world.monitor(known_labels(rows), the_run=later)
    assert again.digest != first.digest
    assert (again.predictions, again.labelled, again.metrics) == (1500, 1500, first.metrics)
    assert ("unreadable_parts", None) not in world.findings(again)


def test_kept_or_not_a_window_has_the_same_findings(tmp_path: Path) -> None:
    """Three windows that overlap, the second of which cuts the log: once with what is kept, once without."""
    rows = traffic(4000, seed=3)
    found = {}
    for name, forgetful in (("kept", False), ("anew", True)):
        world = World(tmp_path / name)
        for part in rows.iter_slices(700):
            world.log(log_rows(part))
        reports = []
        for start, end in ((0, 24), (3, 20), (1, 25)):
            window = Interval(DAY + start * HOUR, DAY + end * HOUR)
            made = world.monitor(known_labels(rows), the_run=run(window))
            reports.append(world.lake.read_json(made.report_path)["findings"])
            if forgetful:
                for path in list(world.lake.list("monitoring/late/stretches")):
                    world.lake.delete(path)
        found[name] = reports
    assert found["kept"] == found["anew"]


def test_a_torn_part_is_torn_for_whoever_reads_it(world: World) -> None:
    """Two threads read a window: what one has met does not decide what the other, at its own pace, reads."""
    part = world.log(log_rows(traffic(50, seed=6)))
    log = PredictionWindow(world.served, "late", WINDOW)
    other = log.beside()
    part.write_bytes(bytes(len(part.read_bytes())))
    assert log.read(["score"]).is_empty()
    assert [name.rpartition("/")[2] for name in log.unreadable] == [part.name]
    assert other.unreadable == {}
    assert other.read(["score"]).is_empty()
    assert other.unreadable == log.unreadable
    assert other.beside().unreadable == log.unreadable


def test_what_is_kept_of_days_long_past_is_deleted(world: World) -> None:
    old = "monitoring/late/stretches/2013-08-01/a-0000-traffic.parquet"
    world.lake.write_bytes(old, b"")
    world.log(log_rows(traffic(600, seed=1)))
    world.monitor()
    assert not world.lake.exists(old)
    assert list(world.lake.list("monitoring/late/stretches/2013-09-04"))


def test_stretches_keep_their_names_while_parts_come(world: World) -> None:
    for number in range(5):
        world.log(log_rows(traffic(10, seed=number)))
    folder = f"predictions/late/{DAY.date().isoformat()}"
    for number in range(6):
        kind = "0123456789abcdef0123" if number % 2 else "aaaaaaaaaaaa00000000"
        world.served.write_bytes(f"{folder}/20130904T00000{number}000000-s-000001-{kind}.parquet", b"x" * 10)

    def names() -> list[str]:
        log = PredictionWindow(world.served, "late", WINDOW, stretch_bytes=20)
        return [one.name for one in log.stretches if "s-000001" in next(iter(one.files))]

    before = names()
    kind = "0123456789abcdef0123"
    world.served.write_bytes(f"{folder}/20130904T000009000000-s-000001-{kind}.parquet", b"x" * 10)
    assert before == [
        "2013-09-04/0123456789abcdef0123-0000",
        "2013-09-04/0123456789abcdef0123-0001",
        "2013-09-04/aaaaaaaaaaaa00000000-0000",
        "2013-09-04/aaaaaaaaaaaa00000000-0001",
    ]
    assert names() == before  # in the last of its kind there was room


def labels_of(tmp_path: Path, table: pl.DataFrame, parts: int) -> KnownLabels:
    tmp_path.mkdir()
    known = KnownLabels(LABELS, tmp_path, parts)
    known.read(table.lazy(), WINDOW, DAY + 40 * HOUR)
    return known


def joined(known: KnownLabels, served: pl.DataFrame) -> list[tuple[object, ...]]:
    columns = ["flight", "event_time", "score", "truth"]
    found = pl.concat([part.select(columns) for part in known.join(served.iter_slices(90))])
    return sorted(found.rows())


def test_parts_on_the_disk_are_joined_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = traffic(1000, seed=4)
    table = known_labels(rows).collect()
    # Of some labels an earlier and a later state, the later one first; and one that was known too late.
    corrected = table[:100].with_columns(late=1 - pl.col("late"), known_at=DAY + 31 * HOUR)
    late = table[:50].with_columns(late=pl.lit(5, pl.Int64), known_at=DAY + 40 * HOUR)
    everything = pl.concat([corrected, table, late])
    served = log_rows(rows).select("event_time", "entity_keys", "score")
    served = pl.concat(
        [served, served[:20], served[:20].with_columns(event_time=pl.lit(None, pl.Datetime("us", "UTC")))]
    )
    at_once = labels_of(tmp_path / "one", everything, 1)
    monkeypatch.setattr(monitor_labels, "_HELD_BYTES", 2000)
    in_parts = labels_of(tmp_path / "seven", everything, 7)
    assert list((tmp_path / "seven").rglob("*.arrow"))
    assert at_once.rows == in_parts.rows == 1000
    found = joined(in_parts, served)
    assert found == joined(at_once, served)
    assert len(found) == 1020
    truth = {int(str(flight)): value for flight, _, _, value in found}
    expected = pl.concat([corrected, table[100:]])
    assert truth == {key: str(value) for key, value in zip(expected["flight"], expected["late"], strict=True)}
    assert in_parts.before(DAY + HOUR) == at_once.before(DAY + HOUR) == 180


@pytest.mark.parametrize("parts", [1, 3])
def test_a_withdrawn_label_is_unknown(tmp_path: Path, parts: int) -> None:
    """And one that was given at last is known; of what was known at once a label counts, not null."""
    states = {
        "withdrawn": [(1, 1), (None, 2)],
        "given": [(None, 1), (1, 2)],
        "given again": [(1, 1), (None, 2), (0, 3)],
        "at once": [(0, 1), (None, 1)],
        "never": [(None, 1)],
    }
    table = pl.DataFrame(
        [
            {"flight": name, "event_timestamp": DAY, "late": late, "known_at": DAY + hours * HOUR}
            for name, known in states.items()
            for late, hours in known
        ],
        schema_overrides={"late": pl.Float64},  # whole numbers, as Feast stores those that may be null
    )
    expected = {"given": "1", "given again": "0", "at once": "0"}
    labels = labels_of(tmp_path / "labels", table, parts)
    assert labels.rows == len(expected)
    keys = [json.dumps({"flight": name}) for name in states]
    served = pl.DataFrame({"event_time": [DAY] * len(keys), "entity_keys": keys, "score": [0.5] * len(keys)})
    assert {str(name): truth for name, *_, truth in joined(labels, served)} == expected
    at_once = monitor_quality.known_labels(LABELS, table.lazy(), WINDOW, DAY + 30 * HOUR)
    assert dict(at_once.select("flight", "truth").iter_rows()) == expected


def test_labels_have_one_digest_in_any_order(tmp_path: Path) -> None:
    table = known_labels(traffic(300, seed=5)).collect()
    one = labels_of(tmp_path / "a", table, 3)
    assert labels_of(tmp_path / "b", table.reverse(), 3).digest == one.digest
    assert labels_of(tmp_path / "c", pl.concat([table, table]), 5).digest == one.digest
    changed = table.with_columns(
        late=pl.when(pl.col("flight") == 7).then(1 - pl.col("late")).otherwise("late")
    )
    assert labels_of(tmp_path / "d", changed, 3).digest != one.digest
    assert labels_of(tmp_path / "e", table[1:], 3).digest != one.digest


def test_whether_floats_are_whole_is_said_of_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_labels, "_BATCH_ROWS", 10)
    table = known_labels(traffic(100, seed=6)).collect()

    def truths(late: pl.Expr, name: str) -> set[str]:
        known = labels_of(tmp_path / name, table.with_columns(late=late), 1)
        return {text for part in known._parts.each() if part is not None for text in part["truth"]}

    whole = pl.col("late").cast(pl.Float64)
    assert truths(whole, "whole") == {"0", "1"}
    one_half = pl.when(pl.col("flight") == 55).then(0.5).otherwise(whole)
    assert truths(one_half, "half") == {"0.0", "1.0", "0.5"}
    assert truths(whole * 1e20, "beyond integers") == {"0.0", "1e+20"}


def test_a_window_in_parts_says_what_it_says_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = traffic(3000, seed=7)
    spec = make_spec(segments={"carrier": ["UA", "AA"]})
    later = spec.model_copy(update={"labels": spec.labels.model_copy(update={"delay": timedelta(hours=6)})})
    reports = []
    for name, part_bytes in (("one", 2**30), ("many", 50_000)):
        monkeypatch.setattr("ml_lifecycle.stages.monitor._PART_BYTES", part_bytes)
        world = World(tmp_path / name)
        for part in rows.iter_slices(500):
            world.log(log_rows(part))
        made = world.monitor(known_labels(rows, DAY + HOUR), later, replace(run(), as_of=DAY + 20 * HOUR))
        report = world.lake.read_json(made.report_path)
        reports.append((made.labelled, report["cohorts"], report["findings"]))
    assert reports[0][:2] == reports[1][:2]
    for one, other in zip(reports[0][2], reports[1][2], strict=True):
        for key, value in one.items():
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (one, other)
            else:
                assert other[key] == value
