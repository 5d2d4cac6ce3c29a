"""Every kind of mistake in a model folder, with the exact text its author sees: test_spec_errors.txt."""

import re
from pathlib import Path

import pytest

from ml_lifecycle.errors import SpecError
from ml_lifecycle.spec.folder import load_folder

MODEL = """\
spec: 1
name: churn
description: Will the customer leave?
task: binary
owner: data-science
sources:
  visits:
    uri: landing/visits/*.parquet
    event_time: visited_at
    keys: [visit_id]
    contract: visits
labels:
  column: left
  keys: [customer_id]
  delay: 30d
features:
  service: churn
training:
  data: {start: 2025-01-01T00:00:00Z, holdout: 28d}
evaluation:
  gates:
    - {metric: skill, min: 0.0}
approvers:
  users: [admin]
environments:
  staging: {server: a, lake: b, online_store: c}
  production: {server: d, lake: e, online_store: f}
"""
URI = "    uri: landing/visits/*.parquet\n"
CONTRACT = """\
contract:
  name: visits
  version: 1.0
  fields:
    - {name: visit_id, type: string, unique: true}
    - {name: visited_at, type: timestamp}
    - {name: pages, type: integer, min: 0, max: 1000}
"""
FILES = {
    "model.yaml": MODEL,
    "contract.yaml": CONTRACT,
    "features.py": "def tables(sources):\n    return sources\n",
    "training.py": "def train(training_set, labels, parameters, seed):\n    return None\n",
    "dag.py": "from ml_lifecycle_airflow import lifecycle_dags\n\n"
    "globals().update(lifecycle_dags(__file__))\n",
}


def searching(dimension: str, metric: str = "skill") -> str:
    """The beginning of ``training:`` with a search along one dimension."""
    space = f"space: {{depth: {dimension}}}"
    return f"training:\n  search: {{trials: 3, metric: {metric}, validation: 2d, {space}}}\n"


LOSS = "labels: {loss: absolute, largest: 9, margin: 1}"


def watching(*lines: str) -> str:
    """A canary's ``delivery:`` before ``labels:``."""
    watch = "".join(f"    {line}\n" for line in lines)
    return f"delivery:\n  strategy: canary\n  watch:\n{watch}labels:\n"


