"""The command ``ml-lifecycle``. Exit codes: 0 fine, 1 the input is wrong, 2 the command line is.

A new command is a :class:`Command` in :data:`COMMANDS`. A name of two words, such as ``ledger verify``,
becomes a group with a subcommand. What a command needs it imports when it runs, so that help and argument
errors cost nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.rules import commands as contracts
from ml_lifecycle.snapshots import commands as snapshots

if TYPE_CHECKING:
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


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a model folder, such as dags/models/flight_delay")


def _check(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.rehearsal import rehearse
    from ml_lifecycle.spec.folder import load_folder, read_folder
    from ml_lifecycle.spec.problems import spec_error

    reading = read_folder(arguments.folder)
    rehearsal = rehearse(reading)
    for advice in rehearsal.advice:
        print(f"note: {advice}", file=sys.stderr)
    if problems := (*reading.problems, *rehearsal.problems):
        raise spec_error(problems)
    folder = load_folder(arguments.folder)
    spec = folder.spec
    rows = {
        "model": f"{spec.name}, {spec.task}: {spec.description}",
        "sources": ", ".join(
            f"{name} ({source.contract or 'no contract'})" for name, source in spec.sources.items()
        ),
        "gates": ", ".join(gate.metric for gate in spec.evaluation.gates),
        "alerts": ", ".join(alert.metric for alert in spec.monitoring.alerts) or "none",
        "approvers": ", ".join(spec.approvers.users),
        "delivery": spec.delivery.in_words,
        "environments": ", ".join(spec.environments),
        "spec digest": folder.spec_digest,
        "code digest": folder.code_digest,
    }
    print(f"{folder.path}: fine")
    for label, text in rows.items():
        print(f"  {label:<13} {text}")
    return 0


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", choices=("model", "contract"), default="model")
    parser.add_argument("--output", type=Path, help="write to this file instead of the terminal")


def _schema(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.spec.schema import json_schema

    text = json.dumps(json_schema(arguments.file), indent=2, ensure_ascii=False) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


def _new_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model's name: lower-case letters, digits and '_'")
    parser.add_argument("--into", type=Path, default=Path("dags/models"), help="default: %(default)s")


def _new(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.spec.scaffold import new_folder

    folder = new_folder(arguments.name, arguments.into)
    print(f"{folder}: written. Start with its model.yaml; check it with: ml-lifecycle check {folder}")
    return 0


def _state_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", metavar="URL", help="default: $ML_LIFECYCLE_DATABASE")
    parser.add_argument("--lake", metavar="URL", help="the stages' lake; default: $ML_LIFECYCLE_LAKE")
    parser.add_argument(
        "--environment-lake",
        metavar="NAME=URL",
        type=_named_url,
        action="append",
        default=[],
        help="an environment's lake, once for each; default: $ML_LIFECYCLE_<NAME>_LAKE",
    )


def _named_url(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not (name and url):
        raise argparse.ArgumentTypeError(f"{text!r}: write an environment and its lake, production=URL")
    return name, url


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write a time such as 2013-06-30T12:00:00Z") from error
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset; end it with Z for UTC")
    return moment.astimezone(UTC)


def _settings(arguments: argparse.Namespace) -> Settings:
    from ml_lifecycle.settings import Settings

    return Settings.read(
        os.environ,
        database=arguments.database,
        lake=arguments.lake,
        environment_lakes=dict(arguments.environment_lake),
    )


def _ledger_verify(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.audit import open_ledger, verify

    settings = _settings(arguments)
    lakes = settings.environment_lakes
    checked = verify(open_ledger(settings.database), [Lake(url) for url in lakes.values()])
    print(
        f"the ledger verifies: {checked.entries} entries, {checked.releases} releases, and {checked.heads} "
        f"heads in the routes of {', '.join(lakes) or 'no environment: name their lakes to compare them too'}"
    )
    return 0


def _migrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", metavar="URL", help="default: $ML_LIFECYCLE_DATABASE")


def _ledger_migrate(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.delivery.audit import migrate_ledger
    from ml_lifecycle.settings import Settings

    settings = Settings.read(os.environ, database=arguments.database)
    print(f"the lifecycle database is at revision {migrate_ledger(settings.database)}")
    return 0


def _live_arguments(parser: argparse.ArgumentParser) -> None:
    _state_arguments(parser)
    parser.add_argument("--at", type=_moment, metavar="TIME", help="e.g. 2013-06-30T12:00:00Z; default: now")
    parser.add_argument("--model", help="only this model; default: all")
    parser.add_argument("--environment", default="production", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _live(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.audit import as_table, live_at, open_ledger, verify

    settings = _settings(arguments)
    moment = arguments.at or datetime.now(UTC)
    ledger = open_ledger(settings.database)
    where, known = arguments.environment, settings.environment_lakes
    verify(ledger, [Lake(url) for url in known.values()])
    lake = None if settings.lake is None else Lake(settings.lake)
    found = live_at(ledger, where, moment, model=arguments.model, lake=lake, known=known)
    if arguments.json:
        print(json.dumps([live.to_json() for live in found], indent=1))
    else:
        print(as_table(where, moment, found))
    return 0


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the model folder")
    parser.add_argument("files", help="a Parquet file of the lake, or a folder of them, such as landing/due")
    parser.add_argument("--database", metavar="URL", help="default: $ML_LIFECYCLE_DATABASE")
    parser.add_argument("--lake", metavar="URL", help="default: $ML_LIFECYCLE_LAKE")
    parser.add_argument("--version", help="a registered version; default: the champion")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; default: %(default)s")


def _score(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.delivery.audit import open_ledger
    from ml_lifecycle.delivery.lineage import find_champion, read_training, read_version
    from ml_lifecycle.errors import NotApprovedError
    from ml_lifecycle.ledger.database import Database
    from ml_lifecycle.records import Interval, Run
    from ml_lifecycle.settings import Settings, lake_url
    from ml_lifecycle.spec.folder import load_folder
    from ml_lifecycle.stages.score import score
    from ml_lifecycle.stages.score_partitions import lake_partitions

    settings = Settings.read(os.environ, database=arguments.database)
    url = lake_url(arguments.lake, os.environ)
    spec, lake = load_folder(arguments.folder).spec, Lake(url)
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


def _pod_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", help="run this image; the command, if given, replaces the image's own")
    parser.add_argument("--engine", default="docker", help="that runs it; default: %(default)s")
    parser.add_argument("--task", choices=("binary", "multiclass", "regression"), default="binary")
    parser.add_argument("--parameters", type=_json_object, default={}, help="as JSON, for the training code")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds to end in; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a run; default: %(default)s")
    parser.add_argument("pod_command", nargs="*", metavar="COMMAND", help="after --; default: our own pod's")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r}: write an object, such as '{{\"max_iter\": 5}}'")
    return value


def _pod_check(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.training.pod_check import PodCommand, check_pod

    own = [] if arguments.image else [sys.executable, "-m", "ml_lifecycle.training.pod"]
    command = PodCommand(
        arguments.pod_command or own, arguments.image, arguments.engine, timeout=arguments.timeout
    )
    broken = 0
    for check in check_pod(command, arguments.task, arguments.parameters, arguments.grace):
        broken += not check.kept
        detail = f": {check.detail}" if check.detail else ""
        print(f"{'kept  ' if check.kept else 'BROKEN'}  {check.demand}{detail}", flush=True)
    return min(broken, 1)


COMMANDS = (
    Command(
        "check",
        "check a model folder, run its code without data, and show every mistake",
        _check_arguments,
        _check,
    ),
    Command("schema", "print the JSON Schema of a spec file, for editors", _schema_arguments, _schema),
    Command("new", "write a working model folder to start from", _new_arguments, _new),
    Command(
        "live",
        "show every version that answered at a time, with its share, and who let it",
        _live_arguments,
        _live,
    ),
    Command(
        "score",
        "score Parquet files of the lake with a model's champion",
        _score_arguments,
        _score,
    ),
    Command(
        "contract diff",
        "show what changed between two contract files; exits with 1 if a change breaks",
        contracts.diff_arguments,
        contracts.diff,
    ),
    Command(
        "validation docs",
        "build Great Expectations' Data Docs from what validations found",
        contracts.docs_arguments,
        contracts.docs,
    ),
    Command(
        "pod check",
        "try whether a command or an image honours the contract of training pods",
        _pod_check_arguments,
        _pod_check,
    ),
    Command(
        "snapshots list",
        "show a model's snapshots, and what needs them",
        snapshots.list_arguments,
        snapshots.list_snapshots,
    ),
    Command(
        "snapshots compare",
        "show how two snapshots differ: columns, and rows added, removed and changed",
        snapshots.compare_arguments,
        snapshots.compare_snapshots,
    ),
    Command(
        "snapshots collect",
        "let go of snapshots that no registered version needs",
        snapshots.collect_arguments,
        snapshots.collect_snapshots,
    ),
    Command(
        "ledger migrate",
        "make the lifecycle database, or bring it to this version",
        _migrate_arguments,
        _ledger_migrate,
    ),
    Command(
        "ledger verify",
        "recompute the ledger's chain and compare it with the published routes",
        _state_arguments,
        _ledger_verify,
    ),
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
    except (LifecycleError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
