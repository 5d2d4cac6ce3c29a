"""The command ``ml-lifecycle``. Exit codes: 0 fine, 1 the input is wrong, 2 the command line is, 130 Ctrl-C.

A new command is a :class:`Command` in a module of :mod:`ml_lifecycle.commands`. A name of two words, such as
``ledger verify``, becomes a group with a subcommand.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any

from ml_lifecycle.commands import contracts, folders, ledger, pods, predictions, releases, scoring, snapshots
from ml_lifecycle.commands.command import Command
from ml_lifecycle.errors import LifecycleError

COMMANDS = (
    *folders.COMMANDS,
    *releases.COMMANDS,
    *scoring.COMMANDS,
    *contracts.COMMANDS,
    *snapshots.COMMANDS,
    *predictions.COMMANDS,
    *pods.COMMANDS,
    *ledger.COMMANDS,
)


def build_parser(commands: Sequence[Command] = COMMANDS) -> argparse.ArgumentParser:
    """The command line of ``commands``."""
    parser = argparse.ArgumentParser(prog="ml-lifecycle", description="Models and their whole life.")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, Any] = {}
    for command in commands:
        group, _, word = command.name.rpartition(" ")
        if group and group not in groups:
            made = top.add_parser(group, help=f"commands about the {group}")
            groups[group] = made.add_subparsers(required=True, metavar="COMMAND")
        within = groups[group] if group else top
        subparser = within.add_parser(word, help=command.summary, description=command.summary)
        command.arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a folder's name may hold bytes that are no text
    try:
        return int(arguments.run(arguments))
    except _one_line() as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _one_line() -> tuple[type[Exception], ...]:
    """Errors whose text says enough."""
    # s3fs lets what went wrong before an answer through as it is; botocore is loaded then.
    aws = sys.modules.get("botocore.exceptions")
    return (LifecycleError, OSError) if aws is None else (LifecycleError, OSError, aws.BotoCoreError)


if __name__ == "__main__":
    sys.exit(main())
