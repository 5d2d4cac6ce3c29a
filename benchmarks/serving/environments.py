"""An environment of its own for each peer, from pinned requirements.

    python benchmarks/serving/environments.py [--cache FOLDER] [--lock] [PEER …]

They are made once, under ``--cache`` or ``ML_LIFECYCLE_BENCH_CACHE``, outside the repository. ``--lock`` pins
anew what ``DIRECT`` asks for, in ``peers/<peer>.txt``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
CACHE_VARIABLE = "ML_LIFECYCLE_BENCH_CACHE"
# One release of ONNX Runtime for all: the session is not what is compared.
_SESSION = ("numpy", "onnxruntime==1.31.1")
# Uvicorn takes them where they are there, and is faster with them.
_UVICORN = ("uvloop", "httptools")
DIRECT = {
    "mlserver": ("mlserver==1.7.1", *_UVICORN, *_SESSION),
    "kserve": ("kserve==0.21.0", *_UVICORN, *_SESSION),
    "mlflow": ("mlflow==3.17.2", "onnx", *_UVICORN, *_SESSION),
    "bentoml": ("bentoml", *_UVICORN, *_SESSION),
    "bare": ("granian==2.8.7", "msgspec", "orjson", "uvloop", *_SESSION),
}


class EnvironmentMissingError(Exception):
    """A peer's environment cannot be made. Retry: when what it needs can be reached."""


def cache(given: str | None) -> Path:
    """The folder of the environments.

    :raises SystemExit: none was named. Retry: no.
    """
    folder = given or os.environ.get(CACHE_VARIABLE)
    if not folder:
        raise SystemExit(f"where are the peers' environments? Give --cache FOLDER or set {CACHE_VARIABLE}")
    return Path(folder).expanduser().resolve()


def python_of(peer: str, folder: Path) -> str:
    """The peer's interpreter; its environment is made if it is not there, or its pins have changed.

    :raises EnvironmentMissingError: it cannot be made. Retry: when what it needs can be reached.
    """
    pins = (PEERS / f"{peer}.txt").read_text()
    home = folder / peer
    made = home / "pins.txt"
    python = str(home / "bin" / "python")
    if made.exists() and made.read_text() == pins:
        return python
    shutil.rmtree(home, ignore_errors=True)
    _uv("venv", "--python", sys.executable, str(home))
    _uv("pip", "install", "--python", python, "--requirement", str(PEERS / f"{peer}.txt"))
    # Else every process would compile what it imports anew where bytecode is not written.
    subprocess.run([python, "-m", "compileall", "-q", str(home / "lib")], check=False)
    made.write_text(pins)
    return python


def lock(peer: str) -> None:
    """Pin what the peer needs.

    :raises EnvironmentMissingError: it cannot be resolved. Retry: when what it needs can be reached.
    """
    pins = _uv(
        *("pip", "compile", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--python", sys.executable, "-"),
        stdin="\n".join(DIRECT[peer]),
    )
    (PEERS / f"{peer}.txt").write_text(pins)


def version_of(peer: str) -> str:
    """The peer's release, as pinned."""
    package = DIRECT[peer][0].partition("==")[0]
    lines = (PEERS / f"{peer}.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def _uv(*arguments: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(["uv", *arguments], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentMissingError("uv is not on the path; `pip install uv`") from error
    if done.returncode:
        raise EnvironmentMissingError(f"uv {' '.join(arguments[:2])}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main() -> int:
    """Make the environments; say which could not be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", help=f"folder of the environments (default: {CACHE_VARIABLE})")
    parser.add_argument("--lock", action="store_true", help="pin anew")
    parser.add_argument("peer", nargs="*", help=f"of {', '.join(DIRECT)} (default: all)")
    options = parser.parse_args()
    missing = 0
    for peer in options.peer or DIRECT:
        try:
            if options.lock:
                lock(peer)
            print(f"{version_of(peer)}: {python_of(peer, cache(options.cache))}", flush=True)
        except EnvironmentMissingError as error:
            missing += 1
            print(f"{peer}: {error}", file=sys.stderr, flush=True)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
