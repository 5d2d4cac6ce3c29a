"""Rows a second and peak memory of batch scoring, beside the bare ONNX session on rows that are in memory.

    python benchmarks/batch_scoring.py [ROWS]          (10,000,000)

Two tables in 20 Parquet files each. `numbers`: 12 columns of float64 and an id, and a model of 100 trees with
31 leaves. `texts`, a fifth of the rows: two text columns with 20 and 500 values, eight of float64, one each
of whole numbers and truth values, and such a model behind an ordinal encoder.

Ours reads the files (their digests included), scores them and writes the answers, with digests, to the disk.
The bare side has all rows in memory, in the arrays and batches that the session is fed, before its clock
starts; it keeps the answers in memory. Both run one thread of ONNX Runtime, each in a process of its own on
one and the same core, in alternating rounds. Every answer of ours is compared with the bare ones.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.records import ColumnSpec, Training
    from ml_lifecycle.spec.model import ModelSpec

SHARE, MEMORY = 0.8, 2**30
FILES, ROUNDS, TRAINED_ON = 20, 3, 100_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = {"numbers": 1, "texts": 5}  # name → as many rows as one in …


def columns(table: str) -> tuple[ColumnSpec, ...]:
    from ml_lifecycle.records import ColumnSpec

    if table == "numbers":
        return tuple(ColumnSpec(f"x{number:02d}", "float") for number in range(12))
    return (
        *(ColumnSpec(f"x{number:02d}", "float") for number in range(8)),
        ColumnSpec("hour", "int"),
        ColumnSpec("weekend", "bool"),
        ColumnSpec("city", "string"),
        ColumnSpec("shop", "string"),
    )


def make_rows(table: str, rows: int, seed: int) -> pl.DataFrame:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {"id": np.arange(rows) + seed * rows}
    for column in columns(table):
        if column.type == "float":
            made[column.name] = rng.normal(0, 1, rows)
        elif column.type == "int":
            made[column.name] = rng.integers(0, 24, rows)
        elif column.type == "bool":
            made[column.name] = rng.random(rows) < 0.3
        else:
            values = [f"{column.name}-{k:03d}" for k in range(20 if column.name == "city" else 500)]
            made[column.name] = pl.Series(values).gather(rng.integers(0, len(values), rows))
    return pl.DataFrame(made)


def make_spec() -> ModelSpec:
    from ml_lifecycle.spec.model import ModelSpec

    place = {"server": "s", "lake": "l", "online_store": "o"}
    return ModelSpec.model_validate(
        {
            "spec": 1, "name": "bench", "description": "", "task": "binary", "owner": "benchmarks",
            "sources": {"rows": {"uri": "rows.parquet"}}, "labels": {"column": "label", "keys": ["id"]},
            "features": {"service": "bench"},
            "training": {"data": {"start": NOW.isoformat(), "holdout": "1d"}},
            "evaluation": {"gates": [{"metric": "skill", "min": 0}]}, "approvers": {"users": ["alice"]},
            "environments": {"staging": place, "production": place},
        }
    )  # fmt: skip


def prepare(lake: Lake, table: str, rows: int) -> None:
    """The files and the model."""
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    from ml_lifecycle.adapters.onnx import as_served, convert
    from ml_lifecycle.adapters.tables import write_parquet

    for number in range(FILES):
        part = make_rows(table, rows // FILES, number + 1)
        write_parquet(lake, f"due/{table}/{number:02d}.parquet", part)
    sample, spec = make_rows(table, TRAINED_ON, 0), columns(table)
    x = sample.select(f"x{number:02d}" for number in range(8)).to_numpy()
    label = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3:].sum(axis=1) / 3 > 0
    texts = [column.name for column in spec if column.type == "string"]
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    encode = ColumnTransformer([("texts", ordinal, texts)] if texts else [], remainder="passthrough")
    model = HistGradientBoostingClassifier(
        max_iter=100, max_leaf_nodes=31, early_stopping=False, random_state=0
    )
    fitted = make_pipeline(encode, model).fit(as_served(sample, spec).to_pandas(), label.astype(int))
    lake.write_bytes(f"models/{table}.onnx", convert(fitted, spec, "binary"))


def paths(lake: Lake, table: str) -> list[str]:
    return [path for path in lake.list(f"due/{table}") if path.endswith(".parquet")]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> dict[str, float]:
    now = clocks()
    return {"seconds": now[0] - began[0], "cpu": now[1] - began[1]}


def bare(lake: Lake, table: str, answers: Path) -> dict[str, Any]:
    import numpy as np

    from ml_lifecycle.adapters.onnx import as_served, feeds, open_session
    from ml_lifecycle.stages.score import BATCH_ROWS

    fed = [
        {
            name: np.ascontiguousarray(values)
            for name, values in feeds(as_served(batch, columns(table))).items()
        }
        for path in paths(lake, table)
        for batch in lake.scan([path]).collect().iter_slices(BATCH_ROWS)
    ]
    session = open_session(lake.read_bytes(f"models/{table}.onnx"))
    session.run(None, {name: values[:100] for name, values in fed[0].items()})
    began = clocks()
    answered = [session.run(["label", "probabilities"], batch) for batch in fed]
    spent = since(began)
    np.savez(answers, *(np.concatenate([one[place] for one in answered]) for place in range(2)))
    return {**spent, "rows": sum(len(one[0]) for one in answered)}


def ours(lake: Lake, table: str) -> dict[str, Any]:
    import onnxruntime  # noqa: F401 - on neither side's clock

    from ml_lifecycle.records import Interval, Run
    from ml_lifecycle.stages.score import score
    from ml_lifecycle.stages.score_partitions import lake_partitions

    spec, training = make_spec(), _training(lake, table)
    began = clocks()
    run = Run("bench", "run", NOW, Interval(NOW, NOW))
    scoring = score(spec, lake, run, training, "1", lake_partitions(lake, f"due/{table}"))
    return {**since(began), "rows": scoring.rows, "files": [file.path for file in scoring.files]}


def _training(lake: Lake, table: str) -> Training:
    from ml_lifecycle.adapters.lake import sha256
    from ml_lifecycle.records import Interval, Run, Training

    return Training(
        run=Run("bench", "run", NOW, Interval(NOW, NOW)), digest="t", path="models", attempt=1,
        training_set_path="", snapshot_digest="", code_digest="", spec_digest="", train_end=NOW,
        metrics_path="", model_path=f"models/{table}.onnx",
        model_digest=sha256(lake.read_bytes(f"models/{table}.onnx")), columns=columns(table),
        classes=("0", "1"), reference_path="", profile_path="", parameters={}, metrics={}, packages={},
        resources={},
    )  # fmt: skip


def compare(lake: Lake, table: str, answers: Path, files: list[str]) -> int:
    """Rows whose answers are the bare ones, which must be all."""
    import numpy as np

    read = np.load(answers)
    label, probabilities = read["arr_0"], read["arr_1"]
    at = 0
    for file, source in zip(files, paths(lake, table), strict=True):
        scored = lake.scan([file]).collect()
        rows = slice(at, at + scored.height)
        flat = scored["probabilities"].explode().to_numpy().reshape(-1, 2)
        assert np.array_equal(flat, probabilities[rows]), file
        assert np.array_equal(scored["label"].to_numpy(), label[rows]), file
        assert np.array_equal(scored["score"].to_numpy(), probabilities[rows, 1].astype(float)), file
        assert scored["id"].equals(lake.scan([source]).select("id").collect()["id"]), file
        at += scored.height
    assert at == len(label)
    return at


def one_round(root: Path, side: str, table: str) -> dict[str, Any]:
    """Rows a second and peak bytes of a side, in a process of its own on one core."""
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, __file__, "side", str(root), side, table]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    found["rate"] = found["rows"] / found["seconds"]
    return {**found, "peak": usage.ru_maxrss * 1024}


def run_side(root: Path, side: str, table: str) -> None:
    from ml_lifecycle.adapters.lake import Lake

    lake = Lake(str(root / "lake"))
    found = bare(lake, table, root / f"{table}.npz") if side == "bare" else ours(lake, table)
    print(json.dumps(found))


def rounds(root: Path, table: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    import shutil

    from ml_lifecycle.adapters.lake import Lake

    for number in range(ROUNDS):
        for made in ("scores", "scored_partitions"):
            shutil.rmtree(root / "lake" / made, ignore_errors=True)
        sides = ("bare", "ours") if number % 2 == 0 else ("ours", "bare")
        found = {side: one_round(root, side, table) for side in sides}
        same = compare(Lake(str(root / "lake")), table, root / f"{table}.npz", found["ours"]["files"])
        rates = " and ".join(f"{side} {found[side]['rate']:,.0f}" for side in ("bare", "ours"))
        print(
            f"{table} {number + 1}: {rates} rows/s, {same:,} answers the same",
            file=sys.stderr,
            flush=True,
        )
        yield found["bare"], found["ours"]


def main() -> int:
    """Measure, print, and say by the exit code whether the limits hold."""
    if sys.argv[1:2] == ["side"]:
        run_side(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
        return 0
    from common import table as show

    from ml_lifecycle.adapters.lake import Lake

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    shown, held = [], True
    with tempfile.TemporaryDirectory(prefix="batch-") as temporary:
        root = Path(temporary)
        for name, part in TABLES.items():
            prepare(Lake(str(root / "lake")), name, rows // part)
            measured = list(rounds(root, name))
            ratio = statistics.median(ours["rate"] / bare["rate"] for bare, ours in measured)
            of_cpu = statistics.median(bare["cpu"] / ours["cpu"] for bare, ours in measured)
            peak = max(ours["peak"] for _, ours in measured)
            held = held and ratio >= SHARE and peak <= MEMORY
            bare_rate, our_rate = (statistics.median(one[k]["rate"] for one in measured) for k in range(2))
            shown.append(
                (name, f"{rows // part:,}", f"{bare_rate:,.0f}", f"{our_rate:,.0f}", f"{ratio:.2f}",
                 f"{of_cpu:.2f}", f"{SHARE:.2f}", f"{max(bare['peak'] for bare, _ in measured) / 2**20:.0f}",
                 f"{peak / 2**20:.0f}", f"{MEMORY / 2**20:.0f}")
            )  # fmt: skip
    rates, peaks = ("bare rows/s", "ours rows/s", "share"), ("bare peak MiB", "ours", "limit")
    show(("table", "rows", *rates, "by CPU seconds", "at least", *peaks), shown)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
