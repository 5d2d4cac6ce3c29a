"""Drift of a million rows of 20 columns against a stored reference.

    python benchmarks/drift.py [--rows N] [--rounds N] [--results FILE]

Ours profiles the rows from Parquet and compares them with the stored profile, by what the monitor calls (for
the whole monitor see `monitor.py`). Evidently's DataDriftPreset gets both tables, read before its clock
starts and after its imports. One hand-written pass counts each column's values in the tenths of the
reference, in Polars, streaming: it knows neither Kolmogorov-Smirnov nor Wasserstein. The other counts them in
a thousand bins, as many as our sketch has points, of which both could be told. Each runs in a process of its
own, in alternating rounds (Evidently in the first alone unless told otherwise); the exact distances are
SciPy's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import apart, asked_of, keep, table, timed

if TYPE_CHECKING:
    import polars as pl

    from ml_lifecycle.records import ColumnSpec

GROUP_ROWS = 131_072
FINE_BINS = 1_000
KS_BOUND, WASSERSTEIN_BOUND = 0.005, 0.02
TIMES_EVIDENTLY, TIMES_LIMIT, MEMORY_MIB = 30, 1.7, 400

NUMBERS = ("normal", "wider", "lognormal", "pareto", "beyond", "uniform", "zeros", "rounded")
COUNTS = ("poisson", "hour", "day", "flag")
TEXTS = ("carrier", "origin", "route", "plane", "shop", "city")
BOOLS = ("night", "weekend")


def columns() -> tuple[ColumnSpec, ...]:
    from ml_lifecycle.records import ColumnSpec

    return (
        *(ColumnSpec(name, "float", nullable=True) for name in NUMBERS),
        *(ColumnSpec(name, "int") for name in COUNTS),
        *(ColumnSpec(name, "string") for name in TEXTS),
        *(ColumnSpec(name, "bool") for name in BOOLS),
    )


def make_rows(n: int, seed: int, by: float) -> pl.DataFrame:
    """Rows of twenty columns, moved ``by`` so much."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)

    def texts(values: int) -> pl.Series:
        share = 1 / (np.arange(values) + 3)
        drawn = rng.choice(values, n, p=share / share.sum())
        return pl.Series(drawn).cast(pl.String)

    made = pl.DataFrame(
        {
            "normal": rng.normal(by, 1, n),
            "wider": rng.normal(0, 1 + by, n),
            "lognormal": rng.lognormal(by, 1, n),
            "pareto": rng.pareto(2.5 - by, n),
            "beyond": np.where(rng.random(n) < by / 2, rng.normal(50, 5, n), rng.normal(0, 1, n)),
            "uniform": rng.random(n) * (1 + by),
            "zeros": np.where(rng.random(n) < 0.7 - by, 0, rng.exponential(1, n)),
            "rounded": rng.normal(by, 1, n).round(1),
            "poisson": rng.poisson(4 + by, n),
            "hour": (rng.random(n) * (18 + 9 * by)).astype(np.int64),
            "day": rng.integers(0, 7, n),
            "flag": (rng.random(n) < 0.3 + by).astype(np.int64),
            **{name: texts(count) for name, count in zip(TEXTS, (6, 20, 90, 300, 500, 900), strict=True)},
            "night": rng.random(n) < 0.3,
            "weekend": rng.random(n) < 0.28 + by,
        }
    )
    gaps = {name: rng.random(n) < share for name, share in (("wider", 0.1), ("uniform", 0.02))}
    return made.with_columns(
        pl.when(~pl.Series(gap)).then(pl.col(name)).alias(name) for name, gap in gaps.items()
    )


