"""HTTP/1.1 on an event loop, parsed by httptools: bounds on all that a client sends, and little else.

An application is asked twice about a request: when its head came (:meth:`Application.admit`), so that nobody
sends a body in vain, and when it is whole (:meth:`Application.answer`). It may reply at once or later; the
answers of a connection go out in the order of its requests.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal, Protocol, cast

import httptools
import orjson

log = logging.getLogger(__name__)

JSON = b"application/json"

_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
}
_REQUEST_ID = b"x-request-id"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# So many requests of a connection may be read before the first of them is answered.
_PIPELINED = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client may do to a connection. Times in seconds.

    :param head_bytes: of a request's line and headers; of one that begins in the middle of a packet (a client
        did not wait for an answer), that packet is not counted
    :param head_seconds: until a head is whole, from the connection's or the head's first byte
    :param body_bytes: larger bodies are refused unread
    :param body_seconds: until a body is whole
    :param idle_seconds: between two requests; longer than clients keep idle connections, so that they and
        not the server close them
    """

    head_bytes: int = 64 * 1024
    head_seconds: float = 20.0
    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 30.0
    idle_seconds: float = 75.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    :param body: one piece or several
    """

    status: int
    body: bytes | Sequence[bytes] = b""
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()


def json_response(content: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    """The content as JSON."""
    return Response(status, orjson.dumps(content), JSON, headers)


def error_response(status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    """A V2 error body."""
    return json_response({"error": message}, status, headers)


def with_id(request: Request, response: Response) -> Response:
    """The response with the id that came in a header, if one came."""
    given = request.headers.get(_REQUEST_ID)
    return response if given is None else replace(response, headers=(*response.headers, (_REQUEST_ID, given)))


class Request:
    """A request, its body empty until it is whole.

    :ivar target: the path as it was sent, still percent-encoded, without the query
    :ivar headers: by name in lower case; of several the first
    :ivar note: the application's own
    """

    __slots__ = ("_connection", "body", "headers", "keep_alive", "method", "note", "target")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True
        self.note: Any = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    def reply(self, response: Response) -> None:
        """Send the answer. Once a request; nothing happens if the client is gone."""
        self._connection.send(self, response)


class Application(Protocol):
    """What answers requests. Both methods are called on the event loop and must not block it."""

    def admit(self, request: Request) -> Response | None:
        """Refuse a request by its head, or let it in."""
        ...

    def answer(self, request: Request) -> None:
        """Answer a whole request by :meth:`Request.reply`, now or later."""
        ...

    def replied(self, request: Request, response: Response) -> None:
        """An answer has gone out, also one that the connection itself gave."""
        ...

    def tick(self) -> None:
        """Called every half second or so, and once after the last answer."""
        ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._parser: Any = None
        self._state: Literal["head", "body", "idle"] = "head"
        self._since = 0.0
        self._head_bytes = 0
        self._raw_bytes = 0  # of a body, its chunks' sizes and trailers included
        self._limit = server.bounds.body_bytes  # of the body that comes in
        self._request: Request | None = None  # the one whose parts come in
        self._chunks: list[bytes] = []
        self._size = 0
        self._refusal: Response | None = None  # of the one that comes in
        self._open: deque[Request] = deque()  # read and not answered, the oldest first
        self._answers: dict[int, Response] = {}  # of those that are not the oldest
        self._writable = True
        self._paused = False
        self._last = False  # no request is taken after those that are open

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a first request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._parser = httptools.HttpRequestParser(self)
        self._since = self._server.now()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what is open: nobody reads the answers."""
        self._server.connections.discard(self)
        self._last = True
        self._open.clear()
        self._answers.clear()
        self._request = None

    def pause_writing(self) -> None:
        """Take no further requests of a client that does not read its answers."""
        self._writable = False
        self._pause()

    def resume_writing(self) -> None:
        """It has read them."""
        self._writable = True
        self._go_on()

    def eof_received(self) -> bool:
        """Keep our side open while answers are due."""
        self._last = True
        return bool(self._open)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        # So much may be a head. What is behind that is looked at only where the head has ended.
        while self._state != "body" and len(data) > (
            room := self._server.bounds.head_bytes - self._head_bytes
        ):
            if room == 0:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"path and headers have more than {self._server.bounds.head_bytes} bytes: send fewer, or "
                    "shorter ones",
                )
                return
            self.data_received(data[:room])
            data = data[room:]
        if self._last:
            return
        if self._state == "body":
            self._raw_bytes += len(data)
        else:
            self._head_bytes += len(data)
            if self._state == "idle":
                self._enter("head")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Its request is taken as if it asked for none; what follows it is in no protocol that we know.
            self._last = True
        except httptools.HttpParserCallbackError as error:
            log.error("a request could not be read", exc_info=error.__context__)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has the details")
        except httptools.HttpParserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"this is no HTTP/1.1 request: {error}")
        else:
            if self._state == "body" and self._raw_bytes > 2 * self._limit + self._server.bounds.head_bytes:
                self._refuse(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"too much comes with a body of at most {self._limit} bytes: send larger chunks",
                )
            elif len(self._open) > _PIPELINED:
                self._pause()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._request = Request(self)
        self._chunks, self._size, self._refusal = [], 0, None
        if self._state != "head":
            self._enter("head")

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        request = self._request
        assert request is not None
        request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        request = self._request
        assert request is not None
        if self._state == "head":  # trailers say nothing that we ask for
            request.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Admit the request, or refuse it before its body comes."""
        request = self._request
        assert request is not None
        request.method = self._parser.get_method()
        # Of HTTP/1.0 too few agree what keeps a connection; after an upgrade we would not know the protocol.
        old = self._parser.get_http_version() == "1.0" or self._parser.should_upgrade()
        request.keep_alive = self._parser.should_keep_alive() and not old
        bounds = self._server.bounds
        self._limit = bounds.body_bytes if request.method == b"POST" else bounds.head_bytes
        self._raw_bytes = self._head_bytes = 0
        target = request.target
        if b"?" in target:
            target = target.partition(b"?")[0]
        if target[:1] not in (b"/", b"*"):
            target = _path_of(target)
        request.target = target
        if request.method == b"CONNECT" or not target.isascii() or not target:
            self._refusal = error_response(400, "the request's target is no path")
            request.keep_alive = False
        else:
            self._refusal = self._server.application.admit(request) or self._bound(request)
        self._enter("body")
        if self._refusal is not None:
            # Its body, if it ever comes, is thrown away, so that the client gets to read the answer.
            self._refusal = with_id(request, self._refusal)
            self._open.append(request)
            self.send(request, self._refusal)
        elif not self._open and request.headers.get(b"expect") == b"100-continue":
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._refusal is not None:
            return
        self._size += len(body)
        if self._size > self._limit:
            self._refuse_body(413, f"the body has more than {self._limit} bytes")
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Have the whole request answered."""
        request = self._request
        assert request is not None
        self._request = None
        self._enter("idle")
        if self._refusal is not None or self._last:
            self._go_on()
            return
        if not request.keep_alive:
            self._last = True
        chunks = self._chunks
        request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._open.append(request)
        self._server.application.answer(request)

    # Answers.

    def send(self, request: Request, response: Response) -> None:
        """Write the answer, and those of later requests that waited for it."""
        if not self._open or self._transport.is_closing():
            return
        if self._open[0] is not request:
            self._answers[id(request)] = response
            return
        self._write(self._open.popleft(), response)
        while self._open and (waiting := self._answers.pop(id(self._open[0]), None)) is not None:
            self._write(self._open.popleft(), waiting)
        self._go_on()

    def _write(self, request: Request, response: Response) -> None:
        body = response.body
        pieces = (body,) if isinstance(body, bytes) else body
        close = not request.keep_alive or self._server.closing
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b" % (
            _LINES[response.status],
            response.content_type,
            sum(map(len, pieces)),
            self._server.date,
        )
        if response.headers:
            head += b"".join(b"%b: %b\r\n" % header for header in response.headers)
        head += b"connection: close\r\n\r\n" if close else b"\r\n"
        if request.method == b"HEAD":
            self._transport.write(head)
        elif len(pieces) == 1 and len(pieces[0]) < 65536:
            self._transport.write(head + pieces[0])
        else:
            self._transport.writelines((head, *pieces))
        self._since = self._server.now()
        self._server.application.replied(request, response)
        if close:
            self._last = True
            self._open.clear()

    def _go_on(self) -> None:
        """Read further, or close, once nothing is open."""
        if self._last and not self._open and self._state != "body":
            self._transport.close()
        elif self._paused and self._writable and len(self._open) <= _PIPELINED:
            self._paused = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # Bounds.

    def close_if_late(self, now: float) -> None:
        """Refuse or leave a client that is too slow. An answer that is due is waited for."""
        bounds = self._server.bounds
        waited = now - self._since
        if self._transport.is_closing() or not self._writable:
            if waited > bounds.body_seconds:
                self._transport.abort()  # it does not read its answers: an orderly end would wait for that
        elif self._state == "body":
            if self._refusal is not None and waited > min(bounds.body_seconds, 5.0):
                self._transport.close()
            elif waited > bounds.body_seconds:
                self._refuse_body(
                    408,
                    f"the body was not whole after {bounds.body_seconds:g} seconds, "
                    f"{self._size} bytes had come",
                )
        elif self._state == "head":
            if waited > bounds.head_seconds and not self._open:
                self._refuse(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the head was not whole after {bounds.head_seconds:g} seconds",
                )
        elif waited > bounds.idle_seconds and not self._open:
            self._transport.close()

    def finish(self) -> None:
        """Close once what is open is answered."""
        if self._state == "idle" or (self._state == "head" and self._request is None):
            self._last = True
            if not self._open:
                self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    @property
    def peer(self) -> str:
        """The client's address."""
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if address else ""

    def _bound(self, request: Request) -> Response | None:
        length = request.headers.get(b"content-length")
        if length is not None and int(length) > self._limit:
            return error_response(413, f"the body has {int(length)} bytes, at most {self._limit} are taken")
        return None

    def _refuse_body(self, status: int, message: str) -> None:
        request = self._request
        assert request is not None
        self._chunks = []
        self._refusal = with_id(request, error_response(status, message))
        if status == HTTPStatus.REQUEST_TIMEOUT:
            request.keep_alive = False
        self._open.append(request)
        self.send(request, self._refusal)
        if status == HTTPStatus.REQUEST_TIMEOUT:
            self._transport.close()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer what is no request, after those before it, and close."""
        if self._last:
            return  # nothing is taken any more
        request = Request(self)
        request.keep_alive = False
        self._request, self._chunks = None, []
        self._last = True
        self._state = "idle"
        self._open.append(request)
        self.send(request, error_response(status.value, message))

    def _enter(self, state: Literal["head", "body", "idle"]) -> None:
        self._state = state
        self._since = self._server.now()


class HttpServer:
    """Listens, and closes orderly."""

    def __init__(self, application: Application, bounds: Bounds | None = None) -> None:
        self.application = application
        self.bounds = bounds or Bounds()
        self.connections: set[Connection] = set()
        self.closing = False
        self.date = b""
        # How often slow clients are looked for.
        self._tick_seconds = min(0.5, self.bounds.head_seconds / 10, self.bounds.body_seconds / 10)
        self._now = 0.0

    def leave(self) -> None:
        """Have clients go elsewhere: each connection ends with its next answer."""
        self.closing = True

    def now(self) -> float:
        """Seconds of the loop's clock, as of the last tick: exact enough for bounds, and free."""
        return self._now

    async def run(self, listener: socket.socket, stopped: asyncio.Event, close_seconds: float = 30.0) -> None:
        """Answer until ``stopped``, then close: requests in flight are answered first.

        :param close_seconds: how long they are waited for
        """
        loop = asyncio.get_running_loop()
        self._tick(loop)
        server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=2048)
        ticking = asyncio.create_task(self._tick_for_ever(loop))
        try:
            await stopped.wait()
        finally:
            self.leave()
            server.close()
            deadline = loop.time() + close_seconds
            while self.connections and loop.time() < deadline:
                for connection in tuple(self.connections):
                    connection.finish()
                await asyncio.sleep(0.01)
            for connection in tuple(self.connections):
                connection.abort()
            ticking.cancel()
            self.application.tick()

    async def _tick_for_ever(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            self._tick(loop)
            self.application.tick()
            for connection in tuple(self.connections):
                connection.close_if_late(self._now)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now = loop.time()
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode("ascii")


def _path_of(target: bytes) -> bytes:
    """The path of a target in absolute form; empty if it is no URL."""
    try:
        return httptools.parse_url(target).path or b""
    except httptools.HttpParserInvalidURLError:
        return b""
