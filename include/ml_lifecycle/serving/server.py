"""Puts a model server together: the application and, around it, the process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ml_lifecycle import __version__
from ml_lifecycle.adapters.lake import Lake
from ml_lifecycle.serving.access_log import AccessLog
from ml_lifecycle.serving.dataplane import DataPlane
from ml_lifecycle.serving.door import Client, Door, anybody
from ml_lifecycle.serving.front import Front
from ml_lifecycle.serving.http import Application, Bounds, HttpServer
from ml_lifecycle.serving.inference import Inference
from ml_lifecycle.serving.metrics import Metrics
from ml_lifecycle.serving.moments import now
from ml_lifecycle.serving.pinned import Pinned
from ml_lifecycle.serving.prediction_log import PredictionLog
from ml_lifecycle.serving.resolver import ReaderFactory, feast_reader
from ml_lifecycle.serving.rest import Rest
from ml_lifecycle.serving.routes import RouteFollower, RouteLoader
from ml_lifecycle.serving.shelf import Shelf

if TYPE_CHECKING:
    from ml_lifecycle.serving.grpc_service import GrpcService

log = logging.getLogger(__name__)

Bound = Callable[[int | None], None]

# Only large requests and online reads leave the event loop; the store is read one at a time anyway, and more
# threads than cores would only take turns.
_WORKER_THREADS = max(2, min(4, len(os.sched_getaffinity(0))))
_SHUTDOWN_SECONDS = 30.0
# So long at most the event loop waits for another thread that runs Python; usually it is 5 ms.
_SWITCH_SECONDS = 0.001
# A collection that finds a second's requests and no more takes a millisecond or two.
_LONG_SECONDS = 0.005


class ModelServer:
    """A server over one lake.

    :param clients: who may ask, by token; or one token for everybody, which loads and unloads no models
    :param online_store: URL of the online store; None takes vectors only
    :param endpoints: the endpoints to serve; None for all that the lake has
    :param poll_seconds: how often routes are looked at
    :param bounds: what one request and one connection may be
    :param max_rows: in one request
    :param model_memory: bytes that models may take together, estimated; None for no limit
    :param reader_factory: makes readers of the online store
    :param clock: the wall clock, microseconds since 1970
    :param access_log: where a line a request goes; None for nowhere
    :param drain_seconds: how long it goes on once it was told to stop, not ready any more: until then whoever
        sends requests here may not know of it
    :param pinned: what to serve for ever; None follows what is published
    :param application: what HTTP requests are answered by
    """

    def __init__(
        self,
        lake: Lake,
        environment: str,
        clients: str | Mapping[str, Client],
        online_store: str | None = None,
        endpoints: Sequence[str] | None = None,
        poll_seconds: float = 0.2,
        bounds: Bounds | None = None,
        max_rows: int = 10_000,
        model_memory: int | None = None,
        reader_factory: ReaderFactory = feast_reader,
        clock: Callable[[], int] = now,
        access_log: AccessLog | None = None,
        drain_seconds: float = 0.0,
        pinned: Pinned | None = None,
        application: Callable[[Front], Application] = Rest,
    ) -> None:
        metrics = Metrics(environment)
        plane = DataPlane()
        loader = RouteLoader(
            lake,
            metrics,
            online_store,
            reader_factory,
            shelf=Shelf(metrics, model_memory),
            version=None if pinned is None else pinned.version,
        )
        self._follower = RouteFollower(
            lake,
            plane,
            loader,
            metrics,
            endpoints if pinned is None else [pinned.endpoint],
            poll_seconds,
            pinned=None if pinned is None else pinned.pointer,
        )
        self._log = PredictionLog(lake, metrics, written=_collect)
        self._executor = ThreadPoolExecutor(_WORKER_THREADS, thread_name_prefix="infer")
        self._waiting = ThreadPoolExecutor(_WORKER_THREADS, thread_name_prefix="load")
        bounds = bounds or Bounds()
        front = Front(
            about={
                "name": "ml_lifecycle",
                "version": __version__,
                "extensions": ["binary_tensor_data"],
                "environment": environment,
            },
            door=Door({clients: anybody()} if isinstance(clients, str) else clients),
            plane=plane,
            inference=Inference(self._log, metrics, self._executor, self._waiting),
            metrics=metrics,
            repository=self._follower,
            clock=clock,
            max_rows=max_rows,
            max_bytes=bounds.body_bytes,
            access_log=access_log,
        )
        self._front = front
        self._http = HttpServer(application(front), bounds)
        self._drain_seconds = drain_seconds

    async def run(
        self,
        listener: socket.socket,
        stopped: asyncio.Event,
        grpc_address: str | None = None,
        bound: Bound | None = None,
    ) -> None:
        """Answer until ``stopped``; returns when requests in flight are answered and the log is written.

        :param grpc_address: host:port where gRPC is spoken too
        :param bound: told the port of gRPC once all ports are bound, before any model is loaded
        :raises PortError: that port is taken. Retry: no.
        """
        grpc_service, grpc_port = None, None
        if grpc_address is not None:
            from ml_lifecycle.serving.grpc_service import GrpcService

            grpc_service = GrpcService(self._front)
            grpc_port = await grpc_service.start(grpc_address)
        self._log.start()
        self._follower.start()
        left = asyncio.Event()
        leaving = asyncio.create_task(self._leave(stopped, left))
        if bound is not None:
            bound(grpc_port)
        try:
            # Both protocols end at once, within one and the same time.
            ending = asyncio.create_task(_stop_grpc(grpc_service, left))
            await self._http.run(listener, left, _SHUTDOWN_SECONDS)
            await ending
        finally:
            leaving.cancel()
            # All requests are answered by now; their rows are in the log's buffer.
            self._follower.stop()
            self._front.inference.close()
            self._executor.shutdown()
            self._waiting.shutdown()
            self._log.close()
            if self._front.access_log is not None:
                self._front.access_log.flush()

    async def _leave(self, stopped: asyncio.Event, left: asyncio.Event) -> None:
        """Say that requests should go elsewhere, and answer those that still come."""
        await stopped.wait()
        self._front.leaving.set()
        self._http.leave()
        await asyncio.sleep(self._drain_seconds)
        left.set()


async def _stop_grpc(service: GrpcService | None, stopped: asyncio.Event) -> None:
    await stopped.wait()
    if service is not None:
        await service.stop(_SHUTDOWN_SECONDS)


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


def serve(
    server: ModelServer,
    listener: socket.socket,
    grpc_address: str | None = None,
    bound: Bound | None = None,
) -> None:
    """Answer until SIGTERM or SIGINT. Arguments as in :meth:`ModelServer.run`.

    :raises PortError: gRPC's port is taken. Retry: no.
    """

    async def until_told() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        await server.run(listener, stopped, grpc_address, bound)

    _collect_seldom()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(until_told())


def _collect_seldom() -> None:
    """Have garbage collected by the prediction log alone, after each write.

    A collection stops every thread, and takes the longer the more there is: with all modules and a second's
    requests 40 ms were seen, many times a second. After a write hardly any requests are left.
    """
    gc.disable()
    _collect()


def _collect() -> None:
    if gc.isenabled():
        return  # a process that is not the server's own
    began = time.thread_time()
    gc.collect()
    if time.thread_time() - began > _LONG_SECONDS:
        # Much has come since, modules above all: they need not be looked at again. What was there before may
        # have become garbage meanwhile.
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed: half the CPU a request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
