"""The commands about contracts and what they found: ``ml-lifecycle contract`` and ``validation``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ml-lifecycle contract diff``."""
    parser.add_argument("old", type=Path, help="the contract.yaml that data meet today")
    parser.add_argument("new", type=Path, help="the one that they shall meet")


def diff(arguments: argparse.Namespace) -> int:
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


def docs_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ml-lifecycle validation docs``."""
    parser.add_argument("model", help="the model's name")
    parser.add_argument("--lake", metavar="URL", help="default: $ML_LIFECYCLE_LAKE")
    parser.add_argument("--into", type=Path, default=Path("data_docs"), help="default: %(default)s")
    parser.add_argument("--last", type=_count, default=10, help="validations shown; default: %(default)s")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number above 0")
    return int(text)


def docs(arguments: argparse.Namespace) -> int:
    """Build the site and say where it is."""
    from ml_lifecycle.adapters.data_docs import build_data_docs, stored_reports
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.settings import lake_url

    lake = Lake(lake_url(arguments.lake, os.environ))
    reports = stored_reports(lake, arguments.model, arguments.last)
    page = build_data_docs(reports, arguments.into)
    print(f"{page}: {len(reports)} validations of {arguments.model}")
    return 0
