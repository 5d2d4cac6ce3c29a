"""Training pods: does an image honour their contract?"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ml_lifecycle.commands.command import Command


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
        "pod check",
        "try whether a command or an image honours the contract of training pods",
        _pod_check_arguments,
        _pod_check,
    ),
)
