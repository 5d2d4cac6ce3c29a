"""Snapshots listed, compared and let go of."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import at, events, put, run, spec
from faults import Death, FaultKit

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.records import ModelVersion, Run, Snapshot, Training, to_json
from ml_lifecycle.snapshots.collection import Policy, collect, superfluous
from ml_lifecycle.snapshots.comparison import TableDifference, compare
from ml_lifecycle.snapshots.history import SnapshotUnknownError, find, history
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.ingest import ingest, read_table
from ml_lifecycle.stages.validate import validate

MONTHS = [f"2013-{month:02d}-01" for month in range(1, 8)]
NOW = datetime.now(UTC)  # files carry the time they are written at
LATER = NOW + timedelta(days=2)
POLICY = Policy(newest=2, days=40)


def declared(**source: Any) -> ModelSpec:
    return spec(events={"uri": "raw/*.parquet", "event_time": "at", "keys": ["id"], **source})


class Life:
    """Six months, a snapshot each: every month brings rows, and changes one of the month before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lake = Lake(str(folder / "lake"))
        self.raw = folder / "lake" / "raw"

    def live(self) -> list[Snapshot]:
        found = []
        for month, (start, end) in enumerate(pairwise(MONTHS)):
            days = (at(end) - at(start)).days
            rows = events(start, days, timedelta(days=1)).with_columns(pl.col("id") + 100 * month)
            if month:
                before = pl.read_parquet(self.raw / f"{month - 1}.parquet")
                changed = pl.when(pl.int_range(pl.len()) == 3).then(-1.0).otherwise("value")
                put(self.raw, f"{month - 1}.parquet", before.with_columns(value=changed))
            put(self.raw, f"{month}.parquet", rows)
            found.append(ingest(declared(), self.lake, run(start, end, run_id=f"run_{month}")))
        return found

    def train(self, snapshot: Snapshot, version: str) -> None:
        """What registering a version leaves."""
        path = f"training/demo/{version}"
        training = Training(
            run=snapshot.run, digest=version, path=path, attempt=1, training_set_path="", columns=(),
            snapshot_digest=snapshot.digest, code_digest="c", spec_digest="d", train_end=NOW, model_path="",
            model_digest="m", classes=(), reference_path="", profile_path="", metrics_path="", parameters={},
            metrics={}, packages={}, resources={},
        )  # fmt: skip
        self.lake.write_json(f"{path}/manifest.json", to_json(training))
        record = ModelVersion(snapshot.run, "demo", version, "candidate", "m", path, "", "r", None)
        self.lake.write_json(f"versions/demo/{version}/manifest.json", to_json(record))

    def files(self) -> set[str]:
        return set(self.lake.list("objects"))

    def rows(self, snapshot: Snapshot) -> int:
        return read_table(self.lake, snapshot, "events").collect().height


def files_of(*snapshots: Snapshot) -> set[str]:
    return {file.path for one in snapshots for file in one.tables["events"].files}


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_the_history_says_what_needs_a_snapshot(life: Life) -> None:
    snapshots = life.live()
    life.train(snapshots[1], "2")
    life.train(snapshots[1], "10")
    validate(declared(), {}, life.lake, snapshots[4], None)
    kept = history(life.lake, "demo")
    assert [one.snapshot for one in kept] == snapshots[::-1]
    assert [one.versions for one in kept] == [(), (), (), (), ("2", "10"), ()]
    assert [one.validated for one in kept] == [False, True, False, False, False, False]
    assert kept[0].rows == life.rows(snapshots[-1]) == 181
    # Read again for a later moment with nothing new, it is as young as that.
    again = ingest(declared(), life.lake, run(MONTHS[-1], "2013-08-01", run_id="again"))
    assert again.digest == snapshots[-1].digest
    assert history(life.lake, "demo")[0].as_of == at("2013-08-01")


def test_two_snapshots_are_compared_partition_by_partition(life: Life) -> None:
    snapshots = life.live()
    before, after = snapshots[2], snapshots[3]
    # What did not change is not read.
    shared = files_of(before) & files_of(after)
    for path in shared:
        life.lake.delete(path)
    assert len(shared) == 2
    (difference,) = compare(life.lake, before, after, declared().sources).values()
    partitions = {"2013-03": (0, 0, 1), "2013-04": (30, 0, 0)}
    assert difference == TableDifference(added=30, removed=0, changed=1, columns={}, partitions=partitions)
    # Without keys nobody knows that a row is the same.
    (nameless,) = compare(life.lake, before, after, declared(keys=[]).sources).values()
    assert (nameless.added, nameless.removed, nameless.changed) == (31, 1, 0)
    back = compare(life.lake, after, before, declared().sources)["events"]
    assert (back.added, back.removed, back.changed) == (0, 30, 1)
    assert compare(life.lake, before, before, {})["events"].partitions == {}


