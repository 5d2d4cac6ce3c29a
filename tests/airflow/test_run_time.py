"""The moment and interval of a run, however it was started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.sdk import CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables.base import DataInterval, TimeRestriction

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.records import Interval
from ml_lifecycle_airflow.run_time import RunConfError, awaited, read_conf, resolve_run

START = datetime(2013, 1, 1, tzinfo=UTC)


def day(n: int) -> datetime:
    return START + timedelta(days=n)


@pytest.fixture
def database(tmp_path: Any) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    made.migrate()
    return made


SPEC = SimpleNamespace(name="m", training=SimpleNamespace(data=SimpleNamespace(start=START)))
NEW_YORK = "America/New_York"


def context(
    run_id: str,
    run_after: datetime,
    *,
    now: datetime | None = None,
    states: Mapping[str, str] | None = None,
    **fields: Any,
) -> Any:
    """A task's context, as far as a run's time depends on it.

    :param now: when the task started
    :param states: what Airflow answers about other runs; it knows no others
    """
    run = {
        "dag_id": "m__train",
        "run_id": run_id,
        "run_type": "manual",
        "run_after": run_after,
        "data_interval_start": None,
        "data_interval_end": None,
        "triggering_user_name": None,
        "conf": {},
        **fields,
    }

    def state_of(dag_id: str, run_id: str) -> str:
        assert dag_id == run["dag_id"]
        if run_id in (states or {}):
            return (states or {})[run_id]
        detail = {"status_code": 404, "message": "Not found"}
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))

    task = SimpleNamespace(start_date=now or run_after + timedelta(seconds=9), get_dagrun_state=state_of)
    return {"dag_run": SimpleNamespace(**run), "ti": task}


def scheduled(interval: DataInterval, **fields: Any) -> Any:
    """The run that a schedule makes of a data interval."""
    return context(
        f"scheduled__{interval.start.isoformat()}",
        interval.end,
        run_type="scheduled",
        data_interval_start=interval.start,
        data_interval_end=interval.end,
        **fields,
    )


def three_in_new_york() -> Any:
    """What the scheduler makes of the timetable that the builder gives a DAG."""
    return coerce_to_core_timetable(CronDataIntervalTimetable("0 3 * * *", timezone=NEW_YORK))


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


@pytest.mark.parametrize("run_type", ["manual", "backfill"])
def test_a_run_with_a_date_stands_for_its_data_interval_and_links_no_chain(
    database: Database, run_type: str
) -> None:
    resolve_run(context("earlier", day(2)), SPEC, database)
    dated = context("a", day(9), data_interval_start=day(3), data_interval_end=day(4), run_type=run_type)
    run = resolve_run(dated, SPEC, database)
    assert (run.as_of, run.interval) == (day(4), Interval(day(3), day(4)))
    assert resolve_run(context("later", day(9)), SPEC, database).interval == Interval(day(2), day(9))


def test_a_backfill_may_know_more_than_its_interval_did(database: Database) -> None:
    conf = {"as_of": day(8).isoformat()}
    dated = context("a", day(4), now=day(9), data_interval_start=day(3), data_interval_end=day(4), conf=conf)
    run = resolve_run(dated, SPEC, database)
    assert (run.as_of, run.interval) == (day(8), Interval(day(3), day(4)))


def test_an_as_of_before_the_end_of_a_form_s_date_wins_over_it(database: Database) -> None:
    """Airflow's form sends its own moment as the run's date, whatever is typed in."""
    conf = {"as_of": day(2).isoformat()}
    dated = context("a", day(9), data_interval_start=day(7), data_interval_end=day(8), conf=conf)
    run = resolve_run(dated, SPEC, database)
    assert (run.as_of, run.interval) == (day(2), Interval(START, day(2)))


def test_backfills_in_reverse_order_stand_for_the_same_as_in_order(database: Database) -> None:
    def spans(numbers: Iterable[int]) -> list[Interval]:
        made = (
            context(
                f"backfill__{n}",
                day(n + 1),
                run_type="backfill",
                data_interval_start=day(n),
                data_interval_end=day(n + 1),
            )
            for n in numbers
        )
        return [resolve_run(one, SPEC, database).interval for one in made]

    assert spans([5, 4, 3]) == spans([3, 4, 5])[::-1] == [Interval(day(n), day(n + 1)) for n in (5, 4, 3)]


def test_a_scheduled_run_stands_for_missed_and_failed_ones_as_well(database: Database) -> None:
    def run(n: int, **states: str) -> Interval:
        made = scheduled(DataInterval(day(n), day(n + 1)), states=states)  # type: ignore[arg-type]
        return resolve_run(made, SPEC, database).interval

    first, missed = f"scheduled__{day(3).isoformat()}", f"scheduled__{day(9).isoformat()}"
    assert run(3) == Interval(day(3), day(4))
    assert run(9, **{first: "success"}) == Interval(day(4), day(10))
    assert run(10, **{first: "success", missed: "failed"}) == Interval(day(4), day(11))
    assert run(10, **{missed: "success"}) == Interval(day(4), day(11)), "what a run got is kept"


def test_a_scheduled_run_stands_for_all_of_its_interval_even_if_part_was_run(database: Database) -> None:
    noon = day(3) + timedelta(hours=12)
    resolve_run(context("at noon", noon), SPEC, database)
    span = DataInterval(day(3), day(4))  # type: ignore[arg-type]
    run = resolve_run(scheduled(span, states={"at noon": "success"}), SPEC, database)
    assert run.interval == Interval(day(3), day(4))


@pytest.mark.parametrize("state", ["failed", "running", "queued"])
def test_only_success_ends_what_others_must_do(database: Database, state: str) -> None:
    resolve_run(context("a", day(10)), SPEC, database)
    later = resolve_run(context("b", day(17), states={"a": state}), SPEC, database)
    assert later.interval == Interval(START, day(17))


def test_a_run_that_somebody_deleted_is_not_made_up_for(database: Database) -> None:
    resolve_run(context("a", day(10)), SPEC, database)
    assert resolve_run(context("b", day(17)), SPEC, database).interval == Interval(day(10), day(17))


def test_an_api_server_that_does_not_answer_is_no_answer(database: Database) -> None:
    resolve_run(context("a", day(10)), SPEC, database)
    asking = context("b", day(17))

    def down(dag_id: str, run_id: str) -> str:
        detail = {"status_code": 500, "message": f"no state of {dag_id}/{run_id}"}
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))

    asking["ti"].get_dagrun_state = down
    with pytest.raises(AirflowRuntimeError):
        resolve_run(asking, SPEC, database)


@pytest.mark.parametrize(
    ("around", "hours"),
    [("2026-03-07T12:00Z", [24, 23, 24]), ("2026-10-31T12:00Z", [24, 25, 24])],
    ids=["clocks go forward", "clocks go back"],
)
def test_where_clocks_change_a_day_has_23_or_25_hours_and_days_still_follow_each_other(
    database: Database, around: str, hours: list[int]
) -> None:
    """03:00 in New York, through Airflow's own timetable, half-open and in UTC."""
    timetable = three_in_new_york()
    first = pendulum.parse(around).subtract(days=2)  # type: ignore[union-attr]
    limits = TimeRestriction(earliest=first, latest=None, catchup=True)
    runs, last = [], None
    for _ in hours:
        last = timetable.next_dagrun_info(last_automated_data_interval=last, restriction=limits).data_interval
        runs.append(resolve_run(scheduled(last), SPEC, database))
    assert [run.interval.length / timedelta(hours=1) for run in runs] == hours
    assert all(before.interval.end == after.interval.start for before, after in pairwise(runs))
    for run in runs:
        assert run.as_of == run.interval.end
        assert run.as_of.astimezone(ZoneInfo(NEW_YORK)).hour == 3
        assert run.as_of.utcoffset() == timedelta(0)
    moment = runs[1].interval.start
    inside = [moment in run.interval for run in runs]
    assert inside == [False, True, False], "a moment belongs to one run"


