"""Which changes of a contract break, and where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ml_lifecycle.cli import main
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.contract_diff import diff_contracts


def contract(field: dict[str, Any], rules: dict[str, Any]) -> Contract:
    others = [{"name": "id", "type": "integer"}, {"name": "y", "type": "float"}]
    fields = [*others, {"name": "x", "type": "float", **field}]
    return Contract.model_validate({"name": "t", "version": "1", "fields": fields, **rules})


WARM = {"when": [{"field": "y", "op": "above", "value": 30}], "min": 0}
IDS = {"contract": "t", "field": "id"}
BREAKING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"min": 0}),
    ({"min": 0}, {"min": 1}),
    ({"max": 5}, {"max": 4}),
    ({}, {"nullable": False}),
    ({}, {"max_missing": 0.5}),
    ({"max_missing": 0.5}, {"max_missing": 0.4}),
    ({"max_missing": 1}, {}),
    ({}, {"unique": True}),
    ({"type": "float"}, {"type": "integer"}),
    ({"type": "string"}, {"type": "string", "pattern": "a"}),
    ({}, {"allowed_values": [1]}),
    ({}, {"at_least": "y"}),
    ({"type": "boolean"}, {"type": "boolean", "min_share": 0.1}),
    ({"type": "boolean", "min_share": 0.1}, {"type": "boolean", "min_share": 0.2}),
    ({"allowed_values": [1, 2]}, {"allowed_values": [1]}),
    ({}, {"conditional": [WARM]}),
    ({"type": "integer"}, {"type": "integer", "references": IDS}),
    ({"type": "integer", "references": {**IDS, "max_unknown": 0.1}}, {"type": "integer", "references": IDS}),
    ({"type": "integer", "references": {**IDS, "severity": "warn"}}, {"type": "integer", "references": IDS}),
    ({"conditional": [WARM]}, {"conditional": [{**WARM, "min": 1}]}),
    ({"conditional": [{**WARM, "severity": "warn"}]}, {"conditional": [WARM]}),
    ({"severity": "warn"}, {}),
    ({}, {"distribution": {"max_psi": 0.2, "severity": "halt"}}),
    ({"distribution": {"max_psi": 0.2}}, {"distribution": {"max_psi": 0.2, "severity": "halt"}}),
]


@pytest.mark.parametrize(("old", "new"), BREAKING)
def test_stricter_fields_break_and_looser_ones_do_not(old: dict[str, Any], new: dict[str, Any]) -> None:
    (stricter,) = diff_contracts(contract(old, {}), contract(new, {}))
    assert stricter.breaks
    assert stricter.path[:2] == ("fields", 2)
    (looser,) = diff_contracts(contract(new, {}), contract(old, {}))
    assert not looser.breaks


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "string", "pattern": "a"}, {"type": "string", "pattern": "a|b"}),
        ({"allowed_values": [1]}, {"allowed_values": [2]}),
        ({"type": "string"}, {"type": "date"}),
        ({"at_least": "y"}, {"above": "y"}),
    ],
)
def test_what_lets_other_values_pass_breaks_both_ways(one: dict[str, Any], other: dict[str, Any]) -> None:
    for old, new in ((one, other), (other, one)):
        assert any(change.breaks for change in diff_contracts(contract(old, {}), contract(new, {})))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"unique_together": [["id", "x"]]}),
        ({}, {"freshness": {"max_staleness": "1d"}}),
        ({"freshness": {"max_staleness": "2d"}}, {"freshness": {"max_staleness": "1d"}}),
        ({"volume": {"min_rows_per_day": 1}}, {"volume": {"min_rows_per_day": 2}}),
        ({"volume": {"max_rows_per_day": 9}}, {"volume": {"max_rows_per_day": 8}}),
        ({"extra_columns": "warn"}, {"extra_columns": "halt"}),
    ],
)
def test_stricter_tables_break_and_looser_ones_do_not(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert [change.breaks for change in diff_contracts(contract({}, old), contract({}, new))] == [True]
    assert [change.breaks for change in diff_contracts(contract({}, new), contract({}, old))] == [False]


@pytest.mark.parametrize(
    "new",
    [
        {"min": 0, "severity": "warn"},
        {"distribution": {"max_psi": 0.2}},
        {"pii": True},
        {"conditional": [{**WARM, "severity": "warn"}]},
    ],
)
def test_what_only_warns_does_not_break(new: dict[str, Any]) -> None:
    changes = list(diff_contracts(contract({"severity": new.get("severity", "halt")}, {}), contract(new, {})))
    assert [change.breaks for change in changes] == [False]


def test_rules_of_the_same_rows_are_told_apart() -> None:
    """They may have a severity each, and so stand there several times."""
    present, warm = {"when": WARM["when"], "nullable": False}, {**WARM, "severity": "warn"}
    both = contract({"conditional": [present, warm]}, {})
    assert list(diff_contracts(both, both)) == []
    assert list(diff_contracts(both, contract({"conditional": [warm, present]}, {}))) == []
    (halting,) = diff_contracts(both, contract({"conditional": [WARM, present]}, {}))
    assert (halting.breaks, halting.path) == (True, ("fields", 2, "conditional", 0, "severity"))
    (gone,) = diff_contracts(both, contract({"conditional": [warm]}, {}))
    assert (gone.breaks, gone.gone, gone.path) == (False, True, ("fields", 2, "conditional", 0))
    (new,) = diff_contracts(contract({"conditional": [warm]}, {}), both)
    assert (new.breaks, new.path) == (True, ("fields", 2, "conditional", 0))


def test_large_numbers_are_shown_in_full() -> None:
    (change,) = diff_contracts(contract({"max": 1000001}, {}), contract({"max": 1000000}, {}))
    assert change.text == "x: max was 1000001 and is 1000000"


def test_words_are_no_change() -> None:
    described = contract({"description": "words"}, {"description": "more", "unique_together": [["x", "id"]]})
    assert list(diff_contracts(contract({}, {"unique_together": [["id", "x"]]}), described)) == []


OLD = """\
contracts:
  - name: flights
    version: 1.0
    fields:
      - {name: id, type: integer, min: 0}
      - {name: carrier, type: string}
  - name: planes
    version: 1.0
    fields: [{name: id, type: string}]
"""
NEW = """\
contract:
  name: flights
  version: 2.0
  fields:
    - {name: id, type: integer, min: 1, max: 9}
    - {name: wind, type: float, nullable: false}
    - {name: gust, type: float, severity: warn}
"""


def test_the_command_shows_each_change_at_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(OLD)
    new.write_text(NEW)
    assert main(["contract", "diff", str(old), str(new)]) == 1
    printed = capsys.readouterr()
    places = [line for line in printed.err.splitlines() if line.startswith(str(tmp_path))]
    assert places == [
        f"{old}:6:9: field carrier is gone",
        f"{new}:5:38: id: min was 0 and is 1",
        f"{new}:5:46: id: max was not given and is 9",
        f"{new}:6:7: field wind is new",
        f"{old}:7:5: contract planes is gone",
    ]
    assert printed.out == f"{new}:7:7: field gust is new\n6 changes, 5 of them breaking\n"
    assert main(["contract", "diff", str(new), str(new)]) == 0
    assert capsys.readouterr().out == "0 changes, 0 of them breaking\n"
    old.write_text("contract: 1")
    assert main(["contract", "diff", str(old), str(new)]) == 1
    assert f"{old}:1:11" in capsys.readouterr().err
