"""The real server in this process, on a port and a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from ml_lifecycle.serving.server import ModelServer, listen, new_event_loop


@contextmanager
def live(server: ModelServer) -> Iterator[str]:
    """The URL it answers at; stopped in the end as SIGTERM stops it."""
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()
    started = threading.Event()
    stop: list[object] = []

    async def run() -> None:
        stopped = asyncio.Event()
        stop.extend((asyncio.get_running_loop().call_soon_threadsafe, stopped.set))
        started.set()
        await server.run(listener, stopped)

    def work() -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    try:
        yield f"http://{host}:{port}"
    finally:
        call, argument = stop
        call(argument)  # type: ignore[operator]
        thread.join()


@contextmanager
def live_client(server: ModelServer, token: str) -> Iterator[httpx.Client]:
    """A client of :func:`live`."""
    headers = {"Authorization": f"Bearer {token}"}
    with live(server) as url, httpx.Client(base_url=url, headers=headers, timeout=20) as client:
        yield client
