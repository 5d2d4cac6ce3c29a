"""How soon the next pod has a changed file of a model folder.

    python benchmarks/code_package.py

Times what the train task does about the code before it launches the pod, for ``flight_delay``: the folder
is read and digested, and the package goes into the lake if it is not there yet. Beside it the least that
could be done: the same files zipped and written once. No image is built: that is all there is to wait for.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from common import MODEL, table

from ml_lifecycle.adapters.lake import Lake, sha256
from ml_lifecycle.spec.folder import load_folder, pack_folder

RUNS = 21
LIMIT_MS = 1000.0


def ours(lake: Lake, folder: Path) -> str:
    """What ``plan_training`` does about the code; returns its digest."""
    digest = load_folder(folder).code_digest
    path = f"code/{digest}.zip"
    if not lake.exists(path):
        package = pack_folder(folder)
        assert sha256(package) == digest
        lake.write_bytes(path, package)
    return digest


def least(target: Path, folder: Path) -> None:
    """Zip and write."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(folder))


def median_ms(work: Callable[[int], object]) -> float:
    """Median wall clock of calls with rising numbers."""
    spent = []
    for run in range(RUNS):
        began = time.perf_counter()
        work(run)
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def main() -> int:
    """Measure, print, and say by the exit code whether the limit holds."""
    with tempfile.TemporaryDirectory(prefix="packaging-") as temporary:
        root = Path(temporary)
        folder = root / MODEL.name
        shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("__pycache__"))
        lake, digests = Lake(str(root / "lake")), {ours(Lake(str(root / "lake")), folder)}
        source = (folder / "training.py").read_text()

        def change(run: int) -> None:
            (folder / "training.py").write_text(f"{source}\n# {run}\n")
            digests.add(ours(lake, folder))

        floor = median_ms(lambda run: least(root / f"{run}.zip", folder))
        changed = median_ms(change)
        unchanged = median_ms(lambda run: digests.add(ours(lake, folder)))
        packages = len(list(lake.list("code")))
    rows = [
        ("a file changed, ours", f"{changed:.1f}", f"{LIMIT_MS:.0f}"),
        ("nothing changed, ours", f"{unchanged:.1f}", ""),
        ("zipped and written, no questions asked", f"{floor:.1f}", ""),
    ]
    table((f"packaging {MODEL.name}", f"ms, median of {RUNS}", "limit"), rows)
    print(f"{packages} packages in the lake for {RUNS + 1} states of the folder")
    return int(changed > LIMIT_MS or packages != RUNS + 1 or len(digests) != RUNS + 1)


if __name__ == "__main__":
    sys.exit(main())
