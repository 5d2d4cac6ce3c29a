"""The moment and interval of a run, however it was started."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Interval
from ml_lifecycle_airflow.run_time import RunConfError, read_conf, resolve_run

START = datetime(2013, 1, 1, tzinfo=UTC)


def day(n: int) -> datetime:
    return START + timedelta(days=n)


@pytest.fixture
def database(tmp_path: Any) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    made.migrate()
    return made


SPEC = SimpleNamespace(name="m", training=SimpleNamespace(data=SimpleNamespace(start=START)))


def context(run_id: str, run_after: datetime, **fields: Any) -> Any:
    run = {"data_interval_start": None, "data_interval_end": None, "triggering_user_name": None, "conf": {}}
    return {
        "dag_run": SimpleNamespace(
            **{**run, "dag_id": "m__train", "run_id": run_id, "run_after": run_after, **fields}
        )
    }


def test_conf_wins_over_everything(database: Database) -> None:
    conf = {
        "as_of": "2013-09-22T10:00:00+02:00",
        "interval": {"start": "2013-09-08T08:00:00Z", "end": "2013-09-22T08:00:00Z"},
    }
    run = resolve_run(
        context("a", day(400), conf=conf, data_interval_start=day(1), data_interval_end=day(2)),
        SPEC,
        database,
    )
    assert run.as_of == datetime(2013, 9, 22, 8, tzinfo=UTC)
    assert run.interval == Interval(datetime(2013, 9, 8, 8, tzinfo=UTC), datetime(2013, 9, 22, 8, tzinfo=UTC))


def test_a_data_interval_is_taken_as_it_is(database: Database) -> None:
    run = resolve_run(
        context("a", day(9), data_interval_start=day(3), data_interval_end=day(4)), SPEC, database
    )
    assert (run.as_of, run.interval) == (day(4), Interval(day(3), day(4)))


def test_without_a_date_runs_follow_each_other_without_gap_or_overlap(database: Database) -> None:
    first = resolve_run(context("a", day(10)), SPEC, database)
    second = resolve_run(context("b", day(17)), SPEC, database)
    assert first.interval == Interval(START, day(10))
    assert second.interval == Interval(day(10), day(17))


def test_a_cleared_run_keeps_its_interval_after_later_ones(database: Database) -> None:
    first = resolve_run(context("a", day(10)), SPEC, database)
    resolve_run(context("b", day(17)), SPEC, database)
    assert resolve_run(context("a", day(10)), SPEC, database) == first


def test_a_zero_length_interval_counts_as_none(database: Database) -> None:
    run = resolve_run(
        context("a", day(10), data_interval_start=day(5), data_interval_end=day(5)), SPEC, database
    )
    assert run.interval == Interval(START, day(10))


def test_who_asked_is_carried(database: Database) -> None:
    assert (
        resolve_run(context("a", day(1), triggering_user_name="alice"), SPEC, database).requested_by
        == "alice"
    )


def test_other_offsets_become_utc(database: Database) -> None:
    east = timezone(timedelta(hours=2))
    run = resolve_run(context("a", datetime(2013, 5, 1, 2, tzinfo=east)), SPEC, database)
    assert run.as_of.isoformat() == "2013-05-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"as_of": "yesterday"}, "as_of is 'yesterday'; write a time such as"),
        ({"as_of": 5}, "as_of is 5"),
        ({"as_off": "2013-01-01T00:00:00Z"}, r"unknown keys \['as_off'\]; a run takes as_of and interval"),
        ({"as_of": "2013-01-01T00:00:00"}, "which has no offset; end it with Z"),
        ({"interval": ["2013-01-01T00:00:00Z"]}, "interval must be"),
        (
            {"interval": {"start": "2013-01-02T00:00:00Z", "end": "2013-01-01T00:00:00Z"}},
            "must be before its end",
        ),
        (
            {
                "as_of": "2013-01-01T00:00:00Z",
                "interval": {"start": "2013-01-01T00:00:00Z", "end": "2013-01-02T00:00:00Z"},
            },
            "is before the interval's end",
        ),
    ],
)
def test_a_bad_conf_says_what_would_be_right(conf: dict[str, Any], message: str) -> None:
    with pytest.raises(RunConfError, match=message):
        read_conf(conf)
