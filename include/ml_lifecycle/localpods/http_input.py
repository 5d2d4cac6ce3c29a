"""What comes over HTTP, within bounds."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from ml_lifecycle.errors import LifecycleError


class BodyError(LifecycleError):
    """A request's body is too large, came too slowly or not whole. Retry: no.

    :param status: the HTTP status: 413, 408 or 400
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the answer: whoever is slow is not waited for any longer."""
        return {"Connection": "close"} if self.status == 408 else {}


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The whole body.

    :param max_bytes: one that says that it is larger is refused unread
    :param seconds: how long it may take to come
    :raises BodyError: it is larger, slower, or the client went away. Retry: no.
    """
    # A malformed length never gets here: the HTTP parser refuses it.
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise BodyError(
            413, f"the body has {request.headers['content-length']} bytes, at most {max_bytes} are taken"
        )
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise BodyError(413, f"the body has more than {max_bytes} bytes")
    except TimeoutError as error:
        raise BodyError(
            408, f"the body was not whole after {seconds:g} seconds, {len(body)} bytes had come"
        ) from error
    except ClientDisconnect as error:
        raise BodyError(400, "the client went away before its request was whole") from error
    return bytes(body)
