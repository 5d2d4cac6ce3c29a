"""A contract that breaks the last one stops the run, unless its version says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_cases import events, put, run, spec

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.errors import ContractBreaksError
from ml_lifecycle.records import Run
from ml_lifecycle.spec.contract import ContractFile
from ml_lifecycle.spec.loader import Parsed, read_spec
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.validate import latest_validated, validate

JANUARY, FEBRUARY = run("2013-01-01", "2013-02-01"), run("2013-01-02", "2013-02-02", run_id="run_2")
FIRST = """\
contract:
  name: events
  version: 1.4
  extra_columns: allow
  fields:
    - {name: id, type: integer, nullable: false}
    - {name: at, type: timestamp}
    - {name: value, type: float, max: 1000}
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    put(tmp_path / "lake" / "raw", "a.parquet", events("2013-01-01", 31 * 4))
    return Lake(str(tmp_path / "lake"))


def parsed(text: str) -> Parsed[ContractFile]:
    file, problems = read_spec(ContractFile, text.encode(), "contract.yaml")
    assert file is not None, problems
    return file


def judge(lake: Lake, text: str, when: Run, *, lines: bool = True) -> bool:
    """Whether the snapshot passed under this contract."""
    file = parsed(text)
    contracts = {one.name: one for one in file.value.all}
    source = {"uri": "raw/*.parquet", "event_time": "at", "keys": ["id"], "contract": next(iter(contracts))}
    model = spec(events=source, again=source)
    snapshot = ingest(model, lake, when, contracts=contracts)
    previous = latest_validated(lake, "demo", when.as_of)
    return not validate(model, contracts, lake, snapshot, previous, file if lines else None).failed


def changed(*changes: tuple[str, str]) -> str:
    text = FIRST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


STRICTER = (", max: 1000", ", max: 999"), ("    - {name: at, type: timestamp}\n", "")


def test_a_breaking_change_stops_the_run_and_says_where_and_what_is_right(lake: Lake) -> None:
    assert judge(lake, changed(*STRICTER), JANUARY)  # the first contract has nothing to break
    shutil.rmtree(Path(lake.root) / "validated")
    shutil.rmtree(Path(lake.root) / "contracts")
    assert judge(lake, FIRST, JANUARY)
    before = sorted(lake.list("validations"))
    with pytest.raises(ContractBreaksError) as raised:
        judge(lake, changed(*STRICTER), FEBRUARY)
    assert (
        str(raised.value)
        == """\
contract events breaks what data met before, and is still version 1.4:

contract.yaml:5:3: field at is gone
  4 |   extra_columns: allow
> 5 |   fields:
    |   ^^^^^^
  6 |     - {name: id, type: integer, nullable: false}

contract.yaml:7:39: value: max was 1000 and is 999
  6 |     - {name: id, type: integer, nullable: false}
> 7 |     - {name: value, type: float, max: 999}
    |                                       ^^^

raise version of events to 2.0, or go back to what 1.4 said"""
    )
    assert sorted(lake.list("validations")) == before
    with pytest.raises(ContractBreaksError, match=r"fields\[1\]\.max: value: max was 1000 and is 999"):
        judge(lake, changed(*STRICTER), FEBRUARY, lines=False)
    assert judge(lake, changed(*STRICTER, ("1.4", "2.0")), FEBRUARY)
    assert judge(lake, FIRST, run("2013-01-02", "2013-02-02", as_of="2013-02-02", run_id="run_3"))


@pytest.mark.parametrize("version", ["1.4", "1.5", "1.40", "0.9"])
def test_a_major_version_that_is_not_raised_does_not_say_so(lake: Lake, version: str) -> None:
    assert judge(lake, FIRST, JANUARY)
    with pytest.raises(ContractBreaksError, match=r"raise version of events to 2\.0"):
        judge(lake, changed(STRICTER[0], ("1.4", version)), FEBRUARY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (", max: 1000", ""),
        ("1.4", "0.3"),
        ("max: 1000", "max: 1000, distribution: {max_psi: 0.2}"),
        ("max: 1000", "max: 1, severity: warn"),
        ("name: events", "name: others"),
    ],
)
def test_what_breaks_nothing_needs_no_version(lake: Lake, old: str, new: str) -> None:
    assert judge(lake, FIRST, JANUARY)
    judge(lake, changed((old, new)), FEBRUARY)


def test_a_renamed_contract_is_held_to_the_last_one_of_its_source(lake: Lake) -> None:
    assert judge(lake, FIRST, JANUARY)
    with pytest.raises(ContractBreaksError, match="contract others breaks"):
        judge(lake, changed(STRICTER[0], ("name: events", "name: others")), FEBRUARY)


def test_killed_before_the_contract_or_the_entry_was_written_it_is_written_again(lake: Lake) -> None:
    assert judge(lake, FIRST, JANUARY)
    (kept,) = lake.list("contracts/demo")
    value = lake.read_json(kept)
    shutil.rmtree(Path(lake.root) / "validated")
    shutil.rmtree(Path(lake.root) / "contracts")
    assert judge(lake, FIRST, JANUARY)
    assert lake.read_json(kept) == value
    with pytest.raises(ContractBreaksError):
        judge(lake, changed(STRICTER[0]), FEBRUARY)


def test_a_contract_of_other_rules_than_there_are_is_none_to_compare_with(lake: Lake) -> None:
    assert judge(lake, FIRST, JANUARY)
    (kept,) = lake.list("contracts/demo")
    lake.write_json(kept, {**lake.read_json(kept), "rule": "of another time"})
    assert judge(lake, changed(STRICTER[0]), FEBRUARY)
