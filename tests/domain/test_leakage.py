"""No leakage, on real flights: a row holds what was known before its moment, and nothing known later."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from flight_truth import Question, Truth, as_served, at
from flight_world import DAY, KEYS, KNOWN_AT, STORY_STARTS, YEAR_ENDS, Tables, World, january, land, raw, text

from ml_lifecycle.records import Interval
from ml_lifecycle.stages.scoring_rows import build_scoring_rows

INSTANT = timedelta(microseconds=1)


def differences(rows: pl.DataFrame, questions: list[Question], truth: Truth) -> dict[str, list[object]]:
    """By feature, what a row holds and what it should."""
    asked = {question.flight_id: question for question in questions}
    found: dict[str, list[object]] = {}
    for row in rows.to_dicts():
        question = asked[row["flight_id"]]
        assert {key: row[key] for key in KEYS} == question.keys
        assert row["event_timestamp"] == question.moment
        for name, expected in as_served(truth.features(question)).items():
            # NaN, which is unlike itself, stands for a missing number.
            if row[name] != expected and not (row[name] != row[name] and expected != expected):
                found.setdefault(name, []).append((question.flight_id, row[name], expected))
    return found


@pytest.mark.parametrize(
    ("name", "ends", "count", "trained_on", "missing"),
    [
        ("weeks", january(21), 400, 250, ("route_late_share_28d", "seats")),
        pytest.param(
            *("year", YEAR_ENDS, 1000, 800, ("temperature", "route_late_share_28d", "seats")),
            marks=pytest.mark.full,
        ),
    ],
    ids=["weeks", "year"],
)
def test_every_feature_of_many_flights_is_what_was_known(
    request: pytest.FixtureRequest,
    name: str,
    ends: datetime,
    count: int,
    trained_on: int,
    missing: tuple[str, ...],
) -> None:
    world: World = request.getfixturevalue(name)
    truth, snapshot = Truth(world.landing), world.snapshot(ends)
    questions = [question for question in truth.draw(count, seed=2013) if question.moment < ends]
    ids = [question.flight_id for question in questions]
    scored, columns = build_scoring_rows(world.folder, world.lake, snapshot, Interval(STORY_STARTS, ends))
    drawn = scored.filter(pl.col("flight_id").is_in(ids))
    # Of the year's first flights only those before 8 o'clock on New Year's Day were published too late.
    assert sorted(drawn["flight_id"]) == sorted(ids)
    assert {column.name for column in columns} == as_served(truth.features(questions[0])).keys()
    assert differences(drawn, questions, truth) == {}
    for feature in missing:
        assert 0 < drawn[feature].is_nan().sum() < count / 2, f"missing values of {feature} should be drawn"

    trained = world.rows(world.training_set(ends)).filter(pl.col("flight_id").is_in(ids))
    assert trained.height > trained_on
    assert differences(trained, questions, truth) == {}
    for row in trained.to_dicts():
        assert truth.late(row["flight_id"])[0] == row["late"]


@pytest.mark.parametrize(
    ("name", "as_of"),
    [
        ("weeks", january(20)),
        pytest.param("year", datetime(2013, 5, 29, 8, tzinfo=UTC), marks=pytest.mark.full),
        pytest.param("year", datetime(2013, 11, 4, 8, tzinfo=UTC), marks=pytest.mark.proof),
        pytest.param("year", YEAR_ENDS, marks=pytest.mark.proof),
    ],
)
def test_no_row_of_the_example_s_training_has_a_label_that_was_not_yet_known(
    request: pytest.FixtureRequest, name: str, as_of: datetime
) -> None:
    world: World = request.getfixturevalue(name)
    truth, made = Truth(world.landing), world.training_set(as_of)
    spans = {made.train_path: (made.holdout.start, None, made.train_end)}
    spans[made.holdout_path] = (as_of, made.holdout.start, made.holdout.end)
    for path, (known_before, first, end) in spans.items():
        found = set()
        for row in pl.read_parquet(world.lake.full_path(path)).select("flight_id", "late").to_dicts():
            late, known_at = truth.late(row["flight_id"])
            assert (late, known_at < known_before) == (row["late"], True), row
            found.add(row["flight_id"])
        for flight_id in truth.arrivals.keys() - found:  # what was left out could not have been there
            moment, known_at = truth.question(flight_id).moment, truth.late(flight_id)[1]
            assert moment >= end or (first and moment < first) or known_at >= known_before, flight_id


def altered(tables: Tables, moment: datetime, chance: random.Random) -> Tables:
    """Every record known at ``moment`` or later with other values, moved, deleted or kept, and many more."""
    changed = {}
    for table, rows in tables.items():
        known = KNOWN_AT[table]
        later = rows.filter(pl.col(known) >= text(moment)).to_dicts()
        touched = [new for row in later if (new := _other(table, row, chance)) is not None]
        touched += _inserted(table, tables, moment, chance)
        before = rows.filter(pl.col(known) < text(moment))
        changed[table] = pl.concat([before, pl.DataFrame(touched, schema=rows.schema)])
        assert changed[table].filter(pl.col(known) < text(moment)).equals(before)
    return changed


def _other(table: str, row: dict[str, str], chance: random.Random) -> dict[str, str] | None:
    what = chance.choice(("values", "values", "moved", "deleted", "kept"))
    if what == "deleted":
        return None
    if what == "values":
        return {**row, **_values(table, row, chance)}
    if what == "moved":
        # Not by whole hours, where another observation is.
        by = timedelta(hours=chance.randrange(72), minutes=chance.randrange(1, 60))
        return {**row, KNOWN_AT[table]: text(at(row[KNOWN_AT[table]]) + by)}
    return row


def _values(table: str, row: dict[str, str], chance: random.Random) -> dict[str, str]:
    if table == "flights":
        departure = text(at(row["published_at"]) + timedelta(minutes=chance.randrange(-9000, 2 * 24 * 60)))
        return {"carrier": "ZZ", "distance": "1", "tailnum": "N14228", "scheduled_departure": departure}
    if table == "arrivals":
        return {"arr_delay": str(chance.choice((-50, 999))), "dep_delay": "0"}
    return {"temp": "99.0", "wind_speed": "77.0", "precip": "5.0", "visib": "0.5", "humid": "1.0"}


def _inserted(table: str, tables: Tables, moment: datetime, chance: random.Random) -> list[dict[str, str]]:
    """Flights published again and flights nobody knew, cancelled flights that land, weather by the minute."""

    def later() -> str:
        return text(moment + timedelta(minutes=chance.choice((0, chance.randrange(1, 5000)))))

    # No flight more than three days ahead: its schedule would have expired, and no model takes that.
    soon = pl.col("observed_at" if table == "weather" else "scheduled_departure") < text(moment + 2 * DAY)
    some = chance.sample(tables[table].filter(soon).to_dicts(), 500)
    if table == "arrivals":
        gone = set(tables["flights"]["flight_id"]) - set(tables["arrivals"]["flight_id"])
        new = [{**row, "flight_id": flight} for row, flight in zip(some, sorted(gone), strict=False)]
        return [{**row, "arr_delay": "700", "landed_at": later()} for row in new]
    if table == "weather":
        return [
            {**row, "observed_at": text(moment + timedelta(minutes=number)), "temp": "-20.0", "precip": "9.0"}
            for number, row in enumerate(some)
        ]
    again = [{**row, "tailnum": "N14228", "carrier": "YY", "published_at": later()} for row in some]
    return again + [{**row, "flight_id": f"new-{row['flight_id']}"} for row in again]


def features_until(world: World, end: datetime, as_of: datetime) -> pl.DataFrame:
    """Features of all flights that were to be predicted up to ``end``, joined as of a later moment."""
    window = Interval(STORY_STARTS, end + INSTANT)
    rows, _ = build_scoring_rows(world.folder, world.lake, world.snapshot(as_of), window)
    return rows


def in_bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compat_level=pl.CompatLevel.oldest())  # whose bytes follow from the values alone
    return buffer.getvalue()


def check_that_nothing_later_shows(world: World, moment: datetime, as_of: datetime, base: Path) -> None:
    changed = land(altered(raw(world), moment, random.Random(f"{moment}")), world, base)
    before, after = (features_until(one, moment, as_of) for one in (world, changed))
    assert before.height > 300
    assert in_bytes(after) == in_bytes(before)
    assert in_bytes(features_until(changed, as_of, as_of)) != in_bytes(features_until(world, as_of, as_of))
    made = [one.training_set(moment) for one in (world, changed)]
    assert made[1] == made[0]
    assert in_bytes(changed.rows(made[1])) == in_bytes(world.rows(made[0]))


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.full)])
def test_altering_whatever_is_known_later_changes_nothing(weeks: World, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    # The hour at which a day is predicted is the sharpest moment: weather is observed at that very instant.
    moment = january(chance.randrange(10, 19)) + chance.choice((timedelta(0), timedelta(hours=9, minutes=1)))
    check_that_nothing_later_shows(weeks, moment, january(21), tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(8))
def test_altering_whatever_is_known_later_changes_nothing_all_year(
    year: World, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    moment = datetime(2013, 2, 15, 8, tzinfo=UTC) + chance.randrange(300) * DAY
    check_that_nothing_later_shows(year, moment, YEAR_ENDS, tmp_path)


def last_before(rows: pl.DataFrame, column: str, moment: datetime) -> pl.Expr:
    """The newest row known before ``moment``, the first of several."""
    newest = rows.filter(pl.col(column) < text(moment))[column].max()
    return (pl.col(column) == newest).cum_sum().eq(1) & (pl.col(column) == newest)


def other_weather(tables: Tables, moment: datetime, known: datetime) -> Tables:
    rows = tables["weather"]
    last = rows.filter(last_before(rows, "observed_at", moment)).with_columns(
        observed_at=pl.lit(text(known)), temp=pl.lit("99.0")
    )
    kept = rows.filter(pl.col("observed_at") < text(known - timedelta(minutes=1)))
    return {**tables, "weather": pl.concat([kept, last, rows.filter(pl.col("observed_at") > text(known))])}


def other_arrival(tables: Tables, moment: datetime, known: datetime) -> Tables:
    gone = set(tables["flights"]["flight_id"]) - set(tables["arrivals"]["flight_id"])
    asked = tables["flights"].filter(
        pl.col("published_at") < text(moment), pl.col("scheduled_departure") >= text(moment)
    )
    # It comes from an airport from which flights will be asked about.
    here = tables["flights"].filter(
        pl.col("flight_id").is_in(sorted(gone)), pl.col("origin") == asked["origin"][0]
    )
    new = (
        tables["arrivals"]
        .head(1)
        .with_columns(
            flight_id=pl.lit(here["flight_id"][0]), landed_at=pl.lit(text(known)), arr_delay=pl.lit("700")
        )
    )
    return {**tables, "arrivals": pl.concat([tables["arrivals"], new])}


def other_schedule(tables: Tables, moment: datetime, known: datetime) -> Tables:
    asked = tables["flights"].filter(
        pl.col("published_at") < text(moment), pl.col("scheduled_departure") >= text(moment)
    )
    new = asked.head(1).with_columns(published_at=pl.lit(text(known)), tailnum=pl.lit("N14228"))
    return {**tables, "flights": pl.concat([tables["flights"], new])}


@pytest.mark.parametrize("edit", [other_weather, other_arrival, other_schedule])
def test_what_is_known_a_second_before_counts_and_at_the_moment_no_more(
    weeks: World, tmp_path: Path, edit: Callable[[Tables, datetime, datetime], Tables]
) -> None:
    """So that the tests above can fail."""
    moment = january(15)
    before = features_until(weeks, moment, january(21))
    for offset, same in ((timedelta(seconds=1), False), (timedelta(0), True)):
        base = tmp_path / f"{offset}".replace(":", "")
        changed = land(edit(raw(weeks), moment, moment - offset), weeks, base)
        after = features_until(changed, moment, january(21))
        assert after.height == before.height
        old = pl.col("event_timestamp") < moment
        assert in_bytes(after.filter(old)) == in_bytes(before.filter(old))
        assert (in_bytes(after) == in_bytes(before)) is same
