"""What answers, and who let it."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from ml_lifecycle.commands.command import Command, moment, settings_of, state_arguments


def _live_arguments(parser: argparse.ArgumentParser) -> None:
    state_arguments(parser)
    parser.add_argument("--at", type=moment, metavar="TIME", help="e.g. 2013-06-30T12:00:00Z; default: now")
    parser.add_argument("--model", help="only this model; default: all")
    parser.add_argument("--environment", default="production", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _live(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.audit import as_table, live_at, open_ledger, verify

    settings = settings_of(arguments)
    when = arguments.at or datetime.now(UTC)
    ledger = open_ledger(settings.database)
    where, known = arguments.environment, settings.environment_lakes
    verify(ledger, [Lake(url) for url in known.values()])
    lake = None if settings.lake is None else Lake(settings.lake)
    found = live_at(ledger, where, when, model=arguments.model, lake=lake, known=known)
    if arguments.json:
        print(json.dumps([live.to_json() for live in found], indent=1))
    else:
        print(as_table(where, when, found))
    return 0


COMMANDS = (
    Command(
        "live",
        "show every version that answered at a time, with its share, and who let it",
        _live_arguments,
        _live,
    ),
)
