"""Forward from nothing and from an older state, on both kinds of database."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from delivery_kit import approve, make_candidate
from ledger_processes import migrate_and_write
from sqlalchemy import func, inspect, make_url, select
from sqlalchemy.exc import DBAPIError

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.audit import Verified, live_at, verify
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.ledger.database import Database, DatabaseTooNewError, DatabaseUnavailableError
from ml_lifecycle.ledger.intervals import claim_interval
from ml_lifecycle.ledger.ledger import Ledger
from ml_lifecycle.ledger.requests import open_requests
from ml_lifecycle.ledger.tables import metadata, windows
from ml_lifecycle.ledger.windows import newest_windows, record_window
from ml_lifecycle.records import Interval

WHERE = ("production", "delays")
NOW = datetime(2026, 4, 1, tzinfo=UTC)
DAY = timedelta(days=1)

# What the old databases hold. The routes in the lake, which is not part of them, recorded these heads.
HEAD = "f0404a6a68430f6d1e45887d92dc0aeef492c33ba588e1a87bbf7553ad9f558b"
PUBLISHED_HEADS = [
    "8544786e8154324b0064b297d426fa7afb624a7770c8142d84c446421c0060a7",
    "810c4ae2574f24e5707efbab54c28731a8d82f2bcb2f5db8641cea915c6dec74",
    "bc2268e4ce6aa10e9b7be2979169b752cb4ad63bcd3b22371db09dc334350a92",
    "2c55641c1f870996a50594bc655fa337761233419d30bcb00d22ddb5f74307c0",
    "1276d1d371ec005ab7106890c4fe778daae7fbd19540c25494577ab15aa7c10c",
]


def make_nothing(url: str) -> None:
    """The database as it is."""


def make_old(url: str) -> None:
    """A database at revision 0001 with a short life in it."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    script = (Path(__file__).parent / "old_databases" / f"0001_{backend}.sql").read_text(encoding="utf-8")
    if backend == "sqlite":
        lite = sqlite3.connect(parsed.database or "")
        lite.executescript(script)
        lite.close()
    else:
        connection = psycopg2.connect(url)
        with connection, connection.cursor() as cursor:
            cursor.execute(script)
        connection.close()


@pytest.fixture
def old(database_url: str) -> Database:
    """What became of an old database."""
    make_old(database_url)
    database = Database(database_url)
    database.migrate()
    return database


def row_count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(windows)) or 0


def revision(database: Database) -> str | None:
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@pytest.mark.parametrize("start", [make_nothing, make_old])
def test_migrations_make_the_declared_tables(database_url: str, start: Callable[[str], None]) -> None:
    start(database_url)
    database = Database(database_url)
    database.migrate()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize(("start", "windows_before"), [(make_nothing, 0), (make_old, 2)])
def test_several_processes_migrate_at_once(
    database_url: str, start: Callable[[str], None], windows_before: int
) -> None:
    start(database_url)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=migrate_and_write, args=(database_url, f"w{n}")) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert row_count(Database(database_url)) == windows_before + 3


def test_migrating_again_keeps_what_is_there(old: Database) -> None:
    before = revision(old), Ledger(old).entries()
    old.migrate()
    assert (revision(old), Ledger(old).entries()) == before


