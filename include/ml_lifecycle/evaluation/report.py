"""The evaluation as a page of its own: one HTML file without scripts or links to elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape

from ml_lifecycle.evaluation.gates import Segment
from ml_lifecycle.records import Evaluation, Training, TrainingSet

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
.passed { color: #17692b; } .failed { color: #a3151b; font-weight: 600; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


def render_html(
    evaluation: Evaluation,
    training: Training,
    training_set: TrainingSet,
    segments: Sequence[Segment],
    not_computed: Mapping[str, str],
    now: datetime,
) -> bytes:
    """The page, UTF-8."""
    model = evaluation.run.model
    champion = evaluation.champion_version
    against = f"champion version {champion}" if champion else "no champion yet"
    verdict = "passed" if evaluation.passed else "failed"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(model)}: evaluation</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{escape(model)}: <span class={verdict}>{verdict}</span></h1>",
        f"<p>{evaluation.holdout_rows:,} holdout rows, {training_set.holdout.start:%Y-%m-%d %H:%M} to "
        f"{training_set.holdout.end:%Y-%m-%d %H:%M} UTC; trained on {training_set.train_rows:,} rows "
        f"before {training_set.train_end:%Y-%m-%d %H:%M}; {escape(against)}; "
        f"evaluated {now:%Y-%m-%d %H:%M} UTC.</p>",
    ]
    if evaluation.for_record:
        parts.append("<p>Its data end before the champion's: it can be registered for the record only.</p>")
    parts += _section(
        "Gates", ["gate", "measured", "must be", "champion", "verdict", "why"], _gates(evaluation)
    )
    names = sorted({*evaluation.metrics, *evaluation.champion_metrics, *not_computed})
    parts += _section(
        "Metrics on the holdout",
        ["metric", "this model", "champion", ""],
        (
            [
                name,
                _number(evaluation.metrics.get(name)),
                _number(evaluation.champion_metrics.get(name)),
                escape(not_computed.get(name, "")),
            ]
            for name in names
        ),
    )
    if segments:
        parts += _section(
            "Segments",
            ["column", "value", "rows", "metric", "measured", ""],
            (
                [
                    escape(one.column),
                    escape(one.value),
                    f"{one.rows:,}",
                    one.metric,
                    _number(one.measured),
                    escape(one.reason or ""),
                ]
                for one in segments
            ),
        )
    facts = {
        "model": evaluation.model_digest,
        "data": training.snapshot_digest,
        "code": training.code_digest,
        "training": training.digest,
        "evaluation": evaluation.digest,
    }
    parts += _section(
        "Digests", ["of", "SHA-256"], ([name, f"<code>{digest}</code>"] for name, digest in facts.items())
    )
    return "\n".join(parts).encode()


def _gates(evaluation: Evaluation) -> Iterable[list[str]]:
    for gate in evaluation.gates:
        verdict = "passed" if gate.passed else "failed"
        yield [
            escape(gate.gate),
            _number(gate.measured),
            escape(gate.threshold),
            _number(gate.champion),
            f"<span class={verdict}>{verdict}</span>",
            escape(gate.reason or ""),
        ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _section(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A heading and a table; cells are HTML already."""
    head = "".join(f"<th>{escape(name)}" for name in header)
    body = (f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    return [f"<h2>{escape(title)}</h2><table><tr>{head}", *body, "</table>"]
