"""Materialising: late rows arrive, nothing old replaces anything new, and no reader ever stops."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import online_processes
import polars as pl
import pytest
from flight_truth import at
from flight_world import KEYS, KNOWN_AT, STORY_STARTS, World, january, raw

from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.feast_repo import open_store, registry_bytes
from ml_lifecycle.adapters.feast_written import OnlineWriter
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.online_file import OnlineFile
from ml_lifecycle.errors import CanaryError, FeatureError
from ml_lifecycle.records import Interval, Run, Snapshot, to_json
from ml_lifecycle.spec.folder import load_folder
from ml_lifecycle.stages.feature_tables import build_tables, features_of
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.monitor_online import audit_online, look_at
from ml_lifecycle.stages.online_features import Materialisation, materialise

HOUR = timedelta(hours=1)
STEPS = (january(8), january(9), january(9) + 4 * HOUR, january(10), january(11))
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ml_lifecycle.adapters.feast_written"])


@dataclass(frozen=True)
class Story:
    """A few flights, of which many records arrive hours or days late; a snapshot for each step."""

    world: World
    snapshots: Sequence[Snapshot]
    registry: bytes
    keys: dict[str, list[str]]

    def write(self, step: int, url: str) -> Materialisation:
        return materialise(self.world.folder, self.world.lake, self.snapshots[step], url)

    def arguments(self, step: int, url: str) -> tuple[Any, ...]:
        return self.world.folder.path, self.world.lake.url, to_json(self.snapshots[step]), url

    def read(self, url: str) -> dict[str, list[object]]:
        return OnlineReader(self.registry, "flight_delay", url).read(self.keys, as_of=STEPS[-1])


@pytest.fixture(scope="module")
def story(weeks: World, tmp_path_factory: pytest.TempPathFactory) -> Story:
    lake = Lake(str(tmp_path_factory.mktemp("story") / "lake"))
    world, chance = World(lake, weeks.folder), random.Random(8)
    tables = raw(weeks)
    tables["weather"] = tables["weather"].with_columns(precip=pl.lit("0.01"))  # so that a late hour shows
    some = chance.sample(sorted(tables["flights"]["flight_id"]), 1500)
    arrived = {name: _arrivals_by_step(name, rows, set(some), chance) for name, rows in tables.items()}
    planes = pl.read_csv(weeks.landing / "planes.csv", infer_schema=False).head(400)
    snapshots = []
    for step, moment in enumerate(STEPS):
        for table, steps in arrived.items():
            folder = world.landing / table
            folder.mkdir(parents=True, exist_ok=True)
            steps[step].write_csv(folder / f"{step}.csv")
        planes.head(80 * (step + 1)).write_csv(world.landing / "planes.csv")
        start = STEPS[step - 1] if step else STORY_STARTS
        run = Run("flight_delay", f"step_{step}", moment, Interval(start, moment))
        snapshots.append(ingest(world.folder.spec, lake, run, contracts=world.folder.contracts))
    asked = (
        tables["flights"]
        .filter(pl.col("flight_id").is_in(some))
        .select(
            "flight_id",
            "origin",
            route=pl.format("{}-{}", "origin", "dest"),
            tailnum=pl.col("tailnum").fill_null(""),
        )
    )
    registry = registry_bytes(open_store(features_of(weeks.folder), tmp_path_factory.mktemp("registry")))
    return Story(world, snapshots, registry, {key: asked[key].to_list() for key in KEYS})


def _arrivals_by_step(
    table: str, rows: pl.DataFrame, some: set[str], chance: random.Random
) -> list[pl.DataFrame]:
    """By step the records whose file arrives in it: most at once, some up to two days late."""
    if table != "weather":
        rows = rows.filter(pl.col("flight_id").is_in(sorted(some)))
    late = [chance.choice((0, 0, 0, 0, 48)) * chance.random() * HOUR for _ in range(rows.height)]
    arrives = [at(known) + delay for known, delay in zip(rows[KNOWN_AT[table]], late, strict=True)]
    steps = [next((n for n, moment in enumerate(STEPS) if time < moment), None) for time in arrives]
    return [rows.filter(pl.Series(steps, dtype=pl.Int64) == step) for step in range(len(STEPS))]


def stored(url: str) -> set[tuple[object, ...]]:
    """Every row in the store with its key, event time and values."""
    path = url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection, closing(OnlineFile(Path(path))) as file:

        def values(row: bytes) -> zip[tuple[str, object]]:
            layout = file.layout_of(row)
            return zip(layout.names, layout.unpack(row, bytes), strict=True)

        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            (name, key, event, *values(row))
            for name in names
            if name.startswith("flight_delay_") and "__state" not in name
            for key, event, row in connection.execute(f"SELECT entity_key, event_us, row FROM '{name}'")
        }


@pytest.fixture(scope="module")
def clean(story: Story, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that was written once, with the newest."""
    url = f"sqlite:///{tmp_path_factory.mktemp('clean')}/online.db"
    assert story.write(-1, url).since is None
    return url


