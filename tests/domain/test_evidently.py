"""Evidently itself, on the columns that it trips over."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from ml_lifecycle.adapters.evidently import SAMPLE_ROWS, drift_report, quality_report, thin
from ml_lifecycle.records import ColumnSpec

COLUMNS = (
    ColumnSpec("x", "float", nullable=True),
    ColumnSpec("same", "float"),
    ColumnSpec("k", "int"),
    ColumnSpec("c", "string"),
    ColumnSpec("b", "bool"),
)


def rows(n: int, seed: int = 0, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": rng.normal(shift, 1, n),
            "same": [1.0] * n,
            "k": rng.integers(0, 5, n),
            "c": rng.choice(["EWR", "JFK", "LGA"], n),
            "b": rng.integers(0, 2, n).astype(bool),
        }
    )


def drift_of(snapshot: str) -> dict[str, float]:
    """Column → value, from Evidently's own JSON."""
    metrics = json.loads(snapshot)["metrics"]
    return {metric["config"]["column"]: metric["value"] for metric in metrics if "column" in metric["config"]}


def test_every_column_is_compared():
    report = drift_report(rows(2000), rows(1500, seed=1, shift=1.5), COLUMNS)
    drift = drift_of(report.snapshot)
    assert drift.keys() == {"x", "same", "k", "c", "b"}
    assert drift["x"] > 0.25
    assert drift["k"] < 0.1
    assert report.left_out == {}
    assert report.html.lstrip().startswith("<")


def test_a_column_without_values_is_left_out_and_said_so():
    empty = rows(500, seed=1).with_columns(x=pl.lit(None, pl.Float64), c=pl.lit(""))
    report = drift_report(rows(500), empty, COLUMNS)
    assert report.left_out == {"x": "no value in the window", "c": "no value in the window"}
    assert drift_of(report.snapshot).keys() == {"same", "k", "b"}


def test_unseen_categories_and_nulls_are_no_trouble():
    odd = rows(500, seed=1).with_columns(
        c=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("SFO")),
        x=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.col("x")).otherwise(float("nan")),
    )
    report = drift_report(rows(500), odd, COLUMNS)
    assert report.left_out == {}
    assert drift_of(report.snapshot)["c"] > 0.25


def test_a_column_that_evidently_fails_on_does_not_cost_the_others():
    # A spread that floats cannot be binned over: Evidently's histogram raises.
    tight = pl.Series("same", [1e16, 1e16 + 2] * 250)
    report = drift_report(rows(500).with_columns(tight), rows(500, seed=1).with_columns(tight), COLUMNS)
    assert report.left_out.keys() == {"same"}
    assert drift_of(report.snapshot).keys() == {"x", "k", "c", "b"}


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="no column has values"):
        drift_report(rows(10).with_columns(x=None), rows(10).with_columns(x=None), COLUMNS[:1])


def test_quality_of_each_task():
    score = np.random.default_rng(0).random(800)
    truth = (np.random.default_rng(1).random(800) < score).astype(int)
    binary = quality_report(pl.DataFrame({"truth": truth, "score": score}), "binary")
    named = {
        metric["metric_name"].split("(")[0]: metric["value"]
        for metric in json.loads(binary.snapshot)["metrics"]
    }
    assert named["Accuracy"] == pytest.approx(((score >= 0.5) == truth).mean())
    classes = np.array(["early", "late", "on time"])[np.random.default_rng(2).integers(0, 3, 600)]
    labels = pl.DataFrame({"truth": classes, "label": np.roll(classes, 1)})
    assert '"Accuracy' in quality_report(labels, "multiclass").snapshot
    numbers = pl.DataFrame({"truth": score, "score": score + np.random.default_rng(3).normal(0, 0.1, 800)})
    assert "MAE" in quality_report(numbers, "regression").snapshot


def test_thinning_keeps_the_whole_span():
    assert thin(pl.LazyFrame({"x": range(10)}), 10)["x"].to_list() == list(range(10))
    thinned = thin(pl.LazyFrame({"x": range(123_456)}), 123_456)["x"]
    assert SAMPLE_ROWS * 0.9 < len(thinned) <= SAMPLE_ROWS
    assert thinned[0] == 0
    assert thinned[-1] > 123_400
