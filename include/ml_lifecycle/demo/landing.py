"""``python -m ml_lifecycle.demo.landing LAKE``: put the examples' raw files where models look for them.

``LAKE`` is the URL of the lake that the stages share. What is there already is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.demo import digits, flights
from ml_lifecycle.demo.files import landing_folder
from ml_lifecycle.errors import LifecycleError


def land_examples(lake: Lake, say: Callable[[str], None]) -> None:
    """Land everything that both examples ever receive.

    :raises FlightDataMissingError: the distribution with the data is not installed. Retry: no.
    """
    there = lake.folders("landing")
    if "flights" not in there:
        say("landing the examples' raw files: every flight out of New York in 2013")
        year = datetime(2012, 12, 31, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC)
        with landing_folder(lake) as landing:
            flights.land(landing, *year, every=timedelta(days=30))
    if "digits" not in there:
        say("landing the examples' raw files: 1,797 handwritten digits")
        with landing_folder(lake) as landing:
            digits.land(landing / "digits", digits.FIRST_SCAN, digits.FIRST_SCAN + timedelta(days=13))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.demo.landing", description=__doc__)
    parser.add_argument("lake", help="e.g. s3://lifecycle")
    try:
        land_examples(Lake(parser.parse_args(arguments).lake), print)
    except (LifecycleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