def check_equals(story: Story, url: str, clean: str) -> None:
    """All that a clean store holds, and nothing else that anybody would be given."""
    assert stored(clean) - stored(url) == set()
    assert story.read(url) == story.read(clean)


def test_the_story_has_what_makes_it_hard(story: Story) -> None:
    """Late records change what was said of an event, and make events older than what was written."""
    tables = [build_tables(story.world.folder, story.world.lake, snapshot) for snapshot in story.snapshots]
    views = (
        ("origin_weather", "origin", "precipitation_6h"),
        ("route_delays", "route", "route_late_share_28d"),
        ("origin_delays", "origin", "origin_late_share_1d"),
    )
    for view, key, value in views:
        before, after = (story.world.lake.scan([made.tables[view]]).collect() for made in tables[3:])
        row = [key, "event_timestamp"]
        changed = pl.col(value).ne_missing(pl.col(f"{value}_right"))
        assert before.join(after, on=row).filter(changed).height > 0, view
        older = pl.col("event_timestamp") < STEPS[3]
        assert after.filter(older).join(before, on=row, how="anti").height > 0, view


def test_what_became_known_since_arrives_whenever_it_happened(story: Story, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    for step, moment in enumerate(STEPS):
        done = story.write(step, url)
        assert done.since == (story.snapshots[step - 1].digest if step else None)
        assert (done.rows["plane_registry"], step) in ((80, step), (0, 0))
        snapshot = story.snapshots[step]
        audit = audit_online(story.world.folder, story.world.lake, snapshot, url, moment, sample=2000)
        assert audit.differing == {}, audit.examples
        assert audit.compared > 2000
    again = story.write(-1, url)
    assert again.since == story.snapshots[-1].digest
    assert set(again.rows.values()) == {0}


def test_a_store_that_was_emptied_or_restored_is_written_what_it_lacks(
    story: Story, clean: str, tmp_path: Path
) -> None:
    path = tmp_path / "online.db"
    url = f"sqlite:///{path}"
    for step in (0, 1):
        story.write(step, url)
    with sqlite3.connect(path) as source, sqlite3.connect(tmp_path / "backup.db") as backup:
        source.backup(backup)
    for step in (2, 3):
        story.write(step, url)
    for file in tmp_path.glob("online.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", path)
    assert story.write(4, url).since == story.snapshots[1].digest
    check_equals(story, url, clean)
    for file in tmp_path.glob("online.db*"):
        file.unlink()
    assert story.write(4, url).since is None
    assert stored(url) == stored(clean)


def orders(count: int, seed: int) -> list[tuple[int, ...]]:
    """Orders of the steps, some of them twice: the newest first, and drawn ones."""
    chance = random.Random(seed)
    steps = range(len(STEPS))
    drawn = [tuple(chance.sample(steps, len(STEPS)) + chance.choices(steps, k=2)) for _ in range(count - 1)]
    return [tuple(reversed(steps)), *drawn]


def check_order(story: Story, clean: str, folder: Path, order: Sequence[int]) -> None:
    url = f"sqlite:///{folder}/online.db"
    for step in order:
        story.write(step, url)
    check_equals(story, url, clean)


@pytest.mark.parametrize("order", orders(3, seed=4))
def test_whatever_the_order_the_newest_stays(
    story: Story, clean: str, tmp_path: Path, order: tuple[int, ...]
) -> None:
    check_order(story, clean, tmp_path, order)


@pytest.mark.proof
def test_whatever_the_order_the_newest_stays_in_fifty_orders(
    story: Story, clean: str, tmp_path: Path
) -> None:
    for number, order in enumerate(orders(50, seed=5)):
        (tmp_path / f"{number}").mkdir()
        check_order(story, clean, tmp_path / f"{number}", order)


def test_a_new_state_of_the_folder_writes_all_again(story: Story, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    story.write(-1, url)
    shutil.copytree(story.world.folder.path, tmp_path / "flight_delay")
    features = tmp_path / "flight_delay" / "features.py"
    features.write_text(features.read_text().replace("LATE_MINUTES = 15", "LATE_MINUTES = -10"))
    changed = load_folder(tmp_path / "flight_delay")
    done = materialise(changed, story.world.lake, story.snapshots[-1], url)
    assert done.since is None
    audit = audit_online(changed, story.world.lake, story.snapshots[-1], url, STEPS[-1], sample=500)
    assert audit.differing == {}


def test_a_value_that_somebody_else_wrote_is_found(story: Story, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    folder, lake = story.world.folder, story.world.lake
    assert look_at(folder, lake, url, STEPS[-1]).mismatches == (), "nothing was written yet"
    story.write(-1, url)
    found = look_at(folder, lake, url, STEPS[-1])
    (right,) = found.mismatches
    assert (right.metric, right.column, right.value) == ("online_mismatch_share", None, 0)
    assert found.examples == ()
    (tmp_path / "pushed").mkdir()
    store = open_store(features_of(folder), tmp_path / "pushed", url)
    moment = STEPS[-1] - timedelta(minutes=1)
    pushed = {"origin": ["EWR"], "event_timestamp": [moment], "origin_late_share_1d": [0.875]}
    store.write_to_online_store("origin_delays", pl.DataFrame(pushed).to_pandas())
    found = look_at(folder, lake, url, STEPS[-1])
    (whole, feature), (example,) = found.mismatches, found.examples
    assert feature.column == "origin_delays:origin_late_share_1d"
    assert whole.value == feature.value == 1 / right.n
    assert "0.875" in example
    assert "EWR" in example


def windows(story: Story, url: str, folder: Path) -> list[tuple[datetime, datetime | None]]:
    """What the store's ledger has finished, from the last back: until when, and since when."""
    folder.mkdir()
    with closing(OnlineWriter(features_of(story.world.folder), folder, url)) as writer:
        return [(window.as_of, window.since) for window in writer.windows()]


def test_the_ledger_knows_what_was_interrupted_and_the_next_one_heals_it(
    story: Story, clean: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    assert story.write(0, url).healed is None
    arguments = (*story.arguments(1, url), (3, "among"))
    assert run(PROCESSES.Process(target=online_processes.write, args=arguments)) == -signal.SIGKILL
    assert windows(story, url, tmp_path / "killed") == [(STEPS[0], None)]
    done = story.write(2, url)
    assert (done.healed, done.since) == (STEPS[1], story.snapshots[0].digest)
    assert story.write(1, url).healed is None, "an older one, made up for already"
    assert story.write(4, url).healed is None
    check_equals(story, url, clean)
    ends = [(STEPS[4], STEPS[2]), (STEPS[2], STEPS[0]), (STEPS[0], None)]
    assert windows(story, url, tmp_path / "healed") == ends


def test_staleness_is_that_of_what_was_given_by_then(story: Story, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    for step in (0, 1, 3):
        story.write(step, url)

    def ages(moment: datetime) -> dict[tuple[str, str | None], float | None]:
        found = look_at(story.world.folder, story.world.lake, url, moment).staleness
        assert all((finding.error is None) == (finding.value is not None) for finding in found)
        return {(finding.metric, finding.column): finding.value for finding in found}

    views = [view.name for view in features_of(story.world.folder).views]
    nothing = ages(STEPS[0] - HOUR)
    assert list(nothing.values()) == [None] * (len(views) + 1)
    for step, moment in ((0, STEPS[0]), (1, STEPS[2]), (3, STEPS[4])):
        found = ages(moment)
        tables = build_tables(story.world.folder, story.world.lake, story.snapshots[step]).tables
        for view in views:
            events = story.world.lake.scan([tables[view]]).select("event_timestamp").collect().to_series()
            newest = events.filter(events < STEPS[step]).max()
            assert isinstance(newest, datetime)
            assert found["feature_staleness_seconds", view] == (moment - newest).total_seconds()
        last = found["materialisation_staleness_seconds", None]
        assert last == (moment - STEPS[step]).total_seconds()


def test_of_a_store_that_was_written_since_only_its_age_then_is_told(story: Story, tmp_path: Path) -> None:
    """And that for ever, whatever is written after it, and by whatever code."""
    url = f"sqlite:///{tmp_path}/online.db"
    folder, lake = story.world.folder, story.world.lake
    story.write(0, url)
    then = look_at(folder, lake, url, STEPS[1])
    assert then.mismatches[0].value == 0
    story.write(3, url)
    later = look_at(folder, lake, url, STEPS[1])
    assert (later.mismatches, later.examples) == ((), ())
    assert later.staleness == then.staleness
    assert look_at(folder, lake, url, STEPS[3]).mismatches[0].value == 0
    shutil.copytree(folder.path, tmp_path / "flight_delay")
    features = tmp_path / "flight_delay" / "features.py"
    features.write_text(features.read_text().replace("LATE_MINUTES = 15", "LATE_MINUTES = -10"))
    changed = load_folder(tmp_path / "flight_delay")
    assert materialise(changed, lake, story.snapshots[4], url).since is None, "it wrote all there was"
    for known in (folder, changed):
        assert look_at(known, lake, url, STEPS[1]).staleness == then.staleness
    assert look_at(folder, lake, url, STEPS[4]).mismatches == (), "other code wrote it"
    assert look_at(changed, lake, url, STEPS[4]).mismatches[0].value == 0


def test_the_store_is_opened_once_for_all_that_is_asked_of_it(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/online.db"
    story.write(0, url)
    opened, init = [], OnlineWriter.__init__

    def counted(self: OnlineWriter, *arguments: Any, **more: Any) -> None:
        opened.append(self)
        init(self, *arguments, **more)

    monkeypatch.setattr(OnlineWriter, "__init__", counted)
    assert look_at(story.world.folder, story.world.lake, url, STEPS[0]).mismatches
    assert len(opened) == 1


def test_a_store_that_cannot_be_read_is_a_finding(story: Story, tmp_path: Path) -> None:
    (tmp_path / "online.db").write_bytes(b"no database" * 100)
    url = f"sqlite:///{tmp_path}/online.db"
    found = look_at(story.world.folder, story.world.lake, url, STEPS[0]).staleness
    assert {finding.value for finding in found} == {None}
    assert all("file is not a database" in str(finding.error) for finding in found)


def test_a_future_moment_is_refused_and_leaves_no_trace(story: Story, tmp_path: Path) -> None:
    now = STEPS[1] - HOUR
    with pytest.raises(FeatureError, match=r"ends in the future: 2013-01-09 .*; it is 2013-01-09 07:00"):
        materialise(
            story.world.folder,
            story.world.lake,
            story.snapshots[1],
            f"sqlite:///{tmp_path}/online.db",
            now.timestamp,
        )
    assert list(tmp_path.iterdir()) == []


def test_rows_that_do_not_arrive_fail_the_task_and_the_next_one_writes_them(
    story: Story, clean: str, tmp_path: Path
) -> None:
    """Some keys of each view are read back; here the file loses one view's rows without a word."""
    url = f"sqlite:///{tmp_path}/online.db"
    story.write(0, url)
    with sqlite3.connect(tmp_path / "online.db") as file:
        file.execute(
            "CREATE TRIGGER lose BEFORE INSERT ON flight_delay_origin_weather BEGIN SELECT RAISE(IGNORE); END"
        )
    with pytest.raises(CanaryError, match=r"origin_weather of \['...'\] was written .* and is read as"):
        story.write(4, url)
    assert windows(story, url, tmp_path / "failed") == [(STEPS[0], None)]
    with sqlite3.connect(tmp_path / "online.db") as file:
        file.execute("DROP TRIGGER lose")
    assert story.write(4, url).healed == STEPS[4]
    check_equals(story, url, clean)


@contextmanager
def readers(story: Story, url: str, count: int = 2) -> Iterator[None]:
    """Processes that read some keys all the while; at the end each tells what it saw, and that is checked."""
    keys = {key: values[:40] for key, values in story.keys.items()}
    stop, started = PROCESSES.Event(), []
    for _ in range(count):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(
            target=online_processes.read, args=(story.registry, url, keys, stop, theirs)
        )
        process.start()
        started.append((process, ours))
    try:
        for _, answers in started:
            assert answers.poll(120), "a reader does not read"
            assert answers.recv() == "reading"
        yield
        stop.set()
        for _, answers in started:
            assert answers.poll(120), "a reader does not end"
            found = answers.recv()
            assert not isinstance(found, Exception), found
            check_seen(story, *found)
    finally:
        stop.set()
        for process, _ in started:
            process.join(30)
            process.kill()


def check_seen(story: Story, reads: int, seen: online_processes.Seen) -> None:
    """Read often, never an older event after a newer one, and only whole rows that a snapshot has."""
    assert reads > 3
    possible: dict[str, set[tuple[object, ...]]] = {}
    features = features_of(story.world.folder)
    for snapshot in story.snapshots:
        made = build_tables(story.world.folder, story.world.lake, snapshot)
        for view in features.views:
            columns = [*features.keys_of(view), "event_timestamp", *(field.name for field in view.features)]
            frame = pl.read_parquet(story.world.lake.full_path(made.tables[view.name])).select(columns)
            possible.setdefault(view.name, set()).update(
                frame.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)).rows()
            )
    for (view, key), values in seen.items():
        events = [event for event, _ in values]
        assert events == sorted(events), (view, key, values)
        for event, row in values:
            if set(row) != {None}:
                assert (*key, event, *row) in possible[view], (view, key, event, row)


def run(process: BaseProcess) -> int | None:
    process.start()
    process.join(300)
    return process.exitcode


def batches(story: Story, step: int, url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Write a step; returns in how many batches it was written."""
    write_batch, count = OnlineFile.write, []

    def counted(*arguments: Any) -> None:
        count.append(1)
        write_batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(OnlineFile, "write", counted)
        story.write(step, url)
    return len(count)


def check_kills(
    story: Story, folder: Path, monkeypatch: pytest.MonkeyPatch, every: int, steps: Sequence[int]
) -> None:
    """Kill a writer of each step at its kill points, every n-th of them, then let one finish."""
    twin, url = (f"sqlite:///{folder}/{name}.db" for name in ("twin", "killed"))
    for uninterrupted in (twin, url):
        story.write(0, uninterrupted)
    number = 0
    with readers(story, url):
        for step in steps:
            parts = batches(story, step, twin, monkeypatch)
            assert parts == 7, "five views, that it has begun and that it is done"
            for kill in ((part, where) for part in range(parts) for where in ("before", "among", "after")):
                number += 1
                if number % every == 0:
                    arguments = (*story.arguments(step, url), kill)
                    killed = PROCESSES.Process(target=online_processes.write, args=arguments)
                    assert run(killed) == -signal.SIGKILL, kill
            story.write(step, url)
            assert stored(url) == stored(twin)


@pytest.mark.full
def test_a_killed_writer_leaves_the_next_one_whole_and_readers_reading(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kills(story, tmp_path, monkeypatch, every=7, steps=(1, 3))


@pytest.mark.proof
def test_a_writer_killed_anywhere_leaves_the_next_one_whole(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kills(story, tmp_path, monkeypatch, every=1, steps=(1, 3))


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.proof)])
def test_two_writers_at_once_leave_the_newest(story: Story, clean: str, tmp_path: Path, rounds: int) -> None:
    for number in range(rounds):
        url = f"sqlite:///{tmp_path}/{number}.db"
        with readers(story, url):
            for pair in ((0, 1), (4, 2)):
                writers = [
                    PROCESSES.Process(target=online_processes.write, args=story.arguments(step, url))
                    for step in pair
                ]
                for writer in writers:
                    writer.start()
                for writer in writers:
                    writer.join(300)
                assert [writer.exitcode for writer in writers] == [0, 0]
        check_equals(story, url, clean)


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_writers_killed_at_random_moments_leave_the_next_one_whole(
    story: Story, clean: str, tmp_path: Path, seed: int
) -> None:
    """Several in a row, at any moment of what a whole one takes; then the store is as one never killed."""
    chance, url, twin = (
        random.Random(seed),
        *(f"sqlite:///{tmp_path}/{name}.db" for name in ("killed", "twin")),
    )
    for uninterrupted in (url, twin):
        story.write(0, uninterrupted)
    killed = 0
    with readers(story, url):
        for step in (1, 3, 4):
            began = time.monotonic()
            whole = PROCESSES.Process(target=online_processes.write, args=story.arguments(step, twin))
            assert run(whole) == 0
            takes = time.monotonic() - began
            for _ in range(4):
                writer = PROCESSES.Process(target=online_processes.write, args=story.arguments(step, url))
                writer.start()
                writer.join(chance.uniform(0, takes))
                writer.kill()
                writer.join(30)
                killed += writer.exitcode == -signal.SIGKILL
            story.write(step, url)
            assert stored(url) == stored(twin)
            snapshot = story.snapshots[step]
            audit = audit_online(
                story.world.folder, story.world.lake, snapshot, url, STEPS[step], sample=2000
            )
            assert audit.differing == {}, audit.examples
    assert killed >= 6
    check_equals(story, url, clean)
