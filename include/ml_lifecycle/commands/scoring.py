"""Batch scoring by hand."""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from ml_lifecycle.commands.command import Command, database_argument, lake_argument, lake_of


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the model folder")
    parser.add_argument("files", help="a Parquet file of the lake, or a folder of them, such as landing/due")
    database_argument(parser)
    lake_argument(parser)
    parser.add_argument("--version", help="a registered version; default: the champion")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; default: %(default)s")


def _score(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.delivery.audit import open_ledger
    from ml_lifecycle.delivery.lineage import find_champion, read_training, read_version
    from ml_lifecycle.errors import NotApprovedError
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.records import Interval, Run
    from ml_lifecycle.settings import Settings
    from ml_lifecycle.spec.folder import load_folder
    from ml_lifecycle.stages.score import score
    from ml_lifecycle.stages.score_partitions import lake_partitions

    settings = Settings.read(os.environ, database=arguments.database)
    spec, lake = load_folder(arguments.folder).spec, lake_of(arguments)
    version = arguments.version
    if version is None:
        open_ledger(settings.database)  # which says what is wrong with it
        champion = find_champion(spec, lake, Database(settings.database))
        if champion is None:
            raise NotApprovedError(
                f"{spec.name} has no champion to score with: promote one, or give --version"
            )
        version = champion.version
    training = read_training(lake, read_version(lake, spec.name, version).training_path)
    now = datetime.now(UTC)
    run = Run(spec.name, f"cli__{now.isoformat()}", now, Interval(now, now))
    partitions = lake_partitions(lake, arguments.files.rstrip("/"))
    scoring = score(spec, lake, run, training, version, partitions, arguments.threads)
    print(
        f"{scoring.rows} rows in {len(scoring.files)} files scored by version {version}: "
        f"{lake.uri(scoring.output_path)}"
    )
    return 0


COMMANDS = (
    Command(
        "score",
        "score Parquet files of the lake with a model's champion",
        _score_arguments,
        _score,
    ),
)
