"""``python -m ml_lifecycle.demo --access FILE``: play 2013 on a stack that runs already.

``FILE`` holds the fields of :class:`~ml_lifecycle.demo.world.Access` as JSON. The stack must be fresh: no
champion, nothing landed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from ml_lifecycle.demo.airflow import DemoError
from ml_lifecycle.demo.play import WINDOWS, play
from ml_lifecycle.demo.world import Access
from ml_lifecycle.errors import LifecycleError


def read_access(path: Path) -> Access:
    """How to reach the stack.

    :raises DemoError: the file is not of that form. Retry: no.
    """
    try:
        fields = json.loads(path.read_text())
        return Access(**{**fields, "model_folder": Path(fields["model_folder"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DemoError(f"{path} does not say how to reach a stack: {error!r}") from error


def wait_for_stack(access: Access, timeout: float = 900) -> None:
    """Return when Airflow's components and the production server answer.

    :raises DemoError: they did not within ``timeout`` seconds. Retry: perhaps; it says which.
    """
    deadline = time.monotonic() + timeout
    while missing := list(_missing(access)):
        if time.monotonic() > deadline:
            raise DemoError(f"not there after {timeout:.0f} s: {', '.join(missing)}")
        time.sleep(2)


def _missing(access: Access) -> Iterator[str]:
    with httpx.Client(timeout=10, trust_env=False) as client:
        try:
            health = client.get(f"{access.airflow_url}/api/v2/monitor/health").raise_for_status().json()
        except httpx.HTTPError as error:
            yield f"Airflow at {access.airflow_url} ({error!r})"
        else:
            parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
            yield from (name for name in parts if health[name]["status"] != "healthy")
        try:
            client.get(f"{access.production_url}/v2/health/live").raise_for_status()
        except httpx.HTTPError as error:
            yield f"the production server at {access.production_url} ({error!r})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.demo", description=__doc__)
    parser.add_argument("--access", type=Path, required=True, help="how to reach the stack, as JSON")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of two weeks (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        access = read_access(chosen.access)
        wait_for_stack(access)
        return play(access, chosen.windows)
    except LifecycleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
