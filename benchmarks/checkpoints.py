"""What checkpoints cost: a training in segments, at the default interval, against the bare call.

    python benchmarks/checkpoints.py [TRAINING …]

Bare is the framework's own call, or the same loop without checkpoints. Both run at the same time, in a
process each with one thread, so that whatever else the machine does slows both. Of three such pairs the
median counts, in CPU seconds; what the checkpoints waited for the disk is added. Where nothing is drawn both
must answer the same, bit for bit; forests and networks draw otherwise, and must be as good.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from common import table

if TYPE_CHECKING:
    from ml_lifecycle.training.checkpoints import Checkpoints

LIMIT = 0.03
PAIRS = 3
COLUMNS = 30
SAME_SCORE = 0.01
# scikit-learn bins all rows and asks all trees again at each one: there is no public way around it.
NO_LIMIT = ("histogram boosting",)


def make_data(rows: int) -> tuple[Any, Any]:
    """Numbers, and what they say with some noise."""
    import numpy as np

    rng = np.random.default_rng(0)
    data = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    return data, (data[:, 0] + data[:, 1] * data[:, 2] + rng.normal(size=rows) > 0).astype(np.int64)


def estimator(name: str) -> tuple[Any, int]:
    """One of a usual size, and how many rows it is fitted on."""
    if name == "xgboost":
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=500, learning_rate=0.05, n_jobs=1), 800_000
    if name == "lightgbm":
        from lightgbm import LGBMClassifier

        quiet: dict[str, Any] = {"verbose": -1, "n_jobs": 1, "force_row_wise": True, "deterministic": True}
        return LGBMClassifier(n_estimators=500, learning_rate=0.05, **quiet), 800_000
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
    )

    if name == "forest":
        return RandomForestClassifier(200, min_samples_leaf=5), 20_000
    if name == "gradient boosting":
        return GradientBoostingClassifier(n_estimators=200), 20_000
    return HistGradientBoostingClassifier(max_iter=500, early_stopping=False), 200_000


def fit(name: str, checkpoints: Checkpoints | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The training, and what it predicts for other rows."""
    from ml_lifecycle.training.frameworks import fit_in_segments

    model, rows = estimator(name)
    data, labels = make_data(rows)
    made: list[Any] = []

    def train() -> None:
        if checkpoints is None:
            made.append(model.fit(data, labels))
        else:
            made.append(fit_in_segments(model, data, labels, checkpoints))

    return train, lambda: made[0].predict_proba(make_data(10_000)[0])[:, 1]


def network(checkpoints: Checkpoints | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of a small network: twenty epochs, so a checkpoint an epoch."""
    import torch

    from ml_lifecycle.training.frameworks import TorchState

    rows, batch, epochs, width = 100_000, 1024, 20, 512
    data, labels = (torch.from_numpy(part) for part in make_data(rows))
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        *(torch.nn.Linear(COLUMNS, width), torch.nn.ReLU(), torch.nn.Dropout(0.1)),
        *(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)),
    )
    optimizer = torch.optim.Adam(module.parameters())

    def epoch() -> None:
        for part in torch.randperm(rows).split(batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(data[part]), labels[part])
            loss.backward()
            optimizer.step()

    def train() -> None:
        if checkpoints is None:
            for _ in range(epochs):
                epoch()
            return
        state = TorchState(checkpoints, module, optimizer=optimizer)
        for segment in checkpoints.segments(state, steps=epochs):
            for _ in segment:
                epoch()

    def answers() -> Any:
        module.eval()
        with torch.no_grad():
            return module(torch.from_numpy(make_data(10_000)[0])).softmax(1)[:, 1].numpy()

    return train, answers


TRAININGS = ("forest", "gradient boosting", "xgboost", "lightgbm", "network", "histogram boosting")


def one(name: str, scratch: Path | None) -> int:
    """One training in this process; prints seconds, answers and what the checkpoints came to."""
    import numpy as np

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.training.checkpoints import Checkpoints

    checkpoints = None
    if scratch is not None:
        lake = Lake(str(scratch / "lake"))
        checkpoints = Checkpoints(lake, "checkpoints", 1, 0, scratch=scratch / "scratch")
    train, answers = network(checkpoints) if name == "network" else fit(name, checkpoints)
    began, cpu = time.monotonic(), time.process_time()
    train()
    found: dict[str, Any] = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - began}
    if checkpoints is not None:
        costs = checkpoints.costs
        assert (costs.failed, costs.resumed_steps) == (0, 0)
        found["checkpoints"] = {"written": costs.written, "seconds": costs.seconds, "cpu": costs.cpu_seconds}
        found["megabytes"] = max(lake.sizes("checkpoints").values()) / 1e6
    predicted = np.asarray(answers(), dtype=np.float64)
    found["answers"] = hashlib.sha256(predicted.tobytes()).hexdigest()
    found["score"] = float(np.mean((predicted > 0.5) == make_data(10_000)[1]))
    print("MEASURED " + json.dumps(found), flush=True)
    return 0


def pair(name: str) -> list[dict[str, Any]]:
    """:func:`one` bare and in segments, at the same time."""
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as scratch:
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "one", name, *more],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for more in ([], [scratch])
        ]
        outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{name} failed")
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("MEASURED ")]
    found: list[dict[str, Any]] = [json.loads(line.removeprefix("MEASURED ")) for line in lines]
    seconds = " and ".join(f"{one['cpu']:.1f}" for one in found)
    print(f"· {name}: {seconds} s CPU", file=sys.stderr, flush=True)
    return found


def measure(name: str) -> tuple[list[object], bool]:
    """A row of the table, and whether the limit holds."""
    pairs = [pair(name) for _ in range(PAIRS)]
    bare, ours = pairs[0]
    if name in ("forest", "network"):
        assert abs(bare["score"] - ours["score"]) < SAME_SCORE, (bare["score"], ours["score"])
    else:
        assert bare["answers"] == ours["answers"], name
    assert len({ours["answers"] for _, ours in pairs}) == 1, "the same job, another model"
    saving = median(ours["checkpoints"]["cpu"] / bare["cpu"] for bare, ours in pairs)
    waiting = median(
        (ours["checkpoints"]["seconds"] - ours["checkpoints"]["cpu"]) / ours["wall"] for _, ours in pairs
    )
    computing = median(ours["cpu"] / bare["cpu"] - 1 for bare, ours in pairs)
    row: list[object] = [
        *(name, f"{median(bare['cpu'] for bare, _ in pairs):.1f}", ours["checkpoints"]["written"]),
        *(f"{ours['megabytes']:.1f}", f"{100 * saving:.1f}", f"{100 * waiting:.1f}"),
        f"{100 * (computing + waiting):.1f}",
        "" if name in NO_LIMIT else f"{100 * LIMIT:.0f}",
    ]
    return row, name in NO_LIMIT or computing + waiting <= LIMIT


def main() -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    if sys.argv[1:2] == ["one"]:
        return one(sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    found = [measure(name) for name in sys.argv[1:] or TRAININGS]
    table(
        ["training", "bare CPU s", "segments", "MB", "saving, loading %", "waiting %", "in all %", "limit %"],
        [row for row, _ in found],
    )
    return int(not all(holds for _, holds in found))


if __name__ == "__main__":
    sys.exit(main())
