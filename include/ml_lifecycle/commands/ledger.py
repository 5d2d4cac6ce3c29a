"""The ledger: its database, and whether it is whole."""

from __future__ import annotations

import argparse
import os

from ml_lifecycle.commands.command import Command, database_argument, settings_of, state_arguments


def _ledger_verify(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.audit import open_ledger, verify

    settings = settings_of(arguments)
    lakes = settings.environment_lakes
    checked = verify(open_ledger(settings.database), [Lake(url) for url in lakes.values()])
    print(
        f"the ledger verifies: {checked.entries} entries, {checked.releases} releases, and {checked.heads} "
        f"heads in the routes of {', '.join(lakes) or 'no environment: name their lakes to compare them too'}"
    )
    return 0


def _ledger_migrate(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.delivery.audit import migrate_ledger
    from ml_lifecycle.settings import Settings

    settings = Settings.read(os.environ, database=arguments.database)
    print(f"the lifecycle database is at revision {migrate_ledger(settings.database)}")
    return 0


COMMANDS = (
    Command(
        "ledger migrate",
        "make the lifecycle database, or bring it to this version",
        database_argument,
        _ledger_migrate,
    ),
    Command(
        "ledger verify",
        "recompute the ledger's chain and compare it with the published routes",
        state_arguments,
        _ledger_verify,
    ),
)
