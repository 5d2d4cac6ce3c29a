"""``python -m ml_lifecycle.demo.landing FOLDER``: put the examples' raw files where models look for them.

``FOLDER`` is the folder ``landing`` of the lake that the stages share. What is there already is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ml_lifecycle.demo import digits, flights
from ml_lifecycle.errors import LifecycleError


def land_examples(landing: Path, say: Callable[[str], None]) -> None:
    """Land everything that both examples ever receive.

    :raises FlightDataMissingError: the distribution with the data is not installed. Retry: no.
    """
    if not (landing / "flights").exists():
        say("landing the examples' raw files: every flight out of New York in 2013")
        year = datetime(2012, 12, 31, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
        flights.land(landing, *year, every=timedelta(days=30))
    if not (landing / "digits").exists():
        say("landing the examples' raw files: 1,797 handwritten digits")
        digits.land(landing / "digits", digits.FIRST_SCAN, digits.FIRST_SCAN + timedelta(days=13))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.demo.landing", description=__doc__)
    parser.add_argument("folder", type=Path, help="e.g. /lake/shared/landing")
    try:
        land_examples(parser.parse_args(arguments).folder, print)
    except (LifecycleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
