"""Model folders: look at one, begin one, and what an editor knows of their files."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from pathlib import Path

from ml_lifecycle.commands.command import Command


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
    from ml_lifecycle.adapters.local_files import replace_file
    from ml_lifecycle.spec.schema import json_schema

    text = json.dumps(json_schema(arguments.file), indent=2, ensure_ascii=False) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    elif arguments.output.exists() and not arguments.output.is_file():  # /dev/stdout, say
        arguments.output.write_text(text, encoding="utf-8")
    else:
        replace_file(os.path.realpath(arguments.output), io.BytesIO(text.encode()))
    return 0


def _new_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model's name: lower-case letters, digits and '_'")
    parser.add_argument("--into", type=Path, default=Path("dags/models"), help="default: %(default)s")


def _new(arguments: argparse.Namespace) -> int:
    from ml_lifecycle.spec.scaffold import new_folder

    folder = new_folder(arguments.name, arguments.into)
    print(f"{folder}: written. Start with its model.yaml; check it with: ml-lifecycle check {folder}")
    return 0


COMMANDS = (
    Command(
        "check",
        "check a model folder, run its code without data, and show every mistake",
        _check_arguments,
        _check,
    ),
    Command("schema", "print the JSON Schema of a spec file, for editors", _schema_arguments, _schema),
    Command("new", "write a working model folder to start from", _new_arguments, _new),
)
