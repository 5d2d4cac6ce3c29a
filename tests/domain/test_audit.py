"""What was live, and who let it: from the ledger, whatever the tables beside it say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from delivery_kit import NOW, make_candidate, served_variant
from sqlalchemy import delete, select, update

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.delivery.audit import (
    DatabaseUnreadableError,
    Live,
    UnknownEnvironmentError,
    UnknownModelError,
    as_table,
    live_at,
    open_ledger,
    verify,
)
from ml_lifecycle.delivery.releases import Deployment, Releases
from ml_lifecycle.delivery.route import Variant
from ml_lifecycle.delivery.strategies import Step
from ml_lifecycle.errors import IntegrityError, LedgerError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import Ledger, append_entry
from ml_lifecycle.ledger.requests import RequestKey
from ml_lifecycle.ledger.tables import ledger as ledger_table
from ml_lifecycle.ledger.tables import releases as releases_table
from ml_lifecycle.records import Release, to_json
from ml_lifecycle.stages.approve import record_decision, request_approval

HOUR = timedelta(hours=1)


class World:
    """Releases as the stages make them; an hour passes with each step."""

    def __init__(self, root: Path) -> None:
        self.url = f"sqlite:///{root}/lifecycle.db"
        self.database = Database(self.url)
        self.database.migrate()
        self.ledger, self.releases = Ledger(self.database), Releases(self.database)
        self.lake = Lake(str(root / "lake"))
        self.lakes = {name: Lake(str(root / name)) for name in ("staging", "production")}
        self.now = NOW

    def tick(self) -> datetime:
        self.now += HOUR
        return self.now

    def begin(self, number: int, environment: str = "production", step: Step | None = None) -> Release:
        """Begin to release version ``number``; for production it is approved first, by ``ben``.

        :param step: where it stands beside what is live; none makes it champion
        """
        live = self.releases.live(environment, "delays")
        candidate = make_candidate(self.lake, number, b"%d" % number)
        champion = live if environment == "production" else None
        evidence = candidate.evidence(self.lake, champion)
        if environment == "production":
            key = RequestKey("delays__promote", f"candidate__v{number}@{self.now}", "approve")
            request_approval(self.ledger, evidence, key, ("ben",), self.tick())
            record_decision(
                self.ledger, evidence, key, "approve", "ben", self.tick(), champion=champion, reason="better"
            )
        variants: tuple[Variant, ...] = (served_variant(evidence),)
        if step is not None and live is not None:
            variants = step.variants(variants[0], self.releases.route(live).champion)
        return self.releases.begin(
            Deployment(
                model="delays",
                environment=environment,
                endpoint="delays",
                version=str(number),
                model_digest=evidence.model_digest,
                evidence_digest=evidence.digest,
                strategy="blue_green",
                variants=variants,
                expected=None if live is None else live.revision,
                requested_by="cem",
            ),
            self.tick(),
        )

    def confirm(self, begun: Release) -> Release:
        self.releases.apply(begun, self.lakes[begun.environment], self.tick())
        return self.releases.confirmed(begun, self.tick())

    def release(self, number: int, environment: str = "production") -> Release:
        return self.confirm(self.begin(number, environment))

    def back(self, replaced: Release) -> Release:
        return self.confirm(
            self.releases.begin_restore(replaced, self.tick(), reason="bad", requested_by="dan", request="r")
        )

    def live(self, moment: datetime | None = None, environment: str = "production") -> Live:
        """What was live; :meth:`served` has what answered beside it, too."""
        return live_at(self.ledger, environment, moment or self.now, lake=self.lake)[0]

    def served(self, moment: datetime) -> list[tuple[Any, ...]]:
        found = live_at(self.ledger, "production", moment)
        return [(one.version, one.role, one.share, one.state, one.approved_by) for one in found]

    def arguments(self) -> list[str]:
        lakes = [f"--environment-lake={name}={lake.url}" for name, lake in self.lakes.items()]
        return ["--database", self.url, "--lake", self.lake.url, *lakes]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_it_says_what_was_live_and_who_let_it_on_which_data(world: World) -> None:
    release = world.release(1)
    live = world.live()
    decision = world.ledger.approval_for(release.evidence_digest or "")
    assert decision is not None
    assert live == Live(
        environment="production",
        endpoint="delays",
        model="delays",
        version="1",
        model_digest=release.model_digest,
        role="champion",
        share=1.0,
        state="confirmed",
        revision=1,
        since=world.now,
        ledger_seq=len(world.ledger.entries()),
        requested_by="cem",
        trained_for="ann",
        approved_by="ben",
        approved_at=decision.approved_at,
        approval_reason="better",
        approval_seq=decision.ledger_seq,
        evidence_digest=release.evidence_digest,
        snapshot_digest=make_candidate(world.lake, 1, b"1").training.snapshot_digest,
        train_end=NOW - timedelta(days=8),
        code_digest=make_candidate(world.lake, 1, b"1").training.code_digest,
    )


def test_every_moment_has_its_own_answer(world: World) -> None:
    moments: list[tuple[datetime, str | None]] = [(world.now, None)]

    def then(step: Callable[[], Release], version: str | None) -> Release:
        made = step()
        moments.append((world.now, version))
        return made

    begun = then(lambda: world.begin(1), None)
    then(lambda: world.confirm(begun), "1")
    second = then(lambda: world.begin(2), "1")
    then(lambda: world.confirm(second), "2")
    back = then(lambda: world.back(second), "1")
    then(lambda: world.release(3), "3")
    assert [world.live(moment).version for moment, _ in moments] == [version for _, version in moments]
    # Between the steps nothing changes until a release is confirmed.
    confirmed_at = moments[4][0]
    assert world.live(confirmed_at - timedelta(microseconds=1)).version == "1"
    restored = world.live(moments[5][0])
    assert (restored.restores, restored.requested_by, restored.approved_by) == (1, "dan", "ben")
    assert (restored.revision, restored.since) == (back.revision, moments[5][0])


def test_a_route_that_is_not_as_it_was_published_is_found(world: World) -> None:
    release = world.release(1)
    route = to_json(replace(world.releases.route(release), variants=()))
    with world.database.write() as connection:
        connection.execute(update(releases_table).values(route=json.dumps(route)))
    with pytest.raises(LedgerError, match="revision 1 of delays is not routed as it was published"):
        verify(world.ledger, world.lakes.values())


def test_a_first_release_that_failed_leaves_nothing_live(world: World) -> None:
    failed = world.begin(1)
    world.releases.apply(failed, world.lakes["production"], world.tick())
    withdrawn = world.releases.begin_restore(failed, world.tick(), reason="checks failed")
    assert world.confirm(withdrawn).kind == "withdraw"
    assert world.live() == Live("production", "delays", "delays")
    assert as_table("production", world.now, [world.live()]).splitlines()[1:] == [
        "delays",
        "  live          none",
    ]


def test_the_yes_that_let_it_in_is_shown_whatever_was_said_later(world: World) -> None:
    begun = world.begin(1)
    ledger = world.ledger
    yes = ledger.approval_for(begun.evidence_digest or "")
    assert yes is not None
    no = {"decision": "reject", "user": "eve", "reason": "", "evidence": {}}
    ledger.append("decision", "delays", no, world.tick(), subject=yes.evidence_digest, key="asked again")
    world.confirm(begun)
    assert (world.live().approved_by, world.live().approval_seq) == ("ben", yes.ledger_seq)


def test_an_environment_without_approvals_answers_from_evidence_named_by_its_digest(world: World) -> None:
    release = world.release(1, "staging")
    live = world.live(environment="staging")
    assert (live.version, live.approved_by, live.trained_for) == ("1", None, "ann")
    assert live.train_end == NOW - timedelta(days=8)
    (without,) = live_at(world.ledger, "staging", world.now)
    assert (without.version, without.train_end) == ("1", None)
    path = f"evidence/delays/{release.evidence_digest}.json"
    world.lake.write_json(path, {**world.lake.read_json(path), "snapshot_digest": "0" * 64})
    with pytest.raises(IntegrityError, match="is not the evidence that the ledger names"):
        world.live(environment="staging")


def test_the_tables_beside_the_ledger_change_no_answer_and_are_found_out(world: World) -> None:
    release = world.release(1)
    before = world.live()
    verify(world.ledger, world.lakes.values())
    with world.database.write() as connection:
        connection.execute(update(releases_table).values(version="9", requested_by="nobody"))
    assert world.live() == before
    last = world.ledger.entries()[-1].seq
    with pytest.raises(LedgerError, match=f"release production/delays/1 is not .* as ledger entry {last}"):
        verify(world.ledger, ())
    with world.database.write() as connection:
        connection.execute(delete(releases_table))
    with pytest.raises(LedgerError, match="release production/delays/1 is not in its table"):
        verify(world.ledger, ())
    assert release.version == "1"


def test_a_release_that_no_entry_is_about_is_found(world: World) -> None:
    world.release(1)
    with world.database.write() as connection:
        connection.execute(update(releases_table).values(revision=7))
        connection.execute(delete(ledger_table).where(ledger_table.c.kind == "release"))
    with pytest.raises(LedgerError, match="release production/delays/7 is in its table, but no ledger entry"):
        world.releases.verify()


def rewrite(world: World, seq: int) -> None:
    """Edit an entry, and give all that follow a chain that fits."""
    with world.database.write() as connection:
        rows = connection.execute(select(ledger_table).order_by(ledger_table.c.seq)).all()
        connection.execute(delete(ledger_table))
        for row in rows:
            payload = json.loads(row.payload) | ({"user": "eve"} if row.seq == seq else {})
            append_entry(connection, row.kind, row.model, payload, row.at, subject=row.subject, key=row.key)


def test_a_rewritten_chain_is_found_by_the_heads_in_any_environment(world: World) -> None:
    world.release(1)
    staged = world.release(2, "staging")
    entries = len(world.ledger.entries())
    checked = verify(world.ledger, world.lakes.values())
    assert (checked.entries, checked.heads, checked.releases) == (entries, 2, 2)
    (intent,) = (
        entry.seq
        for entry in world.ledger.entries()
        if entry.subject == "staging/delays/1" and entry.key == "intent"
    )
    # After production's head and before staging's: only staging's tells.
    rewrite(world, intent)
    verify(world.ledger, [world.lakes["production"]])
    with pytest.raises(LedgerError, match=r"rewritten from entry 3 on, or later: the head [0-9a-f]{64}"):
        verify(world.ledger, world.lakes.values())
    assert staged.state == "confirmed"


def test_only_one_model_is_shown_when_asked(world: World) -> None:
    world.release(1)
    (found,) = live_at(world.ledger, "production", world.now, model="delays")
    assert found.version == "1"
    assert live_at(world.ledger, "staging", world.now, known=["staging"]) == []
    with pytest.raises(UnknownEnvironmentError, match="'staging'; known are: production"):
        live_at(world.ledger, "staging", world.now)
    with pytest.raises(UnknownModelError, match="no release of model 'delay'; it has those of: delays"):
        live_at(world.ledger, "production", world.now, model="delay")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreadableError, match=r"none\.db: no such file"):
        open_ledger(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(DatabaseUnreadableError, match="is no lifecycle database: it has no ledger"):
        open_ledger(f"sqlite:///{tmp_path}/empty.db")
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    with pytest.raises(DatabaseUnreadableError, match="file is not a database"):
        open_ledger(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(DatabaseUnreadableError, match="no url"):
        open_ledger("no url")


class TestCommands:
    def test_verify_says_what_was_checked(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        world.release(1)
        assert main(["ledger", "verify", *world.arguments()]) == 0
        assert capsys.readouterr().out == (
            "the ledger verifies: 4 entries, 1 releases, and 1 heads in the routes of staging, production\n"
        )

    def test_verify_exits_with_1_and_the_first_bad_entry(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.release(1)
        with world.database.write() as connection:
            connection.execute(update(ledger_table).where(ledger_table.c.seq == 2).values(model="x"))
        for words in (["ledger", "verify"], ["live"]):
            assert main([*words, *world.arguments()]) == 1
            printed = capsys.readouterr()
            assert (printed.out, printed.err) == ("", "ledger entry 2 was edited: its digest is another\n")

    def test_live_is_a_table_or_json(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        release = world.release(1)
        at = ["--at", (world.now + HOUR).isoformat()]
        assert main(["live", *at, *world.arguments()]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(
            "production at 2026-03-01 18:00:00 UTC\ndelays\n  version       1 of delays\n"
        )
        assert '  approved by   ben at 2026-03-01 14:00:00 UTC (ledger entry 1): "better"\n' in shown
        assert f"  evidence      {release.evidence_digest}\n" in shown
        assert main(["live", *at, "--json", "--model", "delays", *world.arguments()]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found == world.live().to_json()
        assert (found["version"], found["since"]) == ("1", "2026-03-01T17:00:00+00:00")

    def test_before_anything_was_live_it_says_none(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.release(1)
        assert main(["live", "--at", "2020-01-01T00:00:00Z", *world.arguments()]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == ["delays", "  live          none"]
        assert main(["live", "--environment", "staging", *world.arguments()]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == ["none: the ledger has no release there"]
        assert main(["live", "--environment", "prod", *world.arguments()]) == 1
        message = "there is no environment 'prod'; known are: production, staging\n"
        assert capsys.readouterr() == ("", message)

    def test_where_it_is_may_come_from_the_environment(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("ML_LIFECYCLE_DATABASE", raising=False)
        assert main(["live"]) == 1
        assert "set ML_LIFECYCLE_DATABASE" in capsys.readouterr().err
        monkeypatch.setenv("ML_LIFECYCLE_DATABASE", world.url)
        assert main(["ledger", "verify"]) == 0
        assert "name their lakes" in capsys.readouterr().out

    def test_migrate_makes_a_database_and_leaves_one_of_this_version_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        where = ["--database", f"sqlite:///{tmp_path}/new.db"]
        for _ in range(2):
            assert main(["ledger", "migrate", *where]) == 0
            assert re.fullmatch(r"the lifecycle database is at revision \d{4}\n", capsys.readouterr().out)
        assert main(["ledger", "verify", *where]) == 0
        assert "0 entries" in capsys.readouterr().out

    def test_migrate_says_at_once_what_it_cannot_open(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["ledger", "migrate", "--database", f"sqlite:///{tmp_path}/none/new.db"]) == 1
        assert "unable to open database file" in capsys.readouterr().err
        assert main(["ledger", "migrate", "--database", "mysql://root@host/name"]) == 1
        assert "cannot be on mysql: use sqlite:" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["live", "--at", "yesterday"], "write a time such as"),
            (["live", "--at", "2026-01-01"], "has no offset; end it with Z"),
            (["ledger", "verify", "--environment-lake", "/lake"], "production=URL"),
        ],
    )
    def test_a_wrong_command_line_exits_with_2(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
