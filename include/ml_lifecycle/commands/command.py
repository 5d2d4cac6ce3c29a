"""What a command is, and the options that several have.

What a command needs it imports when it runs, so that help and argument errors cost nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.settings import Settings


@dataclass(frozen=True)
class Command:
    """One subcommand.

    :param name: one word, or two: group and subcommand
    :param run: returns the exit code; a :class:`LifecycleError` is shown and exits with 1
    """

    name: str
    summary: str
    arguments: Callable[[argparse.ArgumentParser], Any]
    run: Callable[[argparse.Namespace], int]


def lake_argument(parser: argparse.ArgumentParser) -> None:
    """``--lake``, for :func:`lake_of`."""
    parser.add_argument("--lake", metavar="URL", help="default: $ML_LIFECYCLE_LAKE")


def lake_of(arguments: argparse.Namespace) -> Lake:
    """The lake that the arguments or the environment name.

    :raises LifecycleError: neither does. Retry: no.
    """
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.settings import lake_url

    return Lake(lake_url(arguments.lake, os.environ))


def database_argument(parser: argparse.ArgumentParser) -> None:
    """``--database``."""
    parser.add_argument("--database", metavar="URL", help="default: $ML_LIFECYCLE_DATABASE")


def state_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a platform keeps its state, for :func:`settings_of`."""
    database_argument(parser)
    parser.add_argument("--lake", metavar="URL", help="the stages' lake; default: $ML_LIFECYCLE_LAKE")
    parser.add_argument(
        "--environment-lake",
        metavar="NAME=URL",
        type=_named_url,
        action="append",
        default=[],
        help="an environment's lake, once for each; default: $ML_LIFECYCLE_<NAME>_LAKE",
    )


def environment_lake_of(settings: Settings, environment: str) -> Lake:
    """An environment's lake.

    :raises LifecycleError: nothing says where it is. Retry: no.
    """
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.settings import SettingsError

    if environment not in settings.environment_lakes:
        raise SettingsError(
            f"where is the lake of {environment}? Give --environment-lake {environment}=URL or set "
            f"ML_LIFECYCLE_{environment.upper()}_LAKE"
        )
    return Lake(settings.environment_lakes[environment])


def _named_url(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not (name and url):
        raise argparse.ArgumentTypeError(f"{text!r}: write an environment and its lake, production=URL")
    return name, url


def moment(text: str) -> datetime:
    """A moment with its offset, such as 2013-06-30T12:00:00Z."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write a time such as 2013-06-30T12:00:00Z") from error
    if given.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset; end it with Z for UTC")
    return given.astimezone(UTC)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What :func:`state_arguments` and the environment say."""
    from ml_lifecycle.settings import Settings

    return Settings.read(
        os.environ,
        database=arguments.database,
        lake=arguments.lake,
        environment_lakes=dict(arguments.environment_lake),
    )
