"""What the files mean once they are read: YAML 1.2 values, numbers as text, the contract format."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec import yaml12
from ml_lifecycle.spec.loader import load_contracts, load_model, read_spec
from ml_lifecycle.spec.model import Connections, ModelSpec
from ml_lifecycle.spec.schema import json_schema
from ml_lifecycle.spec.types import format_duration, parse_duration

# The format as it is promised to users; must load as it stands.
USER_FEATURES = """\
contract:
  name: user_features
  version: 2.1
  fields:
    - {name: user_id, type: string, nullable: false, unique: true}
    - {name: account_age_days, type: integer, nullable: false, min: 0, max: 36500}
    - {name: total_transactions, type: integer, nullable: false, min: 0}
    - {name: avg_transaction_amount, type: float, nullable: true, min: 0, max: 1000000}
    - {name: country_code, type: string, nullable: false, allowed_values: ["US", "GB", "DE", "FR", "JP", "CA", "AU"]}
  freshness: {max_staleness: 24h}
  volume: {min_rows_per_day: 10000}
"""  # noqa: E501 -- a user's line

MODEL = """\
spec: 1
name: churn
description: Will the customer leave?
task: binary
owner: 007
tags: [1.10, on]
sources:
  visits: {uri: landing/*.parquet}
labels: {column: left, keys: [customer_id], delay: 30d}
features: {service: churn}
training:
  parameters: {depth: 3, rate: 1.50, solver: no, sizes: [1, 2.0], warm: true}
  data: {start: 2025-01-01T01:00:00+01:00, holdout: 4w}
evaluation:
  gates: [{metric: skill, min: 0}]
approvers: {users: [admin]}
environments:
  staging: {server: a, lake: b, online_store: c}
  production: {server: d, lake: e, online_store: f}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_spec_is_read_back_from_its_json(tmp_path: Path) -> None:
    """It travels so to the triggerer, what was left out included."""
    spec = load_model(write(tmp_path, "model.yaml", MODEL))
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_promised_contract_loads_as_it_stands(tmp_path: Path) -> None:
    contract = load_contracts(write(tmp_path, "contract.yaml", USER_FEATURES))["user_features"]
    assert contract.version == "2.1"
    assert [field.type for field in contract.fields] == ["string", "integer", "integer", "float", "string"]
    assert [field.nullable for field in contract.fields] == [False, False, False, True, False]
    assert contract.fields[0].unique
    assert (contract.fields[1].min, contract.fields[1].max) == (0, 36500)
    assert contract.fields[4].allowed_values == ("US", "GB", "DE", "FR", "JP", "CA", "AU")
    assert contract.freshness is not None
    assert contract.freshness.max_staleness == timedelta(hours=24)
    assert contract.volume is not None
    assert contract.volume.min_rows_per_day == 10000


@pytest.mark.parametrize("version", ["2.1", "2.10", "2.100", "2", "007", "10.0.1", '"2.10"'])
def test_a_version_is_the_text_that_was_written(tmp_path: Path, version: str) -> None:
    path = write(tmp_path, "contract.yaml", USER_FEATURES.replace("2.1", version))
    assert load_contracts(path)["user_features"].version == version.strip('"')


def test_words_that_older_yaml_takes_for_truth_values_are_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "contract.yaml",
        USER_FEATURES.replace(
            '["US", "GB", "DE", "FR", "JP", "CA", "AU"]', "[NO, GB, on, yes, y, 1_0, 2025-01-01]"
        ),
    )
    allowed = load_contracts(path)["user_features"].fields[4].allowed_values
    assert allowed == ("NO", "GB", "on", "yes", "y", "1_0", "2025-01-01")


def test_a_text_is_no_truth_value(tmp_path: Path) -> None:
    path = write(tmp_path, "contract.yaml", USER_FEATURES.replace("nullable: true", "nullable: yes"))
    with pytest.raises(SpecError, match=r"fields\[3\]\.nullable: must be true or false, not 'yes'"):
        load_contracts(path)


def test_a_model_is_read_as_written(tmp_path: Path) -> None:
    spec = load_model(write(tmp_path, "model.yaml", MODEL))
    assert spec.owner == "007"
    assert spec.tags == ("1.10", "on")
    assert spec.training.parameters == {
        "depth": 3, "rate": 1.5, "solver": "no", "sizes": [1, 2.0], "warm": True,
    }  # fmt: skip
    assert spec.training.data.start == datetime(2025, 1, 1, tzinfo=UTC)
    assert spec.training.data.holdout == timedelta(weeks=4)
    assert spec.connections == Connections()
    assert spec.endpoint == "churn"


@pytest.mark.parametrize("prefix", ["\ufeff", "%YAML 1.1\n---\n", "# a comment\n\n"])
def test_what_may_stand_before_a_spec(tmp_path: Path, prefix: str) -> None:
    assert load_model(write(tmp_path, "model.yaml", prefix + MODEL)).tags == ("1.10", "on")


def test_windows_line_ends_move_no_mark() -> None:
    data = MODEL.replace("binary", "binery").replace("\n", "\r\n").encode()
    _, problems = read_spec(ModelSpec, data, "model.yaml")
    assert problems[0].text.splitlines()[:4] == [
        "model.yaml:4:7: task: must be one of binary, multiclass, regression, not 'binery'",
        "  3 | description: Will the customer leave?",
        "> 4 | task: binery",
        "    |       ^^^^^^",
    ]


def test_a_missing_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.yaml: cannot be read: No such file"):
        load_model(tmp_path / "model.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+7", 7), ("010", 10), ("0x1F", 31), ("0o17", 15),
        ("1.", 1.0), (".5", 0.5), ("-1.5e3", -1500.0), ("1e3", 1000.0),
        ("true", True), ("True", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("No", "No"), ("off", "off"), ("1_000", "1_000"), ("12:30:00", "12:30:00"),
        ("2013-01-01", "2013-01-01"), ("1.2.3", "1.2.3"), ("'1'", "1"), ('"true"', "true"), ("0b1", "0b1"),
        ("e3", "e3"), ("-", None), ("tRue", "tRue"), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_values_follow_yaml_1_2(text: str, value: object) -> None:
    if text == "-":  # a list with one empty item
        assert yaml12.parse("-").data == [None]
        return
    found = yaml12.parse(f"key: {text}").data["key"]
    assert (found, type(found)) == (value, type(value))


def test_the_parser_in_pure_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yaml12._LOADER is yaml.CSafeLoader
    fast = yaml12.parse(MODEL)
    monkeypatch.setattr(yaml12, "_LOADER", yaml.SafeLoader)
    slow = yaml12.parse(MODEL)
    assert (slow.data, slow.written) == (fast.data, fast.written)
    assert [slow.value_mark(path) for path in slow.values] == [fast.value_mark(path) for path in fast.values]


@settings(deadline=None, derandomize=True)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text("[]{}:,-&*!|>'\"#%@`\n ab1.?").map(str.encode)
)
def test_any_bytes_end_in_a_spec_or_in_problems(data: bytes) -> None:
    parsed, problems = read_spec(ModelSpec, data, "model.yaml")
    assert (parsed is None) == bool(problems)
    for problem in problems:
        assert problem.text.startswith(f"model.yaml:{problem.line}:{problem.column}: ")


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2600), st.sampled_from("smhdw"))
def test_a_duration_survives_being_written(number: int, unit: str) -> None:
    length = parse_duration(f"{number}{unit}")
    assert parse_duration(format_duration(length)) == length


@pytest.mark.parametrize("text", ["1", "1.5h", "-1h", "1 h", "1H", "h", "٣h", "1h\n", ""])
def test_no_other_text_is_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_editors_get_what_the_loader_checks() -> None:
    schema = json_schema("model")
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:airflow-ml-lifecycle:model:1"
    labels = schema["$defs"]["Labels"]
    assert labels["description"] == "What is predicted, and when it becomes known."
    assert labels["properties"]["column"]["description"] == (
        "the label's column in it; a label whose newest revision is null is unknown from then on"
    )
    assert labels["properties"]["delay"]["default"] == "0s"
    assert schema["properties"]["delivery"]["default"]["check_timeout"] == "1m"
    assert schema["properties"]["name"]["patternErrorMessage"].startswith("must be lower-case letters")
    version = json_schema("contract")["$defs"]["Contract"]["properties"]["version"]
    assert version["type"] == ["string", "number"]
