"""What answers, and who let it."""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ml_lifecycle.commands.command import (
    Command,
    environment_lake_of,
    moment,
    settings_of,
    state_arguments,
)

if TYPE_CHECKING:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.sagemaker_found import Note
    from ml_lifecycle.delivery.targets import Target
    from ml_lifecycle.delivery.way_back import Released

_TOKEN_VARIABLE = "ML_LIFECYCLE_SERVER_TOKEN"


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


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    state_arguments(parser)
    parser.add_argument("name", metavar="MODEL[/ENDPOINT]", help="as ml-lifecycle live shows it")
    parser.add_argument("--reason", required=True, help="why; kept in the ledger")
    parser.add_argument("--environment", default="production", help="default: %(default)s")
    parser.add_argument("--by", metavar="NAME", help="who you are, for the ledger; default: your login name")
    parser.add_argument(
        "--server",
        metavar="URL",
        type=_server_url,
        action="append",
        default=[],
        help="a model server to check before and after, once for each; without any, none is asked, but "
        "Amazon SageMaker is, by the credentials that AWS's own tools would take",
    )
    parser.add_argument("--token-file", type=Path, help=f"the servers' token; default: ${_TOKEN_VARIABLE}")
    parser.add_argument(
        "--request", metavar="ID", help="of a rollback that was interrupted, to finish that one and no other"
    )
    parser.add_argument("--mlflow", metavar="URI", help="where to move the alias champion; default: nowhere")


def _server_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):  # else it would pass for a server that is down
        raise argparse.ArgumentTypeError(f"{text!r}: write an address such as http://127.0.0.1:8093")
    return text


def _rollback(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.delivery.audit import open_ledger
    from ml_lifecycle.delivery.checks import Clock
    from ml_lifecycle.delivery.way_back import PublishedOnly, check_lake, find_released
    from ml_lifecycle.stages.deploy import rollback

    settings, environment = settings_of(arguments), arguments.environment
    lake = environment_lake_of(settings, environment)
    database = open_ledger(settings.database).database
    model = find_released(database, environment, arguments.name)
    check_lake(database, environment, model.endpoint, lake)
    target = _target(arguments, lake, model)
    request = arguments.request or f"command-line/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    print(f"if this is interrupted, finish it by the same command with --request {request}", file=sys.stderr)
    with _waits_told():
        release = rollback(
            model,
            target,
            database,
            Clock(now=lambda: datetime.now(UTC)),
            request=request,
            requested_by=arguments.by or getpass.getuser(),
            reason=arguments.reason,
        )
    where = f"{environment}/{release.endpoint}"
    if release.kind == "withdraw":
        print(f"{where} serves nothing any more: revision {release.revision}, {release.state}")
    else:
        print(f"{where} serves version {release.version}: revision {release.revision}, {release.state}")
    if isinstance(target, PublishedOnly):
        print(f"no server was asked: model servers follow {lake.url} within seconds")
    if arguments.mlflow and environment == "production" and release.kind != "withdraw":
        from ml_lifecycle.adapters.mlflow import set_alias

        set_alias(arguments.mlflow, release.model, "champion", release.version)
    return 0


@contextmanager
def _waits_told() -> Iterator[None]:
    """What is waited for, on stderr: a server that is down is waited for a minute."""
    log, shown = logging.getLogger("ml_lifecycle.delivery"), logging.StreamHandler()
    level = log.level
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(shown)
        log.setLevel(level)


def _target(arguments: argparse.Namespace, lake: Lake, model: Released) -> Target:
    from ml_lifecycle.delivery.sagemaker_found import read_note
    from ml_lifecycle.delivery.targets import ModelServers
    from ml_lifecycle.delivery.way_back import PublishedOnly
    from ml_lifecycle.errors import ServerUnavailableError
    from ml_lifecycle.serving.client import ModelClient, RequestRefusedError
    from ml_lifecycle.settings import SettingsError

    if not arguments.server:
        note = read_note(lake, model.endpoint)
        if note is None:
            return PublishedOnly(arguments.environment, lake)
        return _on_sagemaker(arguments.environment, lake, model, note)
    given = arguments.token_file
    token = given.read_text(encoding="utf-8").strip() if given else os.environ.get(_TOKEN_VARIABLE)
    if not token:
        raise SettingsError(f"what is the servers' token? Give --token-file FILE or set {_TOKEN_VARIABLE}")
    clients = [ModelClient(url, token) for url in arguments.server]
    for client in clients:
        try:
            client.metadata(model.endpoint)
        except ServerUnavailableError:
            continue  # as while it is down
        except RequestRefusedError as error:
            if error.status in (401, 403):  # its checks would fail, and what is live would stay so
                raise SettingsError(f"{client} does not take this token; nothing was changed") from error
    return ModelServers(arguments.environment, lake, clients)


def _on_sagemaker(environment: str, lake: Lake, model: Released, note: Note) -> Target:
    """The endpoint there, asked before anything is changed: it does not follow the lake by itself."""
    from ml_lifecycle.adapters.sagemaker import SageMakerApi
    from ml_lifecycle.delivery.sagemaker import SageMakerEndpoint
    from ml_lifecycle.delivery.sagemaker_found import as_it_runs
    from ml_lifecycle.errors import LifecycleError
    from ml_lifecycle.settings import SettingsError

    try:
        api = SageMakerApi.connect(note.region)
        settings = as_it_runs(note, lake, api)
    except (ImportError, LifecycleError) as error:
        raise SettingsError(
            f"{environment}/{model.endpoint} is on Amazon SageMaker ({note.name} in {note.region}), and "
            f"cannot be changed from here: {error}. Nothing was changed. Trigger {model.name}__rollback in "
            "Airflow, which has the connection, or set AWS's variables (AWS_PROFILE, AWS_ACCESS_KEY_ID …) "
            "to credentials that may do it. If model servers have taken its place, name them by --server"
        ) from error
    return SageMakerEndpoint(environment, lake, api, settings)


COMMANDS = (
    Command(
        "live",
        "show every version that answered at a time, with its share, and who let it",
        _live_arguments,
        _live,
    ),
    Command(
        "rollback",
        "go back to the release before, or take back one under way, with neither Airflow nor a model folder",
        _rollback_arguments,
        _rollback,
    ),
)
