"""HTTP/1.1 as uvicorn speaks it, with bounds on a request's head, which uvicorn leaves open.

Without them anybody, token or not, could hold up the event loop with one endless header (the parser copies
what it has of it at each packet), or all connections with heads that never end.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHttp(HttpToolsProtocol):
    """Refuses a head that is too long (431) or too slow (408). Bodies are the application's to bound.

    The packet a head begins in is not counted: it may hold the end of the request before.
    """

    max_head_bytes: ClassVar[int] = 64 * 1024
    head_seconds: ClassVar[float] = 20.0

    _in_head = False  # one has begun and is not whole
    _head_bytes = 0
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and see whether it is still a head."""
        continued = self._in_head
        super().data_received(data)
        if not self._in_head:
            return
        self._wait_for_head()
        if continued:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole: what follows is the application's."""
        self._head_came()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        if self._overdue is None:
            late = HTTPStatus.REQUEST_TIMEOUT
            self._overdue = self.loop.call_later(self.head_seconds, self._refuse, late)

    def _head_came(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _refuse(self, status: HTTPStatus) -> None:
        if not self.transport.is_closing():
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.write(head.encode())
            self.transport.close()
