"""Training sets that are made a slice at a time, beside the same made of whole frames."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from small_model import DAY, HOUR, START, land, write_model
from training_world import attempt_at

from ml_lifecycle.adapters import as_of, sorting
from ml_lifecycle.adapters.feast_repo import historical_features, open_store
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.adapters.parquet import parquet_bytes
from ml_lifecycle.adapters.tables import TIMESTAMP, write_parquet
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.profiles.profiling import make_profile
from ml_lifecycle.records import Interval, Run, Snapshot, to_json
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.spec.model import Labels
from ml_lifecycle.stages import validation_facts
from ml_lifecycle.stages.feature_tables import INSTANT, build_tables, features_of, local_tables
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.train import plan_training
from ml_lifecycle.stages.training_rows import Spans, labelled_rows
from ml_lifecycle.training.pod import run_attempt

DAYS = 7
END = START + DAYS * DAY
DELAY = pl.duration(hours=pl.int_range(pl.len()).shuffle(4) % 9)
# Bytes of a slice, of a part of the labels; None is as it is.
SIZES = [(9_000, 4_000), (30_000, 20_000), (None, 50_000), (30_000, None)]


@dataclass(frozen=True)
class World:
    """The small model, its feature tables made, and its labels changed: in no order, some without a value."""

    folder: ModelFolder
    lake: Lake
    snapshot: Snapshot

    def at(self, path: Path) -> Lake:
        """The lake before there is a training set, once more."""
        shutil.copytree(self.lake.root, path)
        return Lake(str(path))


def disordered(labels: pl.DataFrame) -> pl.DataFrame:
    """Rows in no order, many of a key and moment, texts and keys missing, labels unknown or known late."""
    again = labels.sample(fraction=0.3, seed=1).with_columns(~pl.col("failed"))
    place = pl.int_range(pl.len())
    return (
        pl.concat([labels, again])
        .sample(fraction=1.0, shuffle=True, seed=2)
        .with_columns(
            machine_id=pl.when(place % 17 > 0).then("machine_id"),
            failed=pl.when(place % 11 > 0).then("failed"),
            known_at=pl.col("known_at") + DELAY,
        )
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("rows")
    spec = {"segments": {"mode": ["turbo", "idle"]}}
    folder = load_folder(write_model(root, task="binary", monitoring=spec))
    lake = Lake(str(root / "lake"))
    land(lake, days=DAYS)
    run = Run("small", "run_1", END, Interval(START, END))
    snapshot = ingest(folder.spec, lake, run, contracts=folder.contracts)
    tables = build_tables(folder, lake, snapshot)
    labels = lake.scan([tables.tables["labels"]]).collect()
    write_parquet(lake, tables.tables["labels"], disordered(labels))
    return World(folder, lake, snapshot)


def known_last(rows: pl.DataFrame, labels: Labels) -> pl.DataFrame:
    """Row by row: of one moment and key the label known last, all of those without a key."""
    kept: dict[tuple[object, ...], int] = {}
    for place, row in enumerate(rows.iter_rows(named=True)):
        keys = tuple(row[key] for key in labels.keys)
        one = (row[labels.event_time], keys, place if None in keys else -1)
        if one not in kept or row[labels.known_at] >= rows[labels.known_at][kept[one]]:
            kept[one] = place
    return rows[[*kept.values()]]  # in the order of their first ones


def whole(world: World) -> tuple[dict[str, bytes], pl.DataFrame]:
    """What a training set holds, made of frames that are held whole."""
    folder, lake, labels = world.folder, world.lake, world.folder.spec.labels
    features = features_of(folder)
    tables = build_tables(folder, lake, world.snapshot)
    spans = Spans.of(folder.spec, END)
    times = pl.col(labels.event_time, labels.known_at).cast(TIMESTAMP)
    known = (
        pl.read_parquet(lake.full_path(tables.tables["labels"]))
        .with_columns(times)
        .filter(pl.col(labels.known_at) < END)
        .sort(
            labels.event_time,
            *labels.keys,
            labels.known_at,
            pl.col(labels.column).is_not_null(),
            maintain_order=True,
        )
    )
    newest = [known_last(part.collect(), labels) for part in spans.split(known.lazy())]
    parts = [part.drop_nulls(labels.column) for part in newest]
    assert any((part[labels.column].is_null() & part["machine_id"].is_not_null()).any() for part in newest)
    rows = pl.concat(parts)
    moment = pl.col(labels.event_time).alias("event_timestamp")
    with local_tables(lake, tables) as path:
        store = open_store(features, path)
        found = historical_features(store, features.service, rows.select(*labels.keys, moment - INSTANT))
    served = found.select(
        pl.col("load").cast(pl.Float32).fill_null(float("nan")), pl.col("mode").fill_null("")
    ).hstack(rows.select(labels.column, moment, *labels.keys))
    train, holdout = served.head(parts[0].height), served.tail(parts[1].height)
    return {"train.parquet": parquet_bytes(train), "holdout.parquet": parquet_bytes(holdout)}, train


@pytest.mark.parametrize(("slice_bytes", "part_bytes"), [(None, None), *SIZES])
def test_the_files_are_those_of_whole_frames(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world: World,
    slice_bytes: int | None,
    part_bytes: int | None,
) -> None:
    expected, train = whole(world)
    monkeypatch.setattr(as_of, "SLICE_BYTES", slice_bytes or as_of.SLICE_BYTES)
    monkeypatch.setattr(sorting, "_PART_BYTES", part_bytes or sorting._PART_BYTES)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    lake = world.at(tmp_path / "lake")
    made = build_training_set(world.folder, lake, world.snapshot)
    assert {name: lake.read_bytes(f"{made.path}/{name}") for name in expected} == expected
    profile = make_profile(train, made.columns, world.folder.spec.monitoring.segments)
    assert lake.read_json(made.profile_path) == json.loads(json.dumps(to_json(profile)))
    assert not list(scratch.iterdir())
    files = {path.rsplit("/", 1)[-1] for path in lake.list(made.path)}
    assert files == {*expected, "registry.pb", "profile.json", "manifest.json"}


def test_a_training_takes_the_profile_that_is_there_and_else_makes_the_same(
    tmp_path: Path, world: World
) -> None:
    lake = world.at(tmp_path / "lake")
    training_set = build_training_set(world.folder, lake, world.snapshot)
    job = plan_training(world.folder, lake, training_set)
    first = run_attempt(lake, attempt_at(job), tmp_path / "first")
    stored = lake.read_json(training_set.profile_path)
    lake.delete(training_set.profile_path)
    assert run_attempt(lake, attempt_at(job, 2), tmp_path / "second").files == first.files
    stored["rows"] += 1  # as no training would find them
    lake.write_json(training_set.profile_path, stored)
    changed = run_attempt(lake, attempt_at(job, 3), tmp_path / "third").files
    assert {name for name in first.files if changed[name] != first.files[name]} == {"profile.json"}


def folder_with_an_integer(world: World, path: Path) -> ModelFolder:
    """A third feature, whole numbers, that some machines lack."""
    shutil.copytree(world.folder.path, path)
    text = (path / "features.py").read_text()
    text = text.replace("dtype=String)]", 'dtype=String), Field(name="age", dtype=Int64)]')
    text = text.replace(
        '(pl.col("mode")).alias("mode")',
        '(pl.col("mode")).alias("mode"), '
        'age=pl.when(pl.col("machine_id") != "m07").then(pl.lit(7, pl.Int64))',
    )
    (path / "features.py").write_text(text)
    return load_folder(path)


def test_missing_values_are_counted_in_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    folder = folder_with_an_integer(world, tmp_path / "dags" / "models" / "small")
    said = set()
    sizes = [(as_of.SLICE_BYTES, 131_072), (30_000, 999), (9_000, 70)]
    for number, (slice_bytes, pieces) in enumerate(sizes):
        monkeypatch.setattr(as_of, "SLICE_BYTES", slice_bytes)
        monkeypatch.setattr(validation_facts, "PIECE_ROWS", pieces)
        lake = world.at(tmp_path / f"lake{number}")
        with pytest.raises(FeatureError) as error:
            build_training_set(folder, lake, world.snapshot)
        said.add(str(error.value))
        assert not [path for path in lake.list("training_sets") if path.endswith("manifest.json")]
    (message,) = said
    tables = build_tables(folder, lake, world.snapshot)
    spans = Spans.of(folder.spec, END)
    labels = lake.scan([tables.tables["labels"]])
    parts = spans.split(labels.filter(pl.col("known_at") < END))
    asked = pl.concat(known_last(part.collect(), folder.spec.labels) for part in parts).drop_nulls("failed")
    lacking = asked["machine_id"].is_null() | (asked["machine_id"] == "m07")
    assert f"'age' is int and has no value in {lacking.sum()} of {asked.height} rows, which" in message


def test_a_label_that_was_withdrawn_is_unknown_from_then_on(tmp_path: Path, world: World) -> None:
    labels, spans = world.folder.spec.labels, Spans.of(world.folder.spec, END)
    tables = build_tables(world.folder, world.lake, world.snapshot)
    early, late = spans.train.start + DAY, spans.holdout.start + DAY
    rows = [  # machine, event, known, label
        ("withdrawn", early, early + HOUR, True),
        ("withdrawn", early, early + 2 * HOUR, None),
        ("restored", early, early + HOUR, True),
        ("restored", early, early + 2 * HOUR, None),
        ("restored", early, early + 3 * HOUR, False),
        ("withdrawn once the holdout had begun", early, early + HOUR, True),
        ("withdrawn once the holdout had begun", early, spans.holdout.start, None),
        ("null at once", early, early + HOUR, True),
        ("null at once", early, early + HOUR, None),
        ("held out", late, late + HOUR, False),
        ("held out and withdrawn", late, late + HOUR, True),
        ("held out and withdrawn", late, late + 2 * HOUR, None),
        ("held out and withdrawn later", late, late + HOUR, True),
        ("held out and withdrawn later", late, END, None),
    ]
    columns = ["machine_id", labels.event_time, labels.known_at, labels.column]
    lake = world.at(tmp_path / "lake")

    def found(frame: pl.DataFrame) -> list[tuple[str, bool]]:
        write_parquet(lake, tables.tables["labels"], frame)
        with labelled_rows(lake, tables, labels, spans, END) as labelled:
            return labelled.rows.select("machine_id", labels.column).collect().rows()

    frame = pl.DataFrame(rows, columns, orient="row")
    assert found(frame) == [
        ("null at once", True),
        ("restored", False),
        ("withdrawn once the holdout had begun", True),
        ("held out", False),
        ("held out and withdrawn later", True),
    ]
    gone = frame.filter(pl.col("machine_id").is_in(["withdrawn", "held out"]))
    with pytest.raises(FeatureError, match="every label in the training span was withdrawn"):
        found(gone)


EMPTY: Mapping[str, Callable[[pl.Expr, Spans], pl.Expr]] = {
    "training": lambda event, spans: event >= spans.train.end,
    "holdout": lambda event, spans: event < spans.holdout.start,
}


@pytest.mark.parametrize("span", EMPTY)
def test_a_span_without_rows_is_named(tmp_path: Path, world: World, span: str) -> None:
    lake = world.at(tmp_path / "lake")
    tables = build_tables(world.folder, lake, world.snapshot)
    spans = Spans.of(world.folder.spec, END)
    labels = lake.scan([tables.tables["labels"]])
    left = labels.filter(EMPTY[span](pl.col("event_timestamp"), spans)).collect()
    write_parquet(lake, tables.tables["labels"], left)
    known = left.filter(pl.col("known_at") < END, pl.col("failed").is_not_null())["event_timestamp"]
    with pytest.raises(FeatureError) as error:
        build_training_set(world.folder, lake, world.snapshot)
    assert f"no labelled row in the {span} span 2026" in str(error.value)
    assert f"are for {known.min()!s} to {known.max()!s}" in str(error.value)
    assert not list(lake.list("training_sets"))


def test_what_a_killed_attempt_left_is_written_anew(tmp_path: Path, world: World) -> None:
    lake = world.at(tmp_path / "lake")
    made = build_training_set(world.folder, lake, world.snapshot)
    files = {path: lake.read_bytes(path) for path in lake.list(made.path)}
    for path in files:
        if not path.endswith("train.parquet"):
            lake.delete(path)
    lake.write_bytes(made.train_path, b"torn")
    assert build_training_set(world.folder, lake, world.snapshot) == made
    assert {path: lake.read_bytes(path) for path in lake.list(made.path)} == files
    again = replace(world.snapshot, run=replace(world.snapshot.run, run_id="again"))
    assert build_training_set(world.folder, lake, again) == replace(made, run=again.run)
