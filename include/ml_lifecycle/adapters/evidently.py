"""Evidently's reports on a sample: drift against the training rows, quality where labels have arrived.

The monitor's own numbers come from whole windows and stored profiles; these reports are to look at. They are
made on samples because Evidently computes the reference again each time, in seconds per 100,000 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ml_lifecycle.personal import told
from ml_lifecycle.profiles.profiling import as_profiled
from ml_lifecycle.profiles.sample import SAMPLE_ROWS
from ml_lifecycle.records import ColumnSpec, Finding, TaskType

SHOWN = ("psi", "wasserstein", "ks_statistic", "cramers_v", "missing_share", "correlation_change")
"""Metrics of the whole window that a drift report shows."""
_PSI_THRESHOLD = 0.25


@dataclass(frozen=True)
class EvidentlyReport:
    """One Evidently snapshot.

    :param html: the page, self-contained
    :param snapshot: Evidently's own JSON of the metrics
    :param left_out: column → why it is not in the report
    """

    html: str
    snapshot: str
    left_out: Mapping[str, str] = field(default_factory=dict)


def thin(frame: pl.LazyFrame, rows: int) -> pl.DataFrame:
    """At most :data:`SAMPLE_ROWS` of ``rows`` rows, evenly spaced, so that all of their time is covered."""
    return frame.gather_every(max(1, -(-rows // SAMPLE_ROWS))).collect()


def drift_report(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    columns: Sequence[ColumnSpec],
    measured: Sequence[Finding] = (),
) -> EvidentlyReport:
    """Drift of every column by PSI, with Evidently's own bins, after what was measured of all rows.

    :param measured: findings about columns that the report shows as metrics of its own

    Evidently raises on a column without values, and one bad column would cost the whole report: those
    columns are left out, and said so.

    :raises ValueError: no column is left. Retry: no.
    """
    before, now = as_profiled(reference, columns), as_profiled(current, columns)
    # Its pages show categories, and where bins begin and end.
    left_out = {column.name: "it holds personal data" for column in columns if column.personal}
    left_out |= {
        column.name: f"no value in the {side}"
        for side, frame in (("training rows", before), ("window", now))
        for column in columns
        if frame[column.name].null_count() == frame.height
    }
    kept = [column for column in columns if column.name not in left_out]

    def report(wanted: Sequence[ColumnSpec]) -> EvidentlyReport:
        return _drift(before, now, wanted, measured)

    try:
        made = report(kept)
    except Exception:  # noqa: BLE001 - Evidently raises whatever its metrics do; find out which of them
        failures = {column.name: _failure(report, column) for column in kept}
        left_out |= {name: error for name, error in failures.items() if error is not None}
        made = report([column for column in kept if column.name not in left_out])
    return EvidentlyReport(made.html, made.snapshot, left_out)


def quality_report(answers: pl.DataFrame, task: TaskType) -> EvidentlyReport:
    """Quality of answers whose truth is known.

    :param answers: columns ``truth`` and, by task, ``score`` (binary: with truth 0 or 1; regression) or
        ``label`` (multiclass)
    """
    from evidently import BinaryClassification, DataDefinition, MulticlassClassification, Regression
    from evidently.presets import ClassificationPreset, RegressionPreset

    if task == "binary":
        binary = BinaryClassification(target="truth", prediction_probas="score", pos_label=1)
        problem = {"classification": [binary]}
    elif task == "multiclass":
        problem = {"classification": [MulticlassClassification(target="truth", prediction_labels="label")]}
    else:
        problem = {"regression": [Regression(target="truth", prediction="score")]}
    preset = RegressionPreset() if task == "regression" else ClassificationPreset()
    return _run([preset], DataDefinition(**problem), answers, None)


def _failure(report: Callable[[Sequence[ColumnSpec]], EvidentlyReport], column: ColumnSpec) -> str | None:
    try:
        report([column])
    except Exception as error:  # noqa: BLE001 - the reason is what is asked for
        return told(error)
    return None


def _drift(
    before: pl.DataFrame, now: pl.DataFrame, columns: Sequence[ColumnSpec], measured: Sequence[Finding]
) -> EvidentlyReport:
    from evidently import DataDefinition
    from evidently.presets import DataDriftPreset

    from ml_lifecycle.adapters.evidently_metrics import WholeWindow

    if not columns:
        raise ValueError("no column has values in both the training rows and the window")
    numeric = [column.name for column in columns if column.type in ("float", "int")]
    categorical = [column.name for column in columns if column.name not in numeric]
    names = [column.name for column in columns]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
    preset = DataDriftPreset(columns=names, method="psi", threshold=_PSI_THRESHOLD, include_tests=False)
    whole = [
        WholeWindow(metric=one.metric, column=one.column, value=one.value, rows=one.n)
        for one in measured
        if one.metric in SHOWN and one.column is not None and one.value is not None and one.segment is None
    ]
    return _run([*whole, preset], definition, now.select(names), before.select(names))


def _run(
    metrics: list[Any], definition: Any, current: pl.DataFrame, reference: pl.DataFrame | None
) -> EvidentlyReport:
    import warnings

    from evidently import Dataset, Report

    def dataset(frame: pl.DataFrame) -> Any:
        return Dataset.from_pandas(_to_pandas(frame), data_definition=definition)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # empty bins divide by zero inside; the report shows them as empty
        snapshot = Report(metrics).run(
            dataset(current), dataset(reference) if reference is not None else None
        )
        return EvidentlyReport(snapshot.get_html_str(as_iframe=False), snapshot.json())


def _to_pandas(frame: pl.DataFrame) -> Any:
    """By way of Python lists: Arrow-backed strings are refused by some of Evidently's metrics."""
    import pandas as pd

    return pd.DataFrame({column.name: column.to_list() for column in frame})
