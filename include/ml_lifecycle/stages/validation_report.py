"""What a validation leaves for people: a page with every rule, and the rows that halted the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from html import escape

import polars as pl

from ml_lifecycle.adapters.lake import Lake, safe_name
from ml_lifecycle.adapters.tables import write_parquet
from ml_lifecycle.personal import MASK
from ml_lifecycle.records import RuleResult, Snapshot, Validation

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1b1f24; background: #fff }
table { border-collapse: collapse } th, td { text-align: left; padding: .35rem .8rem; vertical-align: top }
th { border-bottom: 2px solid #d0d7de } td { border-bottom: 1px solid #eaeef2 }
.halt { color: #b42318; font-weight: 600 } .warn { color: #93590a; font-weight: 600 } .pass { color: #1a7f37 }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 }
 .halt { color: #ff7b72 } .warn { color: #e3b341 } .pass { color: #56d364 }
 th { border-color: #444c56 } td { border-color: #30363d } }
"""


def quarantine_path(model: str, snapshot_digest: str, source: str) -> str:
    """Where the offending rows of a source are."""
    return f"quarantine/{safe_name(model)}/{snapshot_digest}/{safe_name(source)}.parquet"


def write_quarantine(
    lake: Lake,
    validation: Validation,
    offending: Sequence[tuple[RuleResult, pl.DataFrame]],
    hidden: Mapping[str, AbstractSet[str]],
) -> None:
    """Write the offending rows by source, each with the rule it breaks, and a manifest last.

    :param hidden: columns to mask, by source
    """
    model, digest = validation.run.model, validation.snapshot_digest
    paths = []
    for source in dict.fromkeys(result.source for result, _ in offending):
        rows = pl.concat(
            [
                _masked(frame, hidden.get(source, frozenset())).select(
                    pl.lit(result.rule).alias("broken_rule"),
                    pl.lit(result.field, dtype=pl.String).alias("broken_field"),
                    pl.all(),
                )
                for result, frame in offending
                if result.source == source
            ]
        )
        paths.append(write_parquet(lake, quarantine_path(model, digest, source), rows))
    manifest = {
        "schema": "quarantine/1",
        "snapshot": validation.snapshot_path,
        # Not its path: the validation's own manifest is written after this one.
        "validation_digest": validation.digest,
        "files": paths,
        "rules": [asdict(result) for result in validation.failed if result.halts],
    }
    lake.write_json(f"quarantine/{safe_name(model)}/{digest}/manifest.json", manifest)


def _masked(rows: pl.DataFrame, hidden: AbstractSet[str]) -> pl.DataFrame:
    """Hidden values as ``***``; a null stays one, for that may be what is wrong."""
    return rows.with_columns(
        pl.when(pl.col(name).is_not_null()).then(pl.lit(MASK)).alias(name)
        for name in rows.columns
        if name in hidden
    )


def render_html(snapshot: Snapshot, results: Sequence[RuleResult]) -> str:
    """A page of its own: no script, nothing loaded from elsewhere."""
    run = snapshot.run
    failed = [result for result in results if not result.passed]
    halting = sum(result.halts for result in failed)
    verdict = "halted" if halting else "validated"
    title = escape(f"{run.model}: snapshot {snapshot.digest[:12]} {verdict}")
    ordered = [*failed, *(result for result in results if result.passed)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>As of {escape(run.as_of.isoformat())}, for {escape(run.interval.start.isoformat())} to "
        f"{escape(run.interval.end.isoformat())}: {len(results)} rules, {halting} halt, "
        f"{len(failed) - halting} warn.</p>"
        "<table><tr><th>Verdict<th>Source<th>Field<th>Rule<th>Expected<th>Observed<th>Rows</tr>"
        + "".join(_html_row(result) for result in ordered)
        + "</table></html>\n"
    )


def _html_row(result: RuleResult) -> str:
    verdict = "pass" if result.passed else "halt" if result.halts else "warn"
    observed = result.error or ("" if result.observed is None else result.observed)
    rows = f"{result.unexpected_rows:,}" if result.unexpected_rows else ""
    cells: Iterable[object] = (
        result.source,
        result.field or "",
        result.rule,
        result.expected,
        f"{observed:g}" if isinstance(observed, float) else observed,
        rows,
    )
    return (
        f'<tr><td class="{verdict}">{verdict}'
        + "".join(f"<td>{escape(str(cell))}" for cell in cells)
        + "</tr>"
    )
