"""What a feature's tag says of a contract is proved on the training set, and travels with the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from feast.protos.feast.core.Registry_pb2 import Registry
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_model import START, land, write_model

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.delivery.route import Route, Variant
from ml_lifecycle.errors import FeatureError
from ml_lifecycle.records import (
    ColumnSpec,
    InputRules,
    Interval,
    Run,
    TrainingSet,
    canonical_json,
    from_json,
    to_json,
)
from ml_lifecycle.rehearsal import rehearse
from ml_lifecycle.rules.inputs import ColumnRules
from ml_lifecycle.spec.contract import Contract
from ml_lifecycle.spec.contract_sample import SampleError, bad_rows, samples
from ml_lifecycle.spec.feature_tags import Tag, TagError, field_of, input_rules
from ml_lifecycle.spec.folder import load_folder, read_folder
from ml_lifecycle.stages.features import build_training_set
from ml_lifecycle.stages.ingest import ingest
from ml_lifecycle.stages.input_rules import InputProof


def contract(**rules: Any) -> Contract:
    """With one field."""
    item = {"name": "value", "type": "float", **rules}
    return Contract.model_validate({"name": "things", "version": "1.0", "fields": [item]})


def rules_of(made: Contract) -> InputRules:
    rules = input_rules(made, made.fields[0])
    assert rules is not None
    return rules


def column(kind: Any = "float", **rules: Any) -> ColumnRules:
    return ColumnRules(ColumnSpec("x", kind, nullable=True, rules=rules_of(contract(**rules))))


def broken(rules: ColumnRules, values: Any) -> dict[str, list[int]]:
    """Rule → places of the values that break it."""
    if rules.column.type == "float":
        with np.errstate(over="ignore"):
            values = np.array([np.nan if one is None else one for one in values], np.float32)
    elif rules.column.type in ("int", "bool"):
        values = np.array(values)
    return {rule: np.flatnonzero(mask).tolist() for rule, mask in rules.broken(values).items()}


@pytest.mark.parametrize(
    ("kind", "rules", "values", "expected"),
    [
        ("float", {"min": 0.1, "max": 0.7}, [0.1, 0.7, None, 0.0999, 0.70001], {"range": [3, 4]}),
        ("float", {"min": -1}, [None, -1.5, float("inf")], {"range": [1]}),
        ("float", {"nullable": False}, [0.0, None], {"not_null": [1]}),
        ("float", {"max_missing": 0}, [0.0, None], {"not_null": [1]}),
        ("float", {"max_missing": 0.1}, [None, None], {}),
        ("float", {"type": "integer", "max": 3}, [3, 2.5, None, 4], {"type": [1], "range": [3]}),
        ("float", {"type": "integer", "allowed_values": [1, 2]}, [1, 3, None], {"allowed_values": [1]}),
        ("float", {"allowed_values": [0.1, 2]}, [0.1, 2, 0.2, None], {"allowed_values": [2]}),
        ("float", {"type": "boolean"}, [0, 1, None, 0.5, 2], {"allowed_values": [3, 4]}),
        ("int", {"type": "integer", "min": 0.5, "max": 9.5}, [1, 9, 0, 10], {"range": [2, 3]}),
        ("int", {"type": "integer", "max": 2**53}, [2**53, 2**53 + 1], {"range": [1]}),
        ("int", {"type": "integer", "min": -1e30, "max": 1e30}, [-(2**63), 2**63 - 1], {}),
        ("int", {"type": "boolean"}, [0, 1, 2], {"allowed_values": [2]}),
        ("bool", {"type": "boolean", "allowed_values": [True]}, [True, False], {"allowed_values": [1]}),
        ("string", {"allowed_values": ["a", "b"]}, ["a", "c", None, ""], {"allowed_values": [1]}),
        ("string", {"nullable": False}, ["a", "", None], {"not_null": [2]}),
        ("string", {"nullable": False, "pattern": "[a-c]+"}, ["ab", "", "abd"], {"pattern": [1, 2]}),
        ("string", {"pattern": "a|b"}, ["a", "ab", "xa", "", None], {"pattern": [1, 2]}),
        # Beyond ASCII only Python's engine knows what its classes are: such texts are let pass.
        ("string", {"pattern": r"\w"}, ["a", "-", "é", "–"], {"pattern": [1]}),
        ("string", {"pattern": r"(a)\1"}, ["aa", "b"], {}),
    ],
    ids=str,
)  # fmt: skip
def test_values_are_judged_as_the_model_takes_them(
    kind: str, rules: dict[str, Any], values: list[Any], expected: dict[str, list[int]]
) -> None:
    typed = {"type": "string"} | rules if kind == "string" else rules
    assert broken(column(kind, **typed), values) == expected


def test_verdicts_on_texts_are_remembered_and_right() -> None:
    rules = column("string", type="string", pattern="[a-z]{1,3}[0-9]*")
    texts = [f"{'ab1'[: number % 4]}{number}" for number in range(12_000)]
    fine = [index for index, text in enumerate(texts) if not text[0].isdigit()]
    for _ in range(2):
        found = broken(rules, texts).get("pattern", [])
        assert sorted({*range(len(texts))} - {*found}) == fine
    # A backtracking engine would not come to an end with it.
    assert broken(column("string", type="string", pattern="(a+)+b"), ["a" * 50_000]) == {"pattern": [0]}


@pytest.mark.parametrize(
    ("rules", "rule", "words"),
    [
        ({"min": 1}, "range", "at least 1"),
        ({"max": 2.5}, "range", "at most 2.5"),
        ({"min": 1, "max": 2}, "range", "1 to 2"),
        ({"nullable": False}, "not_null", "a value"),
        ({"type": "integer"}, "type", "a whole number"),
        ({"type": "boolean"}, "allowed_values", "one of 0.0, 1.0"),
        (
            {"allowed_values": list(range(25))},
            "allowed_values",
            f"one of {', '.join(map(str, range(20)))} and 5 more",
        ),
    ],
)
def test_what_would_be_right_is_said(rules: dict[str, Any], rule: str, words: str) -> None:
    assert column(**rules).expected(rule) == words


def test_rules_that_only_warn_and_rules_about_more_than_one_value_stay_behind() -> None:
    warns = contract(min=0, severity="warn")
    assert input_rules(warns, warns.fields[0]) is None
    more = contract(type="integer", unique=True, max_missing=0.5, references={"contract": "b", "field": "c"})
    assert rules_of(more) == InputRules("things.value", "integer")
    assert not ColumnRules(ColumnSpec("x", "int", rules=rules_of(more))).breakable
    assert rules_of(contract(type="string", pattern="(?=a)b")).pattern is None


_NUMBER = st.integers(-(2**40), 2**40) | st.integers(-20, 20)
_FLOAT = st.floats(-1e6, 1e6) | st.integers(-5, 5).map(float)
_TEXT = st.text("abAB09é -", max_size=4)


def _bounded(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    low, high = sorted(draw(st.tuples(values, values)))
    chosen = draw(st.sampled_from([(), ("min",), ("max",), ("min", "max")]))
    return {name: bound for name, bound in (("min", low), ("max", high)) if name in chosen}


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["integer", "float", "string", "boolean"]))
    rules: dict[str, Any] = {"type": kind}
    missing = draw(st.sampled_from([{}, {"nullable": False}, {"max_missing": 0}, {"max_missing": 0.3}]))
    if kind == "string":
        patterns = ["[A-Z]{2}", "[a-c]{1,3}|x+", r"\d{2,4}", "(?:ab)*", "é.?"]
        rules |= draw(
            st.sampled_from([{}, *({"pattern": one} for one in patterns)])
            | st.lists(_TEXT, min_size=1, max_size=3).map(lambda values: {"allowed_values": values})
        )
    elif kind != "boolean":
        numbers = _NUMBER if kind == "integer" else _FLOAT
        listed = st.lists(numbers, min_size=1, max_size=3).map(lambda values: {"allowed_values": values})
        rules |= draw(listed) if draw(st.booleans()) else _bounded(draw, numbers)
    return rules | missing


_KINDS = {"integer": ["int", "float"], "float": ["float"], "string": ["string"], "boolean": ["bool", "float"]}
_NAMED = {"not_null": "not_null", "max_missing": "not_null"}


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(fields(), st.data())
def test_what_a_sample_calls_good_is_accepted_and_what_it_calls_bad_is_named(
    item: dict[str, Any], data: st.DataObject
) -> None:
    made = contract(**item)
    kind = data.draw(st.sampled_from(_KINDS[item["type"]]))
    rules = column(kind, **item)
    try:
        ((_, good, known),) = samples({"things": made}, 12)
        bad = [one for one in bad_rows(made, good, known) if one.row is not None]
    except SampleError:
        assume(False)
    nulls = kind in ("float", "string")  # elsewhere the server refuses them before
    assert broken(rules, [value for value in good["value"] if nulls or value is not None]) == {}
    for one in bad:
        assert one.row is not None
        value = one.row["value"]
        if (value is None and not nulls) or _same_to_the_model(rules, value):
            continue
        assert _NAMED.get(one.rule, one.rule) in broken(rules, [value]), (item, kind, one)


def _same_to_the_model(rules: ColumnRules, value: Any) -> bool:
    """Whether a value is another one to a model, which keeps the rule; or what nobody can judge in time."""
    if rules.column.type == "float" and value is not None:
        near = np.float32(value)
        return bool(near in (rules.low, rules.high) or float(near) in (rules.allowed or ()))
    if not isinstance(value, str):
        return False
    unjudged = "\\" in (rules.rules.pattern or "") and not value.isascii()
    return unjudged or (value == "" and rules.rules.nullable)


def tag(names: str, kind: Any = "float", feature: str = "value") -> Tag:
    return Tag("view", feature, kind, names)


def test_a_tag_must_name_a_field_that_the_feature_can_hold() -> None:
    made = contract(type="integer")
    moment = Contract.model_validate(
        {"name": "moments", "version": "1", "fields": [{"name": "at", "type": "timestamp"}]}
    )
    assert field_of(tag("things.value", "int"), [made, moment]) == (made, made.fields[0])
    for wrong, message in (
        (tag("thing.value"), "and no contract has that field; did you mean 'things.value'?"),
        (tag("things"), "and no contract has that field; did you mean 'things.value'?"),
        (
            tag("things.value", "string"),
            "which is integer: no String holds that; declare it Int64 or Float32",
        ),
        (tag("moments.at", "int"), "which is timestamp: no Int64 holds that; no feature is a time"),
    ):
        with pytest.raises(TagError) as raised:
            field_of(wrong, [made, moment])
        assert message in str(raised.value)
        assert f"feature 'value' is tagged contract: {wrong.names!r}" in str(raised.value)


def test_a_proof_sums_up_batches_and_names_what_is_wrong() -> None:
    made = contract(type="integer", nullable=False, min=1, max=9)
    columns = [ColumnSpec("value", "float", nullable=True), ColumnSpec("other", "int")]
    frame = pl.DataFrame({"value": [1.0, None, 12.0], "other": [1, 2, 3]})
    proof = InputProof([tag("things.value")], [made])
    proof.add(frame.head(1))
    proof.add(frame.clear())
    assert proof.proved(columns) == (replace(columns[0], rules=rules_of(made)), columns[1])
    proof.add(frame)
    proof.add(pl.DataFrame({"value": [2.5, 30.0, float("nan")]}))
    with pytest.raises(FeatureError) as raised:
        proof.proved(columns)
    text = str(raised.value)
    start = "feature 'value' is tagged contract: 'things.value' in features.py and breaks that field's rule"
    assert f"{start} range (1 to 9) in 2 of 7 rows of the training set: something was made" in text
    assert f"{start} not_null (a value) in 2 of 7 rows" in text
    assert f"{start} type (a whole number) in 1 of 7 rows" in text
    texts = contract(type="string", allowed_values=["a"])
    proof = InputProof([tag("things.value", "string", "count")], [texts])
    proof.add(pl.DataFrame({"count": ["a", "b", "b", None, "c"]}))
    with pytest.raises(FeatureError, match=r"allowed_values \(one of a\) in 3 of 5 rows"):
        proof.proved([])


def test_a_feature_that_holds_personal_data_is_personal_whatever_it_is_called() -> None:
    made = contract(pii=True)
    assert InputProof([tag("things.value", feature="home")], [made]).personal == {"home"}
    assert InputProof([tag("things.value", feature="home")], [contract()]).personal == frozenset()


def tagged(folder: Path, *tags: tuple[str, str]) -> Path:
    """The folder with tags: feature and field."""
    file = folder / "features.py"
    for feature, names in tags:
        old, new = f'Field(name="{feature}", ', f'Field(name="{feature}", tags={{"contract": "{names}"}}, '
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return folder


def training_set(root: Path, folder: Path) -> TrainingSet:
    lake = Lake(str(root / "lake"))
    end = land(lake, days=4)
    loaded = load_folder(folder)
    run = Run("small", "run", end, Interval(START, end))
    return build_training_set(loaded, lake, ingest(loaded.spec, lake, run))


def small(root: Path) -> Path:
    return write_model(root, task="multiclass", training={"data": {"holdout": "1d"}})


LOAD = InputRules("readings.load", "float", nullable=False, min=0, max=1)


def test_rules_of_tagged_features_stand_on_the_training_set(tmp_path: Path) -> None:
    plain = training_set(tmp_path / "plain", small(tmp_path / "plain"))
    assert all(one.rules is None for one in plain.columns)
    assert all("rules" not in one for one in to_json(plain)["columns"])
    tags = (
        *(("load", "readings.load"), ("mode", "readings.mode")),
        *(("temperature", "readings.temperature"), ("serviced", "readings.serviced")),
    )
    folder = tagged(small(tmp_path / "tagged"), *tags)
    assert rehearse(read_folder(folder)).problems == ()
    made = training_set(tmp_path / "tagged", folder)
    assert from_json(TrainingSet, to_json(made)) == made
    assert [replace(one, rules=None) for one in made.columns] == list(plain.columns)
    assert {one.name: one.rules for one in made.columns} == {
        "load": LOAD,
        "mode": InputRules("readings.mode", "string", allowed_values=("idle", "normal", "turbo")),
        "temperature": InputRules("readings.temperature", "float"),
        "serviced": InputRules("readings.serviced", "boolean"),
        "hour": None,
        "weekend": None,
    }
    lake = Lake(str(tmp_path / "tagged" / "lake"))
    registry = Registry.FromString(lake.read_bytes(made.registry_path))
    projection = registry.feature_services[0].spec.features[0]
    assert {one.name: dict(one.tags) for one in projection.feature_columns}["load"] == {
        "contract": "readings.load"
    }


def test_a_feature_that_was_changed_on_the_way_stops_the_stage(tmp_path: Path) -> None:
    folder = tagged(small(tmp_path), ("load", "readings.load"), ("mode", "readings.mode"))
    file = folder / "features.py"
    file.write_text(file.read_text().replace('(pl.col("load"))', '(pl.col("load") * 100)'))
    with pytest.raises(FeatureError) as raised:
        training_set(tmp_path, folder)
    assert "feature 'load' is tagged contract: 'readings.load'" in str(raised.value)
    assert "rule range (0 to 1) in " in str(raised.value)
    assert not [*Lake(str(tmp_path / "lake")).list("training_sets")]


@pytest.mark.parametrize(
    ("feature", "names", "told"),
    [
        ("load", "reading.load", ["did you mean 'readings.load'?", "^^^"]),
        ("mode", "readings.wear", ["no String holds that", "declare it Float32", "has wear as float: "]),
        ("hour", "readings.read_at", ["which is timestamp: no Int64 holds that"]),
    ],
)  # fmt: skip
def test_check_shows_a_wrong_tag_at_its_place(
    tmp_path: Path, feature: str, names: str, told: list[str]
) -> None:
    folder = tagged(small(tmp_path), (feature, names))
    (problem,) = rehearse(read_folder(folder)).problems
    lines = (folder / "features.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if names in text)
    place = lines[line - 1].index(f'"{names}"') + 1
    assert problem.text.startswith(
        f"{folder}/features.py:{line}:{place}: feature {feature!r} is tagged contract: {names!r}"
    )
    assert all(part in problem.text for part in told), problem.text


def test_check_advises_where_no_rule_comes_of_a_tag(tmp_path: Path) -> None:
    folder = tagged(small(tmp_path), ("mode", "readings.mode"), ("temperature", "readings.temperature"))
    file = folder / "contract.yaml"
    text = file.read_text().replace("allowed_values: [idle, normal, turbo]", 'pattern: "(?=[a-z]).*"')
    text = text.replace(
        "{name: temperature, type: float}", "{name: temperature, type: float, severity: warn}"
    )
    file.write_text(text)
    rehearsal = rehearse(read_folder(folder))
    assert rehearsal.problems == ()
    advice = "\n".join(rehearsal.advice)
    assert "the pattern of readings.mode becomes no rule of the model's input 'mode'" in advice
    assert "feature 'temperature' holds readings.temperature, whose broken rules only warn" in advice


def test_records_of_models_without_tags_are_what_they_were() -> None:
    """Old records are read, old servers and pods read new ones, and no digest changes."""
    columns = (ColumnSpec("a", "float", nullable=True), ColumnSpec("b", "string"))
    variant = Variant("champion", "1", "m.onnx", "0" * 64, "regression", columns, ())
    route = Route("late", "late", 1, (variant,), "0" * 64, START)
    data = to_json(route)
    assert data["variants"][0]["columns"][0] == {
        "name": "a",
        "type": "float",
        "nullable": True,
        "personal": False,
    }
    assert "broken_rules" not in data["variants"][0]
    assert from_json(Route, data) == route
    ruled = replace(variant, columns=(replace(columns[0], rules=LOAD), columns[1]), broken_rules="refuse")
    route = replace(route, variants=(ruled,))
    assert from_json(Route, to_json(route)) == route
    assert canonical_json(to_json(from_json(Route, to_json(route)))) == canonical_json(to_json(route))
