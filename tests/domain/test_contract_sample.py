"""Rows made up for a contract keep all of its rules, or break one: so say both engines."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from ml_lifecycle.adapters.expectations import Expectations
from ml_lifecycle.adapters.tables import column_types
from ml_lifecycle.cli import main
from ml_lifecycle.records import RuleResult
from ml_lifecycle.rules import one_pass
from ml_lifecycle.rules.rule import Batch, Checked
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.contract_sample import Broken, Known, SampleError, bad_rows, samples
from ml_lifecycle.spec.loader import load_contracts
from ml_lifecycle.spec.pattern_examples import examples
from ml_lifecycle.stages.validation_rules import reference_batch, row_batch, type_batch, unique_batch

MODELS = Path(__file__).parents[2] / "dags" / "models"
EVERYTHING = """\
contracts:
  - name: trips
    version: 1.0
    extra_columns: halt
    fields:
      - {name: id, type: integer, nullable: false, unique: true, min: 1}
      - {name: vehicle, type: string, nullable: false, references: {contract: vehicles, field: plate}}
      - {name: first, type: integer, references: {contract: trips, field: id}}
      - {name: began, type: timestamp, nullable: false}
      - {name: ended, type: timestamp, above: began, max_missing: 0.1}
      - {name: day, type: date, max_missing: 0}
      - {name: cancelled, type: boolean, nullable: false}
      - {name: reason, type: string, allowed_values: [weather, "crew é"]}
      - {name: count, type: integer, max: 9007199254740992}
      - name: fare
        type: float
        min: -0.5
        max: 1.0e+300
        conditional:
          - {when: [{field: cancelled, op: is, value: false}], nullable: false, min: 0, max: 1000}
          - {when: [{field: reason, op: missing}, {field: count, op: above, value: 3}], max_missing: 0.2}
    unique_together: [[vehicle, began]]
  - name: vehicles
    version: 1.0
    fields:
      - {name: plate, type: string, nullable: false, unique: true, pattern: "[A-ZÄ]{1,3}-\\\\d{1,4}[EH]?"}
      - {name: maker, type: string, pattern: "(?=.*é)(?i:ab).{2,}|.{0,3}", max_missing: 0.3}
      - {name: seats, type: integer, allowed_values: [1, 2, 9]}
      - {name: note, type: string, max_missing: 1}