def test_columns_and_tables_come_and_go(life: Life) -> None:
    put(life.raw, "a.parquet", events("2013-01-01", 4))
    before = ingest(declared(), life.lake, run(*MONTHS[:2]))
    put(life.raw, "a.parquet", events("2013-01-01", 4).rename({"value": "amount"}))
    both = spec(events=declared().sources["events"].model_dump(mode="json"), others={"uri": "raw/*.parquet"})
    after = ingest(both, life.lake, run(*MONTHS[:2], run_id="run_2"))
    found = compare(life.lake, before, after, both.sources)
    assert found["events"].columns == {"amount": (None, "double"), "value": ("double", None)}
    assert (found["events"].changed, found["others"].added) == (4, 4)
    assert found["others"].columns["id"] == (None, "int64")


def test_a_column_may_become_something_else_altogether(life: Life) -> None:
    rows, flag = events("2013-01-01", 4), pl.col("id") > 1
    put(life.raw, "a.parquet", rows.with_columns(done=flag))
    before = ingest(declared(), life.lake, run(*MONTHS[:2]))
    put(life.raw, "a.parquet", rows.with_columns(done=pl.when(flag).then("at")))
    after = ingest(declared(), life.lake, run(*MONTHS[:2], run_id="run_2"))
    found = compare(life.lake, before, after, declared().sources)["events"]
    assert found.columns == {"done": ("bool", "timestamp[us, tz=UTC]")}
    assert (found.added, found.removed, found.changed) == (0, 0, 4)


def test_what_nothing_needs_goes_in_two_steps(life: Life) -> None:
    snapshots = life.live()
    life.train(snapshots[1], "7")
    validate(declared(), {}, life.lake, snapshots[2], None)
    kept = [snapshots[1], snapshots[2], *snapshots[4:]]  # trained, validated, the newest two
    files = life.files()
    told = collect(life.lake, "demo", POLICY, NOW, dry_run=True)
    assert {one.digest for one in told.snapshots} == {snapshots[0].digest, snapshots[3].digest}
    assert told.files == {}
    assert [one.snapshot for one in history(life.lake, "demo")] == snapshots[::-1]
    gone = collect(life.lake, "demo", POLICY, NOW)
    assert gone == told
    assert [one.snapshot for one in history(life.lake, "demo")] == kept[::-1]
    assert life.files() == files
    gone = collect(life.lake, "demo", POLICY, LATER)
    assert gone.snapshots == ()
    assert gone.files.keys() == files - files_of(*kept) != set()
    assert life.files() == files_of(*kept)
    assert list(life.lake.list("collected")) == []
    assert [life.rows(snapshot) for snapshot in kept] == [59, 90, 151, 181]
    # Who runs for a moment whose snapshot went, makes one anew.
    made = ingest(declared(), life.lake, snapshots[3].run)
    assert life.rows(made) == made.tables["events"].rows


def test_files_stay_that_another_model_has_or_that_were_just_written(life: Life) -> None:
    snapshots = life.live()
    other = Run("other", "run", snapshots[0].run.as_of, snapshots[0].run.interval)
    twin = ingest(declared().model_copy(update={"name": "other"}), life.lake, other)
    only_newest = Policy(newest=1, days=0)
    collect(life.lake, "demo", only_newest, NOW)
    young = life.lake.write_bytes("objects/aa/written-a-moment-ago.parquet", b"rows")
    assert collect(life.lake, "demo", only_newest, NOW + timedelta(hours=23)).files == {}
    gone = collect(life.lake, "demo", only_newest, LATER)
    assert young in gone.files  # written two days ago by then
    assert life.files() == files_of(twin, snapshots[-1])


