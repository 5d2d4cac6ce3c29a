"""``python -m ml_lifecycle.localpods``: serve, or end what an earlier server left running."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import uvicorn
from starlette.applications import Starlette

from ml_lifecycle.errors import LifecycleError
from ml_lifecycle.localpods.api import create_app
from ml_lifecycle.localpods.node import Node
from ml_lifecycle.localpods.secrets import SecretFolder, require_private
from ml_lifecycle.localpods.store import PodStore
from ml_lifecycle.quantity import CPU, GPU, MEMORY, parse_amount

log = logging.getLogger("ml_lifecycle.localpods")

# Less than a supervisor's usual patience of ten seconds.
STOP_GRACE_SECONDS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        node = _node(arguments)
        if arguments.sweep:
            asyncio.run(_sweep(node))
        else:
            _serve(arguments, node)
    except (LifecycleError, OSError, ValueError) as error:
        print(f"localpods: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.localpods", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=0, help="port to listen on (default: a free one)")
    add("--port-file", type=Path, help="write the port here once it is open")
    add("--token-file", type=Path, help="file with the bearer token; made, mode 0600, if there is none")
    add("--state-dir", type=Path, required=True, help="pods, their logs and their scratch")
    add(
        "--cpu",
        default=str(os.cpu_count() or 1),
        help="cores to give out, e.g. 4 or 1500m (default: %(default)s)",
    )
    add("--memory", default=str(psutil.virtual_memory().total), help="to give out, e.g. 8Gi (default: all)")
    add("--gpus", default="0", help="GPUs to give out, from device 0 on (default: %(default)s)")
    add("--secrets-dir", type=Path, help="<folder>/<namespace>/<secret>/<key>, mode 0700")
    add(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="what python means in a pod (default: this one)",
    )
    add(
        "--stop-pods-on-exit",
        action="store_true",
        help="end all pods on SIGTERM instead of leaving them running",
    )
    add(
        "--sweep", action="store_true", help="end all pods of --state-dir and exit; no server may be using it"
    )
    return parser


def _node(arguments: argparse.Namespace) -> Node:
    capacity = {
        resource: parse_amount(resource, value)
        for resource, value in ((CPU, arguments.cpu), (MEMORY, arguments.memory), (GPU, arguments.gpus))
    }
    state = arguments.state_dir.absolute()
    python = arguments.python.absolute()
    if not os.access(python, os.X_OK):
        raise ValueError(f"--python {python} is no program; it must be the interpreter that pods run")
    secret_folder = SecretFolder(arguments.secrets_dir and arguments.secrets_dir.absolute())
    return Node(PodStore(state), capacity, secret_folder, python, _python_folder(state, python))


def _python_folder(state: Path, python: Path) -> Path:
    """A folder in which ``python`` is the given interpreter. A link would lose sight of its environment."""
    folder = state / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
        script.chmod(0o700)
    return folder


def _token(path: Path | None) -> str:
    if path is None:
        raise ValueError("--token-file is required: every call must carry its token")
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    require_private(path)
    token = path.read_text().strip()
    if not token:
        raise ValueError(f"{path} is empty; it must hold the bearer token")
    return token


def _serve(arguments: argparse.Namespace, node: Node) -> None:
    token = _token(arguments.token_file)
    listener = listen(arguments.host, arguments.port)
    if arguments.host not in ("127.0.0.1", "localhost"):
        log.warning(
            "listening on %s: whoever has the token and can reach it runs commands here", arguments.host
        )
    address = f"http://{arguments.host}:{listener.getsockname()[1]}"

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await node.open()
        if arguments.port_file is not None:
            _write(arguments.port_file, f"{listener.getsockname()[1]}\n")
        log.info("serving pods on %s", address)
        yield
        if arguments.stop_pods_on_exit:
            await node.stop_pods(STOP_GRACE_SECONDS)
        await node.close()

    config = uvicorn.Config(
        create_app(node, token, lifespan),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,  # followed logs and watches would hold it up for ever
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise OSError("the server did not start; the reason is in the log above")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    :raises OSError: the port is taken, or the host is not this machine's. Retry: no.
    """
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which an accepted one
    # does not; without, an answer waits 40 ms for the acknowledgement of its own head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


async def _sweep(node: Node) -> None:
    await node.open(start_pods=False)
    await node.stop_pods(STOP_GRACE_SECONDS)
    await node.close()


if __name__ == "__main__":
    sys.exit(main())
