"""A model folder's code is tried without data: every mistake of the template, made on purpose, is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_lifecycle.rehearsal import Rehearsal, rehearse
from ml_lifecycle.spec import scaffold
from ml_lifecycle.spec.folder import read_folder
from ml_lifecycle.spec.scaffold import new_folder

FLIGHTS = Path(__file__).parents[2] / "dags" / "models" / "flight_delay"
TEMPLATE = Path(scaffold.__file__).parent / "template" / "model.yaml"

# Where model.yaml of the template has ``monitoring:``.
LINE = TEMPLATE.read_text().splitlines().index("monitoring:") + 1


def business(keys: str) -> str:
    """A ``delivery:`` with a business metric, before ``monitoring:``."""
    metric = f"revenue: {{{', '.join(filter(None, [keys, 'margin: 0.1, required: false']))}}}"
    return f"delivery:\n  watch:\n    business:\n      {metric}\nmonitoring:\n"


# What is wrong, the file, what is replaced in it by what, and what the author is told, in a problem's parts.
CASES: list[tuple[str, str, str, str, list[str]]] = [
    (
        "misspelt import",
        "features.py",
        "import polars as pl",
        "import polar as pl",
        ["features.py:12: ModuleNotFoundError: No module named 'polar'"],
    ),
    (
        "training that does not import",
        "training.py",
        "OrdinalEncoder\n",
        "OrdinalEncodr\n",
        ["training.py:11: ImportError: cannot import name 'OrdinalEncodr'"],
    ),
    (
        "training that exits",
        "training.py",
        "import pandas as pd",
        "raise SystemExit(3)",
        ["training.py: exits while it is imported (code 3)"],
    ),
    (
        "train takes other arguments",
        "training.py",
        ", parameters: dict[str, Any], seed: int)",
        ")",
        ["training.py: train(", "cannot be called as train(training_set, labels, parameters, seed)"],
    ),
    (
        "another service",
        "features.py",
        'FeatureService(name="returns"',
        'FeatureService(name="refunds"',
        ["no FeatureService 'returns' (features.service in model.yaml); it has ['refunds']"],
    ),
    (
        "a source at another path",
        "features.py",
        'path="customer_orders.parquet"',
        'path="orders.parquet"',
        ["path='<table>.parquet'", "path='orders.parquet'"],
    ),
    (
        "a feature of a type no model takes",
        "features.py",
        'Field(name="mean_amount", dtype=Float64)',
        'Field(name="mean_amount", dtype=UnixTimestamp)',
        ["feature customer_orders:mean_amount is UnixTimestamp; a model takes Float32"],
    ),
    (
        "another key",
        "model.yaml",
        "keys: [customer_id]",
        "keys: [customer]",
        ["labels.keys: lacks customer_id, which feature service 'returns' looks features up by", ">"],
    ),
    (
        "another label",
        "model.yaml",
        "column: returned",
        "column: return",
        ["table 'labels' lacks column 'return'", "did you mean 'returned'?"],
    ),
    (
        "a label called like a feature",
        "model.yaml",
        "column: returned",
        "column: mean_amount",
        ["features ['mean_amount'] are named like the label or an entity key"],
    ),
    (
        "a source by another name",
        "features.py",
        'sources["orders"]',
        'sources["order"]',
        ["features.py:", "tables() fails on sources without rows: KeyError: 'order'"],
    ),
    (
        "a column that no contract has",
        "features.py",
        'pl.col("amount")',
        'pl.col("amounts")',
        ["table 'customer_orders' cannot be computed: ColumnNotFoundError", "amounts"],
    ),
    (
        "a feature that is not made",
        "features.py",
        'count.alias("orders_closed")',
        'count.alias("orders_close")',
        [
            "features.py:24:20: table 'customer_orders' lacks column 'orders_closed'",
            "did you mean 'orders_close'?",
        ],
    ),
    (
        "a feature fed from a contract's field of another type",
        "contract.yaml",
        "{name: channel, type: string, max_missing: 0.05, allowed_values: [web, app, shop]}",
        "{name: channel, type: integer}",
        [
            "field 'last_channel' is declared as String, and table 'customer_orders' holds Int64",
            "features.py:27:20",
        ],
    ),
    (
        "a table by another name",
        "features.py",
        'return {"customer_orders"',
        'return {"customer_order"',
        ["tables() returns no 'customer_orders'", "did you mean 'customer_order'?"],
    ),
    (
        "no labels",
        "features.py",
        '"labels": labels, ',
        "",
        ["tables() returns no 'labels'", "allowed: customer_orders, entities"],
    ),
    (
        "collected frames",
        "features.py",
        '"labels": labels',
        '"labels": labels.collect()',
        ["tables() must return a dict of Polars LazyFrames; these are none: {'labels': 'DataFrame'}"],
    ),
    (
        "nothing returned",
        "features.py",
        'return {"customer_orders"',
        '_ = {"customer_orders"',
        ["tables() must return a dict of Polars LazyFrames; it returns NoneType"],
    ),
    (
        "a moment that is text",
        "features.py",
        'pl.col("closed_at").alias("known_at")',
        'pl.col("channel").alias("known_at")',
        ["column 'known_at' of table 'labels' is String, not a time"],
    ),
    (
        "a segment that is no column",
        "model.yaml",
        "max_regression: 0.01}",
        "max_segment_gap: 0.1, segment: last_chanel}",
        ["evaluation.gates[1].segment: no feature or key 'last_chanel'", "did you mean 'last_channel'?"],
    ),
    (
        "an alert on no feature",
        "model.yaml",
        "{metric: psi, above: 0.25}",
        "{metric: psi, above: 0.25, columns: [amount]}",
        ["monitoring.alerts[0].columns[0]: no feature 'amount'", "allowed: orders_closed, return_share"],
    ),
    (
        "an alert on no feature view",
        "model.yaml",
        "{metric: psi, above: 0.25}",
        "{metric: feature_staleness_seconds, above: 3600, columns: [mean_amount]}",
        ["monitoring.alerts[0].columns[0]: no feature view 'mean_amount'", "allowed: customer_orders"],
    ),
    (
        "a watched segment that is no column",
        "model.yaml",
        "monitoring:\n",
        "delivery:\n  watch:\n    segments: {last_chanel: [web]}\nmonitoring:\n",
        [
            f"model.yaml:{LINE + 2}:",
            "delivery.watch.segments.last_chanel: no feature or key 'last_chanel'",
            "did you mean 'last_channel'?",
        ],
    ),
    (
        "a business table by another name",
        "model.yaml",
        "monitoring:\n",
        business("table: entites, column: amount"),
        [
            f"model.yaml:{LINE + 3}:",
            "business.revenue.table: tables() of features.py returns no 'entites'",
            "did you mean 'entities'?",
        ],
    ),
    (
        "a business table that cannot be joined",
        "model.yaml",
        "monitoring:\n",
        business("table: entities, column: customer_id"),
        [
            f"model.yaml:{LINE + 3}:",
            "business.revenue.table: table 'entities' lacks known_at: its rows are joined as labels are, "
            "by customer_id, event_timestamp, known_at",
        ],
    ),
    (
        "a business column by another name",
        "model.yaml",
        "monitoring:\n",
        business("column: retuned"),
        [
            f"model.yaml:{LINE + 3}:",
            "business.revenue.column: table 'labels' has no column 'retuned'",
            "did you mean 'returned'?",
        ],
    ),
    (
        "no business column",
        "model.yaml",
        "monitoring:\n",
        business(""),
        [
            f"model.yaml:{LINE + 3}:",
            "delivery.watch.business.revenue: table 'labels' has no column 'revenue'; name one as column",
        ],
    ),
    (
        "a business column without numbers",
        "model.yaml",
        "monitoring:\n",
        business("column: customer_id"),
        ["business.revenue.column: column 'customer_id' of table 'labels' is String, not a number"],
    ),
]


def rehearsed(folder: Path) -> Rehearsal:
    return rehearse(read_folder(folder))


def edit(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "told"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_mistake_is_told(tmp_path: Path, file: str, old: str, new: str, told: list[str]) -> None:
    folder = new_folder("returns", tmp_path)
    if "UnixTimestamp" in new:
        edit(folder, "features.py", "Float64, String", "Float64, String, UnixTimestamp")
    edit(folder, file, old, new)
    assert read_folder(folder).problems == (), "reading the files does not find it"
    problems = [problem.text for problem in rehearsed(folder).problems]
    assert any(all(part in problem for part in told) for problem in problems), problems


def test_a_feature_of_another_type_than_its_contract_s_field_is_shown_at_both_places(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    edit(
        folder,
        "features.py",
        'Field(name="mean_amount", dtype=Float64)',
        'Field(name="channel", dtype=Float64)',
    )
    edit(folder, "features.py", '.alias("last_channel"),', '.alias("last_channel"), "channel",')
    (problem,) = rehearsed(folder).problems
    lines = problem.text.splitlines()
    assert lines[0] == (
        f"{folder}/features.py:26:20: field 'channel' is declared as Float64, "
        "and table 'customer_orders' holds String"
    )
    line = 1 + (folder / "contract.yaml").read_text().splitlines().index(
        "    - {name: channel, type: string, max_missing: 0.05, allowed_values: [web, app, shop]}"
    )
    assert lines[-1] == f"  contract orders has channel as string: {folder}/contract.yaml:{line}:29"


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_a_label_fits_its_task(tmp_path: Path, task: str) -> None:
    folder = new_folder("returns", tmp_path)
    edit(folder, "model.yaml", "task: binary", f"task: {task}")
    edit(folder, "features.py", 'pl.col("returned").cast(pl.Int64)', 'pl.col("channel").alias("returned")')
    problems = [problem.text for problem in rehearsed(folder).problems]
    if task == "multiclass":
        assert problems == []
    else:
        assert problems == [
            f"{folder}/features.py: label 'returned' is String, and regression models predict numbers"
        ]


def test_what_is_right_is_quiet(tmp_path: Path) -> None:
    for folder in (FLIGHTS, new_folder("returns", tmp_path)):
        assert rehearsed(folder) == Rehearsal((), ())


@pytest.mark.parametrize(
    ("metric", "column"),
    [
        ("feature_staleness_seconds", "customer_orders"),
        ("online_mismatch_share", "customer_orders:mean_amount"),
        ("replay_mismatch_share", "types: mean_amount"),
    ],
)
def test_an_alert_names_what_its_metric_has_findings_of(tmp_path: Path, metric: str, column: str) -> None:
    folder = new_folder("returns", tmp_path)
    alert = f'{{metric: {metric}, above: 0.5, columns: ["{column}"]}}'
    edit(folder, "model.yaml", "{metric: psi, above: 0.25}", alert)
    assert rehearsed(folder) == Rehearsal((), ())


def test_a_business_metric_that_works_is_quiet(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    edit(folder, "model.yaml", "monitoring:\n", business("table: orders, column: amount"))
    frame = '"orders": labels.with_columns(amount=pl.lit(1.5)), "entities": entities}'
    edit(folder, "features.py", '"entities": entities}', frame)
    assert rehearsed(folder) == Rehearsal((), ())


def test_the_template_s_delivery_works(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    text = (folder / "model.yaml").read_text()
    block = text[text.index("# delivery:") : text.index("# What is watched in production")]
    edit(folder, "model.yaml", block, "".join(line[2:] for line in block.splitlines(keepends=True)))
    assert read_folder(folder).problems == ()
    assert rehearsed(folder) == Rehearsal((), ())


def test_several_mistakes_are_told_in_one_round(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    edit(folder, "model.yaml", "metric: psi", "metrc: psi")
    edit(folder, "training.py", "OrdinalEncoder\n", "OrdinalEncodr\n")
    edit(folder, "features.py", "import polars as pl", "import polar as pl")
    assert "metrc" in read_folder(folder).problems[0].text
    texts = [problem.text for problem in rehearsed(folder).problems]
    assert ["OrdinalEncodr" in texts[0], "polar" in texts[1]] == [True, True]
    edit(folder, "model.yaml", "metrc: psi", "metric: psi")
    edit(folder, "model.yaml", "column: returned", "column: return")
    edit(folder, "model.yaml", "service: returns", "service: refunds")
    edit(folder, "features.py", "import polar as pl", "import polars as pl")
    texts = [problem.text for problem in rehearsed(folder).problems]
    assert len(texts) == 3, "the training's import, the service's name and the label's"


def test_a_file_that_does_not_compile_is_told_once(tmp_path: Path) -> None:
    folder = new_folder("returns", tmp_path)
    edit(folder, "features.py", "def tables(", "def tables((")
    assert len(read_folder(folder).problems) == 1
    assert rehearsed(folder).problems == ()


@pytest.mark.parametrize(
    ("file", "old", "new", "advice"),
    [
        ("model.yaml", "users: [admin, alice]", "users: [admin]", "admin is the only one of approvers.users"),
        ("model.yaml", "    contract: orders ", "    # ", "no contract says which columns orders has"),
        (
            "model.yaml",
            "window: 60d",
            "window: 7d",
            "monitoring.window (1w) is no longer than labels.delay (30d)",
        ),
        ("features.py", ', "entities": entities}', "}", "returns__score will fail"),
        (
            "model.yaml",
            "monitoring:\n",
            "delivery: {strategy: canary, steps: [0.25, 0.5]}\nmonitoring:\n",
            "delivery.steps in model.yaml are percent: the largest, 0.5, is less than one in a hundred",
        ),
        (
            "model.yaml",
            "keys: [order_id]\n",
            "keys: [order_id]\n    renamed: {amuont: [cost]}\n",
            "orders.renamed in model.yaml: contract orders lists no 'amuont'; did you mean 'amount'?",
        ),
    ],
    ids=["one approver", "no contract", "short window", "no entities", "steps as shares", "renamed"],
)
def test_what_may_be_meant_is_a_note(tmp_path: Path, file: str, old: str, new: str, advice: str) -> None:
    folder = new_folder("returns", tmp_path)
    edit(folder, file, old, new)
    found = rehearsed(folder)
    assert found.problems == ()
    assert [advice in one for one in found.advice] == [True]
