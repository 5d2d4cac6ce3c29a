"""The monitor on ten million logged predictions, by segment, with their labels: the whole stage.

    python benchmarks/monitor.py [--predictions N] [--part-rows N] [--results FILE]

Writes a day of log as the server does, and the labels as a table of Parquet files in another order than they
were asked in; then runs the public `monitor()`, each time in a process of its own:

- the first time;
- a window that ends half an hour later, of which all but the new labels has been found before;
- an hour of it, whose numbers are held against exact ones: SciPy's and scikit-learn's on all of its rows.

What can be counted while the log is written (rows, labels, cohorts, sums) is held against the whole day's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import apart, asked_of, keep, table, timed
from drift import NUMBERS, columns, make_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from ml_lifecycle.records import ColumnSpec, Interval

SECONDS, MIB = 60, 1024
AUC_BOUND, KS_BOUND = 0.0005, 0.005
DAY = datetime(2026, 1, 5, tzinfo=UTC)
NEXT = DAY + timedelta(days=1)
DELAY = timedelta(hours=2)
HOUR = (DAY + timedelta(hours=9), DAY + timedelta(hours=10))
DIGEST = "0123456789ab" * 5 + "0123"
SEGMENTS = {"carrier": tuple("012345"), "weekend": ("true", "false")}
BLOCK = 500_000  # rows are drawn at once; each part is others of them


def logged_columns() -> tuple[ColumnSpec, ...]:
    wanted = {*NUMBERS[:6], "poisson", "hour", "carrier", "origin", "plane", "weekend"}
    return tuple(column for column in columns() if column.name in wanted)


def features(n: int, seed: int, by: float) -> pl.DataFrame:
    return make_rows(n, seed, by).select(column.name for column in logged_columns())


def score_of(normal: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.asarray(1 / (1 + np.exp(-normal)))


def make(folder: Path, predictions: int, part_rows: int) -> None:
    """The log, the labels, what is known of them exactly, and a training."""
    import numpy as np
    import polars as pl

    drawn = features(BLOCK, 3, 0.1)
    step = 86_400_000_000 // predictions
    target = folder / f"production/predictions/late/{DAY.date().isoformat()}"
    target.mkdir(parents=True)
    (folder / "labels").mkdir()
    sums = {"labelled": 0, "mature": 0, "known": 0, "positive": 0, "score": 0.0, "right": 0, "squared": 0.0}
    hours: list[pl.DataFrame] = []
    at_once = max(part_rows, 20_000 // part_rows * part_rows)
    for number, start in enumerate(range(0, predictions // part_rows * part_rows, at_once)):
        rng = np.random.default_rng(number)
        keys = np.arange(start, min(start + at_once, predictions // part_rows * part_rows))
        rows = drawn[rng.integers(0, BLOCK, len(keys))]
        moments = int(DAY.timestamp()) * 1_000_000 + keys * step
        score = score_of(rows["normal"].to_numpy())
        truth = rng.random(len(keys)) < score
        known = rng.random(len(keys)) < 0.9  # of the others nothing ever becomes known
        write_parts(target, number, part_rows, rows, keys, moments, score)
        labels = pl.DataFrame(
            {
                "flight": keys,
                "event_timestamp": pl.Series(moments).cast(pl.Datetime("us", "UTC")),
                "late": truth.astype(np.int64),
            }
        ).with_columns(known_at=pl.col("event_timestamp") + DELAY)
        # In another order than they were asked in, and each part beside later ones.
        labels.filter(known).sample(fraction=1, shuffle=True, seed=number).write_parquet(
            folder / f"labels/{(number * 7919) % 100_003:06d}-{number:06d}.parquet"
        )
        mature = known & (moments < int((NEXT - DELAY).timestamp()) * 1_000_000)
        sums["known"] += int(known.sum())
        sums["mature"] += int((moments < int((NEXT - DELAY).timestamp()) * 1_000_000).sum())
        sums["labelled"] += int(mature.sum())
        sums["positive"] += int(truth[mature].sum())
        sums["score"] += float(score[mature].sum())
        sums["right"] += int(((score >= 0.5) == truth)[mature].sum())
        sums["squared"] += float(((score - truth) ** 2)[mature].sum())
        inside = labels.with_columns(score=score, known=known, normal=rows["normal"]).filter(
            pl.col("event_timestamp").is_between(*HOUR, closed="left")
        )
        hours += [inside] if inside.height else []
    pl.concat(hours).write_parquet(folder / "hour.parquet")
    (folder / "sums.json").write_text(json.dumps(sums))
    make_training(folder)


def write_parts(
    target: Path,
    number: int,
    part_rows: int,
    rows: pl.DataFrame,
    keys: np.ndarray,
    moments: np.ndarray,
    score: np.ndarray,
) -> None:
    """As the server writes them: parts of one model, with structs, Enums and LZ4."""
    import numpy as np
    import polars as pl

    from ml_lifecycle.adapters.predictions import SCHEMA
    from ml_lifecycle.serving.log_frames import kind_of

    rng = np.random.default_rng(number)
    constants = {
        "endpoint": pl.lit("late", pl.Enum(["late"])),
        "route_revision": pl.lit(1, pl.Int64),
        "variant": pl.lit("champion", pl.Enum(["champion", "canary", "shadow", "standby"])),
        "returned": pl.lit(True),
        "model_version": pl.lit("1"),
        "model_digest": pl.lit(DIGEST, pl.Enum([DIGEST])),
        "features_from": pl.lit("request", pl.Enum(["request", "online_store"])),
        "status": pl.lit(200, pl.Int64),
    }
    outputs = pl.DataFrame(
        {"label": (score > 0.5).astype(np.int64), "probabilities": np.stack([1 - score, score], 1)}
    )
    times = pl.Series("event_time", moments).cast(pl.Datetime("us", "UTC"))
    frame = (
        pl.DataFrame(
            [
                pl.Series("prediction_id", rng.integers(0, 2**63, len(keys))).cast(pl.String),
                times.dt.offset_by("1s").alias("received_at"),
                times,
                pl.Series("entity_keys", [f'{{"flight":{key}}}' for key in keys]),
                pl.Series("latency_ms", rng.gamma(2, 3, len(keys))),
                pl.Series("row", np.zeros(len(keys), np.int64)),
                rows.to_struct("features"),
                outputs.with_columns(pl.col("probabilities").arr.to_list()).to_struct("outputs"),
                pl.Series("score", score),
            ]
        )
        .with_columns(**constants)
        .select(tuple(SCHEMA))
    )
    kind = kind_of(DIGEST, frame)
    for part, start in enumerate(range(0, len(keys), part_rows), int(keys[0]) // part_rows):
        written = frame[start : start + part_rows]
        name = f"{written['received_at'][0]:%Y%m%dT%H%M%S%f}-bench-{part:06d}-{kind}.parquet"
        written.write_parquet(target / name, compression="lz4", statistics=False)


def make_training(folder: Path) -> None:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.profiles.profile import SCORE_COLUMN
    from ml_lifecycle.profiles.profiling import make_profile
    from ml_lifecycle.records import ColumnSpec, Run, Training, TrainingSet, to_json

    lake, rows = Lake(str(folder / "lake")), features(200_000, 4, 0.0)
    run = Run("late", "train", DAY, interval(DAY - timedelta(days=1), DAY))
    training_set = TrainingSet(
        run=run, digest="ts", path="training_sets/late/ts", snapshot_digest="s", code_digest="c",
        train_path="training_sets/late/ts/train.parquet", holdout_path="", train_rows=rows.height,
        holdout_rows=0, train_end=DAY, holdout=interval(DAY, DAY), columns=logged_columns(),
        label_column="late", entity_keys=("flight",),
    )  # fmt: skip
    with lake.writing(training_set.train_path) as file:
        rows.write_parquet(file)
    lake.write_json(f"{training_set.path}/manifest.json", to_json(training_set))
    training = Training(
        run=run, digest="tr", path="training/late/tr", attempt=1,
        training_set_path=f"{training_set.path}/manifest.json", snapshot_digest="s", code_digest="c",
        spec_digest="d", train_end=DAY, model_path="", model_digest=DIGEST, columns=logged_columns(),
        classes=("0", "1"), reference_path="", profile_path="training/late/tr/profile.json",
        metrics_path="", parameters={}, metrics={}, packages={}, resources={},
    )  # fmt: skip
    scored = rows.with_columns((1 / (1 + (-rows["normal"]).exp())).alias(SCORE_COLUMN))
    profile = make_profile(scored, (*logged_columns(), ColumnSpec(SCORE_COLUMN, "float")), SEGMENTS)
    lake.write_json(training.profile_path, to_json(profile))
    lake.write_json(f"{training.path}/manifest.json", to_json(training))


def interval(start: datetime, end: datetime) -> Interval:
    from ml_lifecycle.records import Interval

    return Interval(start, end)


def monitored(folder: Path, start: datetime, end: datetime, as_of: datetime) -> dict[str, Any]:
    """One run of the public stage; what it imports is in the time."""

    def work() -> dict[str, Any]:
        import polars as pl

        from ml_lifecycle.adapters.lake import Lake
        from ml_lifecycle.records import Run, Training, from_json
        from ml_lifecycle.spec.model import ModelSpec
        from ml_lifecycle.stages.monitor import monitor

        environment = {"server": "s", "lake": "l", "online_store": "o"}
        spec = ModelSpec.model_validate(
            {
                "spec": 1, "name": "late", "description": "Late arrivals.", "task": "binary", "owner": "o",
                "sources": {"flights": {"uri": "flights/*.parquet"}},
                "labels": {"column": "late", "keys": ["flight"], "delay": "2h"},
                "features": {"service": "late"},
                "training": {"data": {"start": "2013-01-01T00:00:00Z", "holdout": "14d"}},
                "evaluation": {"gates": [{"metric": "skill", "min": 0}]},
                "approvers": {"users": ["alice"]},
                "environments": {"staging": environment, "production": environment},
                "monitoring": {"alerts": [{"metric": "psi", "above": 0.1}], "segments": SEGMENTS},
            }
        )  # fmt: skip
        lake = Lake(str(folder / "lake"))
        training = from_json(Training, lake.read_json("training/late/tr/manifest.json"))
        made = monitor(
            spec,
            lake,
            Lake(str(folder / "production")),
            Run("late", "monitor", as_of, interval(start, end)),
            {DIGEST: training}.get,
            pl.scan_parquet(folder / "labels/*.parquet"),
            NEXT,
        )
        report = lake.read_json(made.report_path)
        broken = [one["error"] for one in report["findings"] if one["error"] is not None]
        assert not broken, broken
        assert made.html_path is not None
        findings = {
            f"{one['metric']}:{one['column']}:{one['segment']}": one["value"] for one in report["findings"]
        }
        return {"predictions": made.predictions, "labelled": made.labelled, "findings": findings,
                "cohorts": report["cohorts"]}  # fmt: skip

    return timed(work)


def whole(folder: Path) -> dict[str, Any]:
    return monitored(folder, DAY, NEXT, NEXT)


def later(folder: Path) -> dict[str, Any]:
    """Half an hour later."""
    return monitored(folder, DAY, NEXT + timedelta(minutes=30), NEXT + timedelta(minutes=30))


def hour(folder: Path) -> dict[str, Any]:
    return monitored(folder, *HOUR, NEXT)


WORK: dict[str, Callable[[Path], dict[str, Any]]] = {"first": whole, "later": later, "hour": hour}


def check_day(folder: Path, answer: dict[str, Any], predictions: int) -> None:
    """Against what was counted while the log was written."""
    sums, found = json.loads((folder / "sums.json").read_text()), answer["findings"]
    n = sums["labelled"]
    assert answer["predictions"] == predictions
    assert answer["labelled"] == n
    day = {"day": DAY.date().isoformat(), "predictions": predictions, "mature": sums["mature"]}
    # Of the young rows no label is known at midnight.
    assert answer["cohorts"] == [{**day, "labelled": n}], (answer["cohorts"], day)
    for metric, exact in (
        ("label_coverage", n / sums["mature"]),
        ("label_mean", sums["positive"] / n),
        ("mean_error", (sums["score"] - sums["positive"]) / n),
        ("accuracy", sums["right"] / n),
        ("brier", sums["squared"] / n),
    ):
        assert abs(found[f"{metric}:None:None"] - exact) < 1e-9, (metric, found[f"{metric}:None:None"], exact)
    parts = {name: found[f"volume:None:{name}"] for name in ("weekend=true", "weekend=false")}
    assert sum(parts.values()) == predictions, parts


def check_hour(folder: Path, answer: dict[str, Any]) -> dict[str, float]:
    """An hour's numbers and how far they are from exact ones."""
    import polars as pl
    from scipy.stats import ks_2samp, wasserstein_distance
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    rows, found = pl.read_parquet(folder / "hour.parquet"), answer["findings"]
    known = rows.filter("known")
    truth, score = known["late"].to_numpy(), known["score"].to_numpy()
    before = features(200_000, 4, 0.0)["normal"].to_numpy()
    now = rows["normal"].to_numpy()
    apart = wasserstein_distance(before, now)
    off = {
        "rows": answer["predictions"] - rows.height,
        "labels": answer["labelled"] - known.height,
        "roc_auc": found["roc_auc:None:None"] - roc_auc_score(truth, score),
        "pr_auc": found["pr_auc:None:None"] - average_precision_score(truth, score),
        "log_loss": found["log_loss:None:None"] - log_loss(truth, score),
        "ks_statistic": found["ks_statistic:normal:None"] - ks_2samp(before, now, method="asymp").statistic,
        "wasserstein": found["wasserstein_absolute:normal:None"] / apart - 1,
    }
    assert off["rows"] == off["labels"] == 0, off
    assert max(abs(off[name]) for name in ("roc_auc", "pr_auc", "log_loss")) < AUC_BOUND, off
    assert abs(off["ks_statistic"]) < KS_BOUND, off
    assert abs(off["wasserstein"]) < 0.02, off
    return off


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--predictions", type=int, default=10_000_000)
    parser.add_argument("--part-rows", type=int, default=20_000)
    asked = asked_of(parser, WORK)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        make(folder, asked.predictions, asked.part_rows)
        size = sum(file.stat().st_size for file in (folder / "production").rglob("*.parquet"))
        print(f"· written in {time.perf_counter() - began:.0f} s, {size / 2**20:.0f} MiB", file=sys.stderr)
        runs = {kind: apart(kind, folder) for kind in WORK}
        kept = sum(
            one.stat().st_size for one in (folder / "lake/monitoring/late/stretches").rglob("*.parquet")
        )
        print(f"· kept of stretches: {kept / 2**20:.1f} MiB", file=sys.stderr)
        check_day(folder, runs["first"]["answer"], asked.predictions // asked.part_rows * asked.part_rows)
        off = check_hour(folder, runs["hour"]["answer"])
    table(
        ("run", "s", "peak MiB"),
        [(kind, f"{one['seconds']:.1f}", f"{one['peak_mib']:.0f}") for kind, one in runs.items()],
    )
    table(("of an hour", "off by"), [(key, f"{value:.2g}") for key, value in off.items()])
    raw = {kind: {k: v for k, v in one.items() if k != "answer"} for kind, one in runs.items()}
    told = {"predictions": asked.predictions, "part_rows": asked.part_rows, "log_bytes": size, "off": off}
    keep(asked.results, {**told, "kept_bytes": kept, **raw})
    peak = max(one["peak_mib"] for one in runs.values())
    return 0 if runs["first"]["seconds"] <= SECONDS and peak <= MIB else 1


if __name__ == "__main__":
    sys.exit(main())
