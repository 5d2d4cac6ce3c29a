from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ledger_processes import append_many
from sqlalchemy import delete, insert, select, update

from ml_lifecycle.errors import LedgerError
from ml_lifecycle.ledger.database import Database
from ml_lifecycle.ledger.ledger import GENESIS, Ledger, append_entry
from ml_lifecycle.ledger.tables import ledger as table

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    database = Database(database_url)
    database.migrate()
    return Ledger(database)


def fill(ledger: Ledger, count: int = 5) -> list[str]:
    """Append entries; the head after each."""
    return [
        ledger.append("note", "delays", {"n": n}, NOW + timedelta(seconds=n)).digest
        for n in range(1, count + 1)
    ]


def change(ledger: Ledger, statement: Any) -> None:
    with ledger.database.write() as connection:
        assert connection.execute(statement).rowcount


def test_entries_are_chained(ledger: Ledger) -> None:
    assert ledger.head() == GENESIS
    ledger.verify()
    heads = fill(ledger)
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.previous for entry in entries] == [GENESIS, *heads[:-1]]
    assert ledger.head() == heads[-1]
    assert entries[2].payload == {"n": 3}
    assert entries[2].at == NOW + timedelta(seconds=3)
    ledger.verify([GENESIS, *heads])


def test_entries_of_one_model(ledger: Ledger) -> None:
    fill(ledger, 2)
    ledger.append("note", "other", {}, NOW)
    assert [entry.seq for entry in ledger.entries("delays")] == [1, 2]
    assert [entry.seq for entry in ledger.entries("other")] == [3]


def test_the_same_key_is_written_once(ledger: Ledger) -> None:
    first = ledger.append("decision", "delays", {"n": 1}, NOW, subject="a", key="k")
    again = ledger.append("decision", "delays", {"n": 2}, NOW + timedelta(days=1), subject="a", key="k")
    other = ledger.append("decision", "delays", {"n": 2}, NOW, subject="b", key="k")
    assert again == first
    assert ledger.find("decision", "a", "k") == first
    assert ledger.find("decision", "a", "x") is None
    assert [entry.seq for entry in ledger.entries()] == [first.seq, other.seq]


def test_several_processes_write_one_chain(ledger: Ledger, database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=append_many, args=(database_url, f"m{n}", 20)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    ledger.verify()
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == list(range(1, 81))
    assert sum(entry.kind == "note" for entry in entries) == 60
    assert len({entry.key for entry in entries if entry.kind == "once"}) == 20


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("payload", '{"n":99}'),
        ("at", NOW + timedelta(days=1)),
        ("kind", "decision"),
        ("model", "other"),
        ("subject", "elsewhere"),
        ("key", "other"),
    ],
)
def test_an_edited_entry_is_found(ledger: Ledger, column: str, value: Any) -> None:
    fill(ledger)
    change(ledger, update(table).where(table.c.seq == 3).values({column: value}))
    with pytest.raises(LedgerError, match="ledger entry 3 was edited"):
        ledger.verify()


def test_a_deleted_entry_is_found(ledger: Ledger) -> None:
    fill(ledger)
    change(ledger, delete(table).where(table.c.seq == 3))
    with pytest.raises(LedgerError, match="ledger entry 3 is missing"):
        ledger.verify()


def test_a_deleted_entry_whose_number_is_given_away_is_found(ledger: Ledger) -> None:
    fill(ledger)
    change(ledger, delete(table).where(table.c.seq == 3))
    for seq in (4, 5):
        change(ledger, update(table).where(table.c.seq == seq).values(seq=seq - 1))
    with pytest.raises(LedgerError, match="ledger entry 3 does not follow on entry 2"):
        ledger.verify()


def test_a_cut_off_tail_is_found_by_a_known_head(ledger: Ledger) -> None:
    heads = fill(ledger)
    change(ledger, delete(table).where(table.c.seq > 3))
    ledger.verify(heads[:3])
    with pytest.raises(LedgerError, match="rewritten from entry 4 on"):
        ledger.verify([heads[2], heads[4]])


def test_recomputed_successors_are_found_by_a_known_head(ledger: Ledger) -> None:
    heads = fill(ledger)
    with ledger.database.write() as connection:
        rows = connection.execute(select(table).order_by(table.c.seq)).all()
        connection.execute(delete(table))
        for row in rows:
            payload = {"n": 99} if row.seq == 3 else {"n": row.seq}
            append_entry(connection, row.kind, row.model, payload, row.at)
    ledger.verify()
    with pytest.raises(LedgerError, match="rewritten from entry 3 on"):
        ledger.verify([heads[1], heads[4]])


def test_an_entry_pushed_in_is_found(ledger: Ledger) -> None:
    fill(ledger)
    with ledger.database.write() as connection:
        forged = dict(connection.execute(select(table).where(table.c.seq == 5)).one()._mapping)
        connection.execute(insert(table).values(**{**forged, "seq": 6}))
    with pytest.raises(LedgerError, match="ledger entry 6 does not follow"):
        ledger.verify()


def test_the_newest_decision_stands(ledger: Ledger) -> None:
    def decide(decision: str, key: str) -> None:
        payload = {"decision": decision, "user": "ben", "reason": "", "evidence": {"version": "7"}}
        ledger.append("decision", "delays", payload, NOW, subject="e1", key=key)

    assert ledger.approval_for("e1") is None
    decide("approve", "first")
    approval = ledger.approval_for("e1")
    assert approval is not None
    assert (approval.version, approval.approved_by, approval.approved_at) == ("7", "ben", NOW)
    assert ledger.approval_for("e2") is None
    decide("reject", "second")
    assert ledger.approval_for("e1") is None
    decide("approve", "third")
    decide("reject", "first")
    assert ledger.approval_for("e1") is not None