def test_what_goes_can_be_put_into_an_archive_and_copied_back(life: Life, tmp_path: Path) -> None:
    snapshots = life.live()
    archive = Lake(str(tmp_path / "archive"))
    for moment in (NOW, LATER):
        collect(life.lake, "demo", Policy(newest=1, days=0), moment, archive)
    assert life.files() == files_of(snapshots[-1])
    for path in [*archive.list("snapshots"), *archive.list("objects")]:
        target = Path(life.lake.full_path(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive.full_path(path), target)
    assert [one.snapshot for one in history(life.lake, "demo")] == snapshots[::-1]
    assert [life.rows(one) for one in snapshots] == [31, 59, 90, 120, 151, 181]


def collect_in(folder: Path) -> list[str]:
    """Both steps, one after the other."""
    lake = Lake(str(folder / "lake"))
    for moment in (NOW, LATER):
        collect(lake, "demo", POLICY, moment, Lake(str(folder / "archive")))
    return sorted([*lake.list("objects"), *lake.list("snapshots"), *lake.list("collected")])


@pytest.mark.full
def test_killed_anywhere_it_ends_the_same_and_loses_nothing(tmp_path: Path, faults: FaultKit) -> None:
    Life(tmp_path / "played").live()
    shutil.copytree(tmp_path / "played", tmp_path / "begun")
    played = faults.run(tmp_path, collect_in, tmp_path / "played")
    assert any("remove" in effect for effect in played.effects)
    for gap in range(len(played.effects)):
        folder = tmp_path / f"killed_{gap}"
        shutil.copytree(tmp_path / "begun", folder)
        assert faults.run(tmp_path, collect_in, folder, death=Death(gap)).died
        life = Life(folder)
        for one in history(life.lake, "demo"):
            assert life.rows(one.snapshot) == one.rows
        assert collect_in(folder) == played.value
        archived = Lake(str(folder / "archive")).list("objects")
        assert {*life.files(), *archived} == Life(tmp_path / "begun").files()


def test_an_empty_history_has_nothing_to_let_go_of(life: Life) -> None:
    assert superfluous(history(life.lake, "demo"), POLICY) == []
    assert collect(life.lake, "demo", POLICY, NOW).files == {}


def test_a_digest_may_be_abbreviated_as_far_as_it_is_one(life: Life) -> None:
    one, two = life.live()[:2]
    assert find(life.lake, "demo", two.digest[:12]) == two
    with pytest.raises(SnapshotUnknownError, match="no snapshots that begin with 'zz'") as raised:
        find(life.lake, "demo", "zz")
    assert one.digest[:12] in str(raised.value)
    with pytest.raises(SnapshotUnknownError, match="6 snapshots that begin with ''"):
        find(life.lake, "demo", "")


def test_the_commands(
    life: Life, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = life.live()
    assert main(["new", "demo", "--into", str(life.folder)]) == 0
    folder = str(life.folder / "demo")
    capsys.readouterr()

    def said(*arguments: str) -> list[str]:
        assert main(["snapshots", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    for odd in (["--newest", "-1"], ["--days", "9" * 20], ["--grace", "nan"], ["--grace", "-1"]):
        with pytest.raises(SystemExit):
            main(["snapshots", "collect", folder, *odd])
        assert f"argument {odd[0]}: {odd[1]!r}: write a" in capsys.readouterr().err
    assert main(["snapshots", "list", folder]) == 1
    assert "where is the lake? Give --lake URL or set ML_LIFECYCLE_LAKE" in capsys.readouterr().err
    monkeypatch.setenv("ML_LIFECYCLE_LAKE", life.lake.url)
    listed = said("list", folder)
    assert [line[:12] for line in listed] == [one.digest[:12] for one in snapshots[::-1]]
    assert listed[0][12:] == "  as of 2013-07-01 00:00  events 181  (not validated)"
    assert main(["snapshots", "list", folder, "--limit", "2"]) == 0
    some = capsys.readouterr()
    assert some.out.splitlines() == listed[:2]
    assert some.err == f"{len(listed) - 2} older ones are left out: --limit {len(listed)} shows all\n"
    before, after = (one.digest[:12] for one in snapshots[2:4])
    assert said("compare", folder, before, after)[-1] == "  2013-04: 30 added, 0 removed, 0 changed"
    would = said("collect", folder, "--newest", "1", "--days", "0", "--dry-run")
    assert would[-2] == "5 snapshots would go; 0 files, 0.0 MiB"
    assert said("collect", folder, "--newest", "1", "--days", "0")[-2] == "5 snapshots went; 0 files, 0.0 MiB"
    assert said("collect", folder, "--grace", "0")[-1].startswith("0 snapshots went; 5 files, 0.0 MiB")
    assert len(said("list", folder)) == 1
    elsewhere = str(life.folder / "elsewhere")
    assert said("list", folder, "--lake", elsewhere) == [f"demo has no snapshot in {elsewhere}"]