def make_files(folder: Path, rows: int) -> None:
    from ml_lifecycle.profiles.profiling import make_profile
    from ml_lifecycle.records import to_json

    for name, seed, by in (("reference", 1, 0.0), ("current", 2, 0.1)):
        frame = make_rows(rows, seed, by)
        frame.write_parquet(folder / f"{name}.parquet", row_group_size=GROUP_ROWS)
        if name == "reference":
            (folder / "profile.json").write_text(json.dumps(to_json(make_profile(frame, columns()))))
            for file, bins in (("edges", 10), ("fine_edges", FINE_BINS)):
                edges = {
                    column: sorted({*frame[column].drop_nulls().sort().gather(_ranks(frame[column], bins))})
                    for column in (*NUMBERS, *COUNTS)
                }
                (folder / f"{file}.json").write_text(json.dumps(edges))


def _ranks(values: pl.Series, bins: int) -> list[int]:
    last = values.len() - values.null_count() - 1
    return [round(last * step / bins) for step in range(bins + 1)]


def ours(folder: Path) -> dict[str, Any]:
    import polars as pl
    import scipy.special  # noqa: F401 - apart from the time, as Evidently's imports are

    from ml_lifecycle.profiles.drift import drift_findings
    from ml_lifecycle.profiles.profile import read_profile
    from ml_lifecycle.profiles.profiling import profile_batches

    def batches() -> Iterator[pl.DataFrame]:
        rows = pl.scan_parquet(folder / "current.parquet")
        for start in range(0, rows.select(pl.len()).collect().item(), GROUP_ROWS):
            yield rows.slice(start, GROUP_ROWS).collect()

    def work() -> dict[str, float]:
        reference = read_profile(json.loads((folder / "profile.json").read_text()))
        found = drift_findings(reference, profile_batches(batches(), columns()))
        return {f"{one.metric}:{one.column}": one.value for one in found if one.value is not None}

    return timed(work)


def by_hand(folder: Path) -> dict[str, Any]:
    import numpy as np
    import polars as pl

    def work() -> dict[str, float]:
        edges = json.loads((folder / "edges.json").read_text())
        scan = pl.scan_parquet(folder / "current.parquet")
        counted = scan.select(
            measure.alias(f"{name}:{key}")
            for name, cuts in edges.items()
            for key, measure in (
                ("count", pl.col(name).count()),
                ("mean", pl.col(name).mean()),
                ("std", pl.col(name).std()),
                *((str(cut), (pl.col(name) <= edge).sum()) for cut, edge in enumerate(cuts)),
            )
        )
        categories = [scan.group_by(name).len() for name in (*TEXTS, *BOOLS)]
        row = counted.collect(engine="streaming").row(0, named=True)
        for one in categories:
            one.collect(engine="streaming")
        found = {}
        for name, cuts in edges.items():
            below = [0, *(row[f"{name}:{cut}"] for cut in range(len(cuts))), row[f"{name}:count"]]
            found[name] = float(np.diff(below)[0])
        return found

    return timed(work)


def by_hand_fine(folder: Path) -> dict[str, Any]:
    """A histogram that tells of distances: a thousand bins a column."""
    import numpy as np
    import polars as pl

    def work() -> dict[str, float]:
        edges = json.loads((folder / "fine_edges.json").read_text())
        rows = pl.scan_parquet(folder / "current.parquet")
        counts = {name: np.zeros(len(cuts) + 1) for name, cuts in edges.items()}
        texts: dict[str, list[pl.DataFrame]] = {name: [] for name in (*TEXTS, *BOOLS)}
        for start in range(0, rows.select(pl.len()).collect().item(), GROUP_ROWS):
            batch = rows.slice(start, GROUP_ROWS).collect()
            found = batch.select(
                pl.lit(pl.Series(cuts, dtype=pl.Float64))
                .search_sorted(pl.col(name).drop_nulls().cast(pl.Float64))
                .implode()
                .alias(name)
                for name, cuts in edges.items()
            )
            for name, count in counts.items():
                count += np.bincount(found[name][0].to_numpy(), minlength=len(count))
            for name, parts in texts.items():
                parts.append(batch[name].value_counts())
        for name, parts in texts.items():
            pl.concat(parts).group_by(name).agg(pl.sum("count"))
        return {name: float(count[0]) for name, count in counts.items()}

    return timed(work)


