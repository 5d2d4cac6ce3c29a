"""The chain of a DAG's runs: no gap whatever fails or never comes, and each run keeps what it got."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.records import Interval

DAG = "delays__score"
START = datetime(2026, 1, 1, tzinfo=UTC)
_numbers = itertools.count()


def day(n: float) -> datetime:
    return START + timedelta(days=n)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'lifecycle.db'}")
    made.migrate()
    return made


class Chain:
    """Runs of one DAG, some of which failed.

    :param dag_id: its own, so that a test may have several in one database
    """

    def __init__(self, database: Database, dag_id: str = DAG) -> None:
        self.database = database
        self.dag_id = dag_id
        self.failed: set[str] = set()

    def scheduled(self, number: int, *, fails: bool = False) -> Interval:
        """The run of the day ``number``."""
        return self._run(f"scheduled__{number}", Interval(day(number), day(number + 1)), True, fails)

    def dateless(self, run_id: str, as_of: datetime, *, fails: bool = False) -> Interval:
        return self._run(run_id, Interval(START, as_of), False, fails)

    def _run(self, run_id: str, own: Interval, whole: bool, fails: bool) -> Interval:
        if fails:
            self.failed.add(run_id)
        return claim_interval(
            self.database,
            self.dag_id,
            run_id,
            own,
            whole=whole,
            succeeded=lambda other: other not in self.failed,
        )


@pytest.fixture
def chain(database: Database) -> Chain:
    return Chain(database)


def test_runs_without_a_date_follow_each_other_without_gap_or_overlap(chain: Chain) -> None:
    assert chain.dateless("one", day(10)) == Interval(START, day(10))
    assert chain.dateless("two", day(17)) == Interval(day(10), day(17))
    assert chain.dateless("three", day(17)) == Interval(day(17), day(17))


def test_a_run_keeps_what_it_got_whatever_ran_or_failed_since(chain: Chain) -> None:
    first, second = chain.scheduled(5), chain.scheduled(6)
    chain.scheduled(9, fails=True)
    chain.failed |= {"scheduled__5", "scheduled__6"}
    assert (chain.scheduled(5), chain.scheduled(6)) == (first, second)


def test_a_run_of_old_data_follows_what_ended_before_it(chain: Chain) -> None:
    chain.dateless("one", day(10))
    chain.dateless("late", day(20))
    assert chain.dateless("between", day(12)) == Interval(day(10), day(12))
    assert chain.dateless("next", day(21)) == Interval(day(20), day(21))


def test_the_first_scheduled_run_stands_for_its_own_interval(chain: Chain) -> None:
    assert chain.scheduled(40) == Interval(day(40), day(41))


def test_a_missed_week_is_covered_by_the_next_scheduled_run(chain: Chain) -> None:
    chain.scheduled(5)
    assert chain.scheduled(13) == Interval(day(6), day(14))
    assert chain.scheduled(14) == Interval(day(14), day(15))


def test_failed_runs_are_covered_by_the_next_one_and_only_until_it_succeeds(chain: Chain) -> None:
    chain.scheduled(5)
    chain.scheduled(6, fails=True)
    assert chain.scheduled(7, fails=True) == Interval(day(6), day(8))
    assert chain.dateless("by hand", day(8.5)) == Interval(day(6), day(8.5))
    assert chain.scheduled(9) == Interval(day(8.5), day(10))


def test_runs_that_all_failed_are_covered_from_the_first(chain: Chain) -> None:
    chain.scheduled(5, fails=True)
    chain.scheduled(7, fails=True)
    assert chain.scheduled(8) == Interval(day(5), day(9))


def test_of_runs_that_all_failed_the_one_that_reaches_furthest_back_counts(chain: Chain) -> None:
    chain.dateless("long", day(20), fails=True)
    chain.scheduled(12, fails=True)
    assert chain.scheduled(21) == Interval(START, day(22))


def test_a_scheduled_run_stands_for_all_of_its_interval_even_if_part_was_run(chain: Chain) -> None:
    chain.scheduled(5)
    chain.dateless("at noon", day(6.5))
    assert chain.scheduled(6) == Interval(day(6), day(7))


def test_chains_of_other_dags_do_not_count(chain: Chain, database: Database) -> None:
    chain.dateless("one", day(10))
    assert Chain(database, "delays__monitor").dateless("one", day(11)) == Interval(START, day(11))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_what_succeeded_runs_stand_for_has_no_gap(
    database: Database, steps: list[tuple[bool, int, bool]]
) -> None:
    """Whatever came late, failed, or was run in between by hand."""
    chain, today, done = Chain(database, f"dag_{next(_numbers)}"), 0, []
    for number, (scheduled, days, fails) in enumerate(steps):
        today += days
        run = (
            chain.scheduled(today, fails=fails)
            if scheduled
            else chain.dateless(f"run_{number}", day(today + 0.5), fails=fails)
        )
        assert run.end == day(today + (1 if scheduled else 0.5))
        if not fails:
            done.append(run)
    for before, after in itertools.pairwise(done):
        assert after.start <= before.end
