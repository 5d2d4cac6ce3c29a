"""No row judges a model that was trained on it, or on anything known only later: for any spec, data and time.

Two trainings follow each other, the champion's and the candidate's, each as of a moment of its own; in
between the spec may have changed. Whatever comes out of the features stage's split has to keep them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from small_model import DAY, HOUR, land, write_model
from training_world import make_folder

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import Interval, Run
from ml_lifecycle.spec.folder import ModelFolder, load_folder
from ml_lifecycle.spec.model import ModelSpec
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.training_rows import Spans

START = datetime(2026, 1, 1, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return make_folder(tmp_path_factory.mktemp("holdout")).spec


hours = st.integers(0, 30 * 24).map(lambda n: n * HOUR)
moments = st.tuples(hours, st.sampled_from([timedelta(0), INSTANT, -INSTANT])).map(
    lambda pair: START + pair[0] + pair[1]
)


@dataclass(frozen=True)
class Asked:
    """One training: what its spec says, and the moment it is as of."""

    as_of: datetime
    delay: timedelta
    holdout: timedelta
    window: timedelta | None
    start: datetime


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    span = st.integers(1, 10 * 24).map(lambda n: n * HOUR)
    return Asked(
        as_of=draw(moments) + 5 * DAY,
        delay=draw(st.integers(0, 72).map(lambda n: n * HOUR)),
        holdout=draw(span),
        window=draw(st.none() | span),
        start=draw(moments) - 20 * DAY,
    )


@st.composite
def label_tables(draw: st.DrawFn) -> pl.DataFrame:
    """Events at round hours and just beside them; each label is known at once, late, or far too late."""
    rows = draw(st.lists(st.tuples(moments, hours | st.just(timedelta(0))), min_size=5, max_size=60))
    every_six = [(START + n * 6 * HOUR, n % 90 * HOUR) for n in range(140)]
    events = [*rows, *every_six]
    return pl.DataFrame(
        {
            "id": range(len(events)),
            "label": [n % 2 for n in range(len(events))],
            "event_timestamp": [event for event, _ in events],
            "known_at": [event + late for event, late in events],
        },
        schema_overrides=dict.fromkeys(("event_timestamp", "known_at"), pl.Datetime("us", "UTC")),
    ).sort("event_timestamp", "id")


def split(spec: ModelSpec, training: Asked, labels: pl.DataFrame) -> tuple[Spans, pl.DataFrame, pl.DataFrame]:
    """Spans, training rows and holdout rows of one training; the case is left out if it has none."""
    data = spec.training.data.model_copy(
        update={"start": training.start, "window": training.window, "holdout": training.holdout}
    )
    changed = spec.model_copy(
        update={
            "labels": spec.labels.model_copy(update={"delay": training.delay, "column": "label"}),
            "training": spec.training.model_copy(update={"data": data}),
        }
    )
    try:
        spans = Spans.of(changed, training.as_of)
        parts = spans.split(labels.lazy().filter(pl.col("known_at") < training.as_of))
    except FeatureError:
        reject()
    train, holdout = (part.collect() for part in parts)
    return spans, train, holdout


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(champion=asked(), candidate=asked(), labels=label_tables())
def test_a_holdout_is_later_than_every_training_row_of_candidate_and_champion(
    template: ModelSpec, champion: Asked, candidate: Asked, labels: pl.DataFrame
) -> None:
    before, champions_rows, _ = split(template, champion, labels)
    spans, training, holdout = split(template, candidate, labels)
    first = holdout["event_timestamp"].min()
    assert first >= training["event_timestamp"].max() + candidate.delay, "the embargo"
    assert training["known_at"].max() < first, "no label was known later than the holdout's first question"
    assert holdout["event_timestamp"].max() < candidate.as_of - candidate.delay
    assert holdout["known_at"].max() < candidate.as_of
    assert training["event_timestamp"].max() < spans.train.end
    assert training["event_timestamp"].min() >= candidate.start
    if spans.train.end >= before.train.end:  # else it is registered for the record, and compared with nobody
        assert first >= champions_rows["event_timestamp"].max() + candidate.delay
        assert holdout.join(champions_rows, on="id").is_empty()


def folder_with(path: Path, delay: str, holdout: str) -> ModelFolder:
    return load_folder(write_model(path, labels={"delay": delay}, training={"data": {"holdout": holdout}}))


@pytest.mark.parametrize(
    ("delay", "holdout"),
    [
        ("2h", "2d"),
        pytest.param("0h", "1d", marks=pytest.mark.proof),
        pytest.param("30h", "3d", marks=pytest.mark.proof),
    ],
)
def test_the_files_that_are_trained_on_and_judged_with_are_split_as_their_record_says(
    tmp_path: Path, delay: str, holdout: str
) -> None:
    """A champion, and a candidate half a day later, through ingest and Feast."""
    lake, folder = Lake(str(tmp_path / "lake")), folder_with(tmp_path / "dags", delay, holdout)
    end, wait = land(lake, days=8), folder.spec.labels.delay
    trained: pl.DataFrame | None = None
    for as_of in (end - DAY / 2, end):
        run = Run("small", "train", as_of, Interval(START, as_of))
        snapshot = ingest(folder.spec, lake, run, contracts=folder.contracts)
        made = build_training_set(folder, lake, snapshot)
        assert made.run == run
        training, held = (
            pl.read_parquet(lake.full_path(path)) for path in (made.train_path, made.holdout_path)
        )
        assert (training.height, held.height) == (made.train_rows, made.holdout_rows)
        assert training["event_timestamp"].max() < made.train_end
        assert held["event_timestamp"].min() >= made.holdout.start == made.train_end + wait
        assert held["event_timestamp"].max() < made.holdout.end == as_of - wait
        if trained is not None:
            assert held["event_timestamp"].min() >= trained["event_timestamp"].max() + wait
        trained = training
