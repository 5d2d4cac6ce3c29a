"""``ml-lifecycle snapshots …``: what is there, how two differ, and letting go of the rest."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ml_lifecycle.commands.command import Command, lake_argument, lake_of

if TYPE_CHECKING:
    from ml_lifecycle.snapshots.comparison import TableDifference


_MOST = 1_000_000


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the model folder")
    lake_argument(parser)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument(
        "--limit", type=_count, default=20, help="show so many, the newest; default: %(default)s"
    )


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("before", help="a snapshot's digest, or its beginning")
    parser.add_argument("after", help="another's")


def _collect_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    parser.add_argument("--newest", type=_count, default=3, help="keep so many; default: %(default)s")
    parser.add_argument(
        "--days",
        type=_count,
        default=30,
        help="and all at most so much older than the newest; default: %(default)s",
    )
    parser.add_argument(
        "--grace", type=_hours, default=24.0, help="hours that the longest run takes; default: %(default)s"
    )
    parser.add_argument("--archive", metavar="URL", help="a lake that what goes is copied to first")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) <= _MOST):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from 0 to {_MOST:,}")
    return int(text)


def _hours(text: str) -> float:
    try:
        if 0 <= (hours := float(text)) <= _MOST:
            return hours
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: write a number of hours from 0 to {_MOST:,}")


def _list(arguments: argparse.Namespace) -> int:
    """A line a snapshot, the newest first."""
    from ml_lifecycle.snapshots.history import history
    from ml_lifecycle.spec.folder import load_folder

    model, lake = load_folder(arguments.folder).spec.name, lake_of(arguments)
    kept = history(lake, model)
    if not kept:
        print(f"{model} has no snapshot in {lake.url}")
    for one in kept[: arguments.limit]:
        tables = ", ".join(f"{name} {table.rows:,}" for name, table in one.snapshot.tables.items())
        notes = [f"trained version {version}" for version in one.versions]
        notes += [] if one.validated else ["not validated"]
        shown = f"  ({', '.join(notes)})" if notes else ""
        print(f"{one.snapshot.digest[:12]}  as of {one.as_of:%Y-%m-%d %H:%M}  {tables}{shown}")
    if (older := len(kept) - arguments.limit) > 0:
        print(f"{older:,} older ones are left out: --limit {len(kept)} shows all", file=sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    """What the tables have become."""
    from ml_lifecycle.snapshots.comparison import compare
    from ml_lifecycle.snapshots.history import find
    from ml_lifecycle.spec.folder import load_folder

    spec, lake = load_folder(arguments.folder).spec, lake_of(arguments)
    before, after = (find(lake, spec.name, text) for text in (arguments.before, arguments.after))
    for name, difference in compare(lake, before, after, spec.sources).items():
        _print_difference(name, difference)
    return 0


def _print_difference(name: str, difference: TableDifference) -> None:
    added, removed, changed = difference.added, difference.removed, difference.changed
    print(f"{name}: {added:,} rows added, {removed:,} removed, {changed:,} changed")
    for column, (old, new) in difference.columns.items():
        print(f"  column {column}: {old or 'absent'} -> {new or 'absent'}")
    for label, (more, less, other) in difference.partitions.items():
        print(f"  {label}: {more:,} added, {less:,} removed, {other:,} changed")


def _collect(arguments: argparse.Namespace) -> int:
    """What goes, or would."""
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.snapshots.collection import Policy, collect
    from ml_lifecycle.spec.folder import load_folder

    model = load_folder(arguments.folder).spec.name
    policy = Policy(arguments.newest, arguments.days, timedelta(hours=arguments.grace))
    archive = None if arguments.archive is None else Lake(arguments.archive)
    lake, now = lake_of(arguments), datetime.now(UTC)
    gone = collect(lake, model, policy, now, archive, dry_run=arguments.dry_run)
    for snapshot in gone.snapshots:
        print(f"{snapshot.digest[:12]}  of {snapshot.run.as_of:%Y-%m-%d %H:%M}")
    verb = "would go" if arguments.dry_run else "went"
    megabytes = sum(gone.files.values()) / 2**20
    print(f"{len(gone.snapshots)} snapshots {verb}; {len(gone.files)} files, {megabytes:,.1f} MiB")
    if gone.snapshots and not arguments.dry_run:
        print(f"the files of these snapshots can go in {arguments.grace:g} hours, by the same command")
    elif gone.snapshots:
        print(f"the files of these snapshots could go {arguments.grace:g} hours later, in the same way")
    return 0


COMMANDS = (
    Command(
        "snapshots list",
        "show a model's snapshots, and what needs them",
        _list_arguments,
        _list,
    ),
    Command(
        "snapshots compare",
        "show how two snapshots differ: columns, and rows added, removed and changed",
        _compare_arguments,
        _compare,
    ),
    Command(
        "snapshots collect",
        "let go of snapshots that no registered version needs",
        _collect_arguments,
        _collect,
    ),
)
