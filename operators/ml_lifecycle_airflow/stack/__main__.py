"""``python -m ml_lifecycle_airflow.stack up|down|status|demo``: what the Makefile calls."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle_airflow.stack import supervise
from ml_lifecycle_airflow.stack.config import REPOSITORY, Ports, Stack, postgres_from_environment

if TYPE_CHECKING:
    from ml_lifecycle.demo.world import Access


def _say(text: str) -> None:
    print(f"· {text}", flush=True)


def _stack(name: str) -> Stack:
    # The demo begins with nothing each time, and so with databases of its own.
    postgres = postgres_from_environment() if name == ".run" else None
    return Stack(root=REPOSITORY / name, ports=Ports.from_environment(), postgres=postgres)


def _print_access(stack: Stack) -> None:
    print(f"\nAirflow  {stack.airflow_url}   (the models' page: Lifecycle, in the navigation)")
    for user in stack.users:
        print(f"  user {user:<8} password {stack.password(user)}")
    print(f"MLflow   {stack.mlflow_url}")
    print(f"state    {stack.root}, logs in {stack.logs}")
    settings, command = stack.settings_file, Path(sys.executable).with_name("ml-lifecycle")
    print(f"ask      . {quote(str(settings))}; {quote(str(command))} live\nstop     make down", flush=True)


def up() -> int:
    """Start the stack on ``.run`` and print where it is."""
    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.demo.landing import land_examples

    stack = _stack(".run")
    if supervise.processes(stack):
        _say("it is already running, where it was started; make down first to start it elsewhere")
        _print_access(replace(stack, ports=Ports.kept_in(stack.ports_file) or stack.ports))
        return 0
    with _stopped_on_failure(stack):
        supervise.start(stack, _say)
        land_examples(Lake(str(stack.lake)), _say)
    _print_access(stack)
    return 0


@contextmanager
def _stopped_on_failure(stack: Stack) -> Iterator[None]:
    """Ctrl-C and failures alike: say why, leave nothing running."""
    try:
        yield
    except BaseException:
        supervise.stop(stack, _say)
        raise


def down() -> int:
    """Stop both stacks, should they run."""
    for name in (".run", ".demo"):
        stack = _stack(name)
        if stack.root.exists() and (supervise.processes(stack) or (stack.root / "supervisord.pid").exists()):
            supervise.stop(stack, _say)
    return 0


def status() -> int:
    """Print every process with its state; returns 0 if all that should run does."""
    stacks = [stack for stack in map(_stack, (".run", ".demo")) if stack.root.exists()]
    if not stacks:
        print("no stack was ever started here: make up starts one")
    return max([_print_status(stack) for stack in stacks], default=0)


def _print_status(stack: Stack) -> int:
    states = supervise.program_states(stack)
    if not states:
        left = len(supervise.processes(stack))
        print(
            f"{stack.root}: "
            + (f"no supervisor, but {left} processes; make down ends them" if left else "stopped")
        )
        return 1 if left else 0
    print(f"{stack.root}:")
    width = max(len(state.name) for state in states)
    for state in states:
        print(f"  {state.name:<{width}}  {state.state:<8}  {state.detail}")
    return 0 if all(state.state == "RUNNING" for state in states) else 1


def access(stack: Stack) -> Access:
    """How to reach the stack from outside."""
    from ml_lifecycle.demo.world import Access

    return Access(
        airflow_url=stack.airflow_url,
        mlflow_url=stack.mlflow_url,
        passwords={user: stack.password(user) for user in stack.users},
        model_folder=stack.dags / "models" / "flight_delay",
        lake=str(stack.lake),
        production_lake=str(stack.environment_lake("production")),
        production_url=stack.server_url("production"),
        production_token=stack.secrets["production"],
        production_online_store=stack.online_store("production"),
    )


def demo(keep: bool, root: str = ".demo") -> int:
    """Play 2013 on a fresh state of its own, in ``root``."""
    from ml_lifecycle.demo.play import play

    stack = _stack(root)
    if stack.root.exists():
        supervise.stop(stack, _say)
        shutil.rmtree(stack.root)
    with _stopped_on_failure(stack):
        supervise.start(stack, _say)
        code = play(access(stack))
    if keep:
        _print_access(stack)
    else:
        supervise.stop(stack, _say)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle_airflow.stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "status"):
        commands.add_parser(name)
    demo_parser = commands.add_parser("demo")
    demo_parser.add_argument("--keep", choices=("yes", "no"), default="yes")
    demo_parser.add_argument("--root", default=".demo", help="folder for its state, emptied first")
    chosen = parser.parse_args(arguments)
    # A terminated demo cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if chosen.command == "demo":
            return demo(chosen.keep == "yes", chosen.root)
        return {"up": up, "down": down, "status": status}[chosen.command]()
    except (LifecycleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the stack is stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
