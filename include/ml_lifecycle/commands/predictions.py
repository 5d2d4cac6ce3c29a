"""``ml-lifecycle predictions …``: what every run of the monitor does with the prediction log, by hand."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ml_lifecycle.commands.command import Command, environment_lake_of, settings_of, state_arguments


def _compact_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the model folder")
    state_arguments(parser)
    parser.add_argument("--environment", default="production", help="default: %(default)s")
    parser.add_argument(
        "--grace", type=float, default=24.0, help="hours that the longest reader takes; default: %(default)s"
    )
    parser.add_argument(
        "--expire", action="store_true", help="delete what is older than monitoring.keep_predictions, too"
    )


def _compact(arguments: argparse.Namespace) -> int:
    """What became of the log."""
    from ml_lifecycle.delivery.audit import open_ledger
    from ml_lifecycle.delivery.release_history import ReleaseHistory
    from ml_lifecycle.spec.folder import load_folder
    from ml_lifecycle.stages.compact import compact, expire, kept_from

    spec, settings = load_folder(arguments.folder).spec, settings_of(arguments)
    lake, now = environment_lake_of(settings, arguments.environment), datetime.now(UTC)
    if arguments.expire:
        releases = ReleaseHistory(open_ledger(settings.database).database)
        release = releases.under_way(arguments.environment, spec.endpoint)
        first = kept_from(spec, now, now - spec.monitoring.window, release)
        gone = [] if first is None else expire(lake, spec.endpoint, first)
        print(f"{len(gone)} days deleted" + ("" if first is None else f", of those before {first}"))
    done = compact(lake, spec.endpoint, now, grace=timedelta(hours=arguments.grace))
    print(f"{done.parts:,} parts became {done.files:,} files; {done.deleted:,} replaced parts deleted")
    if done.parts:
        print(f"the parts that were replaced now can go in {arguments.grace:g} hours, by the same command")
    return 0


COMMANDS = (
    Command(
        "predictions compact",
        "make few files of an endpoint's prediction log, and let go of what they replaced",
        _compact_arguments,
        _compact,
    ),
)