# What is wrong, the file, what is replaced in it (None: all of it) by what (None: the file is removed).
CASES: list[tuple[str, str, str | None, str | bytes | None]] = [
    ("unknown key", "model.yaml", "metric: skill", "metrc: skill"),
    ("missing key", "model.yaml", "owner: data-science\n", ""),
    ("missing key in a mapping", "model.yaml", "  column: left\n", ""),
    (
        "missing section",
        "model.yaml",
        "training:\n  data: {start: 2025-01-01T00:00:00Z, holdout: 28d}\n",
        "",
    ),
    (
        "section without content",
        "model.yaml",
        "training:\n  data: {start: 2025-01-01T00:00:00Z, holdout: 28d}\n",
        "training:\n",
    ),
    ("wrong type", "model.yaml", "users: [admin]", "users: admin"),
    ("text instead of a number", "model.yaml", "min: 0.0", "min: 'high'"),
    ("truth value as text", "model.yaml", "owner: data-science", "owner: true"),
    ("nothing where a list belongs", "model.yaml", "users: [admin]", "users:"),
    ("empty list", "model.yaml", "users: [admin]", "users: []"),
    ("empty text", "model.yaml", "owner: data-science", "owner: ''"),
    ("no such choice", "model.yaml", "task: binary", "task: Binery"),
    ("unknown version of the format", "model.yaml", "spec: 1", "spec: 2"),
    ("number out of range", "model.yaml", "training:\n", "training:\n  seed: -1\n"),
    ("duplicate key", "model.yaml", "owner: data-science", "owner: data-science\nname: other"),
    (
        "a role and a machine that Amazon has not",
        "model.yaml",
        "online_store: f}",
        "online_store: f, sagemaker: {role: models, image: a, instance_type: m5.large, instances: 0}}",
    ),
    ("bad duration", "model.yaml", "delay: 30d", "delay: 30 days"),
    ("huge duration", "model.yaml", "delay: 30d", "delay: 999999999w"),
    ("no length", "model.yaml", "holdout: 28d", "holdout: 0d"),
    ("bad moment", "model.yaml", "2025-01-01T00:00:00Z", "2025-01-01"),
    ("a moment before there were any", "model.yaml", "2025-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"),
    ("a year is no moment", "model.yaml", "2025-01-01T00:00:00Z", "2025"),
    ("bad cron", "model.yaml", "labels:\n", "schedules: {train: '@daily'}\nlabels:\n"),
    ("no such time zone", "model.yaml", "labels:\n", "schedules: {timezone: America/NewYork}\nlabels:\n"),
    ("an offset is no time zone", "model.yaml", "labels:\n", "schedules: {timezone: '+01:00'}\nlabels:\n"),
    ("bad memory", "model.yaml", "training:\n", "training:\n  resources: {memory: 2 GB}\n"),
    ("tab", "model.yaml", "  column: left", "\tcolumn: left"),
    ("tag", "model.yaml", "name: churn", "name: !!python/object/apply:os.system [id]"),
    (
        "anchors bomb",
        "model.yaml",
        "owner: data-science",
        "tags: &a [x, x]\nteam: [*a, *a]\nowner: data-science",
    ),
    (
        "merge key",
        "model.yaml",
        "  staging: {server: a, lake: b, online_store: c}",
        "  staging: {<<: {server: a}, lake: b, online_store: c}",
    ),
    ("not a number", "model.yaml", "min: 0.0", "min: .nan"),
    ("number too large", "model.yaml", "min: 0.0", "min: 99999999999999999999"),
    ("broken syntax", "model.yaml", "keys: [visit_id]", "keys: [visit_id"),
    ("second document", "model.yaml", "labels:\n", "---\nlabels:\n"),
    ("control character", "model.yaml", "Will the", "Will\x1b[31m the"),
    ("hostile name", "model.yaml", "name: churn", "name: ../churn"),
    ("newline in a name", "model.yaml", "name: churn", 'name: "churn\\n"'),
    ("template", "model.yaml", "name: churn", "name: {{ ds }}"),
    ("quoted template", "model.yaml", "name: churn", 'name: "{{ ds }}"'),
    ("template in the image", "model.yaml", "training:\n", "training:\n  image: '{{ var.value.secret }}'\n"),
    ("newline in a user's name", "model.yaml", "users: [admin]", 'users: ["admin\\n"]'),
    ("NUL in a path", "model.yaml", "uri: landing/visits/*.parquet", 'uri: "landing\\0"'),
    ("two places", "model.yaml", "    event_time", "    kafka: {topic: visits}\n    event_time"),
    ("topic without brokers", "model.yaml", URI, "    kafka: {topic: visits}\n"),
    ("topic's policy", "model.yaml", URI, "    connection: c\n    kafka: {topic: t, lost: ignore}\n"),
    ("topic's tombstones", "model.yaml", URI, "    connection: c\n    kafka: {topic: t, deleted: gone}\n"),
    ("topic's key", "model.yaml", URI, "    connection: c\n    kafka: {topics: visits}\n"),
    ("path that leaves the lake", "model.yaml", "landing/visits/*.parquet", "../../etc/*.parquet"),
    ("name with a look-alike", "model.yaml", "name: churn", "name: \u0441hurn"),
    ("long name", "model.yaml", "name: churn", f"name: {'churn' * 40}"),
    ("long tag", "model.yaml", "labels:\n", f"tags: [{'churn' * 40}]\nlabels:\n"),
    ("shell in a connection", "model.yaml", "server: a", 'server: "a; rm -rf $HOME"'),
    ("lock file outside", "model.yaml", "training:\n", "training:\n  lock: ../../etc/passwd\n"),
    (
        "alias bomb in parameters",
        "model.yaml",
        "training:\n",
        "training:\n  parameters: {a: &a [x], b: [*a, *a]}\n",
    ),
    (
        "tag in parameters",
        "model.yaml",
        "training:\n",
        "training:\n  parameters: {a: !!python/name:os.system ''}\n",
    ),
    ("not the folder's name", "model.yaml", "name: churn", "name: churns"),
    ("bad name of a source", "model.yaml", "  visits:\n", "  web visits:\n"),
    ("an environment is missing", "model.yaml", "  staging: {server: a, lake: b, online_store: c}\n", ""),
    (
        "production before staging",
        "model.yaml",
        "staging: {server: a, lake: b, online_store: c}\n  production:",
        "production: {server: a, lake: b, online_store: c}\n  staging:",
    ),
    ("empty gate", "model.yaml", "{metric: skill, min: 0.0}", "{metric: skill}"),
    ("gate's min above its max", "model.yaml", "min: 0.0", "min: 0.9, max: 0.1"),
    ("metric of another task", "model.yaml", "metric: skill", "metric: rmse"),
    (
        "threshold of another task",
        "model.yaml",
        None,
        MODEL.replace("binary", "multiclass").replace("evaluation:\n", "evaluation:\n  threshold: 0.2\n"),
    ),
    (
        "unknown alert metric",
        "model.yaml",
        "labels:\n",
        "monitoring: {alerts: [{metric: jensen, above: 0.1}]}\nlabels:\n",
    ),
    (
        "alert in two directions",
        "model.yaml",
        "labels:\n",
        "monitoring: {alerts: [{metric: psi, above: 0.1, below: 1}]}\nlabels:\n",
    ),
    ("search: metric of another task", "model.yaml", "training:\n", searching("{low: 1, high: 9}", "rmse")),
    ("search: low above high", "model.yaml", "training:\n", searching("{low: 9, high: 1}")),
    ("search: neither choices nor numbers", "model.yaml", "training:\n", searching("{}")),
    ("search: both choices and numbers", "model.yaml", "training:\n", searching("{choices: [1, 2], low: 1}")),
    (
        "search: a logarithm of nothing",
        "model.yaml",
        "training:\n",
        searching("{low: 0, high: 1, log: true}"),
    ),
    ("search: list of choices", "model.yaml", "training:\n", searching("[1, 2]")),
    ("search: a choice twice", "model.yaml", "training:\n", searching("{choices: [1, 2, true]}")),
    ("search: without end", "model.yaml", "training:\n", searching("{low: 1.0, high: .inf}")),
    ("search: no number", "model.yaml", "training:\n", searching("{low: false, high: 2}")),
    (
        "search: a step that leads past",
        "model.yaml",
        "training:\n",
        searching("{low: 0.0, high: 1.0, step: 0.3}"),
    ),
    ("search: a list among the choices", "model.yaml", "training:\n", searching("{choices: [[1], 2]}")),
    (
        "steps as shares of one",
        "model.yaml",
        "labels:\n",
        "delivery:\n  strategy: canary\n  steps: [0.05, 0.25, 0.5]\nlabels:\n",
    ),
    (
        "a step too near to all traffic",
        "model.yaml",
        "labels:\n",
        "delivery: {strategy: canary, steps: [5, 99.95]}\nlabels:\n",
    ),
    ("fewer looks than one", "model.yaml", "labels:\n", watching("every: 2d", "deadline: 1d")),
    (
        "a deadline before a look",
        "model.yaml",
        "labels:\n",
        watching("min_time: 5s", "deadline: 30s"),
    ),
    ("labels after the deadline", "model.yaml", "labels:\n", watching("labels: {}", "deadline: 7d")),
    ("labels after the default deadline", "model.yaml", "labels:\n", watching("labels: {}")),
    (
        "a business metric after the deadline",
        "model.yaml",
        "labels:\n",
        watching("business: {revenue: {margin: 0.1}}", "deadline: 7d"),
    ),
    (
        "a log that labels come too late for",
        "model.yaml",
        "labels:\n",
        "monitoring: {keep_predictions: 30d}\nlabels:\n",
    ),
    ("a loss of another task", "model.yaml", "labels:\n", watching(LOSS, "deadline: 31d")),
    ("a canary that disagrees", "model.yaml", "labels:\n", watching("disagreement: {}")),
    (
        "a metric named errors",
        "model.yaml",
        "labels:\n",
        watching("business: {errors: {margin: 0.1}}"),
    ),
    ("known_at alone", "model.yaml", "    event_time: visited_at\n", "    known_at: visited_at\n"),
    ("unknown contract", "model.yaml", "contract: visits", "contract: visit"),
    ("column not in the contract", "model.yaml", "event_time: visited_at", "event_time: visit_at"),
    ("lock file is missing", "model.yaml", "training:\n", "training:\n  lock: requirements.lock\n"),
    ("list instead of a mapping", "model.yaml", None, "- spec: 1\n- name: churn\n"),
    ("empty file", "model.yaml", None, ""),
    ("wrong encoding", "model.yaml", None, MODEL.replace("leave", "zurück").encode("latin-1")),
    ("min above max", "contract.yaml", "min: 0, max: 1000", "min: 10, max: 1"),
    ("range of text", "contract.yaml", "type: string, unique", "type: string, max: 3, unique"),
    ("bad version", "contract.yaml", "1.0", "1.0-beta"),
    ("bad pattern", "contract.yaml", "type: string,", "type: string, pattern: '[a-',"),
    ("flags of a whole pattern", "contract.yaml", "type: string,", "type: string, pattern: '(?i)a',"),
    ("compared with no field", "contract.yaml", "type: timestamp", "type: timestamp, at_least: visit"),
    ("compared with another type", "contract.yaml", "type: timestamp", "type: timestamp, above: pages"),
    ("compared text", "contract.yaml", "type: string,", "type: string, above: pages,"),
    ("share of unknown values", "contract.yaml", "min: 0, max: 1000", "min_share: 0.5"),
    (
        "shares beyond the whole",
        "contract.yaml",
        "min: 0, max: 1000",
        "allowed_values: [1, 2], min_share: 0.6",
    ),
    *(
        (f"condition: {name}", "contract.yaml", "max: 1000}", f"max: 1000, conditional: [{rules}]}}")
        for name, rules in {
            "no such field": "{when: [{field: page, op: is, value: 1}], min: 1}",
            "no such operator": "{when: [{field: pages, op: ==, value: 1}], min: 1}",
            "value of another type": "{when: [{field: visit_id, op: is, value: 1}], min: 1}",
            "operator of another type": "{when: [{field: visit_id, op: above, value: a}], min: 1}",
            "moments are not compared": "{when: [{field: visited_at, op: is, value: a}], min: 1}",
            "no list": "{when: [{field: pages, op: in, value: 1}], min: 1}",
            "no value": "{when: [{field: pages, op: is}], min: 1}",
            "a value too many": "{when: [{field: pages, op: missing, value: 1}], min: 1}",
            "no rule": "{when: [{field: pages, op: missing}]}",
            "rule of another type": "{when: [{field: pages, op: missing}], pattern: a}",
            "compared with no field": "{when: [{field: pages, op: missing}], above: page}",
        }.items()
    ),
    *(
        (f"reference: {name}", "contract.yaml", "max: 1000}", f"max: 1000, references: {{{rules}}}}}")
        for name, rules in {
            "no such contract": "contract: visit, field: visit_id",
            "no such field": "contract: visits, field: page",
            "another type": "contract: visits, field: visit_id",
            "no field": "contract: visits",
            "no share": "contract: visits, field: pages, max_unknown: 5",
        }.items()
    ),
    (
        "reference: of a time",
        "contract.yaml",
        "type: timestamp",
        "type: timestamp, references: {contract: visits, field: visited_at}",
    ),
    (
        "reference: to no source",
        "contract.yaml",
        None,
        "contracts:\n  - name: visits\n    version: 1\n    fields:\n"
        "      - {name: visit_id, type: string, references: {contract: others, field: id}}\n"
        "      - {name: visited_at, type: timestamp}\n"
        "  - {name: others, version: 1, fields: [{name: id, type: string}]}\n",
    ),
    ("value of another type", "contract.yaml", "min: 0, max: 1000", "allowed_values: [1, two]"),
    ("list in a list of values", "contract.yaml", "min: 0, max: 1000", "allowed_values: [1, [2]]"),
    ("field listed twice", "contract.yaml", "name: pages", "name: visit_id"),
    ("no contract", "contract.yaml", None, "contracts: []\n"),
    ("missing file", "features.py", None, None),
    ("no tables()", "features.py", None, b"def table(sources):\n    return {}\n"),
    ("not Python", "training.py", None, b"def train(training_set, labels\n    return 1\n"),
    ("null byte", "dag.py", None, b"x = 1\x00\n"),
]
# The whole error by what is wrong; it names the folder as it was asked for.
EXPECTED = dict(
    re.findall(
        r"^## ([^\n]+)\n(.*?)\n(?=\n## |\Z)",
        Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder without a mistake, as ``churn`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("churn")
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_folder_of_these_tests_has_no_mistake(folder: Path) -> None:
    assert load_folder(folder).spec.name == "churn"


def test_every_mistake_has_its_text_and_every_text_its_mistake() -> None:
    assert [case[0] for case in CASES] == list(EXPECTED)


@pytest.mark.parametrize(("what", "file", "old", "new"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_shown_with_its_place(
    folder: Path, what: str, file: str, old: str | None, new: str | bytes | None
) -> None:
    path = folder / file
    if new is None:
        path.unlink()
    else:
        new = new if isinstance(new, bytes) else new.encode()
        text = path.read_bytes()
        assert old is None or old.encode() in text
        path.write_bytes(new if old is None else text.replace(old.encode(), new, 1))
    with pytest.raises(SpecError) as caught:
        load_folder(folder)
    assert str(caught.value) == EXPECTED[what]


def test_mistakes_of_all_files_are_shown_at_once(folder: Path) -> None:
    (folder / "model.yaml").write_text(MODEL.replace("task: binary", "task: binry").replace("30d", "soon"))
    (folder / "contract.yaml").write_text(CONTRACT.replace("type: string", "type: text"))
    (folder / "training.py").write_text("def fit(): ...\n")
    (folder / "dag.py").unlink()
    with pytest.raises(SpecError) as caught:
        load_folder(folder)
    heads = [block.splitlines()[0] for block in str(caught.value).split("\n\n")]
    assert heads == [
        "churn/dag.py: missing file: it holds the three lines that make the model's DAGs",
        "churn/model.yaml:4:7: task: must be one of binary, multiclass, regression, not 'binry'",
        "churn/model.yaml:15:10: labels.delay: 'soon' is not a duration: "
        "write a whole number and a unit, such as 30m, 24h or 7d",
        "churn/contract.yaml:5:30: contract.fields[0].type: "
        "must be one of string, integer, float, boolean, timestamp, date, not 'text'",
        "churn/training.py:1:1: does not define train(): see the template's",
    ]


def test_nothing_in_an_error_is_the_validators_own_language() -> None:
    for expected in EXPECTED.values():
        for word in ("pydantic", "Input should", "validation error", "type=", "Value error", "tuple", "dict"):
            assert not re.search(rf"\b{word}", expected)


def test_deep_nesting_ends_in_an_error(folder: Path) -> None:
    (folder / "model.yaml").write_text("a: " + "[" * 100_000)
    with pytest.raises(SpecError, match=r"model\.yaml:1:34: nested deeper than 30 levels"):
        load_folder(folder)


def test_a_long_line_is_shown_around_its_mark(folder: Path) -> None:
    (folder / "model.yaml").write_text(MODEL.replace("[admin]", f"[{'x, ' * 5000} '', admin]"))
    with pytest.raises(SpecError) as caught:
        load_folder(folder)
    message, _, excerpt, marker, *_ = str(caught.value).splitlines()
    assert message.endswith("approvers.users[5000]: must not be empty")
    assert len(excerpt) < 120
    assert excerpt[marker.index("^") :].startswith("''")


def test_a_file_too_large_is_refused(folder: Path) -> None:
    (folder / "model.yaml").write_text(MODEL + "#" * 1_000_000)
    with pytest.raises(SpecError, match=r"model\.yaml:1:1: the file is larger than 1,000,000 bytes"):
        load_folder(folder)
