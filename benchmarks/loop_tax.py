"""What Airflow adds: the same stages as one plain script, and as DAGs under the real scheduler.

    python benchmarks/loop_tax.py

The DAGs: the whole stack on a fresh state; training started by REST, its approval answered by REST soon after
it is asked for, a window of two weeks served and then monitored, a day scored. Seconds are what someone
outside waits, from the request to the end of the run. The plain script: the same calls in one process, which
pays its imports once, against model servers of its own; its time starts with the interpreter. Both work on
the same raw files, and must come to the same model, the same approved version and the same findings.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from common import running_stack, table

LIMIT = 2.0
AS_OF = datetime(2013, 5, 29, 8, tzinfo=UTC)
THINKING = 2.0
WINDOW, DAY = timedelta(days=14), timedelta(days=1)
TOKEN = "a token of the benchmark"
STAGES = {
    "train": ("ingest", "validate", "features", "fit", "train", "evaluate", "register"),
    "promote": (
        "evidence",
        "prepare_staging",
        "deploy_staging",
        "approve",
        "prepare_production",
        "deploy_production",
        "mark_champion",
    ),
    "monitor": ("ingest", "monitor"),
    "score": ("ingest", "validate", "materialise", "score"),
}


def dags(root: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """DAG → seconds under the scheduler, and the answers; what was served stays in ``root``."""
    from ml_lifecycle.demo.world import World
    from ml_lifecycle.records import Interval

    seconds: dict[str, float] = {}
    with running_stack(root) as (_, access):
        starter, approver = access.user("admin"), access.user("alice")
        world = World(access)
        world.land_until(AS_OF)

        def say(text: str) -> None:
            print(f"· {text}", file=sys.stderr, flush=True)

        def run(kind: str, run_id: str, conf: dict[str, Any]) -> None:
            began = time.monotonic()
            starter.trigger(f"flight_delay__{kind}", run_id, conf)
            starter.wait(f"flight_delay__{kind}", run_id, say)
            seconds[kind] = time.monotonic() - began

        run("train", "first", {"as_of": AS_OF.isoformat()})
        began = time.monotonic()
        version = starter.result("flight_delay__train", "first", "register")["version"]
        promotion = "flight_delay__promote", f"candidate__v{version}"
        starter.wait(
            *promotion,
            say,
            until=lambda tasks: any(task.state == "awaiting_input" for task in tasks),
        )
        # Airflow loses an answer that comes before its scheduler has seen the task's first process end, and
        # asks again after the retry delay. People think longer than that, and their time is not counted.
        time.sleep(THINKING)
        approver.answer(*promotion, "approve", "Approve", "the benchmark")
        starter.wait(*promotion, say)
        seconds["promote"] = time.monotonic() - began - THINKING

        world.serve(Interval(AS_OF, AS_OF + WINDOW))
        end = (AS_OF + WINDOW).isoformat()
        interval = {"start": AS_OF.isoformat(), "end": end}
        run("monitor", "window", {"as_of": end, "interval": interval})
        interval = {"start": (AS_OF + WINDOW - DAY).isoformat(), "end": end}
        run("score", "day", {"as_of": end, "interval": interval})
        monitored = starter.result("flight_delay__monitor", "window", "monitor")
        answers = {
            "model": starter.result("flight_delay__train", "first", "train")["model_digest"],
            "predictions": monitored["predictions"],
            "skill": monitored["metrics"]["skill"],
            "scored": starter.result("flight_delay__score", "day", "score")["rows"],
        }
    return seconds, answers


@contextmanager
def server(root: Path, environment: str) -> Iterator[str]:
    """A model server of the plain script's own; yields its URL."""
    (root / environment / "lake").mkdir(parents=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ml_lifecycle.serving", "--environment", environment, "--port", "0"),
            *("--lake", str(root / environment / "lake")),
            *("--online-store", f"sqlite:///{root / environment / 'online_store.db'}"),
        ],
        env={**os.environ, "ML_LIFECYCLE_SERVER_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" on ")[1].split()[0]
    finally:
        process.terminate()
        process.wait(20)


def prepare_plain(root: Path, played: Path) -> None:
    """The raw files and the traffic that the DAGs met, and empty databases as the stack has them."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from ml_lifecycle.ledger.database import Database

    landing = shutil.copytree(played / "lake" / "landing", root / "lake" / "landing")
    # Files of the served window come back before the monitor runs, as they came to the DAGs.
    (root / "later").mkdir()
    for path in [path for path in landing.glob("*/*.csv") if path.stem >= f"{AS_OF:%Y-%m-%dT%H%M}"]:
        (root / "later" / path.parent.name).mkdir(exist_ok=True)
        path.rename(root / "later" / path.parent.name / path.name)
    shutil.copytree(played / "production" / "lake" / "predictions", root / "predictions")
    Database(f"sqlite:///{root / 'lifecycle.db'}").migrate()
    SqlAlchemyStore(f"sqlite:///{root / 'mlflow.db'}", str(root / "mlruns"))


def plain(root: Path, servers: dict[str, str]) -> int:
    """The plain script: its own process; prints seconds by DAG and the answers."""
    from stages import until

    began = float(os.environ["BEGAN"])
    seconds = {}
    arguments: Any = {"servers": servers, "token": TOKEN}
    first = until(root, AS_OF, **arguments)
    window = until(root, AS_OF + WINDOW, WINDOW, **arguments)
    lives = {"train": first, "promote": first, "monitor": window, "score": until(root, AS_OF + WINDOW, DAY)}
    for kind, stages in STAGES.items():
        if kind == "monitor":
            paused = time.time()
            shutil.copytree(root / "later", root / "lake" / "landing", dirs_exist_ok=True)
            log = root / "production" / "lake" / "predictions"
            shutil.copytree(root / "predictions", log, dirs_exist_ok=True)
            began += time.time() - paused
        for stage in stages:
            made = time.time()
            lives[kind].call(stage)
            print(f"· plain {stage}: {time.time() - made:.1f} s", file=sys.stderr, flush=True)
        seconds[kind] = time.time() - began
        began = time.time()
    monitored = lives["monitor"].load("monitor")
    answers = {
        "model": first.load("train").model_digest,
        "predictions": monitored.predictions,
        "skill": monitored.metrics["skill"],
        "scored": lives["score"].load("score").rows,
    }
    print("MEASURED " + json.dumps([seconds, answers]), flush=True)
    return 0


def run_plain(root: Path, played: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """DAG → seconds of the plain script, and the answers."""
    prepare_plain(root, played)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(root, name)) for name in ("staging", "production")}
        done = subprocess.run(
            [sys.executable, __file__, "plain", str(root), json.dumps(servers)],
            # What a pod of one CPU has: other sums in the trees would make another model.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "BEGAN": repr(time.time())},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    line = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED "))
    seconds, answers = json.loads(line.removeprefix("MEASURED "))
    return seconds, answers


def main() -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    if sys.argv[1:2] == ["plain"]:
        return plain(Path(sys.argv[2]), json.loads(sys.argv[3]))
    with tempfile.TemporaryDirectory(prefix="tax-") as temporary:
        played = Path(temporary, "dags")
        scheduled, theirs = dags(played)
        scripted, ours = run_plain(Path(temporary, "plain"), played)
    rows = [(kind, scripted[kind], scheduled[kind]) for kind in STAGES]
    rows.append(("all", sum(scripted.values()), sum(scheduled.values())))
    table(
        ("DAG", "tasks", "plain script s", "DAGs s", "ratio", "limit"),
        [
            (
                kind,
                sum(map(len, STAGES.values())) if kind == "all" else len(STAGES[kind]),
                f"{one:.1f}",
                f"{other:.1f}",
                f"{other / one:.2f}",
                f"{LIMIT:.0f}" if kind == "all" else "",
            )
            for kind, one, other in rows
        ],
    )
    if theirs != ours:
        raise SystemExit(f"the two came to different answers:\n{theirs}\n{ours}")
    print(f"both: {ours}")
    return int(rows[-1][2] / rows[-1][1] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