def evidently(folder: Path) -> dict[str, Any]:
    import warnings

    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    warnings.simplefilter("ignore")
    definition = DataDefinition(numerical_columns=[*NUMBERS, *COUNTS], categorical_columns=[*TEXTS, *BOOLS])
    tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("current", "reference")]

    def work() -> str:
        current, reference = (Dataset.from_pandas(one, data_definition=definition) for one in tables)
        return str(len(Report([DataDriftPreset()]).run(current, reference).json()))

    return timed(work)


WORK = {"ours": ours, "by_hand": by_hand, "by_hand_fine": by_hand_fine, "evidently": evidently}


def exact(folder: Path) -> dict[str, tuple[float, float]]:
    """SciPy's KS and Wasserstein of each numeric column."""
    import polars as pl
    from scipy.stats import ks_2samp, wasserstein_distance

    found = {}
    for name in (*NUMBERS, *COUNTS):
        before, now = (
            pl.read_parquet(folder / f"{side}.parquet", columns=[name])[name].drop_nulls().to_numpy()
            for side in ("reference", "current")
        )
        statistic = ks_2samp(before, now, method="asymp").statistic
        found[name] = (float(statistic), float(wasserstein_distance(before, now)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evidently-rounds", type=int, default=1)
    asked = asked_of(parser, WORK)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in WORK}
        if asked.rows:
            make_files(folder, asked.rows)
            for number in range(asked.rounds):
                runs["ours"].append(apart("ours", folder))
                runs["by_hand"].append(apart("by_hand", folder))
                runs["by_hand_fine"].append(apart("by_hand_fine", folder))
                if number < asked.evidently_rounds:
                    runs["evidently"].append(apart("evidently", folder))
        distances = exact(folder) if asked.rows else {}
    return report(asked, runs, distances)


def report(
    asked: argparse.Namespace,
    runs: dict[str, list[dict[str, Any]]],
    distances: dict[str, tuple[float, float]],
) -> int:
    seconds = {
        kind: statistics.median(one["seconds"] for one in found) for kind, found in runs.items() if found
    }
    peaks = {kind: max(one["peak_mib"] for one in found) for kind, found in runs.items() if found}
    held = []
    if runs["ours"]:
        answer = runs["ours"][0]["answer"]
        errors = {
            column: (
                abs(answer[f"ks_statistic:{column}"] - ks),
                abs(answer[f"wasserstein_absolute:{column}"] / w - 1),
            )
            for column, (ks, w) in distances.items()
        }
        table(
            ("column", "KS exact", "off by", "Wasserstein exact", "off by"),
            [
                (
                    column,
                    f"{distances[column][0]:.4f}",
                    f"{ks:.5f}",
                    f"{distances[column][1]:.4f}",
                    f"{w:.3%}",
                )
                for column, (ks, w) in errors.items()
            ],
        )
        # Where nothing moved, there is nothing that 2 % could be taken of.
        moved = [column for column in errors if column != "day"]
        held += [
            max(ks for ks, _ in errors.values()) <= KS_BOUND,
            max(errors[column][1] for column in moved) <= WASSERSTEIN_BOUND,
            peaks["ours"] <= MEMORY_MIB,
            # Ten bins tell of neither distance, so they are no limit for what tells both.
            seconds["ours"] <= TIMES_LIMIT * seconds["by_hand_fine"],
        ]
        if "evidently" in seconds:
            held.append(seconds["evidently"] >= TIMES_EVIDENTLY * seconds["ours"])
    table(
        ("work", "seconds, median", "peak MiB", "times ours"),
        [
            (
                kind,
                f"{seconds[kind]:.2f}",
                f"{peaks[kind]:.0f}",
                f"{seconds[kind] / seconds.get('ours', 1):.2f}",
            )
            for kind in seconds
        ],
    )
    raw = {
        kind: [{k: v for k, v in one.items() if k != "answer"} for one in found]
        for kind, found in runs.items()
    }
    keep(asked.results, {"rows": asked.rows, **raw})
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
