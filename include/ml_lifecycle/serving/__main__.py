"""``python -m ml_lifecycle.serving``: run a model server."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_lifecycle.serving.door import Client

TOKEN_VARIABLE = "ML_LIFECYCLE_SERVER_TOKEN"
EXIT_USAGE = 2
EXIT_PORT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; returns the exit code."""
    options = _parse(arguments)
    from ml_lifecycle.serving.access_log import AccessLog
    from ml_lifecycle.serving.errors import ClientsFileError, PortError

    try:
        clients = _read_clients(options)
    except OSError as error:
        return _fail(EXIT_USAGE, f"cannot read the token file {options.token_file}: {error.strerror}")
    except ClientsFileError as error:
        return _fail(EXIT_USAGE, str(error))
    if not clients:
        return _fail(
            EXIT_USAGE,
            f"no token: set {TOKEN_VARIABLE}, or give --token-file or --clients; clients must send it",
        )
    try:
        access_log = None if options.access_log is None else AccessLog(options.access_log.open("ab"))
    except OSError as error:
        return _fail(EXIT_USAGE, f"cannot write the access log {options.access_log}: {error.strerror}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Polars only encodes log parts here: no need for a thread a core.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")

    from ml_lifecycle.serving.server import listen

    port = options.port
    try:
        listener = listen(options.host, port)
        if options.grpc_port is not None:
            # gRPC binds it by itself, later and with more words: better that it is known now if it cannot.
            port = options.grpc_port
            listen(options.host, port).close()
    except OSError as error:
        return _fail(EXIT_PORT, f"cannot listen on {options.host}:{port}: {error.strerror}")

    from ml_lifecycle.adapters.lake import Lake
    from ml_lifecycle.serving.resolver import feast_reader
    from ml_lifecycle.serving.server import ModelServer, serve

    # Until the event loop takes the signals: an orderly stop exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server = ModelServer(
        Lake(options.lake),
        options.environment,
        clients,
        options.online_store,
        options.endpoint,
        options.poll_seconds,
        model_memory=None if options.model_memory is None else options.model_memory * 2**20,
        reader_factory=partial(feast_reader, cache_seconds=options.feature_cache_seconds),
        access_log=access_log,
        drain_seconds=options.drain_seconds,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"

    def say(grpc_port: int | None) -> None:
        grpc = "" if grpc_port is None else f" and grpc://{host}:{grpc_port}"
        print(f"serving {options.environment} on {url}{grpc}", flush=True)

    address = None if options.grpc_port is None else f"{host}:{options.grpc_port}"
    try:
        serve(server, listener, address, say)
    except PortError as error:
        return _fail(EXIT_PORT, str(error))
    return 0


def _fail(code: int, message: str) -> int:
    print(message, file=sys.stderr)
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ml_lifecycle.serving", description=__doc__)
    parser.add_argument(
        "--lake",
        required=True,
        help="URL of the environment's lake: a folder, or s3://…, reached as AWS's variables and files say",
    )
    parser.add_argument("--environment", required=True, help="name of the environment, e.g. staging")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--grpc-port", type=_port, help="speak gRPC too, on this port")
    parser.add_argument("--online-store", help="URL of the online store; without it only vectors are taken")
    parser.add_argument("--endpoint", action="append", help="serve this endpoint only; may be repeated")
    parser.add_argument(
        "--feature-cache-seconds",
        type=float,
        default=0.0,
        help="how long features read by entity keys may be given again; what is materialised meanwhile is "
        "seen later by so much (default: %(default)s)",
    )
    parser.add_argument(
        "--model-memory",
        type=_mebibytes,
        metavar="MIB",
        help="what models may take together, estimated; those asked for the longest ago go first, and are "
        "loaded again when they are asked for",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=0.0,
        help="how long to go on after SIGTERM, not ready any more, for requests that are still sent here "
        "(default: %(default)s)",
    )
    parser.add_argument("--poll-seconds", type=float, default=0.2, help="how often routes are looked at")
    parser.add_argument("--token-file", type=Path, help=f"file with the token, instead of {TOKEN_VARIABLE}")
    parser.add_argument(
        "--clients",
        type=Path,
        help="YAML file: client → token, requests_per_second, burst, repository; beside the token or instead",
    )
    parser.add_argument(
        "--access-log", type=Path, help="file to append a JSON line a request to, without payloads"
    )
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def _mebibytes(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of MiB from 1, got {text!r}")
    return int(text)


def _read_clients(options: argparse.Namespace) -> dict[str, Client]:
    """Who may ask, by token: those of the file, and whoever has the one token."""
    from ml_lifecycle.serving.door import anybody, read_clients

    clients: dict[str, Client] = {} if options.clients is None else read_clients(options.clients)
    if options.token_file is not None:
        token = options.token_file.read_text(encoding="utf-8").strip()
    else:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if token:
        clients.setdefault(token, anybody())
    return clients


if __name__ == "__main__":
    sys.exit(main())