"""


def batches(contract: Contract, frame: pl.DataFrame, known: Known) -> Iterator[Batch]:
    """All rules about rows, as the validate stage has them judged."""
    columns = column_types(frame)
    yield type_batch(contract.name, contract, columns, [])
    yield row_batch(contract.name, contract, columns, frame.lazy())
    groups: list[tuple[str, tuple[str, ...]]] = [
        ("unique", (item.name,)) for item in contract.fields if item.unique
    ]
    groups += [("unique_together", group) for group in contract.unique_together]
    for rule, group in groups:
        yield unique_batch(contract.name, rule, group, "halt", frame.lazy(), [], hidden=False)
    for item in contract.fields:
        if (asked := item.references) is not None:
            itself = asked.contract == contract.name
            values = frame[asked.field] if itself else pl.Series(known[asked.words])
            yield reference_batch(contract.name, item, frame.lazy(), pl.LazyFrame({"known": values}), None)


def failed(
    check: Callable[[Batch], Checked], contract: Contract, frame: pl.DataFrame, known: Known
) -> list[RuleResult]:
    results = [result for batch in batches(contract, frame, known) for result in check(batch).results]
    assert not [result for result in results if result.error], results
    return [result for result in results if not result.passed]


def with_row(good: pl.DataFrame, broken: Broken) -> pl.DataFrame:
    assert broken.row is not None, broken
    return pl.concat([good, pl.DataFrame([broken.row], schema=good.schema)])


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contract]:
    file = tmp_path_factory.mktemp("contract") / "contract.yaml"
    file.write_text(EVERYTHING)
    return load_contracts(file)


@pytest.mark.parametrize("model", ["everything", "flight_delay", "digits"])
def test_good_rows_keep_every_rule_and_bad_rows_break_one(
    everything: dict[str, Contract], model: str
) -> None:
    contracts = everything if model == "everything" else load_contracts(MODELS / model / "contract.yaml")
    for contract, good, known in samples(contracts, 60):
        assert good.height == 60
        assert failed(one_pass.check, contract, good, known) == []
        for broken in bad_rows(contract, good, known):
            both = with_row(good, broken)
            found = [(one.rule, one.field) for one in failed(one_pass.check, contract, both, known)]
            assert found == [(broken.rule, broken.field)]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.full)])
def test_great_expectations_says_the_same(everything: dict[str, Contract], every: int) -> None:
    expectations, numbers = Expectations(), itertools.count()

    def check(batch: Batch) -> Checked:
        """Great Expectations keeps what it has seen by its name."""
        return expectations.check(replace(batch, name=f"{batch.name}{next(numbers)}"))

    for contract, good, known in samples(everything, 40):
        assert failed(check, contract, good, known) == []
        for broken in bad_rows(contract, good, known)[::every]:
            both = with_row(good, broken)
            found = [(one.rule, one.field) for one in failed(check, contract, both, known)]
            assert found == [(broken.rule, broken.field)]


def test_bounds_and_nulls_are_there(everything: dict[str, Contract]) -> None:
    made = {contract.name: good for contract, good, _ in samples(everything, 60)}
    trips, vehicles = made["trips"], made["vehicles"]
    fares = trips["fare"].drop_nulls().to_list()
    assert {-0.5, math.nextafter(-0.5, 0), 0.0, math.nextafter(0, 1), 1000.0, 1e300} <= set(fares)
    assert {2**53, 2**53 - 1, -(2**63)} <= set(trips["count"])
    assert set(trips["reason"]) == {"weather", "crew é", None}
    assert trips["ended"].null_count() == 6
    assert vehicles["maker"].null_count() == 18
    assert vehicles["note"].null_count() == 15
    assert {"", "é", "e\u0301", "😀", "x" * 1000} <= set(vehicles["note"])
    plates = vehicles["plate"].to_list()
    assert max(map(len, plates)) == 9
    assert min(map(len, plates)) == 3


def test_the_same_rows_every_time(everything: dict[str, Contract]) -> None:
    first, again = (list(samples(everything, 20)) for _ in range(2))
    assert all(one[1].equals(other[1]) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}", "a*", "(a|bb)+c?", "[^a-y]", r"(x|y)\1", r"\S+\s\w", "(?=a)..", "^a.$", "[é-ñ]{2}", ""],
)
def test_examples_match_and_differ(pattern: str) -> None:
    found = examples(pattern, 5)
    assert found
    assert len(set(found)) == len(found)
    assert all(re.search(rf"\A(?:{pattern})\Z", text) for text in found)


def test_a_rule_that_no_row_breaks_alone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "contract.yaml"
    fields = "[{name: seats, type: integer, min: 1, max: 9, allowed_values: [1, 9]}]"
    file.write_text(f"contract: {{name: t, version: 1, fields: {fields}}}\n")
    assert main(["contract", "sample", str(file), "--rows", "7", "--into", str(tmp_path), "--bad"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/t.parquet: 7 rows that keep every rule",
        f"{tmp_path}/t.bad.parquet: 1 rows that break a rule each",
        "  seats: range: no row breaks it and keeps the others",
    ]
    bad = pl.read_parquet(tmp_path / "t.bad.parquet")
    assert bad.row(0, named=True) == {"broken_rule": "allowed_values", "broken_field": "seats", "seats": 2}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ("[{name: a, type: boolean, nullable: false, unique: true}]", "no row 3 could be made up"),
        ("[{name: a, type: string, nullable: false, pattern: '(?=a)b'}]", "no row 1 could be made up"),
    ],
)
def test_what_cannot_be_made_up_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: str, error: str
) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(f"contract: {{name: t, version: 1, fields: {fields}}}\n")
    assert main(["contract", "sample", str(file), "--into", str(tmp_path / "samples")]) == 1
    assert error in capsys.readouterr().err


def test_contracts_that_refer_to_each_other_cannot_be_made_up() -> None:
    def one(name: str, other: str) -> Contract:
        field = {"name": "a", "type": "integer", "references": {"contract": other, "field": "a"}}
        return Contract.model_validate({"name": name, "version": "1", "fields": [field]})

    with pytest.raises(SampleError, match="in a circle: one, two"):
        list(samples({"one": one("one", "two"), "two": one("two", "one")}, 5))
