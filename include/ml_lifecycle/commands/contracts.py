"""Contracts, and what validations found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ml_lifecycle.commands.command import Command, lake_argument, lake_of


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="the contract.yaml that data meet today")
    parser.add_argument("new", type=Path, help="the one that they shall meet")


def _diff(arguments: argparse.Namespace) -> int:
    """Every change, the breaking ones with their lines; 1 if there are such."""
    from ml_lifecycle.spec.contract_diff import diff_files

    changes = diff_files(arguments.old, arguments.new)
    breaking = [problem.text for problem, breaks in changes if breaks]
    for problem, breaks in changes:
        if not breaks:
            print(problem.text.partition("\n")[0])
    if breaking:
        print("\n\n".join(breaking), file=sys.stderr)
    print(f"{len(changes)} changes, {len(breaking)} of them breaking")
    return min(len(breaking), 1)


def _docs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the model's name")
    lake_argument(parser)
    parser.add_argument("--into", type=Path, default=Path("data_docs"), help="default: %(default)s")
    parser.add_argument("--last", type=_count, default=10, help="validations shown; default: %(default)s")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number above 0")
    return int(text)


def _docs(arguments: argparse.Namespace) -> int:
    """Build the site and say where it is."""
    from ml_lifecycle.adapters.data_docs import build_data_docs, stored_reports

    lake = lake_of(arguments)
    reports = stored_reports(lake, arguments.model, arguments.last)
    page = build_data_docs(reports, arguments.into)
    print(f"{page}: {len(reports)} validations of {arguments.model}")
    return 0


COMMANDS = (
    Command(
        "contract diff",
        "show what changed between two contract files; exits with 1 if a change breaks",
        _diff_arguments,
        _diff,
    ),
    Command(
        "validation docs",
        "build Great Expectations' Data Docs from what validations found",
        _docs_arguments,
        _docs,
    ),
)
