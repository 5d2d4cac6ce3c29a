"""A running Airflow: however a run is started, it stands for one moment and one interval, and keeps them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from small_model import DAY, HOUR, MACHINES, START, land, readings, write_model
from stack_kit import approve, log_in, running_stack, wait_for_request
from waiting import wait_until

from ml_lifecycle.adapters.feast_reader import OnlineReader
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo.airflow import DONE, AirflowUser
from ml_lifecycle.records import Interval
from ml_lifecycle_airflow.stack.config import Stack

pytestmark = pytest.mark.full

NEW_YORK = ZoneInfo("America/New_York")
SCHEDULE = {"monitor": "0 3 * * *", "timezone": NEW_YORK.key}

# One task a run: how a run was started is all that is asked here.
TIMES = """
from airflow.sdk import DAG, CronDataIntervalTimetable

from ml_lifecycle_airflow import IngestOperator

with DAG(
    "times",
    schedule=CronDataIntervalTimetable("0 3 * * *", timezone="America/New_York"),
    catchup=False,
    max_active_runs=1,
    default_args={"folder": {folder!r}},
):
    IngestOperator(task_id="ingest")
"""


@dataclass(frozen=True)
class Runs:
    """The runs of one DAG, as a user of Airflow's REST API starts, sees and changes them."""

    user: AirflowUser
    dag_id: str = "times"

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.user._client.request(method, f"/api/v2{path}", json=body or None)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def of_type(self, run_type: str) -> list[dict[str, Any]]:
        """The runs that were made in this way, the oldest dates first."""
        found = self.call("GET", f"/dags/{self.dag_id}/dagRuns?limit=100")["dag_runs"]
        return sorted(
            (run for run in found if run["run_type"] == run_type), key=lambda run: run["data_interval_start"]
        )

    def scheduled(self) -> dict[str, Any]:
        """The run that the scheduler made by itself, ended."""
        wait_until(lambda: bool(self.of_type("scheduled")), f"the scheduler makes a run of {self.dag_id}")
        (run,) = self.of_type("scheduled")
        self.wait(run["dag_run_id"])
        return run

    def trigger(self, run_id: str, logical_date: datetime | None = None, **conf: Any) -> None:
        date = None if logical_date is None else logical_date.isoformat()
        body = {"logical_date": date, "dag_run_id": run_id, "conf": conf}
        self.call("POST", f"/dags/{self.dag_id}/dagRuns", **body)

    def wait(self, run_id: str) -> str:
        """The run's state, once it has ended."""
        self.ended([run_id])
        return str(self.user.run_state(self.dag_id, run_id))

    def ended(self, run_ids: list[str]) -> None:
        wait_until(
            lambda: all(self.user.run_state(self.dag_id, run_id) in DONE for run_id in run_ids),
            f"{self.dag_id} ends {run_ids}",
            seconds=300,
        )

    def record(self, run_id: str, task_id: str = "ingest") -> dict[str, Any]:
        """What the task of an ended run returned."""
        assert self.wait(run_id) == "success", self.user.log_tail(self.dag_id, run_id, task_id)
        found: dict[str, Any] = self.user.result(self.dag_id, run_id, task_id)
        return found

    def time_of(self, run_id: str, task_id: str = "ingest") -> tuple[datetime, Interval]:
        """``as_of`` and interval of what the task returned."""
        run = self.record(run_id, task_id)["run"]
        interval = Interval(moment(run["interval"]["start"]), moment(run["interval"]["end"]))
        return moment(run["as_of"]), interval

    def run_after(self, run_id: str) -> datetime:
        return moment(self.call("GET", f"/dags/{self.dag_id}/dagRuns/{run_id}")["run_after"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def three_o_clock(year: int, month: int, day: int) -> datetime:
    """In New York, in UTC."""
    return datetime(year, month, day, 3, tzinfo=NEW_YORK).astimezone(UTC)


def backfill(stack: Stack, runs: Runs, start: datetime, end: datetime) -> None:
    """Backfill a DAG, newest first.

    Through Airflow's CLI, as often as it takes: on SQLite it is locked out by the scheduler now and then, and
    REST always is.
    """
    spans = ["--from-date", start.isoformat(), "--to-date", end.isoformat()]
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", runs.dag_id, *spans]

    def created() -> bool:
        found = runs.call("GET", f"/backfills?dag_id={runs.dag_id}")["backfills"]
        if not all(one["completed_at"] for one in found):
            return False  # an earlier one; there can be one only
        done = subprocess.run(
            [*command, "--run-backwards"],
            env=os.environ | stack.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 or "database is locked" in done.stderr, done.stderr
        return done.returncode == 0

    wait_until(created, "the backfill is created", seconds=300)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with the small model, whose data were there before anything could run."""
    root = tmp_path_factory.mktemp("time")
    folder = write_model(root / "dags", schedules=SCHEDULE)
    (root / "dags" / "times.py").write_text(TIMES.replace("{folder!r}", repr(str(folder))))
    land(Lake(str(root / "stack" / "lake")))
    with running_stack(root / "stack", root / "dags") as stack:
        log_in(stack, "admin").wait_for_dags({"times", "small__train", "small__monitor"})
        yield stack


@pytest.fixture(scope="module")
def runs(stack: Stack) -> Runs:
    return Runs(log_in(stack, "admin"))


@pytest.fixture(scope="module")
def first(runs: Runs) -> Interval:
    """What the scheduler's own run stands for: the chain begins with it."""
    return runs.time_of(runs.scheduled()["dag_run_id"])[1]


def test_the_scheduler_s_own_run_stands_for_the_last_whole_interval(runs: Runs, first: Interval) -> None:
    run = runs.scheduled()
    assert first == Interval(moment(run["data_interval_start"]), moment(run["data_interval_end"]))
    assert runs.time_of(run["dag_run_id"]) == (first.end, first)
    assert {edge.astimezone(NEW_YORK).hour for edge in (first.start, first.end)} == {3}
    assert timedelta(0) <= runs.run_after(run["dag_run_id"]) - first.end < DAY


def test_every_record_of_a_scheduled_window_stands_for_the_same(runs: Runs, first: Interval) -> None:
    monitor = Runs(runs.user, "small__monitor")
    run_id = monitor.scheduled()["dag_run_id"]
    assert {monitor.time_of(run_id, task) for task in ("ingest", "monitor")} == {(first.end, first)}
    window = monitor.record(run_id, "monitor")["window"]
    assert Interval(moment(window["start"]), moment(window["end"])) == first


def test_runs_without_a_date_go_on_where_the_last_one_that_succeeded_ended(
    runs: Runs, first: Interval
) -> None:
    """Success is what Airflow says: a run that somebody marks as failed is made up for by the next."""
    runs.trigger("one")
    as_of = runs.run_after("one")
    assert runs.time_of("one") == (as_of, Interval(first.end, as_of))
    runs.call("PATCH", "/dags/times/dagRuns/one", state="failed")
    runs.trigger("two")
    assert runs.time_of("two") == (runs.run_after("two"), Interval(first.end, runs.run_after("two")))
    ended = runs.run_after("two")
    runs.call("DELETE", "/dags/times/dagRuns/two")
    runs.trigger("three")
    assert runs.time_of("three")[1] == Interval(ended, runs.run_after("three"))
    clear = {"dag_run_id": "one", "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    runs.call("POST", "/dags/times/clearTaskInstances", **clear)
    wait_until(lambda: runs.user.run_state("times", "one") not in DONE, "the cleared run starts again")
    assert runs.time_of("one") == (as_of, Interval(first.end, as_of)), "cleared, it stands for the same"


def test_a_run_with_a_date_or_an_interval_stands_for_just_that(runs: Runs, first: Interval) -> None:
    noon = datetime(2026, 1, 8, 12, tzinfo=UTC)
    runs.trigger("dated", logical_date=noon)
    runs.trigger(
        "named",
        as_of="2026-01-07T01:00:00+01:00",
        interval={"start": "2026-01-05T19:00:00-05:00", "end": "2026-01-06T19:00:00-05:00"},
    )
    runs.trigger("known_later", logical_date=noon + DAY, as_of=(noon + 2 * DAY).isoformat())
    eighth = Interval(three_o_clock(2026, 1, 7), three_o_clock(2026, 1, 8))
    assert runs.time_of("dated") == (eighth.end, eighth)
    seventh = datetime(2026, 1, 7, tzinfo=UTC)
    assert runs.time_of("named") == (seventh, Interval(seventh - DAY, seventh))
    assert runs.time_of("known_later") == (noon + 2 * DAY, Interval(eighth.end, eighth.end + DAY))


def test_a_time_that_has_not_come_fails_at_once_and_says_why(runs: Runs) -> None:
    runs.trigger("too_early", as_of="2099-01-01T00:00:00Z")
    assert runs.wait("too_early") == "failed"
    (task,) = runs.call("GET", "/dags/times/dagRuns/too_early/taskInstances")["task_instances"]
    assert task["try_number"] == 1
    assert "stands for 2099-01-01T00:00:00+00:00" in runs.user.log_tail("times", "too_early", "ingest")


@pytest.mark.parametrize(
    ("from_day", "hours"),
    [((2026, 3, 6), [24, 23, 24]), ((2025, 10, 31), [24, 25, 24])],
    ids=["clocks go forward", "clocks go back"],
)
def test_a_backfill_backwards_over_a_change_of_clocks_has_each_moment_once(
    stack: Stack, runs: Runs, from_day: tuple[int, int, int], hours: list[int]
) -> None:
    start = three_o_clock(*from_day)
    backfill(stack, runs, start, start + 2 * DAY + timedelta(hours=1))

    def made() -> list[dict[str, Any]]:
        return [run for run in runs.of_type("backfill") if moment(run["data_interval_start"]) >= start][:3]

    wait_until(lambda: len(made()) == 3, "Airflow makes three runs")
    times = [runs.time_of(run["dag_run_id"]) for run in made()]
    spans = [interval for _, interval in times]
    assert [as_of for as_of, _ in times] == [interval.end for interval in spans]
    assert spans[0].start == start
    assert [interval.length / timedelta(hours=1) for interval in spans] == hours
    assert all(before.end == after.start for before, after in pairwise(spans))


@dataclass(frozen=True)
class Life:
    """A model whose trainings did not end in the order of their data, and whose scoring missed months.

    :param roles: of the trained versions, when they were registered
    :param scored: the interval of the last scoring before the schedule
    """

    train: Runs
    score: Runs
    roles: dict[str, str]
    scored: Interval


@pytest.fixture(scope="module")
def life(stack: Stack) -> Life:
    admin, alice = log_in(stack, "admin"), log_in(stack, "alice")
    train, score = Runs(admin, "small__train"), Runs(admin, "small__score")
    end = START + 10 * DAY
    roles = {}
    train.trigger("newest", as_of=end.isoformat())
    roles["newest"] = train.record("newest", "register")["role"]
    wait_for_request(stack, admin, "small__promote", "candidate__v1")
    for run_id, as_of in (("while_it_waits", end - DAY), ("older_than_the_champion", end - DAY / 2)):
        train.trigger(run_id, as_of=as_of.isoformat())
        roles[run_id] = train.record(run_id, "register")["role"]
        if run_id == "while_it_waits":
            approve(stack, alice, "small__promote", "candidate__v1")
    score.trigger("before", as_of=(end + HOUR).isoformat())
    _, scored = score.time_of("before", "score")
    return Life(train, score, roles, scored)


def test_older_data_never_take_the_place_of_newer(life: Life) -> None:
    """Neither of a candidate that waits for its approval nor of a champion."""
    others = dict.fromkeys(("while_it_waits", "older_than_the_champion"), "record")
    assert life.roles == {"newest": "candidate", **others}
    for run_id in others:
        states = {task.task_id: task.state for task in life.train.user.tasks("small__train", run_id)}
        assert states["request_promotion"] == "skipped"


@pytest.mark.parametrize("version", ["2", "3"])
def test_a_version_for_the_record_is_not_promoted_by_hand_either(life: Life, version: str) -> None:
    promote = Runs(life.train.user, "small__promote")
    promote.trigger(f"by_hand_{version}", version=version)
    assert promote.wait(f"by_hand_{version}") == "failed"
    tail = promote.user.log_tail("small__promote", f"by_hand_{version}", "evidence")
    assert f"version {version} of small is no candidate" in tail


def test_every_record_of_a_training_stands_for_the_same(stack: Stack, life: Life) -> None:
    from mlflow import MlflowClient

    tasks = ("ingest", "validate", "features", "train", "evaluate", "register")
    (time,) = {life.train.time_of("newest", task) for task in tasks}
    as_of, interval = time
    assert (as_of, interval) == (START + 10 * DAY, Interval(START, START + 10 * DAY))
    version = life.train.record("newest", "register")
    manifest = Lake(str(stack.lake)).read_json(f"versions/small/{version['version']}/manifest.json")
    assert manifest["run"] == version["run"]
    client = MlflowClient(stack.mlflow_url)
    tags = {
        "ml_lifecycle.as_of": as_of.isoformat(),
        "ml_lifecycle.interval": f"{interval.start.isoformat()}/{interval.end.isoformat()}",
    }
    assert tags.items() <= client.get_model_version("small", version["version"]).tags.items()
    assert tags.items() <= client.get_run(version["mlflow_run_id"]).data.tags.items()


def test_months_without_a_scheduler_are_made_up_for(stack: Stack, life: Life) -> None:
    """Rows of the time that no run came for are scored, and served from the online store."""
    lake, gap = Lake(str(stack.lake)), START + 10 * DAY
    land(lake, gap, days=2)
    # In no scheduled run's own interval, but young enough to be served at its end.
    late = datetime.now(UTC) - timedelta(hours=50)
    seen_once = readings(late, late + HOUR).head(1).with_columns(pl.lit("seen_once").alias("machine_id"))
    buffer = io.BytesIO()
    seen_once.write_parquet(buffer)
    lake.write_bytes("landing/readings/seen_once.parquet", buffer.getvalue())
    spec = stack.dags / "models" / "small" / "model.yaml"
    spec.write_text(spec.read_text().replace("schedules:\n", "schedules:\n  score: 0 3 * * *\n"))
    run = life.score.scheduled()
    assert late < moment(run["data_interval_start"])
    expected = Interval(life.scored.end, moment(run["data_interval_end"]))
    for task in ("ingest", "validate", "materialise", "score"):
        assert life.score.time_of(run["dag_run_id"], task) == (expected.end, expected)
    scoring = life.score.record(run["dag_run_id"], "score")
    parts = [lake.full_path(path) for path in lake.list(scoring["output_path"]) if path.endswith(".parquet")]
    scored = pl.concat([pl.read_parquet(part) for part in parts])
    assert scored.height == (2 * 24 - 1) * MACHINES + 1
    assert "seen_once" in scored["machine_id"]
    training_set = life.train.record("newest", "features")
    registry = lake.read_bytes(f"{training_set['path']}/registry.pb")
    reader = OnlineReader(registry, "small", stack.online_store("production"))
    found = reader.read({"machine_id": ["seen_once"]}, as_of=expected.end)
    assert found["load"] == seen_once["load"].to_list()
