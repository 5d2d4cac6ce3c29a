"""Puts a model server together: the application and, around it, the process."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from ml_lifecycle import __version__
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.http_input import BodyError
from ml_lifecycle.serving.dataplane import DataPlane
from ml_lifecycle.serving.errors import ServingError
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.prediction_log import PredictionLog
from ml_lifecycle.serving.protocol import BoundedHttp
from ml_lifecycle.serving.resolver import ReaderFactory, feast_reader
from ml_lifecycle.serving.rest import Front, Limits, Rest, answer_error
from ml_lifecycle.serving.routes import RouteFollower, RouteLoader

log = logging.getLogger(__name__)

# Only large requests and online reads leave the event loop; the store is read one at a time anyway.
_WORKER_THREADS = 4
# Longer than clients keep idle connections, so that they and not the server close them.
_KEEP_ALIVE_SECONDS = 75
_SHUTDOWN_SECONDS = 30


def _utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    lake: Lake,
    environment: str,
    token: str,
    online_store: str | None = None,
    endpoints: Sequence[str] | None = None,
    poll_seconds: float = 0.2,
    limits: Limits | None = None,
    reader_factory: ReaderFactory = feast_reader,
    clock: Callable[[], datetime] = _utc_now,
) -> Starlette:
    """The application. Its threads live as long as its lifespan, which writes the prediction log at its end.

    :param token: what clients must send as bearer token
    :param online_store: URL of the online store; None takes vectors only
    :param endpoints: the endpoints to serve; None for all that the lake has
    :param reader_factory: makes readers of the online store
    :param clock: the wall clock, UTC
    """
    metrics = Metrics(environment)
    plane = DataPlane()
    loader = RouteLoader(lake, online_store, reader_factory)
    follower = RouteFollower(lake, plane, loader, metrics, endpoints, poll_seconds)
    prediction_log = PredictionLog(lake, metrics)
    executor = ThreadPoolExecutor(_WORKER_THREADS, thread_name_prefix="infer")
    rest = Rest(
        environment,
        __version__,
        plane,
        prediction_log,
        metrics,
        lambda: follower.ready,
        executor,
        clock,
        limits or Limits(),
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        prediction_log.start()
        follower.start()
        yield
        # The requests in flight are answered by now; their rows are all in the log's buffer.
        follower.stop()
        executor.shutdown()
        prediction_log.close()

    app = Starlette(
        routes=rest.paths(),
        middleware=[Middleware(Front, token=token, plane=plane, metrics=metrics)],
        exception_handlers={
            ServingError: answer_error,
            HTTPException: answer_error,
            BodyError: answer_error,
            Exception: answer_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    :raises OSError: the port is taken, or the host is not this machine's. Retry: no.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which an accepted one
    # does not; without, an answer waits 40 ms for the acknowledgement of its own head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT; returns when requests in flight are answered and the log is written."""
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])