def test_a_migration_that_fails_leaves_nothing(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE windows (taken INTEGER)")  # the last one that is made
    with pytest.raises((DBAPIError, DatabaseUnavailableError), match="already exists"):
        database.migrate()
    with database.read() as connection:
        assert inspect(connection).get_table_names() == ["windows"]


def test_a_newer_database_is_refused_and_left_alone(old: Database) -> None:
    with old.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(
        DatabaseTooNewError, match=r"is at revision 9999; this version .* knows up to \d{4}: "
    ):
        old.migrate()
    assert revision(old) == "9999"
    assert Ledger(old).head() == HEAD


def test_an_old_ledger_is_whole(old: Database) -> None:
    ledger = Ledger(old)
    ledger.verify(PUBLISHED_HEADS)
    assert ledger.head() == HEAD
    entries = ledger.entries()
    assert [entry.kind for entry in entries].count("decision") == 4
    assert len(entries) == 23
    approved = next(entry for entry in entries if entry.kind == "decision")
    assert approved.payload["reason"] == "better than the average – l'été compris"
    assert approved.at == datetime(2026, 3, 1, 12, 14, 0, 123458, tzinfo=UTC)
    approval = ledger.approval_for(approved.subject)
    assert approval is not None
    assert (approval.version, approval.approved_by) == ("1", "ben")


def test_an_old_ledger_says_what_was_live_and_the_tables_agree(old: Database) -> None:
    ledger = Ledger(old)
    assert verify(ledger, ()) == Verified(entries=23, heads=0, releases=6)
    (live,) = live_at(ledger, "production", NOW)
    assert (live.version, live.revision, live.restores, live.approved_by) == ("1", 5, 1, "ben")
    assert live.snapshot_digest is not None
    assert (live.train_end, live.code_digest) == (None, None), "evidence did not say so then"


def test_old_releases_requests_intervals_and_windows_are_what_they_were(old: Database) -> None:
    releases = Releases(old)
    assert [
        (release.revision, release.kind, release.state, release.version, release.reason)
        for release in releases.history(*WHERE)
    ] == [
        (5, "restore", "confirmed", "1", "known answers differ"),
        (4, "deploy", "rolled_back", "4", "known answers differ"),
        (3, "restore", "confirmed", "1", "too slow"),
        (2, "deploy", "rolled_back", "3", "too slow"),
        (1, "deploy", "confirmed", "1", ""),
    ]
    (served,) = releases.served("production")
    assert (served.release.revision, served.route.champion.version) == (5, "1")
    asked = releases.requested(*WHERE, "delays__rollback/manual__1")
    assert asked is not None
    assert asked.requested_by == "ben"
    (request,) = open_requests(old)
    assert (request.version, request.key.run_id, request.assigned) == ("5", "candidate__v5", ("ben", "cem"))
    assert request.deadline is None
    kept = claim(old, "manual__2")
    assert kept == Interval(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC))
    newest, older = newest_windows(old, ["delays"], 5)["delays"]
    assert (newest.payload, older.payload) == (
        {"alerts": ["skill"], "skill": -0.5},
        {"alerts": [], "skill": 0.125},
    )
    assert newest.window == Interval(datetime(2026, 3, 3, tzinfo=UTC), datetime(2026, 3, 4, tzinfo=UTC))


def claim(database: Database, run_id: str) -> Interval:
    own = Interval(NOW, NOW)
    return claim_interval(database, "delays__train", run_id, own, whole=False, succeeded=lambda _: True)


def test_life_goes_on_in_an_old_database(old: Database, tmp_path: Path) -> None:
    lake, releases = Lake(str(tmp_path / "lake")), Releases(old)
    champion = releases.champion("delays")
    assert champion is not None
    evidence = make_candidate(lake, 6, b"model 6").evidence(lake, champion)
    approve(old, evidence, champion)
    assert open_requests(old) == [], "the newer candidate superseded the request that was open"
    variant = Variant("champion", "6", "models/6.onnx", evidence.model_digest, "regression", (), ())
    deployment = Deployment(
        model="delays",
        environment="production",
        endpoint="delays",
        version="6",
        model_digest=evidence.model_digest,
        evidence_digest=evidence.digest,
        strategy="blue_green",
        variants=(variant,),
        expected=champion.revision,
    )
    deployed = releases.confirmed(releases.apply(releases.begin(deployment, NOW), lake, NOW), NOW)
    assert releases.champion("delays") == deployed
    assert deployed.revision == 6
    restore = releases.begin_restore(deployed, NOW, reason="bad", request="another")
    releases.confirmed(releases.apply(restore, lake, NOW), NOW)
    live = releases.champion("delays")
    assert live is not None
    assert (live.revision, live.version) == (7, "1")
    claimed = claim(old, "next")
    assert claimed == Interval(datetime(2026, 3, 8, tzinfo=UTC), NOW)
    assert record_window(old, "delays", "delays", Interval(NOW, NOW + DAY), {}, NOW)
    Ledger(old).verify([*PUBLISHED_HEADS, Ledger(old).head()])