def test_a_missed_day_on_which_clocks_change_is_covered(database: Database) -> None:
    timetable = three_in_new_york()
    spans = [
        timetable.infer_manual_data_interval(run_after=pendulum.datetime(2026, 3, n, 12)) for n in (7, 9)
    ]
    states = {f"scheduled__{spans[0].start.isoformat()}": "success"}
    before, after = (resolve_run(scheduled(span, states=states), SPEC, database) for span in spans)
    assert after.interval == Interval(before.interval.end, spans[1].end)
    assert after.interval.length == timedelta(hours=47)


def test_a_scheduled_run_waits_for_its_own_data_only(database: Database) -> None:
    resolve_run(scheduled(DataInterval(day(3), day(4))), SPEC, database)  # type: ignore[arg-type]
    states = {f"scheduled__{day(3).isoformat()}": "success"}
    after_a_week = scheduled(DataInterval(day(10), day(11)), states=states)  # type: ignore[arg-type]
    run = resolve_run(after_a_week, SPEC, database)
    assert run.interval == Interval(day(4), day(11))
    assert awaited(after_a_week, run) == replace(run, interval=Interval(day(10), day(11)))
    by_hand = context("by hand", day(12))
    run = resolve_run(by_hand, SPEC, database)
    assert awaited(by_hand, run) == run


def test_without_a_date_runs_follow_each_other_without_gap_or_overlap(database: Database) -> None:
    first = resolve_run(context("a", day(10)), SPEC, database)
    second = resolve_run(context("b", day(17), states={"a": "success"}), SPEC, database)
    assert first.interval == Interval(START, day(10))
    assert second.interval == Interval(day(10), day(17))


def test_a_cleared_run_keeps_its_interval_after_later_ones(database: Database) -> None:
    first = resolve_run(context("a", day(10)), SPEC, database)
    resolve_run(context("b", day(17)), SPEC, database)
    assert resolve_run(context("a", day(10)), SPEC, database) == first


def test_a_date_without_a_schedule_is_the_run_s_moment(database: Database) -> None:
    """Airflow makes an interval of no length of it."""
    run = resolve_run(
        context("a", day(10), data_interval_start=day(5), data_interval_end=day(5)), SPEC, database
    )
    assert (run.as_of, run.interval) == (day(5), Interval(START, day(5)))


@pytest.mark.parametrize(
    "fields",
    [
        {"conf": {"as_of": day(11).isoformat()}},
        {"conf": {"interval": {"start": day(3).isoformat(), "end": day(11).isoformat()}}},
        {"data_interval_start": day(11), "data_interval_end": day(11)},
        {"data_interval_start": day(10), "data_interval_end": day(11)},
    ],
    ids=["as_of", "interval", "date", "data interval"],
)
def test_a_time_that_has_not_come_is_refused(database: Database, fields: dict[str, Any]) -> None:
    with pytest.raises(RunConfError, match=r"stands for 2013-01-12T00:00:00\+00:00, but it is 2013-01-11T00"):
        resolve_run(context("a", day(10), now=day(10), **fields), SPEC, database)
    assert resolve_run(context("a", day(10), now=day(11), **fields), SPEC, database).as_of == day(11)


def test_a_browser_s_clock_may_be_a_little_fast(database: Database) -> None:
    soon = day(10) + timedelta(minutes=2)
    dated = context("a", day(10), now=day(10), data_interval_start=soon, data_interval_end=soon)
    assert resolve_run(dated, SPEC, database).as_of == soon


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
